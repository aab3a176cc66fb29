"""A trial: one training and its evaluation, on one thread each, done once.

What is done is not done again, and what was stopped is gone on with: so a bench that is started again goes on.
"""

import json
import os
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from ddpm import UserError
from ddpm.runtime.command_line import given_fields, train_parser
from ddpm.runtime.config import flag, make_config
from ddpm.runtime.start import checkpoint_of

DECIDED = {"steps", "minutes", "precision", "threads", "device", "out"}  # by the machine, or by the trial
ROOT = Path(__file__).resolve().parents[1]


def judged(place: Path, flags: list[str], n: int, metrics: tuple[str, ...]) -> dict:
    """Train with these flags of train.py in the folder `place` and ask for these metrics of evaluate.py on n samples
    for validation images (a trial is there to choose by), as far as that is not done. The figures: steps, validation loss,
    and the samples' value of each row of the report.

    Raises UserError, which names the log, if either fails or was stopped.
    """
    run = place / "run"
    check_same(run, flags)
    if not finished(run):
        saved = any(run.glob("checkpoints/*.pt"))
        start = ["--resume", str(run)] if saved else [*flags, "--out", str(run)]
        call("train.py", *start, "--threads", "1", log=place / "train.log")
        if not finished(run):
            raise UserError(f"{run}: stopped before its end; the same command goes on")
    report = place / f"evaluation-val-{n}" / "report.json"
    if not report.exists():
        asked = ["--ckpt", str(run), "--n", str(n), "--metrics", *metrics, "--split", "val"]
        call("evaluate.py", *asked, "--out", str(report.parent), log=place / "evaluate.log")
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    losses = [line["val_loss"] for line in lines if "val_loss" in line]
    figures = {row["metric"]: row["samples"] for row in json.loads(report.read_text())["rows"]}
    return {"steps": lines[-1]["step"], "validation loss": losses[-1], **figures}


def check_same(run: Path, flags: list[str]) -> None:
    """Raises UserError if what is there was trained otherwise: flags leave to the defaults what they do not name."""
    if not (run / "config.json").exists():
        return
    there = json.loads((run / "config.json").read_text())
    args = train_parser().parse_args(flags)
    config = make_config(args.preset or "laptop", given_fields(args))
    # As train.py wrote them down.
    config.teacher, config.reference = checkpoint_of(config.teacher), checkpoint_of(config.reference)
    wanted = asdict(config)
    for name in wanted.keys() - DECIDED:
        if there.get(name) != wanted[name]:
            found = f"{flag(name)} {there.get(name)}, and now it is {wanted[name]}"
            raise UserError(f"{run}: trained with {found}; remove it, or name another --out")


def finished(run: Path) -> bool:
    """Is the run's last checkpoint that of its last step? (The log may be further than what was saved.)"""
    config = run / "config.json"
    if not config.exists():
        return False
    steps = json.loads(config.read_text())["steps"]
    return (run / "checkpoints" / f"step_{steps:06d}.pt").exists()


def call(script: str, *flags: str, log: Path) -> None:
    """Run a script of this project; the command and what it says go to the end of the log. UserError if it fails."""
    command = [sys.executable, str(ROOT / script), *flags]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:
        print(shlex.join(command), file=file, flush=True)
        done = subprocess.run(command, stdout=file, stderr=file, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
    if done.returncode:
        raise UserError(f"{script}: exit status {done.returncode}, see {log}")
