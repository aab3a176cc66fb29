"""Pictures: uint8 outside, float32 in [-1, 1] inside. This is the only place that converts."""

import contextlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, ImageOps
from torch import Tensor

from ddpm import UserError
from ddpm.runtime.files import reading, write_whole

# Background and tissues dark to light, the last class (the lesion) in red.
COLOURS = [(0, 0, 0), (70, 110, 170), (130, 130, 130), (225, 225, 225), (220, 60, 50), (240, 190, 60), (110, 180, 90)]
FORMATS = ("PNG", "JPEG", "TIFF")
MAX_PIXELS = 4096 * 4096  # a larger picture is no slice; it may be small on disk and still fill the memory


def to_float(images) -> Tensor:
    """uint8 0 .. 255 (array or tensor of any shape) -> float32 [-1, 1]."""
    return torch.from_numpy(np.asarray(images, dtype=np.float32)) / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float [-1, 1] (any shape; values outside are clipped) -> uint8 0 .. 255 on the CPU."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def read_image(path: str | Path) -> np.ndarray:
    """The picture at `path` in grey, uint8 (H, W). Raises UserError, also for more than 8 bits a pixel."""
    pixels = read_pixels(path)
    if pixels.dtype == np.uint16:  # each picture by itself has no window that would do for all
        raise UserError(f"{path}: more than 8 bits a pixel; convert all images to 8 bits with one window")
    return pixels[0]


def read_pixels(path: str | Path, channels: int = 1) -> np.ndarray:
    """The picture at `path`, (channels, H, W): uint8, or uint16 if it has more than 8 bits a pixel (grey only).

    One channel is the picture in grey; three are its red, green and blue. What is transparent is shown on black. Raises
    UserError.
    """
    with open_picture(path) as picture:
        deep = picture.mode.startswith(("I", "F"))
        if channels == 3 and picture.mode not in ("RGB", "RGBA"):
            remedy = "save it in RGB, as LGG's are, or, if --image-channels 3 was given, leave it out"
            raise UserError(f"{path}: mode {picture.mode}, not three channels; {remedy}")
        if not deep:
            if picture.has_transparency_data:  # the colour beneath may be anything, white as likely as black
                black = Image.new("RGBA", picture.size, "black")
                picture = Image.alpha_composite(black, picture.convert("RGBA"))
            pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
            return pixels[None] if channels == 1 else np.moveaxis(pixels, -1, 0)
        pixels = np.asarray(picture)
    if picture.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise UserError(f"{path}: values that do not fit 16 bits without sign; save it with 8 or 16 bits a pixel")
    return pixels.astype(np.uint16)[None]


def read_mask(
    path: str | Path, classes: tuple[str, ...], size: tuple[int, int] | None = None, known: Sequence[int] = ()
) -> np.ndarray:
    """The mask at `path` as labels uint8 (H, W), in its own size, or of `size` (by nearest neighbour).

    Pixel values are labels 0 .. K-1 (a palette's indices count, not its colours), or those `known`, rising, one a class;
    or 0 and 255 if there are two classes, of a palette its black and white. Raises UserError if there is a label that
    `classes` lacks.
    """
    known = known or range(len(classes))
    with open_picture(path) as picture:
        if picture.mode not in ("1", "L", "P", "I", "I;16"):
            raise UserError(f"{path}: a mask must have one channel holding labels, not mode {picture.mode}; save it so")
        labels = np.array(picture)
        if len(classes) == 2 and in_black_and_white(picture):  # once quantised, white may come first: index 0
            labels = np.array(picture.convert("L"))
    values = np.unique(labels).tolist()
    if len(classes) == 2 and set(values) <= {0, 255}:
        labels = labels // 255
    elif unknown := [value for value in values if value not in known]:
        named = ", ".join(f"{value} {name}" for value, name in zip(known, classes, strict=True))
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        if len(unknown) > 3 and 255 in values:
            named += "; so many come from smoothed edges: save masks as PNG, resized by nearest neighbour only"
        raise UserError(f"{path}: the mask has labels {shown} that are not known; known are {named}")
    else:
        labels = np.searchsorted(known, labels)
    return resize_labels(labels.astype(np.uint8), size or labels.shape)


def in_black_and_white(picture: Image.Image) -> bool:
    """Has it a palette that holds white, of which nothing but white and black is used?"""
    if picture.mode != "P" or [255, 255, 255] not in np.reshape(picture.getpalette() or [], (-1, 3)).tolist():
        return False
    return {colour for _, colour in picture.convert("RGB").getcolors()} <= {(0, 0, 0), (255, 255, 255)}


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(C, h, w), uint8 and C of 1 or 3, or float32 and C of 1 -> (C, H, W) of `size`, bicubic, averaged over a pixel's
    area where it shrinks."""
    if image.shape[1:] == tuple(size):
        return image
    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(np.moveaxis(image, 0, -1)))
    pixels = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, reducing_gap=3.0))
    return pixels[None] if len(image) == 1 else np.moveaxis(pixels, -1, 0)


def resize_labels(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (h, w) -> (H, W) of `size`, by nearest neighbour, so that no label appears that was not there."""
    if labels.shape == tuple(size):
        return labels
    picture = Image.fromarray(np.ascontiguousarray(labels))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.NEAREST))


