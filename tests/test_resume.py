"""Nothing is lost: which checkpoint a run goes on from, what becomes of damaged and half-written ones, which are kept.

That a resumed run is the run that never stopped is in test_train.py; here, at the end, real processes are killed.
"""

import json
import os
import resource
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_sets import load, subject_set
from test_train import folder_of_pairs, go_on_from, last_checkpoint, log_of, same

import sample
import train
from ddpm.reverse import STEPS
from ddpm.runtime import checkpoint, files
from tools.soak import soak

pytestmark = pytest.mark.usefixtures("small_phantom")


@pytest.fixture(autouse=True)
def quick_grids(monkeypatch):
    monkeypatch.setitem(STEPS, "dpm-solver", 1)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def copy_of(run, folder):
    """The run's folder with all that is in it."""
    go_on_from(run, 20, folder)
    (folder / "log.jsonl").write_text((run / "log.jsonl").read_text())
    (folder / "checkpoints" / "step_000040.pt").write_bytes((run / "checkpoints" / "step_000040.pt").read_bytes())
    return folder


def flip(path, where):
    """Change one bit, at a fraction of the file's length."""
    data = bytearray(path.read_bytes())
    data[int(where * len(data))] ^= 4
    path.write_bytes(data)


# Damage


def test_what_cannot_be_opened_is_not_damaged(tiny_run, tmp_path, capsys):
    """Nothing is passed over, or set aside, for that."""
    run = copy_of(tiny_run, tmp_path / "run")
    (run / "checkpoints" / "step_000041.pt").mkdir()
    assert train.main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert "step_000041.pt: Is a directory" in error and error.count("\n") == 1
    assert (run / "checkpoints" / "step_000041.pt").exists() and not (run / "checkpoints" / "abandoned-1").exists()


@pytest.mark.parametrize("where", [0.2, 0.5, 0.8])
def test_a_flipped_bit_is_noticed(where, tiny_run, tmp_path, capsys):
    """torch.load alone would take it."""
    path = copy_of(tiny_run, tmp_path / "run") / "checkpoints" / "step_000040.pt"
    assert checkpoint.is_whole(path)
    flip(path, where)
    torch.load(path, weights_only=True)
    assert not checkpoint.is_whole(path)
    assert sample.main(["--ckpt", str(path), "--out", "o"]) == 2
    assert "step_000040.pt: damaged" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["bit", "half", "empty", "zeros"])
