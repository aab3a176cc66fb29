"""Restoration by the network against the classical ways, on held-out slices: PSNR and SSIM, calls and seconds.

    make restoration                             100 test slices of the embedded data, all tasks
    make restoration ARGS="--n 20 --tasks kspace-4 denoise"

The same network, condition (none) and settings for all. What a classical method has to be told (the weight of total
variation, the width of a filter) is tuned on 20 validation slices, for the PSNR. Images are magnitudes in [0, 1], so the
PSNR's range is 1. The network's rows say how many calls of it an image takes.
"""

import argparse
import importlib.util
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage, signal
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError, restoration
from ddpm.conditions import Condition, flag_of
from ddpm.data import phantom
from ddpm.data.images import to_float, to_uint8
from ddpm.data.sources import load_data
from ddpm.evaluation.questions import SMALL
from ddpm.inverse import (
    Inpainting,
    KSpace,
    Operator,
    SuperResolution,
    denoise,
    denoise_unseen,
    heal,
    predictor_corrector,
    resampled_times,
    restore,
)
from ddpm.metrics.paired import psnr, ssim
from ddpm.metrics.segmenter import load_segmenter
from ddpm.model import Model, Sampling, load_model, noise_source, predictor
from ddpm.reverse import log_snr_times, uniform_times
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import check_limits

TASKS = (
    "kspace-4",
    "kspace-8",
    "kspace-4-ways",
    "kspace-4-bumps",
    "super-resolution-2",
    "inpaint",
    "lesions",
    "denoise",
    "unseen",
    "coverage",
    "anomaly",
)
NOISES = (0.05, 0.1, 0.2)
BATCH = 25


class Bench:
    def __init__(self, args):
        self.model = load_model(args.ckpt)
        check_restores(self.model)
        check_limits("steps", args.steps, at_least=1, at_most=self.model.config.timesteps)
        test, val = load_data(self.model.config, "test"), load_data(self.model.config, "val")
        check_limits("n", args.n, at_least=2, at_most=len(test))  # a margin takes two
        marked = (test.masks[: args.n] == 1).sum((1, 2)) >= SMALL
        if {"lesions", "anomaly"} & {*args.tasks} and not marked.any():
            raise UserError(f"--n {args.n}: none of these slices has a lesion of {SMALL} pixels; give more")
        self.masks = test.masks[: args.n]
        self.images, self.tuning = ((to_float(x.images[:n]) + 1) / 2 for x, n in ((test, args.n), (val, 20)))
        self.calls = 0
        self.draws, self.steps, self.variance = args.draws, args.steps, args.variance

    def predict(self, condition: Condition = Condition(), guidance: float = 1.0):  # noqa: B008 (it is frozen)
        how = Sampling(guidance=guidance, guided=("mask",))
        made = predictor(self.model, condition, how.complete(self.model, condition.given))

        def counted(x_t, t):
            self.calls += 1
            return made(x_t, t)

        return counted

    def by_batch(self, function: Callable, *tensors) -> tuple[Tensor, int]:
        """function of parts of the tensors, put together; and the calls of the network an image took."""
        self.calls, parts = 0, []
        for part in torch.arange(len(self.images)).split(BATCH):
            parts.append(function(*(x[part] for x in tensors)))
        return torch.cat(parts), self.calls // len(parts)

    def noise(self, n: int, seed: int):
        return noise_source([(seed, i) for i in range(n)], self.model.shape, "cpu")

    def drawn(self, operator: Operator, y: Tensor, sigma: float, **how) -> Tensor:
        """The draws of each image, (draws, n, 1, 64, 64)."""
        how = {"draws": False, "prior_variance": self.variance} | how
        draws, times = how.pop("count", self.draws), log_snr_times(self.model.schedule, how.pop("steps", self.steps))
        times = resampled_times(times, restoration.STRETCH, how.pop("repeats", 1))
        walk = how.pop("walk", partial(restore, sigma=sigma, **how))
        found = []
        for seed in range(draws):
            noise = self.noise(len(y), seed)
            *_, image = walk(self.predict(), self.model.schedule, noise(), times, noise, operator, y)
            found.append(operator.shown(image).clamp(0, 1))
        return torch.stack(found)

    def row(self, name: str, images: Tensor, seconds: float = 0.0, calls: int = 0) -> None:
        images = images.clamp(0, 1).float()
        cells = []
        for values, digits in ((psnr(images, self.images, 1.0), 2), (ssim(images, self.images, 1.0), 3)):
            cells.append(f"{values.mean():.{digits}f} ± {1.96 * values.std() / len(values) ** 0.5:.{digits}f}")
        print(f"| {name} | {' | '.join(cells)} | {calls or ''} | {seconds / len(images):.2f} |", flush=True)

    def ask(self, name: str, function: Callable, *tensors) -> Tensor:
        begun = time.perf_counter()
        images, calls = self.by_batch(function, *tensors)
        self.row(name, images, time.perf_counter() - begun, calls)
        return images

    def tuned(self, name: str, method: Callable, settings, measured: Tensor, tuning: Tensor) -> None:
        """The classical method with the setting that does best on the tuning images."""
        best = max(settings, key=lambda s: psnr(each(method, s, tuning).clamp(0, 1), self.tuning, 1.0).mean().item())
        begun = time.perf_counter()
        images = each(method, best, measured)
        self.row(f"{name} ({best:g})", images, time.perf_counter() - begun)


