"""Does each score move the way it should? Real images of the embedded data, damaged in ways that are known, and models
early and late in training, each scored as samples would be.

    noise            Gaussian, 8 grey levels
    blur             Gaussian, 0.6 pixels: hardly visible
    wrong contrast   the same subjects in the next contrast (T1 -> T2 -> FLAIR -> T1), the labels left as they were
    no lesions       the same subjects without their lesions, the masks left as they were
    copies           50 training images, over and over

    python benchmarks/damage.py --n 1000 --early results/RUN/checkpoints/step_000500.pt --late results/RUN/checkpoints/step_004181.pt
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from scipy import ndimage
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm.data import Slices, phantom
from ddpm.evaluation import questions as evaluation
from ddpm.evaluation.questions import Row, Sets
from ddpm.evaluation.report import figure
from ddpm.metrics.segmenter import load_segmenter
from ddpm.runtime import checkpoint
from ddpm.runtime.config import Config, one_line_errors
from ddpm.schedule import make_schedule
from train import load_data


def damaged(pairs: Slices, train: np.ndarray, split: str, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """Name -> the images of `pairs`, the `chosen` subjects of a split, damaged; uint8 (n, 1, H, W)."""
    rng = np.random.default_rng(0)
    subjects = [
        phantom.draw_subject(0, split, int(i)) for i in tqdm(chosen, desc="subjects", leave=False, disable=None)
    ]
    size, contrasts = pairs.images.shape[2:], phantom.CONTRASTS
    following = [contrasts[(subject.contrast + 1) % 3] for subject in subjects]
    noisy = pairs.images + rng.normal(0, 8, pairs.images.shape)
    return {
        "real": pairs.images,
        "noise": np.rint(noisy.clip(0, 255)).astype(np.uint8),
        "blur": ndimage.gaussian_filter(pairs.images, (0, 0, 0.6, 0.6)),
        "wrong contrast": np.stack([phantom.render(s, size, c)[0] for s, c in zip(subjects, following, strict=True)])[
            :, None
        ],
        "no lesions": np.stack([phantom.render(replace(s, lesion=None), size)[0] for s in subjects])[:, None],
        "copies": train[rng.integers(0, 50, len(chosen))],
    }


def scores(
    samples: np.ndarray, judge, pairs: Slices, others: Slices, train: np.ndarray, real: tuple, two_sample: bool = True
) -> list[Row]:
    """Every score of `samples` as if they had been drawn for the masks and contrasts of `pairs`. real: the verdicts on
    `pairs` and on `others`, which are the same for all samples."""
    n = len(pairs)
    pool = np.concatenate([pairs.images, others.images])
    asked, rest = np.arange(n), np.arange(n, len(pool))
    sets = Sets(samples, pool, rest, asked, rest, train)
    verdict, reals = judge.judge(samples), np.concatenate([one.features for one in real])
    rows = evaluation.kernel_rows(verdict.features, reals, sets, 0)
    rows += evaluation.frechet_rows(verdict.features, reals, sets, 0)[0]
    rows += evaluation.manifold_rows(verdict.features, reals, sets, 0)
    rows += evaluation.spectrum_rows(sets, 0) + evaluation.memorisation_rows(sets, 0)
    if two_sample:
        rows += evaluation.two_sample_rows(sets, 0)
    return rows + evaluation.obedience_rows(verdict, real[0], judge, pairs)


def drawn(path: str, pairs: Slices, precision: str) -> np.ndarray:
    """A checkpoint's samples for the masks and contrasts of `pairs`."""
    loaded = checkpoint.load(path)
    config = loaded["config"]
    schedule = make_schedule(config.schedule, config.timesteps, config.zero_terminal_snr)
    how = SimpleNamespace(sampler="dpm-solver", sample_steps=20, guidance=1.0, precision=precision)
    unet = checkpoint.load_unet(loaded, "ema", path)
    return evaluation.draw(unet, schedule, config, pairs, np.arange(len(pairs)), how, 0, torch.device("cpu"), 50)


@one_line_errors
def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--early", help="a checkpoint early in training")
    parser.add_argument("--late", help="a checkpoint at its end")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args(argv)
    test, train = load_data(Config(), "test"), load_data(Config(), "train").images
    pairs, others = test.part(np.arange(args.n)), test.part(np.arange(args.n, len(test)))
    sets = damaged(pairs, train, "test", np.arange(args.n))
    for name, path in (("early model", args.early), ("late model", args.late)):
        if path:
            sets[name] = drawn(path, pairs, args.precision)
    judge = load_segmenter()
    real = judge.judge(pairs.images), judge.judge(others.images)
    columns = {name: scores(images, judge, pairs, others, train, real) for name, images in sets.items()}
    print(f"| {args.n} images each | " + " | ".join(columns) + " |\n|---|" + "---:|" * len(columns))
    for rows in zip(*columns.values(), strict=True):
        print(f"| {rows[0].metric} | " + " | ".join(figure(row.samples, row.margin) for row in rows) + " |")


if __name__ == "__main__":
    sys.exit(main())
