"""Images and masks of your own: PNG, JPEG or TIFF files in folders."""

from pathlib import Path

import numpy as np
from PIL import Image

from ddpm import UserError
from ddpm.data import Slices
from ddpm.data.images import read_image, read_labels

ENDINGS = {".png", ".jpg", ".jpeg", ".tif", ".tiff"}


def load(data: str, masks: str, split: str, size: tuple[int, int], num_classes: int, unmasked: bool = False) -> Slices:
    """The pairs of DIR/SPLIT/images/NAME.* and DIR/SPLIT/masks/NAME.*, matched by NAME.

    masks: another folder laid out as SPLIT/NAME.*, or "". With neither it nor DIR/SPLIT/masks, or if `unmasked`,
    the images have no masks. Images become one channel of `size` (antialiased); masks are resized by nearest neighbour.
    Raises UserError, naming the file, for what is missing, unpaired or unreadable.
    """
    root = Path(data) / split
    images = pictures_in(root / "images")
    mask_folder = Path(masks) / split if masks else root / "masks"
    with_masks = not unmasked and (bool(masks) or mask_folder.is_dir())
    if with_masks:
        paired = pictures_in(mask_folder)
        if lonely := sorted(images.keys() - paired.keys()):
            raise UserError(f"{images[lonely[0]]}: no mask of that name in {mask_folder} ({len(lonely)} such image(s))")
        if lonely := sorted(paired.keys() - images.keys()):
            raise UserError(
                f"{paired[lonely[0]]}: no image of that name in {root / 'images'} ({len(lonely)} such mask(s))"
            )

    classes = ("background", *(f"class {i}" for i in range(1, num_classes))) if with_masks else ()
    pixels, labels = [], []
    for name, path in sorted(images.items()):
        picture = Image.fromarray(read_image(path))
        if picture.size != (size[1], size[0]):
            picture = picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=3.0)
        pixels.append(np.asarray(picture)[None])
        if with_masks:
            labels.append(read_labels(paired[name], classes, size)[0])  # resized like the image, so no notice
    return Slices(np.stack(pixels), np.stack(labels) if with_masks else None, None, classes, ())


def pictures_in(folder: Path) -> dict[str, Path]:
    """Stem -> path of every picture in the folder. Raises UserError if there is none, or two of one name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; see 'your own data' in the README for the layout")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS:
            if path.stem in found:
                raise UserError(f"{path}: the same name as {found[path.stem].name}; names must differ")
            found[path.stem] = path
    if not found:
        raise UserError(f"{folder}: no pictures here ({', '.join(sorted(ENDINGS))})")
    return found
