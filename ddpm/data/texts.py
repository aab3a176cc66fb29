"""Vectors that another program made of texts: a file of --text-embeddings."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddpm import UserError
from ddpm.runtime.files import reading


class Embeddings(NamedTuple):
    path: str
    texts: list[str]  # N of them
    vectors: np.ndarray  # (N, D) float32

    def of(self, texts: Sequence[str]) -> np.ndarray:
        """The vectors of these texts, (B, D) float32. Raises UserError for a text that is not there."""
        known = {text: i for i, text in enumerate(self.texts)}
        if missing := [text for text in texts if text not in known]:
            raise UserError(f"{self.path}: no vector of {missing[0][:80]!r}; make it with tools/embed.py")
        return self.vectors[[known[text] for text in texts]]


def read_embeddings(path: str | Path) -> Embeddings:
    """A .npz of `texts` (N,) and `vectors` (N, D). Raises UserError."""
    what, remedy = "a .npz of texts and vectors", "make it with tools/embed.py"
    with reading(path, what, remedy), np.load(path, allow_pickle=False) as file:
        texts, vectors = file["texts"], file["vectors"]
    if (
        texts.ndim != 1
        or vectors.ndim != 2
        or len(texts) != len(vectors)
        or vectors.dtype.kind != "f"
        or not vectors.size
    ):
        raise UserError(f"{path}: texts {texts.shape} and vectors {vectors.shape}; (N,) and (N, D) are needed")
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused, too
        vectors = vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        broken = texts[~np.isfinite(vectors).all(axis=1)][0]
        raise UserError(f"{path}: the vector of {str(broken)[:80]!r} has numbers that are not finite; make it again")
    return Embeddings(str(path), texts.tolist(), vectors)
