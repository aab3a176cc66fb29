"""What a training run leaves behind: results/RUN/{config.json, log.jsonl, samples/*.png, checkpoints/*.pt}."""

import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from ddpm import UserError
from ddpm.data import Slices
from ddpm.data.images import colour_labels, grid, rgb, to_uint8, write_png
from ddpm.evaluation.questions import draw, obedience_rows
from ddpm.forward import loss_simple
from ddpm.metrics.features import extract, segmenter_features
from ddpm.metrics.kid import kid
from ddpm.metrics.segmenter import load_segmenter
from ddpm.reverse import denoiser, trajectory, usual_guidance
from ddpm.runtime import checkpoint
from ddpm.runtime.config import Config
from ddpm.runtime.files import write_whole

try:
    import resource
except ImportError:  # Windows
    resource = None

VALIDATION_IMAGES = 256
GRID_ROWS, GRID_SAMPLES, GRID_STEPS = 6, 4, 10
GRID_IMAGES = GRID_ROWS * GRID_SAMPLES
EVALUATION_IMAGES = 100
LOOKED_AT = 2000  # held-out images among which those of the grid are chosen: a set may be larger than memory


class Run:
    """The folder of a run: its log, its sample grids, its checkpoints."""

    def __init__(self, config: Config, data: Slices, keep_until: int):
        self.config, self.data, self.folder = config, data, Path(config.out)
        for name in ("samples", "checkpoints"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
            for left_over in (self.folder / name).glob("*.tmp"):  # by a process that was killed while it wrote
                left_over.unlink()
        write_text(self.folder / "config.json", json.dumps(asdict(config), indent=2) + "\n")
        self.log_path = self.folder / "log.jsonl"
        if self.log_path.exists():  # what was logged after the checkpoint will be logged again
            lines = [line for line in self.log_path.read_text().splitlines() if step_of(line) <= keep_until]
            write_text(self.log_path, "".join(line + "\n" for line in lines))
        self.window, self.window_began = [], time.perf_counter()
        self.guidance = usual_guidance(bool(data.classes), config.mask_drop)

    def record(self, step, t, losses, grad_norm, lr, bar, last) -> None:
        """Keep a step's figures; every log_every steps, average them into a line of log.jsonl.

        Also before each save, so that weights are never saved after a loss that was not finite: UserError.
        """
        self.window.append((t, losses, grad_norm))
        bar.update()
        if step % self.config.log_every and step % self.config.save_every and not last:
            return
        t, losses, grad_norms = (
            torch.cat([torch.atleast_1d(x).cpu() for x in column]) for column in zip(*self.window, strict=True)
        )
        if not (losses.isfinite().all() and grad_norms.isfinite().all()):
            raise UserError(
                f"{self.folder}: the loss is no longer finite near step {step}; checkpoints before it are whole; "
                "start again with a lower --lr, or with --precision fp32"
            )
        seconds = time.perf_counter() - self.window_began
        quarter = (t - 1) * 4 // self.config.timesteps
        line = {"step": step, "loss": losses.mean().item()}
        for q in range(4):
            if (quarter == q).any():
                line[f"loss_q{q + 1}"] = losses[quarter == q].mean().item()
        line |= {
            "grad_norm": grad_norms.mean().item(),
            "lr": lr,
            "images_per_second": len(losses) / seconds,
            "memory_gb": peak_memory_gb(),
        }
        self.write(line)
        bar.set_postfix_str(
            f"loss {line['loss']:.4f} grad {line['grad_norm']:.2f} lr {lr:.1e} "
            f"{line['images_per_second']:.0f} img/s mem {line['memory_gb']:.1f}G"
        )
        self.window, self.window_began = [], time.perf_counter()

    def write(self, line: dict) -> None:
        with open(self.log_path, "a") as log:
            log.write(
                json.dumps({key: float(f"{x:.6g}") if isinstance(x, float) else x for key, x in line.items()}) + "\n"
            )

    @torch.no_grad()
    def validate(self, step, ema, schedule, held_out: Slices, device, bar) -> None:
        """The averaged weights' loss on held-out images, with the same times and noise every time, and a sample grid."""
        config, begun = self.config, time.perf_counter()
        generator = torch.Generator().manual_seed(0)
        total, count = 0.0, min(VALIDATION_IMAGES, len(held_out))
        t = torch.linspace(1, schedule.T, count).round().long()
        for part in torch.arange(count).split(config.batch_size):
            x_0, mask, contrast = held_out.tensors(part.numpy())
            eps = torch.randn(x_0.shape, generator=generator)
            inputs = [None if x is None else x.to(device) for x in (mask, contrast)]
            with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                losses = loss_simple(schedule, ema, config.objective, x_0.to(device), t[part], eps.to(device), *inputs)
            total += losses.sum().item()
        self.write({"step": step, "val_loss": total / count})
        bar.write(f"step {step}: validation loss {total / count:.4f}")
        self.sample_grid(step, ema, schedule, held_out, device)
        self.window_began += time.perf_counter() - begun  # images/s is of training alone

    def sample_grid(self, step, ema, schedule, held_out: Slices, device) -> None:
        """samples/step_N.png, a row for each of a few held-out masks: mask | real | samples. Same noise every time."""
        rows = pick_rows(held_out)
        x_0, mask, contrast = held_out.tensors(rows)
        many = [None if x is None else x.repeat_interleave(GRID_SAMPLES, 0).to(device) for x in (mask, contrast)]
        predict_x_0 = denoiser(ema, schedule, self.config.objective, *many, guidance=self.guidance)
        x_T = torch.randn(len(rows) * GRID_SAMPLES, *x_0.shape[1:], generator=torch.Generator().manual_seed(0))
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            steps = trajectory("dpm-solver", predict_x_0, schedule, x_T.to(device), None, min(GRID_STEPS, schedule.T))
            *_, sample = steps
        cells = to_uint8(sample).reshape(len(rows), GRID_SAMPLES, *x_0.shape[1:])
        cells = rgb(np.concatenate([to_uint8(x_0)[:, None], cells], axis=1))
        if mask is not None:
            shown = colour_labels(held_out.labels[rows], len(held_out.classes))
            cells = np.concatenate([shown[:, None], cells], axis=1)
        write_png(self.folder / "samples" / f"step_{step:06d}.png", grid(cells))

    @torch.no_grad()
    def evaluate(self, step, ema, schedule, held_out: Slices, device, bar) -> None:
        """A small evaluate.py: KID of samples for a few held-out masks to the other held-out images, in the features of
        the embedded data's judge; on that data also whether they obey (Dice of the lesion, contrast)."""
        config, begun = self.config, time.perf_counter()
        chosen, others = np.split(np.arange(len(held_out)), [min(EVALUATION_IMAGES, len(held_out) // 2)])
        how = SimpleNamespace(
            sampler="dpm-solver",
            sample_steps=min(GRID_STEPS, schedule.T),
            guidance=self.guidance,
            precision=config.precision,
        )
        samples = draw(ema, schedule, config, held_out, chosen, how, 0, device, GRID_IMAGES)
        judge = load_segmenter()
        verdict = judge.judge(samples)
        extractor = segmenter_features(judge, "of the embedded data")
        real = extract(extractor, held_out.images[others], keep=True)  # the same every time
        mean, std = kid(verdict.features, real, subset_size=len(chosen))
        line = {"step": step, "kid": mean, "kid_std": std, "evaluated": len(chosen)}
        if config.data == "phantom":
            asked = held_out.part(chosen)
            for row in obedience_rows(verdict, judge.judge(asked.images), judge, asked):
                line |= {row.metric: row.samples, f"{row.metric}, real": row.real}
        self.write(line)
        bar.write(f"step {step}: " + ", ".join(f"{key} {value:.3g}" for key, value in line.items() if key != "step"))
        self.window_began += time.perf_counter() - begun

    def save(self, step, unet, ema, optimizer) -> None:
        try:
            checkpoint.save(
                self.folder / "checkpoints" / f"step_{step:06d}.pt",
                config=asdict(self.config),
                classes=list(self.data.classes),
                contrasts=list(self.data.contrast_names),
                step=step,
                model=unet.state_dict(),
                ema=ema.state_dict(),
                opt=optimizer.state_dict(),
            )
        except OSError as error:
            raise UserError(
                f"{self.folder}/checkpoints: step {step} could not be saved ({error.strerror}); "
                "older checkpoints are whole; make room and --resume"
            ) from None
        self.remove_old(step)

    def remove_old(self, step: int) -> None:
        """Of the checkpoints up to this step, keep the newest few and the best. (Later ones are damaged, or of a run
        that someone went back in: they are left alone, and each is overwritten when its step comes.)"""
        saved = self.saved_until(step)
        for kept in sorted(saved)[-self.config.keep :]:
            saved.pop(kept)
        saved.pop(self.best_until(step), None)
        for path in saved.values():
            path.unlink()

    def saved_until(self, step: int) -> dict[int, Path]:
        """Step -> checkpoint."""
        paths = [path for path in (self.folder / "checkpoints").glob("step_*.pt") if path.stem[5:].isdigit()]
        return {int(path.stem[5:]): path for path in paths if int(path.stem[5:]) <= step}

    def best_until(self, step: int) -> int | None:
        """The step, among those with a checkpoint, with the lowest validation loss in the log; None if none has one."""
        lines = map(json.loads, self.log_path.read_text().splitlines())
        losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
        return min(losses.keys() & self.saved_until(step), key=losses.get, default=None)

    def finish(self, step: int, stopped_by: str, minutes: float, planned: bool) -> None:
        total = self.config.steps
        if step < total:
            print(
                f"stopped by {stopped_by or 'a signal'}, saved at step {step} of {total}; go on with --resume {self.folder}"
            )
            return
        missed = f" (planned {self.config.minutes:g}, {minutes / self.config.minutes - 1:+.0%})" if planned else ""
        print(f"done: step {step} after {minutes:.1f} minutes{missed}")
        if (best := self.best_until(step)) not in (None, step):
            print(f"lowest validation loss: {self.saved_until(step)[best]}")
        python = os.path.relpath(sys.executable) if ".venv" in sys.executable else "python"
        mask = " --mask" * bool(self.data.classes) + " PATH" * (
            self.config.data != "phantom" and bool(self.data.classes)
        )
        print(f"samples: {self.folder}/samples; next: {python} sample.py{mask}")


class Onlooker:
    """Stands for a Run in all processes but the first: that one alone writes."""

    def __init__(self, config: Config, data: Slices, keep_until: int):
        self.record = self.validate = self.evaluate = self.save = self.finish = lambda *figures: None


def write_text(path: Path, text: str) -> None:
    write_whole(path, lambda file: file.write(text.encode()))


def step_of(line: str) -> float:
    """The step of a line of log.jsonl; infinite for a line that was cut off in the middle."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return math.inf


def pick_rows(held_out: Slices) -> list[int]:
    """The first few held-out images that have something on their mask, the contrasts in turn."""
    wanted = np.arange(min(len(held_out), LOOKED_AT))
    if held_out.labels is not None:
        marked = (held_out.labels[wanted] == len(held_out.classes) - 1).any(axis=(1, 2))
        wanted = np.concatenate([wanted[marked], wanted[~marked]])
    if held_out.contrasts is None:
        return wanted[:GRID_ROWS].tolist()
    kinds = [wanted[held_out.contrasts[wanted] == kind] for kind in np.unique(held_out.contrasts)]
    in_turn = [kind[i] for i in range(GRID_ROWS) for kind in kinds if i < len(kind)]
    return sorted(in_turn[:GRID_ROWS], key=lambda i: held_out.contrasts[i])


def peak_memory_gb() -> float:
    """The most memory used so far: of the GPU if there is one, else of this process (0 where it cannot be told)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    if resource is None:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
