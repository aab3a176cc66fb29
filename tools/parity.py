"""Our metrics and our network against the packages that others use, number by number, on the same input.

    make parity

Each row is one comparison; the exit status is 1 if one is out of its bound. The packages are in
requirements/parity.txt, in an environment of their own. Nothing is fetched: the networks' weights are drawn at random
and given to both. The difference is |ours - theirs| relative to |theirs|, for several numbers the largest
of each (and not relative where theirs is 0).
"""

import contextlib
import io
import sys
import warnings
from pathlib import Path

import cpu_torchvision  # noqa: F401, before the packages that import torchvision
import numpy as np
import pytorch_fid.fid_score
import pytorch_fid.inception
import skimage.metrics
import torch
import torch_fidelity.metric_fid
import torch_fidelity.metric_isc
import torch_fidelity.metric_kid
import torch_fidelity.metric_prc
import torchmetrics.functional.image
import torchmetrics.image.fid
import torchmetrics.image.kid
from diffusers import UNet2DModel
from prdc import compute_prdc
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from inception_vector import FEATURES, FINGERPRINT, LOGITS, drawn_weights, fingerprint, fixed_image
from unet_vector import VECTOR, answer, fixed_input, ho_network

from ddpm.metrics import fid, kid, manifold, paired
from ddpm.metrics.fastmri import fastmri_scores
from ddpm.metrics.inception import Inception
from ddpm.metrics.inception_score import inception_score


class Table:
    """Prints a row for each comparison and remembers whether all were within their bounds."""

    def __init__(self):
        self.good = True
        print(f"{'what':52s} {'against':26s} {'ours':>14s} {'theirs':>14s} {'difference':>10s} {'bound':>6s}")

    def row(self, what: str, against: str, ours, theirs, bound: float = 1e-6) -> None:
        ours, theirs = (np.asarray(values, dtype=np.float64).ravel() for values in (ours, theirs))
        difference = np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1)
        within = bool(difference <= bound)  # False for NaN
        self.good &= within
        print(
            f"{what:52s} {against:26s} {ours[0]:14.9g} {theirs[0]:14.9g} {difference:10.1e} {bound:6.0e}"
            f"{'' if within else '  OUT OF BOUND'}",
            flush=True,
        )


def feature_pairs() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Pairs of sets of features (N, D) that are each hard in another way."""
    rng = np.random.default_rng(0)
    mix = rng.standard_normal((64, 64)) * 0.9 ** np.arange(64)  # spreads from 1 down to 0.001
    plane = rng.standard_normal((20, 64))

    def draw(n, d=64):
        return rng.standard_normal((n, d))

    return {
        "random": (draw(500), 0.3 + 1.2 * draw(400)),
        "correlated": (np.maximum(draw(500) @ mix, 0), np.maximum(0.2 + draw(400) @ mix, 0)),
        "singular, one subspace of rank 20": (draw(500, 20) @ plane, 1 + 2 * draw(400, 20) @ plane),
        "singular, only one of them": (draw(500, 20) @ plane, draw(400)),
        "fewer samples than dimensions": (draw(40), 0.3 + 1.2 * draw(30)),
        "512 dimensions": (draw(1500, 512), 0.1 + draw(1200, 512) * np.linspace(0.1, 2, 512)),
    }


def compare_distances(table: Table) -> None:
    """The Frechet distance, three ways of ours against three packages."""
    ours = {"sqrtm": fid.frechet_distance, "factors": fid.frechet_distance_by_factors}
    for case, (a, b) in feature_pairs().items():
        moments = a.mean(axis=0), np.cov(a, rowvar=False), b.mean(axis=0), np.cov(b, rowvar=False)
        tensors = [torch.from_numpy(values) for values in moments]
        statistics = ({"mu": moments[0], "sigma": moments[1]}, {"mu": moments[2], "sigma": moments[3]})
        theirs = {
            "pytorch-fid": pytorch_fid.fid_score.calculate_frechet_distance(*moments),
            "torch-fidelity": torch_fidelity.metric_fid.fid_statistics_to_metric(*statistics, verbose=False)[
                "frechet_inception_distance"
            ],
            "torchmetrics": torchmetrics.image.fid._compute_fid(*tensors).item(),
        }
        values = {way: function(*moments) for way, function in ours.items()}
        values["features"] = fid.frechet_distance_of_features(a, b)
        for package, value in theirs.items():
            for way in values:
                table.row(f"Frechet distance, {case}", f"{package} ({way})", values[way], value)


@torch.no_grad()
def compare_inception(table: Table) -> None:
    """Features and logits of images of several sizes with shared random weights, and the numbers that our tests have
    of the reference's network."""
    ours = Inception()
    weights = drawn_weights(ours.state_dict())
    ours.load_state_dict(weights)
    pytorch_fid.inception.load_state_dict_from_url = lambda *_, **__: weights  # in place of the download
    pooled = pytorch_fid.inception.InceptionV3().eval()  # loads strictly: any other name or shape would raise
    whole = pytorch_fid.inception.fid_inception_v3().eval()

    def logits(images):
        x = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
        return whole(2 * x - 1) - whole.fc.bias

    rng = np.random.default_rng(0)
    table.row("Inception, names and shapes", "pytorch-fid", fingerprint(whole.state_dict()) == FINGERPRINT, True)
    table.row(
        "Inception, FEATURES of the tests", "pytorch-fid", FEATURES, pooled(fixed_image())[0][0, ::128, 0, 0], 1e-5
    )
    table.row("Inception, LOGITS of the tests", "pytorch-fid", LOGITS, logits(fixed_image())[0, ::144], 1e-5)
    for size in ((64, 64), (299, 299), (512, 333)):
        images = torch.from_numpy(rng.random((2, 3, *size), dtype=np.float32))
        features = ours(images)
        our_logits = features @ ours.fc.weight.T
        what = f"Inception, {size[0]}x{size[1]}"
        table.row(f"{what}, features", "pytorch-fid", features, pooled(images)[0][:, :, 0, 0], 1e-5)
        table.row(f"{what}, logits", "pytorch-fid", our_logits, logits(images), 1e-5)


