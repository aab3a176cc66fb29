"""What the scripts' command lines have in common: parsers, errors in one line, and what the flags mean."""

import argparse
import functools
import os
import sys
import time
import types
from dataclasses import fields

import numpy as np
import torch

from ddpm import UserError, printable
from ddpm.conditions import KINDS, flag_of
from ddpm.data.texts import read_embeddings
from ddpm.model import INTERVAL, INTERVAL_OF_WORDS, Model, Sampling
from ddpm.reverse import SAMPLERS, STEPS
from ddpm.runtime import distributed
from ddpm.runtime.config import PRESETS, Config, check_limits, flag

# What PyTorch says of a GPU, and of the CPU on Linux and on Windows. Python and NumPy raise a MemoryError.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class Parser(argparse.ArgumentParser):
    """argparse, with its errors in one line like all the others."""

    def error(self, message: str):
        raise UserError(f"{message} (see python {self.prog} --help)")


def one_line_errors(main):
    """main(argv) -> exit status, with a UserError told in one line on stderr and exit status 2. What is printed in
    letters that the terminal lacks is shown by their numbers."""

    @functools.wraps(main)
    def wrapped(argv=None) -> int:
        if hasattr(sys.stdout, "reconfigure"):  # not in a notebook; stderr does so by itself
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            main(sys.argv[1:] if argv is None else argv)
            sys.stdout.flush()  # now, while an error of that can be told
            return 0
        except UserError as error:
            told = error
        except (
            BrokenPipeError
        ):  # whoever read what is printed has gone (`sample.py | head`); Python shall not try again
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 141  # 128 and the number of SIGPIPE, as of any other program there
        except OSError as error:  # a full disk, a folder that went away
            told = printable(f"{error.filename or 'disk'}: {error.strerror or error}")
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or any(words in str(error) for words in OUT_OF_MEMORY):
                less = "a smaller --batch-size (or train.py a larger --grad-accum), or a smaller network or images"
                told = f"out of memory; give {less}"
            elif type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                found = printable(str(error).strip().partition("\n")[0])
                told = f"--compile: {found}; it needs a C++ compiler (on a GPU Triton): install that, or leave it out"
            else:
                raise
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        print(f"error: {told}", file=sys.stderr)
        return 2

    return wrapped


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one. Raises UserError if it is not there."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if present["cuda"] else "mps" if present["mps"] else "cpu"
    if not present[name]:
        raise UserError(f"--device {name}: this machine or this PyTorch has none; use --device cpu")
    if name == "cuda":
        distributed.take_gpu()
    return torch.device(name)


# ---------------------------------------------------------------------------------------------------------
# train.py


def train_parser() -> Parser:
    """The command line of train.py: --preset, --resume, and a flag for each field of Config."""
    parser = Parser(prog="train.py", description="Train a mask-conditioned DDPM (Algorithm 1).")
    parser.add_argument("--preset", choices=PRESETS, help="a set of defaults (default laptop)")
    resume = "go on with a checkpoint, a run's folder, or the newest run"
    parser.add_argument("--resume", nargs="?", const="latest", metavar="PATH", help=resume)
    for f in fields(Config):
        default = f.default_factory()
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        text = f.metadata["help"] + (f" (default {shown})" if shown != "" else "")
        if f.type is bool:
            kind = dict(action=argparse.BooleanOptionalAction)
        elif isinstance(f.type, types.GenericAlias):
            kind = dict(type=int, nargs="+")
        else:
            kind = dict(type=f.type, choices=f.metadata["choices"])
        parser.add_argument(flag(f.name), help=text.replace("%", "%%"), **kind)
    return parser


def given_fields(args: argparse.Namespace) -> dict:
    """The fields of Config that the command line names. Raises UserError for more than two sizes."""
    given = {f.name: getattr(args, f.name) for f in fields(Config) if getattr(args, f.name) is not None}
    if "image_size" in given:
        if len(given["image_size"]) > 2:
            raise UserError(f"--image-size takes height and width, not {len(given['image_size'])} numbers")
        given["image_size"] = (given["image_size"] * 2)[:2]
    return given


# ---------------------------------------------------------------------------------------------------------
# sample.py and evaluate.py


