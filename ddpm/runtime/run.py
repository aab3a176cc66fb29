"""What a training run leaves behind: results/RUN/{config.json, log.jsonl, samples/*.png, checkpoints/*.pt}, and tensorboard/
if that is asked for."""

import itertools
import json
import math
import os
import shlex
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from ddpm import UserError
from ddpm.data import Slices
from ddpm.data.images import colour_labels, grid, rgb, to_uint8, write_png
from ddpm.distillation import distillation_loss
from ddpm.forward import denoising_loss
from ddpm.model import Model, Sampling, draw
from ddpm.runtime import checkpoint
from ddpm.runtime.files import hold, remove_left_overs, write_whole
from ddpm.training import Step, Training, order

try:
    import resource
except ImportError:  # Windows
    resource = None

VALIDATION_IMAGES, VALIDATION_WALKS = 256, 32
GRID_ROWS, GRID_SAMPLES = 6, 4
GRID_IMAGES = GRID_ROWS * GRID_SAMPLES
LOOKED_AT = 2000  # held-out images among which those of the grid are chosen: a set may be larger than memory


class Run:
    """The folder of a run: its log, its sample grids, its checkpoints."""

    def __init__(self, training: Training, held_out: Slices, step: int):
        """step: how many were taken; what the folder holds of later ones belongs to a run that went on from there."""
        self.training, self.config, self.held_out = training, training.config, held_out
        self.folder = Path(self.config.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = hold(self.folder)  # before anything there is touched: two in one folder would mix their files
        for name in ("samples", "checkpoints"):
            (self.folder / name).mkdir(exist_ok=True)
            remove_left_overs(self.folder / name, days=0)
        self.log_path = self.folder / "log.jsonl"
        self.set_aside_after(step)
        write_text(self.folder / "config.json", json.dumps(asdict(self.config), indent=2) + "\n")
        if self.log_path.exists():  # what was logged after the checkpoint will be logged again
            lines = [line for line in self.log_path.read_text().splitlines() if step_of(line) <= step]
            write_text(self.log_path, "".join(line + "\n" for line in lines))
        self.board = None
        if self.config.tensorboard:  # as with the log: it hides what it was told of later steps
            self.board = summary_writer()(str(self.folder / "tensorboard"), purge_step=step + 1)
        self.window, self.window_began = [], time.perf_counter()

    def close(self) -> None:
        """Let others write to the folder; at the latest it happens when this process ends."""
        self.lock.close()

    def set_aside_after(self, step: int) -> None:
        """Move checkpoints of later steps out of the way: from here on another branch is trained, and the newest
        checkpoint must be one of its own, also if it is stopped before it gets as far as they did."""
        later = [path for n, path in self.saved().items() if n > step]
        if not later:
            return
        grids = (self.folder / "samples").glob("step_*.png")
        grids = [path for path in grids if path.stem[5:].isdigit() and int(path.stem[5:]) > step]
        places = (self.folder / "checkpoints" / f"abandoned-{n}" for n in itertools.count(1))
        place = next(place for place in places if not place.exists())  # what was abandoned before stays, too
        place.mkdir()
        if self.log_path.exists():
            shutil.copy(self.log_path, place)
        for path in (*later, *grids):
            os.replace(path, place / path.name)
        print(f"{len(later)} checkpoint(s) of steps after {step} moved to {place}, with a copy of the log")

    def record(self, step: int, figures: Step, bar, last: bool) -> None:
        """Keep a step's figures; every log_every steps, average them into a line of log.jsonl.

        Also before each save, so that weights are never saved that are not finite, or after a loss that was not: UserError.
        """
        self.window.append(figures)
        bar.update()
        if step % self.config.log_every and step % self.config.save_every and not last:
            return
        figures = [[torch.atleast_1d(x).cpu() for x in column] for column in zip(*self.window, strict=True)]
        t, losses, grad_norms = (torch.cat([x.flatten() for x in column]) for column in figures)
        weights = self.training.unet.parameters()
        if not (losses.isfinite().all() and grad_norms.isfinite().all() and all(w.isfinite().all() for w in weights)):
            found = f"the loss is no longer finite near step {step}"
            found += "; checkpoints before it are whole" * bool(self.saved())
            raise UserError(f"{self.folder}: {found}; start again with a lower --lr, or with --precision fp32")
        seconds, images = time.perf_counter() - self.window_began, sum(step.losses.shape[-1] for step in self.window)
        quarter = (t - 1) * 4 // self.config.timesteps
        quarters = {f"loss_q{q + 1}": losses[quarter == q].mean().item() for q in quarter.unique().tolist()}
        line = {
            "step": step,
            "loss": losses.mean().item(),
            **quarters,
            "grad_norm": grad_norms.mean().item(),
            "lr": self.training.optimizers[0].param_groups[0]["lr"],
            "images_per_second": images / seconds,
            "memory_gb": peak_memory_gb(self.training.device),
        }
        self.write(line)
        shown = "loss {loss:.4f} grad {grad_norm:.2f} lr {lr:.1e} {images_per_second:.0f} img/s mem {memory_gb:.1f}G"
        bar.set_postfix_str(shown.format(**line), refresh=False)  # with the next update, if one is due
        self.window, self.window_began = [], time.perf_counter()

    def write(self, line: dict) -> None:
        rounded = {key: float(f"{x:.6g}") if isinstance(x, float) else x for key, x in line.items()}
        with open(self.log_path, "a") as log:
            log.write(json.dumps(rounded) + "\n")
        if self.board:
            for key in line.keys() - {"step"}:
                self.board.add_scalar(key, rounded[key], line["step"])

    @torch.no_grad()
    def validate(self, step: int, bar) -> None:
        """The averaged weights' loss on held-out images, with the same times and noise every time, and a sample grid. As
        many at once as in training; of a folder, whose slices lie subject by subject, in a random order of all."""
        training, config, begun = self.training, self.config, time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        total, count = 0.0, min(VALIDATION_WALKS if training.teacher else VALIDATION_IMAGES, len(self.held_out))
        t = torch.linspace(1, training.schedule.T, count).round().long()
        if few := config.few_times[:-1]:
            t = torch.tensor(few)[torch.arange(count) % len(few)]
        rows = np.arange(count) if self.held_out.index is None else order(len(self.held_out), 0, 0)[:count]
        for part in torch.arange(count).split(at_once(config)):
            x_0, condition = self.held_out.batch(rows[part.numpy()])
            eps = torch.randn(x_0.shape, generator=generator)
            x_0, eps, condition = (x.to(training.device) for x in (x_0, eps, condition))
            with torch.autocast(training.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                if training.teacher:
                    losses = distillation_loss(training.ema, training.teacher, config, condition, part.tolist()).mean(0)
                else:
                    losses = denoising_loss(
                        training.schedule, training.ema, config.objective, x_0, t[part], eps, condition
                    )
            total += losses.sum().item()
        self.write({"step": step, "val_loss": total / count})
        bar.write(f"step {step}: validation loss {total / count:.4f}")
        self.sample_grid(step)
        self.window_began += time.perf_counter() - begun  # images/s is of training alone

    def averaged(self, step: int) -> Model:
        """The model that the averaged weights are by now."""
        schedule, ema = self.training.schedule, self.training.ema
        return Model(self.config, self.held_out.vocabulary, schedule, ema, str(self.folder), step)

    def sample_grid(self, step: int) -> None:
        """samples/step_N.png."""
        picture = sample_grid(self.averaged(step), self.held_out, Sampling(precision=self.config.precision))
        write_png(self.folder / "samples" / f"step_{step:06d}.png", picture)
        if self.board:
            self.board.add_image("samples", picture, step, dataformats="HWC")

    def evaluate(self, step: int, bar) -> None:
        """A small evaluate.py, as a line of the log."""
        from ddpm.evaluation.small import small_evaluation  # only here: a run that asks nothing loads no metrics

        begun = time.perf_counter()
        line = {"step": step, **small_evaluation(self.averaged(step), self.held_out)}
        self.write(line)
        bar.write(f"step {step}: " + ", ".join(f"{key} {value:.3g}" for key, value in line.items() if key != "step"))
        self.window_began += time.perf_counter() - begun

    def save(self, step: int) -> None:
        if self.board:
            self.board.flush()  # it writes behind our back; what was logged before a checkpoint must be there
        states = {"model": self.training.unet.state_dict(), "ema": self.training.ema.state_dict()}
        states["opt"] = [optimizer.state_dict() for optimizer in self.training.optimizers]
        states["trained_on"] = self.training.trained_on
        conditions = checkpoint.description(self.held_out.vocabulary)
        path = self.folder / "checkpoints" / f"step_{step:06d}.pt"
        try:
            checkpoint.save(path, config=asdict(self.config), conditions=conditions, step=step, **states)
        except OSError as error:
            whole = "older checkpoints are whole; make room and --resume"
            remedy = whole if self.saved() else "make room and start again"
            found = f"step {step} could not be saved ({error.strerror})"
            raise UserError(f"{self.folder}/checkpoints: {found}; {remedy}") from None
        self.remove_old()

    def remove_old(self) -> None:
        """Keep the newest few checkpoints and the best one."""
        saved = self.saved()
        for kept in sorted(saved)[-self.config.keep :]:
            saved.pop(kept)
        saved.pop(self.best(), None)
        for path in saved.values():
            path.unlink()

    def saved(self) -> dict[int, Path]:
        """Step -> checkpoint."""
        paths = (self.folder / "checkpoints").glob("step_*.pt")
        return {int(path.stem[5:]): path for path in paths if path.stem[5:].isdigit()}

    def best(self) -> int | None:
        """The step, among those with a checkpoint, with the lowest validation loss in the log; None if none has one."""
        lines = map(json.loads, self.log_path.read_text().splitlines())
        losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
        return min(losses.keys() & self.saved(), key=losses.get, default=None)

    def finish(self, step: int, stopped_by: str, minutes: float, planned: bool) -> None:
        total, folder = self.config.steps, shlex.quote(str(self.folder))
        if self.board:
            self.board.close()
        if step < total:
            stopped = f"stopped by {stopped_by or 'a signal'}, saved at step {step} of {total}"
            print(f"{stopped}; go on with --resume {folder}")
            return
        missed = f" (planned {self.config.minutes:g}, {minutes / self.config.minutes - 1:+.0%})" if planned else ""
        print(f"done: step {step} after {minutes:.1f} minutes{missed}")
        if (best := self.best()) not in (None, step):
            print(f"lowest validation loss: {self.saved()[best]}")
        python = sys.executable.removeprefix(os.getcwd() + os.sep) if ".venv" in sys.executable else "python"
        python = shlex.quote(python)
        masked = bool(self.held_out.classes)
        asks = " --mask" * masked + " PATH" * (masked and self.config.data != "phantom")
        must_have_mask = masked and not (self.config.segment or self.config.withholds("mask"))
        if self.held_out.source is not None:
            asks = asks * must_have_mask + " --source PATH"
        elif self.config.words:
            asks = asks * must_have_mask + " --prompt TEXT"
        newest = self.folder.resolve().parent == Path("results").resolve()
        print(f"samples: {self.folder}/samples; next: {python} sample.py{asks}{'' if newest else f' --ckpt {folder}'}")


class Onlooker:
    """Stands for a Run in all processes but the first: that one alone writes."""

    def __init__(self, training: Training, held_out: Slices, step: int):
        self.record = self.validate = self.evaluate = self.save = self.finish = self.close = lambda *figures: None


def summary_writer():
    """TensorBoard's SummaryWriter. Raises UserError, with the command that installs it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        remedy = "run: pip install -r requirements/tensorboard.txt, or leave it out"
        raise UserError(f"--tensorboard: tensorboard is not installed; {remedy}") from None
    return SummaryWriter


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))


def step_of(line: str) -> float:
    """The step of a line of log.jsonl; infinite for a line that was cut off in the middle."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def sample_grid(model: Model, held_out: Slices, how: Sampling) -> np.ndarray:
    """A row for each of a few held-out masks: mask | real | samples. (H, W, 3) uint8. Same noise every time."""
    rows = pick_rows(held_out)
    condition = held_out.condition(np.repeat(rows, GRID_SAMPLES))
    samples = []
    for part in torch.arange(GRID_SAMPLES * len(rows)).split(at_once(model.config)):
        *_, (_, x_0) = draw(model, condition[part], part.tolist(), how)
        samples.append(to_uint8(x_0))
    samples = np.concatenate(samples)
    cells = samples.reshape(len(rows), GRID_SAMPLES, *samples.shape[1:])
    cells = rgb(np.concatenate([held_out.images[rows][:, None], cells], axis=1))
    if held_out.masks is not None:
        shown = colour_labels(held_out.masks[rows], len(held_out.classes))
        cells = np.concatenate([shown[:, None], cells], axis=1)
    return grid(cells)


def at_once(config) -> int:
    """Images that a training works on at once: what fits then fits later."""
    return -(-config.batch_size // config.grad_accum)


def pick_rows(held_out: Slices) -> list[int]:
    """The first few held-out images that have something on their mask, the contrasts in turn."""
    wanted = np.arange(min(len(held_out), LOOKED_AT))
    if held_out.masks is not None:
        marked = (held_out.masks[wanted] == len(held_out.classes) - 1).any(axis=(1, 2))
        wanted = np.concatenate([wanted[marked], wanted[~marked]])
    contrasts = held_out.labels.get("contrast")
    if contrasts is None:
        return wanted[:GRID_ROWS].tolist()
    kinds = [wanted[contrasts[wanted] == kind] for kind in np.unique(contrasts)]
    in_turn = [kind[i] for i in range(GRID_ROWS) for kind in kinds if i < len(kind)]
    return sorted(in_turn[:GRID_ROWS], key=lambda i: contrasts[i])


def peak_memory_gb(device: torch.device) -> float:
    """The most memory used so far: of the GPU if that is the device, else of this process (0 where it cannot be told)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 1e9
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
