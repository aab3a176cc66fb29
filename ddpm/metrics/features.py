"""Features of images, and where they come from: every score names its extractor, with a hash.

A distance between sets of images is a distance between their features, so the features decide what it can see.
Three kinds: the segmenter (default: made for MRI, and here), Inception-V3 (what papers on photographs report), and
any network of yours as a TorchScript file.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ddpm import UserError
from ddpm.data.images import to_float
from ddpm.metrics.inception import load_inception, to_rgb
from ddpm.metrics.segmenter import Segmenter
from ddpm.runtime import cache
from ddpm.runtime.files import reading
from ddpm.runtime.progress import progress

BATCH = 64  # images at a time
CODE = cache.code(
    "metrics/features.py", "metrics/inception.py", "metrics/segmenter.py", "unet.py", "seeds.py", "data/images.py"
)


@dataclass(frozen=True)
class Extractor:
    name: str  # with its version, as printed beside each score
    fingerprint: str  # hash of the weights
    function: Callable[[np.ndarray], Tensor]  # uint8 images (B, C, H, W) -> features (B, D)
    classifier: np.ndarray | None = None  # (D, K): features to logits, where the network names classes

    def __str__(self) -> str:
        return f"{self.name} [{self.fingerprint}]"


def make_extractor(features: str, inception_weights: str) -> Extractor | None:
    """What --features names; None for "segmenter", since which one depends on the data. Raises UserError."""
    if features == "segmenter":
        return None
    return inception_features(inception_weights) if features == "inception" else torchscript_features(features)


def segmenter_features(segmenter: Segmenter, name: str) -> Extractor:
    seen = "it sees {}x{}".format(*segmenter.size)
    return Extractor(
        f"segmenter {name}, {seen}", segmenter.fingerprint(), lambda images: segmenter(to_float(images))[2]
    )


def inception_features(path: str) -> Extractor:
    """Inception-V3's 2,048 pooled features. Raises UserError if `path` holds no such weights."""
    inception = load_inception(path)
    classifier = inception.fc.weight.T.numpy()
    return Extractor("inception-2015-12-05", file_hash(path), lambda images: inception(to_rgb(images)), classifier)


def torchscript_features(path: str) -> Extractor:
    """A TorchScript network that takes (B, 3, H, W) in [0, 1] and returns (B, D). Loading one runs its code: use only
    files that you trust. Raises UserError if it is none."""
    with reading(f"--features {path}", "a TorchScript file", "write one with torch.jit.save"):
        network = torch.jit.load(path, map_location="cpu").eval()

    def function(images):
        try:
            return network(to_rgb(images))
        except RuntimeError as error:  # a traceback in TorchScript, whose last line says what happened
            told = str(error).strip().splitlines()[-1][:200]
            raise UserError(f"--features {path}: takes no (batch, 3, height, width) ({told}); wrap it") from None

    return Extractor(Path(path).name, file_hash(path), function)


def file_hash(path: str) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]


@torch.inference_mode()
def extract(extractor: Extractor, images: np.ndarray, keep: bool = False, desc="features"):
    """uint8 images (N, C, H, W) -> features (N, D) float32.

    keep: in the cache, under a name made from the pixels, the extractor's weights and the code. Raises UserError if
    the network's answer is not a finite number a feature.
    """

    def extracted():
        parts = []
        for start in progress(range(0, len(images), BATCH), desc=desc, unit="batch"):
            batch = images[start : start + BATCH]
            answer = extractor.function(batch)
            if not isinstance(answer, Tensor) or answer.ndim != 2 or len(answer) != len(batch):
                raise UserError(f"{extractor}: answers no (batch, features) tensor; wrap the network so that it does")
            parts.append(answer.float().numpy())
        features = np.concatenate(parts)
        if not np.isfinite(features).all():
            raise UserError(f"{extractor}: gives features that are not finite; check its weights and input range")
        return (features,)

    if not keep:
        return extracted()[0]
    return cache.kept(f"features-{cache.key(CODE, images, extractor.fingerprint)}.npz", extracted)[0]
