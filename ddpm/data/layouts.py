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
            if not request.with_masks:
                found = replace(found, items=[replace(item, mask=None) for item in found.items], classes=())
            used = {file for item in found.items for file in item.files}
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
        masks = request.masks / split if request.masks else request.root / split / "masks"
        items += [replace(item, split=split) for item in pair(request, request.root / split / "images", masks)]
    lonely = [item for item in items if item.mask is None]
    if lonely and len(lonely) < len(items):
        there = f"{lonely[0].images[0]}: {lonely[0].split}/"
        raise UserError(f"{there} has no masks, but another split has; add them, or --labels none")
    return picture_layout(request, "pictures in train/, val/ and test/", items)


def pictures_and_masks(request: Request) -> Layout | None:
    """DIR/images/[SUBJECT/]NAME.* and DIR/masks/[SUBJECT/]NAME.*"""
    images, masks = request.root / "images", request.masks or request.root / "masks"
    if not images.is_dir():
        return None
    return picture_layout(request, "pictures in images/", pair(request, images, masks))


def yes_no(request: Request) -> Layout | None:
    """Kaggle's brain MRI images: folders yes/ and no/, no names of patients, no masks (but --masks works)."""
    files = [file for file in request.files if ending(file) in ENDINGS]
    if {parent(file).lower() for file in files} != {"yes", "no"}:
        return None
    check_once(request, {file: f"{parent(file)}/{os.path.basename(file)}" for file in files})
    items = pair(request, request.root, request.masks)
    about = "pictures in yes/ and no/, each taken for a subject of its own"
    return picture_layout(request, about, [replace(item, subject=item.name) for item in items])


def plain_pictures(request: Request) -> Layout | None:
    """A folder of pictures. Folders in it may be anything, so they are not taken for subjects."""
    if not any(ending(file) in ENDINGS for file in request.files):
        return None
    items = pair(request, request.root, request.masks)
    return picture_layout(request, "a folder of pictures", [replace(item, subject="") for item in items])


def picture_layout(request: Request, about: str, items: list[Item]) -> Layout:
    named = ("background", *(f"class {i}" for i in range(1, request.num_classes)))
    classes = named if any(item.mask for item in items) else ()
    about += " with masks" if classes else " without masks"
    return Layout(about, items, partial(decode.pictures, classes=classes, channels=request.channels), classes)


def pair(request: Request, images: Path, masks: Path | None) -> list[Item]:
    """The pictures below `images`, each with the mask of the same name below `masks` (if masks are asked for, and are
    there or were named by --masks). A folder below `images` is a subject."""
    paired = request.with_masks and masks is not None and (request.masks is not None or masks.is_dir())
    named, labelled = pictures_below(request, images, to_pair=paired), {}
    if paired:
        labelled = pictures_below(request, masks, to_pair=True)
        no_mask, no_image = f"no mask of that name in {masks}", f"no image of that name in {images}"
        refuse_lonely(request, named, labelled, no_mask, no_image)
    subjects = {name: os.path.dirname(name).partition("/")[0] for name in named}  # the first folder, or ""
    return [Item(name, (path,), labelled.get(name), subjects[name]) for name, path in named.items()]


def refuse_lonely(request: Request, images: dict, masks: dict, no_mask: str, no_image: str) -> None:
    """Of images and masks by their common names, refuse those that are without the other, and remove them."""
    for name in sorted(images.keys() - masks.keys()):
        request.findings.refuse(f"{images.pop(name)}: {no_mask}; add it, or remove the image")
    for name in sorted(masks.keys() - images.keys()):
        request.findings.refuse(f"{masks.pop(name)}: {no_image}; add it, or remove the mask")


def pictures_below(request: Request, folder: Path, to_pair: bool) -> dict[str, str]:
    """Name (the path below `folder` without its ending) -> path of every picture there. Raises UserError if none."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; see docs/data.md for the layouts")
    if folder.is_relative_to(request.root):
        below = "" if folder == request.root else f"{folder.relative_to(request.root).as_posix()}/"
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
            raise UserError(f"{request.place(file)}: also in {twin}; the set lies here twice, name one with --data")


def lgg(request: Request) -> Layout | None:
    """kaggle_3m/CASE/CASE_n.tif, with the channels pre-contrast, FLAIR, post-contrast, and CASE_n_mask.tif."""
    tifs = [file for file in request.files if file.endswith(".tif")]
    masks = {file for file in tifs if file.endswith("_mask.tif")}
    if not masks:
        return None
    request.check_flags("LGG cases", one_channel=False)
    check_once(request, {file: os.path.basename(file) for file in tifs})
    named = {stem(file): request.place(file) for file in tifs if file not in masks}
    labelled = {stem(file).removesuffix("_mask"): request.place(file) for file in masks}
    refuse_lonely(request, named, labelled, "no mask (NAME_mask.tif) beside it", "no image beside it")
    items = [Item(name, (path,), labelled[name], parent(path)) for name, path in named.items()]
    three = request.channels == 3
    classes = ("background", "tumour")
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
            if twin := scan.get(match[2]):
                request.findings.refuse(f"{path}: the same name as {os.path.basename(twin)}; remove one")
            scan[match[2]] = path
    if not any({"t1ce", "flair"} & scan.keys() for scan in scans.values()):
        return None
    request.check_flags("BraTS cases")
    library("nibabel")
    items = []
    for name, scan in scans.items():
        lacking = [kind for kind in (*BRATS_CONTRASTS, *["seg"] * request.with_masks) if kind not in scan]
        if lacking:
            file = f"{request.place(name)}_{lacking[0]}.nii"
            request.findings.refuse(f"{file}: no such file; add it, or rename the one that should be it")
        else:
            images = tuple(scan[kind] for kind in BRATS_CONTRASTS)
            items.append(Item(name, images, scan.get("seg"), os.path.basename(name)))
    about = "BraTS volumes, each slice in four contrasts"
    return Layout(about, items, decode.brats_volumes, BRATS_CLASSES, BRATS_CONTRASTS)


def brats_slices(request: Request) -> Layout | None:
    """Kaggle's slices of BraTS 2020: volume_V_slice_S.h5. Which contrast is which channel is not written in the
    files, and accounts of it differ: so the channels keep their numbers."""
    matches = [re.fullmatch(r"(.*/)?volume_(\d+)_slice_(\d+)\.h5", file) for file in request.files]
    found = sorted((int(match[2]), int(match[3]), match[0]) for match in matches if match)
    if not found:
        return None
    request.check_flags("BraTS slices")
    library("h5py")
    check_once(request, {file: os.path.basename(file) for _, _, file in found})
    items = [Item(stem(file), (request.place(file),), None, f"volume {volume}") for volume, _, file in found]
    about = "Kaggle's slices of BraTS volumes, each in four channels"
    return Layout(about, items, decode.brats_slices, BRATS_CLASSES, tuple(f"channel {i}" for i in range(4)))


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
