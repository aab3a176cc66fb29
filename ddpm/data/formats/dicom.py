"""DICOM: folders of MR images, grouped into series and patients by their headers, however the files are named.

Patients get running numbers: a name or a hash of one could be guessed. Other modalities, localisers, directories (DICOMDIR)
and series of one or two slices are left out, and counted.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial

from ddpm import UserError
from ddpm.data.dicom import Header, read_frames, read_header, volume_of
from ddpm.data.layout import Decoded, Findings, Item, Layout, Request, ending, split_of
from ddpm.data.scans import volume_slices
from ddpm.data.volumes import check_library

ENDINGS = (".dcm", ".dicom", ".ima")
MIN_SLICES = 3  # fewer make no volume


def recognise(request: Request) -> Layout | None:
    files = [file for file in request.files if is_dicom(request, file)]
    if not files:
        return None
    request.check_flags("DICOM series")
    for name in ("pydicom", "nibabel"):
        check_library(name)
    left_out, series = Counter(), {}
    for file in files:
        if os.path.basename(file).upper() == "DICOMDIR":
            left_out["directories (DICOMDIR)"] += 1
            continue
        with request.findings.refusing():
            header = read_header(request.place(file))
            if header.unfit:
                left_out[header.unfit] += 1
            else:
                series.setdefault((split_of(file), header.patient, header.series), []).append((file, header))
    kept = {key: found for key, found in series.items() if slices_in(found) >= MIN_SLICES}
    left_out[f"series of fewer than {MIN_SLICES} slices"] = len(series) - len(kept)
    patients = {
        patient: f"patient {n}" for n, patient in enumerate(dict.fromkeys(patient for _, patient, _ in kept), 1)
    }
    items = []
    for n, ((split, patient, _), found) in enumerate(kept.items(), 1):
        paths = tuple(request.place(file) for file, _ in found)
        name = os.path.join(os.path.dirname(found[0][0]), f"series {n}")
        if not (patient or split or request.config.subject_pattern):
            remedy = "name its folder by --subject-pattern '^[^/]+', or make folders train/, val/ and test/"
            raise UserError(f"{paths[0]}: whose is it? Its header has no PatientID; {remedy}")
        items.append(Item(name, paths, None, patients[patient] if patient else "", split, drawn_by=patient))
    about = "DICOM series of MR images, without masks"
    return Layout(about, items, partial(decode, axis=request.config.axis), (), volumes=True, left_out=+left_out)


def is_dicom(request: Request, file: str) -> bool:
    """By its name or, where the name has no ending in letters (IM0001, or a number with dots), by its first bytes."""
    if ending(file) in ENDINGS or os.path.basename(file).upper() == "DICOMDIR":
        return True
    if re.fullmatch(r"\.[a-z_]\w*", ending(file)):
        return False
    try:
        with open(request.place(file), "rb") as start:
            return start.read(132)[128:] == b"DICM"
    except OSError:
        return False


def slices_in(series: list[tuple[str, Header]]) -> int:
    return sum(header.frames for _, header in series)


def decode(items: list[Item], findings: Findings, axis: str) -> Iterator[Decoded]:
    """The series of a patient, each a volume."""
    for item in items:
        with findings.refusing():
            volume, affine = volume_of([frame for path in item.images for frame in read_frames(path)])
            yield from volume_slices(item.name, [item.images[0]], [volume], None, affine, axis, findings)
