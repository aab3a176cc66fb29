"""Which data set is this? One file a format, tried in order; each says "mine" (a Layout) or not (None).

A format lists its images with their masks, subjects and (where it has them) splits, and says how they are decoded.
docs/data.md shows what each looks like on disk. To add one: a file here with recognise(request), its place in FORMATS,
its row in docs/data.md, and a test.
"""

from collections import Counter
from dataclasses import replace

from ddpm import UserError
from ddpm.data.formats import (
    brats,
    brats_slices,
    fastmri,
    image_folder,
    lgg,
    plain_pictures,
    split_folders,
    yes_no,
)
from ddpm.data.layout import Layout, Request, ending

FORMATS = (split_folders, image_folder, brats, brats_slices, fastmri, lgg, yes_no, plain_pictures)


def recognise(request: Request) -> Layout:
    """The layout of the data folder. Raises UserError if it is none that is known."""
    for known in FORMATS:
        if found := known.recognise(request):
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
