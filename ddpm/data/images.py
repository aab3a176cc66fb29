"""Pictures: uint8 outside, float32 in [-1, 1] inside. This is the only place that converts."""

import os
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, repeat
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ddpm import UserError

# Background and tissues dark to light, the last class (the lesion) in red.
COLOURS = [(0, 0, 0), (70, 110, 170), (130, 130, 130), (225, 225, 225), (220, 60, 50), (240, 190, 60), (110, 180, 90)]


def to_float(images) -> Tensor:
    """uint8 0 .. 255 (array or tensor of any shape) -> float32 [-1, 1]."""
    return torch.as_tensor(images).float() / 127.5 - 1


def to_uint8(images: Tensor) -> np.ndarray:
    """float [-1, 1] (any shape; values outside are clipped) -> uint8 0 .. 255 on the CPU."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu().numpy()


def one_hot(labels, num_classes: int) -> Tensor:
    """Label maps (B, H, W) with values 0 .. K-1 -> float32 (B, K, H, W), background included."""
    return torch.nn.functional.one_hot(torch.as_tensor(labels).long(), num_classes).permute(0, 3, 1, 2).float()


def read_image(path: str | Path) -> np.ndarray:
    """The picture at `path` in grey, uint8 (H, W). Raises UserError."""
    with open_picture(path) as picture:
        if picture.mode.startswith(("I", "F")):  # Pillow would cut off everything above 255
            raise UserError(f"{path}: more than 8 bits a pixel; convert all images to 8 bits with one window")
        return np.asarray(picture.convert("L"))


def read_labels(path: str | Path, classes: tuple[str, ...], size: tuple[int, int]) -> tuple[np.ndarray, str]:
    """The mask at `path` as labels uint8 (H, W) of `size`, and a notice ("" or that it was resized).

    Pixel values are labels 0 .. K-1 (a palette's indices count, not its colours), or 0 and 255 if there are
    two classes. Raises UserError if there is a label that `classes` lacks.
    """
    with open_picture(path) as picture:
        if picture.mode not in ("1", "L", "P", "I", "I;16"):
            raise UserError(f"{path}: a mask must have one channel holding labels, not mode {picture.mode}")
        labels = np.array(picture)
    values = np.unique(labels).tolist()
    if len(classes) == 2 and set(values) <= {0, 255}:
        labels = labels // 255
    elif unknown := [value for value in values if not 0 <= value < len(classes)]:
        known = ", ".join(f"{i} {name}" for i, name in enumerate(classes))
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise UserError(f"{path}: the mask has labels {shown} that are not known; known are {known}")
    labels = labels.astype(np.uint8)
    if labels.shape == tuple(size):
        return labels, ""
    resized = Image.fromarray(labels).resize((size[1], size[0]), Image.Resampling.NEAREST)
    notice = f"{path}: mask of {labels.shape[0]}x{labels.shape[1]} resized by nearest neighbour to {size[0]}x{size[1]}"
    return np.array(resized), notice


def open_picture(path: str | Path) -> Image.Image:
    """A picture, decoded. Raises UserError if it cannot be."""
    try:
        picture = Image.open(path)
        picture.load()
        return picture
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a picture that can be read ({reason})") from None


def write_png(path: str | Path, image: np.ndarray) -> None:
    """uint8 (1, H, W) or (H, W, 3) -> a PNG, written whole or not at all."""
    picture = Image.fromarray(image[0] if len(image) == 1 else image)
    write_whole(path, lambda temporary: picture.save(temporary, format="PNG"))


def colour_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Label maps (..., H, W) -> uint8 (..., 3, H, W): tissues in greys and blue, lesions red."""
    colours = [COLOURS[0], COLOURS[4]] if num_classes == 2 else [COLOURS[i % len(COLOURS)] for i in range(num_classes)]
    return np.moveaxis(np.array(colours, dtype=np.uint8)[labels], -1, -3)


def grid(cells: np.ndarray, cell_size: int = 128) -> np.ndarray:
    """uint8 (rows, columns, 3, H, W) -> one picture (H', W', 3), each cell enlarged to about cell_size."""
    factor = max(1, round(cell_size / cells.shape[-1]))
    cells = repeat(cells, "r n c h w -> r n c (h a) (w b)", a=factor, b=factor)
    cells = np.pad(cells, [(0, 0)] * 3 + [(1, 1)] * 2, constant_values=60)
    return rearrange(cells, "r n c h w -> (r h) (n w) c")


def write_gif(path: str | Path, frames: list[np.ndarray], milliseconds: int = 80) -> None:
    """A film of uint8 (H, W, 3) frames that holds its last frame for two seconds, then repeats."""
    pictures = [Image.fromarray(frame) for frame in frames]
    times = [milliseconds] * (len(pictures) - 1) + [2000]
    options = {"save_all": True, "append_images": pictures[1:], "duration": times, "loop": 0}
    write_whole(path, lambda temporary: pictures[0].save(temporary, format="GIF", **options))


def write_whole(path: str | Path, write) -> None:
    """write(a temporary name), then rename to `path`: nobody ever finds half a file there. Raises OSError."""
    temporary = Path(f"{path}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
