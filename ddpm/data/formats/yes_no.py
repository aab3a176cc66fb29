"""Kaggle's brain MRI images: folders yes/ and no/, no names of patients, no masks (but --masks works)."""

import os
from dataclasses import replace

from ddpm.data.layout import Layout, Request, ending, parent
from ddpm.data.pictures import ENDINGS, pair, picture_layout


def recognise(request: Request) -> Layout | None:
    files = [file for file in request.files if ending(file) in ENDINGS]
    if {parent(file).lower() for file in files} != {"yes", "no"}:
        return None
    request.check_once({file: f"{parent(file)}/{os.path.basename(file)}" for file in files})
    items = pair(request, request.root, request.masks)
    about = "pictures in yes/ and no/" + ", each taken for a subject of its own" * (not request.config.subject_pattern)
    return picture_layout(request, about, [replace(item, subject=item.name) for item in items])
