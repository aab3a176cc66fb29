"""Which data set is this? One function a layout, tried in order; each says "mine" (a Layout) or not (None).

A layout lists its images with their masks, subjects and (where it has them) splits, and says how they are decoded.
docs/data.md shows what each looks like on disk.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from ddpm import UserError
from ddpm.data import decode
from ddpm.data.decode import BRATS_CLASSES, BRATS_CONTRASTS, Findings, Item
from ddpm.data.volumes import library

SPLITS = ("train", "val", "test")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff")


@dataclass(frozen=True)
class Layout:
    about: str  # as it is told to the user
    items: list[Item]
    decode: Callable  # decode(items of one subject, findings) yields Decoded
    classes: tuple[str, ...]  # empty without masks
    contrasts: tuple[str, ...] = ()
    unused: Counter = field(default_factory=Counter)  # files of no use to it, by their ending


@dataclass(frozen=True)
class Request:
    """What the user asked for, and what lies there."""

    root: Path
    masks: Path | None  # a folder of masks that lie elsewhere
    with_masks: bool
    num_classes: int
    channels: int
    findings: Findings
    files: list[str]  # all below root, relative to it, with /

    def place(self, file: str) -> str:
        """Where a file of `files` lies."""
        return f"{self.root}/{file}"

    def picture_classes(self) -> tuple[str, ...]:
        return ("background", *(f"class {i}" for i in range(1, self.num_classes)))

    def check_flags(self, about: str, one_channel: bool = True) -> None:
        """Raises UserError for flags that a layout has no use for."""
        if self.masks:
            raise UserError(f"--masks {self.masks}: {about} take no masks from elsewhere; leave --masks out")
        if one_channel and self.channels != 1:
            raise UserError(f"--image-channels {self.channels}: {about} are read in one channel; leave it out")


def recognise(request: Request) -> Layout:
    """The layout of the data folder. Raises UserError if it is none that is known."""
    known = (split_pictures, pictures_and_masks, brats_volumes, brats_slices, fastmri, lgg, yes_no, plain_pictures)
    for layout in known:
        if found := layout(request):
            used = {file for item in found.items for file in (*item.images, item.mask)}
            unused = Counter(ending(file) for file in request.files if request.place(file) not in used)
            return replace(found, unused=unused)
    endings = {".nii.gz" if file.endswith(".nii.gz") else ending(file) for file in request.files}
    if endings & {".nii", ".nii.gz"}:
        raise UserError(f"{request.root}: volumes of no known set; cut them into slices with tools/slices.py")
    if ".dcm" in endings:
        raise UserError(f"{request.root}: DICOM files; make NIfTI volumes of them, then cut those with tools/slices.py")
    seen = f"only {', '.join(sorted(endings)[:5])}" if request.files else "nothing at all"
    raise UserError(f"{request.root}: no pictures or scans of a known layout here, {seen}; see docs/data.md")


def walk(root: Path, findings: Findings) -> list[str]:
    """Every file below root, relative to it, with /, in the order of names. Links are followed. Hidden files and
    macOS's __MACOSX folders are not data."""
    found = []

    def visit(folder: str, below: str, above: tuple) -> None:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
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


def ending(file: str) -> str:
    """ ".png" of "a/b.PNG"."""
    return os.path.splitext(file)[1].lower()


def stem(file: str) -> str:
    """ "a/b" of "a/b.png"."""
    return os.path.splitext(file)[0]


def parent(file: str) -> str:
    """ "b" of "a/b/c.png"."""
    return os.path.basename(os.path.dirname(file))


# ---------------------------------------------------------------------------------------------------------
# Pictures


def split_pictures(request: Request) -> Layout | None:
    """DIR/{train,val,test}/{images,masks}/NAME.*; with --masks DIR2, masks are DIR2/{train,val,test}/NAME.*"""
    splits = [split for split in SPLITS if (request.root / split).is_dir()]
    if not {"train", "val"} & set(splits) or any(ending(file) == ".h5" for file in request.files):
        return None
    items = []
    for split in splits:
        images, masks = request.root / split / "images", request.root / split / "masks"
        if request.masks:
            masks = request.masks / split
        paired = request.with_masks and (request.masks or masks.is_dir())
        items += [replace(item, split=split) for item in pair(request, images, masks if paired else None)]
    lonely = [item for item in items if item.mask is None]
    if lonely and len(lonely) < len(items):
        raise UserError(
            f"{lonely[0].images[0]}: {lonely[0].split}/ has no masks, but another split has; add them, or --labels none"
        )
    return picture_layout(request, "pictures in train/, val/ and test/", items)


