"""How good are the samples? Each question is a function of a `Comparison` that answers in rows of a table.

A number means little by itself, so each row has two neighbours: the same number for real images (nothing can be
expected to do better), and, where there is one, with shuffled masks (nothing should do worse). Every margin is half of a
95 % interval over the subjects (metrics/margin.py); judges, features and what was trained on are taken as given.

A new question is one function here and a line of QUESTIONS, at the end.
"""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from scipy.special import softmax

from ddpm import UserError
from ddpm.evaluation.comparison import Comparison, Sides, contrasts_of
from ddpm.likelihood import bits_per_dim, stratified_times
from ddpm.metrics.fid import fid_infinity, frechet_distance_of_features
from ddpm.metrics.inception_score import CAVEAT, inception_score
from ddpm.metrics.kid import cmmd, gaussian_mmd, median_distance
from ddpm.metrics.kid import kid as kernel_distance
from ddpm.metrics.manifold import memorisation as nearer_than_held_out
from ddpm.metrics.manifold import precision_recall_density_coverage
from ddpm.metrics.margin import margin, share_interval
from ddpm.metrics.paired import dice, psnr, ssim
from ddpm.metrics.segmenter import train_segmenter
from ddpm.metrics.spectrum import foreground, histogram_distance, spectrum_difference_db
from ddpm.metrics.two_sample import two_sample_test
from ddpm.reverse import denoiser
from ddpm.seeds import generator, torch_seed

SMALL = 12  # pixels; of a smaller lesion the outline is most of it, and one pixel is 10 % of the Dice
LIKELIHOOD_IMAGES, LIKELIHOOD_TIMES = 64, 100  # network calls: as many as the product, instead of T for each image
USEFUL_STEPS = 600  # batches of 32 to train a segmenter on samples, and one on as many real images


@dataclass
class Row:
    """A line of the table. The figures are plain floats; None where there is none. UserError for what is no number."""

    metric: str
    samples: float
    margin: float | None = None  # half a 95 % interval of `samples`
    real: float | None = None  # the same for real images in the place of the samples: the best to be had
    wrong: float | None = None  # the same where the masks were shuffled: the worst
    goal: str = ""
    note: str = ""

    def __post_init__(self):
        if not all(np.isfinite(figure) for figure in astuple(self)[1:5] if figure is not None):
            raise UserError(f"{self.metric} is not a finite number here")


def compared(
    c: Comparison, metric: str, statistic, of: Sides, goal: str, note: str = "", rounds: int = 100, halves=None
) -> Row:
    """statistic(samples, reference), beside statistic(stand_in, reference). halves: a quicker one for the margin."""
    sides = (of.samples, c.samples.subjects), (of.reference, c.reference.subjects)
    uncertain = margin(halves or statistic, *sides, rounds=rounds, seed=c.seed)
    value, real = (float(statistic(x, of.reference)) for x in (of.samples, of.stand_in))
    return Row(metric, value, uncertain, real, goal=goal, note=note)


def average(c: Comparison, metric: str, values: np.ndarray, subjects: np.ndarray, **rest) -> Row:
    """The mean of values (k,), of images of these subjects (k,); of bools it is a share."""
    if values.dtype == bool:
        interval = share_interval(values, subjects, c.seed)
        uncertain = None if interval is None else (interval[1] - interval[0]) / 2
    else:
        uncertain = margin(np.mean, (values, subjects), seed=c.seed)
    return Row(metric, float(values.mean()), uncertain, **rest)


# ---------------------------------------------------------------- distances between sets, in features


def kid(c: Comparison) -> list[Row]:
    """Kernel distances: unlike FID, the first two have no bias at small numbers, nor by several slices a subject."""
    size, sigma = min(1000, *map(len, c.features)), median_distance(c.features.reference)
    features = np.concatenate(c.features)
    subjects = np.concatenate([data.subjects for data in (c.samples, c.stand_in, c.reference)])
    ends = np.cumsum([len(rows) for rows in c.features])
    rows = Sides(*np.split(np.arange(len(features)), ends[:-1]))  # their numbers: with features go subjects

    def cubic(a, b, subsets=100):
        of = {"of_a": subjects[a], "of_b": subjects[b]}
        return 1000 * kernel_distance(features[a], features[b], subsets, size, c.seed, **of)[0]

    def gaussian(a, b):
        return gaussian_mmd(features[a], features[b], sigma, of_a=subjects[a], of_b=subjects[b])

    subsets = "all" if {*map(len, c.features)} == {size} else f"mean of 100 subsets of {size}"
    ours = f"{subsets}; below 0 is possible, and as good as 0"
    median = f"sigma {sigma:.3g}, the median distance of real images: sees spread and shape too; below 0 is possible"
    theirs = "features scaled to length 1, sigma 10, which sees little but means; no published number compares"
    found = [compared(c, "KID x 1000", cubic, rows, "0", ours, 20, lambda a, b: cubic(a, b, subsets=4))]
    if sigma > 0:  # of features that do not vary there is no median distance
        found.append(compared(c, "Gaussian MMD, median bandwidth x 1000", gaussian, rows, "0", median, 20))
    return [*found, compared(c, "Gaussian MMD x 1000", cmmd, c.features, "as low as real", theirs, 20)]


