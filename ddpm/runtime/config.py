"""What a run is made of: one dataclass, its presets, and the command line made from it."""

import argparse
import functools
import sys
import types
import typing
from dataclasses import dataclass, field, fields

import torch

from ddpm import UserError, printable
from ddpm.schedule import OBJECTIVES, SCHEDULES


def option(default, help: str, choices: tuple | None = None):
    """A field that is also a command-line flag."""
    if isinstance(default, (list, tuple)):
        return field(default_factory=lambda: list(default), metadata={"help": help, "choices": choices})
    return field(default=default, metadata={"help": help, "choices": choices})


@dataclass
class Config:
    """One training run. The defaults are the preset `laptop`."""

    # The data
    data: str = option("phantom", "'phantom' (embedded), or a folder; docs/data.md shows what may lie in it")
    masks: str = option("", "folder of masks, if they do not lie in masks/ beside images/")
    labels: str = option(
        "lesion", "the phantom's label set; 'none' trains without masks, also on a folder", ("lesion", "tissue", "none")
    )
    num_classes: int = option(2, "classes in masks that are pictures, background counted (2: also masks of 0/255)")
    subject_pattern: str = option(
        "", "regular expression that finds the subject in an image's name, for the split by subject of a folder"
    )
    skip_bad: bool = option(False, "count and leave out a folder's bad files instead of refusing them")
    image_channels: int = option(
        1, "of a folder's images: 1 grey, or 3 (red, green, blue; LGG's three contrasts)", (1, 3)
    )
    contrast: str = option("all", "train on one of the phantom's contrasts only", ("all", "T1", "T2", "FLAIR"))
    flip: bool = option(False, "mirror half of the images, masks and all; never where left and right matter")
    image_size: list[int] = option([64, 64], "height and width; one number means both")

    # The network (see ddpm/unet.py)
    channels: int = option(64, "channels of the first level")
    mults: list[int] = option([1, 2, 2], "channels of each level, as multiples of the first")
    blocks: int = option(1, "residual blocks a level")
    attention: list[int] = option([2], "levels with attention, counted from 0")
    patch: int = option(2, "pixels folded into channels at the input, each way")
    dropout: float = option(0.0, "dropout in the residual blocks")

    # The diffusion
    timesteps: int = option(1000, "T")
    schedule: str = option("cosine", "noise schedule", SCHEDULES)
    zero_terminal_snr: bool = option(False, "rescale the schedule so that x_T is pure noise")
    objective: str = option("v", "what the network predicts", OBJECTIVES)
    min_snr: float = option(0.0, "gamma of the min-SNR loss weight; 0 is the paper's plain loss")
    mask_drop: float = option(0.1, "probability that a sample's mask is withheld (for guidance)")
    contrast_drop: float = option(0.1, "probability that a sample's contrast is withheld")

    # The optimisation
    steps: int = option(0, "optimiser steps; 0 lets --minutes decide")
    minutes: float = option(17.0, "plan the number of steps so that the whole run takes this long; --steps overrides")
    batch_size: int = option(16, "images an optimiser step")
    grad_accum: int = option(
        1, "parts that each batch is computed in, one after the other (less memory, same gradient)"
    )
    lr: float = option(
        8e-4, "learning rate, times a linear warm-up, times a straight line from 1 to 0 at the last step"
    )
    warmup: int = option(200, "steps of warm-up")
    weight_decay: float = option(0.0, "AdamW's weight decay (0 is Adam)")
    clip: float = option(1.0, "largest gradient norm")
    ema_decay: float = option(
        0.995, "decay of the averaged weights; reached by a warm-up, min(decay, (1 + n) / (10 + n))"
    )
    precision: str = option("auto", "auto: the fastest of those measured at start", ("auto", "fp32", "bf16"))
    seed: int = option(0, "of the weights, the data order and the noise")

    # The run
    device: str = option("auto", "where to compute (cuda, mps: not yet run)", ("auto", "cpu", "cuda", "mps"))
    out: str = option("", "folder of the run; default results/DATA-TIME")
    log_every: int = option(20, "steps between lines in log.jsonl")
    save_every: int = option(500, "steps between checkpoints")
    keep: int = option(3, "checkpoints to keep: the newest so many, and the one with the lowest validation loss")
    sample_every: int = option(500, "steps between validation losses and sample grids")
    evaluate_every: int = option(
        0, "steps between small evaluations of 100 samples (KID, Dice) in log.jsonl; 0 is never"
    )


