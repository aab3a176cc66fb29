"""How fast is our FID, what memory does it take, and what does speed cost in exactness?

    python benchmarks/fid.py distance      the Frechet distance of two Gaussians at 2,048 dimensions
    python benchmarks/fid.py features      Inception's features of images of the embedded data

Both against the way that is usual: SciPy's sqrtm of the product of the covariances; the network as it comes, layer by
layer in the contiguous layout. Where pytorch-fid is installed (`make parity` has it in .venv-parity), its own function
and its own network are timed as well. The machine's speed drifts, so all that is compared runs in turn, round after
round, in one process, and ratios are medians over rounds; memory is measured in a fresh process for each way.

Without --weights the network's weights are random, its norms fitted to the images. Then times and memory are as with
the usual file, but distances are nobody's FID, and what bf16 does to them may be more, or less, than it does to FID.
"""

import argparse
import copy
import math
import multiprocessing
import statistics
import sys
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

from ddpm import UserError
from ddpm.data import phantom
from ddpm.metrics.fid import frechet_distance, frechet_distance_by_factors, frechet_distance_of_features
from ddpm.metrics.inception import ConvNorm, Inception, load_inception, to_rgb
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import check_limits

try:
    import cpu_torchvision  # noqa: F401, before pytorch-fid imports torchvision
    import pytorch_fid.fid_score
    import pytorch_fid.inception
except ImportError:
    pytorch_fid = None