def pictures_and_masks(request: Request) -> Layout | None:
    """DIR/images/[SUBJECT/]NAME.* and DIR/masks/[SUBJECT/]NAME.*"""
    images, masks = request.root / "images", request.masks or request.root / "masks"
    if not images.is_dir():
        return None
    paired = request.with_masks and (request.masks or masks.is_dir())
    return picture_layout(request, "pictures in images/", pair(request, images, masks if paired else None))


def yes_no(request: Request) -> Layout | None:
    """Kaggle's brain MRI images: folders yes/ and no/, no names of patients, no masks (but --masks works)."""
    files = [file for file in request.files if ending(file) in ENDINGS]
    if {parent(file).lower() for file in files} != {"yes", "no"}:
        return None
    check_once(request, {file: f"{parent(file)}/{os.path.basename(file)}" for file in files})
    items = pair(request, request.root, request.masks if request.with_masks else None)
    about = "pictures in yes/ and no/, each taken for a subject of its own"
    return picture_layout(request, about, [replace(item, subject=item.name) for item in items])


def plain_pictures(request: Request) -> Layout | None:
    """A folder of pictures. Folders in it may be anything, so they are not taken for subjects."""
    if not any(ending(file) in ENDINGS for file in request.files):
        return None
    items = pair(request, request.root, request.masks if request.with_masks else None)
    return picture_layout(request, "a folder of pictures", [replace(item, subject="") for item in items])


def picture_layout(request: Request, about: str, items: list[Item]) -> Layout:
    classes = request.picture_classes() if any(item.mask for item in items) else ()
    about += " with masks" if classes else " without masks"
    return Layout(about, items, partial(decode.pictures, classes=classes, channels=request.channels), classes)


def pair(request: Request, images: Path, masks: Path | None) -> list[Item]:
    """The pictures below `images`, each with the mask of the same name below `masks`. A folder below `images` is
    a subject."""
    findings, labelled = request.findings, {}
    named = pictures_below(request, images, to_pair=masks is not None)
    if masks is not None:
        labelled = pictures_below(request, masks, to_pair=True)
        for name in sorted(named.keys() - labelled.keys()):
            findings.refuse(f"{named.pop(name)}: no mask of that name in {masks}; add it, or remove the image")
        for name in sorted(labelled.keys() - named.keys()):
            findings.refuse(f"{labelled[name]}: no image of that name in {images}; add it, or remove the mask")
    return [
        Item(name, (path,), labelled.get(name), name.partition("/")[0] if "/" in name else "")
        for name, path in named.items()
    ]


def pictures_below(request: Request, folder: Path, to_pair: bool) -> dict[str, str]:
    """Name (the path below `folder` without its ending) -> path of every picture there. Raises UserError if none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; see docs/data.md for the layouts")
    if folder == request.root:
        files = request.files
    elif request.root in folder.parents:
        below = f"{folder.relative_to(request.root).as_posix()}/"
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


def check_once(request: Request, names: dict[str, str]) -> None:
    """Raises UserError if a data set lies there twice, as in some of Kaggle's archives."""
    first: dict[str, str] = {}
    for file, name in names.items():
        if first.setdefault(name, file) != file:
            twin = os.path.dirname(request.place(first[name]))
            raise UserError(
                f"{request.place(file)}: also in {twin}; the set lies here twice, name one folder with --data"
            )


