"""Kill a training again and again, at any moment, and see whether it ends where it would have ended undisturbed.

    python tools/soak.py --kills 200

A process that trains is ended by SIGKILL, which no program can catch, and another goes on with --resume, until it is
done; then the next run begins, until there were so many kills. (The processes are forked from one that has already
imported train.py: importing takes longer than all else, and has nothing to lose.) Of the kills, some come at a random
moment from the start of the process, some after its first step, and some are aimed at a save: they wait for its
temporary file. A temporary file that is left behind proves that the process died inside a save, so those are counted.

After every kill each checkpoint in the folder must be whole, and the log must hold every step once, in order. At the end
weights, averaged weights, the optimiser's state and the logged losses must be those of a run that nobody disturbed, bit
for bit. The number of threads must not change in between. The settings are those of `make train`, but for fewer steps
of fewer and smaller images, in fp32 and in bf16 in turn, and with another --save-every in each process.
"""

import argparse
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import train  # noqa: E402
from ddpm.runtime import checkpoint  # noqa: E402
from ddpm.runtime.command_line import Parser, one_line_errors  # noqa: E402
from ddpm.runtime.config import check_limits  # noqa: E402

SETTINGS = ["--steps", "40", "--batch-size", "4", "--image-size", "32", "--log-every", "1", "--sample-every", "20"]
SAVE_EVERY = (1, 2, 5, 9)
PATIENCE = 600  # seconds after which a process that does not move is an error


@one_line_errors
def main(argv):
    parser = Parser(prog="tools/soak.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args(argv)
    check_limits("kills", args.kills, at_least=1)
    torch.set_num_threads(1)  # a process with threads must not be forked
    with tempfile.TemporaryDirectory() as folder:
        settings = [[*SETTINGS, "--precision", precision] for precision in ("fp32", "bf16")]
        print(soak(args.kills, settings, Path(folder), args.seed))


def soak(kills: int, settings: list[list[str]], folder: Path, seed: int = 0) -> str:
    """Run the settings in turn until `kills` processes were killed; what was counted, as a line. AssertionError."""
    rng = random.Random(seed)
    done = half_written = before_first_save = runs = 0
    wholes, begun = [], time.monotonic()
    for number, flags in enumerate(settings):
        wholes.append(folder / f"whole{number}")
        assert wait(start([*flags, "--save-every", "9", "--out", str(wholes[-1])], folder)) == 0, output(folder)
    usual = (time.monotonic() - begun) / len(settings)
    while done < kills:
        whole, flags, run = wholes[runs % len(settings)], settings[runs % len(settings)], folder / f"run{runs}"
        while True:
            saved_at = newest_step(run)
            fresh = not any(run.glob("checkpoints/*.pt"))
            if fresh and (run / "config.json").exists():
                before_first_save += 1
                assert wait(start(["--resume", str(run)], folder)) == 2
                assert output(folder).count("\n") == 1 and "before it saved a checkpoint" in output(folder)
            how = flags if fresh else ["--resume"]
            process = start([*how, "--out", str(run), "--save-every", str(rng.choice(SAVE_EVERY))], folder)
            if done < kills:
                kill_at_some_moment(process, run, saved_at, usual, rng)
            if wait(process) == 0:
                break
            assert process.exitcode == -9, output(folder)
            done += 1
            half_written += any(run.glob("checkpoints/*.tmp"))
            check_folder(run)
            print(f"{done} kills, {half_written} inside a save, {runs} runs done", end="\r", flush=True)
        assert fresh or f"resumed at step {saved_at} of" in output(folder), output(folder)
        check_end(run, whole)
        runs += 1
    return (
        f"{done} kills, {half_written} of them inside a save and {before_first_save} before the first; {runs} runs came to "
        "their end, each with the weights, the optimiser's state and the losses of the run that was never killed"
    )


def start(flags: list[str], folder: Path):
    process = multiprocessing.get_context("fork").Process(target=run_train, args=(flags, folder / "output"))
    process.start()
    return process


def run_train(flags: list[str], output: Path) -> None:
    with open(output, "w", buffering=1) as sys.stdout:
        sys.stderr = sys.stdout
        sys.exit(train.main(flags))


def wait(process) -> int:
    """The exit status; -9 if it was killed."""
    process.join(PATIENCE)
    assert process.exitcode is not None, "the process does not move"
    return process.exitcode


def output(folder: Path) -> str:
    return (folder / "output").read_text()


def kill_at_some_moment(process, run: Path, saved_at: int, usual: float, rng: random.Random) -> None:
    """SIGKILL, unless the process ends before. usual: how long an undisturbed run takes, in seconds."""
    begun = time.monotonic()

    def wait_for(happened) -> None:
        while process.is_alive() and not happened():
            assert time.monotonic() - begun < PATIENCE, "the process does not move"

    kind = rng.choice(("any moment", "in training", "in a save", "in a save"))
    if kind == "any moment":
        process.join(rng.uniform(0, usual))
    elif kind == "in training":
        wait_for(lambda: time.sleep(0.01) or last_logged(run) > saved_at)
        process.join(rng.uniform(0, usual / 2))
    else:
        wait_for(lambda: any(name.endswith(".tmp") for name in names(run / "checkpoints")))
        process.join(rng.choice((0, rng.uniform(0, 0.03))))
    process.kill()


def names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def logged(run: Path) -> list[dict]:
    """The lines of the log about steps, but for one that was cut off at the end."""
    path = run / "log.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [line for line in map(json.loads, (line for line in lines if line.endswith("\n"))) if "loss" in line]


def last_logged(run: Path) -> int:
    return max((line["step"] for line in logged(run)), default=0)


def newest_step(run: Path) -> int:
    return max((int(path.stem[5:]) for path in run.glob("checkpoints/*.pt")), default=0)


def check_folder(run: Path) -> None:
    """After a kill: what has its name is whole, and no step was taken twice or left out."""
    for path in run.glob("checkpoints/*.pt"):
        assert checkpoint.is_whole(path), path
    steps = [line["step"] for line in logged(run)]
    assert steps == list(range(1, len(steps) + 1)), steps


def check_end(run: Path, whole: Path) -> None:
    """The run's last state is the other's, to the last bit."""
    ours, theirs = (checkpoint.load(checkpoint.newest(folder)) for folder in (run, whole))
    assert ours["step"] == theirs["step"]
    for part in ("model", "ema", "opt"):
        assert same(ours[part], theirs[part]), f"{run}: {part} differs"
    losses = [[(line["step"], line["loss"], line["grad_norm"], line["lr"]) for line in logged(f)] for f in (run, whole)]
    assert losses[0] == losses[1], f"{run}: the log differs"
    assert not list(run.rglob("*.tmp"))


def same(a, b) -> bool:
    """Equal to the last bit, whatever the nesting."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


if __name__ == "__main__":
    sys.exit(main())