def fid(c: Comparison) -> list[Row]:
    """Frechet distance, and its limit for infinitely many samples (from 200 images on)."""
    n, note = len(c.samples), "grows as the number of samples falls: compare only equal numbers"
    if n < 2048:
        c.warnings.append(f"FID wants 2,048 images or more, here are {n}: read KID first")
    distance = frechet_distance_of_features
    rows = [compared(c, "FID", distance, c.features, "as low as real", note, 20)]
    if n < 200:
        return rows

    def limit(a, b):
        return fid_infinity(a, b, seed=c.seed).fid_infinity

    c.fid_line = fid_infinity(c.features.samples, c.features.reference, seed=c.seed)
    note = f"a straight line in 1/N, slope {c.fid_line.slope:.0f}, continued to 1/N = 0"
    if n < 4 * (D := c.features.samples.shape[1]):
        note += f"; too low, as the line bends where N is not many times the {D} features"
    return [*rows, compared(c, "FID, extrapolated", limit, c.features, "as low as real", note, 10)]


def manifold(c: Comparison) -> list[Row]:
    """Are samples where real images are (precision, density), and everywhere they are (recall, coverage)?"""
    notes = {
        "precision": "share of samples inside the real images' neighbourhoods (k = 5)",
        "recall": "share of real images inside the samples' neighbourhoods",
        "density": "precision that counts how many neighbourhoods; 1 is usual, more is possible",
        "coverage": "share of real images with a sample in their neighbourhood; depends on the number of samples",
    }
    sides = (c.features.samples, c.samples.subjects), (c.features.reference, c.reference.subjects)
    uncertain = margin(lambda a, b: precision_recall_density_coverage(b, a), *sides, rounds=10, seed=c.seed)
    got, real = (precision_recall_density_coverage(c.features.reference, x) for x in c.features[:2])
    return [
        Row(name, getattr(got, name), u, getattr(real, name), goal="as real", note=notes[name])
        for name, u in zip(got._fields, [None] * 4 if uncertain is None else uncertain.tolist(), strict=True)
    ]


def inception(c: Comparison) -> list[Row]:
    """The Inception Score, where the features are followed by a classifier."""
    if c.extractor.classifier is None:
        return []
    shuffled = generator(c.seed).permutation(len(c.samples))  # its parts take the rows in order

    def score(features):
        return inception_score(softmax(features @ c.extractor.classifier, axis=1))[0]

    samples, subjects = c.features.samples[shuffled], c.samples.subjects[shuffled]
    real = score(c.features.stand_in[shuffled])
    uncertain = margin(score, (samples, subjects), seed=c.seed)
    return [Row("Inception Score", score(samples), uncertain, real, goal="none", note=CAVEAT)]


# ---------------------------------------------------------------- the images themselves


def spectrum(c: Comparison) -> list[Row]:
    """Fineness of detail (power at each spatial frequency), grey levels, and whether the size of what is shown varies."""
    frequencies = c.spectra.reference[0]
    powers = Sides(*(power for _, power in c.spectra))

    def decibels(a, b):
        return spectrum_difference_db((frequencies, a.mean(0)), (frequencies, b.mean(0)))

    def levels(a, b):
        return histogram_distance(a.mean(0), b.mean(0))

    note = "too smooth or too rough, whatever the anatomy"
    rows = [compared(c, "power spectrum, difference [dB]", decibels, powers, "0", note)]
    note = "Wasserstein-1 distance of the intensity histograms"
    rows.append(compared(c, "grey levels, distance [of 255]", levels, c.grey_levels, "0", note))

    areas = Sides(*(100 * foreground(levels) for levels in c.grey_levels))
    deviation = f"standard deviation {areas.samples.std():.2f}, of real images {areas.reference.std():.2f}"
    note = f"of the pixels that are not air, {deviation}; below 0: too few small heads and large ones"
    metric = "spread of the foreground, difference [% of an image]"
    rows.append(compared(c, metric, lambda a, b: a.std() - b.std(), areas, "0", note))
    return rows


