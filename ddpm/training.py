"""Training: the paper's Algorithm 1, one step at a time.

All that is random in a step comes from (seed, step). All of it but dropout is drawn for the whole batch, on the CPU, also
where several processes share the work (runtime/distributed.py): so a run that was stopped and resumed is, bit for bit,
the run that never stopped.
"""

import copy
import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm.conditions import Condition, Vocabulary
from ddpm.data import Slices
from ddpm.distillation import distillation_loss
from ddpm.forward import denoising_loss, draw_times, loss_weight
from ddpm.model import Model, make_unet
from ddpm.muon import Muon
from ddpm.refinement import LOOKS, discriminative_loss
from ddpm.runtime import distributed
from ddpm.runtime.config import Config
from ddpm.schedule import Schedule
from ddpm.seeds import generator, torch_seed
from ddpm.unet import UNet

# --muon-decay is that of a training of so many steps, others have more (up to 1) or less a step: decay makes weights an
# average over the last 1 / (lr decay) steps, which should be the same share of any training (Wang & Aitchison 2024,
# arXiv:2405.13698).
DECAY_OF = 3000


@dataclass
class Training:
    """What a training is made of. A step changes the network, its average and the optimiser."""

    config: Config
    schedule: Schedule
    unet: UNet
    ema: UNet  # its weights are a running average of the network's
    optimizers: list[torch.optim.Optimizer]  # AdamW, and Muon where it has weights of its own
    device: torch.device
    teacher: Model | None = None  # whose walks are learnt, if it is a distillation
    reference: Model | None = None  # whose images are told from real ones, if it is a refinement
    trained_on: str = ""  # stands for the images (folders.contents)


def make_training(config: Config, vocabulary: Vocabulary, device: torch.device) -> Training:
    """A training before its first step, the weights drawn from config.seed."""
    torch.manual_seed(config.seed)
    unet = make_unet(config, vocabulary).to(device)
    ema = copy.deepcopy(unet).eval().requires_grad_(False)
    if config.compile:
        unet.compile()
    schedule = config.make_schedule()
    return Training(config, schedule, unet, ema, make_optimizers(unet, config), device)


