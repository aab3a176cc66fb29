"""LGG: kaggle_3m/CASE/CASE_n.tif, with the channels pre-contrast, FLAIR, post-contrast, and CASE_n_mask.tif.

Its cases are called TCGA_*. Any other NAME.tif beside NAME_mask.tif are pictures and masks, the first folder a subject.
"""

import os
import re
from functools import partial

from ddpm.data.layout import Item, Layout, Request, parent, stem
from ddpm.data.pictures import decode, picture_layout

CLASSES = ("background", "tumour")
NAME = re.compile(r"(.*/)?(TCGA_[^/]+)/\2_\d+_mask\.tif")


def recognise(request: Request) -> Layout | None:
    tifs = [file for file in request.files if file.endswith(".tif")]
    masks = {file for file in tifs if file.endswith("_mask.tif")}
    if not masks:
        return None
    theirs = any(map(NAME.fullmatch, masks))
    others = "pictures NAME.tif beside NAME_mask.tif"
    request.check_flags("LGG cases" if theirs else others, one_channel=False)
    if theirs:
        request.check_once({file: os.path.basename(file) for file in tifs})
    named = {stem(file): request.place(file) for file in tifs if file not in masks}
    labelled = {stem(file).removesuffix("_mask"): request.place(file) for file in masks}
    request.refuse_lonely(named, labelled, "no mask (NAME_mask.tif) beside it", "no image beside it")
    if not theirs:
        firsts = {name: os.path.dirname(name).partition("/")[0] for name in named}
        items = [Item(name, (path,), labelled[name], firsts[name]) for name, path in named.items()]
        return picture_layout(request, others, items)
    items = [Item(name, (path,), labelled[name], parent(path)) for name, path in named.items()]
    three = request.config.image_channels == 3
    read = partial(decode, classes=CLASSES, channels=3, pick=slice(0, 3) if three else slice(1, 2))
    about = "LGG segmentation, " + ("pre-contrast, FLAIR and post-contrast as channels" if three else "FLAIR alone")
    return Layout(about, items, read, CLASSES)