@one_line_errors
def main(argv):
    parser = Parser(prog="benchmarks/fid.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("distance", "features"))
    parser.add_argument("--rounds", type=int, default=3, help="distance: how often each way runs")
    parser.add_argument("--dims", type=int, default=2048, help="distance: D")
    parser.add_argument("--samples", type=int, default=4096, help="distance: samples behind each covariance")
    parser.add_argument("--images", type=int, default=64, help="features: how many")
    parser.add_argument("--batch-size", type=int, default=16, help="features: images at a time")
    parser.add_argument("--weights", help="features: the usual file of Inception's weights")
    args = parser.parse_args(argv)
    for name, least in (("rounds", 1), ("dims", 1), ("samples", 2), ("batch_size", 1)):
        check_limits(name, getattr(args, name), at_least=least)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, numpy {np.__version__}", flush=True)
    if pytorch_fid is None:
        print(
            "pytorch-fid is not installed here, so it is left out; .venv-parity/bin/python has it after `make parity`"
        )
    measure_distance(args) if args.part == "distance" else measure_features(args)


def in_turn(ways: dict, inputs, unit: str) -> tuple[dict, dict]:
    """Run each way on each input in turn: name -> seconds of each run, name -> results."""
    seconds, results = {name: [] for name in ways}, {name: [] for name in ways}
    for given in tqdm(inputs, unit=unit, disable=None):
        for name, function in ways.items():
            begun = time.perf_counter()
            result = function(*given)
            seconds[name].append(time.perf_counter() - begun)
            results[name].append(result)
    return seconds, results


def print_table(columns: tuple, rows: list) -> None:
    print("| " + " | ".join(columns) + " |\n|---|" + "---:|" * (len(columns) - 1))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def speed_up(slow: list, fast: list) -> str:
    """How many times faster, as the median over rounds."""
    return f"{statistics.median(a / b for a, b in zip(slow, fast, strict=True)):.2f}"


# ---- the distance


def distance_ways() -> dict:
    """Name -> function(mu_1, cov_1, mu_2, cov_2); the fast one first."""
    ways = {"factors (ours)": frechet_distance_by_factors, "sqrtm (ours)": frechet_distance}
    if pytorch_fid:
        ways["pytorch-fid"] = pytorch_fid.fid_score.calculate_frechet_distance
    return ways


def measure_distance(args) -> None:
    """Both covariances are of rectified random mixtures, so they are correlated and not centred, as features are."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((args.dims, args.dims)) / args.dims**0.5
    a, b = (np.maximum(shift + rng.standard_normal((args.samples, args.dims)) @ mix, 0) for shift in (0.0, 0.1))
    moments = a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False)
    del a, b, mix
    warnings.simplefilter("ignore", DeprecationWarning)  # pytorch-fid's call of sqrtm
    ways = distance_ways()
    for function in ways.values():
        function(*(part[:8] if part.ndim == 1 else part[:8, :8] for part in moments))  # libraries load on first use
    seconds, values = in_turn(ways, [moments] * args.rounds, "round")
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/moments.npz", *moments)
        memory = {name: in_own_process(distance_memory, name, f"{folder}/moments.npz") for name in ways}
    print(f"\nFrechet distance at {args.dims} dimensions, {args.samples} samples, {args.rounds} rounds in turn\n")
    ours = next(iter(ways))
    rows = [
        (
            name,
            f"{statistics.median(seconds[name]):.2f}",
            speed_up(seconds[name], seconds[ours]),
            f"{memory[name]:.0f}",
            f"{values[name][0]:.10g}",
            f"{abs(values[ours][0] / values[name][0] - 1):.1e}",
        )
        for name in ways
    ]
    print_table(("", "seconds", "ours is faster by", "peak MB beyond the input", "value", "ours differs by"), rows)


def distance_memory(way: str, path: str) -> float:
    warnings.simplefilter("ignore", DeprecationWarning)
    with np.load(path) as file:
        moments = [file[name] for name in file.files]
    function = distance_ways()[way]
    function(*(part[:8] if part.ndim == 1 else part[:8, :8] for part in moments))
    return peak_memory(lambda: function(*moments))


# ---- the features


class Usual(nn.Module):
    """The same network as it comes: convolution, norm and ReLU one after the other, contiguous."""

    def __init__(self, inception: Inception):
        super().__init__()
        self.network = copy.deepcopy(inception).to(memory_format=torch.contiguous_format)
        for layer in self.network.modules():
            if isinstance(layer, ConvNorm):
                layer.forward = lambda x, layer=layer: F.relu(layer.bn(layer.conv(x.contiguous())), inplace=True)

    def forward(self, images):
        return self.network(images)


class PytorchFid(nn.Module):
    """pytorch-fid's own network with the same weights."""

    def __init__(self, inception: Inception):
        super().__init__()
        pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: inception.state_dict()  # no download
        self.network = pytorch_fid.inception.InceptionV3().to(memory_format=torch.contiguous_format).eval()

    @torch.no_grad()
    def forward(self, images):
        return self.network(images)[0][:, :, 0, 0]


def feature_ways(inception: Inception) -> dict:
    """Name -> function(images) -> features; the usual way first."""

    def bf16(images):
        with torch.autocast("cpu", torch.bfloat16):
            return inception(images)

    ways = {"usual, fp32": Usual(inception), "ours, fp32": inception, "ours, bf16": bf16}
    return {"pytorch-fid": PytorchFid(inception)} | ways if pytorch_fid else ways


def fitted_inception(images) -> Inception:
    """Random weights, and norms that make each channel's mean 1 and variance 1 over the images (B, 3, H, W).

    With a mean of 0, which cuts half of every layer off, small differences grow from layer to layer: even fp32 was
    then off by 1e-4 from fp64, with a mean of 1 by 1e-5. So rounding to bf16 would be judged too harshly.
    """
    torch.manual_seed(0)
    inception, hooks = Inception(), []

    def fit(layer, inputs):
        x = layer.conv(inputs[0])
        layer.bn.running_mean.copy_(x.mean(dim=(0, 2, 3)))
        layer.bn.running_var.copy_(x.var(dim=(0, 2, 3)))

    for layer in inception.modules():
        if isinstance(layer, ConvNorm):
            nn.init.kaiming_normal_(layer.conv.weight)
            nn.init.ones_(layer.bn.bias)
            hooks.append(layer.register_forward_pre_hook(fit))
    inception(images)
    for hook in hooks:
        hook.remove()
    return inception


def measure_features(args) -> None:
    """Two sets, the second with noise, so that there is a distance to be changed by rounding."""
    count = 2 * math.ceil(args.images / 2)
    if not 4 <= count <= phantom.SPLITS["test"]:
        raise UserError(f"--images {args.images}; there are 4 to {phantom.SPLITS['test']} to be had")
    grey = phantom.load("test", (64, 64), n=count)[0]
    noise = np.random.default_rng(0).normal(0, 8, grey.shape)
    noise[: count // 2] = 0
    images = to_rgb((grey + noise).round().clip(0, 255).astype(np.uint8))
    batches = images.split(args.batch_size)
    ways = feature_ways(load_inception(args.weights) if args.weights else fitted_inception(images[:: count // 16 or 1]))
    for function in ways.values():
        function(batches[0])  # the first call is slower
    seconds, results = in_turn(ways, [(batch,) for batch in batches], "batch")
    features = {name: torch.cat(parts).double().numpy() for name, parts in results.items()}
    memory = {name: in_own_process(features_memory, name, args.batch_size) for name in ways}
    usual = next(iter(ways))
    exact = features[usual]

    def halves(a, b):
        return frechet_distance_of_features(a[: count // 2], b[count // 2 :])

    print(
        f"\nInception features of {count} images, {args.batch_size} at a time, in turn; A to B: the distance of one half"
    )
    print("to the other, which has noise added; to itself: of one half to the same half as the first row sees it\n")
    rows = [
        (
            name,
            f"{count / sum(seconds[name]):.1f}",
            speed_up(seconds[usual], seconds[name]),
            f"{memory[name]:.0f}",
            f"{np.abs(features[name] - exact).max() / np.abs(exact).max():.1e}",
            f"{halves(features[name], features[name]):.7g}",
            f"{frechet_distance_of_features(features[name][: count // 2], exact[: count // 2]):.2g}",
        )
        for name in ways
    ]
    print_table(("", "images/s", "speed", "peak MB", "largest change of a feature", "A to B", "to itself"), rows)


def features_memory(way: str, batch_size: int) -> float:
    images = torch.rand(batch_size, 3, 64, 64)
    function = feature_ways(Inception())[way]
    function(images[:1])
    return peak_memory(lambda: function(images))


# ---- memory


def in_own_process(function, *arguments):
    """The result of function(*arguments), run in a fresh process."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def peak_memory(function) -> float:
    """MB that a call adds to the process at its worst; Linux only, elsewhere NaN."""
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        return math.nan
    before = memory_in_use("VmRSS")
    function()
    return memory_in_use("VmHWM") - before


def memory_in_use(what: str) -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(what)]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
