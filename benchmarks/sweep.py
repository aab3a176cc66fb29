"""Which settings train best? A training for each combination of values of train.py's flags, judged as
`evaluate.py --split val` judges.

    make sweep                                            steps, learning rate, averaging: eight short trainings
    make sweep ARGS="--grid lr=1e-3,2e-3 ema-decay=0.99,0.995"
    make sweep ARGS="--grid lr=1e-3,2e-3,5e-3 dropout=0,0.1 lean=yes,no --random 6"
    make sweep ARGS="--grid 'mults=1 2 2,1 2 3' seed=0,1,2 --fixed minutes=17"

A training that fails is a row of the table, and the others go on. Everything is kept in results/sweep, and done once: the
same command goes on with what was stopped, and tries again what failed. docs/tuning.md tells how to read it.
"""

import csv
import hashlib
import io
import itertools
import re
import sys
import types
from argparse import RawDescriptionHelpFormatter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.trial import judged
from ddpm import UserError
from ddpm.runtime.command_line import Parser, given_fields, one_line_errors, train_parser
from ddpm.runtime.config import Config, check_limits, make_config
from ddpm.runtime.files import check_writable, write_whole

GRID = ["steps=400,800", "lr=2e-3,5e-3", "ema-decay=0.95,0.99"]
# Small enough for eight trainings in 20 minutes on two cores. A flag in the grid goes first.
FIXED = ["image-size=32", "channels=32", "batch-size=16", "warmup=50", "save-every=100", "minutes=4"]
KINDS = {"preset": str} | {f.name.replace("_", "-"): f.type for f in fields(Config)}
OURS = ("out", "resume", "threads")
METRICS = ("kid", "mask")
FIGURES = {  # of the table: the rows of evaluate.py's report whose mean it is, and whether more of it is better
    "validation loss": ("validation loss", False),
    "KID x 1000": ("KID x 1000", False),
    "Dice": (r"Dice of .*, \d+ pixels or more", True),
    "contrast": ("contrast as asked", True),
}
PLOTTED = ("validation loss", "KID x 1000", "Dice")
SHORT = {"loss": "validation loss", "kid": "KID x 1000", "dice": "Dice", "contrast": "contrast"}


# ---------------------------------------------------------------------------------------------------------
# What to train: everything is checked before the first training starts


def read_grid(words: list[str], option: str) -> dict[str, list[str]]:
    """{flag: its values} of words FLAG=VALUE,VALUE. Raises UserError for what train.py would not take."""
    grid = {}
    for word in words:
        name, _, text = word.partition("=")
        values = text.split(",")
        if name not in KINDS and name not in OURS:
            raise UserError(f"{option} {word}: train.py has no flag --{name} (see python train.py --help)")
        if name in OURS:
            raise UserError(f"{option} {word}: the sweep itself sets --{name}; leave it out")
        if not all(value.strip() for value in values):
            raise UserError(f"{option} {word}: a value is missing; write {name}=VALUE or {name}=VALUE,VALUE")
        if name in grid:
            raise UserError(f"{option}: {name} stands there twice; write all its values behind one")
        taken = [parsed({name: value}) for value in values]
        for i, value in enumerate(values):
            if taken[i] in taken[:i]:
                raise UserError(f"{option} {word}: {values[taken.index(taken[i])]} and {value} are the same value")
        grid[name] = values
    return grid


def read_fixed(words: list[str] | None, grid: dict) -> dict[str, list[str]]:
    """What --fixed says, or the default of it as far as the grid does not. Raises UserError."""
    fixed = read_grid(FIXED if words is None else words, "--fixed")
    if words is None:
        return {name: values for name, values in fixed.items() if name not in grid}
    if both := [name for name in fixed if name in grid]:
        raise UserError(f"--fixed {both[0]}: it is in the grid too; leave it out of one")
    if several := [name for name, values in fixed.items() if len(values) > 1]:
        raise UserError(f"--fixed {several[0]}: several values; put it into --grid")
    return fixed


def flags_of(values: dict[str, str]) -> list[str]:
    """The command line of train.py for {flag: value}, in the order of the names. A switch is yes or no, and the numbers of
    a list stand apart: "1 2 2"."""
    flags = []
    for name, value in sorted(values.items()):
        if KINDS[name] is bool:
            if value not in ("yes", "no"):
                raise UserError(f"{name}={value}: it is a switch; write yes or no")
            flags.append(f"--{name}" if value == "yes" else f"--no-{name}")
        elif isinstance(KINDS[name], types.GenericAlias):
            flags += [f"--{name}", *value.split()]
        else:
            flags.append(f"--{name}={value}")
    return flags


def parsed(values: dict[str, str]):
    """What train.py makes of them, each flag by itself. Raises UserError as it does."""
    return train_parser().parse_args(flags_of(values))


def check(values: dict[str, str]) -> None:
    """Raises UserError as train.py would for all of them together."""
    args = parsed(values)
    make_config(args.preset or "laptop", given_fields(args))


def combinations(grid: dict[str, list[str]], random: int | None, seed: int) -> list[dict[str, str]]:
    """All combinations of the grid, or so many of them drawn at random, in the grid's order. Raises UserError."""
    every = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
    if random is None:
        return every
    if not 1 <= random <= len(every):
        raise UserError(f"--random {random}: the grid has {len(every)} combinations; draw 1 to {len(every)}")
    chosen = np.random.default_rng(seed).choice(len(every), random, replace=False)
    return [every[i] for i in sorted(chosen)]


def label(values: dict[str, str]) -> str:
    return " ".join(f"{name}={value}" for name, value in values.items())


