"""Which sampler, how many steps, how much guidance? Questions to one trained checkpoint, answered by the judge of the
embedded data (ddpm/metrics/segmenter.py), which was trained on real pairs only:

    FID    Frechet distance of the samples to held-out images, in the judge's features
    KID    the same question without FID's bias, x 1000
    Dice   does the lesion lie on the mask? (lesions of 12 pixels or more)

The row "real images" is what no sampler can be expected to beat.

    python benchmarks/samplers.py [--ckpt FILE] [--n 500] [--only dpm-solver ...]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.data.sources import load_data
from ddpm.evaluation.comparison import draw_for
from ddpm.evaluation.questions import SMALL
from ddpm.metrics.fid import frechet_distance_of_features
from ddpm.metrics.kid import kid
from ddpm.metrics.margin import margin
from ddpm.metrics.paired import dice
from ddpm.metrics.segmenter import load_segmenter
from ddpm.model import GUIDANCE, INTERVAL, Sampling, load_model
from ddpm.runtime.command_line import one_line_errors

ALL = (0.0, 1.0)
ROWS = [  # sampler, steps, guidance (by mask and contrast), its interval of t / T
    ("dpm-solver", 10, 1.0, ALL),
    ("dpm-solver", 20, 1.0, ALL),
    ("ddim", 20, 1.0, ALL),
    ("ancestral", 50, 1.0, ALL),
    ("ancestral", 100, 1.0, ALL),
    *(("dpm-solver", 10, guidance, ALL) for guidance in (0.0, 1.25, 1.5)),
    *(("dpm-solver", 10, GUIDANCE, interval) for interval in (INTERVAL, (0.5, 1.0), (0.0, 0.5))),
]


@one_line_errors
def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="default: the newest in results/")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", nargs="+", choices=("dpm-solver", "ddim", "ancestral"), help="these samplers alone")
    args = parser.parse_args(argv)
    model = load_model(args.ckpt)
    if model.config.data != "phantom" or not model.vocabulary.classes:
        raise UserError(
            f"{model.name}: trained on {model.config.data}, {len(model.vocabulary.classes)} classes; this asks the "
            "judge of the embedded data about masks, so give a checkpoint of the phantom with masks"
        )
    judge, held_out = load_segmenter(), load_data(model.config, "test")
    chosen, others = np.arange(args.n), np.arange(args.n, len(held_out))
    reference = judge.judge(held_out.images[others]).features
    wanted = held_out.masks[chosen] == len(held_out.classes) - 1
    counted = wanted.sum((1, 2)) >= SMALL

    print(f"{model.name}, {args.n} images each; reference: {len(others)} held-out images")
    print("| | FID | KID x 1000 | Dice | contrast | s/image |\n|---|---:|---:|---:|---:|---:|")

    def report(name, images, seconds):
        verdict = judge.judge(images)
        found = verdict.labels == len(judge.classes) - 1
        overlap = dice(found[counted][:, None], wanted[counted][:, None]).numpy()
        distance = frechet_distance_of_features(verdict.features, reference)
        mean, _ = kid(verdict.features, reference, subset_size=args.n)
        uncertain = margin(np.mean, (overlap, np.arange(len(overlap))))
        right = (verdict.contrasts + 1 == held_out.labels["contrast"][chosen]).mean()
        print(
            f"| {name} | {distance:.2f} | {1000 * mean:.2f} | {overlap.mean():.3f} ± {uncertain:.3f} "
            f"| {right:.1%} | {seconds:.2f} |",
            flush=True,
        )

    report("real images", held_out.images[chosen], 0)
    for sampler, steps, guidance, interval in ROWS:
        if args.only and sampler not in args.only:
            continue
        how = Sampling(sampler, steps, guidance, interval=interval, precision=args.precision)
        begun = time.perf_counter()
        images = draw_for(model, held_out, chosen, how)
        name = f"{sampler}, {steps} steps" + (f", guidance {guidance:g}" if guidance != 1 else "")
        name += " in {:g} to {:g}".format(*interval) if interval != ALL else ""
        report(name, images, (time.perf_counter() - begun) / len(images))


if __name__ == "__main__":
    sys.exit(main())
