"""Train the network: the paper's Algorithm 1. `python train.py --help` lists what can be set.

Everything random in a step comes from (seed, step), so a run that was stopped and resumed is, bit for bit,
the run that never stopped.
"""

import copy
import functools
import signal
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ddpm import UserError, mix_seed
from ddpm.data import Slices, folders, phantom
from ddpm.forward import draw_times, loss_simple, min_snr_weight
from ddpm.runtime import checkpoint, distributed
from ddpm.runtime.config import (
    CHANGEABLE,
    PRESETS,
    Config,
    given_flags,
    make_config,
    one_line_errors,
    pick_device,
    train_parser,
)
from ddpm.runtime.files import check_writable
from ddpm.runtime.run import GRID_IMAGES, GRID_STEPS, VALIDATION_IMAGES, Onlooker, Run
from ddpm.schedule import make_schedule


@one_line_errors
@distributed.in_each_process
def main(argv):
    started = time.perf_counter()
    config, resumed = distributed.from_rank_0(read_command_line, argv)
    device = pick_device(config.device)
    data, held_out = open_data(config)
    schedule, unet, ema, optimizer, step = build(config, resumed, data, device)
    planned = not config.steps
    if not resumed:
        config = plan(config, unet, schedule, data, device, started)
    elif step >= config.steps:
        print("nothing left to do; go on with a larger --steps")
        return
    run = (Onlooker if distributed.rank() else Run)(config, data, keep_until=step)

    last = False
    progress = tqdm(total=config.steps, initial=step, unit="step", dynamic_ncols=True, disable=None)
    with progress as bar, StopSignals() as stop:
        while not last:
            # Algorithm 1. Lines 2 to 4: x_0 ~ q(x_0), t ~ Uniform{1 .. T}, eps ~ N(0, I).
            torch.manual_seed(int(mix_seed(config.seed, step).generate_state(1)[0]))
            x_0, mask, contrast = draw_batch(data, config, step)
            t, eps = draw_times(len(x_0), schedule.T), torch.randn_like(x_0)

            # Line 5: a gradient step on || eps - eps_hat(x_t, t, mask) ||^2, in grad_accum parts.
            losses = torch.zeros(len(x_0), device=device)
            distributed.seed_dropout(config.seed, step)
            for part in distributed.share(torch.arange(len(x_0))).chunk(config.grad_accum):
                inputs = [None if x is None else x[part].to(device) for x in (mask, contrast)]
                with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                    loss = loss_simple(
                        schedule, unet, config.objective, x_0[part].to(device), t[part], eps[part].to(device), *inputs
                    )
                weight = loss_weight(schedule, config, t[part]).to(loss)
                (weight * loss).sum().div(len(x_0)).backward()  # a sum over len(x_0), so uneven parts count rightly
                losses[part] = loss.detach()
            distributed.add_up([losses, *(weights.grad for weights in unet.parameters())])

            grad_norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), config.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step)
            optimizer.step()
            optimizer.zero_grad()
            update_ema(ema, unet, min(config.ema_decay, (1 + step) / (10 + step)))
            step += 1

            last = step == config.steps or distributed.any_of(stop.name)
            run.record(step, t, losses, grad_norm, optimizer.param_groups[0]["lr"], bar, last)
            if step % config.sample_every == 0 or step == config.steps:
                run.validate(step, ema, schedule, held_out, device, bar)
            if config.evaluate_every and step % config.evaluate_every == 0:
                run.evaluate(step, ema, schedule, held_out, device, bar)
            if step % config.save_every == 0 or last:  # last of all, so that nothing logged up to here can be missing
                run.save(step, unet, ema, optimizer)
    run.finish(step, stop.name, (time.perf_counter() - started) / 60, planned)


