"""Conditions: what a sample is asked to follow.

The paper's p(x_0) becomes p(x_0 | condition). A condition travels as one object from the data to the network:

    mask     enters beside x_t, as channels     one-hot, background included, (B, K, H, W)
    labels   enter with the time, as embeddings  each (B,), counted from 1; the contrast (T1, T2, ...) is one

Each kind has a null, "none given", and it is 0 everywhere: no class of a mask at any pixel, the label 0. Null is not
empty: the mask of a healthy brain is background, which is 1 in the background's channel. What is absent from the
object (mask None, a label not named) is null for the whole batch; `withhold` makes it null sample by sample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

LABELS = ("contrast",)  # the labels that a command line can ask for: --contrast


@dataclass(frozen=True)
class Condition:
    mask: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def given(self) -> tuple[str, ...]:
        """The names of what is there, such as ("mask", "contrast")."""
        return ("mask",) * (self.mask is not None) + tuple(self.labels)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        """With function(x) in the place of each tensor x."""
        mask = None if self.mask is None else function(self.mask)
        return Condition(mask, {name: function(label) for name, label in self.labels.items()})

    def to(self, device) -> "Condition":
        return self.map(lambda x: x.to(device))

    def __getitem__(self, part) -> "Condition":
        """The condition of some samples: part is a slice or an index tensor."""
        return self.map(lambda x: x[part])

    def without(self, *names: str) -> "Condition":
        """The condition in which these are null, whether they were given or not."""
        mask = None if "mask" in names else self.mask
        return Condition(mask, {name: label for name, label in self.labels.items() if name not in names})

    def withhold(self, mask: float, labels: float) -> "Condition":
        """Each sample's mask, and each of its labels, made null with these probabilities, independently.

        It is how a network learns to do without, as guidance needs (Ho & Salimans 2022, arXiv:2207.12598, Algorithm
        1). Draws from torch's global random state, on the CPU.
        """

        def drop(x: Tensor, probability: float) -> Tensor:
            return x * (torch.rand(len(x), *[1] * (x.ndim - 1)) >= probability)

        return Condition(
            None if self.mask is None else drop(self.mask, mask),
            {name: drop(label, labels) for name, label in self.labels.items()},
        )

    def mirror(self, chosen: Tensor) -> "Condition":
        """What has left and right, exchanged where chosen (B, 1, 1, 1) is true."""
        if self.mask is None:
            return self
        return replace(self, mask=torch.where(chosen, self.mask.flip(-1), self.mask))


@dataclass(frozen=True)
class Vocabulary:
    """What a data set, or a network trained on it, knows of conditions: the names of their values."""

    classes: tuple[str, ...] = ()  # of a mask: K names, background first; none without masks
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # {"contrast": ("T1", "T2", "FLAIR")}

    def condition(self, label_maps=None, **labels: Sequence[str | None]) -> Condition:
        """The condition that asks for these things, for B samples.

        label_maps: classes 0 .. K-1 of each pixel, (B, H, W), or None. labels: by name, B names of values, None
        for null: `condition(maps, contrast=["T1", None])`. Raises ValueError for a value that is not known.
        """
        mask = None if label_maps is None else one_hot(label_maps, len(self.classes))
        numbers = {}
        for name, values in labels.items():
            known = (None, *self.labels.get(name, ()))
            if unknown := [value for value in values if value not in known]:
                raise ValueError(f"{name} {unknown[0]!r} is none of {', '.join(known[1:])}")
            numbers[name] = torch.tensor([known.index(value) for value in values])
        return Condition(mask, numbers)


def one_hot(label_maps, num_classes: int) -> Tensor:
    """Classes (B, H, W) with values 0 .. K-1 -> float32 (B, K, H, W), background included."""
    channels_last = torch.nn.functional.one_hot(torch.as_tensor(np.asarray(label_maps)).long(), num_classes)
    return channels_last.permute(0, 3, 1, 2).float()
