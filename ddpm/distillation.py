"""Many steps into few: progressive distillation (Salimans & Ho 2022, arXiv:2202.00512, section 3), of a teacher that is
guided (Meng et al. 2023, arXiv:2210.03142).

Without noise, the reverse process follows the probability-flow ODE (Song et al. 2021, arXiv:2011.13456). In the angle p,
with cos p = sqrt(alpha_bar_t) and sin p = sqrt(1 - alpha_bar_t), Ho's Eq. 4 reads x_t = cos(p) x_0 + sin(p) eps, and its
derivative by p is v. A step of DDIM from p to p - d goes along a circle:

    x_s = cos(d) x_t - sin(d) v_hat

So on whatever way a teacher went from x_t to x_s, in as many steps as it took, there is one v that leads there in a
single step. The student learns it:

    v* = (cos(d) x_t - x_s) / sin(d)

Two DDIM steps of the teacher for one of the student, again and again, is the published way. But a student is only as
good as the walk that it copies, and DDIM's is good only in many steps: so an ordinary teacher walks as it does when it
draws, by DPM-Solver++, guided and with its extra noise, and a teacher that is a student itself takes its own steps. (Two
points of any walk have a v* between them, also of one whose noise is not quite the schedule's.) The student's times are
some of the teacher's (`middle_times` of reverse.py). From one to the next it takes DDIM's step, with one call of the
network: what guidance does is in what it learnt.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from ddpm.conditions import Condition
from ddpm.model import Model, Sampling, draw
from ddpm.runtime.config import Config
from ddpm.schedule import Schedule


def angle(schedule: Schedule, t: int) -> float:
    """p in 0 .. pi / 2, with cos p = sqrt(alpha_bar_t)."""
    alpha_bar = schedule.alpha_bar[t].item()
    return math.atan2(math.sqrt(1 - alpha_bar), math.sqrt(alpha_bar))


def velocity_between(schedule: Schedule, x_t: Tensor, x_s: Tensor, t: int, s: int) -> Tensor:
    """v*, with which a step of DDIM (their Appendix D) leads from x_t to x_s; t > s. Shaped like x_t."""
    d = angle(schedule, t) - angle(schedule, s)
    return (math.cos(d) * x_t - x_s) / math.sin(d)


def lessons(teacher: Model, config: Config, condition: Condition, seeds: Sequence) -> tuple[Tensor, Tensor]:
    """What B walks of the teacher have to teach a student of N steps: x_t where each of its steps begins, and v*, both
    (N, B, C, H, W).

    config: the student's; it says N, and where its steps begin and end.
    """
    steps, schedule = list(pairwise(config.few_times)), teacher.schedule
    how = Sampling(steps=teacher.config.few_steps or config.teacher_steps, precision=config.precision)
    passed = dict(draw(teacher, condition, seeds, how))
    v = [velocity_between(schedule, passed[t], passed[s], t, s) for t, s in steps]
    return torch.stack([passed[t] for t, _ in steps]), torch.stack(v)


def distillation_loss(unet, teacher: Model, config: Config, condition: Condition, seeds: Sequence) -> Tensor:
    """The squared error || v* - unet(x_t, t, condition) ||^2 of each of the student's N steps on each of B walks of the
    teacher, a mean over pixels; (N, B)."""
    x_t, v = lessons(teacher, config, condition, seeds)
    N, B = x_t.shape[:2]
    t = torch.tensor(config.few_times[:-1], device=x_t.device).repeat_interleave(B)
    output = unet(x_t.flatten(0, 1), t, condition[torch.arange(B, device=x_t.device).repeat(N)])
    return (output.float() - v.flatten(0, 1)).square().mean(dim=(1, 2, 3)).view(N, B)
