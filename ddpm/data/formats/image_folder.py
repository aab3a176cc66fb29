"""DIR/images/[SUBJECT/]NAME.png, and DIR/masks/[SUBJECT/]NAME.png if there are masks."""

from ddpm.data.layout import Layout, Request
from ddpm.data.pictures import pair, picture_layout


def recognise(request: Request) -> Layout | None:
    """With --masks DIR2, masks are DIR2/[SUBJECT/]NAME.png."""
    images, masks = request.root / "images", request.masks or request.root / "masks"
    if not images.is_dir():
        return None
    return picture_layout(request, "pictures in images/", pair(request, images, masks))
