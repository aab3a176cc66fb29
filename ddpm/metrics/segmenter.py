"""The judge: a small network that segments an image and names its contrast, trained on real pairs only.

It answers what no distance between sets of images can. Does the image obey the mask? Segment the sample and compare
with the mask that was asked for (Dice). Is the image useful? Train this network on samples, and test it on real
images. Its pooled features also serve the Frechet distance and its relatives: they know what brain tissue looks
like in MRI, which the features of a network trained on photographs do not.
"""

import hashlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.data.images import to_float
from ddpm.runtime import cache
from ddpm.runtime.files import is_whole, reading, write_whole
from ddpm.runtime.progress import progress
from ddpm.seeds import generator, torch_seed
from ddpm.unet import ResBlock, conv

EMBEDDED = Path(__file__).with_name("segmenter.pt")  # made by `make segmenter`, for the embedded data
CODE = cache.code("metrics/segmenter.py", "unet.py", "seeds.py", "data/images.py")
VERSION = 1
BATCH = 32
LEARNING_RATE = 2e-3
PATCH = 2  # pixels folded into channels, as in the U-Net: more than twice as fast, and as sharp


class Verdict(NamedTuple):
    labels: np.ndarray  # (N, H, W) uint8
    contrasts: np.ndarray  # (N,) int64, index into the segmenter's contrasts
    features: np.ndarray  # (N, D) float32


