"""A sweep: what its grid means, what it refuses, that nothing is done twice, and that one failure stops no other."""

import csv
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

import evaluate
import train
from benchmarks import ablations, sweep, trial
from ddpm import UserError
from ddpm.data import phantom
from ddpm.runtime import checkpoint
from ddpm.runtime.command_line import given_fields, train_parser
from ddpm.runtime.config import make_config

SMALL = ["--fixed", "preset=tiny", "image-size=16", "channels=8", "steps=4", "precision=fp32"]


class OneByOne:
    """In the place of ThreadPoolExecutor: a training takes signals, which only the main thread may."""

    def __init__(self, jobs):
        self.map = map

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        pass


@pytest.fixture
def in_this_process(monkeypatch, small_phantom):
    """The scripts run here, on little data. Their names, as they are called."""
    called = []

    def call(script, *flags, log):
        called.append(script)
        assert {"train.py": train, "evaluate.py": evaluate}[script].main(list(flags)) == 0

    monkeypatch.setattr(trial, "call", call)
    monkeypatch.setattr(sweep, "ThreadPoolExecutor", OneByOne)
    monkeypatch.setitem(phantom.SPLITS, "val", 96)  # enough to judge by
    return called


@pytest.fixture
def pretended(monkeypatch):
    """Scripts that leave the files of theirs without work; lr is the KID. What they were called with."""
    called = []

    def call(script, *flags, log):
        called.append((script, *flags))
        flag = dict(zip(flags, flags[1:], strict=False)) | dict(re.findall(r"--([\w-]+)=(\S+)", " ".join(flags)))
        if script == "train.py":
            args = train_parser().parse_args([one for one in flags if one != "--resume"] if "--out" in flag else [])
            given = {name: value for name, value in given_fields(args).items() if name not in ("out", "threads")}
            run = Path(flag.get("--resume") or flag["--out"])
            if "--resume" in flag:
                given = {"lr": json.loads((run / "config.json").read_text())["lr"]}
            leave_run(run, at=10, **{**given, "steps": 10})
        else:
            lr = json.loads((Path(flag["--ckpt"]) / "config.json").read_text())["lr"]
            figures = {
                "KID x 1000": lr,
                "Dice of lesion, 12 pixels or more": 0.5,
                "Dice of lesion, under 12 pixels": 0.1,
            }
            rows = [{"metric": name, "samples": value} for name, value in figures.items()]
            Path(flag["--out"]).mkdir(parents=True)
            (Path(flag["--out"]) / "report.json").write_text(json.dumps({"rows": rows}))

    monkeypatch.setattr(trial, "call", call)
    return called


