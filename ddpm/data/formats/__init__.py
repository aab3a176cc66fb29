"""Which data set is this? One file a format, tried in order; each says "mine" (a Layout) or not (None).

A format lists its images with their masks, subjects and (where it has them) splits, and says how they are decoded.
docs/data.md shows what each looks like on disk. To add one: a file here with recognise(request), its place in FORMATS,
its row in docs/data.md, and a test.
"""

import re
from collections import Counter
from dataclasses import replace

from ddpm import UserError
from ddpm.data.formats import (
    bids,
    brats,
    brats_slices,
    decathlon,
    dicom,
    fastmri,
    image_folder,
    lgg,
    nifti,
    nnunet,
    plain_pictures,
    split_folders,
    yes_no,
)
from ddpm.data.layout import Item, Layout, Request, ending
from ddpm.data.pictures import ENDINGS, GROUND_TRUTH
from ddpm.data.volumes import is_nifti

WORDS = "mask|seg|segm|segmentation|label"
# A file's or a folder's last word; and what stands after the name of an image in that of its mask.
MASK = re.compile(rf"(^|[^a-z])({WORDS}|aseg|aparc|wmparc)s?(\.\w+)?$", re.IGNORECASE)
MASK_OF = re.compile(rf"[^a-z0-9]+({WORDS}|annotation)s?(?![a-z])", re.IGNORECASE)

# fmt: off
FORMATS = (
    split_folders, image_folder,
    bids, nnunet, decathlon, brats, brats_slices, fastmri,
    lgg, yes_no, nifti, dicom, plain_pictures,
)
# fmt: on
TAKE_ANY = (split_folders, image_folder, yes_no, nifti, plain_pictures)  # whatever its name
IN_IMAGES = (split_folders, image_folder, nifti)  # what lies beside a folder images/ is not used


def recognise(request: Request) -> Layout:
    """The layout of the data folder. Raises UserError if it is none that is known."""
    for known in FORMATS:
        if found := known.recognise(request):
            check_flags(request, known, found)
            if known in TAKE_ANY:
                found = replace(found, items=without_masks(request, found.items))
            if not request.with_masks:
                found = replace(found, items=[replace(item, mask=None) for item in found.items], classes=())
            used = {file for item in found.items for file in item.files}
            unused = [file for file in request.files if request.place(file) not in used]
            if known in IN_IMAGES and request.with_masks and found.items and not found.classes:
                refuse_overlooked(request, unused, found.volumes)
            return replace(found, unused=Counter(map(ending, unused)))
    endings = {ending(file) for file in request.files}
    seen = f"only {', '.join(sorted(endings)[:5])}" if request.files else "nothing at all"
    raise UserError(f"{request.root}: no pictures or scans of a known layout here, {seen}; see docs/data.md")


def without_masks(request: Request, items: list[Item]) -> list[Item]:
    """The items, but for those that are named as masks are: these are refused, or they would be learnt as images."""
    kept, names = [], {item.name for item in items}
    for item in items:
        of_another = (item.name[: word.start()] in names for word in MASK_OF.finditer(item.name))
        if item.mask is None and (any(map(MASK.search, item.name.split("/"))) or any(of_another)):
            remedy = "name a folder of masks by --masks, see docs/data.md for masks beside images, or move it away"
            request.findings.refuse(f"{item.images[0]}: an image that is named as masks are; {remedy}")
        else:
            kept.append(item)
    return kept


def refuse_overlooked(request: Request, unused: list[str], volumes: bool) -> None:
    """Raises UserError if images would be learnt without the masks beside them, as their folder has another name."""
    for file in unused:
        folders = file.split("/")[:-1] if (is_nifti(file) if volumes else ending(file) in ENDINGS) else []
        for i, folder in enumerate(folders):
            if MASK.search(folder) or GROUND_TRUTH.fullmatch(folder):
                place = request.place("/".join(folders[: i + 1]))
                remedy = "call it masks/" if i else f"give --masks {place}"
                raise UserError(f"{place}: named as masks are, but not used; {remedy}, or leave them by --labels none")


def check_flags(request: Request, known, found: Layout) -> None:
    """Raises UserError for flags that have no meaning with a layout of the format `known`."""
    if not found.volumes:
        for flag, given in (("--axis", request.config.axis != "axial"), ("--spacing", request.config.spacing)):
            if given:
                raise UserError(f"{flag}: {request.root} holds {found.about}, which are slices already; leave it out")
    n, K = request.config.num_classes, len(found.classes)
    if found.classes and n not in (2, K):  # 2 is what it is if it was not given
        raise UserError(f"--num-classes {n}: {request.root} holds {found.about}, of {K} classes; leave it out")
    if request.config.source == "pairs" and not any(item.source for item in found.items):
        raise UserError(f"--source pairs: {found.about} have none; put DIR/source beside DIR/images, see docs/data.md")
    if request.config.volume >= 0 and known is not nifti:
        raise UserError(f"--volume {request.config.volume}: {found.about} hold no series to choose from; leave it out")
