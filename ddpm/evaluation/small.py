"""A small evaluation, quick enough to be taken while training."""

from dataclasses import replace

import numpy as np

from ddpm import UserError
from ddpm.data import Slices
from ddpm.evaluation.comparison import Comparison, draw_for, split_by_subject
from ddpm.evaluation.questions import condition_fidelity
from ddpm.metrics.features import segmenter_features
from ddpm.metrics.kid import kid
from ddpm.metrics.segmenter import load_segmenter
from ddpm.model import Model, Sampling

IMAGES = 100


def sides(held_out: Slices) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the images in whose place samples are drawn, and of those that they are compared with."""
    return split_by_subject(held_out, min(IMAGES, len(held_out) // 2), seed=0)


def check_enough(held_out: Slices) -> None:
    """Raises UserError where held-out images are too few to compare."""
    found = [len(side) for side in sides(held_out)] if len(held_out) > 1 else [0, len(held_out)]
    if min(found) < 2:
        found = f"the validation images and their subjects give {found[0]} and {found[1]}"
        raise UserError(
            f"--evaluate-every needs two samples and two images of other subjects, and {found}; leave it out"
        )


def small_evaluation(model: Model, held_out: Slices) -> dict[str, float]:
    """KID of samples for a few held-out masks to the held-out images of other subjects, in the features of the embedded
    data's judge; on that data also whether they obey (Dice of the lesion, contrast)."""
    chosen, others = sides(held_out)
    sampling = Sampling(precision=model.config.precision)
    samples = replace(held_out.part(chosen), images=draw_for(model, held_out, chosen, sampling, batch_size=24))
    judge = load_segmenter()
    c = Comparison(samples, held_out, chosen, others, segmenter_features(judge, "of the embedded data"), judge)
    of = {"of_a": c.samples.subjects, "of_b": c.reference.subjects}
    mean, std = kid(c.features.samples, c.features.reference, subset_size=len(chosen), **of)
    scores = {"kid": mean, "kid_std": std, "evaluated": len(chosen)}
    if model.config.data == "phantom":
        for row in condition_fidelity(c):
            scores |= {row.metric: row.samples, f"{row.metric}, real": row.real}
    return scores
