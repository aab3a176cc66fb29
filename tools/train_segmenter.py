"""Make ddpm/metrics/segmenter.pt again: the judge of the embedded data (`make segmenter`).

Trained on the training split alone, with the tissue labels, so that one judge serves both label sets. Prints how well
it does on the test split: lesion Dice by contrast and by lesion size, and how often it names the contrast right.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm.data import phantom
from ddpm.metrics.paired import dice
from ddpm.metrics.segmenter import EMBEDDED, load_segmenter, save_segmenter, train_segmenter
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import check_limits
from ddpm.runtime.files import check_file

SIZE = (64, 64)
SIZES = ((12, 40), (40, 80), (80, 160), (160, 10**9))  # pixels of a lesion


def table(segmenter, images, tissue, contrasts) -> None:
    """Print the judge's scores on real pairs."""
    verdict = segmenter.judge(images)
    wanted = tissue == 4
    overlap, area = dice(verdict.labels[:, None] == 4, wanted[:, None]).numpy(), wanted.sum((1, 2))
    counted = area >= 12
    print(f"contrast named right: {(verdict.contrasts == contrasts).mean():.2%} of {len(images)} images")
    print(f"lesion Dice: {overlap[counted].mean():.3f} over {counted.sum()} lesions of 12 pixels or more")
    print(f"             {overlap[(area > 0) & ~counted].mean():.3f} over {((area > 0) & ~counted).sum()} smaller ones")
    alarms = (verdict.labels == 4).sum((1, 2))[area == 0]
    print(f"healthy slices with 12 pixels or more called lesion: {(alarms >= 12).mean():.1%} of {len(alarms)}")
    print("| lesion Dice | " + " | ".join(f"{a} to {b}" if b < 10**9 else f"over {a}" for a, b in SIZES) + " | all |")
    for i, name in enumerate(phantom.CONTRASTS):
        rows = [(area >= a) & (area < b) & (contrasts == i) for a, b in SIZES] + [counted & (contrasts == i)]
        print(f"| {name} | " + " | ".join(f"{np.mean(overlap[row]):.3f}" for row in rows) + " |")
    for i, name in enumerate(phantom.CLASSES["tissue"]):
        there = (tissue == i).any((1, 2))
        found, this = verdict.labels[there] == i, tissue[there] == i
        print(f"{name}: Dice {dice(found[:, None], this[:, None]).mean():.3f}")


@one_line_errors
def main(argv):
    parser = Parser(
        prog="tools/train_segmenter.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=7000, help="batches of 32 (default 7000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bf16", action="store_true", help="train in bf16 (faster where the processor has it)")
    parser.add_argument("--check", action="store_true", help="print the table for the stored judge, train nothing")
    parser.add_argument("--out", default=str(EMBEDDED))
    args = parser.parse_args(argv)
    check_limits("steps", args.steps, at_least=1)
    check_limits("seed", args.seed, at_least=0)
    if not args.check:
        check_file(args.out)  # before the work
        images, tissue, contrasts = phantom.load("train", SIZE)
        names = phantom.CLASSES["tissue"], phantom.CONTRASTS
        segmenter = train_segmenter(
            images, tissue, contrasts, *names, args.steps, args.seed, mirror=True, bf16=args.bf16
        )
        save_segmenter(segmenter, args.out)
    segmenter = load_segmenter(args.out)
    print(f"{args.out}: {segmenter.fingerprint()}, {Path(args.out).stat().st_size / 1e6:.2f} MB")
    table(segmenter, *phantom.load("test", SIZE))


if __name__ == "__main__":
    sys.exit(main())
