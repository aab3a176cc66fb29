"""A trained model: the configuration, the schedule and the network of a checkpoint together, and images drawn from it.

In a notebook:

    from ddpm.data.images import read_mask, to_uint8
    from ddpm.model import draw, load_model

    model = load_model()  # the newest run in results/, else the model in the box; or a checkpoint's path
    mask = read_mask("examples/masks/lesion/large_left.png", model.vocabulary.classes, model.config.image_size)
    condition = model.vocabulary.condition([mask] * 4, contrast=["FLAIR"] * 4)
    *_, (t, x_0) = draw(model, condition, seeds=range(4))  # every x_t comes by; the last one is the image
    images = to_uint8(x_0)  # (4, 1, H, W)
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpm import UserError
from ddpm.conditions import Condition, Vocabulary, drop_flag_of, flag_of
from ddpm.reverse import STEPS, denoiser, times_for, trajectory
from ddpm.runtime import checkpoint
from ddpm.runtime.config import Config
from ddpm.schedule import Schedule
from ddpm.unet import UNet

# For which t / T to guide unless asked otherwise (docs/ablations.md says why). What a mask asks for is told pixel by pixel,
# and needs no guidance at the highest noise. There it is decided where things lie, which words ask for.
INTERVAL = (0.05, 0.9)
INTERVAL_OF_WORDS = (0.25, 1.0)
WEIGHTS = {"ema": "ema", "raw": "model"}  # and what a checkpoint calls them


@dataclass(frozen=True)
class Model:
    config: Config
    vocabulary: Vocabulary  # what it can be asked for
    schedule: Schedule
    unet: UNet
    name: str = "the model"  # its path, to be named in messages
    step: int = 0
    trained_on: str = ""  # as of a Training

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return (self.config.image_channels, *self.config.image_size)


def make_unet(config: Config, vocabulary: Vocabulary) -> UNet:
    """The network that a configuration describes, its weights drawn from torch's global random state."""
    return UNet(
        image_channels=config.image_channels,
        vocabulary=vocabulary,
        channels=config.channels,
        mults=tuple(config.mults),
        blocks=config.blocks,
        attention=tuple(config.attention),
        patch=config.patch,
        dropout=config.dropout,
        lean=config.lean,
    )