def memorisation(c: Comparison) -> list[Row]:
    """Has the model learnt its training images by heart?"""
    note = "chance that a sample is nearer to a training image than a held-out image is; 1: copies"
    return [compared(c, "memorisation", nearer_than_held_out, c.to_train, "0.5", note)]


def two_sample(c: Comparison) -> list[Row]:
    """Can a network tell samples from real images?"""
    whose = c.reference.subjects, c.samples.subjects
    got = two_sample_test(c.reference.images, c.samples.images, *whose, seed=c.seed)
    note = f"a network trained to tell samples from real images, on {got.n} unseen ones, of subjects it never met"
    return [Row("two-sample test, accuracy", got.accuracy, (got.high - got.low) / 2, 0.5, goal="0.5", note=note)]


# ---------------------------------------------------------------- does the image obey, and is it useful?


def condition_fidelity(c: Comparison) -> list[Row]:
    """Does the image show what was asked for? The judge looks at each sample; at the real image of the same mask (the
    best to be had); and at the sample of another subject (the worst)."""
    (found, real), rows = c.verdicts, []

    def row(metric, chosen, measure, **rest):
        """The mean of measure(a verdict on all samples) (n,) over the chosen ones."""
        of = [measure(verdict)[chosen] for verdict in (found, real)]
        if c.partners is not None:
            of.append(measure(type(found)(*(x[c.partners] for x in found)))[chosen])
        best, *worst = (float(x.mean()) for x in of[1:])
        wrong = worst[0] if worst else None
        return average(c, metric, of[0], c.samples.subjects[chosen], real=best, wrong=wrong, goal="as real", **rest)

    for label, name in enumerate(c.samples.classes[1:], 1):
        index, wanted = c.judge.classes.index(name), c.samples.masks == label
        area = wanted.sum((1, 2))

        def overlap(verdict, index=index, wanted=wanted):
            return dice((verdict.labels == index)[:, None], wanted[:, None]).numpy()

        def pixels(verdict, index=index):
            return (verdict.labels == index).sum((1, 2))

        def patch(verdict, index=index):
            """The pixels of the largest connected patch."""
            found = (np.bincount(ndimage.label(labels == index)[0].ravel())[1:] for labels in verdict.labels)
            return np.array([max(sizes, default=0) for sizes in found])

        large, small = area >= SMALL, (area > 0) & (area < SMALL)
        for size, chosen in ((f"{SMALL} pixels or more", large), (f"under {SMALL} pixels", small)):
            if chosen.any():
                rows.append(row(f"Dice of {name}, {size}", chosen, overlap, note=f"mean over {chosen.sum()} masks"))
        if (none := area == 0).any():
            note = f"a patch of {SMALL} pixels or more of it, in {none.sum()} images whose masks have none"
            rows.append(row(f"false {name}, share of images", none, lambda v: patch(v) >= SMALL, note=note))
            note = f"all pixels of it, mean over the same {none.sum()} images"
            rows.append(row(f"false {name}, area [pixels]", none, pixels, note=note))
    contrast, names = c.samples.labels.get("contrast"), c.samples.vocabulary.labels.get("contrast", ())
    if names and 1 < len(c.judge.contrasts) and {*names} <= {*c.judge.contrasts}:
        index = np.array([c.judge.contrasts.index(name) for name in names])[contrast - 1]
        rows.append(row("contrast as asked", contrast > 0, lambda v: v.contrasts == index))
    return rows


def paired_truth(c: Comparison) -> list[Row]:
    """How close is a sample to the very image that its source belongs to? Of a network that draws masks: how alike are the
    two masks? A single draw is asked here: the mean of several comes closer (docs/uses.md)."""
    if c.samples.source is None:
        return []
    (ours, truth), subjects = (torch.from_numpy(data.images) for data in (c.samples, c.stand_in)), c.samples.subjects

    def row(metric: str, measure, **rest) -> Row:
        wrong = None if c.partners is None else float(measure(ours[c.partners]).mean())
        return average(c, metric, measure(ours).numpy(), subjects, wrong=wrong, **rest)

    if c.model.config.segment:
        marked = (truth >= 128).flatten(1).sum(1).numpy() >= SMALL
        ours, truth, subjects = ours[marked], truth[marked], subjects[marked]
        alike = dice(ours >= 128, truth >= 128).numpy()
        note = f"one draw each, {len(alike)} images with {SMALL} pixels or more of it"
        return [average(c, "Dice of the mask that is drawn", alike, subjects, goal="1", note=note)]
    note = "one draw each; draws that differ as they should are 3 dB below their mean"
    return [
        row("PSNR to the paired truth [dB]", lambda x: psnr(x, truth, 255.0), goal="high", note=note),
        row("SSIM to the paired truth", lambda x: ssim(x, truth, 255.0), goal="1"),
    ]


