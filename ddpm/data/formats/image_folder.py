"""DIR/images/[SUBJECT/]NAME.png, and DIR/masks/[SUBJECT/]NAME.png if there are masks, DIR/source/... under --source
pairs."""

from ddpm.data.layout import Layout, Request, ending
from ddpm.data.pictures import ENDINGS, pair, picture_layout


def recognise(request: Request) -> Layout | None:
    """With --masks DIR2, masks are DIR2/[SUBJECT/]NAME.png."""
    if not any(file.startswith("images/") and ending(file) in ENDINGS for file in request.files):
        return None
    masks = request.masks or request.root / "masks"
    items = pair(request, request.root / "images", masks, request.root / "source")
    return picture_layout(request, "pictures in images/", items)