def make_optimizers(unet: UNet, config: Config) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions inside the network; AdamW for all else: the first and last one, norms, biases, the
    layers of time, labels and words. With --muon-lr 0, AdamW for all. Their rates and decays are set anew in each step."""
    inner: dict[torch.nn.Parameter, int] = {}  # weight -> the matrices it holds
    for name, layer in unet.named_modules() if config.muon_lr else ():
        if isinstance(layer, torch.nn.Conv2d) and layer not in (unet.conv_in, unet.conv_out):
            inner[layer.weight] = 3 if name.endswith("qkv") else 1
    rest = [parameter for parameter in unet.parameters() if parameter not in inner]
    fused = rest[0].device.type in ("cpu", "cuda")
    optimizers = [torch.optim.AdamW(rest, lr=config.lr, fused=fused)]
    if inner:
        groups = [{"params": [weight], "parts": parts} for weight, parts in inner.items()]
        optimizers.append(Muon(groups, lr=config.muon_lr))
    return optimizers


class Step(NamedTuple):
    """What a step tells of itself."""

    t: Tensor  # (B,) the times; (N, B) in a distillation into N steps, or with N looks at a pair
    losses: Tensor  # each sample's loss, without the weight of its t; shaped like t
    grad_norm: Tensor  # () before clipping


def training_step(training: Training, data: Slices, step: int) -> Step:
    """Algorithm 1, lines 2 to 5, for a batch: step number `step`, counted from 0."""
    config, schedule, unet, device = training.config, training.schedule, training.unet, training.device
    torch.manual_seed(torch_seed(config.seed, step))

    # Lines 2 to 4: x_0 ~ q(x_0), t ~ Uniform{1 .. T} or more often where it is worth more, eps ~ N(0, I).
    x_0, condition = draw_batch(data, config, step)
    few = config.few_times[:-1]
    if training.teacher:  # a sample is a walk of the teacher instead, and teaches every step of the student
        t = torch.tensor(few)[:, None].expand(-1, len(x_0))
        weight = torch.ones(t.shape)
    elif training.reference:  # a sample is a pair, an image and one that is drawn, which is looked at several times
        t = draw_times(LOOKS * len(x_0), schedule.T, config.time_mean, config.time_std).view(LOOKS, -1)
        weight = torch.ones(t.shape)
    else:
        t = draw_times(len(x_0), schedule.T, config.time_mean, config.time_std, few)
        weight = loss_weight(schedule, config.loss_weight, config.objective, t, config.gamma)
    eps = torch.randn(*t.shape, *x_0.shape[1:])

    # Line 5: a gradient step on || eps - eps_hat(x_t, t) ||^2, in grad_accum parts.
    losses = torch.zeros(t.shape, device=device)
    distributed.seed_dropout(config.seed, step)
    for part in distributed.shard(torch.arange(len(x_0))).chunk(config.grad_accum):
        x_0_part, condition_part = x_0[part].to(device), condition[part].to(device)
        t_part, eps_part = t[..., part], eps[..., part, :, :, :].to(device)
        seeds = [(config.seed, step, i) for i in part.tolist()]  # of what is drawn
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            if training.teacher:
                loss = distillation_loss(unet, training.teacher, config, condition_part, seeds)
            elif training.reference:
                pairs = x_0_part, t_part, eps_part, condition_part, seeds
                loss = discriminative_loss(unet, training.reference, config, *pairs)
            else:
                asked = config.objective, x_0_part, t_part, eps_part, condition_part
                loss = denoising_loss(schedule, unet, *asked, config.foreground_weight)
        # A sum over the part, divided by the whole batch: so uneven parts count rightly.
        (weight[..., part].to(loss) * loss).sum().div(losses.numel()).backward()
        losses[..., part] = loss.detach()
    distributed.all_reduce([losses, *(parameter.grad for parameter in unet.parameters())])

    grad_norm = torch.nn.utils.clip_grad_norm_(unet.parameters(), config.clip)
    settings = (config.lr, config.weight_decay), (config.muon_lr, min(config.muon_decay * DECAY_OF / config.steps, 1))
    for optimizer, (lr, decay) in zip(training.optimizers, settings, strict=False):  # Muon may have nothing to do
        for group in optimizer.param_groups:
            group["lr"], group["weight_decay"] = lr * rate(config, step), decay
        optimizer.step()
        optimizer.zero_grad()
    # The average's own warm-up: early on it forgets the untrained weights quickly.
    update_ema(training.ema, unet, min(config.ema_decay, (1 + step) / (10 + step)))
    return Step(t, losses, grad_norm)


def draw_batch(data: Slices, config: Config, step: int) -> tuple[Tensor, Condition]:
    """The images (B, C, H, W) of a step and their condition, on the CPU.

    The data set is walked in an order drawn anew from (seed, epoch), across the ends of epochs, so the step
    alone says which images come. With --flip, half of the pairs are mirrored.
    """
    positions = np.arange(step * config.batch_size, (step + 1) * config.batch_size)
    chosen = [order(len(data), config.seed, p // len(data))[p % len(data)] for p in positions.tolist()]
    x_0, condition = data.batch(chosen)
    drops = config.mask_drop, config.label_drop, config.source_drop, config.words_drop, config.all_drop
    condition = condition.withhold(*drops)
    if config.flip:
        mirrored = torch.rand(len(chosen), 1, 1, 1) < 0.5
        x_0, condition = torch.where(mirrored, x_0.flip(-1), x_0), condition.mirror(mirrored)
    return x_0, condition


@functools.lru_cache(maxsize=2)
def order(n: int, seed: int, epoch: int) -> np.ndarray:
    return generator(seed, epoch).permutation(n)


def rate(config: Config, step: int) -> float:
    """The share of the learning rate at a step: a straight line from 1 to 0 at config.steps, times a linear warm-up, which
    must not take a short training's time (so it is 0.9 at most where that is a tenth of all steps). A run resumed with more steps jumps to the line that leads to the new end (or to
    the new warm-up, if it is not past that)."""
    warmup = min(config.warmup, config.steps / 10)
    return min((step + 1) / max(warmup, 1), 1) * (1 - step / config.steps)


@torch.no_grad()
def update_ema(ema: UNet, unet: UNet, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * unet, over parameters only (the network has no buffers)."""
    torch._foreach_lerp_(list(ema.parameters()), list(unet.parameters()), 1 - decay)
