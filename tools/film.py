"""The pictures at the top of the README, docs/figures/{film.gif,samples.png}, and that of docs/model-card.md,
samples-128.png, from the models in the box (`make film`)."""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sample
from ddpm.data.images import CELL_SIZE, write_gif, write_png
from ddpm.data.sources import load_data
from ddpm.model import Sampling, load_model
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.run import sample_grid

ROOT = Path(__file__).resolve().parents[1]
ASKED = "--mask --ckpt pretrained --seed 0 --n 3 --sample-steps 40 --precision fp32 --film"
FRAMES = [
    0,
    5,
    10,
    *range(13, 28),
    29,
    31,
    34,
    40,
]  # of 41: the first and last steps in log SNR change little to the eye
GREYS = 16  # while there is noise, which hardly packs otherwise


def few_greys(frame: np.ndarray) -> np.ndarray:
    """A frame (H, W, 3) uint8 in fewer greys; the masks on its left stay as they are."""
    step = 255 / (GREYS - 1)
    drawn = np.rint(np.rint(frame / step) * step).astype(np.uint8)
    return np.concatenate([frame[:, : CELL_SIZE + 2], drawn[:, CELL_SIZE + 2 :]], axis=1)


@one_line_errors
def main(argv):
    Parser(prog="tools/film.py", description=__doc__).parse_args(argv)
    with tempfile.TemporaryDirectory() as place:
        if sample.main([*ASKED.split(), "--out", place]):
            raise SystemExit(2)  # it has said why
        with Image.open(Path(place) / "film.gif") as film:
            frames = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]
    *noisy, last = [frames[i][CELL_SIZE + 2 :] for i in FRAMES]  # the first row, a mask without lesion, left out
    write_gif(ROOT / "docs" / "figures" / "film.gif", [*map(few_greys, noisy), last], milliseconds=120)
    for name, picture in (("pretrained", "samples.png"), ("pretrained-128", "samples-128.png")):
        model = load_model(name)
        write_png(ROOT / "docs" / "figures" / picture, sample_grid(model, load_data(model.config, "val"), Sampling()))
    print("docs/figures/film.gif, samples.png and samples-128.png")


if __name__ == "__main__":
    sys.exit(main())