def folder(values: dict[str, str], flags: list[str]) -> str:
    """A name for people, and a hash of all flags: with another --fixed it is another training."""
    name = re.sub(r"[^\w.=+-]+", "_", label(values))[:80]
    return f"{name}-{hashlib.sha256(' '.join(flags).encode()).hexdigest()[:8]}"


# ---------------------------------------------------------------------------------------------------------
# What came out


def row_of(values: dict[str, str], fixed: dict[str, str], args) -> dict:
    """Train and judge a combination, as far as that is not done; its row of the table."""
    flags = flags_of({**fixed, **values})
    try:
        found = judged(args.out / folder(values, flags), flags, args.n, METRICS)
        row = {**values, "steps taken": found["steps"]}
        for name, (rows, _) in FIGURES.items():
            if of_rows := [value for metric, value in found.items() if re.fullmatch(rows, metric)]:
                row[name] = float(np.mean(of_rows))
    except UserError as error:
        row = {**values, "failed": str(error)}
    told = "  ".join(f"{name} {cell(row[name])}" for name in (*FIGURES, "failed") if name in row)
    print(f"{label(values)}: {told}", flush=True)
    return row


def best_first(rows: list[dict], by: str) -> list[dict]:
    """Sorted by one of FIGURES; those that lack it come last."""
    sign = -1 if FIGURES[by][1] else 1
    return sorted(rows, key=lambda row: sign * row[by] if by in row else np.inf)


def cell(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def aligned(head: list[str], rows: list[dict]) -> str:
    """The table, for the terminal."""
    lines = [head] + [[cell(row.get(name, "")) for name in head] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([text.ljust(width) for text, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def as_csv(head: list[str], rows: list[dict]) -> bytes:
    text = io.StringIO()
    table = csv.DictWriter(text, head, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def plot(grid: dict[str, list[str]], rows: list[dict], path: Path) -> None:
    """Each of PLOTTED against each flag: a dot a training, a line through the means. Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    size = (3 * len(grid) + 1, 2.2 * len(PLOTTED))
    canvas = Figure(figsize=size, layout="constrained", dpi=110)
    axes = canvas.subplots(len(PLOTTED), len(grid), squeeze=False, sharey="row", sharex="col")
    for line, measure in zip(axes, PLOTTED, strict=True):
        line[0].set_ylabel(measure)
        for axis, (name, values) in zip(line, grid.items(), strict=True):
            found = [[row[measure] for row in rows if row[name] == value and measure in row] for value in values]
            for place, of_value in enumerate(found):
                axis.plot([place] * len(of_value), of_value, "o", ms=4, color="0.6")
            means = [(place, np.mean(of_value)) for place, of_value in enumerate(found) if of_value]
            axis.plot([place for place, _ in means], [mean for _, mean in means], "-", lw=1)
            axis.set_xticks(range(len(values)), values)
            axis.margins(x=0.2)
            axis.spines[["top", "right"]].set_visible(False)
    for axis, name in zip(axes[-1], grid, strict=True):
        axis.set_xlabel(name)
    write_whole(path, lambda file: canvas.savefig(file, format="png"))


@one_line_errors
def main(argv):
    parser = Parser(prog="benchmarks/sweep.py", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--grid", nargs="+", default=GRID, metavar="FLAG=VALUE,VALUE", help=f"what to try (default {' '.join(GRID)})")
    fixed = f"what all trainings have in common (default {' '.join(FIXED)}; nothing behind it: train.py's defaults)"
    add("--fixed", nargs="*", metavar="FLAG=VALUE", help=fixed)
    add("--random", type=int, metavar="N", help="only so many of the combinations, drawn at random")
    add("--seed", type=int, default=0, help="of that draw (default 0); that of a training is seed=... in the grid")
    add("--jobs", type=int, default=2, help="trainings at a time, a core each (default 2)")
    add("--n", type=int, default=200, help="samples to judge each by (default 200)")
    add("--sort", choices=SHORT, default="kid", help="what the table is sorted by, the best first (default kid)")
    add("--out", type=Path, default=Path("results/sweep"), help="(default results/sweep)")
    args = parser.parse_args(argv)

    grid = read_grid(args.grid, "--grid")
    fixed = {name: values[0] for name, values in read_fixed(args.fixed, grid).items()}
    for name, value, least in (("jobs", args.jobs, 1), ("n", args.n, 40), ("seed", args.seed, 0)):
        check_limits(name, value, at_least=least)
    todo = combinations(grid, args.random, args.seed)
    for values in todo:
        check({**fixed, **values})
    check_writable(args.out)
    shown, args.out = args.out, args.out.resolve()  # the trainings run elsewhere
    common = f", all with {label(fixed)}" if fixed else ""
    number = "1 training" if len(todo) == 1 else f"{len(todo)} trainings"
    print(f"{number}, {args.jobs} at a time{common}; logs in {shown}", flush=True)

    with ThreadPoolExecutor(args.jobs) as pool:
        rows = best_first(list(pool.map(lambda values: row_of(values, fixed, args), todo)), SHORT[args.sort])
    head = [*grid, *(name for name in ("steps taken", *FIGURES, "failed") if any(name in row for row in rows))]
    write_whole(args.out / "table.csv", lambda file: file.write(as_csv(head, rows)))
    print(f"\n{aligned(head, rows)}\n\n{shown}/table.csv")
    try:
        plot(grid, rows, args.out / "sweep.png")
        print(f"{shown}/sweep.png")
    except ImportError:
        print(
            "the plot needs matplotlib: `make sweep`, or pip install -r requirements/plots.txt; the same command makes it"
        )
    if failed := sum("failed" in row for row in rows):
        raise UserError(f"{failed} of {len(rows)} trainings failed; the table names their logs")


if __name__ == "__main__":
    sys.exit(main())
