"""nnU-Net's raw sets: dataset.json, imagesTr/CASE_0000.nii.gz (_0001, ... a file a channel) and labelsTr/CASE.nii.gz.

The JSON file names channels ("channel_names"; once "modality") and labels, and says how the files end.
"""

import re
from collections.abc import Iterator
from functools import partial

from ddpm import UserError
from ddpm.data.formats.decathlon import classes_of, contrasts_of, dataset_json
from ddpm.data.layout import Decoded, Findings, Item, Layout, Request
from ddpm.data.scans import read_contrasts, read_labels, volume_slices
from ddpm.data.volumes import check_library


def recognise(request: Request) -> Layout | None:
    if not (found := dataset_json(request)):
        return None
    folder, path, content = found
    numbered = re.compile(rf"{re.escape(folder)}imagesTr/(.+)_(\d{{4}})(\.[^/]+)")
    matches = [match for match in map(numbered.fullmatch, request.files) if match]
    if not matches and "channel_names" not in content:
        return None
    request.check_flags("nnU-Net sets")
    ending = content.get("file_ending", ".nii.gz")
    if ending not in (".nii", ".nii.gz"):
        raise UserError(f"{path}: files that end in {str(ending)[:20]!r}; save them as .nii.gz, and say so there")
    check_library("nibabel")
    key = "channel_names" if "channel_names" in content else "modality"
    contrasts, classes, values = contrasts_of(path, content, key), *classes_of(path, content)
    files, items = set(request.files), []
    for case in dict.fromkeys(match[1] for match in matches if match[3] == ending):
        images = [f"{folder}imagesTr/{case}_{i:04d}{ending}" for i in range(len(contrasts))]
        mask = f"{folder}labelsTr/{case}{ending}"
        lacking = [file for file in (*images, *[mask] * request.with_masks) if file not in files]
        if lacking:
            request.findings.refuse(f"{request.place(lacking[0])}: no such file; add it, or remove the case")
        else:
            paths = tuple(map(request.place, images))
            items.append(Item(f"{folder}{case}", paths, request.place(mask), case, beside=(path,)))
    read = partial(decode, classes=classes, values=values, axis=request.config.axis)
    about = f"an nnU-Net set, each slice in {len(contrasts)} channels" if len(contrasts) > 1 else "an nnU-Net set"
    return Layout(about, items, read, classes, contrasts if len(contrasts) > 1 else (), volumes=True, values=values)


def decode(items: list[Item], findings: Findings, classes, values, axis: str) -> Iterator[Decoded]:
    """A file for each channel, and one of labels."""
    for item in items:
        with findings.refusing():
            volumes, affine = read_contrasts(item.images)
            first = item.images[0], volumes[0], affine
            labels = read_labels(item.mask, *first, classes, values) if item.mask else None
            yield from volume_slices(item.name, item.images, volumes, labels, affine, axis, findings)