def test_the_newest_whole_checkpoint_is_used_and_replaces_the_damaged_one(damage, tiny_run, tmp_path, capsys):
    run = copy_of(tiny_run, tmp_path / "run")
    path = run / "checkpoints" / "step_000040.pt"
    data = path.read_bytes()
    match damage:
        case "bit":
            flip(path, 0.5)
        case "half":
            path.write_bytes(data[: len(data) // 2])
        case "empty":
            path.write_bytes(b"")
        case "zeros":  # what some file systems leave after a power failure
            path.write_bytes(bytes(len(data)))
    assert train.main(["--resume", str(run)]) == 0
    out = capsys.readouterr().out
    assert "step_000040.pt: damaged; trying the one before it" in out and "resumed at step 20 of 40" in out
    assert same(last_checkpoint(run)["model"], last_checkpoint(tiny_run)["model"])


def test_the_folder_of_the_checkpoints_is_as_good_as_the_runs(tiny_run, tmp_path):
    run = copy_of(tiny_run, tmp_path / "run")
    assert checkpoint.find(run / "checkpoints") == checkpoint.find(run)
    copy_of(tiny_run, tmp_path / "checkpoints" / "one")  # and it may be what somebody called a folder of runs
    assert checkpoint.find(tmp_path / "checkpoints").parent.parent.name == "one"
    assert train.main(["--resume", str(run / "checkpoints"), "--steps", "41"]) == 0
    assert checkpoint.find(run).name == "step_000041.pt"


def test_the_step_says_which_of_a_run_is_the_last_whatever_copying_did_to_the_times(tiny_run, tmp_path):
    run = copy_of(tiny_run, tmp_path / "run")
    os.utime(run / "checkpoints" / "step_000040.pt", (1, 1))
    assert checkpoint.newest(run).name == "step_000040.pt"
    content = (run / "checkpoints" / "step_000040.pt").read_bytes()
    (run / "checkpoints" / "step_000020-good one.pt").write_bytes(content)  # a copy, put aside under a longer name
    assert checkpoint.newest(run).name == "step_000040.pt"
    (run / "checkpoints" / "step_1000000.pt").write_bytes(content)
    assert checkpoint.newest(run).name == "step_1000000.pt"


@pytest.mark.parametrize("flags", [["--masks", "m"], ["--text-embeddings", "e.npz"]])
def test_what_means_nothing_to_a_new_run_is_not_taken_by_one_that_goes_on(flags, tiny_run, tmp_path, capsys):
    run = copy_of(tiny_run, tmp_path / "run")
    assert train.main(["--resume", str(run), *flags]) == 2
    error = capsys.readouterr().err
    assert flags[0] in error and error.count("\n") == 1 and names(run) == ["step_000020.pt", "step_000040.pt"]


def test_a_damaged_checkpoint_is_not_one_of_those_kept(tiny_run, tmp_path):
    """Of a damaged one at 40 and --keep 1, not the good one at 24 is deleted in its favour."""
    run = copy_of(tiny_run, tmp_path / "run")
    flip(run / "checkpoints" / "step_000040.pt", 0.5)
    (run / "log.jsonl").write_text('{"step": 20, "val_loss": 1e-9}\n')  # the best is another one
    assert train.main(["--resume", str(run), "--steps", "24", "--save-every", "2", "--keep", "1"]) == 0
    assert names(run) == ["abandoned-1", "step_000020.pt", "step_000024.pt"]
    assert checkpoint.newest(run).name == "step_000024.pt"


def test_all_damaged_is_one_line(tiny_run, tmp_path, capsys):
    run = copy_of(tiny_run, tmp_path / "run")
    for name in names(run):
        flip(run / "checkpoints" / name, 0.5)
    assert train.main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert "no whole checkpoint (2 damaged)" in error and error.count("\n") == 1


def test_another_version_is_refused_and_not_passed_over(tiny_run, tmp_path, capsys):
    run = copy_of(tiny_run, tmp_path / "run")
    path = run / "checkpoints" / "step_000040.pt"
    torch.save({**torch.load(path, weights_only=True), "version": checkpoint.VERSION + 1}, path)
    assert train.main(["--resume", str(run)]) == 2
    assert f"this program reads versions 1 to {checkpoint.VERSION}" in capsys.readouterr().err


def test_damage_in_one_run_does_not_lead_to_another(tiny_run, tmp_path):
    """--resume without a name goes on with the newest run, not with whichever run is whole."""
    copy_of(tiny_run, tmp_path / "results" / "old")
    new = copy_of(tiny_run, tmp_path / "results" / "new")
    flip(new / "checkpoints" / "step_000040.pt", 0.5)
    assert checkpoint.newest(tmp_path / "results") == new / "checkpoints" / "step_000020.pt"


# Killed before the first save, or while saving


def test_a_run_without_a_checkpoint_says_to_start_again(tiny_run, tmp_path, capsys):
    run = tmp_path / "results" / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text("{}")
    assert train.main(["--resume", str(run)]) == 2
    error = capsys.readouterr().err
    assert "stopped before it saved a checkpoint; start it again without --resume" in error and error.count("\n") == 1

    old = copy_of(tiny_run, tmp_path / "results" / "old")
    for name in names(old):
        os.utime(old / "checkpoints" / name, (1, 1))
    assert train.main(["--resume"]) == 0  # the newest run that can go on, but not silently
    assert (
        "results/run stopped before it saved a checkpoint, so this goes on with results/old" in capsys.readouterr().out
    )


def test_a_half_written_checkpoint_is_ignored_and_cleared_away(tiny_run, tmp_path):
    run = go_on_from(tiny_run, 20, tmp_path / "run")
    (run / "checkpoints" / "step_000040.pt.tmp").write_bytes(b"half")
    assert checkpoint.newest(run).name == "step_000020.pt"
    assert train.main(["--resume", str(run), "--steps", "21"]) == 0
    assert names(run) == ["step_000020.pt", "step_000021.pt"]


def test_a_save_is_flushed_before_it_gets_its_name_and_the_name_after(tiny_run, tmp_path, monkeypatch):
    """So that a power failure finds the old file or the new one."""
    calls = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor):
        calls.append("folder" if Path(f"/proc/self/fd/{descriptor}").resolve() == tmp_path else "file")
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", note_fsync)
    monkeypatch.setattr(files.os, "replace", lambda *paths: (calls.append("rename"), replace(*paths)))
    loaded = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    loaded.pop("version")
    checkpoint.save(tmp_path / "step_000040.pt", **loaded)
    assert calls == ["file", "rename", "folder"]
    assert same(checkpoint.load(tmp_path / "step_000040.pt")["model"], loaded["model"])


def test_a_disk_that_fills_up_leaves_older_checkpoints_whole(tiny_run, tmp_path, capsys):
    """A real limit, by the operating system: a byte less than a checkpoint has."""
    run = go_on_from(tiny_run, 20, tmp_path / "run")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((run / "checkpoints" / "step_000020.pt").stat().st_size - 1, hard))
    try:
        assert train.main(["--resume", str(run), "--steps", "22", "--save-every", "1"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert "step 21 could not be saved (File too large); older checkpoints are whole" in error
    assert error.count("\n") == 1
    assert names(run) == ["step_000020.pt"]
    assert train.main(["--resume", str(run), "--steps", "22"]) == 0  # with room again


def test_a_disk_without_room_for_the_first_checkpoint_has_none_that_are_whole(tiny_run, capsys):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tiny_run / "checkpoints" / "step_000020.pt").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, hard))
    try:
        assert train.main(["--preset", "tiny", "--steps", "1", "--precision", "fp32", "--out", "run"]) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    error = capsys.readouterr().err
    assert "step 1 could not be saved (File too large); make room and start again" in error and error.count("\n") == 1


