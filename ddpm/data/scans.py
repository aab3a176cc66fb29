"""What formats of volumes share: the slices of a scan that show something, each contrast in a window of its own."""

from collections.abc import Iterator

import numpy as np

from ddpm.data.layout import Decoded, Findings
from ddpm.data.volumes import foreground_share, window

MIN_BRAIN = 0.02  # slices with a smaller share of brain are left out: the top of the head, and air
TOO_LITTLE_BRAIN = f"slices with less than {MIN_BRAIN:.0%} brain"


def brain_slices(name: str, paths, contrasts, labels, findings: Findings) -> Iterator[Decoded]:
    """Contrasts, each (Z, H, W), their files, and labels (Z, H, W) or None -> an image for each slice with brain and
    each contrast. Raises UserError for a contrast of a single value."""
    windows = [window(path, slices) for path, slices in zip(paths, contrasts, strict=True)]
    brain = np.maximum.reduce([foreground_share(slices) for slices in contrasts]) >= MIN_BRAIN
    findings.left_out[TOO_LITTLE_BRAIN] += int((~brain).sum())
    for z in np.flatnonzero(brain):
        of_slice = None if labels is None else labels[z]
        for contrast, slices in enumerate(contrasts):
            yield Decoded(f"{name} slice {z}", slices[z][None], of_slice, windows[contrast], contrast)