def train_on_synthetic(c: Comparison) -> list[Row]:
    """Train on synthetic, test on real: a segmenter trained on samples alone, and one trained on as many real images
    of the same masks, are both tested on real images of other subjects."""
    if not c.samples.classes:
        raise UserError("there are no masks")
    last, mirror = len(c.samples.classes) - 1, c.model.config.data == "phantom"
    name, wanted = c.samples.classes[last], c.reference.masks == last
    counted = wanted.sum((1, 2)) >= SMALL
    if not counted.any() or not (c.samples.masks == last).any():
        tested = f"{counted.sum()} of {len(wanted)} real images to test on show {SMALL} pixels or more of {name}"
        shown = (c.samples.masks == last).any((1, 2)).sum()
        raise UserError(f"{tested}, and {shown} of {len(c.samples)} masks to train on any; both are needed")

    def dice_after(images):
        judge = train_segmenter(images, c.samples.masks, *contrasts_of(c.samples), USEFUL_STEPS, c.seed, mirror)
        found = judge.judge(c.reference.images[counted]).labels == last
        return dice(found[:, None], wanted[counted][:, None]).numpy()

    by_samples, by_real = (dice_after(data.images) for data in (c.samples, c.stand_in))
    note = f"{len(c.samples)} pairs, {USEFUL_STEPS} steps; tested on {counted.sum()} real images"
    metric = f"usefulness: Dice of {name} after training on samples"
    subjects = c.reference.subjects[counted]
    return [average(c, metric, by_samples, subjects, real=float(by_real.mean()), goal="as real", note=note)]


def likelihood(c: Comparison) -> list[Row]:
    """The bound on bits per dimension of held-out images (with mask and labels)."""
    model, device = c.model, next(c.model.unet.parameters()).device
    if few := model.config.few_steps:
        raise UserError(f"the bound asks at every time, but {model.name} knows {few} steps alone")
    shown = np.sort(generator(c.seed).permutation(len(c.reference))[:LIKELIHOOD_IMAGES])
    x_0, condition = (x.to(device) for x in c.reference.batch(shown))
    predict_x_0 = denoiser(model.unet, model.schedule, model.config.objective, condition)
    random = torch.Generator().manual_seed(torch_seed(c.seed))
    T = model.schedule.T
    times = stratified_times(T, min(LIKELIHOOD_TIMES, T - 1), random)

    def noise():
        return torch.randn(x_0.shape, generator=random).to(device)

    total = bits_per_dim(predict_x_0, model.schedule, x_0, noise, times=times).total.numpy()
    note = f"{len(total)} held-out images, {len(times)} of {T} terms drawn at random"
    return [average(c, "bits per dimension, at most", total, c.reference.subjects[shown], goal="low", note=note)]


class Question(NamedTuple):
    ask: Callable[[Comparison], list[Row]]
    help: str  # what it asks, costs and needs
    needs: str = ""  # "model": the checkpoint that drew the samples; "masks": one that was trained with masks
    default: bool = True  # asked unless --metrics says otherwise; those that are not cost minutes


# By the word of --metrics, in the order of the table.
QUESTIONS = {
    "kid": Question(kid, "kernel distances: KID, Gaussian MMD"),
    "fid": Question(fid, "Frechet distance, and its limit for infinitely many samples"),
    "manifold": Question(manifold, "precision, recall, density, coverage"),
    "inception-score": Question(inception, "the Inception Score (with --features inception)"),
    "spectrum": Question(spectrum, "power spectrum, grey levels, spread of the foreground"),
    "memorisation": Question(memorisation, "nearest training images (with --ckpt)", "model"),
    "mask": Question(condition_fidelity, "does the image obey the mask, and the contrast? (with --ckpt)", "model"),
    "paired": Question(paired_truth, "closeness to the truth that a source belongs to (with --ckpt)", "model"),
    "two-sample": Question(two_sample, "can a network tell samples from real images? (about a minute)"),
    "useful": Question(train_on_synthetic, "train on synthetic, test on real (with --ckpt; minutes)", "masks", False),
    "likelihood": Question(likelihood, "bits per dimension (with --ckpt; a minute)", "model", False),
}
