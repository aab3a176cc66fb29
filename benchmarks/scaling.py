"""What do the presets need, and what would N GPUs make of them? The numbers behind docs/scaling.md.

    python benchmarks/scaling.py                       counted, without computing: weights, arithmetic, memory
    python benchmarks/scaling.py --step gpu-256        one real training step of 2 images: its time and memory

Arithmetic is counted by PyTorch's FlopCounterMode (convolutions, matrix products, attention) and what the backward
pass has to keep by autograd's hooks, both on tensors that have a shape but no content.
"""

import argparse
import functools
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm.conditions import Condition, Vocabulary
from ddpm.data import Slices
from ddpm.model import make_unet
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import PRESETS, Config, check_limits
from ddpm.runtime.run import peak_memory_gb
from ddpm.training import make_training, training_step

FAKE = functools.partial(FakeTensorMode, allow_non_fake_inputs=True)  # the weights are real
VOCABULARY = Vocabulary(("background", "lesion"), {"contrast": ("T1", "T2", "FLAIR")})

# Bytes a weight: itself, gradient, Adam's two moments, average, and the copy of the gradients that travels; all float32.
STATE = 4 + 4 + 8 + 4 + 4
# Assumed, not measured: an A100's bf16 peak and the share of it that training reaches; bytes a second between GPUs in
# one machine (NVLink) and between machines (a 200 Gbit/s card for each GPU).
PEAK, SHARE, NVLINK, NETWORK = 312e12, 0.30, 200e9, 20e9


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/scaling.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--step", choices=PRESETS, help="take one real step of this preset")
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--precision", choices=("bf16", "fp32"), default="bf16")
    args = parser.parse_args(argv)
    check_limits("images", args.images, at_least=1)
    if args.step:
        real_step(args.step, args.images, args.precision)
        return
    for preset in ("laptop", "ho", "gpu-128", "gpu-256"):
        tell(preset)


def inputs(config: Config, images: int):
    """x_t, t and the condition."""
    x_t, t = torch.zeros(images, 1, *config.image_size), torch.ones(images, dtype=torch.long)
    return x_t, t, Condition(torch.zeros(images, 2, *config.image_size), {"contrast": t})


def flops(config: Config) -> int:
    """Of one image, forward and backward."""
    unet = make_unet(config, VOCABULARY)
    with FAKE(), FlopCounterMode(display=False) as counter:
        unet(*inputs(config, 1)).sum().backward()
    return counter.get_total_flops()


def kept_for_backward(config: Config) -> int:
    """Bytes that each image adds to what the backward pass keeps, with the network in bf16 (CPU rules)."""

    def total(images: int) -> int:
        unet = make_unet(config, VOCABULARY)
        with FAKE():
            own = {weight.untyped_storage()._cdata for weight in unet.parameters()}
            kept = {}

            def note(tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in own:
                    kept[storage._cdata] = storage  # held, so that no other gets its number
                return tensor

            given = inputs(config, images)
            with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
                with torch.autocast("cpu", torch.bfloat16):
                    answer = unet(*given)
                answer.float().square().mean()
            return sum(storage.nbytes() for storage in kept.values())

    return total(2) - total(1)


def draw_seconds(config: Config) -> float:
    """The noise of a whole batch, which each process draws (processor time)."""
    shape = (config.batch_size, 1, *config.image_size)
    torch.randn(shape)
    begun = time.process_time()
    for _ in range(10):
        torch.randn(shape)
    return (time.process_time() - begun) / 10


def tell(preset: str) -> None:
    config = Config(**PRESETS[preset])
    weights = sum(weight.numel() for weight in make_unet(config, VOCABULARY).parameters())
    work, kept, draw = flops(config), kept_for_backward(config), draw_seconds(config)
    print(
        f"{preset}: {weights / 1e6:.1f} M weights; {work / 1e9:.0f} GFLOP and {kept / 1e6:.0f} MB an image; state "
        f"{STATE * weights / 1e9:.2f} GB; {4 * weights / 1e6:.0f} MB of gradients; noise of a batch {1e3 * draw:.1f} ms"
    )
    if not config.steps:
        return
    for gpus, batch in (
        (1, config.batch_size),
        (8, config.batch_size),
        (64, config.batch_size),
        (64, 8 * config.batch_size),
    ):
        if batch < gpus:
            continue
        each = -(-batch // gpus)
        compute = each * work / (SHARE * PEAK)
        between = 2 * (gpus - 1) / gpus * 4 * weights / (NVLINK if gpus <= 8 else NETWORK)
        step = compute + between + draw * batch / config.batch_size
        print(
            f"  {gpus:2d} GPUs, batch {batch}: {each} images each, {(STATE * weights + each * kept) / 1e9:.1f} GB, "
            f"compute {1e3 * compute:.0f} ms, exchange {1e3 * between:.1f} ms, step {1e3 * step:.0f} ms, "
            f"{batch / step:.0f} images/s, {config.steps * config.batch_size / batch * step / 3600:.1f} h "
            f"for {config.steps * config.batch_size / 1e6:.1f} M images"
        )


def real_step(preset: str, images: int, precision: str) -> None:
    config = Config(**{"steps": 1, **PRESETS[preset], "batch_size": images, "precision": precision})
    pixels = np.zeros((images, 1, *config.image_size), np.uint8)
    data = Slices(pixels, pixels[:, 0], {"contrast": np.ones(images, np.int64)}, VOCABULARY)
    training = make_training(config, VOCABULARY, torch.device("cpu"))
    begun, used = time.perf_counter(), time.process_time()
    losses = training_step(training, data, 0).losses
    wall, seconds = time.perf_counter() - begun, time.process_time() - used
    memory, work = peak_memory_gb(training.device), images * flops(config)
    print(
        f"{preset}, {precision}, {torch.get_num_threads()} threads: a step of {images} images took "
        f"{wall:.1f} s ({seconds:.1f} s of processor time, {work / seconds / 1e9:.0f} GFLOP/s), loss "
        f"{losses.mean():.3f}, peak memory {memory:.1f} GB"
    )


if __name__ == "__main__":
    sys.exit(main())
