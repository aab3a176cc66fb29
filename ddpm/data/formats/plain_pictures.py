"""Any folder of pictures. Folders in it may be anything, so they are not taken for subjects."""

from dataclasses import replace

from ddpm.data.layout import Layout, Request, ending
from ddpm.data.pictures import ENDINGS, pair, picture_layout


def recognise(request: Request) -> Layout | None:
    if not any(ending(file) in ENDINGS for file in request.files):
        return None
    items = pair(request, request.root, request.masks)
    return picture_layout(request, "a folder of pictures", [replace(item, subject="") for item in items])
