"""DIR/{train,val,test}/{images,masks,source}/[SUBJECT/]NAME.png: pictures in splits of their own."""

from dataclasses import replace

from ddpm import UserError
from ddpm.data.formats import dicom
from ddpm.data.layout import SPLITS, Layout, Request, ending
from ddpm.data.pictures import ENDINGS, pair, picture_layout
from ddpm.data.volumes import is_nifti


def recognise(request: Request) -> Layout | None:
    """With --masks DIR2, masks are DIR2/{train,val,test}/[SUBJECT/]NAME.png."""
    splits = [split for split in SPLITS if (request.root / split).is_dir()]
    folders = tuple(f"{split}/images/" for split in splits)
    found = [file for file in request.files if ending(file) in ENDINGS]
    # Where scans lie as well, a picture elsewhere is a report's, say.
    scans = any(is_nifti(file) or ending(file) in (*dicom.ENDINGS, ".h5") for file in request.files)
    if not {"train", "val"} & set(splits) or not any(not scans or file.startswith(folders) for file in found):
        return None
    items = []
    for split in splits:
        masks = request.masks / split if request.masks else request.root / split / "masks"
        here = request.root / split
        items += [replace(item, split=split) for item in pair(request, here / "images", masks, here / "source")]
    lonely = [item for item in items if item.mask is None]
    if lonely and len(lonely) < len(items):
        there = f"{lonely[0].images[0]}: {lonely[0].split}/"
        raise UserError(f"{there} has no masks, but another split has; add them, or --labels none")
    return picture_layout(request, "pictures in train/, val/ and test/", items)