def compare_feature_scores(table: Table) -> None:
    """KID, precision, recall, density, coverage, Inception Score on the same features."""
    for case, (a, b) in feature_pairs().items():
        a, b = a[: len(b)], b  # KID with one subset of all rows, so that everyone takes the same
        tensors = torch.from_numpy(a), torch.from_numpy(b)
        fidelity = torch_fidelity.metric_kid.kid_features_to_metric(
            *tensors, kid_subsets=1, kid_subset_size=len(b), verbose=False
        )
        value, _ = kid.kid(a, b, subset_size=len(b))
        table.row(f"KID, {case}", "torch-fidelity", value, fidelity["kernel_inception_distance_mean"])
        table.row(f"KID, {case}", "torchmetrics", value, torchmetrics.image.kid.poly_mmd(*tensors))
    for case, (a, b) in feature_pairs().items():  # distances tie nowhere, so "<" and "<=" are the same
        for k in (3, 5):
            ours = manifold.precision_recall_density_coverage(a, b, k=k)
            with contextlib.redirect_stdout(io.StringIO()):  # it prints the numbers of samples
                theirs = compute_prdc(real_features=a, fake_features=b, nearest_k=k)
            for name, value in ours._asdict().items():
                table.row(f"{name}, k={k}, {case}", "prdc", value, theirs[name])
            fidelity = torch_fidelity.metric_prc.prc_features_to_metric(  # samples first
                torch.from_numpy(b), torch.from_numpy(a), prc_neighborhood=k, verbose=False
            )
            for name in ("precision", "recall"):
                table.row(f"{name}, k={k}, {case}", "torch-fidelity", getattr(ours, name), fidelity[name])
    logits = torch.from_numpy(2 * np.random.default_rng(1).standard_normal((995, 1008)))
    theirs = torch_fidelity.metric_isc.isc_features_to_metric(logits, splits=10, shuffle=False)
    ours = inception_score(logits.softmax(dim=1).numpy())
    table.row("Inception Score, mean and std", "torch-fidelity", ours, [*theirs.values()])


def compare_paired(table: Table) -> None:
    """PSNR and SSIM of noisy images, grey and colour, in the ranges in use."""
    rng = np.random.default_rng(0)
    for channels, low, high in ((1, 0.0, 1.0), (3, -1.0, 1.0), (1, 0.0, 255.0)):
        data_range = high - low
        y, x = np.mgrid[0:48, 0:37] / 7.0
        smooth = (np.sin(x + y)[None, None] * 0.4 + 0.5) * np.ones((2, channels, 1, 1))
        a, b = ((smooth + 0.1 * rng.standard_normal(smooth.shape)).clip(0, 1) * data_range + low for _ in range(2))
        tensors = torch.from_numpy(a), torch.from_numpy(b)
        ours = {"PSNR": paired.psnr(*tensors, data_range), "SSIM": paired.ssim(*tensors, data_range)}
        published = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}  # as Wang et al. 2004
        scikit = {
            "PSNR": [
                skimage.metrics.peak_signal_noise_ratio(*ab, data_range=data_range) for ab in zip(a, b, strict=True)
            ],
            "SSIM": [
                skimage.metrics.structural_similarity(*ab, data_range=data_range, channel_axis=0, **published)
                for ab in zip(a, b, strict=True)
            ],
        }
        image = torchmetrics.functional.image
        # torchmetrics averages over the border as well, where it reflects the image; here its map is cropped.
        _, full = image.structural_similarity_index_measure(
            *tensors, data_range=data_range, reduction="none", return_full_image=True
        )
        metrics = {
            "PSNR": image.peak_signal_noise_ratio(*tensors, (low, high), reduction="none", dim=(1, 2, 3)),
            "SSIM": full[:, :, 5:-5, 5:-5].mean(dim=(1, 2, 3)),
        }
        for name in ours:
            what = f"{name}, {channels} channel(s) in [{low:g}, {high:g}]"
            table.row(what, "scikit-image", ours[name], scikit[name])
            table.row(what, "torchmetrics", ours[name], metrics[name])
    made, truth = (rng.uniform(0, 3, (4, 1, 20, 24)) for _ in range(2))
    peak = truth.max()  # of a volume, as fastMRI's evaluation takes it, with the window and variances of this package
    theirs = [
        np.linalg.norm(truth - made) ** 2 / np.linalg.norm(truth) ** 2,
        skimage.metrics.peak_signal_noise_ratio(truth, made, data_range=peak),
        np.mean(
            [
                skimage.metrics.structural_similarity(*ab, data_range=peak)
                for ab in zip(truth[:, 0], made[:, 0], strict=True)
            ]
        ),
    ]
    table.row("NMSE, PSNR and SSIM as fastMRI counts", "scikit-image", fastmri_scores(made, truth), theirs)


