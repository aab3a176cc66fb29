"""LGG: kaggle_3m/CASE/CASE_n.tif, with the channels pre-contrast, FLAIR, post-contrast, and CASE_n_mask.tif."""

import os
from functools import partial

from ddpm.data.layout import Item, Layout, Request, parent, stem
from ddpm.data.pictures import decode

CLASSES = ("background", "tumour")


def recognise(request: Request) -> Layout | None:
    tifs = [file for file in request.files if file.endswith(".tif")]
    masks = {file for file in tifs if file.endswith("_mask.tif")}
    if not masks:
        return None
    request.check_flags("LGG cases", one_channel=False)
    request.check_once({file: os.path.basename(file) for file in tifs})
    named = {stem(file): request.place(file) for file in tifs if file not in masks}
    labelled = {stem(file).removesuffix("_mask"): request.place(file) for file in masks}
    request.refuse_lonely(named, labelled, "no mask (NAME_mask.tif) beside it", "no image beside it")
    items = [Item(name, (path,), labelled[name], parent(path)) for name, path in named.items()]
    three = request.config.image_channels == 3
    read = partial(decode, classes=CLASSES, channels=3, pick=slice(0, 3) if three else slice(1, 2))
    about = "LGG segmentation, " + ("pre-contrast, FLAIR and post-contrast as channels" if three else "FLAIR alone")
    return Layout(about, items, read, CLASSES)