def test_a_command_that_is_suggested_can_be_copied(capsys):
    run = SimpleNamespace(folder=Path("results/my run"), config=SimpleNamespace(steps=3), board=None)
    train.Run.finish(run, 1, "SIGINT", 0.1, False)
    assert capsys.readouterr().out.endswith("; go on with --resume 'results/my run'\n")


# Going back to an earlier step


SMALL = ["--preset", "tiny", "--precision", "fp32", "--log-every", "1", "--save-every", "2", "--sample-every", "9"]


@pytest.fixture(scope="module")
def six(small_phantom, tmp_path_factory):
    """The folder of a run of six steps, saved at 2, 4 and 6."""
    folder = tmp_path_factory.mktemp("six") / "run"
    assert train.main([*SMALL, "--steps", "6", "--sample-every", "2", "--out", str(folder)]) == 0
    return folder


def steps_of(run, key="loss"):
    return [line["step"] for line in log_of(run, key)]


@pytest.mark.parametrize("damage", [False, True])
def test_after_going_back_and_a_stop_the_new_branch_goes_on(damage, six, tmp_path, monkeypatch, capsys):
    """From step 2 of a run of 6, stopped at 4: what comes next is 5, not the 7 of the abandoned branch."""
    run = shutil.copytree(six, tmp_path / "run")
    back = ["--resume", str(run / "checkpoints" / "step_000002.pt"), "--steps", "8"]
    assert train.main([*back, "--out", "branch"]) == 0  # elsewhere: the run is left alone
    assert names(run) == names(six) and steps_of(run) == [1, 2, 3, 4, 5, 6]
    assert steps_of(Path("branch")) == [3, 4, 5, 6, 7, 8] and "abandoned-1" not in names(Path("branch"))
    if damage:
        flip(run / "checkpoints" / "step_000006.pt", 0.5)

    record = train.Run.record

    def interrupt_at_3(self, step, *rest):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)  # seen, and saved, after step 4
        record(self, step, *rest)

    monkeypatch.setattr(train.Run, "record", interrupt_at_3)
    assert train.main(back) == 0
    assert "2 checkpoint(s) of steps after 2 moved to" in capsys.readouterr().out
    monkeypatch.setattr(train.Run, "record", record)
    assert names(run) == ["abandoned-1", "step_000002.pt", "step_000004.pt"] and steps_of(run) == [1, 2, 3, 4]
    abandoned = run / "checkpoints" / "abandoned-1"
    moved = [path.name for path in abandoned.iterdir() if path.suffix != ".png"]
    assert sorted(moved) == ["log.jsonl", "step_000004.pt", "step_000006.pt"]
    drawn = {int(path.stem[5:]) for path in abandoned.glob("*.png")}
    kept = {int(path.stem[5:]) for path in (run / "samples").glob("*.png")}
    assert drawn and min(drawn) > 2 and kept <= {1, 2, 3, 4}  # grids go with the checkpoints
    assert '"step": 6' in (abandoned / "log.jsonl").read_text()
    assert train.main(["--resume", str(run)]) == 0
    assert "resumed at step 4 of 8" in capsys.readouterr().out
    assert steps_of(run) == [1, 2, 3, 4, 5, 6, 7, 8] and steps_of(run, "val_loss") == [2, 4, 6, 8]
    for part in ("model", "ema", "opt"):
        assert same(last_checkpoint(run)[part], last_checkpoint(Path("branch"))[part]), part


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("rename", range(4))  # two checkpoints, config.json, log.jsonl
def test_a_kill_while_going_back_loses_no_step(moment, rename, six, tmp_path, monkeypatch):
    run, renamed, replace = shutil.copytree(six, tmp_path / "run"), [], os.replace

    def killed(*paths):
        renamed.append(paths)
        if len(renamed) > rename and moment == "before":
            raise SystemExit(9)
        replace(*paths)
        if len(renamed) > rename:
            raise SystemExit(9)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(SystemExit):
        train.main(["--resume", str(run / "checkpoints" / "step_000002.pt"), "--steps", "8"])
    monkeypatch.setattr(os, "replace", replace)
    assert train.main(["--resume", str(run), "--steps", "8"]) == 0
    assert steps_of(run) == [1, 2, 3, 4, 5, 6, 7, 8] and steps_of(run, "val_loss") == [2, 4, 6, 8]


