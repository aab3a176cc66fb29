"""How much of this machine's convolution speed does a whole training step reach?

The roof is measured, not read from a data sheet: 3x3 convolutions, forward and backward, of the sizes that the
network has. The step is the real one (network, loss, gradient clipping, optimiser, averaged weights), and its
arithmetic is counted by PyTorch's FlopCounterMode, which sees convolutions, matrix products and attention.

    python benchmarks/roofline.py                 the default preset, in bf16 (or --precision fp32)
    python benchmarks/roofline.py --variants      the choices that were tried, each as a ratio to the default

The machine's speed drifts, so all that is compared is run in turn, round after round, in one process.
"""

import argparse
import copy
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm.conditions import Vocabulary
from ddpm.data import Slices
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import PRESETS, Config, check_limits
from ddpm.training import make_training, training_step


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/roofline.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="laptop")
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--variants", action="store_true")
    args = parser.parse_args(argv)
    check_limits("rounds", args.rounds, at_least=1)
    config = Config(**{**PRESETS[args.preset], "precision": args.precision, "steps": 1})
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, preset {args.preset}, {args.precision}, "
        f"batch {config.batch_size}, {config.image_size[0]}x{config.image_size[1]}"
    )

    steps = {"the default": step_of(config)}
    if args.variants:
        steps |= variants(config)
    convolutions = {name: step for name, step in convolution_steps(config)}
    flops = {name: count(step) for name, step in {**convolutions, **steps}.items()}
    seconds = {name: [] for name in flops}
    for _ in range(args.rounds):
        for name, step in {**convolutions, **steps}.items():
            begun = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - begun)

    speed = {name: flops[name] / statistics.median(times) / 1e9 for name, times in seconds.items()}
    for name in convolutions:
        print(f"{name:32s} {speed[name]:6.0f} GFLOP/s")
    roof = max(speed[name] for name in convolutions)
    base = seconds["the default"]
    for name in steps:
        rate = config.batch_size / statistics.median(seconds[name])
        ratio = statistics.median(b / s for b, s in zip(base, seconds[name], strict=True))
        print(
            f"{name:32s} {speed[name]:6.0f} GFLOP/s  {speed[name] / roof:4.0%} of the roof  {rate:6.1f} images/s"
            f"  {ratio:5.2f} x the default's speed"
        )
    print(f"one image: {flops['the default'] / config.batch_size / 1e9:.1f} GFLOP forward and backward")


def count(step) -> int:
    """Floating point operations of a step. It runs twice: the first call may compile or pack weights."""
    step()
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def convolution_steps(config: Config):
    """(name, function) of a 3x3 convolution, forward and backward, for each level of the network."""
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    for level, mult in enumerate(config.mults):
        channels = config.channels * mult
        size = [side // config.patch // 2**level for side in config.image_size]
        layer = nn.Conv2d(channels, channels, 3, padding=1).to(dtype)
        x = torch.randn(config.batch_size, channels, *size, dtype=dtype)
        for name, format in (("contiguous", torch.contiguous_format), ("channels_last", torch.channels_last)):
            layer_f = copy.deepcopy(layer).to(memory_format=format)
            x_f = x.to(memory_format=format).requires_grad_()
            gradient = torch.randn_like(x_f)

            def step(layer=layer_f, x=x_f, gradient=gradient):
                for _ in range(4):
                    layer(x).backward(gradient)

            yield f"conv {channels} at {size[0]}x{size[1]} {name}", step


def step_of(config: Config, compile=False):
    """A function that takes a whole training step, of noise."""
    rng, B = np.random.default_rng(0), config.batch_size
    images = rng.integers(0, 256, (B, 1, *config.image_size), dtype=np.uint8)
    vocabulary = Vocabulary(("background", "lesion"), {"contrast": ("T1", "T2", "FLAIR")})
    data = Slices(images, images[:, 0] >> 7, {"contrast": rng.integers(1, 4, B)}, vocabulary)
    training = make_training(config, vocabulary, torch.device("cpu"))
    if compile:
        training.unet.compile()
    return lambda: training_step(training, data, 0)


def variants(config: Config) -> dict:
    """Name -> step of each alternative to the default."""
    other = replace(config, precision="fp32" if config.precision == "bf16" else "bf16")
    return {
        other.precision: step_of(other),
        "AdamW alone (--muon-lr 0)": step_of(replace(config, muon_lr=0.0)),
        "the paper's network (--no-lean)": step_of(replace(config, lean=False)),
        "torch.compile": step_of(config, compile=True),
    }


if __name__ == "__main__":
    sys.exit(main())
