"""Where pairs (x_0, condition) come from."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ddpm.conditions import Condition, Vocabulary, one_hot
from ddpm.data.images import to_float


@dataclass
class Slices:
    """A data set: N images, with a label map and labels (such as the contrast) each.

    The arrays lie in memory, or are mapped into it from a file (store.py): then only what is asked for is read.
    """

    images: np.ndarray  # (N, C, H, W) uint8
    masks: np.ndarray | None  # (N, H, W) uint8, classes 0 .. K-1, 0 the background; None without masks
    labels: dict[str, np.ndarray]  # by name, each (N,) int64 from 1, 0 where it is not known
    vocabulary: Vocabulary  # the names of the classes, and of the labels' values
    subjects: np.ndarray | None = None  # (N,) int64: images of one subject have one number; None if it is not known
    index: dict | None = None  # of a folder: names, windows ... (folders.py); None for the phantom

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.vocabulary.classes

    def part(self, chosen) -> "Slices":
        """The chosen images, as a data set of their own."""
        masks, subjects = (None if x is None else x[chosen] for x in (self.masks, self.subjects))
        labels = {name: values[chosen] for name, values in self.labels.items()}
        return replace(self, images=self.images[chosen], masks=masks, labels=labels, subjects=subjects, index=None)

    def condition(self, chosen) -> Condition:
        """What the chosen images show, as the network is asked for it."""
        mask = None if self.masks is None else one_hot(self.masks[chosen], len(self.classes))
        return Condition(mask, {name: torch.as_tensor(values[chosen]) for name, values in self.labels.items()})

    def batch(self, chosen) -> tuple[Tensor, Condition]:
        """The chosen images (B, C, H, W) in [-1, 1], and their condition."""
        return to_float(self.images[chosen]), self.condition(chosen)
