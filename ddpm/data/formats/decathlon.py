"""Medical Segmentation Decathlon: dataset.json, imagesTr/CASE.nii.gz, whose last dimension is the modality (as in
Task01_BrainTumour: FLAIR, T1w, t1gd, T2w), and labelsTr/CASE.nii.gz. The JSON file names modalities and labels."""

import json
import os
import re
from collections.abc import Iterator
from functools import partial

from ddpm import UserError, printable
from ddpm.data.layout import Decoded, Findings, Item, Layout, Request, read_small
from ddpm.data.scans import read_labels, volume_slices
from ddpm.data.volumes import check_library, read_series, volumes_in
from ddpm.runtime.files import reading


def recognise(request: Request) -> Layout | None:
    if not (found := dataset_json(request)):
        return None
    folder, path, content = found
    request.check_flags("a Decathlon task")
    check_library("nibabel")
    contrasts, classes, values = contrasts_of(path, content, "modality"), *classes_of(path, content)
    files, items = set(request.files), []
    for case in listed(path, content):
        image, mask = (os.path.normpath(f"{folder}{name}") for name in case)
        lacking = [file for file in (image, mask)[: 1 + request.with_masks] if file not in files]
        if lacking:
            request.findings.refuse(f"{path}: names {lacking[0]}, which is not there; add it, or fetch the set again")
        else:
            name = image.removesuffix(".gz").removesuffix(".nii")
            subject = os.path.basename(name)
            items.append(Item(name, (request.place(image),), request.place(mask), subject, beside=(path,)))
    read = partial(decode, classes=classes, values=values, contrasts=contrasts, axis=request.config.axis)
    about = f"a Decathlon task, each slice in {len(contrasts)} modalities" if len(contrasts) > 1 else "a Decathlon task"
    return Layout(about, items, read, classes, contrasts if len(contrasts) > 1 else (), volumes=True, values=values)


def decode(items: list[Item], findings: Findings, classes, values, contrasts, axis: str) -> Iterator[Decoded]:
    """A file of all modalities, and one of labels."""
    for item in items:
        with findings.refusing():
            path = item.images[0]
            if (n := volumes_in(path)) != len(contrasts):
                known = f"dataset.json names {len(contrasts)} ({', '.join(contrasts)})"
                raise UserError(f"{path}: {n} modalities, but {known}; mend one of them")
            volumes, affine = read_series(path, range(n))
            labels = read_labels(item.mask, path, volumes, affine, classes, values) if item.mask else None
            several = [volumes[..., i] for i in range(n)]
            yield from volume_slices(item.name, [path] * n, several, labels, affine, axis, findings)


# ---------------------------------------------------------------------------------------------------------
# dataset.json, which nnU-Net has too


def dataset_json(request: Request) -> tuple[str, str, dict] | None:
    """The folder ("" or "a/b/", below the data folder), path and content of the dataset.json that lies beside a folder
    imagesTr; None if there is no such folder. Raises UserError if it is damaged, or not one."""
    beside = {file.partition("imagesTr/")[0] for file in request.files if f"/{file}".find("/imagesTr/") >= 0}
    found = sorted(folder for folder in beside if f"{folder}dataset.json" in request.files)
    if not beside:
        return None
    if not found:  # without it masks would be taken for images
        raise UserError(
            f"{request.place(min(beside))}imagesTr: no dataset.json beside it; add it, or fetch the set again"
        )
    if len(found) > 1:
        raise UserError(f"{request.place(found[1])}dataset.json: a second set; name one of them with --data")
    path = request.place(f"{found[0]}dataset.json")
    with reading(path, "a dataset.json", "fetch it again"):
        content = json.loads(read_small(path))
    if not isinstance(content, dict):
        raise UserError(f"{path}: no JSON object; fetch it again")
    return found[0], path, content


def contrasts_of(path: str, content: dict, key: str) -> tuple[str, ...]:
    """The names of {"0": "FLAIR", ...}, which must be numbered from 0 without gaps. Raises UserError."""
    names = content.get(key)
    if not isinstance(names, dict) or not names or {*names} != {str(i) for i in range(len(names))}:
        raise UserError(f"{path}: {key!r} should name what each volume shows, as {{'0': 'T1w', ...}}; add it")
    return tuple(printable(str(names[str(i)])) for i in range(len(names)))


def classes_of(path: str, content: dict) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The classes, background first, and the value of each in the masks, of {"0": "background", ...} (Decathlon) or
    {"background": 0, ...} (nnU-Net). Raises UserError."""
    labels = content.get("labels")
    names: dict[int, str] = {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        if isinstance(value, list):
            raise UserError(f"{path}: 'labels' has regions ({key}); name each number once, as {{'oedema': 2}}")
        number, name = (value, key) if isinstance(value, int) else (key, value)
        if not re.fullmatch(r"\d{1,3}", str(number)) or int(number) > 255 or int(number) in names:
            raise UserError(f"{path}: 'labels' should give each name a number from 0 to 255, once; mend it")
        names[int(number)] = printable(str(name))
    if 0 not in names:
        raise UserError(f"{path}: 'labels' should name the labels, and 0 the background; add it")
    return tuple(names[number] for number in sorted(names)), tuple(sorted(names))


def listed(path: str, content: dict) -> list[tuple[str, str]]:
    """The files of each case to train on: image, mask. Raises UserError."""
    cases = content.get("training")
    try:
        return [(str(case["image"]), str(case["label"])) for case in cases]
    except (TypeError, KeyError):
        raise UserError(f"{path}: 'training' should list files, as {{'image': ..., 'label': ...}}; add it") from None
