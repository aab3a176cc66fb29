"""What is each choice of the default worth? Trainings of equal time, one thread each, judged as
`evaluate.py --split val` judges.

    make ablations                                        every choice, one seed: about 20 minutes each, two at a time
    make ablations ARGS="--only default uniform --seeds 0 1 2"
    make ablations ARGS="--minutes 60"

A choice is a line of flags for train.py. Each training and each evaluation is kept in results/ablations, and done once:
what was stopped is gone on with, and what failed is told, and tried again by the same command. The table goes to the
screen and to results/ablations/table.md; docs/ablations.md holds what was found.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.trial import judged
from ddpm import UserError
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import check_limits
from ddpm.runtime.files import check_writable, write_whole

CHOICES = {
    "default": "",
    "before": "--no-lean --muon-lr 0 --lr 8e-4 --time-std 0 --batch-size 16 --foreground-weight 1",
    "adamw": "--muon-lr 0 --lr 8e-4",
    "paper-network": "--no-lean",
    "uniform": "--time-std 0",
    "lower-noise": "--time-mean -0.8",
    "wider": "--time-mean -0.7 --time-std 1.4",
    "batch-16": "--batch-size 16",
    "batch-64": "--batch-size 64",
    "muon-0.01": "--muon-lr 0.01",
    "muon-0.02": "--muon-lr 0.02",
    "no-decay": "--muon-decay 0",
    "decay-0.3": "--muon-decay 0.3",
    "plain-foreground": "--foreground-weight 1",
    "lr-2e-3": "--lr 2e-3",
    "lr-8e-4": "--lr 8e-4",
    "ema-0.99": "--ema-decay 0.99",
    "ema-0.998": "--ema-decay 0.998",
    "min-snr": "--loss-weight min-snr",
    "wide": "--mults 1 2 3",
    "two-blocks": "--blocks 2",
    "phantom-40000": "--phantom-images 40000",
}
METRICS = ("kid", "fid", "manifold", "mask")
COLUMNS = {  # of the table, and the rows of evaluate.py's report that they are
    "KID x 1000": "KID x 1000",
    "FID": "FID",
    "coverage": "coverage",
    "Dice": "Dice of lesion, 12 pixels or more",
    "Dice, small": "Dice of lesion, under 12 pixels",
    "contrast": "contrast as asked",
}


def trial(name: str, seed: int, args) -> dict:
    """The figures of a choice under a seed; none, and why, if it failed, which costs no other its row."""
    flags = [*CHOICES[name].split(), "--minutes", f"{args.minutes:g}", "--seed", str(seed)]
    try:
        return judged(args.out / f"{name}-{args.minutes:g}min-{seed}", flags, args.n, METRICS)
    except UserError as error:
        print(f"{name}, seed {seed}: {error}", flush=True)
        return {}


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/ablations.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--minutes", type=float, default=17.0, help="of each training (default 17)")
    parser.add_argument("--n", type=int, default=1000, help="samples of each (default 1000)")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, a core each (default 2)")
    parser.add_argument("--out", type=Path, default=Path("results/ablations"))
    args = parser.parse_args(argv)
    for name, least in (("n", 40), ("jobs", 1), ("seeds", 0)):
        check_limits(name, getattr(args, name), at_least=least)
    check_limits("minutes", args.minutes, above=0)
    check_writable(args.out)
    args.out = args.out.resolve()
    todo = [(name, seed) for name in args.only for seed in args.seeds]
    print(f"{len(todo)} trainings of {args.minutes:g} minutes, {args.jobs} at a time; logs in {args.out}", flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        found = list(pool.map(lambda job: trial(*job, args), todo))
    head = ["", "steps", "validation loss", *COLUMNS]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name in args.only:
        of_seeds = [figures for (other, _), figures in zip(todo, found, strict=True) if other == name and figures]
        cells = [spread([figures.get(key, np.nan) for figures in of_seeds]) for key in (*head[1:3], *COLUMNS.values())]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    table = "\n".join(lines) + "\n"
    write_whole(args.out / "table.md", lambda file: file.write(table.encode()))
    print(table, end="", flush=True)
    if failed := found.count({}):
        raise UserError(f"{failed} of {len(todo)} trainings failed, as told above; the same command tries them again")


def spread(values: list) -> str:
    """Of one seed the value, of several their mean and standard deviation."""
    if not values:
        return "failed"
    text = f"{np.mean(values):.4g}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1):.2g}"


if __name__ == "__main__":
    sys.exit(main())
