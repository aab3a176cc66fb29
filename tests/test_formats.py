"""Every format has its place in the order, its row in docs/data.md with a command, and a small set that it takes."""

import re
import shlex
from pathlib import Path

import pytest
from small_dicom import dicom_set
from small_sets import (
    bids_set,
    brats_2023_set,
    brats_set,
    brats_slice_set,
    decathlon_set,
    fastmri_set,
    lgg_set,
    nifti_set,
    nnunet_set,
    split_set,
    subject_set,
    yes_no_set,
)

from ddpm.data import folders, formats
from ddpm.data.layout import Findings, Request, walk
from ddpm.runtime import cache
from ddpm.runtime.command_line import given_fields, train_parser
from ddpm.runtime.config import Config

PACKAGE = Path(formats.__file__).parent
DOCS = (PACKAGE.parents[2] / "docs" / "data.md").read_text()
ROWS = re.findall(r"^\| (\w+) \|.*\| `(DIR.*|[A-Z]\w+.*|[a-z]\w+.*)` \|$", DOCS, re.M)


def name_of(known):
    return known.__name__.rpartition(".")[2]


def flat_set(root):
    return subject_set(root, nested=False) / "images"


SETS = {
    "split_folders": [split_set],
    "image_folder": [subject_set],
    "bids": [bids_set],
    "nnunet": [nnunet_set],
    "decathlon": [decathlon_set],
    "brats": [brats_set, brats_2023_set],
    "brats_slices": [brats_slice_set],
    "fastmri": [fastmri_set],
    "lgg": [lgg_set],
    "yes_no": [yes_no_set],
    "dicom": [dicom_set],
    "nifti": [nifti_set],
    "plain_pictures": [flat_set],
}


def test_every_file_of_the_package_is_tried():
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert {name_of(known) for known in formats.FORMATS} == files == SETS.keys()
    assert len(formats.FORMATS) == len(files)


def test_every_format_has_its_row_in_their_order():
    assert [name for name, _ in ROWS] == [name_of(known) for known in formats.FORMATS]


@pytest.mark.parametrize("name, command", ROWS)
def test_the_command_of_a_row_is_understood(name, command):
    given = given_fields(train_parser().parse_args(["--data", *shlex.split(command)]))
    assert given["data"] and "preset" not in given


@pytest.mark.parametrize("name", SETS)
def test_a_set_is_taken_by_its_own_format_and_no_earlier_one(tmp_path, name):
    for make in SETS[name]:
        root = make(tmp_path / make.__name__)
        findings = Findings(skip_bad=False)
        request = Request(root, None, Config(data=str(root)), findings, walk(root, findings))
        tried = []
        for known in formats.FORMATS:
            tried.append(name_of(known))
            if known.recognise(request):
                break
        assert tried[-1] == name


@pytest.mark.parametrize(
    "make, pattern, held_out",
    [
        (nifti_set, "*.nii*", {"val": "IXI000-T1", "test": "IXI001-T1"}),
        (bids_set, "sub-*", {"val": "sub-01", "test": "sub-03"}),
        (brats_set, "BraTS20*", {"val": "BraTS20_Training_001", "test": "BraTS20_Training_002"}),
        (brats_2023_set, "BraTS-GLI*", {"val": "BraTS-GLI-00000", "test": "BraTS-GLI-00001"}),
        (brats_slice_set, "content/data/*.h5", {"val": "volume_2", "test": "volume_1"}),
        (dicom_set, "p*", {"val": "p1", "test": "p2"}),
    ],
)
def test_first_folders_that_are_splits_are_those(tmp_path, make, pattern, held_out):
    root = make(tmp_path / "d")
    for path in sorted(root.glob(pattern)):
        split = next((split for split, start in held_out.items() if path.name.startswith(start)), "train")
        (root / split).mkdir(exist_ok=True)
        path.rename(root / split / path.name)
    layout = folders.find(Config(data=str(root)), Findings(skip_bad=False))
    assert {item.split for item in layout.items} == {"train", "val", "test"}
    assert all(f"/{item.split}/" in item.images[0] for item in layout.items)


def test_the_key_of_a_store_covers_the_code_of_every_format(monkeypatch):
    read = []
    monkeypatch.setattr(cache, "code", lambda *files: read.extend(files) or "")
    exec(compile(Path(folders.__file__).read_text(), folders.__file__, "exec"), vars(folders).copy())
    assert {f"data/formats/{name_of(known)}.py" for known in formats.FORMATS} < set(read)
    assert {
        f"data/{name}.py" for name in ("layout", "pictures", "scans", "volumes", "dicom", "images", "folders")
    } < set(read)