def leave_run(run, steps, at, **given):
    """A run that is to take `steps` and has taken `at`."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    (run / "checkpoints" / f"step_{at:06d}.pt").touch()
    (run / "config.json").write_text(json.dumps(asdict(make_config("laptop", {**given, "steps": steps}))))
    (run / "log.jsonl").write_text(f'{{"step": {at}, "loss": 1}}\n{{"step": {at}, "val_loss": 0.5}}\n')


def table(out="results/sweep"):
    return list(csv.DictReader((Path(out) / "table.csv").read_text().splitlines()))


# ---------------------------------------------------------------- a sweep


def test_a_small_sweep_and_the_same_again(in_this_process, capsys):
    command = ["--grid", "lr=1e-2", "lean=yes", *SMALL, "--n", "40"]
    assert sweep.main(command) == 0
    assert in_this_process == ["train.py", "evaluate.py"]
    (row,) = rows = table()
    assert (row["lr"], row["lean"], row["steps taken"]) == ("1e-2", "yes", "4") and "failed" not in row
    assert float(row["KID x 1000"]) > 0 and 0 < float(row["validation loss"]) < 3
    printed = capsys.readouterr().out
    assert "1 training, 2 at a time, all with preset=tiny image-size=16 channels=8 steps=4" in printed
    assert "KID x 1000" in printed and row["KID x 1000"][:4] in printed

    (trained,) = Path("results/sweep").glob("lr=1e-2_lean=yes-*/run/config.json")
    config = json.loads(trained.read_text())
    assert (config["lr"], config["lean"], config["channels"], config["threads"]) == (0.01, True, 8, 1)

    assert sweep.main(command) == 0  # nothing is left to do
    assert len(in_this_process) == 2 and table() == rows


def test_what_was_stopped_is_gone_on_with_and_what_is_judged_is_left_alone(pretended):
    run, flags = Path("place/run"), ["--lr=3"]
    leave_run(run, steps=10, at=5, lr=3.0)
    trial.judged(Path("place"), flags, 50, ("kid", "mask"))
    resumed, evaluated = pretended
    assert resumed == ("train.py", "--resume", str(run), "--threads", "1")
    assert evaluated[:7] == ("evaluate.py", "--ckpt", str(run), "--n", "50", "--metrics", "kid")
    assert evaluated[8:10] == ("--split", "val")  # to choose by: the test images stay unseen
    assert trial.judged(Path("place"), flags, 50, ("kid", "mask"))["steps"] == 10 and len(pretended) == 2
    trial.judged(Path("place"), flags, 60, ("kid", "mask"))  # of other samples, it is another question
    assert [called[0] for called in pretended] == ["train.py", "evaluate.py", "evaluate.py"]
    trial.judged(Path("new"), flags, 50, ("kid", "mask"))
    assert pretended[3] == ("train.py", "--lr=3", "--out", str(Path("new/run")), "--threads", "1")


def test_a_run_whose_log_is_further_than_its_checkpoint_is_not_finished():
    leave_run(Path("run"), steps=10, at=5)
    Path("run/log.jsonl").write_text('{"step": 10, "val_loss": 0.5}\n')
    assert not trial.finished(Path("run")) and not trial.finished(Path("nothing"))
    leave_run(Path("run"), steps=10, at=10)
    assert trial.finished(Path("run"))


def test_a_run_of_other_defaults_is_not_taken_for_one_of_todays(pretended):
    leave_run(Path("place/run"), steps=10, at=10)
    config = json.loads(Path("place/run/config.json").read_text())
    for name in ("muon_decay", "foreground_weight"):  # once 0 and 1, and not written at all
        Path("place/run/config.json").write_text(json.dumps({**config, name: 0.5}))
        with pytest.raises(UserError, match=f"trained with --{name.replace('_', '-')} 0.5, and now it is"):
            trial.judged(Path("place"), [], 50, ("kid", "mask"))
    assert not pretended


def test_a_students_run_is_gone_on_with_whose_teacher_is_a_folder(pretended, tiny_run):
    """train.py writes down which of the folder's checkpoints it was."""
    teacher = str(checkpoint.find(tiny_run))
    leave_run(Path("place/run"), steps=10, at=5, teacher=teacher)
    trial.judged(Path("place"), ["--teacher", str(tiny_run)], 50, ("kid",))
    assert [called[:2] for called in pretended] == [("train.py", "--resume"), ("evaluate.py", "--ckpt")]
    leave_run(Path("other/run"), steps=10, at=5, teacher=str(Path(teacher).with_name("step_000020.pt")))
    with pytest.raises(UserError, match="step_000020.pt, and now it is .*step_000040.pt"):
        trial.judged(Path("other"), ["--teacher", str(tiny_run)], 50, ("kid",))


def test_a_run_that_a_signal_ended_is_not_judged(monkeypatch):
    monkeypatch.setattr(trial, "call", lambda *flags, log: leave_run(Path("place/run"), steps=10, at=5))
    with pytest.raises(UserError, match="stopped before its end; the same command goes on"):
        trial.judged(Path("place"), [], 50, ("kid",))


def test_one_that_fails_is_a_row_with_its_log_and_the_others_go_on(pretended, monkeypatch, capsys):
    works = trial.call

    def call(script, *flags, log):
        if "--lr=2" in flags:
            raise UserError(f"{script}: exit status 2, see {log}")
        works(script, *flags, log=log)

    monkeypatch.setattr(trial, "call", call)
    command = ["--grid", "lr=3,2,1", "seed=0,1"]
    assert sweep.main(command) == 2
    rows = table()
    assert [row["lr"] for row in rows] == ["1", "1", "3", "3", "2", "2"]  # the best first, those without figures last
    for row in rows:
        assert (row["KID x 1000"] == "") == (row["lr"] == "2") == bool(row["failed"])
    log = re.fullmatch(r"train.py: exit status 2, see (.*train\.log)", rows[-1]["failed"])[1]
    assert Path(log).parent.parent == Path("results/sweep").resolve() and "lr=2" in log
    told = capsys.readouterr()
    assert log in told.out and told.err == "error: 2 of 6 trainings failed; the table names their logs\n"

    pretended.clear()
    monkeypatch.setattr(trial, "call", works)
    assert sweep.main(command) == 0 and len(pretended) == 4  # only what failed is tried again
    assert [row["lr"] for row in table()] == ["1", "1", "2", "2", "3", "3"] and "failed" not in table()[0]


def test_all_that_fail_are_a_table_too(monkeypatch, capsys):
    def call(script, *flags, log):
        raise UserError(f"{script}: exit status 2, see {log}")

    monkeypatch.setattr(trial, "call", call)
    assert sweep.main(["--grid", "lr=1,2", "--jobs", "3"]) == 2
    assert [sorted(row) for row in table()] == [["failed", "lr"]] * 2