def draw_batch(data: Slices, config: Config, step: int):
    """The images (B, C, H, W), masks (B, K, H, W) or None, and contrasts (B,) or None of a step, on the CPU.

    The data set is walked in an order drawn anew from (seed, epoch), across the ends of epochs, so the step
    alone says which images come. Masks are withheld (all zeros) and contrasts (0) per sample, independently.
    With --flip, half of the pairs are mirrored.
    """
    positions = np.arange(step * config.batch_size, (step + 1) * config.batch_size)
    chosen = [order(len(data), config.seed, p // len(data))[p % len(data)] for p in positions.tolist()]
    x_0, mask, contrast = data.tensors(chosen)
    if mask is not None:
        mask = mask * (torch.rand(len(chosen), 1, 1, 1) >= config.mask_drop)
    if contrast is not None:
        contrast = contrast * (torch.rand(len(chosen)) >= config.contrast_drop)
    if config.flip:
        mirrored = torch.rand(len(chosen), 1, 1, 1) < 0.5
        x_0, mask = (None if x is None else torch.where(mirrored, x.flip(-1), x) for x in (x_0, mask))
    return x_0, mask, contrast


@functools.lru_cache(maxsize=2)
def order(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng(mix_seed(seed, epoch)).permutation(n)


def loss_weight(schedule, config: Config, t: torch.Tensor) -> torch.Tensor:
    """The weight of each sample's loss, (B,): 1 as in the paper (Eq. 14), or min-SNR's."""
    if config.min_snr == 0:
        return torch.ones(len(t))
    return min_snr_weight(schedule, config.objective, t, config.min_snr)


def learning_rate(config: Config, step: int) -> float:
    """Linear warm-up, then a straight line to 0 at config.steps. It depends on nothing but the step, so a run
    resumed with more steps jumps to the line that leads to the new end."""
    warmup = min((step + 1) / max(config.warmup, 1), 1)
    return config.lr * warmup * (1 - step / config.steps)


def make_optimizer(unet, config: Config) -> torch.optim.Optimizer:
    fused = next(unet.parameters()).device.type in ("cpu", "cuda")
    return torch.optim.AdamW(unet.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=fused)


@torch.no_grad()
def update_ema(ema, unet, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * weights, over parameters only (the network has no buffers)."""
    torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1 - decay)


# ---------------------------------------------------------------------------------------------------------
# Before the loop: the command line, the data, and the plan


def read_command_line(argv) -> tuple[Config, dict | None]:
    """The configuration, and the checkpoint to go on from (or None). Raises UserError."""
    args = train_parser().parse_args(argv)
    given = given_flags(args)
    if args.resume:
        return resume(args, given)
    config = make_config(args.preset or "laptop", given)
    check_processes(config)
    if not config.out:
        config.out = f"results/{Path(config.data).name}-{time.strftime('%Y%m%d-%H%M%S')}"
    check_free(config.out)
    return config, None


def resume(args, given: dict) -> tuple[Config, dict]:
    """Read a run back. The flags may extend it (CHANGEABLE), but not contradict what it was trained with."""
    if given.get("steps") == 0:
        raise UserError("--steps 0: with --resume, give the number of steps to reach, or leave it out")
    place = Path(given.get("out") or "results") if args.resume == "latest" else Path(args.resume)
    path = checkpoint.newest(place) if place.suffix != ".pt" else place
    resumed = checkpoint.load(path)
    for started in place.glob("*/config.json"):
        if not any(started.parent.glob("checkpoints/*.pt")) and started.stat().st_mtime > path.stat().st_mtime:
            print(f"{started.parent} stopped before it saved a checkpoint, so this goes on with {path}")
    if path.parent.name != "checkpoints" and "out" not in given:
        raise UserError(f"--resume {path} does not lie in a run's checkpoints/; name a folder to go on in with --out")
    config = resumed["config"]
    wanted = {**PRESETS[args.preset or "laptop"], **given}
    for name, value in wanted.items():
        if name not in CHANGEABLE and value not in (getattr(config, name), "auto"):
            raise UserError(
                f"--{name.replace('_', '-')} {value} contradicts {path}, which was trained with "
                f"{getattr(config, name)}; leave it out, or start a new run without --resume"
            )
    config = replace(config, **{name: value for name, value in given.items() if name in CHANGEABLE})
    check_processes(config)
    config.out = str(path.parent.parent)
    if Path(given.get("out") or config.out).resolve() != Path(config.out).resolve():
        config.out = given["out"]  # a branch off the run, in a folder of its own
        check_free(config.out)
    return config, resumed


def check_processes(config: Config) -> None:
    if config.batch_size < distributed.size():
        raise UserError(
            f"--batch-size {config.batch_size} is for all {distributed.size()} processes together; give each an image at least"
        )


def check_free(out: str) -> None:
    if any(Path(out).glob("checkpoints/*.pt")):
        raise UserError(f"--out {out} already holds a run; go on with --resume, or name another folder")


def check_same_data(resumed: dict, data: Slices) -> None:
    for what, then, now in (
        ("classes", resumed["classes"], data.classes),
        ("contrasts", resumed["contrasts"], data.contrast_names),
    ):
        if list(then) != list(now):
            raise UserError(f"--resume: the run was trained with {what} {list(then)}, but this data has {list(now)}")


def open_data(config: Config) -> tuple[Slices, Slices]:
    """The training and the validation split, and a word on them. Raises UserError."""
    with distributed.rank_0_first():
        data, held_out = load_data(config, "train"), load_data(config, "val")
    check_writable(config.out)
    if data.index:
        print(folders.table(data, held_out))
    print(
        f"{config.out}: {len(data)} training and {len(held_out)} validation images of "
        f"{config.image_size[0]}x{config.image_size[1]}, classes {', '.join(data.classes) or 'none'}"
    )
    return data, held_out


def load_data(config: Config, split: str) -> Slices:
    """The phantom (rendered once, then cached), or a folder. Raises UserError."""
    size = tuple(config.image_size)
    if config.data != "phantom":
        return folders.load(
            config.data,
            config.masks,
            split,
            size,
            config.num_classes,
            unmasked=config.labels == "none",
            subject_pattern=config.subject_pattern,
            skip_bad=config.skip_bad,
            channels=config.image_channels,
            seed=config.seed,
        )
    try:
        pixels, tissue, contrasts = phantom.load(split, size)
    except ValueError as error:
        raise UserError(f"--image-size: {error}") from None
    names = phantom.CONTRASTS
    if config.contrast != "all":
        chosen = contrasts == names.index(config.contrast)
        names = (config.contrast,)
        pixels, tissue, contrasts = pixels[chosen], tissue[chosen], np.zeros(chosen.sum(), dtype=np.int64)
    if config.labels == "none":
        return Slices(pixels, None, contrasts, (), names)
    labels = phantom.to_label_set(tissue, config.labels)
    return Slices(pixels, labels, contrasts, phantom.CLASSES[config.labels], names)


def build(config: Config, resumed: dict | None, data: Slices, device):
    """The schedule, the network, its averaged copy, the optimiser and the steps taken: fresh, or from a checkpoint."""
    torch.manual_seed(config.seed)
    schedule = make_schedule(config.schedule, config.timesteps, config.zero_terminal_snr)
    unet = checkpoint.make_unet(config, data.classes, data.contrast_names).to(device)
    ema = copy.deepcopy(unet).eval().requires_grad_(False)
    optimizer = make_optimizer(unet, config)
    if not resumed:
        return schedule, unet, ema, optimizer, 0
    check_same_data(resumed, data)
    unet.load_state_dict(resumed["model"])
    ema.load_state_dict(resumed["ema"])
    optimizer.load_state_dict(resumed["opt"])
    print(f"resumed at step {resumed['step']} of {config.steps}")
    return schedule, unet, ema, optimizer, resumed["step"]


def plan(config: Config, unet, schedule, data: Slices, device, started: float) -> Config:
    """Decide, by a few discarded steps, the precision and how many steps fit --minutes. Decided once: the
    answer is written to the run's config and its checkpoints, and `--resume` reads it back."""
    scratch, average = copy.deepcopy(unet), copy.deepcopy(unet)
    # Images at a time: more might not fit into memory.
    part = -(-config.batch_size // (config.grad_accum * distributed.size()))

    def seconds(precision: str, batch_size: int) -> float:
        """A step's time: the median of a few after the first, or the first alone if it takes over 3 s."""
        trial, times = replace(config, batch_size=batch_size), []
        optimizer = make_optimizer(scratch, replace(config, lr=0.0))
        while distributed.from_rank_0(lambda: len(times) < 6 and sum(times) < 3):
            begun = time.perf_counter()
            x_0, mask, contrast = draw_batch(data, trial, 0)
            inputs = [None if x is None else x.to(device) for x in (mask, contrast)]
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                t = draw_times(batch_size, schedule.T)
                loss = loss_simple(
                    schedule, scratch, config.objective, x_0.to(device), t, torch.randn_like(x_0).to(device), *inputs
                )
            loss.mean().backward()
            distributed.add_up(weights.grad for weights in scratch.parameters())
            torch.nn.utils.clip_grad_norm_(scratch.parameters(), config.clip)
            optimizer.step()
            optimizer.zero_grad()
            update_ema(average, scratch, 0.5)
            loss.mean().item()  # waits for a GPU
            times.append(time.perf_counter() - begun)
        return distributed.from_rank_0(lambda: statistics.median(times[1:] or times))

    chosen, note = config.precision, ""
    if chosen == "auto" and device.type == "mps":
        chosen = "fp32"
    elif chosen == "auto":
        # Two images first: where the processor has no bf16 it can be a hundred times slower.
        fp32, bf16 = seconds("fp32", 2), seconds("bf16", 2)
        full_size = bf16 < 2 * fp32
        if full_size:
            fp32, bf16 = seconds("fp32", part), seconds("bf16", part)
        chosen = "bf16" if bf16 < 0.9 * fp32 else "fp32"
        note = f" (a step of {part if full_size else 2} images: {fp32:.2f} s in fp32, {bf16:.2f} s in bf16)"
    print(f"precision {chosen}{note}")
    config = replace(config, precision=chosen)

    if config.steps == 0:
        step = seconds(chosen, part) * config.grad_accum
        # A forward pass takes about a third of a step; validation and the sample grid (two, with guidance) are forward passes.
        extra = (VALIDATION_IMAGES + 2 * GRID_IMAGES * GRID_STEPS) / (config.batch_size / distributed.size()) * step / 3
        left = 60 * config.minutes - distributed.from_rank_0(lambda: time.perf_counter() - started)
        config.steps = max(1, int((left - extra) / (step + extra / config.sample_every)))
        print(f"plan: {config.steps} steps of {step:.2f} s fill {config.minutes:g} minutes")
    return config


class StopSignals:
    """Within it, SIGINT or SIGTERM only sets `name`: the loop ends after the step at hand. A second one kills."""

    def __enter__(self):
        self.name = ""
        self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def note(self, number, frame):
        self.name = signal.Signals(number).name
        signal.signal(number, self.before[number])

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    sys.exit(main())
