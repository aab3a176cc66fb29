"""What formats of pictures share: pictures and masks that are paired by their names, and read into slices."""

import contextlib
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ddpm import UserError
from ddpm.data.images import read_mask, read_pixels
from ddpm.data.layout import FEW_VALUES, Decoded, Findings, Item, Layout, Request, ending, lies_in, stem, walk
from ddpm.data.volumes import to_grey, window

ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
WINDOW_PICTURES = 200  # a window is of all pictures of a subject, or of so many, evenly spaced
GROUND_TRUTH = re.compile(r"gt|ground.?truth|annotations?", re.IGNORECASE)  # as a folder's name


def picture_layout(request: Request, about: str, items: list[Item]) -> Layout:
    named = ("background", *(f"class {i}" for i in range(1, request.config.num_classes)))
    classes = named if request.with_masks and any(item.mask for item in items) else ()
    about += " with masks" if classes else " without masks"
    items = items if classes else beside_twins(items)
    return Layout(about, items, partial(decode, classes=classes, channels=request.config.image_channels), classes)


def beside_twins(items: list[Item]) -> list[Item]:
    """The items, each beside the picture that by its name it may be the mask of: x of x_tumour, x.jpg of x.png, image/x
    of gt/x. Its values will tell (decode): those of a slice of air are as few, but it has no such name."""
    by_stem, by_rest = defaultdict(list), defaultdict(list)
    for item in items:
        by_stem[stem(item.images[0])].append(item.images[0])
        by_rest[item.name.partition("/")[2]].append(item.images[0])

    def twin(item: Item) -> list[str]:
        (path,), (first, _, rest) = item.images, item.name.partition("/")
        whole = stem(path)
        ends = [match.start() for match in re.finditer(r"[^a-z0-9](?=[^/]*[a-z][^/]*$)", whole, re.IGNORECASE)]
        found = [file for end in (len(whole), *ends) for file in by_stem.get(whole[:end], ())]
        found += by_rest[rest] if GROUND_TRUTH.fullmatch(first) else []
        return [file for file in found if file != path][:1]

    return [replace(item, beside=(*item.beside, *twin(item))) for item in items]


def pair(request: Request, images: Path, masks: Path | None, sources: Path | None = None) -> list[Item]:
    """The pictures below `images`, each with the mask of the same name below `masks` (if masks are asked for, and are
    there or were named by --masks) and the source of the same name below `sources` (under --source pairs). A folder below
    `images` is a subject. Raises UserError."""
    paired = request.with_masks and masks is not None and (request.masks is not None or masks.is_dir())
    sourced = request.config.source == "pairs" and sources is not None
    named, labelled, shown = pictures_below(request, images, to_pair=paired or sourced), {}, {}
    named = {name: path for name, path in named.items() if not lies_in(request.masks, path)}
    if paired:
        labelled = pictures_below(request, masks, to_pair=True)
        no_mask, no_image = f"no mask of that name in {masks}", f"no image of that name in {images}"
        request.refuse_lonely(named, labelled, no_mask, no_image)
    if sourced:
        shown = pictures_below(request, sources, to_pair=True)
        no_source, no_image = f"no source of that name in {sources}", f"no image of that name in {images}"
        request.refuse_lonely(named, shown, no_source, no_image)
    subjects = {name: os.path.dirname(name).partition("/")[0] for name in named}  # the first folder, or ""
    return [
        Item(name, (path,), labelled.get(name), subjects[name], source=shown.get(name)) for name, path in named.items()
    ]


