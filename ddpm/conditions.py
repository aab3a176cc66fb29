"""Conditions: what a sample is asked to follow.

The paper's p(x_0) becomes p(x_0 | condition). A condition travels as one object from the data to the network:

    mask     enters beside x_t, as channels     one-hot, background included, (B, K, H, W)
    source   enters beside x_t, as channels     another image of the same place, in [-1, 1], (B, S, H, W)
    labels   enter with the time, as embeddings  each (B,), counted from 1, and of the whole image: its contrast
                                                 (T1, T2, ...). (train.py's --labels are the phantom's kinds of mask.)
    words    enter with the time, as embeddings  the index of each word, from 1, (B, L); or vectors of texts (B, D)

Each kind has a null, "none given", and it is 0 everywhere: no class of a mask at any pixel, a source without black or
white, the label 0, no word. Null is not empty: the mask of a healthy brain is background, which is 1 in the background's
channel. What is absent from the object (mask None, a label not named) is null for the whole batch; `withhold` makes it
null sample by sample.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

LABELS = ("contrast",)  # the labels that a command line can ask for: --contrast
KINDS = ("mask", "source", "words", *LABELS)  # all that it can ask for, and that guidance can strengthen
IGNORED = (
    "a",
    "an",
    "and",
    "at",
    "brain",
    "image",
    "in",
    "is",
    "lobe",
    "mri",
    "of",
    "on",
    "side",
    "slice",
    "the",
    "with",
)
LONGEST = 200  # characters of a prompt


@dataclass(frozen=True)
class Condition:
    mask: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    source: Tensor | None = None
    words: Tensor | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """What is there, by name: {"mask": ..., "contrast": ...}."""
        kinds = {"mask": self.mask, "source": self.source, "words": self.words, **self.labels}
        return {name: x for name, x in kinds.items() if x is not None}

    @property
    def given(self) -> tuple[str, ...]:
        """The names of what is there, such as ("mask", "contrast")."""
        return tuple(self.parts)

    def map(self, function: Callable[[str, Tensor], Tensor]) -> "Condition":
        """With function(name, x) in the place of each tensor x."""
        parts = {name: function(name, x) for name, x in self.parts.items()}
        labels = {name: parts.pop(name) for name in self.labels}
        return Condition(labels=labels, **parts)

    def to(self, device) -> "Condition":
        return self.map(lambda name, x: x.to(device))

    def __getitem__(self, part) -> "Condition":
        """The condition of some samples: part is a slice or an index tensor."""
        return self.map(lambda name, x: x[part])

    def beside_without(self, *names: str) -> "Condition":
        """The condition twice, one after the other (2 B samples): as it is, and with these made null."""
        return self.map(lambda name, x: torch.cat([x, torch.zeros_like(x) if name in names else x]))

    def withhold(self, mask: float, labels: float, source: float, words: float, all: float) -> "Condition":
        """Of each sample, with these probabilities, each kind made null (the labels together), and all kinds at once.

        It is how a network learns to do without, as guidance needs (Ho & Salimans 2022, arXiv:2207.12598, Algorithm 1).
        Kind by kind alone, all would be left out too rarely to learn it. Draws from torch's global random state, on the
        CPU.
        """
        if not self.parts:
            return self
        n = len(next(iter(self.parts.values())))
        gone = torch.rand(5, n) < torch.tensor([mask, labels, source, words, all])[:, None]
        keep = dict(zip(("mask", "labels", "source", "words"), ~(gone[:4] | gone[4]), strict=True))

        def kept(name: str, x: Tensor) -> Tensor:
            return x * keep["labels" if name in self.labels else name].view(-1, *[1] * (x.ndim - 1))

        return self.map(kept)

    def mirror(self, chosen: Tensor) -> "Condition":
        """What has left and right, exchanged where chosen (B, 1, 1, 1) is true. Words have no mirror image here."""

        def mirrored(name: str, x: Tensor) -> Tensor:
            return torch.where(chosen, x.flip(-1), x) if name in ("mask", "source") else x

        return self.map(mirrored)


@dataclass(frozen=True)
class Vocabulary:
    """What a data set, or a network trained on it, knows of conditions: the names of their values."""

    classes: tuple[str, ...] = ()  # of a mask: K names, background first; none without masks
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # {"contrast": ("T1", "T2", "FLAIR")}
    source: tuple[str, ...] = ()  # what each channel of a source shows; none without
    words: tuple[str, ...] = ()  # those that a prompt may have; none without
    vectors: int = 0  # or the width D of the vectors that stand for prompts
    # What the classes are called in files of masks, where that is not 0 .. K-1. The network never sees it.
    values: tuple[int, ...] = field(default=(), compare=False)

    @property
    def given(self) -> tuple[str, ...]:
        """The kinds that are known, as `Condition.given` names them."""
        kinds = {"mask": self.classes, "source": self.source, "words": self.words or self.vectors, **self.labels}
        return tuple(name for name, known in kinds.items() if known)

    def condition(self, label_maps=None, source=None, words=None, **labels: Sequence[str | None]) -> Condition:
        """The condition that asks for these things, for B samples.

        label_maps: classes 0 .. K-1 of each pixel, (B, H, W), or None. source: (B, S, H, W) in [-1, 1], or None. words:
        what `numbers` makes of prompts, (B, L), or vectors (B, D), or None. labels: by name, B names of values, None for
        null: `condition(maps, contrast=["T1", None])`. Raises ValueError for a value that is not known, and for a source of
        other values.
        """
        mask = None if label_maps is None else one_hot(label_maps, len(self.classes))
        numbers = {}
        for name, values in labels.items():
            known = (None, *self.labels.get(name, ()))
            if unknown := [value for value in values if value not in known]:
                raise ValueError(f"{name} {unknown[0]!r} is none of {', '.join(known[1:])}")
            numbers[name] = torch.tensor([known.index(value) for value in values])
        source, words = (None if x is None else torch.as_tensor(x) for x in (source, words))
        if source is not None and not (source.abs() <= 1).all():
            raise ValueError(f"a source of {source.dtype}, {source.min():g} to {source.max():g}; it must be in [-1, 1]")
        return Condition(mask, numbers, source, words)

    def numbers(self, prompts: Sequence[str]) -> np.ndarray:
        """Prompts -> the index of each of their words, (B, L) int64 from 1, filled up with 0.

        Raises ValueError for a word that is not known, and for a prompt without words, or of too many.
        """
        rows = []
        for prompt in prompts:
            found = list(dict.fromkeys(split_words(prompt)))  # said twice it is no more
            if len(prompt) > LONGEST or not found:
                what = f"{len(prompt):,} characters, more than {LONGEST}" if len(prompt) > LONGEST else "no word"
                raise ValueError(f"{what}; known are {', '.join(self.words)}")
            if unknown := [word for word in found if word not in self.words]:
                raise ValueError(f"unknown: {', '.join(dict.fromkeys(unknown))}; known are {', '.join(self.words)}")
            rows.append([1 + self.words.index(word) for word in found])
        numbers = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
        for row, found in zip(numbers, rows, strict=True):
            row[: len(found)] = found
        return numbers


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case, without those that tell nothing (IGNORED). T2 FLAIR is FLAIR."""
    text = re.sub(r"\bt2[ -]flair\b", "flair", text.lower())
    return [word for word in re.findall(r"[^\W_]+", text) if word not in IGNORED]


def flag_of(kind: str) -> str:
    """The flag of sample.py that asks for a kind of condition."""
    return "--prompt" if kind == "words" else f"--{kind}"


def drop_flag_of(kind: str) -> str:
    """The flag of train.py that says how often a kind of condition is withheld by itself."""
    return f"--{kind if kind in ('mask', 'source', 'words') else 'label'}-drop"


def one_hot(label_maps, num_classes: int) -> Tensor:
    """Classes (B, H, W) with values 0 .. K-1 -> float32 (B, K, H, W), background included. Raises ValueError for other
    values, fractions among them."""
    labels = torch.as_tensor(np.asarray(label_maps))[:, None]
    mask = labels == torch.arange(num_classes).view(-1, 1, 1)
    if not mask.any(dim=1).all():  # such a pixel would be 0 in all channels, as if no mask was given
        found = f"classes {labels.min():g} to {labels.max():g} in a mask"
        raise ValueError(f"{found}; known are 0 to {num_classes - 1}, whole numbers")
    return mask.float()
