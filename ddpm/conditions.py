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

    def beside_without(self, *names: str) -> "Condition":
        """The condition twice, one after the other (2 B samples): as it is, and with these made null."""

        def doubled(name: str, x: Tensor) -> Tensor:
            return torch.cat([x, torch.zeros_like(x) if name in names else x])

        mask = None if self.mask is None else doubled("mask", self.mask)
        return Condition(mask, {name: doubled(name, label) for name, label in self.labels.items()})

    def withhold(self, mask: float, labels: float, both: float) -> "Condition":
        """Of each sample, with these probabilities, the mask made null, or its labels, or both; else nothing.

        It is how a network learns to do without, as guidance needs (Ho & Salimans 2022, arXiv:2207.12598, Algorithm
        1). One number decides: two independent ones would leave both out too rarely to learn it. Draws from torch's
        global random state, on the CPU.
        """
        if not self.given:
            return self
        u = torch.rand(len(next(x for x in (self.mask, *self.labels.values()) if x is not None)))
        # On a line from 0: the mask alone, both, the labels alone, nothing.
        keep_mask, keep_labels = u >= mask + both, (u < mask) | (u >= mask + both + labels)
        withheld = {name: label * keep_labels for name, label in self.labels.items()}
        return Condition(None if self.mask is None else self.mask * keep_mask[:, None, None, None], withheld)

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
