"""Where pairs (x_0, condition) come from."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ddpm.conditions import Condition, Vocabulary, one_hot
from ddpm.data.images import to_float


@dataclass
class Slices:
    """A data set: N images, with what may be asked for of each: a label map, labels (the contrast), a source, words.

    The arrays lie in memory, or are mapped into it from a file (store.py): then only what is asked for is read.
    """

    images: np.ndarray  # (N, C, H, W) uint8
    masks: np.ndarray | None  # (N, H, W) uint8, classes 0 .. K-1, 0 the background; None without masks
    labels: dict[str, np.ndarray]  # by name, each (N,) int64 from 1, 0 where it is not known
    vocabulary: Vocabulary  # the names of the classes, of the labels' values, of the source's channels, and the words
    subjects: np.ndarray | None = None  # (N,) int64: images of one subject have one number; None if it is not known
    index: dict | None = None  # of a folder: names, windows ... (folders.py); None for the phantom
    source: np.ndarray | None = None  # (N, S, H, W) uint8, another image of the same place; None without
    words: np.ndarray | None = None  # (N, L) int64 numbers of words, or (N, D) float32 vectors of texts; None without

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.vocabulary.classes

    def part(self, chosen) -> "Slices":
        """The chosen images, as a data set of their own."""
        arrays = {"masks": self.masks, "subjects": self.subjects, "source": self.source, "words": self.words}
        taken = {name: None if x is None else x[chosen] for name, x in arrays.items()}
        labels = {name: values[chosen] for name, values in self.labels.items()}
        return replace(self, images=self.images[chosen], labels=labels, index=None, **taken)

    def condition(self, chosen) -> Condition:
        """What the chosen images show, as the network is asked for it."""
        mask = None if self.masks is None else one_hot(self.masks[chosen], len(self.classes))
        labels = {name: torch.as_tensor(values[chosen]) for name, values in self.labels.items()}
        source = None if self.source is None else to_float(self.source[chosen])
        return Condition(mask, labels, source, None if self.words is None else torch.as_tensor(self.words[chosen]))

    def batch(self, chosen) -> tuple[Tensor, Condition]:
        """The chosen images (B, C, H, W) in [-1, 1], and their condition."""
        return to_float(self.images[chosen]), self.condition(chosen)
