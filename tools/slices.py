"""Cut NIfTI volumes into axial slices, as a folder that `train.py --data` takes.

    python tools/slices.py VOLUME... --out DIR [--masks LABELS...]

Writes DIR/images/NAME/NAME_z000.png (and DIR/masks/NAME/NAME_z000.png), counted from the feet, and DIR/NAME.json with
the intensity window and the slices. The volume is turned, not interpolated, to RAS+, and shown as the phantom is: the
patient's right on the image's left, anterior up. The window is made of percentiles of the whole volume. Pixels become
square and the picture too, padded with black. Slices with hardly anything but background are left out. If one
volume cannot be cut, nothing is written.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.data.images import MAX_PIXELS, resize, resize_labels, write_png
from ddpm.data.scans import MIN_BRAIN, read_on_grid, whole
from ddpm.data.volumes import PERCENTILES, along, foreground_share, read_nifti, stem, to_grey, window
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.files import all_or_nothing, write_whole


@one_line_errors
def main(argv):
    parser = Parser(prog="tools/slices.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("volumes", nargs="+", metavar="VOLUME", help="NIfTI files, one a subject")
    parser.add_argument("--out", required=True, help="folder for the slices")
    parser.add_argument("--masks", nargs="+", default=[], metavar="LABELS", help="a volume of labels for each VOLUME")
    parser.add_argument(
        "--percentiles",
        nargs=2,
        type=float,
        default=PERCENTILES,
        help="of the volume: black and white (default 1 99.5)",
    )
    args = parser.parse_args(argv)
    if not 0 <= args.percentiles[0] < args.percentiles[1] <= 100:
        raise UserError(f"--percentiles {args.percentiles}: two numbers that rise, from 0 to 100")
    if args.masks and len(args.masks) != len(args.volumes):
        raise UserError(f"--masks: {len(args.masks)} for {len(args.volumes)} volume(s); give one for each")
    names = [stem(volume) for volume in args.volumes]
    if len(set(names)) < len(names):
        raise UserError(f"two volumes of the name {max(names, key=names.count)}; rename one")
    if already := next((name for name in names if (Path(args.out) / f"{name}.json").exists()), None):
        raise UserError(f"--out {args.out} holds a volume {already} already; name another folder, or rename the volume")
    with all_or_nothing(Path(args.out)) as place:
        for i, (name, path) in enumerate(zip(names, args.volumes, strict=True)):
            about = cut(name, path, args.masks[i] if args.masks else None, place, tuple(args.percentiles))
            low, high = about["window"]
            print(f"{path}: {len(about['slices'])} slices, {low:g} is black, {high:g} white")
    print(f"{len(names)} volume(s) in {args.out}")


def cut(name: str, path: str, mask: str | None, out: Path, percentiles: tuple[float, float]) -> dict:
    """Write the slices of one volume, and return what its JSON file says. Raises UserError."""
    volume, affine = read_nifti(path)
    low, high = window(path, volume, percentiles)
    slices, mm = along(volume, "axial"), np.linalg.norm(affine[:3, :3], axis=0)
    labels = None if mask is None else along(read_label_volume(mask, path, volume, affine), "axial")
    kept = np.flatnonzero(foreground_share(slices) >= MIN_BRAIN)
    if not len(kept):
        raise UserError(
            f"{path}: no slice shows a head (more than {MIN_BRAIN:.0%} that is not background); leave it out"
        )
    shape = square_pixels(path, slices.shape[1:], mm)
    for folder in ("images", "masks")[: 1 if labels is None else 2]:
        (out / folder / name).mkdir(parents=True, exist_ok=True)
    for z in kept:
        file = f"{name}/{name}_z{z:03d}.png"
        write_png(out / "images" / file, square(resize(to_grey(slices[z], low, high)[None], shape)))
        if labels is not None:
            write_png(out / "masks" / file, square(resize_labels(labels[z], shape)[None]))
    about = {
        "volume": Path(path).name,
        "window": [low, high],
        "percentiles": list(percentiles),
        "voxel_mm": mm.tolist(),
        "pixel_mm": float(min(mm[:2])),
        "slices": kept.tolist(),
        "left_out": len(slices) - len(kept),
    }
    write_whole(out / f"{name}.json", lambda file: file.write((json.dumps(about, indent=2) + "\n").encode()))
    return about


def read_label_volume(mask: str, path: str, volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Labels uint8 (X, Y, Z) on the grid of the volume. Raises UserError."""
    labels = whole(read_on_grid(mask, path, volume, affine))
    if not ((labels >= 0) & (labels <= 255) & (labels == np.rint(labels))).all():
        raise UserError(f"{mask}: holds more than the labels 0 to 255; save labels as whole numbers")
    return labels.astype(np.uint8)


def square_pixels(path: str, shape: tuple[int, int], mm: np.ndarray) -> tuple[int, int]:
    """The (H, W) at which a slice's pixels are as wide as high, and none is lost. mm: of a voxel, x, y, z. Raises
    UserError if the header's voxels are no such size that a picture could be made of them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        size = shape * mm[1::-1] / min(mm[:2])
    if not size.max() ** 2 <= MAX_PIXELS:
        raise UserError(f"{path}: voxels of {mm[0]:g} x {mm[1]:g} mm make no picture; mend its header")
    return round(size[0]), round(size[1])


def square(image: np.ndarray) -> np.ndarray:
    """(1, h, w) -> (1, n, n), padded with 0 on both sides of the shorter axis."""
    missing = [max(image.shape[1:]) - n for n in image.shape[1:]]
    return np.pad(image, [(0, 0), *((n // 2, n - n // 2) for n in missing)])


if __name__ == "__main__":
    sys.exit(main())
