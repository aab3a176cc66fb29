"""Several processes train, sample and evaluate as one does. Two real processes on this machine, through gloo."""

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_train import folder_of_pairs, go_on_from, last_checkpoint
from torch.distributed.run import get_args_parser

import evaluate
import sample
import train
from ddpm import UserError
from ddpm.data import phantom
from ddpm.runtime import cache, checkpoint, distributed
from ddpm.runtime.command_line import pick_device, train_parser
from ddpm.runtime.config import Config

pytestmark = pytest.mark.usefixtures("small_phantom")
ROOT = Path(train.__file__).parent

# What each process runs: main of a script, on the small data, keeping the gradients that the optimiser is about to get.
PROGRAM = """
import importlib, os, sys
import torch
torch.set_num_threads(1)
from pathlib import Path
from ddpm.data import phantom
from ddpm.runtime import cache
phantom.SPLITS, cache.CACHE = {splits}, Path({folder!r})
clip = torch.nn.utils.clip_grad_norm_
def keep_gradients(weights, largest):
    weights = list(weights)
    torch.save([w.grad.clone() for w in weights], "gradients" + os.environ.get("RANK", "0") + ".pt")
    return clip(weights, largest)
torch.nn.utils.clip_grad_norm_ = keep_gradients
sys.exit(importlib.import_module({script!r}).main(sys.argv[1:]))
"""