@pytest.mark.parametrize("flags", [["--resume", ""], ["--resume="]])
def test_an_empty_name_is_not_the_newest_and_no_new_run(flags, tiny_run, tmp_path, capsys):
    copy_of(tiny_run, tmp_path / "results" / "run")
    assert train.main([*flags, "--preset", "tiny", "--steps", "1"]) == 2
    error = capsys.readouterr().err
    assert "an empty name for a checkpoint (an unset variable?)" in error and error.count("\n") == 1
    assert sample.main(["--ckpt", "", "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert "an empty name for a checkpoint (an unset variable?)" in error and error.count("\n") == 1
    assert not Path("o").exists() and len(list(Path("results").iterdir())) == 1


def test_a_lone_checkpoint_goes_on_in_no_folder_that_was_not_named(tiny_run, tmp_path, capsys):
    shutil.copy(tiny_run / "checkpoints" / "step_000040.pt", tmp_path / "lone.pt")
    assert train.main(["--resume", "lone.pt", "--steps", "41", "--out", ""]) == 2
    assert "name a folder to go on in with --out" in capsys.readouterr().err


@pytest.mark.skipif(files.fcntl is None, reason="this system has no such locks")
def test_a_run_that_still_goes_on_is_not_written_to_by_another(tmp_path, monkeypatch, capsys):
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "4", "--save-every", "2", "--sample-every", "9"]
    save, second = train.Run.save, []

    def meets_another(self, step):
        save(self, step)
        if step == 2:
            log = Path("run/log.jsonl").read_text()
            second.append(train.main(["--resume", "run", "--steps", "6"]))
            assert Path("run/log.jsonl").read_text() == log

    monkeypatch.setattr(train.Run, "save", meets_another)
    assert train.main([*flags, "--out", "run"]) == 0
    error = capsys.readouterr().err
    assert second == [2] and "run: another train.py is writing there; stop it, or name another folder" in error
    assert error.count("error: ") == 1 and names(Path("run")) == ["step_000002.pt", "step_000004.pt"]
    assert train.main(["--resume", "run", "--steps", "5"]) == 0
    with monkeypatch.context() as broken, pytest.raises(ZeroDivisionError) as kept:
        broken.setattr(train, "training_step", lambda *args: 1 / 0)
        train.main(["--resume", "run", "--steps", "6"])
    assert (
        train.main(["--resume", "run", "--steps", "6"]) == 0
    )  # in a notebook, which keeps what went wrong and its run
    assert kept.value


# Data that is not what it was


def test_training_images_that_are_others_than_before_are_told_and_a_folder_that_only_moved_is_not(tmp_path, capsys):
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "1", "--sample-every", "9"]
    root, told = subject_set(tmp_path / "data"), []

    def go_on(steps, data):
        assert train.main(["--resume", "run", "--steps", str(steps), "--data", str(data)]) == 0
        told.append(capsys.readouterr().out.count("warning: --resume: the run's training images are not those of"))

    assert train.main([*flags, "--data", str(root), "--out", "run"]) == 0
    go_on(2, root)
    root = root.rename(tmp_path / "elsewhere")
    go_on(3, root)
    train_of = load(root).index["subjects"][0]
    shutil.move(root / "images" / train_of, tmp_path / "images-of-one")
    shutil.move(root / "masks" / train_of, tmp_path / "masks-of-one")
    go_on(4, root)
    go_on(5, root)  # what is held out now was trained on once, and stays so
    assert told == [0, 0, 1, 1]
    known = last_checkpoint(Path("run"))["trained_on"].split()
    assert len(set(known)) == len(known) == 2


