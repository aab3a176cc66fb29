"""How good are the samples? Each question is a function that takes the sets to compare and answers in rows of a table.

A number means little by itself, so each row has two neighbours: the same number for real images (nothing can be
expected to do better), and, where there is one, for images that are wrong in the way the row is about.
"""

import zlib
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.special import softmax

from ddpm.data import Slices
from ddpm.data.images import to_float, to_uint8
from ddpm.likelihood import bits_per_dim, stratified_times
from ddpm.metrics.fid import Extrapolation, fid_infinity, frechet_distance_of_features
from ddpm.metrics.inception_score import CAVEAT, inception_score
from ddpm.metrics.kid import cmmd, kid
from ddpm.metrics.manifold import memorisation, nearest, precision_recall_density_coverage
from ddpm.metrics.paired import dice
from ddpm.metrics.segmenter import Segmenter, Verdict, train_segmenter
from ddpm.metrics.spectrum import histogram_distance, intensity_histogram, radial_power_spectrum, spectrum_difference_db
from ddpm.metrics.two_sample import two_sample_test
from ddpm.model import Model, Sampling, draw
from ddpm.reverse import denoiser
from ddpm.runtime.progress import progress
from ddpm.seeds import generator, torch_seed

SMALL = 12  # pixels; of a smaller lesion the outline is most of it, and one pixel is 10 % of the Dice
LIKELIHOOD_IMAGES, LIKELIHOOD_TIMES = 64, 100  # network calls: as many as the product, instead of T for each image
USEFUL_STEPS = 600  # batches of 32 to train a segmenter on samples, and one on as many real images


@dataclass
class Row:
    """A line of the table. The figures are plain floats; None where there is none."""

    metric: str
    samples: float
    margin: float | None = None  # half a 95 % interval of `samples`
    real: float | None = None  # the same for real images: the best to be had
    wrong: float | None = None  # the same where the masks were shuffled: the worst
    goal: str = ""
    note: str = ""


@dataclass
class Sets:
    """What is compared: samples with held-out real images, of which some stand in for samples (the floor)."""

    samples: np.ndarray  # (n, C, H, W) uint8
    pool: np.ndarray  # (P, C, H, W) uint8, all held-out real images
    reference: np.ndarray  # indices into pool: what samples are compared with
    stand_in: np.ndarray  # indices into pool: real images judged as if they were samples ...
    stand_in_reference: np.ndarray  # ... against these
    train: np.ndarray | None = None  # (N, C, H, W) uint8, what the model was trained on
    asked: Slices | None = None  # the real pairs whose masks and contrasts the samples were asked to follow
    others: Slices | None = None  # held-out pairs beside those
    mirror: bool = False  # may a judge be trained on mirrored images?
    choices: dict[str, str] = field(default_factory=dict)  # every choice behind the numbers, for the reader


def draw_for(
    model: Model, data: Slices, chosen: np.ndarray, sampling: Sampling, seed: int = 0, batch_size: int = 50
) -> np.ndarray:
    """A sample for the mask and the labels of each chosen image of data, (n, C, H, W) uint8. Sample i under a seed is
    the same whatever else is drawn."""
    drawn = []
    for part in progress(np.array_split(chosen, range(batch_size, len(chosen), batch_size)), "sampling", unit="batch"):
        seeds = [(seed, zlib.crc32(str(i).encode()), 0) for i in part]
        *_, (_, x_0) = draw(model, data.condition(part), seeds, sampling)
        drawn.append(to_uint8(x_0))
    return np.concatenate(drawn)


# ---------------------------------------------------------------- distances between sets, in features


