"""Where pairs (x_0, mask) come from."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ddpm.data.images import one_hot, to_float


@dataclass
class Slices:
    """A data set: N images, with a label map each and the contrast each was taken in.

    The arrays lie in memory, or are mapped into it from a file (store.py): then only what is asked for is read.
    """

    images: np.ndarray  # (N, C, H, W) uint8
    labels: np.ndarray | None  # (N, H, W) uint8 in 0 .. K-1, 0 the background; None without masks
    contrasts: np.ndarray | None  # (N,) int64 in 0 .. len(contrast_names) - 1
    classes: tuple[str, ...]  # the K names; empty without masks
    contrast_names: tuple[str, ...]  # empty if images are not told apart by contrast
    index: dict | None = None  # of a folder: names, subjects, windows ... (folders.py); None for the phantom

    def __len__(self) -> int:
        return len(self.images)

    def part(self, chosen) -> "Slices":
        """The chosen images, as a data set of their own."""
        labels, contrasts = (None if x is None else x[chosen] for x in (self.labels, self.contrasts))
        return Slices(self.images[chosen], labels, contrasts, self.classes, self.contrast_names)

    def tensors(self, chosen) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The chosen images (B, C, H, W) in [-1, 1], their masks (B, K, H, W) one-hot, and their contrasts (B,)
        counted from 1, as the network takes them (0 stands for "none asked for")."""
        mask = None if self.labels is None else one_hot(self.labels[chosen], len(self.classes))
        contrast = None if self.contrasts is None else torch.as_tensor(self.contrasts[chosen]) + 1
        return to_float(self.images[chosen]), mask, contrast