def diffusers_weights(state: dict) -> dict:
    """The weights of our `--preset ho` under the names of diffusers, whose q, k and v are three linear layers."""
    places = {
        **{"middle_1.block": "mid_block.resnets.0", "middle_2.block": "mid_block.resnets.1"},
        "middle_1.attention": "mid_block.attentions.0",
    }
    for side, change, n in (("down", "downsamplers.0", 3), ("up", "upsamplers.0", 4)):
        for index in range(4 * n):  # 2 (down) or 3 (up) blocks a level, and then a change of size
            level, j = divmod(index, n)
            places[f"{side}.{index}"] = f"{side}_blocks.{level}.{change}"
            places[f"{side}.{index}.block"] = f"{side}_blocks.{level}.resnets.{j}"
            places[f"{side}.{index}.attention"] = f"{side}_blocks.{level}.attentions.{j}"
    parts = {
        **{"time_1": "time_embedding.linear_1", "time_2": "time_embedding.linear_2", "norm_out": "conv_norm_out"},
        **{"norm_1": "norm1", "norm_2": "norm2", "conv_1": "conv1", "conv_2": "conv2", "time": "time_emb_proj"},
        **{"shortcut": "conv_shortcut", "norm": "group_norm", "out": "to_out.0"},
    }
    theirs = {}
    for name, values in state.items():
        *place, part, kind = name.split(".")
        place = [places[".".join(place)]] if place else []
        if part in ("qkv", "out"):  # convolutions of size 1
            values = values.squeeze()
        split = zip(("to_q", "to_k", "to_v"), values.chunk(3), strict=True) if part == "qkv" else [(part, values)]
        theirs |= {".".join([*place, parts.get(piece, piece), kind]): value for piece, value in split}
    return theirs


@torch.no_grad()
def compare_unet(table: Table) -> None:
    """The network of `--preset ho` against diffusers' ddpm-cifar10-32 with shared random weights."""
    ours = ho_network()
    theirs = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        freq_shift=1,
        flip_sin_to_cos=False,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        downsample_padding=0,
        norm_eps=1e-6,
        attention_head_dim=None,  # a single head
    ).eval()
    count = [sum(p.numel() for p in network.parameters()) for network in (ours, theirs)]
    table.row("network of --preset ho, parameters", "diffusers", *count, 0)
    theirs.load_state_dict(diffusers_weights(ours.state_dict()))  # strictly: any other name or shape would raise
    x_t, t = fixed_input()
    expected = theirs(x_t, t).sample
    table.row("network of --preset ho, output", "diffusers", answer(ours, x_t, t), expected, 1e-5)
    table.row("network of --preset ho, VECTOR of the tests", "diffusers", VECTOR, expected[0, :, ::8, ::8], 1e-5)
    for steps in (1, 1000):
        t = torch.tensor([steps])
        table.row(f"network of --preset ho, t={steps}", "diffusers", answer(ours, x_t, t), theirs(x_t, t).sample, 1e-5)


def main() -> int:
    warnings.simplefilter("ignore", DeprecationWarning)  # pytorch-fid's call of sqrtm
    table = Table()
    compare_distances(table)
    compare_feature_scores(table)
    compare_paired(table)
    compare_inception(table)
    compare_unet(table)
    print("all within their bounds" if table.good else "some are OUT OF BOUND", flush=True)
    return 0 if table.good else 1


if __name__ == "__main__":
    sys.exit(main())