def with_margin(statistic, samples: np.ndarray, rounds: int = 20, seed: int = 0) -> tuple[float, float]:
    """statistic(samples), and half of its 95 % interval: 1.96 standard deviations over random halves of the samples.

    Half of n rows, drawn without replacement, scatter about the whole as the whole scatters about the truth (the
    delete-half jackknife; Shao & Wu 1989). Unlike the bootstrap it repeats no row, which a distance to the nearest
    neighbour, or a Frechet distance, would take for a narrower distribution.
    """
    rng = generator(seed)
    halves = [statistic(samples[rng.permutation(len(samples))[: len(samples) // 2]]) for _ in range(rounds)]
    return float(statistic(samples)), float(1.96 * np.std(halves, ddof=1))


# In the next four, fakes (n, D) are features of the samples and reals (P, D) those of the pool.


def frechet_rows(fakes: np.ndarray, reals: np.ndarray, sets: Sets, seed: int) -> tuple[list[Row], Extrapolation | None]:
    """FID, and its limit for infinitely many samples with the line that leads there (None under 200 samples)."""
    reference, stand_in, beside = reals[sets.reference], reals[sets.stand_in], reals[sets.stand_in_reference]
    value, margin = with_margin(lambda x: frechet_distance_of_features(x, reference), fakes, seed=seed)
    floor = frechet_distance_of_features(stand_in, beside)
    few = f"; {len(fakes)} samples are few for a FID, read KID first" if len(fakes) < 2048 else ""
    note = f"grows as the number of samples falls: compare only equal numbers{few}"
    rows, line = [Row("FID", value, margin, floor, goal="as low as real", note=note)], None
    if min(len(fakes), len(stand_in)) >= 200:
        line = fid_infinity(fakes, reference, seed=seed)
        real = fid_infinity(stand_in, beside, seed=seed).fid_infinity
        note = f"a straight line in 1/N, slope {line.slope:.0f}, continued to 1/N = 0"
        rows.append(Row("FID, extrapolated", line.fid_infinity, None, real, goal="as low as real", note=note))
    return rows, line


def kernel_rows(fakes: np.ndarray, reals: np.ndarray, sets: Sets, seed: int) -> list[Row]:
    """KID and CMMD's Gaussian MMD: unlike FID, KID has no bias at small numbers."""
    reference, stand_in, beside = reals[sets.reference], reals[sets.stand_in], reals[sets.stand_in_reference]
    size = min(1000, len(fakes), len(stand_in), len(reference), len(beside))
    mean, std = kid(fakes, reference, subset_size=size, seed=seed)
    floor, _ = kid(stand_in, beside, subset_size=size, seed=seed)
    note = f"100 subsets of {size}; the margin is their standard deviation; below 0 is possible, and as good as 0"
    rows = [Row("KID x 1000", 1000 * mean, 1000 * std, 1000 * floor, goal="0", note=note)]
    value, margin = with_margin(lambda x: cmmd(x, reference), fakes, seed=seed)
    note = "features scaled to length 1, sigma 10; not CLIP's features, so no published number compares"
    return [*rows, Row("Gaussian MMD x 1000", value, margin, cmmd(stand_in, beside), goal="as low as real", note=note)]


def manifold_rows(fakes: np.ndarray, reals: np.ndarray, sets: Sets, seed: int) -> list[Row]:
    """Are samples where real images are (precision, density), and everywhere they are (recall, coverage)?"""
    got = precision_recall_density_coverage(reals[sets.reference], fakes)
    floor = precision_recall_density_coverage(reals[sets.stand_in_reference], reals[sets.stand_in])
    notes = {
        "precision": "share of samples inside the real images' neighbourhoods (k = 5)",
        "recall": "share of real images inside the samples' neighbourhoods",
        "density": "precision that counts how many neighbourhoods; 1 is usual, more is possible",
        "coverage": "share of real images with a sample in their neighbourhood; depends on the number of samples",
    }
    return [
        Row(name, getattr(got, name), None, getattr(floor, name), goal="as real", note=note)
        for name, note in notes.items()
    ]


def inception_score_rows(fakes: np.ndarray, reals: np.ndarray, sets: Sets, classifier: np.ndarray) -> list[Row]:
    """The Inception Score, where features have a classifier (D, K) after them."""

    def score(features):
        return inception_score(softmax(features @ classifier, axis=1))

    mean, std = score(fakes)
    return [Row("Inception Score", mean, std, score(reals[sets.stand_in])[0], goal="none", note=CAVEAT)]


# ---------------------------------------------------------------- the images themselves


def nearest_training(images: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The training image nearest to each image, pixel by pixel: distances (n,) in units of full scale, indices (n,).

    images (n, C, H, W) and train (N, C, H, W) uint8; train may be mapped from a file larger than memory.
    """

    def flat(pictures):
        return pictures.reshape(len(pictures), -1) / 255

    best, index = np.full(len(images), np.inf), np.zeros(len(images), dtype=np.int64)
    for start in progress(range(0, len(train), 2048), "nearest training images"):
        distance, found = nearest(flat(images), flat(train[start : start + 2048]))
        better = distance < best
        best[better], index[better] = distance[better], start + found[better]
    return best, index


def memorisation_rows(sets: Sets, seed: int) -> list[Row]:
    """Has the model learnt its training images by heart?"""
    to_sample, to_real = (nearest_training(images, sets.train)[0] for images in (sets.samples, sets.pool))
    score, low, high = memorisation(to_sample, to_real[sets.reference], seed=seed)
    real = memorisation(to_real[sets.stand_in], to_real[sets.reference], seed=seed).score
    note = "chance that a sample is nearer to a training image than a held-out image is; 1: copies"
    return [Row("memorisation", score, (high - low) / 2, real, goal="0.5", note=note)]


def two_sample_rows(sets: Sets, seed: int) -> list[Row]:
    """Can a network tell samples from real images?"""
    got = two_sample_test(sets.pool[sets.reference], sets.samples, seed=seed)
    note = f"a network trained to tell samples from real images, on {got.n} unseen ones"
    return [Row("two-sample test, accuracy", got.accuracy, (got.high - got.low) / 2, 0.5, goal="0.5", note=note)]


def spectrum_rows(sets: Sets, seed: int) -> list[Row]:
    """Fineness of detail (power at each spatial frequency), and grey levels."""
    reference, stand_in, beside = (sets.pool[i] for i in (sets.reference, sets.stand_in, sets.stand_in_reference))

    def decibels(images, others):
        return spectrum_difference_db(*(radial_power_spectrum(to_float(x)) for x in (images, others)))

    def levels(images, others):
        return histogram_distance(intensity_histogram(images), intensity_histogram(others))

    rows = []
    for name, measure, note in (
        ("power spectrum, difference [dB]", decibels, "too smooth or too rough, whatever the anatomy"),
        ("grey levels, distance [of 255]", levels, "Wasserstein-1 distance of the intensity histograms"),
    ):
        value, margin = with_margin(lambda x, measure=measure: measure(x, reference), sets.samples, 10, seed)
        rows.append(Row(name, value, margin, measure(stand_in, beside), goal="0", note=note))
    return rows


# ---------------------------------------------------------------- does the image obey, and is it useful?


def obedience_rows(verdict: Verdict, real: Verdict, segmenter: Segmenter, asked: Slices) -> list[Row]:
    """Does the image show what was asked for? The judge's Dice between what it finds in each sample and the mask of
    that sample; on the real images of those masks (the ceiling); and against another sample's mask (the floor)."""
    rows = []
    shuffled = np.roll(np.arange(len(asked)), 1)
    for label, name in enumerate(asked.classes[1:], 1) if asked.masks is not None else []:
        index = segmenter.classes.index(name)
        wanted, found = asked.masks == label, verdict.labels == index
        area = wanted.sum((1, 2))
        for text, chosen in (
            (f"{SMALL} pixels or more", area >= SMALL),
            (f"under {SMALL} pixels", (area > 0) & (area < SMALL)),
        ):
            if not chosen.any():
                continue
            this = wanted[chosen][:, None]
            overlap = dice(found[chosen][:, None], this).numpy()
            rows.append(
                Row(
                    f"Dice of {name}, {text}",
                    overlap.mean(),
                    1.96 * overlap.std() / np.sqrt(len(overlap)),
                    real=dice(real.labels[chosen][:, None] == index, this).numpy().mean(),
                    wrong=dice(found[shuffled][chosen][:, None], this).numpy().mean(),
                    goal="as real",
                    note=f"mean over {chosen.sum()} masks",
                )
            )
    names = asked.vocabulary.labels.get("contrast", ())
    if names and 1 < len(segmenter.contrasts) and {*names} <= {*segmenter.contrasts}:
        index = np.array([segmenter.contrasts.index(name) for name in names])[asked.labels["contrast"] - 1]
        right = verdict.contrasts == index
        rows.append(
            Row(
                "contrast as asked",
                right.mean(),
                1.96 * right.std() / np.sqrt(len(right)),
                real=(real.contrasts == index).mean(),
                wrong=(verdict.contrasts[shuffled] == index).mean(),
                goal="as real",
            )
        )
    return rows


def contrasts_of(data: Slices) -> tuple[np.ndarray | None, tuple[str, ...], tuple[str, ...]]:
    """The contrasts (N,) counted from 0, as a judge takes them, the classes, and the contrasts' names."""
    contrast = data.labels.get("contrast")
    names = data.vocabulary.labels.get("contrast", ())
    return None if contrast is None else contrast - 1, data.classes, names


def usefulness_rows(sets: Sets, seed: int) -> list[Row]:
    """Train a segmenter on samples alone, and one on as many real images; test both on other real images."""
    asked, others = sets.asked, sets.others
    last = len(asked.classes) - 1
    wanted = others.masks == last
    counted = wanted.sum((1, 2)) >= SMALL

    def dice_after(images):
        judge = train_segmenter(images, asked.masks, *contrasts_of(asked), USEFUL_STEPS, seed, sets.mirror)
        found = judge.judge(others.images).labels == last
        return dice(found[counted][:, None], wanted[counted][:, None]).numpy()

    by_samples = dice_after(sets.samples)
    return [
        Row(
            f"usefulness: Dice of {asked.classes[last]} after training on samples",
            by_samples.mean(),
            1.96 * by_samples.std() / np.sqrt(len(by_samples)),
            real=dice_after(asked.images).mean(),
            goal="as real",
            note=f"{len(asked)} pairs, {USEFUL_STEPS} steps; tested on {counted.sum()} real images",
        )
    ]


def likelihood_rows(model: Model, others: Slices, seed: int) -> list[Row]:
    """The bound on bits per dimension of held-out images (with mask and contrast)."""
    device = next(model.unet.parameters()).device
    x_0, condition = (x.to(device) for x in others.batch(np.arange(min(LIKELIHOOD_IMAGES, len(others)))))
    predict_x_0 = denoiser(model.unet, model.schedule, model.config.objective, condition)
    random = torch.Generator().manual_seed(torch_seed(seed))
    T = model.schedule.T
    times = stratified_times(T, min(LIKELIHOOD_TIMES, T - 1), random)

    def noise():
        return torch.randn(x_0.shape, generator=random).to(device)

    total = bits_per_dim(predict_x_0, model.schedule, x_0, noise, times=times).total
    return [
        Row(
            "bits per dimension, at most",
            total.mean().item(),
            1.96 * total.std().item() / np.sqrt(len(total)),
            goal="low",
            note=f"{len(total)} held-out images, {len(times)} of {T} terms drawn at random",
        )
    ]