def pictures_below(request: Request, folder: Path, to_pair: bool) -> dict[str, str]:
    """Name (the path below `folder` without its ending) -> path of every picture there. Raises UserError if none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; put pictures there, see docs/data.md for the layouts")
    here, root = (Path(os.path.abspath(path)) for path in (folder, request.root))
    if here.is_relative_to(root):
        below = "" if here == root else f"{here.relative_to(root).as_posix()}/"
        files = [file.removeprefix(below) for file in request.files if file.startswith(below)]
    else:
        files = walk(folder, request.findings)
    found: dict[str, str] = {}
    for file in files:
        if ending(file) not in ENDINGS:
            continue
        name, path = stem(file), f"{folder}/{file}"
        if name in found and not to_pair:
            found[file] = path
        elif name in found:
            request.findings.refuse(f"{path}: the same name as {os.path.basename(found[name])}; rename or remove one")
        else:
            found[name] = path
    if not found:
        raise UserError(f"{folder}: no pictures here ({', '.join(ENDINGS)}); put them there, see docs/data.md")
    return found


def decode(
    items: list[Item],
    findings: Findings,
    classes: tuple[str, ...],
    channels: int,
    pick: slice = slice(None),
    train: Sequence[Item] = (),
) -> Iterator[Decoded]:
    """Pictures read in so many channels, of which `pick` are kept. Where subjects are not known the window is that of
    `train`, the pictures to train on: in every split a picture is shown alike."""

    def read(path):
        return read_pixels(path, channels)[pick]

    of_window = items if items[0].subject else train or items
    try:
        known, low_high = depth([item.images[0] for item in of_window], read)
        source_known, source_window = depth([item.source for item in of_window if item.source], read)
    except UserError as error:
        findings.refuse(error)
        return
    for item in items:
        with findings.refusing():
            image = of_depth(item.images[0], read(item.images[0]), known, low_high)
            if item.beside and has_few(image) and not has_few(read(item.beside[0])):
                told = f"few different values, as a mask of {os.path.basename(item.beside[0])} has"
                raise UserError(f"{item.images[0]}: {told}; name a folder of masks by --masks, or move it away")
            labels = read_mask(item.mask, classes) if item.mask else None
            source = of_depth(item.source, read(item.source), source_known, source_window) if item.source else None
            for path, beside in ((item.mask, labels), (item.source, source)):
                if beside is not None and beside.shape[-2:] != image.shape[1:]:
                    sizes = [f"{array.shape[-2]}x{array.shape[-1]}" for array in (beside, image)]
                    raise UserError(f"{path}: {sizes[0]}, but its image is {sizes[1]}; make them equal")
            if source_window and source is not None:
                source = to_grey(source, *source_window)
            yield Decoded(item.name, image, labels, low_high, source=source)


def has_few(image: np.ndarray) -> bool:
    """Has an image as few values as a map of labels, and more than one?"""
    return 1 < len(np.unique(image)) <= FEW_VALUES


def of_depth(path: str, image: np.ndarray, known: str | None, low_high) -> np.ndarray:
    """The image, if it is of the depth of the picture `known`. Raises UserError."""
    if (image.dtype == np.uint16) != bool(low_high):
        deep, shallow = (path, known) if image.dtype == np.uint16 else (known, path)
        beside = f"but {os.path.basename(shallow)} beside it has 8"
        raise UserError(f"{deep}: more than 8 bits a pixel, {beside}; save all in one depth")
    return image


def depth(paths: Sequence[str], read: Callable) -> tuple[str | None, tuple[float, float] | None]:
    """A picture of the depth that most have and, if that is more than 8 bits, the window of all of that depth."""

    def readable(number: int) -> list[tuple[str, np.ndarray]]:
        found = []
        for path in paths[:: -(-len(paths) // number) or 1]:
            with contextlib.suppress(UserError):  # it will be met again, and refused
                found.append((path, read(path)))
        return found

    few = sorted(readable(3) or readable(len(paths) or 1), key=lambda one: one[1].dtype == np.uint16)
    known, image = few[len(few) // 2] if few else (None, None)
    if image is None or image.dtype == np.uint8:
        return known, None
    values = [image.ravel() for _, image in readable(WINDOW_PICTURES) if image.dtype == np.uint16]
    return known, window(known, np.concatenate(values))