def load_model(path: str | Path | None = None, weights: str = "ema", device: str | torch.device = "cpu") -> Model:
    """The model of a checkpoint, ready to draw. path: as for `checkpoint.find`.

    weights: "ema", averaged over training, or "raw", the last ones. Raises UserError if there is none, or it is damaged.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights {weights!r} are none of {', '.join(WEIGHTS)}")
    path = checkpoint.find(path)
    loaded = checkpoint.load(path)
    config, vocabulary = loaded["config"], loaded["conditions"]
    unet, state = make_unet(config, vocabulary), loaded[WEIGHTS[weights]]
    if not state:
        raise UserError(f"{path}: it holds the averaged weights only; leave --weights out")
    try:
        unet.load_state_dict(state)
    except RuntimeError:
        raise UserError(f"{path}: its weights do not fit its own configuration; the file was altered") from None
    unet = unet.eval().requires_grad_(False).to(device)
    schedule = config.make_schedule()
    return Model(config, vocabulary, schedule, unet, str(path), loaded["step"], loaded["trained_on"])


@dataclass(frozen=True)
class Sampling:
    """How to draw. What is None is filled in by `complete`, for the model and the condition at hand."""

    sampler: str | None = None  # None: dpm-solver; of a distilled model ddim, the only one that it knows
    steps: int | None = None  # None: STEPS[sampler], or T if that is fewer; of a model of few steps, all of them
    guidance: float | None = None  # None: the model's own; 1 where there is nothing to guide, or a source says it all
    guided: tuple[str, ...] | None = None  # what guidance strengthens; None: all that is given and was withheld once
    interval: tuple[float, float] | None = None  # guidance is 1 where t / T is outside; None: one of the two above
    eta: float = 0.0  # ddim's noise: 0 none, 1 as much as ancestral
    precision: str = "fp32"  # or "bf16", inside the network
    times: tuple[int, ...] = ()  # falling to 0; (): as many as steps, where they suit the sampler
    extra_noise: float | None = None  # a share, beyond what the network is told (`draw`); None: the model's own or 0

    @property
    def in_words(self) -> str:
        """ "guidance 1.25 by mask and contrast for t / T in 0.05 to 0.9, extra noise 0.04", for the reader."""
        extra = f", extra noise {self.extra_noise:g}" if self.extra_noise else ""
        if self.guidance == 1:
            return f"guidance 1{extra}"
        low, high = self.interval
        within = "" if (low, high) == (0, 1) else f" for t / T in {low:g} to {high:g}"
        return f"guidance {self.guidance:g} by {' and '.join(self.guided)}{within}{extra}"

    def complete(self, model: Model, given: Sequence[str]) -> "Sampling":
        """With every None filled in; given: the names of what the condition holds. Raises UserError for what the
        model cannot do."""
        for kind in model.vocabulary.given:
            if kind not in given and not model.config.withholds(kind):
                never = f"{model.name} was trained with {drop_flag_of(kind)} 0 and --all-drop 0"
                raise UserError(f"{never}: it needs {flag_of(kind)}")
        if self.precision not in ("fp32", "bf16"):
            raise UserError(f"precision {self.precision!r} is none of fp32, bf16")
        sampler, times = self.walk(model)
        guidance, guided = self.strengthened(model, given)
        interval = self.interval or (INTERVAL_OF_WORDS if "words" in guided else INTERVAL)
        extra = self.extra_noise
        if extra is None:
            # The published ways (the paper's sampler, DDIM, Fast-DDPM) stay as they are; a student errs as its teacher
            # does; a source tells how sharp its image is; a mask is smooth.
            config = model.config
            published = not config.teacher and (config.few_steps or sampler != "dpm-solver")
            images = "source" not in given and not config.segment
            extra = config.extra_noise if images and not published else 0.0
        how = dict(sampler=sampler, steps=len(times) - 1, times=times, guidance=guidance, guided=guided)
        return replace(self, **how, interval=interval, extra_noise=extra)

    def walk(self, model: Model) -> tuple[str, tuple[int, ...]]:
        """The sampler, and the times that it comes by. Raises UserError."""
        config = model.config
        sampler = self.sampler or ("ddim" if config.teacher else "dpm-solver")
        if config.teacher and (sampler != "ddim" or self.eta):
            raise UserError(f"{model.name} was distilled: it knows --sampler ddim without --eta, and no other")
        if self.eta and sampler != "ddim":
            raise UserError("--eta belongs to --sampler ddim; give that too, or leave it out")
        steps = self.steps or config.few_steps or min(STEPS[sampler], config.timesteps)
        if steps > config.timesteps:
            raise UserError(f"--sample-steps {steps} is more than the {config.timesteps} steps of {model.name}")
        if config.few_steps and steps != config.few_steps:
            trained = f"{model.name} was trained for {config.few_steps} steps and no others"
            raise UserError(f"--sample-steps {steps}: {trained}")
        few = tuple(config.few_times)
        times = self.times or few or tuple(times_for(sampler, model.schedule, steps))
        if few and times != few:
            raise UserError(f"times {times}: {model.name} knows {few} and no others")
        if times != tuple(sorted({*times, 0}, reverse=True)) or not 0 < times[0] <= config.timesteps:
            raise UserError(f"times {times}: they must fall from {config.timesteps} at most, and end in 0")
        return sampler, times

    def strengthened(self, model: Model, given: Sequence[str]) -> tuple[float, tuple[str, ...]]:
        """How strong guidance is, and by what. Raises UserError."""
        config, guidance, guided, (low, high) = model.config, self.guidance, self.guided, self.interval or INTERVAL
        if not 0 <= low <= high <= 1:
            raise UserError(f"--guidance-interval {low:g} {high:g}: give two shares of T, 0 <= LOW <= HIGH <= 1")
        if config.teacher:
            if guidance not in (None, 1) or guided or self.interval not in (None, INTERVAL):
                raise UserError(f"{model.name} was distilled from a guided teacher: its guidance cannot be changed")
            return 1.0, ()
        if guided is None:
            guided = tuple(name for name in given if config.withholds(name)) or tuple(given) or ("mask",)
        missing = [flag_of(name) for name in guided if name not in given]
        undroppable = [flag_of(name) for name in guided if not config.withholds(name)]
        if guidance is None:  # guided draws are less alike than the truth is: of a source, their spread shall be right
            cannot = not self.guided and (missing or undroppable)
            guidance = 1.0 if cannot or "source" in given else config.guidance
        if guidance != 1 and missing:
            raise UserError(f"--guidance {guidance:g} needs {missing[0]}, and a checkpoint that was trained with it")
        if guidance != 1 and undroppable:
            raise UserError(f"{model.name} never learnt to do without {undroppable[0]}: it knows no --guidance by it")
        return guidance, guided


class Between(NamedTuple):
    """A seed of noise between that of two others: that of `one` at share 0, of `other` at 1. As cos^2 + sin^2 = 1 it is
    N(0, I) at every share; and what is drawn from shares near each other is alike."""

    one: tuple[int, ...]
    other: tuple[int, ...]
    share: float


def draw(
    model: Model,
    condition: Condition,
    seeds: Sequence[int | tuple[int, ...] | Between],
    sampling: Sampling = Sampling(),  # noqa: B008 (it is frozen)
) -> Iterator[tuple[int, Tensor]]:
    """Algorithm 2, for as many images at a time as there are seeds.

    Yields (t, x_t) for each time it comes by, from T to 0: x_t is (B, C, H, W) float32 on the model's device,
    and at t = 0 it is the image. condition holds B of each kind. An image depends on its own seed and condition, not on what
    is drawn beside it (to one grey level). Raises UserError for what the model cannot do.

    With sampling.extra_noise the walk is that of a schedule that is a little noisier than the network is told. Squared
    error teaches the mean of what may be, so a network that has not learnt everything takes too much for noise, and its
    images are too smooth; this leaves so much more at high t, where shapes are decided, and nothing at t = 0. (The same
    idea: S_noise of Karras et al. 2022, arXiv:2206.00364; epsilon scaling, Ning et al. 2024, arXiv:2308.15321.)
    """
    sampling = sampling.complete(model, condition.given)
    device = next(model.unet.parameters()).device
    noise = noise_source(seeds, model.shape, device)
    told = predictor(model, condition, sampling)
    schedule, longer = model.schedule.noisier(sampling.extra_noise)

    def predict_x_0(x_t: Tensor, t: int) -> Tensor:
        return told(longer[t].to(x_t) * x_t, t)

    # Line 1: x_T ~ N(0, I), at the first of the times. Lines 2 to 5: t = T .. 1, each x_t from the one before.
    steps = trajectory(sampling.sampler, predict_x_0, schedule, noise(), sampling.times, noise, sampling.eta)
    yield from zip(sampling.times, steps, strict=True)


def predictor(model: Model, condition: Condition, sampling: Sampling) -> Callable[[Tensor, int], Tensor]:
    """predict_x_0(x_t, t) of the model under the condition, as the samplers of reverse.py and inverse.py want it.
    sampling: a complete one.

    A distilled model's x_0_hat is not clipped: it is no image, but what leads to the end of a long step.
    """
    return denoiser(
        model.unet,
        model.schedule,
        model.config.objective,
        condition.to(next(model.unet.parameters()).device),
        sampling.guidance,
        sampling.guided,
        sampling.interval,
        clip=not model.config.teacher,
        bf16=sampling.precision == "bf16",
    )


def noise_source(seeds: Sequence[int | tuple[int, ...] | Between], shape: tuple[int, ...], device):
    """noise() -> z ~ N(0, I), (B, *shape). Each sample has a stream of its own, made from its seed."""

    def stream(seed):
        if isinstance(seed, Between):
            one, other, angle = stream(seed.one), stream(seed.other), seed.share * math.pi / 2
            return lambda: math.cos(angle) * one() + math.sin(angle) * other()
        random = np.random.default_rng(seed)
        return lambda: random.standard_normal(shape, dtype=np.float32)

    streams = [stream(seed) for seed in seeds]
    return lambda: torch.from_numpy(np.stack([noise() for noise in streams])).to(device)