def launch(folder, script, *flags, processes=2, program=PROGRAM):
    """Start the processes as torchrun does (by these environment variables), in a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    code = program.format(splits=phantom.SPLITS, folder=str(cache.CACHE), script=script)
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(processes)}
    group |= {"TORCHELASTIC_RUN_ID": "test", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", code, *map(str, flags)],
            cwd=folder,
            env={**os.environ, **group, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]


def finish(started):
    """(exit status, output, errors) of each process."""
    told = [process.communicate(timeout=300) for process in started]
    return [(process.returncode, *text) for process, text in zip(started, told, strict=True)]


def log_of(folder):
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if "loss" in line]


# One process is the plain case


@given(n=st.integers(0, 40), size=st.integers(1, 9))
def test_shares_are_all_things_once_and_even(n, size):
    parts = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "size", lambda: size)
        for rank in range(size):
            patch.setattr(distributed, "rank", lambda rank=rank: rank)
            parts.append(distributed.shard(list(range(n))))
    assert sum(parts, []) == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_dropout_is_drawn_apart(monkeypatch):
    draws = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(5)
        distributed.seed_dropout(5, 7)
        draws.append(torch.rand(4))
    torch.manual_seed(5)
    assert torch.equal(draws[0], torch.rand(4))  # the first process goes on as if it were alone
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])


def test_alone_nothing_is_exchanged():
    state = torch.get_rng_state()
    distributed.seed_dropout(0, 1)
    assert torch.equal(state, torch.get_rng_state())
    x = torch.ones(3)
    distributed.all_reduce([x])
    assert torch.equal(x, torch.ones(3))
    assert distributed.broadcast(max, 2, 3) == 3 and distributed.gather(7) == [7]
    assert not distributed.any_of("") and distributed.any_of("SIGINT")
    with distributed.rank_0_first():
        pass


def test_process_0_alone_tries_the_folder_of_the_run(monkeypatch):
    for rank in (1, 0):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        train.open_data(Config(image_size=[32, 32], out="run"))
        assert Path("run").exists() == (rank == 0)


# GPUs, without one


@pytest.fixture
def gpus(monkeypatch):
    """A machine with two, as far as PyTorch tells; a list of what was done to them."""
    done = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda number: done.append(f"GPU {number}"))
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *on, warn_only: done.append("deterministic"))
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    return done


def join(monkeypatch, processes, rank):
    for name, value in {"LOCAL_WORLD_SIZE": processes, "WORLD_SIZE": processes, "LOCAL_RANK": rank}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(distributed, "size", lambda: processes)


def test_each_process_has_a_gpu_of_its_own(gpus, monkeypatch):
    join(monkeypatch, 2, rank=1)
    assert pick_device("cpu").type == "cpu" and gpus == []  # asked for the CPU, it touches no GPU
    assert pick_device("auto").type == "cuda" and gpus == ["GPU 1", "deterministic"]
    assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.backends.cudnn.benchmark and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_alone_the_gpu_that_is_set_is_used(gpus):
    assert pick_device("cuda").type == "cuda" and gpus == ["deterministic"]


def test_more_processes_than_gpus_is_an_error_of_the_users(gpus, monkeypatch):
    for rank in range(3):  # of all: process 0 says it for the others
        join(monkeypatch, 3, rank)
        with pytest.raises(UserError, match=r"--nproc-per-node 3, but this machine has 2 GPU\(s\); start so many"):
            pick_device("auto")
    assert gpus == []


@pytest.mark.parametrize("nccl, backend", [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_without_nccl_gloo_carries_all(nccl, backend, gpus, monkeypatch):
    """As on Windows; and nothing is done to a GPU before the command line is read."""
    join(monkeypatch, 9, rank=8)
    begun = []
    monkeypatch.setattr(torch.distributed, "is_torchelastic_launched", lambda: True)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: nccl)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda name, timeout: begun.append(name))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    assert distributed.in_each_process(lambda argv: argv)(["flags"]) == ["flags"]
    assert begun == [backend] and gpus == []


# Two processes train


def wake(folder, **changes):
    """The layers that start at zero hide what lies behind them: shake all weights. A step is then a full one."""
    path = folder / "checkpoints" / "step_000020.pt"
    raw = torch.load(path, weights_only=True)
    raw["config"].update(changes)
    generator = torch.Generator().manual_seed(0)
    for weight in raw["model"].values():
        weight += 0.1 * torch.randn(weight.shape, generator=generator)
    torch.save(raw, path)


def test_two_processes_have_the_gradient_of_one(tiny_run, tmp_path, monkeypatch):
    """Before the optimiser, because Adam hides an error of scale; with 5 images, which do not divide by 2, in two
    parts each; in a run that one process began; and then the run of two goes on in one."""
    kept = []
    clip = torch.nn.utils.clip_grad_norm_

    def keep_gradients(weights, largest):
        weights = list(weights)
        kept.append([w.grad.clone() for w in weights])
        return clip(weights, largest)

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", keep_gradients)
    for name in ("one", "two"):
        go_on_from(tiny_run, 20, tmp_path / name)
        wake(tmp_path / name, batch_size=5, loss_weight="min-snr")
    flags = ["--steps", 21, "--log-every", 1]
    two = launch(tmp_path, "train", "--resume", "two", *flags, "--grad-accum", 2)
    assert train.main(["--resume", str(tmp_path / "one"), *map(str, flags)]) == 0
    (status, out, errors), (other_status, other_out, other_errors) = finish(two)
    assert status == other_status == 0, errors + other_errors
    assert "resumed at step 20 of 21" in out and other_out == ""  # process 0 alone speaks ...
    assert sorted(path.name for path in (tmp_path / "two").rglob("*.*")) == sorted(
        path.name for path in (tmp_path / "one").rglob("*.*")
    )

    here, there = (torch.load(tmp_path / f"gradients{rank}.pt") for rank in (0, 1))
    largest = max(gradient.abs().max() for gradient in kept[0])
    assert largest > 1e-2
    for one, zero, first in zip(kept[0], here, there, strict=True):
        assert torch.equal(zero, first)  # both took the same step
        assert torch.allclose(one, zero, atol=1e-5 * largest, rtol=0)
    assert [line["step"] for line in log_of(tmp_path / "two")] == [10, 20, 21]  # ... and writes
    one, two = (log_of(tmp_path / name)[-1] for name in ("one", "two"))
    for key in ("loss", "loss_q1", "grad_norm"):
        assert one[key] == pytest.approx(two[key], rel=1e-4), key

    assert train.main(["--resume", str(tmp_path / "two"), "--steps", "22"]) == 0
    assert last_checkpoint(tmp_path / "two")["step"] == 22


def test_too_small_a_batch_is_one_line_and_ends_both(tmp_path):
    (status, out, errors), (other_status, _, other_errors) = finish(
        launch(tmp_path, "train", "--preset", "tiny", "--batch-size", 1)
    )
    assert status == 2 and other_status != 0
    assert errors.startswith("error: --batch-size 1 is for all 2 processes together")
    assert errors.count("error:") == 1 and "Traceback" not in errors + other_errors


@pytest.mark.slow
def test_with_dropout_the_run_of_two_is_the_same_again(tiny_run, tmp_path):
    losses = []
    for name in ("a", "b"):
        go_on_from(tiny_run, 20, tmp_path / name)
        wake(tmp_path / name, dropout=0.5)
        assert [status for status, *_ in finish(launch(tmp_path, "train", "--resume", name, "--steps", 22))] == [0, 0]
        losses.append(log_of(tmp_path / name)[-1]["loss"])
    assert losses[0] == losses[1]


# A process that dies, and signals


SLOW = ["--preset", "tiny", "--precision", "fp32", "--steps", "5000", "--save-every", "10", "--sample-every", "9999"]


def wait_for_a_checkpoint(run, started):
    for _ in range(6000):
        if any(run.glob("checkpoints/*.pt")):
            return
        assert all(process.poll() is None for process in started), finish(started)
        time.sleep(0.05)
    raise AssertionError("no checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("dies", [0, 1])
def test_when_one_dies_the_other_ends_with_a_line(dies, tmp_path):
    started = launch(tmp_path, "train", *SLOW, "--out", "run")
    wait_for_a_checkpoint(tmp_path / "run", started)
    started[dies].kill()
    status, _, errors = finish(started)[1 - dies]
    assert status == 2 and "Traceback" not in errors
    line = [line for line in errors.splitlines() if line.startswith("error:")]
    assert len(line) == 1 and "another process ended" in line[0]
    assert checkpoint.load(checkpoint.newest(tmp_path / "run"))["step"] % 10 == 0


@pytest.mark.slow
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path):
    started = launch(tmp_path, "train", *SLOW, "--out", "run")
    wait_for_a_checkpoint(tmp_path / "run", started)
    started[1].send_signal(signal.SIGTERM)
    (status, out, errors), (other, _, other_errors) = finish(started)
    assert status == other == 0, errors + other_errors
    assert "stopped by a signal, saved at step" in out


@pytest.mark.slow
def test_torchrun_itself(tmp_path):
    """An error of the user's is one line of ours (torchrun adds a report of its own) and a bad exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(ROOT / "train.py")]
    done = subprocess.run([*command, "--data", "nowhere"], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    assert [line for line in done.stderr.splitlines() if line.startswith("error:")] == [
        line for line in done.stderr.splitlines() if "no such folder" in line
    ]
    assert done.stderr.count("no such folder") == 1


# The commands of docs/scaling.md

COMMANDS = [line for line in (ROOT / "docs" / "scaling.md").read_text().splitlines() if line.startswith("torchrun ")]


def test_the_documented_commands_are_understood():
    """torchrun's own parser takes what looks like the beginning of a flag of its own, such as --n."""
    parsers = {"train.py": train_parser(), "sample.py": sample.make_parser(), "evaluate.py": evaluate.make_parser()}
    for command in COMMANDS:
        args = get_args_parser().parse_args(shlex.split(command, comments=True)[1:])
        parsers[args.training_script].parse_args(args.training_script_args)
    assert len(COMMANDS) >= 4 and {script for script in parsers if any(script in c for c in COMMANDS)} == set(parsers)


@pytest.mark.slow
def test_the_documented_commands_run(tmp_path):
    """One after the other, with a small network and few images in the place of the large ones."""
    folder_of_pairs(tmp_path / "DIR", n=90)
    flags = ["--preset", "tiny", "--steps", "1", "--precision", "fp32", "--data", "DIR", "--labels", "none"]
    assert train.main([*flags, "--out", "without_masks"]) == 0  # for which evaluate.py trains no judge of its own
    smaller = {"--resume": ["--steps", "3"], "gpu-128": ["--steps", "2", "--precision", "fp32"]}
    smaller |= {"sample.py": ["--sample-steps", "1", "--mask", "DIR/val/masks/slice1.png"]}
    smaller |= {"evaluate.py": ["--ckpt", "without_masks", "--n=40", "--sample-steps", "1", "--metrics", "spectrum"]}
    for command in COMMANDS:
        words = shlex.split(command, comments=True)[1:]
        added = next(flags for word, flags in smaller.items() if word in words)
        if "evaluate.py" in words:
            words.insert(words.index("evaluate.py"), "--")
        words = ["tiny" if word == "gpu-128" else str(ROOT / word) if word.endswith(".py") else word for word in words]
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", *words, *added],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
    assert len(list(tmp_path.glob("results/*/slice1_*.png"))) == 50
    assert len(list(tmp_path.glob("results/*/report.json"))) == 1
    assert len(list(tmp_path.glob("results/*/checkpoints/step_000003.pt"))) == 1


# Two processes sample and evaluate


def pixels(path):
    return np.asarray(Image.open(path)).astype(int)


@pytest.mark.slow
def test_two_processes_draw_the_images_of_one(tiny_run, tmp_path):
    path = tiny_run / "checkpoints" / "step_000040.pt"
    flags = ["--ckpt", str(path), "--mask", "--n", "1", "--sample-steps", "3", "--sampler", "ancestral"]
    flags += ["--precision", "fp32", "--film"]  # bf16 may round a batch of another size otherwise
    assert sample.main([*flags, "--out", str(tmp_path / "one")]) == 0
    (status, out, errors), (other, other_out, _) = finish(launch(tmp_path, "sample", *flags, "--out", "two"))
    assert status == other == 0, errors
    assert other_out == "" and "images, grid.png and film.gif in two" in out
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir()) and len(files) > 4
    for name in files:
        if name.endswith(".png"):
            assert np.abs(pixels(tmp_path / "one" / name) - pixels(tmp_path / "two" / name)).max() <= 1, name
    films = [Image.open(tmp_path / folder / "film.gif") for folder in ("one", "two")]
    assert films[0].n_frames == films[1].n_frames == 4 and films[0].size == films[1].size


@pytest.mark.slow
def test_two_processes_evaluate_the_samples_of_one(tiny_run, tmp_path):
    path = tiny_run / "checkpoints" / "step_000040.pt"
    flags = ["--ckpt", str(path), "--n", "41", "--sample-steps", "2", "--metrics", "spectrum"]
    for processes, out in ((1, "one"), (2, "two")):
        told = finish(launch(tmp_path, "evaluate", *flags, "--out", out, processes=processes))
        assert [status for status, *_ in told] == [0] * processes, told
    one, two = (json.loads((tmp_path / out / "report.json").read_text())["rows"] for out in ("one", "two"))
    assert [row["metric"] for row in one] == [row["metric"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert a["samples"] == pytest.approx(b["samples"], abs=0.05)
