"""Does each score move the way it should? Real images of the embedded data, damaged in ways that are known, and models
early and late in training, each scored as samples would be.

    noise            Gaussian, 8 grey levels
    blur             Gaussian, 0.6 pixels: hardly visible
    wrong contrast   the same subjects in the next contrast (T1 -> T2 -> FLAIR -> T1), the labels left as they were
    no lesions       the same subjects without their lesions, the masks left as they were
    copies           50 training images, over and over
    false lesions    a lesion in every subject that has none, the empty masks left as they were

    python benchmarks/damage.py --n 1000 --early results/RUN/checkpoints/step_000500.pt --late results/RUN/checkpoints/step_003062.pt
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.data import Slices, phantom
from ddpm.data.sources import load_data
from ddpm.evaluation.comparison import Comparison, Sides, draw_for, nearest_training
from ddpm.evaluation.questions import QUESTIONS, Row
from ddpm.evaluation.report import figure
from ddpm.metrics.features import segmenter_features
from ddpm.metrics.segmenter import load_segmenter
from ddpm.model import Model, Sampling, load_model
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import Config, check_limits


def damaged(pairs: Slices, train: np.ndarray, split: str, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> the images of `pairs`, the `chosen` subjects of a split, damaged; uint8 (n, 1, H, W)."""
    rng = np.random.default_rng(0)
    subjects = [
        phantom.draw_subject(0, split, int(i)) for i in tqdm(chosen, desc="subjects", leave=False, disable=None)
    ]
    size, contrasts = pairs.images.shape[2:], phantom.CONTRASTS
    following = [contrasts[(subject.contrast + 1) % 3] for subject in subjects]
    other = np.random.default_rng(1)
    ill = [s if s.lesion else replace(s, lesion=phantom._draw_lesion(other, s)) for s in subjects]
    noisy = pairs.images + rng.normal(0, 8, pairs.images.shape)
    blurred = ndimage.gaussian_filter(pairs.images.astype(np.float32), (0, 0, 0.6, 0.6))  # of uint8 it would round down
    return {
        "real": pairs.images,
        "noise": np.rint(noisy.clip(0, 255)).astype(np.uint8),
        "blur": np.rint(blurred.clip(0, 255)).astype(np.uint8),
        "wrong contrast": np.stack([phantom.render(s, size, c)[0] for s, c in zip(subjects, following, strict=True)])[
            :, None
        ],
        "no lesions": np.stack([phantom.render(replace(s, lesion=None), size)[0] for s in subjects])[:, None],
        "false lesions": np.stack([phantom.render(s, size)[0] for s in ill])[:, None],
        "copies": train[rng.integers(0, 50, len(chosen))],
    }


def scores(
    samples: np.ndarray, real: Slices, n: int, train: Slices, leave_out: tuple[str, ...] = (), far=None
) -> list[Row]:
    """Every score of `samples` as if they had been drawn for the masks and labels of the first n real images.

    far: the distances of these, and of the other real images, to the nearest training image, if they are known.
    """
    asked, others = np.arange(n), np.arange(n, len(real))
    judge = load_segmenter()
    extractor = segmenter_features(judge, "of the embedded data")
    c = Comparison(replace(real.part(asked), images=samples), real, asked, others, extractor, judge, train=train)
    if far is not None:
        c.to_train = Sides(nearest_training(samples, train.images)[0], *far)
    names = [name for name, question in QUESTIONS.items() if question.default and name not in leave_out]
    return [row for name in names for row in QUESTIONS[name].ask(c)]


def load_models(args, test: Slices) -> dict[str, tuple[Model, Sampling]]:
    """Name -> the model of --early or --late, as far as they are given, and how it draws. Raises UserError if it cannot
    draw for the masks of the test images."""
    models = {}
    for name in ("early", "late"):
        if (path := getattr(args, name)) is None:
            continue
        model = load_model(path)
        if (
            model.config.data != "phantom"
            or model.vocabulary != test.vocabulary
            or model.shape != test.images.shape[1:]
        ):
            needed = "masks of lesions, all contrasts, images of {}x{}".format(*test.images.shape[2:])
            raise UserError(f"--{name} {path}: a model of the embedded data is needed, of {needed}")
        models[f"{name} model"] = model, Sampling(precision=args.precision).complete(model, test.vocabulary.given)
    return models


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/damage.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--n", type=int, default=1000, help="images of each kind (default 1000)")
    parser.add_argument("--early", help="a checkpoint early in training")
    parser.add_argument("--late", help="a checkpoint at its end")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args(argv)
    test = load_data(Config(), "test")
    check_limits("n", args.n, at_least=40, at_most=len(test) - 40)  # as many are left to compare with
    models, train = load_models(args, test), load_data(Config(), "train")
    pairs = test.part(np.arange(args.n))
    sets = damaged(pairs, train.images, "test", np.arange(args.n))
    for name, (model, how) in models.items():
        sets[name] = draw_for(model, pairs, np.arange(args.n), how)
    far = np.split(nearest_training(test.images, train.images)[0], [args.n])
    columns = {name: scores(images, test, args.n, train, far=far) for name, images in sets.items()}
    print(f"| {args.n} images each | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for rows in zip(*columns.values(), strict=True):
        print(f"| {rows[0].metric} | " + " | ".join(figure(row.samples, row.margin) for row in rows) + " |")


if __name__ == "__main__":
    sys.exit(main())
