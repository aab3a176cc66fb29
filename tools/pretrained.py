"""Make a model in the box, such as ddpm/pretrained.pt: train it, keep the averaged weights in half precision.

    make pretrained                            from nothing, or from where it was stopped, in results/pretrained; on a GPU;
                                               then four rounds of refinement, in results/pretrained-2 to -5
    make pretrained ARGS="--run RUN"           of a run that is there, trained to its end
    make pretrained ARGS=pretrained-fast       its student of four steps (an hour of one core with bf16)
    make pretrained ARGS=pretrained-128        one of 128x128, and a round of refinement (three hours of one core with bf16)
    make pretrained ARGS=pretrained-masks      the one that draws masks from words (half an hour of one core with bf16)

docs/model-card.md says what was trained, for how long, and how good it is. Half precision changes a weight by one part
in 2,000 at most; the samples it draws differ from those of the full weights by a grey level here and there.
"""

import argparse
import hashlib
import sys
from dataclasses import asdict, replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import train
from ddpm import UserError
from ddpm.runtime import checkpoint
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.files import check_file

ROUND = (
    "--phantom-images 100000 --steps 600 --time-mean -0.7 --time-std 1.4 --precision bf16 "
    "--guidance 1.25 --extra-noise 0.04 --seed {}"
)
OF_128 = "--image-size 128 --patch 4 --phantom-images 50000 --time-mean -0.1 --time-std 1.4 --precision bf16"
# A training each, or several: each of those refines what the one before it made.
STAGES = {
    "pretrained": (
        "--steps 5000 --batch-size 256 --phantom-images 100000 --seed 1 --time-mean -0.7 "
        "--time-std 1.4 --ema-decay 0.9985 --warmup 400 --precision bf16 --compile --sample-every 1000 "
        "--guidance 1.2 --extra-noise 0.04 --muon-decay 0 --foreground-weight 1",
        *(ROUND.format(seed) for seed in (2, 3, 4, 5)),
    ),
    "pretrained-fast": ("--teacher pretrained --phantom-images 20000 --steps 3000 --seed 1 --extra-noise 0.01",),
    "pretrained-128": (
        f"{OF_128} --batch-size 64 --steps 7200 --seed 1 --ema-decay 0.9985 --warmup 400 --muon-decay 0.36 "
        "--foreground-weight 2 --guidance 1.25 --extra-noise 0.04",
        f"{OF_128} --steps 300 --seed 2 --guidance 1.25 --extra-noise 0.1",
    ),
    "pretrained-masks": (
        "--segment --words --source-drop 1 --label-drop 0.3 --all-drop 0.05 --time-mean 1 "
        "--channels 32 --phantom-images 40000 --steps 4200 --seed 1 --guidance 2 --muon-decay 0",
    ),
}


@one_line_errors
def main(argv):
    parser = Parser(
        prog="tools/pretrained.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", nargs="?", choices=checkpoint.IN_THE_BOX, default="pretrained")
    parser.add_argument("--run", type=Path, help="the run's folder (default results/MODEL)")
    parser.add_argument("--out", type=Path, help="the file to write (default the one in the box)")
    args = parser.parse_args(argv)
    args.out = args.out or checkpoint.find(args.model)
    check_file(args.out)  # before the work
    if args.run:
        newest = trained(["--resume", str(args.run)], args.run)
    else:
        newest = None
        for number, flags in enumerate(STAGES[args.model], 1):
            run = Path("results") / (args.model if number == 1 else f"{args.model}-{number}")
            new = [*flags.split(), *(["--reference", str(newest)] if newest else []), "--out", str(run)]
            newest = trained(["--resume", str(run)] if any(run.glob("checkpoints/*.pt")) else new, run)
    pack(newest, args.out)
    content = args.out.read_bytes()
    print(f"{args.out}: {len(content) / 1e6:.1f} MB, sha256 {hashlib.sha256(content).hexdigest()}")


def trained(flags: list[str], run: Path) -> Path:
    """The last checkpoint of the run that `train.py FLAGS` leaves at its end. Raises UserError if it did not get there."""
    if train.main(flags):
        raise SystemExit(2)  # it has said why
    newest = checkpoint.newest(run)
    loaded = checkpoint.load(newest)
    if loaded["step"] < loaded["config"].steps:
        raise UserError(f"{newest}: stopped before its end, step {loaded['config'].steps}; the same command goes on")
    return newest


def pack(path: Path, out: Path) -> None:
    """What is needed to draw from the checkpoint at `path`, or to start from it: written to `out`."""
    loaded = checkpoint.load(path)
    nothing_of_the_machine = dict(out="", init="", reference="", device="auto", threads=0)
    checkpoint.save(
        out,
        config=asdict(replace(loaded["config"], **nothing_of_the_machine)),
        conditions=checkpoint.description(loaded["conditions"]),
        step=loaded["step"],
        model={},
        ema={name: weight.to(torch.float16) for name, weight in loaded["ema"].items()},
        opt=[],
        trained_on=loaded["trained_on"],
    )


if __name__ == "__main__":
    sys.exit(main())