def add_sampling_flags(parser: Parser, batch_size: int) -> None:
    """The flags that sample.py and evaluate.py have in common; `batch_size` is the default of one of them."""
    add = parser.add_argument
    which = (
        "a checkpoint, a run's folder, or pretrained: the model in the box (default: the newest in results/, or that); "
        "pretrained-fast: its student of four steps; pretrained-128: one of 128x128"
    )
    add("--ckpt", help=which)
    add(
        "--seed",
        type=int,
        default=0,
        help="image k of a mask under a seed, in one --precision, is always the same (default 0)",
    )
    add("--sampler", choices=SAMPLERS, help="default dpm-solver (of a distilled model: ddim)")
    add("--sample-steps", type=int, help=f"steps an image (default {STEPS}, or as many as it was trained for)")
    strength = (
        "1 as trained, 0 not at all (default: the model's own, 1.25 unless train.py was told; 1 with a source, or of "
    )
    strength += "a student); other than 1, the network works twice"
    add("--guidance", type=float, help=f"how strongly to follow what is guided: {strength}")
    guided = (
        "what guidance strengthens (default: all that is asked for); the rest of the condition stays in both halves"
    )
    add("--guided", nargs="+", choices=KINDS, help=guided)
    interval = "guide only where t / T is in between (default {} {}; by words {} {})".format(
        *INTERVAL, *INTERVAL_OF_WORDS
    )
    add("--guidance-interval", nargs=2, type=float, metavar=("LOW", "HIGH"), help=interval)
    more = "walk with this share more noise than the network is told, less below t = T: images are less smooth"
    add(
        "--extra-noise",
        type=float,
        help=f"{more} (default: by dpm-solver, or of a distilled model, its own; 0 with a source, of masks, and by other samplers)",
    )
    bf16 = "inside the network; in bf16 the batch size may show (default auto: the quicker one here)"
    add("--precision", choices=("auto", "fp32", "bf16"), default="auto", help=bf16)
    at_a_time = f"images at a time; changes no image by more than one grey level (default {batch_size})"
    add("--batch-size", type=int, default=batch_size, help=at_a_time)
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="(default auto; mps: not yet run)")


def check_range(args, **limits: tuple[float, float]) -> None:
    """Raises UserError if one of the named flags was given a number outside its limits (lowest, highest)."""
    limits |= dict(
        batch_size=(1, 2**31), seed=(0, 2**63 - 1), sample_steps=(1, 10**6), guidance=(0, 1000), extra_noise=(0, 1)
    )
    for name, (low, high) in limits.items():
        if (value := getattr(args, name)) is not None:
            check_limits(name, value, at_least=low, at_most=high)


def sampling_of(args: argparse.Namespace) -> Sampling:
    """How to draw, as the flags have it."""
    precision = quicker_precision(pick_device(args.device)) if args.precision == "auto" else args.precision
    guided, interval = (given and tuple(given) for given in (args.guided, args.guidance_interval))
    steps, extra, eta = args.sample_steps, args.extra_noise, getattr(args, "eta", 0.0)
    return Sampling(args.sampler, steps, args.guidance, guided, interval, eta, precision, extra_noise=extra)


def quicker_precision(device: torch.device) -> str:
    """bf16 where the processor has it: where a convolution like the network's is clearly quicker in it. Else fp32."""
    if device.type != "cpu":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    seconds = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        x, weight = (torch.ones(shape, device=device, dtype=dtype) for shape in ((2, 64, 16, 16), (64, 64, 3, 3)))
        times = []
        for _ in range(4):
            begun = time.perf_counter()
            torch.nn.functional.conv2d(x, weight, padding=1).sum().item()  # waits for a GPU
            times.append(time.perf_counter() - begun)
        seconds[name] = min(times)
    return "bf16" if seconds["bf16"] < 0.8 * seconds["fp32"] else "fp32"


def label_values(name: str, wanted: str, model: Model, n: int) -> list[str]:
    """The value of a label for sample 0 .. n-1 of a mask; [] if none is asked for, or known. Raises UserError."""
    known = model.vocabulary.labels.get(name, ())
    if wanted in known:
        return [wanted] * n
    if wanted == "each":
        return [known[k % len(known)] for k in range(n) if known]
    if not known and wanted != "none":
        raise UserError(f"--{name} {wanted}: {model.name} was trained without {name}s; leave --{name} out")
    if wanted != "none":
        raise UserError(f"--{name} {wanted}: {model.name} knows {', '.join(known)}")
    return []


def words_of(args, model: Model, n: int) -> np.ndarray | None:
    """What the network takes of --prompt, for n images: numbers of words (n, L), or a vector (n, D). None without a
    prompt. Raises UserError."""
    known = model.vocabulary
    if args.prompt is None:
        if args.text_embeddings:
            raise UserError("--text-embeddings says what vector stands for --prompt; give that too")
        return None
    if "words" not in known.given:
        knows = ", ".join(flag_of(kind) for kind in known.given) or "nothing"
        raise UserError(f"--prompt: {model.name} was trained without words; it can be asked for {knows}")
    if args.text_embeddings and not known.vectors:
        raise UserError(f"--text-embeddings: {model.name} has embeddings of its own; leave it out")
    if not known.vectors:
        try:
            return known.numbers([args.prompt] * n)
        except ValueError as error:
            raise UserError(f"--prompt: {error}") from None
    path = args.text_embeddings or model.config.text_embeddings
    vectors = read_embeddings(path).of([args.prompt] * n)
    if vectors.shape[1] != known.vectors:
        raise UserError(f"{path}: vectors of {vectors.shape[1]} numbers; {model.name} was trained with {known.vectors}")
    return vectors
