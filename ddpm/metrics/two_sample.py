"""The classifier two-sample test: can a network tell the samples from real images?

Lopez-Paz & Oquab 2017, "Revisiting Classifier Two-Sample Tests", arXiv:1610.06545. A small network is trained on one half
of both sets to say which set an image is from, and examined on the other half. If both sets come from the same
distribution, then no network can be right in more than 50 % of the images it has not seen: that is the goal of a
generative model. It learns whatever features give the samples away, so it is not flattered by weak ones.

What gives them away may be harmless. Both sets must have gone the same way (resizing, rounding, no JPEG in one alone).
And 50 % means that this network, trained on this many images, found nothing; a larger set finds more.
"""

import copy
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits as loss_of

from ddpm import UserError
from ddpm.metrics.margin import share_interval
from ddpm.runtime.progress import progress
from ddpm.seeds import generator

FEWEST = 40  # images a set: 20 of each are then examined, and the interval is 32 % wide
BATCH = 32  # images of each set in a training step
CHECK_EVERY = 20  # training steps
LEARNING_RATE = 2e-3


class TwoSample(NamedTuple):
    accuracy: float  # share of the unseen images assigned to the right set; 0.5 is the goal, 1 the worst
    low: float  # 95 % interval of the accuracy
    high: float
    n: int  # unseen images, half of them real


def two_sample_test(
    real: np.ndarray, fake: np.ndarray, real_subjects=None, fake_subjects=None, steps: int = 400, seed: int = 0
) -> TwoSample:
    """How well a network tells two sets of images apart: real (N, C, H, W) and fake (M, C, H, W), both uint8.

    subjects (N,), (M,): whose image each is (default: each another's). The examined ones show subjects that the network
    has never met, or it would know them again. It trains for at most `steps`. If the low end of the interval is above
    0.5 the sets differ. A high end below 0.5 says that the sets share images: what it learnt as real came again as
    fake. UserError if there are too few images or subjects, or if the two sets have images of different sizes.
    """
    check(real, fake)
    rng = generator(seed)
    whose = [np.arange(len(x)) if s is None else s for x, s in ((real, real_subjects), (fake, fake_subjects))]
    parts = split(*whose, rng)
    train, validation, unseen = ((torch.from_numpy(real[a]), torch.from_numpy(fake[b])) for a, b in parts)
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.default_generator.manual_seed(int(rng.integers(2**63)))
        net = classifier(train)
        fit(net, train, validation, steps, rng)
    right = torch.cat([(said > 0).eq(is_fake) for said, is_fake in answers(net, unseen)]).double().numpy()
    subjects = np.concatenate([whose[0][parts[2][0]], whose[1][parts[2][1]] + whose[0].max() + 1])
    return TwoSample(float(right.mean()), *share_interval(right, subjects, seed), len(right))


def check(real: np.ndarray, fake: np.ndarray) -> None:
    for name, images in (("real", real), ("fake", fake)):
        if images.dtype != np.uint8 or images.ndim != 4:
            raise ValueError(f"{name} is {images.dtype} {images.shape}, not uint8 (N, C, H, W)")
        if len(images) < FEWEST:
            raise UserError(f"two-sample test: {len(images)} {name} images; it needs at least {FEWEST} of each kind")
    if real.shape[1:] != fake.shape[1:]:
        shapes = f"real images are {real.shape[1:]}, fake ones {fake.shape[1:]}"
        raise UserError(f"two-sample test: {shapes} (channels, height, width); give both in one size")


