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

MASK = re.compile(
    r"(^|[^a-z])(mask|seg|segm|segmentation|label)s?(\.\w+)?$", re.IGNORECASE
)  # a file's or a folder's last word

# fmt: off
FORMATS = (
    split_folders, image_folder,
    bids, nnunet, decathlon, brats, brats_slices, fastmri,
    lgg, yes_no, nifti, dicom, plain_pictures,
)
# fmt: on
TAKE_ANY = (yes_no, nifti, plain_pictures)  # whatever its name


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
            unused = Counter(ending(file) for file in request.files if request.place(file) not in used)
            return replace(found, unused=unused)
    endings = {ending(file) for file in request.files}
    seen = f"only {', '.join(sorted(endings)[:5])}" if request.files else "nothing at all"
    raise UserError(f"{request.root}: no pictures or scans of a known layout here, {seen}; see docs/data.md")


def without_masks(request: Request, items: list[Item]) -> list[Item]:
    """The items, but for those that are named as masks are: these are refused, or they would be learnt as images."""
    kept = []
    for item in items:
        if any(map(MASK.search, item.name.split("/"))):
            remedy = "name a folder of masks by --masks, see docs/data.md for masks beside images, or move it away"
            request.findings.refuse(f"{item.images[0]}: an image that is named as masks are; {remedy}")
        else:
            kept.append(item)
    return kept


def check_flags(request: Request, known, found: Layout) -> None:
    """Raises UserError for flags that have no meaning with a layout of the format `known`."""
    if not found.volumes:
        for flag, given in (("--axis", request.config.axis != "axial"), ("--spacing", request.config.spacing)):
            if given:
                raise UserError(f"{flag}: {request.root} holds {found.about}, which are slices already; leave it out")
    if request.config.source == "pairs" and not any(item.source for item in found.items):
        raise UserError(f"--source pairs: {found.about} have none; put DIR/source beside DIR/images, see docs/data.md")
    if request.config.volume >= 0 and known is not nifti:
        raise UserError(f"--volume {request.config.volume}: {found.about} hold no series to choose from; leave it out")
    n, K = request.config.num_classes, len(found.classes)
    if found.classes and n not in (2, K):  # 2 is what it is if it was not given
        raise UserError(f"--num-classes {n}: {request.root} holds {found.about}, of {K} classes; leave it out")
