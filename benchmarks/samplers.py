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
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm.evaluation.questions import SMALL, draw
from ddpm.metrics.fid import frechet_distance_of_features
from ddpm.metrics.kid import kid
from ddpm.metrics.paired import dice
from ddpm.metrics.segmenter import load_segmenter
from ddpm.runtime import checkpoint
from ddpm.runtime.config import one_line_errors
from ddpm.runtime.sampling_flags import load_checkpoint
from ddpm.schedule import make_schedule
from train import load_data

ROWS = [  # sampler, steps, guidance
    ("dpm-solver", 10, 1.0),
    ("dpm-solver", 20, 1.0),
    ("ddim", 20, 1.0),
    ("ancestral", 50, 1.0),
    ("ancestral", 100, 1.0),
    *(("dpm-solver", 10, guidance) for guidance in (0.0, 1.5, 2.0)),
    *(("dpm-solver", 20, guidance) for guidance in (1.5, 2.0)),
]


@one_line_errors
def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="default: the newest in results/")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--only", nargs="+", choices=("dpm-solver", "ddim", "ancestral"), help="these samplers alone")
    args = parser.parse_args(argv)
    path, loaded = load_checkpoint(args.ckpt)
    config = loaded["config"]
    schedule = make_schedule(config.schedule, config.timesteps, config.zero_terminal_snr)
    unet = checkpoint.load_unet(loaded, "ema", path)
    judge, held_out = load_segmenter(), load_data(config, "test")
    chosen, others = np.arange(args.n), np.arange(args.n, len(held_out))
    reference = judge.judge(held_out.images[others]).features
    wanted = held_out.labels[chosen] == len(held_out.classes) - 1
    counted = wanted.sum((1, 2)) >= SMALL

    print(f"{path}, {args.n} images each; reference: {len(others)} held-out images")
    print("| | FID | KID x 1000 | Dice | contrast | s/image |\n|---|---:|---:|---:|---:|---:|")

    def report(name, images, seconds):
        verdict = judge.judge(images)
        found = verdict.labels == len(judge.classes) - 1
        overlap = dice(found[counted][:, None], wanted[counted][:, None]).numpy()
        distance = frechet_distance_of_features(verdict.features, reference)
        mean, _ = kid(verdict.features, reference, subset_size=args.n)
        right = (verdict.contrasts == held_out.contrasts[chosen]).mean()
        margin = 1.96 * overlap.std() / len(overlap) ** 0.5
        print(
            f"| {name} | {distance:.2f} | {1000 * mean:.2f} | {overlap.mean():.3f} ± {margin:.3f} "
            f"| {right:.1%} | {seconds:.2f} |",
            flush=True,
        )

    report("real images", held_out.images[chosen], 0)
    for sampler, steps, guidance in ROWS:
        if args.only and sampler not in args.only:
            continue
        how = SimpleNamespace(sampler=sampler, sample_steps=steps, guidance=guidance, precision=args.precision)
        begun = time.perf_counter()
        images = draw(unet, schedule, config, held_out, chosen, how, 0, torch.device("cpu"), 50)
        name = f"{sampler}, {steps} steps" + (f", guidance {guidance:g}" if guidance != 1 else "")
        report(name, images, (time.perf_counter() - begun) / len(images))


if __name__ == "__main__":
    sys.exit(main())