def test_the_log_has_the_command_and_what_the_script_said():
    log = Path("place/train.log")
    with pytest.raises(UserError, match=r"train.py: exit status 2, see .*train\.log"):
        trial.call("train.py", "--data", "/nowhere at all", "--out", str(Path("run").resolve()), log=log)
    command, *said = log.read_text().splitlines()
    assert "train.py --data '/nowhere at all'" in command and any("/nowhere" in line for line in said)
    assert not Path("run").exists()


def test_a_plot_is_made_of_what_succeeded():
    pytest.importorskip("matplotlib")
    grid = {"lr": ["1", "2", "3"], "lean": ["yes", "no"]}
    rows = [{"lr": "1", "lean": "yes", "failed": "train.py"}, {"lr": "3", "lean": "no", "KID x 1000": 4.0, "Dice": 0.5}]
    for some in (rows, rows[:1]):
        sweep.plot(grid, some, Path("plot.png"))
        with Image.open("plot.png") as picture:
            assert picture.format == "PNG" and picture.width > 700
        Path("plot.png").unlink()


def test_without_matplotlib_the_table_is_there(pretended, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert sweep.main(["--grid", "lr=1,2"]) == 0
    assert len(table()) == 2 and "the plot needs matplotlib" in capsys.readouterr().out


@pytest.mark.parametrize("by, first", [("kid", "b"), ("dice", "a"), ("loss", "b")])
def test_the_best_come_first_and_those_without_last(by, first):
    rows = [{"name": "none"}, {"name": "a", "KID x 1000": 9.0, "Dice": 0.9, "validation loss": 2.0}]
    rows.append({"name": "b", "KID x 1000": -1.0, "Dice": 0.1, "validation loss": 1.0})
    found = [row["name"] for row in sweep.best_first(rows, sweep.SHORT[by])]
    assert found == [first, *({"a", "b"} - {first}), "none"]


def test_the_ablations_tell_of_several_seeds(pretended):
    assert ablations.main(["--only", "default", "lr-2e-3", "--seeds", "0", "1", "--minutes", "3"]) == 0
    # Two at a time, so in any order; lr-2e-3 names a flag more than the default does.
    trained = sorted(call[1:-4] for call in pretended if call[0] == "train.py")
    asked = [(*flags, "--minutes", "3", "--seed", seed) for seed in "01" for flags in ((), ("--lr", "2e-3"))]
    assert trained == sorted(asked) and len(pretended) == 8
    lines = Path("results/ablations/table.md").read_text().splitlines()
    assert len(lines) == 4 and lines[2].startswith("| default | 10 ± 0 | 0.5 ± 0 | 0.005 ± 0 |")


def test_an_ablation_that_fails_costs_no_other_its_row(pretended, monkeypatch, capsys):
    works = trial.call

    def call(script, *flags, log):
        if "--lr" in flags and flags[flags.index("--seed") + 1] == "1" or "--muon-lr" in flags:
            raise UserError(f"{script}: exit status 2, see {log}")
        works(script, *flags, log=log)

    monkeypatch.setattr(trial, "call", call)
    command = ["--only", "lr-2e-3", "muon-0.01", "default", "--seeds", "0", "1", "--jobs", "1"]
    assert ablations.main(command) == 2
    told = capsys.readouterr()
    assert told.err == "error: 3 of 6 trainings failed, as told above; the same command tries them again\n"
    assert "muon-0.01, seed 0: train.py: exit status 2, see " in told.out and "lr-2e-3, seed 1: train.py" in told.out
    _, _, one, none, both = Path("results/ablations/table.md").read_text().splitlines()
    assert one.startswith("| lr-2e-3 | 10 | 0.5 |") and both.startswith("| default | 10 ± 0 |")
    assert set(none.split(" | ")[1:-1]) == {"failed"}
    monkeypatch.setattr(trial, "call", works)
    assert ablations.main(command) == 0 and "failed" not in Path("results/ablations/table.md").read_text()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--n", "39"], "--n is 39; it must be at least 40"),
        (["--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["--minutes", "0"], "--minutes is 0.0; it must be greater than 0"),
        (["--minutes", "nan"], "--minutes is nan; it must be a finite number"),
        (["--seeds", "0", "-1"], "--seeds is [0, -1]; it must be at least 0"),
        (["--out", "/proc/x"], "--out /proc/x: cannot write there"),
        (["--only", "magic"], "invalid choice: 'magic'"),
    ],
)
def test_bad_ablations_are_one_line_before_anything_runs(flags, says, pretended, capsys):
    assert ablations.main(flags) == 2
    told = capsys.readouterr()
    assert says in told.err and told.err.startswith("error: ") and told.err.count("\n") == 1
    assert told.out == "" and not pretended and not any(Path().iterdir())


# ---------------------------------------------------------------- the grid


def test_a_grid_is_all_combinations_in_its_order():
    grid = sweep.read_grid(["lr=1e-3,2e-3", "lean=no", "mults=1 2,1 2 2"], "--grid")
    assert grid == {"lr": ["1e-3", "2e-3"], "lean": ["no"], "mults": ["1 2", "1 2 2"]}
    found = sweep.combinations(grid, None, 0)
    assert [sweep.label(values) for values in found] == [
        "lr=1e-3 lean=no mults=1 2",
        "lr=1e-3 lean=no mults=1 2 2",
        "lr=2e-3 lean=no mults=1 2",
        "lr=2e-3 lean=no mults=1 2 2",
    ]
    assert sweep.flags_of(found[1]) == ["--no-lean", "--lr=1e-3", "--mults", "1", "2", "2"]
    assert sweep.parsed({"time-mean": "-0.5", "flip": "yes"}).time_mean == -0.5


def test_a_random_draw_is_its_seeds_and_has_nothing_twice():
    grid = sweep.read_grid(["lr=1,2,3,4", "seed=0,1,2,3"], "--grid")
    every = sweep.combinations(grid, None, 0)
    drawn = [sweep.combinations(grid, 6, seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    for some in drawn:
        assert len(some) == 6 and [values for values in every if values in some] == some
    assert sweep.combinations(grid, 16, 5) == every


def test_the_default_is_the_notebooks_three_and_trains():
    grid = sweep.read_grid(sweep.GRID, "--grid")
    assert list(grid) == ["steps", "lr", "ema-decay"] and len(sweep.combinations(grid, None, 0)) == 8
    fixed = {name: values[0] for name, values in sweep.read_fixed(None, grid).items()}
    for values in sweep.combinations(grid, None, 0):
        sweep.check({**fixed, **values})


def test_the_grid_goes_before_what_is_fixed_by_default():
    assert "channels" not in sweep.read_fixed(None, {"channels": ["8", "16"]})
    assert sweep.read_fixed([], {"lr": ["1"]}) == {}


def test_another_fixed_flag_is_another_training():
    values = {"data": "a/b c"}
    one, other = (sweep.folder(values, sweep.flags_of({**values, "channels": n})) for n in ("8", "16"))
    assert one != other and re.fullmatch(r"data=a_b_c-[0-9a-f]{8}", one)


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--grid", "learning-rate=1"], "train.py has no flag --learning-rate"),
        (["--grid", "ema=0.9"], "train.py has no flag --ema"),  # nor does it guess
        (["--grid", "lr=1e-3,fast"], "argument --lr: invalid float value: 'fast'"),
        (["--grid", "mults=1 x"], "argument --mults: invalid int value: 'x'"),
        (["--grid", "schedule=steep"], "argument --schedule: invalid choice"),
        (["--grid", "lean=maybe"], "lean=maybe: it is a switch; write yes or no"),
        (["--grid", "lr"], "a value is missing"),
        (["--grid", "lr="], "a value is missing"),
        (["--grid", "lr=1,,2"], "a value is missing"),
        (["--grid"], "argument --grid: expected at least one argument"),
        (["--grid", "lr=1", "lr=2"], "lr stands there twice"),
        (["--grid", "lr=1e-3,0.001"], "1e-3 and 0.001 are the same value"),
        (["--grid", "lean=yes,yes"], "yes and yes are the same value"),
        (["--grid", "lr=0"], "--lr is 0.0; it must be greater than 0"),
        (["--grid", "image-size=32,30"], "--image-size 30: this network needs a multiple of 8"),
        (["--grid", "objective=v,eps", "zero-terminal-snr=yes"], "--objective eps is undefined"),
        (["--grid", "out=here"], "the sweep itself sets --out"),
        (["--grid", "resume=latest"], "the sweep itself sets --resume"),
        (["--grid", "lr=1", "--fixed", "lr=2"], "it is in the grid too"),
        (["--grid", "lr=1", "--fixed", "steps=1,2"], "several values; put it into --grid"),
        (["--grid", "lr=1", "--fixed", "speed=1"], "--fixed speed=1: train.py has no flag --speed"),
        (["--random", "0"], "the grid has 8 combinations; draw 1 to 8"),
        (["--random", "9"], "the grid has 8 combinations; draw 1 to 8"),
        (["--seed", "-1"], "--seed is -1; it must be at least 0"),
        (["--jobs", "0"], "--jobs is 0; it must be at least 1"),
        (["--n", "39"], "--n is 39; it must be at least 40"),
        (["--sort", "beauty"], "argument --sort: invalid choice"),
    ],
)
def test_bad_grids_are_one_line_before_anything_runs(flags, says, pretended, capsys):
    assert sweep.main(flags) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("error: ") and told.err.count("\n") == 1 and says in told.err
    assert not pretended and not any(Path().iterdir())
