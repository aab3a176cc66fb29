"""The figure of docs/uses.md: each use of the model in the box on one test slice, a row each (`make uses`)."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sample
from ddpm.data import phantom
from ddpm.data.images import grid_size, write_png
from ddpm.runtime.command_line import Parser, one_line_errors

ROOT = Path(__file__).resolve().parents[1]
SLICE, SIZE = 3, 64
COLUMNS = 5  # measured | restored | truth | error x 5 | deviation of the draws x 5, as far as there is such
ROWS = {  # mode: flags
    "inpaint": ["--region", "region.png", "--simulate", "--n", "8"],
    "kspace": ["--simulate", "--acceleration", "4", "--n", "8"],
    "super-resolution": ["--simulate", "--factor", "2", "--n", "8"],
    "denoise": ["--simulate", "--noise", "0.1"],
    "anomaly": [],
}


@one_line_errors
def main(argv):
    Parser(prog="tools/uses.py", description=__doc__).parse_args(argv)
    images, _, _ = phantom.load("test", (SIZE, SIZE), n=SLICE + 1)
    region = np.zeros((1, SIZE, SIZE), np.uint8)
    region[:, 20:38, 22:40] = 255
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        write_png(place / "slice.png", images[SLICE])
        write_png(place / "region.png", region)
        rows = []
        for mode, flags in ROWS.items():
            flags = [str(place / flag) if flag.endswith(".png") else flag for flag in flags]
            out = place / mode
            asked = ["--ckpt", "pretrained", "--restore", str(place / "slice.png"), "--as", mode, *flags]
            if sample.main([*asked, "--out", str(out)]):
                raise SystemExit(2)  # it has said why
            rows.append(np.asarray(Image.open(out / "grid.png"))[:, : grid_size(1, COLUMNS, SIZE, SIZE)[1]])
    width = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    write_png(ROOT / "docs" / "figures" / "uses.png", np.concatenate(rows))
    print("docs/figures/uses.png")


if __name__ == "__main__":
    sys.exit(main())
