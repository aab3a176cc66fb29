"""Write a checkpoint's network, and how to draw from it, for programs that have none of this code.

    make export                                        the newest run, else the model in the box
    make export ARGS="--ckpt pretrained --out DIR"

Writes DIR/network.safetensors (the weights, with their configuration), DIR/network.onnx (the network, for any number of
images of any size that suits it) and DIR/sampler.json (the walk, eleven numbers a step). docs/export.md draws an image from
the last two in some 30 lines of NumPy.
"""

import argparse
import importlib
import io
import json
import sys
import warnings
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import UserError
from ddpm.conditions import Condition
from ddpm.model import Model, Sampling, load_model
from ddpm.reverse import SAMPLERS, STEPS, trajectory
from ddpm.runtime import checkpoint
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import check_limits
from ddpm.runtime.files import check_writable, write_whole
from ddpm.schedule import Schedule

OPSET = 17  # of ONNX, 2022
PIXELS = 16  # from which the four multipliers of a step are read: four would do, more tell if these do not


@one_line_errors
def main(argv):
    parser = Parser(prog="tools/export.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="as for sample.py: a checkpoint, a run's folder, or pretrained")
    parser.add_argument("--sampler", choices=SAMPLERS, help="as for sample.py")
    parser.add_argument(
        "--sample-steps", type=int, help=f"steps an image (default {STEPS}, or as many as it was trained for)"
    )
    parser.add_argument("--guidance", type=float, help="as for sample.py")
    parser.add_argument("--out", default="results/export", help="folder for the files (default results/export)")
    args = parser.parse_args(argv)
    for name, low, high in (("sample_steps", 1, 10**6), ("guidance", 0, 1000)):
        if (value := getattr(args, name)) is not None:
            check_limits(name, value, at_least=low, at_most=high)
    safetensors, _ = library("safetensors.torch"), library("onnx")  # torch's exporter wants the second
    path = checkpoint.find(args.ckpt)
    model, stored = load_model(path), checkpoint.load(path)
    if beyond := [kind for kind in ("source", "words") if kind in model.vocabulary.given]:
        raise UserError(f"{path}: it follows {' and '.join(beyond)}; only masks and labels are exported so far")
    known = model.vocabulary.given
    sampling = Sampling(args.sampler, args.sample_steps, args.guidance).complete(model, known)
    about = {"config": asdict(model.config), "conditions": checkpoint.description(model.vocabulary), "step": model.step}
    weights = {name: weight.contiguous() for name, weight in stored["ema"].items()}
    contents = {
        "network.safetensors": safetensors.save(weights, {name: json.dumps(value) for name, value in about.items()}),
        "network.onnx": onnx_of(model),
        "sampler.json": (json.dumps(walk(model, sampling), indent=1) + "\n").encode(),
    }
    check_writable(args.out)
    for name, content in contents.items():  # all are made before the first is written
        write_whole(Path(args.out) / name, lambda file, content=content: file.write(content))
        print(f"{args.out}/{name}: {len(content) / 1e3:,.0f} kB")
    print(
        f"{path}: step {model.step}, averaged weights, {sampling.steps} {sampling.sampler} steps, {sampling.in_words}"
    )


def library(name: str):
    """The module `name`. Raises UserError, with the command that installs it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{name.split('.')[0]} is needed to export; run: pip install -r requirements/export.txt"
        ) from None


class Bare(nn.Module):
    """The network with plain tensors for a condition: x_t, t, the mask if it knows masks, and each of its labels."""

    def __init__(self, model: Model):
        super().__init__()
        self.unet, self.masked = model.unet, bool(model.vocabulary.classes)

    def forward(self, x_t: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        mask, labels = (conditions[0], conditions[1:]) if self.masked else (None, conditions)
        return self.unet(x_t, t, Condition(mask, dict(zip(self.unet.labels, labels, strict=True))))


def onnx_of(model: Model) -> bytes:
    """The network as ONNX: inputs x_t (B, C, H, W) and mask (B, K, H, W) float32, t and each label (B,) int64; output
    shaped like x_t. B, H and W are free."""
    masks = (
        {"mask": torch.zeros(2, len(model.vocabulary.classes), *model.shape[1:])} if model.vocabulary.classes else {}
    )
    labels = {name: torch.ones(2, dtype=torch.int64) for name in model.vocabulary.labels}
    inputs = {"x_t": torch.zeros(2, *model.shape), "t": torch.tensor([1, 2]), **masks, **labels}
    free = {name: {0: "batch", **({2: "height", 3: "width"} if x.ndim == 4 else {})} for name, x in inputs.items()}
    file = io.BytesIO()
    with warnings.catch_warnings():
        # PyTorch calls this exporter the old one. The new one gives the same answers, but takes twenty times as long and
        # wants onnxscript besides. The other warnings are of the checks of sizes, which need not be in the graph.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Bare(model).eval(),
            tuple(inputs.values()),
            file,
            input_names=list(inputs),
            output_names=["output"],
            dynamic_axes={**free, "output": free["x_t"]},
            opset_version=OPSET,
            dynamo=False,
        )
    return file.getvalue()


def walk(model: Model, sampling: Sampling) -> dict:
    """What sampler.json holds: what the network takes, and for each step of the sampler eleven numbers.

    output  = the network's answer to scale x_t, t and what is asked for
    output  = without + guidance (output - without)                       where guidance is not 1
    x_0_hat = clip(x_0_from_x_t x_t + x_0_from_output output, -1, 1)
    x_t     = from_x_t x_t + from_x_0_hat x_0_hat + from_x_0_before x_0_hat of the step before + noise z
    """
    told, (low, high) = model.schedule, sampling.interval
    schedule, longer = told.noisier(sampling.extra_noise)
    zero, one = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    steps = []
    for t, multipliers in zip(sampling.times, multipliers_of(sampling, schedule), strict=False):  # the last time is 0
        a, s = schedule.signal_and_noise(t, one)
        scale = longer[t].item()
        numbers = {
            "t": t,
            "a": a.item(),
            "s": s.item(),
            "scale": scale,
            "guidance": sampling.guidance if low <= t / schedule.T <= high else 1.0,
            "x_0_from_x_t": scale * told.x_0_from(model.config.objective, zero, one, t).item(),
            "x_0_from_output": told.x_0_from(model.config.objective, one, zero, t).item(),
        }
        names = ("from_x_t", "from_x_0_hat", "from_x_0_before", "noise")
        steps.append(numbers | dict(zip(names, multipliers, strict=True)))
    return {
        "channels": model.shape[0],
        "height": model.shape[1],
        "width": model.shape[2],
        "multiple": model.unet.multiple,
        **checkpoint.description(model.vocabulary),
        "guided": list(sampling.guided),
        "predicts": model.config.objective,
        "clip": not model.config.teacher,  # as model.predictor has it
        "sampler": sampling.sampler,
        "T": schedule.T,
        "steps": steps,
    }


def multipliers_of(sampling: Sampling, schedule: Schedule) -> list[list[float]]:
    """For each step of the sampler, the multipliers of x_t, x_0_hat, the x_0_hat before and the noise.

    Every sampler is linear in the four, and asks the network once a step. So they are read off the sampler itself: it walks
    over an image of random pixels, with random numbers for x_0_hat and the noise, and each pixel is an equation. What it
    does not use counts as 0.
    """
    rng = np.random.default_rng(0)
    nothing = torch.zeros(1, 1, 1, PIXELS, dtype=torch.float64)
    x_0_hats, noises = [nothing], [nothing]

    def kept(seen: list[Tensor]) -> Tensor:
        seen.append(torch.from_numpy(rng.standard_normal(nothing.shape)))
        return seen[-1]

    x_T, multipliers = torch.from_numpy(rng.standard_normal(nothing.shape)), []
    predict_x_0, noise = lambda x_t, t: kept(x_0_hats), lambda: kept(noises)
    steps = trajectory(sampling.sampler, predict_x_0, schedule, x_T, sampling.times, noise)
    for x_t, then in pairwise(steps):
        used = torch.stack([x_t, x_0_hats[-1], x_0_hats[-2], noises[-1]]).flatten(1).T.numpy()  # (pixels, 4)
        made = then.flatten().numpy()
        solved = np.linalg.lstsq(used, made, rcond=None)[0]
        assert len(x_0_hats) == len(multipliers) + 2, (
            f"{sampling.sampler}: more or less than one call of the network a step"
        )
        assert np.allclose(used @ solved, made), f"{sampling.sampler}: a step that is not of this form"
        multipliers.append(np.where(abs(solved) < 1e-9, 0.0, solved).tolist())
    return multipliers


if __name__ == "__main__":
    sys.exit(main())
