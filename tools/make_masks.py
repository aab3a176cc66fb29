"""Make masks for pictures that have none, by a stated rule: for trying the program, not for anatomy.

    python tools/make_masks.py IMAGES MASKS [--rule otsu] [--seed 0]

For each picture below IMAGES writes a mask of 0 and 255 of the same name and place below MASKS, which
`train.py --data DIR --masks MASKS` then takes. If one cannot be made, none is written.

ellipses  one filled ellipse a picture: its centre uniform in the middle half of each axis, its semi-axes uniform in
          5 to 20 % of the shorter side, its angle uniform; drawn from (seed, the picture's name)
otsu      the foreground, that is the head: brighter than Otsu's threshold, holes filled
"""

import argparse
import sys
import zlib
from pathlib import Path

import numpy as np
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.data.images import read_pixels, write_png
from ddpm.data.layout import Findings, ending, stem, walk
from ddpm.data.pictures import ENDINGS
from ddpm.data.volumes import to_grey, window
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.files import all_or_nothing
from ddpm.seeds import generator


@one_line_errors
def main(argv):
    parser = Parser(
        prog="tools/make_masks.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", help="folder of pictures, with or without folders in it")
    parser.add_argument("masks", help="folder for the masks")
    parser.add_argument("--rule", choices=("ellipses", "otsu"), default="ellipses", help="default ellipses")
    parser.add_argument("--seed", type=int, default=0, help="of the ellipses (default 0)")
    args = parser.parse_args(argv)
    images, masks = Path(args.images), Path(args.masks)
    if not images.is_dir():
        raise UserError(f"{images}: no such folder; name one that holds pictures")
    if args.seed < 0:
        raise UserError(f"--seed is {args.seed}; it must not be negative")
    if masks.resolve() == images.resolve():
        raise UserError(f"{masks}: the masks would overwrite the pictures; name another folder")
    if masks.resolve().is_relative_to(images.resolve()):
        raise UserError(f"{masks}: lies in {images}, and would be taken for pictures; name a folder outside it")
    findings = Findings(skip_bad=True)  # what is bad is noted: to go on without it is not this tool's to offer
    files = [file for file in walk(images, findings) if ending(file) in ENDINGS]
    if findings.bad:
        raise UserError(findings.bad[0])
    if not files:
        raise UserError(f"{images}: no pictures here ({', '.join(ENDINGS)})")
    targets: dict[Path, str] = {}
    for file in files:
        target = masks / f"{stem(file)}.png"
        if target.exists() or target in targets:
            there = "exists already" if target.exists() else f"is the mask of {targets[target]} too"
            raise UserError(f"{target}: {there}; name a folder without masks, and pictures by names that differ")
        targets[target] = file
    with all_or_nothing(masks, "MASKS") as place:
        for file in files:
            image, name = read_pixels(images / file), stem(file)
            if image.dtype == np.uint16:
                image = to_grey(image, *window(images / file, image))
            otsu = args.rule == "otsu"
            mask = otsu_foreground(image[0], images / file) if otsu else ellipse(image[0], args.seed, name)
            target = place / f"{name}.png"
            target.parent.mkdir(parents=True, exist_ok=True)
            write_png(target, mask[None] * np.uint8(255))
    print(f"{len(files)} masks ({args.rule}) in {masks}; now: train.py --data ... --masks {masks}")


def ellipse(image: np.ndarray, seed: int, name: str) -> np.ndarray:
    """A random ellipse on a picture (H, W): bool (H, W)."""
    rng = generator(seed, zlib.crc32(name.encode(errors="surrogateescape")))
    height, width = image.shape
    y, x = rng.uniform(0.25, 0.75, 2) * (height, width)
    a, b = rng.uniform(0.05, 0.2, 2) * min(height, width)
    angle = rng.uniform(0, np.pi)
    v, u = np.mgrid[:height, :width] + 0.5 - np.array([y, x])[:, None, None]
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    return (along / a) ** 2 + (across / b) ** 2 <= 1


def otsu_foreground(image: np.ndarray, path: Path) -> np.ndarray:
    """The picture's bright part, holes filled: bool (H, W). Raises UserError if it is of one grey level."""
    if image.min() == image.max():
        raise UserError(f"{path}: a single grey level has no foreground; remove it")
    return ndimage.binary_fill_holes(image > otsu_threshold(image))


def otsu_threshold(image: np.ndarray) -> int:
    """The grey level t of a uint8 picture at which dark (<= t) and bright (> t) differ most: the one with the largest
    variance between the classes, w_0 w_1 (mu_0 - mu_1)^2 (Otsu 1979). Of equal ones the lowest."""
    counts = np.bincount(image.ravel(), minlength=256).astype(np.float64)
    dark = counts.cumsum()[:-1]  # t = 0 .. 254
    bright = counts.sum() - dark
    dark_sum = (counts * np.arange(256)).cumsum()[:-1]
    bright_sum = (counts * np.arange(256)).sum() - dark_sum
    with np.errstate(invalid="ignore", divide="ignore"):
        between = dark * bright * (dark_sum / dark - bright_sum / bright) ** 2
    return int(np.nan_to_num(between, nan=-1).argmax())


if __name__ == "__main__":
    sys.exit(main())