def split(real_subjects: np.ndarray, fake_subjects: np.ndarray, rng) -> list[tuple[np.ndarray, np.ndarray]]:
    """Indices (k,) of real and of fake images to train on (about 3/8 of the smaller set), to stop by (1/8), to examine
    on (1/2). No subject is in two parts; and where both sets have the same subjects, each is in the same part in both. In
    each part there are as many real as fake images; of the larger set a random choice is taken, as its order may mean
    something. Raises UserError with fewer than four subjects in a set."""
    sides, known = [], None
    for name, subjects in (("real", real_subjects), ("fake", fake_subjects)):
        names, number, count = np.unique(subjects, return_inverse=True, return_counts=True)
        if len(names) < 4:
            raise UserError(f"two-sample test: {name} images of {len(names)} subjects; it needs at least 4 of each")
        if not np.array_equal(names, known):
            known, order = names, rng.permutation(len(names))
            middle = (np.cumsum(count[order]) - count[order] / 2) / len(subjects)  # of each subject's share
            first = np.clip(np.searchsorted(middle, 3 / 8), 1, len(names) - 3)
            second = np.clip(np.searchsorted(middle, 1 / 2), first + 1, len(names) - 2)
        sides.append([rng.permutation(np.flatnonzero(np.isin(number, p))) for p in np.split(order, [first, second])])
    return [(a[: len(b)], b[: len(a)]) for a, b in zip(*sides, strict=True)]


class Scale(nn.Module):
    """uint8 -> float32 with mean 0 and standard deviation 1 over the training images, real and fake taken together."""

    def __init__(self, pair: tuple[Tensor, Tensor]):
        super().__init__()
        values = torch.cat(pair).double()
        self.mean, self.std = values.mean().item(), values.std().item() + 1e-3

    def forward(self, images: Tensor) -> Tensor:
        return (images.float() - self.mean) / self.std


def classifier(pair: tuple[Tensor, Tensor]) -> nn.Sequential:
    """uint8 (B, C, H, W) -> (B, 1), above 0 for "fake"; 112,000 weights.

    Four convolutions, of which three halve the image, and the mean over places: quick at textures (noise, blur), which
    are everywhere, and able to learn shapes. BatchNorm, unlike GroupNorm, keeps how bright an image is.
    """
    layers, c_in = [Scale(pair)], pair[0].shape[1]
    for c_out, size, stride in ((32, 4, 2), (64, 3, 2), (64, 3, 1), (96, 3, 2)):
        layers += [nn.Conv2d(c_in, c_out, size, stride, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU()]
        c_in = c_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c_in, 1))


def fit(net: nn.Module, train, validation, steps: int, rng: np.random.Generator) -> None:
    """Train for `steps`, then go back to where the validation images were told apart best."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=1e-2)
    is_fake = torch.cat([torch.zeros(BATCH), torch.ones(BATCH)])
    best, kept = float("inf"), None
    for step in progress(range(1, steps + 1), desc="two-sample test", unit="step"):
        batch = torch.cat([images[rng.integers(len(images), size=BATCH)] for images in train])
        net.train()
        loss = loss_of(net(moved(batch, rng))[:, 0], is_fake)
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * (1 - (step - 1) / steps)  # to 0: BatchNorm's averages settle
        optimizer.step()
        if step % CHECK_EVERY == 0 or step == steps:
            now = sum(loss_of(said, truth, reduction="sum").item() for said, truth in answers(net, validation))
            if now < best:
                best, kept = now, copy.deepcopy(net.state_dict())
    net.load_state_dict(kept)


def moved(batch: Tensor, rng: np.random.Generator) -> Tensor:
    """Each image (B, C, H, W) shifted round by up to a sixteenth of its sides, so that a few images last for longer.

    Not flipped: a generator that confuses left and right is to be found out.
    """
    down, right = (rng.integers(-(side // 16), side // 16 + 1, len(batch)).tolist() for side in batch.shape[2:])
    return torch.stack([image.roll(by, (1, 2)) for image, *by in zip(batch, down, right, strict=True)])


@torch.no_grad()
def answers(net: nn.Module, pair: tuple[Tensor, Tensor]):
    """(what the network says (B,), whether it is so (B,)) in batches, for all real and then all fake images."""
    net.eval()
    for truth, images in enumerate(pair):
        for batch in images.split(256):
            yield net(batch)[:, 0], torch.full((len(batch),), float(truth))