def overlaps(n: int, m: int) -> np.ndarray:
    """(n, m) bool: which of n equal parts of a line share some of it with which of m."""
    i, j = np.arange(n)[:, None], np.arange(m)
    return (i * m < (j + 1) * n) & (j * n < (i + 1) * m)


def crop_or_pad(image: np.ndarray, size: tuple[int, int], mode: str = "constant") -> np.ndarray:
    """(..., h, w) -> (..., H, W) of `size`, about the same centre. Where there was nothing is 0, or as np.pad's mode says."""
    for axis, wanted in ((-2, size[0]), (-1, size[1])):
        spare = image.shape[axis] - wanted
        if spare > 0:
            image = image.take(range(spare // 2, spare // 2 + wanted), axis)
        elif spare:
            pads = [(0, 0)] * image.ndim
            pads[axis] = (-spare // 2, -spare - -spare // 2)
            image = np.pad(image, pads, mode)
    return image


def open_picture(path: str | Path) -> Image.Image:
    """A PNG, JPEG or TIFF of one page, decoded, and turned as its EXIF orientation says. Raises UserError if it cannot
    be decoded."""
    with reading(path, "a picture", "save it again or remove it"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's on large or odd files; what matters is checked here
        picture = Image.open(path, formats=FORMATS)
        if picture.width * picture.height > MAX_PIXELS:
            raise UserError(f"{path}: {picture.width}x{picture.height} pixels are too many for a slice; cut it")
        if getattr(picture, "n_frames", 1) > 1:
            raise UserError(f"{path}: {picture.n_frames} pages in one file; save each slice as a file of its own")
        if ";16" in str(picture.tile) and not picture.mode.startswith("I"):  # Pillow would drop the low byte
            raise UserError(f"{path}: 16 bits a channel in colour or with transparency; save it in grey, or in 8 bits")
        picture.load()
        with contextlib.suppress(Exception):  # a damaged note says nothing; the picture is whole
            ImageOps.exif_transpose(picture, in_place=True)
    return picture


def write_png(path: str | Path, image: np.ndarray) -> None:
    """uint8 (1, H, W), (3, H, W) or (H, W, 3) -> a PNG, written whole or not at all."""
    if len(image) in (1, 3):
        image = image[0] if len(image) == 1 else np.moveaxis(image, 0, -1)
    picture = Image.fromarray(image)
    write_whole(path, lambda file: picture.save(file, format="PNG"))


def rgb(images: np.ndarray) -> np.ndarray:
    """uint8 (..., 1 or 3, H, W) -> (..., 3, H, W), to be shown beside masks in colour."""
    return images.repeat(3 // images.shape[-3], axis=-3)


def colour_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Label maps (..., H, W) -> uint8 (..., 3, H, W): tissues in greys and blue, lesions red."""
    colours = [COLOURS[0], COLOURS[4]] if num_classes == 2 else [COLOURS[i % len(COLOURS)] for i in range(num_classes)]
    return np.moveaxis(np.array(colours, dtype=np.uint8)[labels], -1, -3)


CELL_SIZE = 128  # pixels across a cell of a grid, about: images are enlarged by whole numbers


def grid(cells: np.ndarray) -> np.ndarray:
    """uint8 (rows, columns, 3, H, W) -> one picture (H', W', 3), each cell enlarged and framed."""
    factor = max(1, round(CELL_SIZE / cells.shape[-1]))
    cells = repeat(cells, "r n c h w -> r n c (h a) (w b)", a=factor, b=factor)
    cells = np.pad(cells, [(0, 0)] * 3 + [(1, 1)] * 2, constant_values=60)
    return rearrange(cells, "r n c h w -> (r h) (n w) c")


def grid_size(rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
    """Height and width of the picture that `grid` makes."""
    factor = max(1, round(CELL_SIZE / width))
    return rows * (height * factor + 2), columns * (width * factor + 2)


def write_gif(path: str | Path, frames: list[np.ndarray], milliseconds: int = 80) -> None:
    """A film of uint8 (H, W, 3) frames that holds its last frame for two seconds, then repeats."""
    pictures = [Image.fromarray(frame) for frame in frames]
    times = [milliseconds] * (len(pictures) - 1) + [2000]
    options = {"save_all": True, "append_images": pictures[1:], "duration": times, "loop": 0}
    write_whole(path, lambda file: pictures[0].save(file, format="GIF", **options))
