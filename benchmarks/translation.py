"""Image to image against the paired truth, on held-out slices: diffusion, and a regression of the same network.

    make translation ARGS="--ckpt RUN --regression RUN"     translation, denoising or super-resolution (--source)
    make translation ARGS="--ckpt RUN"                      segmentation (--segment)

A regression is a run with --few-steps 1: its one step draws E[x_0 | source], which no draw can beat in PSNR. What it loses
is asked too: the distance to real images (KID, FID), the fineness of detail, and how sure it is. Of K draws and the truth
each is as likely as any other to be the lowest or the highest, if the draws are right: so the truth lies between them with
probability (K - 1) / (K + 1). (Where 8 bits made several the same, each of them is as likely to be the lowest of them.)
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.data import Slices
from ddpm.data.images import grid as grid_of
from ddpm.data.images import rgb, to_uint8, write_png
from ddpm.data.sources import load_data
from ddpm.evaluation.questions import SMALL
from ddpm.metrics.features import extract, segmenter_features
from ddpm.metrics.fid import frechet_distance_of_features
from ddpm.metrics.kid import kid
from ddpm.metrics.margin import margin
from ddpm.metrics.paired import dice, psnr, ssim
from ddpm.metrics.segmenter import load_segmenter
from ddpm.metrics.spectrum import radial_power_spectrum, spectrum_difference_db
from ddpm.model import Model, Sampling, draw, load_model
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import check_limits, flag
from ddpm.runtime.files import check_file
from ddpm.runtime.progress import progress

BATCH, SHOWN = 25, 4


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/translation.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", required=True, help="a run with --source or --segment on the embedded data")
    parser.add_argument("--regression", help="the same with --few-steps 1")
    parser.add_argument("--n", type=int, default=200, help="test slices (default 200)")
    parser.add_argument("--draws", type=int, default=8, help="of each (default 8)")
    parser.add_argument(
        "--picture", help="write a few rows to this PNG: source | truth | regression | draws | mean | deviation"
    )
    args = parser.parse_args(argv)
    check_limits("draws", args.draws, at_least=1)
    if args.picture is not None:
        check_file(args.picture, "--picture")
        if args.draws < 2:
            raise UserError(f"--picture shows how draws differ: --draws {args.draws} are too few, give 2 or more")
    model = load_model(args.ckpt)
    if not model.vocabulary.source:
        raise UserError(f"{model.name} was trained without a source; give a run with --source or --segment")
    if model.config.data != "phantom":
        raise UserError(f"{model.name} was trained on {model.config.data}; give a run on the embedded data")
    sampling_of(model).complete(model, told(model))
    regression = None if args.regression is None else load_regression(args.regression, model)
    test = load_data(model.config, "test")
    if not 2 <= args.n < len(test):
        raise UserError(f"--n {args.n}: give 2 to {len(test) - 1}, as the test split has {len(test)} images")
    truth = test.part(np.arange(args.n))
    if model.config.segment and (found := marked(truth).sum()) < 2:
        raise UserError(f"--n {args.n}: {found} of these slices have a lesion of {SMALL} pixels or more; give more")
    print(f"{model.name}, step {model.step}: {args.n} test slices, {args.draws} draws of each, of the source alone")
    drawn = np.stack([predict(model, truth, k) for k in range(args.draws)])  # (K, N, 1, H, W)
    answer = None if regression is None else predict(regression, truth, 0)
    if model.config.segment:
        segmentation(test, truth, drawn)
    else:
        translation(test, truth, drawn, answer)
    if args.picture is not None:
        write_png(args.picture, picture(truth, drawn, answer))


def load_regression(path: str, model: Model) -> Model:
    """The regression that the model's draws are compared with. Raises UserError if it is none, or of another task."""
    regression = load_model(path)
    if model.config.segment:
        raise UserError(f"--regression {path}: {model.name} draws masks, which are not compared with one; leave it out")
    if regression.config.few_steps != 1 or regression.config.teacher:
        raise UserError(f"--regression {path}: not trained for one step; give a run with --few-steps 1")
    for name in ("data", "source", "labels", "contrast", "image_size"):
        theirs, ours = (getattr(one.config, name) for one in (regression, model))
        if theirs != ours:
            trained = f"trained with {flag(name)} {theirs or 'none'}, and {model.name} with {ours}"
            raise UserError(f"--regression {path}: {trained}; give one of the same")
    sampling_of(regression).complete(regression, told(regression))
    return regression


