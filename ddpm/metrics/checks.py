"""What every metric asks of its input before it counts: finite numbers, enough samples. One place, one wording."""

import numpy as np
import torch

from ddpm import UserError


def feature_sets(*sets, at_least: int = 2) -> list[np.ndarray]:
    """The given sets of features, each (N, D) with D in common, as float64 arrays.

    at_least: the fewest samples N that the metric can work with.
    Raises UserError, naming the set by its place among the arguments, if it holds NaN or infinity or is too small;
    ValueError if a shape is wrong.
    """
    arrays = [np.ascontiguousarray(features, dtype=np.float64) for features in sets]
    for which, array in zip(("first", "second"), arrays, strict=False):
        name = f"the {which} set of features" if len(arrays) > 1 else "the set of features"
        if array.ndim != 2 or array.shape[1] != arrays[0].shape[-1]:
            raise ValueError(f"{name} has shape {array.shape}; it must be (N, D), with the same D in every set")
        if len(array) < at_least:
            needed = f"{len(array)} where this score needs at least {at_least}"
            raise UserError(f"{name}: too few samples, {needed}; add images")
        require_finite(name, array)
    return arrays


def require_finite(name: str, values) -> None:
    """Raises UserError if any of the values (array or tensor of any shape) is NaN or infinite."""
    finite = torch.isfinite(values).cpu().numpy() if torch.is_tensor(values) else np.isfinite(values)
    if not finite.all():
        found = f"{(~finite).sum()} of {finite.size} values are NaN or infinite"
        raise UserError(f"{name}: {found}; look at the images and the network that they came from")
