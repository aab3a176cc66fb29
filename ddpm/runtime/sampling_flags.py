"""What a script that draws samples can be asked for, and what that means for the checkpoint at hand."""

from pathlib import Path

from ddpm import UserError
from ddpm.reverse import GUIDANCE, SAMPLERS, STEPS, usual_guidance
from ddpm.runtime import checkpoint
from ddpm.runtime.config import Config, Parser


def add_sampling_flags(parser: Parser, batch_size: int) -> None:
    """The flags that sample.py and evaluate.py have in common; `batch_size` is the default of one of them."""
    add = parser.add_argument
    add("--ckpt", help="a checkpoint, or a run's folder (default: the newest in results/)")
    add("--seed", type=int, default=0, help="image k of a mask under a seed is always the same (default 0)")
    add("--sampler", choices=SAMPLERS, default="dpm-solver", help="default dpm-solver")
    add("--sample-steps", type=int, help=f"steps an image (default {STEPS})")
    add(
        "--guidance",
        type=float,
        help=f"how strongly to follow the mask: 1 as trained, 0 not at all (default {GUIDANCE}); "
        "other than 1 it takes two network calls a step",
    )
    add(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="bf16 is faster where the processor has it, and then the batch size may show (default fp32)",
    )
    add(
        "--batch-size",
        type=int,
        default=batch_size,
        help=f"images at a time; changes no image by more than one grey level (default {batch_size})",
    )
    add("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="cuda and mps: not yet run")


def check_at_least(args, **lowest: float) -> None:
    """Raises UserError if one of the named flags was given a number below its lowest."""
    lowest = {"batch_size": 1, "seed": 0, "sample_steps": 1, "guidance": 0, **lowest}
    for name, low in lowest.items():
        value = getattr(args, name)
        if value is not None and not value >= low:
            raise UserError(f"--{name.replace('_', '-')} is {value}; it must be at least {low}")


def load_checkpoint(ckpt: str | None) -> tuple[Path, dict]:
    """The checkpoint that --ckpt names, and its path: a file, or the newest of a folder. Raises UserError."""
    path = Path(ckpt or "results")
    if path.is_dir() or not ckpt:
        path = checkpoint.newest(path)
    return path, checkpoint.load(path)


def settle(args, config: Config, masked: bool, path: Path) -> None:
    """Fill in --sample-steps and --guidance where they were left open. masked: is there a mask to follow?

    Raises UserError for what the checkpoint at `path` cannot do.
    """
    args.sample_steps = args.sample_steps or min(STEPS[args.sampler], config.timesteps)
    if args.sample_steps > config.timesteps:
        raise UserError(f"--sample-steps {args.sample_steps} is more than the {config.timesteps} steps of {path}")
    if args.guidance is None:
        args.guidance = usual_guidance(masked, config.mask_drop)
    if args.guidance != 1 and not masked:
        raise UserError("--guidance needs --mask, and a checkpoint that was trained with masks")
    if args.guidance != 1 and config.mask_drop == 0:
        raise UserError(f"{path} was trained with --mask-drop 0: it needs --mask, and knows no --guidance")
