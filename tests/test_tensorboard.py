"""`train.py --tensorboard`: what the log says, and once, also after a run went back."""

import json
import shutil
import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

import train
from ddpm.runtime import checkpoint

TINY = ["--preset", "tiny", "--precision", "fp32", "--sample-every", "20"]
pytestmark = pytest.mark.usefixtures("small_phantom")


def shown(folder) -> tuple[dict, list[int]]:
    """What TensorBoard shows: (step, name) -> value of the scalars, each seen once; and the steps of the grids."""
    board = EventAccumulator(str(Path(folder) / "tensorboard")).Reload()
    scalars = [((event.step, name), event.value) for name in board.Tags()["scalars"] for event in board.Scalars(name)]
    assert len(dict(scalars)) == len(scalars)
    return dict(scalars), [event.step for event in board.Images("samples")]


def logged(folder) -> dict:
    lines = map(json.loads, (Path(folder) / "log.jsonl").read_text().splitlines())
    return {(line["step"], name): value for line in lines for name, value in line.items() if name != "step"}


def test_it_shows_what_the_log_says(monkeypatch):
    """Also on a slow disk to whoever kills the run just after a checkpoint: from there it will go on."""
    save, write = checkpoint.save, RecordWriter.write
    monkeypatch.setattr(RecordWriter, "write", lambda self, data: (time.sleep(0.05), write(self, data)))

    def look_and_save(*args, **parts):
        assert shown("run")[0] == pytest.approx(logged("run"), rel=1e-6)
        save(*args, **parts)

    monkeypatch.setattr(checkpoint, "save", look_and_save)
    assert train.main([*TINY, "--tensorboard", "--evaluate-every", "40", "--out", "run"]) == 0
    scalars, grids = shown("run")
    assert {name for _, name in scalars} >= {"loss", "val_loss", "grad_norm", "lr", "kid"}
    assert scalars == pytest.approx(logged("run"), rel=1e-6)
    assert grids == [20, 40]


def test_a_run_that_goes_back_is_shown_once(tiny_run):
    """It was killed at step 40 with its last checkpoint at 20, or sent back: what came after is hidden."""
    assert train.main([*TINY, "--tensorboard", "--out", "run"]) == 0
    shutil.rmtree("run/checkpoints/step_000040.pt", ignore_errors=True)
    assert train.main(["--resume", "run/checkpoints/step_000020.pt", "--log-every", "5"]) == 0
    scalars, grids = shown("run")
    assert scalars == pytest.approx(logged("run"), rel=1e-6)
    assert sorted({step for step, name in scalars if name == "loss"}) == [10, 20, 25, 30, 35, 40]
    assert grids == [20, 40]


def test_a_resumed_run_can_begin_or_cease_to_write_it(tiny_run):
    shutil.copytree(tiny_run, "run")
    assert train.main(["--resume", "run", "--steps", "60", "--tensorboard"]) == 0
    assert {step for step, _ in shown("run")[0]} == {50, 60}
    assert train.main(["--resume", "run", "--steps", "80", "--no-tensorboard"]) == 0
    assert {step for step, _ in shown("run")[0]} == {50, 60}


def test_without_the_library_it_says_what_to_install(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("tensorboard", "torch.utils.tensorboard"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert train.main([*TINY, "--tensorboard", "--out", "run"]) == 2
    error = capsys.readouterr().err
    assert "pip install -r requirements/tensorboard.txt" in error and error.count("\n") == 1
    assert not Path("run").exists()
    assert train.main([*TINY, "--steps", "2", "--out", "run"]) == 0  # who does not ask for it does not need it