# Which are kept


def test_the_newest_few_and_the_best_are_kept(tiny_run, tmp_path, capsys):
    run = go_on_from(tiny_run, 20, tmp_path / "run")
    lines = [json.loads(line) for line in (tiny_run / "log.jsonl").read_text().splitlines()]
    lines = [line | {"val_loss": 1e-9} if "val_loss" in line and line["step"] == 20 else line for line in lines]
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["--save-every", "4", "--sample-every", "4", "--keep", "2"]
    assert train.main(["--resume", str(run), *flags]) == 0
    assert names(run) == ["step_000020.pt", "step_000036.pt", "step_000040.pt"]
    assert f"lowest validation loss: {run}/checkpoints/step_000020.pt" in capsys.readouterr().out


def test_without_validation_only_the_newest_are_kept(tmp_path):
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "5", "--save-every", "1", "--sample-every", "9"]
    assert train.main([*flags, "--out", "run"]) == 0
    assert names(Path("run")) == ["step_000003.pt", "step_000004.pt", "step_000005.pt"]
    assert train.main([*flags, "--keep", "0", "--out", "other"]) == 2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_around_a_save_leaves_no_gap_in_the_log(moment, tmp_path, monkeypatch):
    """What belongs to the steps up to a checkpoint is in the log before it: the save comes last."""
    flags = ["--preset", "tiny", "--precision", "fp32", "--steps", "6", "--save-every", "2", "--sample-every", "2"]
    assert train.main([*flags, "--out", "whole"]) == 0
    save = train.Run.save

    def killed(self, step, *rest):
        if step < 4 or moment == "after":
            save(self, step, *rest)
        if step == 4:
            raise SystemExit(9)

    monkeypatch.setattr(train.Run, "save", killed)
    with pytest.raises(SystemExit):
        train.main([*flags, "--out", "run"])
    monkeypatch.setattr(train.Run, "save", save)
    assert train.main(["--resume", "run"]) == 0
    logs = [[json.loads(line) for line in Path(run, "log.jsonl").read_text().splitlines()] for run in ("whole", "run")]
    whole, run = ([(line["step"], line.get("loss"), line.get("val_loss")) for line in log] for log in logs)
    assert whole == run


# Real processes, really killed


@pytest.mark.slow
def test_twenty_kills(tmp_path):
    """Networks of 2 million parameters, so that a save takes long enough to be hit. `make soak` kills 200 times, with
    the settings of `make train`."""
    folder_of_pairs(tmp_path / "data")
    flags = ["--preset", "tiny", "--data", str(tmp_path / "data"), "--channels", "64", "--batch-size", "2"]
    flags += ["--steps", "30", "--sample-every", "10", "--log-every", "1", "--precision"]
    told = soak(20, [[*flags, "fp32"], [*flags, "bf16"]], tmp_path)
    kills, inside_a_save = [int(word) for word in told.split() if word.isdigit()][:2]
    assert kills == 20 and inside_a_save >= 3, told


def test_what_was_abandoned_once_stays_when_another_branch_is_abandoned(tmp_path):
    flags = ["--preset", "tiny", "--precision", "fp32", "--save-every", "1", "--sample-every", "9", "--keep", "9"]
    assert train.main([*flags, "--steps", "2", "--out", "run"]) == 0
    for steps in ("3", "4"):  # other learning rates, so other weights
        assert train.main(["--resume", "run/checkpoints/step_000001.pt", "--steps", steps]) == 0
    first, second = (Path("run/checkpoints") / f"abandoned-{n}" for n in (1, 2))
    assert [len(list(place.glob("step_*.pt"))) for place in (first, second)] == [1, 2]
    assert (first / "step_000002.pt").read_bytes() != (second / "step_000002.pt").read_bytes()