# What says nothing about the phantom.
FOLDER_ONLY = ("masks", "num_classes", "subject_pattern", "skip_bad", "image_channels")

# What may differ between a run and its continuation; all else is read from the checkpoint.
CHANGEABLE = (
    *("steps", "grad_accum", "device", "out", "data", "masks"),
    *("log_every", "save_every", "keep", "sample_every", "evaluate_every"),
)

PRESETS: dict[str, dict] = {
    # 2 CPU cores, 64 x 64, about 17 minutes. The defaults.
    "laptop": {},
    # Seconds a run: for tests, and to see every part move.
    "tiny": dict(
        image_size=[32, 32],
        channels=16,
        mults=[1, 2],
        attention=[1],
        blocks=1,
        batch_size=8,
        steps=40,
        log_every=10,
        save_every=20,
        sample_every=20,
        warmup=5,
    ),
    # Ho et al. 2020, appendix B: the CIFAR-10 network, schedule, objective, batch, rate and averaging. It differs in
    # that images have one channel (theirs: three) and that the learning rate decays. For one GPU; not yet run in full.
    "ho": dict(
        image_size=[32, 32],
        channels=128,
        mults=[1, 2, 2, 2],
        blocks=2,
        attention=[1],
        patch=1,
        dropout=0.1,
        schedule="linear",
        objective="eps",
        steps=800_000,
        batch_size=128,
        lr=2e-4,
        warmup=5000,
        ema_decay=0.9999,
        sample_every=5000,
        save_every=50_000,
        log_every=100,
    ),
    # One GPU, real data. Not yet run in full.
    "gpu-128": dict(
        image_size=[128, 128],
        channels=128,
        mults=[1, 2, 2, 2],
        blocks=2,
        attention=[2, 3],
        patch=2,
        steps=200_000,
        batch_size=64,
        lr=2e-4,
        warmup=1000,
        ema_decay=0.9999,
        sample_every=2000,
        save_every=20_000,
    ),
    "gpu-256": dict(
        image_size=[256, 256],
        channels=128,
        mults=[1, 1, 2, 2, 4],
        blocks=2,
        attention=[3, 4],
        patch=2,
        steps=400_000,
        batch_size=32,
        lr=1e-4,
        warmup=2000,
        ema_decay=0.9999,
        dropout=0.1,
        sample_every=5000,
        save_every=20_000,
    ),
}


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
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        except OSError as error:  # a full disk, a folder that went away
            print("error:", printable(f"{error.filename or 'disk'}: {error.strerror or error}"), file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 130
        return 0

    return wrapped


def train_parser() -> Parser:
    """The command line of train.py: --preset, --resume, and a flag for each field of Config."""
    parser = Parser(
        prog="train.py",
        description="Train a mask-conditioned DDPM (Algorithm 1).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=PRESETS, help="a set of defaults (default laptop)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="latest",
        metavar="PATH",
        help="go on with a checkpoint, a run's folder, or the newest run",
    )
    hints = typing.get_type_hints(Config)
    for f in fields(Config):
        kind = hints[f.name]
        default = f.default_factory() if callable(f.default_factory) else f.default
        shown = " ".join(map(str, default)) if isinstance(default, list) else default
        default_text = f" (default {shown})" if shown != "" else ""
        arguments = dict(help=(f.metadata["help"] + default_text).replace("%", "%%"), default=None)
        if kind is bool:
            arguments |= dict(action=argparse.BooleanOptionalAction)
        elif isinstance(kind, types.GenericAlias):
            arguments |= dict(type=int, nargs="+")
        else:
            arguments |= dict(type=kind, choices=f.metadata["choices"])
        parser.add_argument("--" + f.name.replace("_", "-"), **arguments)
    return parser


def given_flags(args: argparse.Namespace) -> dict:
    """The fields of Config that the command line names, checked one by one."""
    given = {f.name: getattr(args, f.name) for f in fields(Config) if getattr(args, f.name) is not None}
    if "image_size" in given:
        if len(given["image_size"]) > 2:
            raise UserError(f"--image-size takes height and width, not {len(given['image_size'])} numbers")
        given["image_size"] = (given["image_size"] * 2)[:2]
    for name in (
        "batch_size",
        "grad_accum",
        "timesteps",
        "channels",
        "blocks",
        "patch",
        "log_every",
        "save_every",
        "keep",
        "sample_every",
        "num_classes",
    ):
        if given.get(name, 1) < 1:
            raise UserError(f"--{name.replace('_', '-')} is {given[name]}; it must be at least 1")
    if given.get("channels", 4) < 4:
        raise UserError(f"--channels is {given['channels']}; it must be at least 4")
    for name in ("mults", "image_size"):
        if any(number < 1 for number in given.get(name, [])):
            raise UserError(f"--{name.replace('_', '-')} is {given[name]}; each number must be at least 1")
    for name in ("lr", "minutes", "clip"):
        if not given.get(name, 1) > 0:
            raise UserError(f"--{name} is {given[name]}; it must be greater than 0")
    for name in ("mask_drop", "contrast_drop", "dropout", "ema_decay"):
        if not 0 <= given.get(name, 0) <= 1:
            raise UserError(f"--{name.replace('_', '-')} is {given[name]}; it must lie between 0 and 1")
    for name in ("steps", "warmup", "min_snr", "weight_decay", "seed", "evaluate_every"):
        if not given.get(name, 0) >= 0:
            raise UserError(f"--{name.replace('_', '-')} is {given[name]}; it must not be negative")
    return given


def make_config(preset: str, given: dict) -> Config:
    """The preset with the given flags on top, checked as a whole. Raises UserError."""
    config = Config(**{**PRESETS[preset], **given})
    if "minutes" in given and "steps" not in given:
        config.steps = 0
    check_image_size(config)
    if config.data == "phantom":
        misplaced = [name for name in FOLDER_ONLY if name in given]
    else:
        misplaced = [name for name in ("contrast", "labels") if name in given and given[name] != "none"]
    if misplaced:
        raise UserError(f"--{misplaced[0].replace('_', '-')} has no meaning with --data {config.data}; leave it out")
    if config.objective == "eps" and config.zero_terminal_snr:
        raise UserError("--objective eps is undefined with --zero-terminal-snr (x_T holds no signal); use v or x_0")
    if config.schedule == "linear" and config.timesteps <= 20:
        raise UserError(
            f"--timesteps {config.timesteps} is too few for a linear schedule (over 20); "
            "to sample in fewer steps use sample.py --sample-steps"
        )
    if config.timesteps < 2:
        raise UserError(f"--timesteps is {config.timesteps}; it must be at least 2")
    if config.grad_accum > config.batch_size:
        raise UserError(
            f"--grad-accum {config.grad_accum} is more parts than --batch-size {config.batch_size} has images"
        )
    if not all(0 <= level < len(config.mults) for level in config.attention):
        raise UserError(f"--attention {config.attention} names a level that --mults {config.mults} does not have")
    return config


def check_image_size(config: Config) -> None:
    """Raises UserError, with the nearest sizes that work, if the levels do not divide the image size."""
    multiple = config.patch * 2 ** (len(config.mults) - 1)
    for size in config.image_size:
        if size < multiple or size % multiple:
            below, above = size // multiple * multiple, (size // multiple + 1) * multiple
            nearest = f"{below} or {above}" if below else f"{above}"
            raise UserError(
                f"--image-size {size} is not a multiple of {multiple}, as this network needs; nearest: {nearest}"
            )


def pick_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU if there is one. Raises UserError if it is not there."""
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = "cuda" if present["cuda"] else "mps" if present["mps"] else "cpu"
    if not present[name]:
        raise UserError(f"--device {name}: this machine or this PyTorch has none; use --device cpu")
    return torch.device(name)
