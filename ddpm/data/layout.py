"""What a format (formats/) tells of a folder: its items, and how they become slices. And what all formats share to find
that out: the files that lie there, their names, what is refused and what is left out.
"""

import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm import UserError, printable

SPLITS = ("train", "val", "test")
FEW_VALUES = 8  # a scan has hundreds; a volume or a picture of few is a map of labels
MAX_TEXT = 2**24  # bytes of a list or table beside the images; the names of a hundred thousand take less


@dataclass(frozen=True)
class Item:
    """What is decoded at one go: a picture, or the volumes of a scan, with the mask."""

    name: str  # unique: the path below the data folder, without its ending
    images: tuple[str, ...]  # files; plain strings, as there may be a million of them
    mask: str | None = None
    subject: str = ""  # "" where the layout does not tell
    split: str = ""  # likewise
    beside: tuple[str, ...] = ()  # other files that say how it is decoded
    drawn_by: str = field(default="", repr=False)  # its split, if not by `subject`; of a patient, so never written down
    source: str | None = None  # another picture of the same place, that the network is shown

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.images, *(file for file in (self.mask, self.source) if file), *self.beside)


class Decoded(NamedTuple):
    name: str
    image: np.ndarray  # (C, H, W) as in the file: uint8, or, with a window, of any real type
    labels: np.ndarray | None  # (H, W) uint8
    window: tuple[float, float] | None  # the intensities that become black and white; None if it has 8 bits
    contrast: int = 0
    pixel_mm: tuple[float, float] | None = None  # its height and width; None where the file does not tell
    scan: str = ""  # whose window it is, with the contrast; "": the subject's
    source: np.ndarray | None = None  # (C, H, W) uint8


@dataclass
class Findings:
    """Files that cannot be used: refused, or, under --skip-bad, listed and left out."""

    skip_bad: bool
    bad: list[str] = field(default_factory=list)
    left_out: Counter = field(default_factory=Counter)  # what a layout leaves out by a rule of its own

    def refuse(self, message: object) -> None:
        if not self.skip_bad:
            raise UserError(f"{message} (--skip-bad leaves out all that is bad)")
        self.bad.append(printable(str(message)))

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        """Refuse what a UserError inside says."""
        try:
            yield
        except UserError as error:
            self.refuse(error)


@dataclass(frozen=True)
class Layout:
    about: str  # as it is told to the user
    items: list[Item]
    # decode(items of one subject, or of one split where subjects are not told apart, findings) yields Decoded, with one
    # intensity window for all of them. What cannot be used is refused through findings, never dropped uncounted.
    decode: Callable
    classes: tuple[str, ...]  # empty without masks
    contrasts: tuple[str, ...] = ()
    volumes: bool = False  # of which --axis and --spacing make slices; else they are slices already
    unused: Counter = field(default_factory=Counter)  # files of no use to it, by their ending
    left_out: Counter = field(default_factory=Counter)  # what it leaves out of the whole set, by a rule of its own
    values: tuple[int, ...] = ()  # of the classes in its files of masks, rising; (): 0 .. K-1


@dataclass(frozen=True)
class Request:
    """What the user asked for, and what lies there."""

    root: Path
    masks: Path | None  # a folder of masks that lie elsewhere
    config: Any  # a runtime.config.Config: its first block of fields says what each option means
    findings: Findings
    files: list[str]  # all below root, relative to it, with /

    @property
    def with_masks(self) -> bool:
        return self.config.labels != "none"

    def place(self, file: str) -> str:
        """Where a file of `files` lies."""
        return f"{self.root}/{file}"

    def check_flags(self, about: str, one_channel: bool = True, own_masks: bool = True) -> None:
        """Raises UserError for flags that a layout has no use for."""
        if self.masks and own_masks:
            raise UserError(f"--masks {self.masks}: {about} take no masks from elsewhere; leave --masks out")
        if one_channel and self.config.image_channels != 1:
            raise UserError(
                f"--image-channels {self.config.image_channels}: {about} are read in one channel; leave it out"
            )

    def check_once(self, names: dict[str, str]) -> None:
        """Raises UserError if a data set lies there twice, as in some of Kaggle's archives. names: of its files."""
        first: dict[str, str] = {}
        for file, name in names.items():
            if first.setdefault(name, file) != file:
                twin = os.path.dirname(self.place(first[name]))
                raise UserError(f"{self.place(file)}: also in {twin}; the set lies here twice, name one with --data")

    def refuse_lonely(self, images: dict, masks: dict, no_mask: str, no_image: str) -> None:
        """Of images and masks by their common names, refuse those that are without the other, and remove them."""
        for name in sorted(images.keys() - masks.keys()):
            self.findings.refuse(f"{images.pop(name)}: {no_mask}; add it, or remove the image")
        for name in sorted(masks.keys() - images.keys()):
            self.findings.refuse(f"{masks.pop(name)}: {no_image}; add it, or remove the mask")


def walk(root: Path, findings: Findings) -> list[str]:
    """Every file below root, relative to it, with /, in the order of names. Links are followed. Hidden files and
    macOS's __MACOSX folders are not data."""
    found = []

    def visit(folder: str, below: str, above: tuple) -> None:
        here = os.path.realpath(folder)
        if here in above:
            findings.refuse(f"{folder}: a link to a folder that it lies in; remove the link")
            return
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            try:
                if entry.is_dir():
                    visit(entry.path, f"{below}{entry.name}/", (*above, here))
                elif entry.is_file():
                    found.append(below + entry.name)
                else:
                    findings.refuse(f"{entry.path}: a link to nothing, or no file; remove it")
            except OSError as error:
                findings.refuse(f"{entry.path}: cannot be read ({error.strerror}); mend or remove it")

    visit(str(root), "", ())
    return found


def lies_in(folder: Path | None, path: str) -> bool:
    """Is the file below the folder, however the two are written, and whatever links lead there?"""
    if folder is None:
        return False
    return Path(real_folder(os.path.abspath(os.path.dirname(path)))).is_relative_to(
        real_folder(os.path.abspath(folder))
    )


real_folder = functools.lru_cache(os.path.realpath)  # of a million files few folders differ


def read_small(path: str) -> bytes:
    """A list or table that lies beside the images. Raises ValueError if it is larger than any is, OSError."""
    if os.path.getsize(path) > MAX_TEXT:
        raise ValueError("too large")
    return Path(path).read_bytes()


def split_of(file: str) -> str:
    """ "train" of "train/a/b.png"; "" where the first folder is no split."""
    first, slash, _ = file.partition("/")
    return first if slash and first in SPLITS else ""


def ending(file: str) -> str:
    """ ".png" of "a/b.PNG"."""
    return os.path.splitext(file)[1].lower()


def stem(file: str) -> str:
    """ "a/b" of "a/b.png"."""
    return os.path.splitext(file)[0]


def parent(file: str) -> str:
    """ "b" of "a/b/c.png"."""
    return os.path.basename(os.path.dirname(file))