def told(model: Model) -> tuple[str, ...]:
    """What the model is asked by: the source, and the contrast that it is to be translated into."""
    return ("source", "contrast") if model.config.source in ("T1", "T2", "FLAIR") else ("source",)


def sampling_of(model: Model) -> Sampling:
    return Sampling("ddim" if model.config.few_steps == 1 else None, guidance=1.0)


def predict(model: Model, data: Slices, k: int) -> np.ndarray:
    """Draw k for each image, asked for by no more than `told` names; (N, C, H, W) uint8."""
    found = []
    for part in progress(np.array_split(np.arange(len(data)), -(-len(data) // BATCH)), f"draw {k}", unit="batch"):
        asked = data.condition(part).map(lambda name, x: x if name in told(model) else torch.zeros_like(x))
        *_, (_, x_0) = draw(model, asked, [(k, int(i)) for i in part], sampling_of(model))
        found.append(to_uint8(x_0))
    return np.concatenate(found)


def inside(truth: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """How probable it is that the truth (N, C, H, W) lies between the lowest and the highest of the draws
    (K, N, C, H, W), all uint8. Values that 8 bits made the same come in any order: of m draws equal to the truth, it is
    below all of them, or above all of them, with a probability of 1 / (m + 1) each."""
    ties = 1 / (1 + (drawn == truth).sum(axis=0))
    low, high = drawn.min(axis=0), drawn.max(axis=0)
    lowest = np.where(truth == low, ties, truth < low)
    highest = np.where(truth == high, ties, truth > high)
    return 1 - lowest - highest


def marked(data: Slices) -> np.ndarray:
    """Which slices, whose images are masks, have a lesion of SMALL pixels or more, (N,) bool."""
    return (data.images >= 128).sum((1, 2, 3)) >= SMALL


def translation(test: Slices, truth: Slices, drawn: np.ndarray, answer: np.ndarray | None) -> None:
    judge = load_segmenter()
    extractor, rest = segmenter_features(judge, "of the embedded data"), test.part(np.arange(len(truth), len(test)))
    reference = extract(extractor, rest.images)
    frequencies, power = radial_power_spectrum(rest.images)

    def row(name: str, images: np.ndarray) -> None:
        cells = ["", ""]
        if images is not truth.images:
            pair = torch.from_numpy(images), torch.from_numpy(truth.images)
            close = [measure(*pair, 255.0).numpy() for measure in (psnr, ssim)]
            margins = [margin(np.mean, (x, truth.subjects)) for x in close]
            cells = [f"{x.mean():.{d}f} ± {m:.{d}f}" for x, m, d in zip(close, margins, (2, 3), strict=True)]
        features = extract(extractor, images)
        size = min(len(images), 200)
        cells.append(f"{1000 * kid(features, reference, subset_size=size)[0]:.0f}")
        cells.append(f"{frechet_distance_of_features(features, reference):.1f}")
        detail = spectrum_difference_db(
            (frequencies, radial_power_spectrum(images)[1].mean(0)), (frequencies, power.mean(0))
        )
        print(f"| {name} | " + " | ".join([*cells, f"{detail:.2f}"]) + " |", flush=True)

    print("\n| | PSNR [dB] | SSIM | KID x 1000 | FID | spectrum [dB] |\n|---|---:|---:|---:|---:|---:|")
    row("real images", truth.images)
    row("the source itself", truth.source)
    row("one draw", drawn[0])
    mean = np.rint(drawn.mean(axis=0)).astype(np.uint8)
    row(f"mean of {len(drawn)} draws", mean)
    if answer is not None:
        row("regression", answer)
    brain, k = truth.images > 25, len(drawn)
    error, spread = np.abs(truth.images.astype(float) - mean), drawn.std(axis=0)
    between = inside(truth.images, drawn)[brain].mean()
    print(
        f"\nthe truth lies between the lowest and the highest of {k} draws in {between:.1%} of the brain's pixels "
        f"(right: {(k - 1) / (k + 1):.1%}); their deviation and the error of their mean: rank correlation "
        f"{spearmanr(spread[brain], error[brain]).statistic:.2f}"
    )
    contrast = [test.vocabulary.labels["contrast"][i - 1] for i in truth.labels["contrast"]]
    for name in dict.fromkeys(contrast):
        of = np.array([other == name for other in contrast])
        values = [
            psnr(torch.from_numpy(x[of]), torch.from_numpy(truth.images[of]), 255.0).mean() for x in (drawn[0], mean)
        ]
        told = f"{name}: one draw {values[0]:.2f} dB, their mean {values[1]:.2f}"
        if answer is not None:
            told += f", regression {psnr(torch.from_numpy(answer[of]), torch.from_numpy(truth.images[of]), 255.0).mean():.2f}"
        print(told)


def segmentation(test: Slices, truth: Slices, drawn: np.ndarray) -> None:
    wanted, counted = truth.images >= 128, marked(truth)
    empty = ~wanted.any((1, 2, 3))
    said = (drawn >= 128).mean(axis=0)  # by which share of the draws

    def row(name: str, found: np.ndarray) -> None:
        alike = dice(torch.from_numpy(found), torch.from_numpy(wanted)).numpy()
        false = f"{(found.sum((1, 2, 3)) >= SMALL)[empty].mean():.1%}" if empty.any() else "no such slice"
        uncertain = margin(np.mean, (alike[counted], truth.subjects[counted]))
        print(f"| {name} | {alike[counted].mean():.3f} ± {uncertain:.3f} | {false} |", flush=True)

    print(f"\n| {counted.sum()} slices with {SMALL} pixels or more | Dice | false, of those without |\n|---|---:|---:|")
    row("one draw", drawn[0] >= 128)
    row(f"most of {len(drawn)} draws", said >= 0.5)
    judge = load_segmenter().judge(truth.source)
    row("the judge, a segmenter trained on the same kind of data", (judge.labels == 4)[:, None])
    wrong, unsure = (said >= 0.5) != wanted, (said > 0) & (said < 1)
    print(
        f"\n{unsure.mean():.1%} of the pixels are not the same in all draws; in them lie {wrong[unsure].sum() / wrong.sum():.1%} of "
        "the wrong ones"
    )
    for low, high in ((0.05, 0.35), (0.35, 0.65), (0.65, 0.95)):
        if not (here := (said > low) & (said <= high)).any():
            continue
        print(
            f"marked in {low:.0%} to {high:.0%} of the draws: truly marked in {wanted[here].mean():.0%} of {here.sum()} pixels"
        )


def picture(truth: Slices, drawn: np.ndarray, answer: np.ndarray | None) -> np.ndarray:
    """A few slices with a lesion: source | truth | regression | two draws | mean | deviation x 5."""
    marked = (truth.masks if truth.masks is not None else truth.images[:, 0] > 0).sum((1, 2))
    rows = np.argsort(-marked)[len(marked) // 6 :][:SHOWN]  # large ones, but not the largest
    spread = (5 * drawn.std(axis=0)).clip(0, 255)
    columns = [
        truth.source,
        truth.images,
        *([] if answer is None else [answer]),
        drawn[0],
        drawn[1],
        drawn.mean(axis=0),
        spread,
    ]
    cells = [[rgb(np.rint(column[i]).astype(np.uint8)) for column in columns] for i in rows]
    return grid_of(np.array(cells))


if __name__ == "__main__":
    sys.exit(main())