def check_restores(model: Model) -> None:
    """Raises UserError unless the model can be asked at every time for an image of the embedded data, and told nothing
    but what was measured."""
    config = model.config
    if (config.data, tuple(config.image_size), config.labels) != ("phantom", (64, 64), "lesion"):
        raise UserError(f"{model.name}: a model of the embedded data is needed, 64x64, with masks of lesions")
    restoration.check_prior(model)
    if model.vocabulary.source:
        raise UserError(f"{model.name} was trained with a source, and what is measured has none; name another --ckpt")
    if never := [flag_of(kind) for kind in model.vocabulary.given if not config.withholds(kind)]:
        raise UserError(
            f"{model.name} never learnt to do without {never[0]}, and none is told here; name another --ckpt"
        )


def each(method: Callable, setting: float, images: Tensor) -> Tensor:
    return torch.stack([torch.as_tensor(method(image[0].numpy(), setting))[None] for image in images]).float()


def head(title: str) -> None:
    print(f"\n| {title} | PSNR [dB] | SSIM | calls | s/image |\n|---|---:|---:|---:|---:|", flush=True)


# ---------------------------------------------------------------- the tasks


def scans(images: Tensor, acceleration: float, bumps: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """k-space (n, 1, H, W) of each image, with a phase and lines of its own; the lines, and the phase found from the middle.
    bumps [radian]: the deviation of a random part of the phase, white noise smoothed by 10 pixels."""
    ys, known, phases = [], [], []
    for i, image in enumerate(images):
        random = torch.Generator().manual_seed(i)
        bump = ndimage.gaussian_filter(np.random.default_rng(i).standard_normal(image.shape[1:]), 10, mode="reflect")
        image = image * torch.exp(1j * torch.from_numpy(bumps * bump / bump.std()).float())
        y = restoration.simulated_kspace(image[None], acceleration, "equispaced", False, 0.0, random)
        lines = (y != 0).any(dim=-2)[0, 0]
        ys.append(y)
        known.append(lines.float().view(1, 1, 1, -1))
        phases.append(restoration.estimated_phase(y[0, 0], restoration.unbroken(lines))[None, None])
    return torch.cat(ys), torch.cat(known), torch.cat(phases)


def total_variation(y: Tensor, known: Tensor, phase: Tensor, weight: float, rounds: int = 60) -> Tensor:
    """Compressed sensing: |y - A x|^2 / 2 + weight TV(x), by proximal gradient steps from the zero-filled image."""
    from skimage.restoration import denoise_tv_chambolle

    operator = KSpace(known, phase, estimated=True)
    x = operator.lower(operator.pseudo_inverse(y))
    for _ in range(rounds):
        operator = operator.refined(x, y, 0.2)  # the error at which it came nearest, of 0.05 to 2, on 20 slices
        lifted = operator.lift(x)
        x = operator.lower(lifted + operator.pseudo_inverse(y - operator.apply(lifted)))
        x = each(lambda image, w: denoise_tv_chambolle(image, weight=w, max_num_iter=20), weight, x)
    return x


def kspace(bench: Bench, acceleration: float) -> None:
    y, known, phase = scans(bench.images, acceleration)
    head(f"k-space, {acceleration:g} times (realised {(64 / known.sum(-1)).mean():.2f}), with a phase")
    bench.row("zero-filled", KSpace(known).pseudo_inverse(y).abs())
    tune = scans(bench.tuning, acceleration)
    score = {
        w: psnr(total_variation(*tune, w).clamp(0, 1), bench.tuning, 1.0).mean() for w in (0.003, 0.01, 0.02, 0.04)
    }
    weight = max(score, key=score.get)
    begun = time.perf_counter()
    bench.row(f"total variation ({weight:g})", total_variation(y, known, phase, weight), time.perf_counter() - begun)
    ours = lambda y, k, p, **how: bench.drawn(KSpace(k, p, estimated=True), y, 0.0, **how).mean(0)  # noqa: E731
    bench.ask("the network, one draw", partial(ours, count=1), y, known, phase)
    bench.ask(f"**the network, mean of {bench.draws} draws**", ours, y, known, phase)


def bumpy(bench: Bench) -> None:
    """A phase that is no polynomial, as of a scan."""
    head("k-space, 4 times, a single walk, a phase with bumps")
    for bumps in (0.0, 0.2, 0.5):
        ours = lambda y, k, p: bench.drawn(KSpace(k, p, estimated=True), y, 0.0, count=1).mean(0)  # noqa: E731
        bench.ask(f"bumps of {bumps:g} radian", ours, *scans(bench.images, 4, bumps))


def ways(bench: Bench) -> None:
    """The papers' settings of the one walk, and the predictor-corrector, on the same scans; a single draw each."""
    y, known, phase = scans(bench.images, 4)
    head("k-space, 4 times, a single walk")
    for name, how in {
        "zeta = 1 (the default)": {},
        "zeta = 0.3 (DiffPIR)": dict(zeta=0.3),
        "zeta = 0": dict(zeta=0.0),
        "a draw in each step (DAPS)": dict(draws=True),
        "a draw in each step, r = s": dict(draws=True, prior_variance=np.inf),
        "zeta = 1, 10 steps": dict(steps=10),
        "zeta = 1, 60 steps": dict(steps=60),
        "zeta = 1, each 5 steps walked twice (RePaint)": dict(repeats=2),
        "predictor and corrector (Score-MRI), 50 steps": dict(walk=predictor_corrector, steps=50),
    }.items():
        one = lambda y, k, p, how=how: bench.drawn(KSpace(k, p, estimated=True), y, 0.0, count=1, **how).mean(0)  # noqa: E731
        bench.ask(name, one, y, known, phase)


def super_resolution(bench: Bench) -> None:
    operator = SuperResolution(2)
    y, tune = operator.apply(bench.images), operator.apply(bench.tuning)
    head("super-resolution, 2 times each way")
    bench.row("pixels repeated", operator.pseudo_inverse(y))
    spline = lambda image, order: ndimage.zoom(image, 2, order=int(order), mode="nearest", grid_mode=True)  # noqa: E731
    bench.tuned("spline of order", spline, (1, 3, 5), y, tune)
    bench.ask(f"**the network, mean of {bench.draws} draws**", lambda y: bench.drawn(operator, y, 0.0).mean(0), y)


def inpaint(bench: Bench) -> None:
    """A square of 16 x 16 pixels in the middle of the brain."""
    known = torch.ones(64, 64)
    known[24:40, 24:40] = 0
    y = known * bench.images
    head("inpainting, a square of 16x16 pixels")
    bench.row("the mean of what is known", torch.where(known > 0, y, (y.sum((2, 3)) / known.sum())[..., None, None]))
    from skimage.restoration import inpaint_biharmonic

    begun = time.perf_counter()
    smooth = each(lambda image, _: inpaint_biharmonic(image, known.numpy() == 0), 0, y)
    bench.row("biharmonic", smooth, time.perf_counter() - begun)
    bench.ask(
        f"**the network, mean of {bench.draws} draws**", lambda y: bench.drawn(Inpainting(known), y, 0.0).mean(0), y
    )


def lesions(bench: Bench) -> None:
    """A lesion put into healthy tissue, and one taken out: what does the judge of the embedded data see afterwards?"""
    judge, truth = load_segmenter(), bench.masks == 1

    def seen_after(region: np.ndarray, masks: np.ndarray) -> np.ndarray:
        """Where the judge sees a lesion when the region (n, H, W) was drawn anew under the masks."""
        known, condition = torch.from_numpy(~region)[:, None].float(), bench.model.vocabulary.condition(masks)
        times, found = log_snr_times(bench.model.schedule, bench.steps), []
        for part in torch.arange(len(known)).split(BATCH):
            operator, predict = Inpainting(known[part]), bench.predict(condition[part], bench.model.config.guidance)
            noise = bench.noise(len(part), 0)
            y = operator.apply(bench.images[part])
            *_, image = restore(predict, bench.model.schedule, noise(), times, noise, operator, y)
            found.append(to_uint8(2 * image - 1))
        return judge.judge(np.concatenate(found)).labels == 4

    v, u = np.mgrid[:64, :64]
    disc = (v - 28) ** 2 + (u - 24) ** 2 <= 5**2
    region = np.broadcast_to(ndimage.binary_dilation(disc, iterations=3), truth.shape)
    brain = (bench.images[:, 0].numpy() > 0.1)[:, disc].all(1)
    chosen = brain & ~(ndimage.binary_dilation(truth, iterations=3, axes=(1, 2)) & region).any((1, 2))
    new = seen_after(region, (truth | disc).astype(np.uint8)) & ~truth
    dice = 2 * (new & disc).sum((1, 2)) / (new.sum((1, 2)) + disc.sum())
    print(f"\nlesion put in: Dice {dice[chosen].mean():.3f} with the disc that was asked for, {chosen.sum()} slices")

    region = ndimage.binary_dilation(truth, iterations=3, axes=(1, 2))
    left = (seen_after(region, np.zeros_like(bench.masks)) & region).sum((1, 2))
    before = (judge.judge(to_uint8(2 * bench.images - 1)).labels == 4) & region
    chosen = before.sum((1, 2)) >= SMALL
    print(
        f"lesion taken out: in {(left[chosen] < SMALL).mean():.1%} of {chosen.sum()} slices the judge sees under {SMALL} pixels "
        f"of it; {left[chosen].sum() / before[chosen].sum():.1%} of its area is left"
    )


def filters(sigma: float) -> dict:
    """Name -> (method, settings). Each gets the image and one setting."""
    from skimage.restoration import denoise_nl_means, denoise_tv_chambolle

    return {
        "mean": (lambda x, width: ndimage.uniform_filter(x, int(width)), (2, 3, 5)),
        "median": (lambda x, width: ndimage.median_filter(x, int(width)), (2, 3, 5)),
        "Gaussian": (ndimage.gaussian_filter, (0.4, 0.6, 0.8, 1.0, 1.3)),
        "Wiener": (lambda x, width: signal.wiener(x.astype(float), int(width), sigma**2), (3, 5, 7)),
        "non-local means": (
            lambda x, h: denoise_nl_means(x, patch_size=5, patch_distance=9, h=h * sigma, sigma=sigma),
            (0.4, 0.6, 0.8, 1.0),
        ),
        "total variation": (
            lambda x, w: denoise_tv_chambolle(x, weight=w * sigma, max_num_iter=200),
            (0.5, 0.8, 1.1, 1.5),
        ),
    }


def denoising(bench: Bench) -> None:
    for gaussian in (True, False):
        for sigma in NOISES:
            random = torch.Generator().manual_seed(0)
            y, tune = (restoration.noisy(x, sigma, gaussian, random) for x in (bench.images, bench.tuning))
            head(f"{'Gaussian' if gaussian else 'Rician'} noise of {sigma:g}")
            bench.row("noisy", y)
            if not gaussian:  # the filters get the same correction of a magnitude's bias as the network
                y, tune = (restoration.without_rician_bias(x, sigma) for x in (y, tune))
            for name, (method, settings) in filters(sigma).items():
                bench.tuned(name, method, settings, y, tune)
            one = lambda y, sigma=sigma: denoise(bench.predict(), bench.model.schedule, y, sigma)  # noqa: E731
            bench.ask("**the network, one call**", one, y)


def unseen(bench: Bench) -> None:
    """The noise that all of the embedded images have, and that no network saw an image without: 1 to 2.5 % of full scale.
    The truth is the phantom rendered without it; y is the image that the network knows as clean."""
    kept, subjects = bench.images, [phantom.draw_subject(0, "test", i) for i in range(len(bench.images))]
    tuning = [phantom.draw_subject(0, "val", i) for i in range(len(bench.tuning))]
    sigma = sum(subject.sigma for subject in subjects) / len(subjects)
    clean, known = (
        torch.from_numpy(np.stack([phantom.render(replace(s, sigma=0.0), 64)[0] for s in some])[:, None] / 255).float()
        for some in (subjects, tuning)
    )
    y, tune, bench.images, bench.tuning = kept, bench.tuning, clean, known
    head(f"the images' own noise, {sigma:.3f} on average")
    bench.row("noisy", y)
    for name, (method, settings) in filters(sigma).items():
        bench.tuned(name, method, (*settings, 1.3, 1.6) if "means" in name else settings, y, tune)
    bench.ask(
        "the network, one call, as if its images were clean",
        lambda y: denoise(bench.predict(), bench.model.schedule, y, sigma),
        y,
    )
    for alpha in (0.35, 0.5, 1.0):

        def several(y, alpha=alpha):
            noise = bench.noise(len(y), 0)
            drawn = [denoise_unseen(bench.predict(), bench.model.schedule, y, sigma, noise, alpha) for _ in range(16)]
            return torch.stack(drawn).mean(0)

        bench.ask(f"Noisier2Noise, alpha {alpha:g}, mean of 16", several, y)
    bench.images, bench.tuning = kept, tune


def coverage(bench: Bench) -> None:
    """Is the truth inside the interval that the draws span? k-space, 4 times."""
    y, known, phase = scans(bench.images, 4)
    draws = torch.cat(
        [
            bench.drawn(
                KSpace(known[p], phase[p], estimated=True),
                y[p],
                0.0,
                count=16,
                draws=True,
                prior_variance=restoration.DRAWN_VARIANCE,
            )
            for p in torch.arange(len(y)).split(BATCH)
        ],
        dim=1,
    )
    mean, deviation = draws.mean(0), draws.std(0)
    inside = ((bench.images - mean).abs() <= 2.13 * deviation * (1 + 1 / 16) ** 0.5).float()  # Student's t, 15 degrees
    brain = bench.images > 0.1
    error = (mean - bench.images).abs()
    rank = np.corrcoef(deviation.flatten().argsort().argsort(), error.flatten().argsort().argsort())[0, 1]
    print(f"\ncoverage: {inside.mean():.1%} of all pixels lie inside their 95 % interval of 16 draws, {inside[brain].mean():.1%} "
          f"of those brighter than 0.1; rank correlation of deviation and error {rank:.2f}")  # fmt: skip


def anomaly(bench: Bench) -> None:
    """The lesion's pixels against all others: area under the curve, and Dice at the threshold that is best for all slices
    together. Beside it the intensity itself, above the slice's median of the brain, or below where that is better."""
    model, lesion = bench.model, bench.masks == 1
    with_lesion = lesion.sum((1, 2)) >= 12
    found = {}
    healthy = model.vocabulary.condition(np.zeros((BATCH, 64, 64), np.uint8))
    spaced = uniform_times(model.schedule.T, restoration.HEAL_STEPS)
    for start in (0.3, 0.4, 0.5, 0.6):
        times, maps = [t for t in spaced if t <= start * model.schedule.T], []
        for part in torch.arange(len(bench.images)).split(BATCH):
            predict = bench.predict(healthy[: len(part)], restoration.HEAL_GUIDANCE)
            images = bench.images[part]
            healed = [
                heal(predict, model.schedule, images, times, bench.noise(len(part), seed))
                for seed in range(bench.draws)
            ]
            maps.append((images - torch.stack(healed).mean(0)).abs())
        found[f"healed from t = {start:g} T"] = torch.cat(maps)[:, 0].numpy()
    image = bench.images[:, 0].numpy()
    middle = np.array([np.median(x[x > 0.1]) for x in image])[:, None, None]
    found["brighter than the brain's median"] = (image - middle) * (image > 0.1)
    found["different from the brain's median"] = np.abs(image - middle) * (image > 0.1)
    print("\n| anomaly maps | AUROC | best Dice |\n|---|---:|---:|")
    for name, maps in found.items():
        maps = np.stack([ndimage.median_filter(x, restoration.SMOOTHED) for x in maps[with_lesion]])
        print(
            f"| {name} | {auroc(maps, lesion[with_lesion]):.3f} | {best_dice(maps, lesion[with_lesion]):.3f} |",
            flush=True,
        )


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """The share of pairs of a pixel inside and one outside in which the inner one scores higher."""
    from scipy.stats import rankdata

    ranks, inside = rankdata(scores.ravel()), truth.ravel()
    n = inside.sum()
    return float((ranks[inside].sum() - n * (n + 1) / 2) / (n * (len(ranks) - n)))


def best_dice(scores: np.ndarray, truth: np.ndarray) -> float:
    """The mean over slices of Dice at the one threshold that makes it largest."""

    def at(threshold):
        found = scores > threshold
        return (2 * (found & truth).sum((1, 2)) / (found.sum((1, 2)) + truth.sum((1, 2)))).mean()

    return float(max(map(at, np.quantile(scores, np.linspace(0.8, 0.999, 60)))))


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/restoration.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", help="default: the newest in results/, or the model in the box")
    parser.add_argument("--n", type=int, default=100, help="slices (default 100)")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--draws", type=int, default=restoration.DRAWS)
    parser.add_argument("--steps", type=int, default=restoration.STEPS)
    parser.add_argument("--variance", type=float, default=restoration.PRIOR_VARIANCE)
    args = parser.parse_args(argv)
    check_limits("draws", args.draws, at_least=1)
    check_limits("variance", args.variance, above=0)
    if importlib.util.find_spec("skimage") is None:  # now, not after half of the work
        raise UserError("the filters need scikit-image: `make restoration`, or pip install -r requirements/filters.txt")
    torch.manual_seed(0)
    bench = Bench(args)
    print(f"{bench.model.name}: step {bench.model.step}; {args.n} test slices")
    for task in args.tasks:
        match task.split("-"):
            case ["kspace", acceleration]:
                kspace(bench, float(acceleration))
            case ["kspace", _, "bumps"]:
                bumpy(bench)
            case ["kspace", _, "ways"]:
                ways(bench)
            case ["super", *_]:
                super_resolution(bench)
            case ["inpaint"]:
                inpaint(bench)
            case ["lesions"]:
                lesions(bench)
            case ["denoise"]:
                denoising(bench)
            case ["unseen"]:
                unseen(bench)
            case ["coverage"]:
                coverage(bench)
            case ["anomaly"]:
                anomaly(bench)


if __name__ == "__main__":
    sys.exit(main())
