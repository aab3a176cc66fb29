"""A small evaluation, quick enough to be taken while training."""

import numpy as np

from ddpm.data import Slices
from ddpm.evaluation.questions import draw_for, obedience_rows
from ddpm.metrics.features import extract, segmenter_features
from ddpm.metrics.kid import kid
from ddpm.metrics.segmenter import load_segmenter
from ddpm.model import Model, Sampling

IMAGES = 100
STEPS = 10


def small_evaluation(model: Model, held_out: Slices) -> dict[str, float]:
    """KID of samples for a few held-out masks to the other held-out images, in the features of the embedded data's
    judge; on that data also whether they obey (Dice of the lesion, contrast)."""
    chosen, others = np.split(np.arange(len(held_out)), [min(IMAGES, len(held_out) // 2)])
    sampling = Sampling(steps=min(STEPS, model.config.timesteps), precision=model.config.precision)
    samples = draw_for(model, held_out, chosen, sampling, batch_size=24)
    judge = load_segmenter()
    verdict = judge.judge(samples)
    extractor = segmenter_features(judge, "of the embedded data")
    real = extract(extractor, held_out.images[others], keep=True)  # the same every time
    mean, std = kid(verdict.features, real, subset_size=len(chosen))
    scores = {"kid": mean, "kid_std": std, "evaluated": len(chosen)}
    if model.config.data == "phantom":
        asked = held_out.part(chosen)
        for row in obedience_rows(verdict, judge.judge(asked.images), judge, asked):
            scores |= {row.metric: row.samples, f"{row.metric}, real": row.real}
    return scores
