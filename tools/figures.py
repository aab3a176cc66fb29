"""Figures of a run, into its folder: loss.png (needs matplotlib: `make figures`), or progress.png."""

import json
import math
import sys
from pathlib import Path

import numpy as np
from einops import rearrange
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.data.images import grid_size, write_png
from ddpm.runtime import checkpoint
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.run import GRID_SAMPLES, step_of


@one_line_errors
def main(argv):
    parser = Parser(prog="tools/figures.py", description=__doc__)
    parser.add_argument("--run", help="a run's folder (default: that of the newest checkpoint in results/)")
    what = "instead, progress.png: the first sample of each mask after these steps"
    parser.add_argument("--progress", type=int, nargs="+", metavar="STEP", help=what)
    parser.add_argument("--out", type=Path, help="folder for the figure (default: the run's)")
    args = parser.parse_args(argv)
    if args.run == "":
        raise UserError("--run: an empty name for a run (an unset variable?); leave it out for the newest")
    run = Path(args.run) if args.run else checkpoint.newest("results").parents[1]
    text = (run / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines() if step_of(line) < math.inf]  # the last may be cut off
    grids = sorted((run / "samples").glob("step_*.png"))
    if not grids or not lines:
        raise UserError(f"{run}: no sample grid or no log yet; let it train to its first validation")
    out = args.out or run
    out.mkdir(parents=True, exist_ok=True)
    if args.progress:
        pictures = [read_grid(run / "samples" / f"step_{step:06d}.png") for step in args.progress]
        cell = grid_size(1, 1, *json.loads((run / "config.json").read_text())["image_size"])
        real = pictures[0].shape[1] // cell[1] - 1 - GRID_SAMPLES  # the column after the mask's, if there is that
        rows = [column(pictures[0], cell, i) for i in range(real)]
        rows += [column(picture, cell, real + 1) for picture in pictures] + [column(pictures[0], cell, real)]
        write_png(out / "progress.png", np.concatenate(rows))
        print(f"{out}/progress.png, from {run}")
        return
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise UserError("figures need matplotlib: `make figures`, or pip install -r requirements/plots.txt") from None

    train = [line for line in lines if "loss" in line]
    held_out = [line for line in lines if "val_loss" in line]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot([x["step"] for x in train], [x["loss"] for x in train], color="0.6", lw=1, label="training")
    left.plot(
        [x["step"] for x in held_out], [x["val_loss"] for x in held_out], "o-", ms=4, label="held out, averaged weights"
    )
    left.set(xlabel="step", ylabel="mean squared error", yscale="log", title="loss")
    left.legend(frameon=False)
    for q in range(1, 5):
        right.plot([x["step"] for x in train], [x.get(f"loss_q{q}") for x in train], lw=1, label=f"quarter {q}")
    right.set(xlabel="step", yscale="log", title="training loss by quarter of t")
    right.legend(frameon=False, ncols=2)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "loss.png", dpi=110)
    print(f"{out}/loss.png, from {run}")


def read_grid(path: Path) -> np.ndarray:
    """A sample grid (H, W, 3) uint8. Raises UserError."""
    if not path.exists():
        raise UserError(f"{path}: no such grid; train with --sample-every so that this step has one")
    return np.asarray(Image.open(path).convert("RGB"))


def column(grid: np.ndarray, cell: tuple[int, int], number: int) -> np.ndarray:
    """Of a grid of [mask |] real | samples, in cells of this height and width, one column, laid down as a row."""
    height, width = cell
    return rearrange(grid[:, number * width : (number + 1) * width], "(r h) w c -> h (r w) c", h=height)


if __name__ == "__main__":
    sys.exit(main())
