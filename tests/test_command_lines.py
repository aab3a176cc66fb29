"""What is asked wrongly of a benchmark or a tool is told in one line, with exit status 2, before the work."""

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest

import train
from benchmarks import data
from ddpm.data import phantom
from ddpm.runtime import cache
from tools import build_atlas, embed, notebook, train_segmenter

ROOT = Path(train.__file__).parent
SCRIPTS = [
    f"{folder}.{path.stem}"
    for folder in ("benchmarks", "tools")
    for path in sorted((ROOT / folder).glob("*.py"))
    if "add_argument(" in path.read_text()
]


def refused(main, flags, says, capsys):
    assert main([str(flag) for flag in flags]) == 2
    told = capsys.readouterr()
    assert says in told.err and told.err.startswith("error: ") and told.err.count("\n") == 1
    return told


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_flag_that_is_not_known_is_one_line_that_names_the_script(name, capsys):
    told = refused(
        importlib.import_module(name).main, ["--no-such-flag"], f"{name.replace('.', '/')}.py --help", capsys
    )
    assert told.out == ""


@pytest.mark.parametrize(
    "name, flags, says",
    [
        ("benchmarks.fid", ["distance", "--rounds", "0"], "--rounds is 0; it must be at least 1"),
        ("benchmarks.fid", ["distance", "--samples", "1"], "--samples is 1; it must be at least 2"),
        ("benchmarks.fid", ["features", "--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        ("benchmarks.roofline", ["--rounds", "0"], "--rounds is 0; it must be at least 1"),
        ("benchmarks.scaling", ["--step", "laptop", "--images", "0"], "--images is 0; it must be at least 1"),
        ("benchmarks.data", ["--images", "159"], "--images is 159; it must be at least 160"),
        ("benchmarks.data", ["--volumes", "0"], "--volumes is 0; it must be at least 3"),
        ("tools.soak", ["--kills", "0"], "--kills is 0; it must be at least 1"),
        ("tools.train_segmenter", ["--steps", "0"], "--steps is 0; it must be at least 1"),
        ("tools.embed", ["--texts", ""], "--texts: an empty name (an unset variable?)"),
        ("tools.build_atlas", ["nowhere"], "no mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz in nowhere"),
    ],
)
def test_numbers_and_names_that_cannot_be_are_refused(name, flags, says, capsys):
    assert refused(importlib.import_module(name).main, flags, says, capsys).out == ""


def test_where_nothing_can_be_written_no_work_is_begun(monkeypatch, capsys):
    monkeypatch.setattr(phantom, "load", lambda *asked: pytest.fail("it renders"))
    refused(train_segmenter.main, ["--out", "/proc/x/s.pt"], "--out /proc/x: cannot write there", capsys)
    monkeypatch.setattr(embed, "embed", lambda texts: pytest.fail("it embeds"))
    refused(embed.main, ["--out", "/proc/x/e.npz"], "--out /proc/x: cannot write there", capsys)
    Path("folder").mkdir()
    refused(embed.main, ["--out", "folder"], "--out folder: a folder; name a file in it", capsys)
    reader = SimpleNamespace(read=lambda *asked, **how: pytest.fail("it executes"))
    monkeypatch.setitem(sys.modules, "nbformat", reader)
    monkeypatch.setitem(sys.modules, "nbclient", SimpleNamespace(NotebookClient=None))
    refused(notebook.main, ["--out", "/proc/x/n.ipynb"], "--out /proc/x: cannot write there", capsys)


def test_volumes_that_are_not_the_average_brain_make_no_atlas(tmp_path, capsys):
    volume = np.arange(27, dtype=np.uint8).reshape(3, 3, 3)
    files = [tmp_path / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz" for kind in ("t1", "gm", "wm")]
    for file in files:
        nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), file)
    refused(build_atlas.main, [tmp_path], "T1: not of the symmetric ICBM 152 2009a", capsys)
    files[1].write_bytes(b"no volume")
    refused(build_atlas.main, [tmp_path], f"{files[1].name}: damaged, or not a NIfTI volume", capsys)


def test_the_benchmark_of_stores_draws_batches_of_16(monkeypatch, capfd):
    """As docs/data.md has it, whatever a training's default has become. Of 320 images a tenth is drawn cold."""
    monkeypatch.setattr(cache, "CACHE", cache.CACHE)  # it sets another
    assert data.main(["--images", "320", "--size", "8", "--batches", "4", "--rounds", "1", "--folder", "."]) == 0
    told = capfd.readouterr().out
    assert "nothing is cached" in told and "(32 images)" in told and "an epoch of 320 images" in told
    assert re.search(r"ratio [\d.]+ \(median of 1", told) and not any(Path().iterdir())
