"""Make a model in the box, such as ddpm/pretrained.pt: train it, keep the averaged weights in half precision.

    make pretrained                            from nothing, or from where it was stopped, in results/pretrained; on a GPU
    make pretrained ARGS="--run RUN"           of a run that is there, trained to its end
    make pretrained ARGS=pretrained-fast       its student of four steps (an hour of one core with bf16)
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

FLAGS = {
    "pretrained": "--steps 5000 --batch-size 256 --phantom-images 100000 --seed 1 --time-mean -0.7 "
    "--time-std 1.4 --ema-decay 0.9985 --warmup 400 --precision bf16 --compile --sample-every 1000 "
    "--guidance 1.2 --extra-noise 0.04 --muon-decay 0 --foreground-weight 1",
    "pretrained-fast": "--teacher pretrained --phantom-images 20000 --steps 3000 --seed 1",
    "pretrained-masks": "--segment --words --source-drop 1 --label-drop 0.3 --all-drop 0.05 --time-mean 1 "
    "--channels 32 --phantom-images 40000 --steps 4200 --seed 1 --guidance 2 --muon-decay 0",
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
    run = args.run or Path("results") / args.model
    there = args.run or any(run.glob("checkpoints/*.pt"))
    if train.main(["--resume", str(run)] if there else [*FLAGS[args.model].split(), "--out", str(run)]):
        raise SystemExit(2)  # it has said why
    newest = checkpoint.newest(run)
    loaded = checkpoint.load(newest)
    if loaded["step"] < loaded["config"].steps:
        raise UserError(f"{newest}: stopped before its end, step {loaded['config'].steps}; the same command goes on")
    pack(newest, args.out)
    content = args.out.read_bytes()
    print(f"{args.out}: {len(content) / 1e6:.1f} MB, sha256 {hashlib.sha256(content).hexdigest()}")


def pack(path: Path, out: Path) -> None:
    """What is needed to draw from the checkpoint at `path`, or to start from it: written to `out`."""
    loaded = checkpoint.load(path)
    checkpoint.save(
        out,
        config=asdict(replace(loaded["config"], out="", init="", device="auto", threads=0)),  # nothing of the machine
        conditions=checkpoint.description(loaded["conditions"]),
        step=loaded["step"],
        model={},
        ema={name: weight.to(torch.float16) for name, weight in loaded["ema"].items()},
        opt=[],
        trained_on=loaded["trained_on"],
    )


if __name__ == "__main__":
    sys.exit(main())