class Segmenter(nn.Module):
    """A U-Net of three levels, from the blocks of `ddpm/unet.py`, with two heads.

    classes    names of the K labels, background first
    contrasts  names of the contrasts, or () where images have none
    size       (H, W) that it works at, multiples of 8; images of other sizes are resized (antialiased) on the way in
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        contrasts: tuple[str, ...],
        size: tuple[int, int],
        image_channels: int = 1,
        widths: tuple[int, ...] = (48, 96, 128),
    ):
        super().__init__()
        self.classes, self.contrasts, self.size = tuple(classes), tuple(contrasts), tuple(size)
        self.image_channels, self.widths = image_channels, tuple(widths)
        self.first = conv(image_channels * PATCH**2, widths[0])
        # The blocks add an embedding of the time; here there is none, so they are given a constant 0.
        entering = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(ResBlock(a, b, 1, 0.0) for a, b in zip(entering, widths, strict=True))
        self.up = nn.ModuleList(ResBlock(b + a, a, 1, 0.0) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.segment = nn.Conv2d(widths[0], len(classes) * PATCH**2, 1)
        self.name_contrast = nn.Linear(widths[-1], max(len(contrasts), 1))
        # Mean and deviation of each feature over the training images, so that each counts alike in a distance.
        self.register_buffer("feature_mean", torch.zeros(sum(widths)))
        self.register_buffer("feature_std", torch.ones(sum(widths)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, C, H, W) in [-1, 1], of any size -> label logits (B, K, H, W), contrast logits (B, contrasts),
        features (B, D): the mean over places of every channel of every level on the way down, standardised."""
        wanted, time = x.shape[2:], x.new_zeros(len(x), 1)
        if x.shape[1] != self.image_channels:  # the embedded data's judge is shown images of three channels
            x = x.mean(dim=1, keepdim=True)
        if wanted != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", antialias=True)
        x, skips = self.first(F.pixel_unshuffle(x, PATCH)), []
        for level, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if level else x, time)
            skips.append(x)
        pooled = [F.silu(skip.float()).mean(dim=(2, 3)) for skip in skips]
        x = skips.pop()
        for block in reversed(self.up):
            x = block(torch.cat([F.interpolate(x, skips[-1].shape[2:]), skips.pop()], dim=1), time)
        logits = F.pixel_shuffle(self.segment(F.silu(x)), PATCH).float()
        if wanted != self.size:
            logits = F.interpolate(logits, wanted, mode="bilinear")
        features = (torch.cat(pooled, dim=1) - self.feature_mean) / self.feature_std
        return logits, self.name_contrast(pooled[-1]), features

    @torch.inference_mode()
    def judge(self, images: np.ndarray, desc: str = "judging") -> Verdict:
        """uint8 images (N, C, H, W) -> the Verdict on each. In float32, so that scores compare between machines."""
        parts = []
        for start in progress(range(0, len(images), 64), desc=desc, unit="batch"):
            logits, contrast, features = self(to_float(images[start : start + 64]))
            parts.append((logits.argmax(1).byte().numpy(), contrast.argmax(1).numpy(), features.numpy()))
        return Verdict(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def fingerprint(self) -> str:
        """A hash of everything that a score depends on: printed beside each."""
        digest = hashlib.sha256(repr((self.classes, self.contrasts, self.size, self.widths)).encode())
        for name, value in sorted(self.state_dict().items()):
            digest.update(name.encode() + value.numpy().tobytes())
        return digest.hexdigest()[:12]


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy plus one minus the soft Dice of each class but the background, image by image (Milletari et al.
    2016, arXiv:1606.04797): cross-entropy alone would give up lesions of a few pixels, Dice alone learns slowly."""
    probability = logits.softmax(1)[:, 1:]
    wanted = F.one_hot(labels, logits.shape[1]).movedim(-1, 1)[:, 1:].float()
    overlap = (probability * wanted).sum((2, 3))
    soft_dice = (2 * overlap + 1) / (probability.sum((2, 3)) + wanted.sum((2, 3)) + 1)
    return F.cross_entropy(logits, labels) + (1 - soft_dice).mean()


def train_segmenter(
    images: np.ndarray,
    labels: np.ndarray,
    contrasts: np.ndarray | None,
    classes: tuple[str, ...],
    contrast_names: tuple[str, ...],
    steps: int,
    seed: int = 0,
    mirror: bool = False,
    bf16: bool = False,
) -> Segmenter:
    """A segmenter trained for `steps` batches of 32 real pairs, each moved by up to 4 pixels.

    images (N, C, H, W) uint8, labels (N, H, W) uint8 in 0 .. K-1, contrasts (N,) or None. mirror: also swap left and
    right half of the time (not where a class names a side). Weights are rounded to float16, as they are stored.
    The same arguments give the same weights on the same machine with the same number of threads.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed))
        size = tuple(-(-side // 8) * 8 for side in images.shape[2:])
        segmenter = Segmenter(classes, contrast_names, size, images.shape[1])
    rng = generator(seed, 1)
    optimizer = torch.optim.AdamW(segmenter.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True)
    warmup = min(100, max(steps // 10, 1))
    bar = progress(range(steps), desc="training the judge", unit="step")
    for step in bar:
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * min((step + 1) / warmup, 1) * (1 - step / steps)
        chosen = np.sort(rng.choice(len(images), min(BATCH, len(images)), replace=False))
        x, y = moved(images[chosen], labels[chosen], rng, mirror)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits, contrast, _ = segmenter(to_float(x))
        loss = segmentation_loss(logits, torch.from_numpy(y).long())
        if contrasts is not None:
            loss = loss + 0.2 * F.cross_entropy(contrast.float(), torch.from_numpy(contrasts[chosen]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(segmenter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 20 == 0:
            bar.set_postfix_str(f"loss {loss.item():.3f}", refresh=False)
    segmenter.eval().requires_grad_(False)
    for parameter in segmenter.parameters():
        parameter.copy_(parameter.half())
    shown = np.sort(rng.permutation(len(images))[: 64 * BATCH])  # neighbours in the file may be one subject's
    features = torch.from_numpy(segmenter.judge(images[shown], "measuring features").features)
    segmenter.feature_mean.copy_(features.mean(0).half())
    segmenter.feature_std.copy_(features.std(0).clamp(min=1e-3).half())
    return segmenter


def moved(images: np.ndarray, labels: np.ndarray, rng, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    """Copies of images (B, C, H, W) and labels (B, H, W), both uint8, shifted together; what leaves on one side is
    lost, and what enters is air."""
    height, width = labels.shape[1:]
    pairs = np.pad(np.concatenate([images, labels[:, None]], axis=1), [(0, 0), (0, 0), (4, 4), (4, 4)])
    shifts = rng.integers(0, 9, (len(pairs), 2))
    pairs = np.stack([pair[:, v : v + height, u : u + width] for pair, (v, u) in zip(pairs, shifts, strict=True)])
    if mirror:
        flipped = rng.random(len(pairs)) < 0.5
        pairs[flipped] = pairs[flipped, ..., ::-1]
    return pairs[:, :-1], pairs[:, -1]


def save_segmenter(segmenter: Segmenter, path: str | Path) -> None:
    """Write the segmenter to `path`, its weights in float16, whole or not at all. Raises OSError."""
    header = {"version": VERSION, "image_channels": segmenter.image_channels}
    header |= {name: list(getattr(segmenter, name)) for name in ("classes", "contrasts", "size", "widths")}
    state = {name: value.half() for name, value in segmenter.state_dict().items()}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: torch.save({**header, "state": state}, file))


def load_segmenter(path: str | Path = EMBEDDED) -> Segmenter:
    """The segmenter stored at `path`. Raises UserError if it is missing, damaged or something else."""
    missing = "no such segmenter; `make segmenter` makes the one of the embedded data"
    with reading(path, "a segmenter of this program", "name another", missing):
        stored = torch.load(path, map_location="cpu", weights_only=True)
        if stored.pop("version") != VERSION or not is_whole(path):
            raise ValueError("damaged, or of another version")
        state = stored.pop("state")
        segmenter = Segmenter(**stored)
        segmenter.load_state_dict({name: value.float() for name, value in state.items()})
    return segmenter.eval().requires_grad_(False)