def lgg(request: Request) -> Layout | None:
    """kaggle_3m/CASE/CASE_n.tif, with the channels pre-contrast, FLAIR, post-contrast, and CASE_n_mask.tif."""
    tifs = [file for file in request.files if file.endswith(".tif")]
    masks = {file for file in tifs if file.endswith("_mask.tif")}
    if not masks:
        return None
    request.check_flags("LGG cases", one_channel=False)
    check_once(request, {file: os.path.basename(file) for file in tifs})
    items, images = [], [file for file in tifs if file not in masks]
    for file in images:
        mask = f"{stem(file)}_mask.tif"
        if mask not in masks:
            twin = os.path.basename(mask)
            request.findings.refuse(f"{request.place(file)}: no {twin} beside it; add it, or remove the image")
            continue
        place = request.place(mask) if request.with_masks else None
        items.append(Item(stem(file), (request.place(file),), place, parent(file)))
    for mask in sorted(masks - {f"{stem(file)}_mask.tif" for file in images}):
        request.findings.refuse(f"{request.place(mask)}: no image beside it; add it, or remove the mask")
    three = request.channels == 3
    classes = ("background", "tumour") if request.with_masks else ()
    read = partial(decode.pictures, classes=classes, channels=3, pick=slice(0, 3) if three else slice(1, 2))
    about = "LGG segmentation, " + ("pre-contrast, FLAIR and post-contrast as channels" if three else "FLAIR alone")
    return Layout(about, items, read, classes)


# ---------------------------------------------------------------------------------------------------------
# Scans


def brats_volumes(request: Request) -> Layout | None:
    """CASE/CASE_{t1,t1ce,t2,flair,seg}.nii[.gz], as BraTS 2020 has them; the contrasts become four images a slice."""
    scans: dict[str, dict[str, str]] = {}
    for file in request.files:
        if match := re.fullmatch(r"(.+)_(t1|t1ce|t2|flair|seg)\.nii(\.gz)?", file):
            path, scan = request.place(file), scans.setdefault(match[1], {})
            if match[2] in scan:
                twin = os.path.basename(scan[match[2]])
                request.findings.refuse(f"{path}: the same name as {twin}; remove one")
            scan[match[2]] = path
    if not any({"t1ce", "flair"} & scan.keys() for scan in scans.values()):
        return None
    request.check_flags("BraTS cases")
    library("nibabel")
    items = []
    for name, scan in scans.items():
        lacking = [kind for kind in (*BRATS_CONTRASTS, "seg") if kind not in scan]
        if not request.with_masks and lacking == ["seg"]:
            lacking = []
        if lacking:
            request.findings.refuse(
                f"{request.place(name)}_{lacking[0]}.nii: no such file; add it, or rename the one that should be it"
            )
            continue
        images = tuple(scan[kind] for kind in BRATS_CONTRASTS)
        mask = scan["seg"] if request.with_masks else None
        items.append(Item(name, images, mask, name.rpartition("/")[2]))
    classes = BRATS_CLASSES if request.with_masks else ()
    about = "BraTS volumes, each slice in four contrasts"
    return Layout(about, items, decode.brats_volumes, classes, BRATS_CONTRASTS)


def brats_slices(request: Request) -> Layout | None:
    """Kaggle's slices of BraTS 2020: volume_V_slice_S.h5. Which contrast is which channel is not written in the
    files, and accounts of it differ: so the channels keep their numbers."""
    matches = [(re.fullmatch(r"(.*/)?volume_(\d+)_slice_(\d+)\.h5", file), file) for file in request.files]
    found = sorted((int(match[2]), int(match[3]), file) for match, file in matches if match)
    if not found:
        return None
    request.check_flags("BraTS slices")
    library("h5py")
    check_once(request, {file: os.path.basename(file) for _, _, file in found})
    items = [Item(stem(file), (request.place(file),), None, f"volume {volume}") for volume, _, file in found]
    read = partial(decode.brats_slices, with_masks=request.with_masks)
    classes = BRATS_CLASSES if request.with_masks else ()
    about = "Kaggle's slices of BraTS volumes, each in four channels"
    return Layout(about, items, read, classes, tuple(f"channel {i}" for i in range(4)))


def fastmri(request: Request) -> Layout | None:
    """fastMRI's scans, FILE.h5, in one folder, or in folders whose names end in train, val and test; no masks."""
    files = [file for file in request.files if ending(file) == ".h5"]
    if not files:
        return None
    request.check_flags("fastMRI scans")
    h5py = library("h5py")
    items = []
    for file in files:
        name, path, split = stem(file), request.place(file), parent(file).rpartition("_")[2]
        subject = os.path.basename(name)
        try:
            with h5py.File(path, "r") as scan:
                subject = str(scan.attrs.get("patient_id", subject))  # a patient may have several scans
        except Exception:
            pass  # it will be met again, and refused
        items.append(Item(name, (path,), None, subject, split if split in SPLITS else ""))
    return Layout("fastMRI scans, without masks", items, decode.fastmri, ())
