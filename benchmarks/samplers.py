"""Which sampler, how many steps, how much guidance? Two questions of one trained checkpoint:

    distance   Frechet distance of samples to held-out images, in the features of a judge
    Dice       does the lesion lie on the mask? the judge segments the samples, against the mask asked for

The judge is a small segmentation network trained here, for a few minutes, on real pairs of the embedded data
alone; it also names the contrast. Rows "real" give the distance between two sets of real images of the same
number (no sampler can be expected to do better) and the Dice of the judge on real images.

    python benchmarks/samplers.py [--ckpt FILE] [--n 300]
"""

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from ddpm import checkpoint
from ddpm.config import one_line_errors
from ddpm.data.images import to_float, to_uint8
from ddpm.reverse import ancestral, ddim, denoiser, dpm_solver, log_snr_times, uniform_times
from ddpm.schedule import make_schedule
from ddpm.unet import ResBlock
from sample import noise_source
from train import load_data


class Judge(nn.Module):
    """Images (B, 1, H, W) -> lesion logits (B, 1, H, W), contrast logits (B, 3), features (B, 128)."""

    def __init__(self, widths=(32, 64, 128)):
        super().__init__()
        self.first = nn.Conv2d(1, widths[0], 3, padding=1)
        ins = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(ResBlock(a, b, 1, 0.1) for a, b in zip(ins, widths, strict=True))
        self.up = nn.ModuleList(ResBlock(b + a, a, 1, 0.1) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.lesion, self.contrast = nn.Conv2d(widths[0], 1, 1), nn.Linear(widths[-1], 3)

    def forward(self, x):
        none = x.new_zeros(len(x), 1)
        x, skips = self.first(x), []
        for i, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if i else x, none)
            skips.append(x)
        features = skips.pop().float().mean(dim=(2, 3))
        for block in reversed(self.up):
            x = block(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], dim=1), none)
        return self.lesion(x), self.contrast(features), features


def train_judge(data, minutes: float) -> Judge:
    torch.manual_seed(0)
    judge, begun = Judge(), time.perf_counter()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3)
    bar = tqdm(desc="training the judge", disable=None)
    while (spent := (time.perf_counter() - begun) / 60) < minutes:
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - spent / minutes)
        chosen = torch.randint(len(data), (32,)).numpy()
        target = torch.as_tensor(data.labels[chosen] == len(data.classes) - 1).float()
        with torch.autocast("cpu", torch.bfloat16):
            lesion, contrast, _ = judge(to_float(data.images[chosen]))
        probability = lesion.float().sigmoid()[:, 0]
        overlap = 1 - (2 * (probability * target).sum() + 1) / (probability.sum() + target.sum() + 1)
        loss = F.binary_cross_entropy_with_logits(lesion.float()[:, 0], target) + 0.5 * overlap
        loss = loss + 0.2 * F.cross_entropy(contrast.float(), torch.as_tensor(data.contrasts[chosen]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        bar.update()
    return judge.eval().requires_grad_(False)


def verdict(judge, images: np.ndarray, wanted: np.ndarray, contrasts: np.ndarray):
    """(features (N, 128), mean Dice with the `wanted` lesions (N, H, W) where there is one, share of contrasts
    named right)."""
    outputs = [judge(to_float(part)) for part in np.array_split(images, -(-len(images) // 64))]
    lesion, contrast, features = (torch.cat(column) for column in zip(*outputs, strict=True))
    found = (lesion[:, 0] > 0).numpy()
    with_lesion = wanted.any(axis=(1, 2))
    dice = 2 * (found & wanted).sum(axis=(1, 2)) / np.maximum(found.sum(axis=(1, 2)) + wanted.sum(axis=(1, 2)), 1)
    return features.double().numpy(), dice[with_lesion].mean(), (contrast.argmax(1).numpy() == contrasts).mean()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)) of two sets of features."""
    A, B = np.cov(a.T), np.cov(b.T)
    root = np.sqrt(np.linalg.eigvals(A @ B).real.clip(0)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(A) + np.trace(B) - 2 * root)


@torch.inference_mode()
def draw(paths, unet, schedule, config, held_out, chosen, guidance) -> np.ndarray:
    """One sample for the mask and contrast of each chosen held-out image; paths(predict, x_T, noise) -> x_t's."""
    drawn = []
    for part in np.array_split(chosen, -(-len(chosen) // 50)):
        _, mask, contrast = held_out.tensors(part)
        noise = noise_source(0, [(str(i), 0) for i in part], held_out.images.shape[1:], "cpu")
        predict_x_0 = denoiser(unet, schedule, config.objective, mask, contrast, guidance)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16"):
            *_, sample = paths(predict_x_0, noise(), noise)
        drawn.append(to_uint8(sample))
    return np.concatenate(drawn)


@one_line_errors
def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="default: the newest in results/")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--judge-minutes", type=float, default=4.0)
    args = parser.parse_args(argv)
    path = args.ckpt or checkpoint.newest()
    loaded = checkpoint.load(path)
    config = loaded["config"]
    schedule = make_schedule(config.schedule, config.timesteps, config.zero_terminal_snr)
    unet = checkpoint.load_unet(loaded, "ema", path)
    judge = train_judge(load_data(config, "train"), args.judge_minutes)
    held_out = load_data(config, "test")
    chosen, others = np.arange(args.n), np.arange(args.n, len(held_out))

    def judged(images, of):
        return verdict(judge, images, held_out.labels[of] == len(held_out.classes) - 1, held_out.contrasts[of])

    reference = judged(held_out.images[others], others)[0]
    T, S = schedule.T, schedule
    rows = {
        f"dpm-solver {n}": (lambda p, x, z, n=n: dpm_solver(p, S, x, log_snr_times(S, n)), 1.0)
        for n in (10, 15, 20, 30)
    }
    rows |= {f"ddim {n}": (lambda p, x, z, n=n: ddim(p, S, x, uniform_times(T, n), z), 1.0) for n in (20, 50)}
    rows |= {
        f"ancestral {n}": (lambda p, x, z, n=n: ancestral(p, S, x, uniform_times(T, n), z), 1.0) for n in (50, 100)
    }
    rows |= {
        f"ancestral {n}, log-SNR nodes": (lambda p, x, z, n=n: ancestral(p, S, x, log_snr_times(S, n), z), 1.0)
        for n in (20, 50)
    }
    rows |= {
        f"dpm-solver 20, guidance {g}": (lambda p, x, z: dpm_solver(p, S, x, log_snr_times(S, 20)), g)
        for g in (0.0, 1.5, 2.0, 3.0)
    }
    print(f"{path}, {args.n} images each; reference: {len(others)} held-out images")
    print(f"| {'':32s} | distance |  Dice | contrast | s/image |\n|{'-' * 34}|---------:|------:|---------:|--------:|")

    def report(name, features, dice, contrast, seconds):
        print(
            f"| {name:32s} | {frechet(features, reference):8.3f} | {dice:5.3f} | {contrast:8.1%} | {seconds:7.2f} |",
            flush=True,
        )

    report("real", *judged(held_out.images[chosen], chosen), 0)
    for name, (paths, guidance) in rows.items():
        begun = time.perf_counter()
        images = draw(paths, unet, schedule, config, held_out, chosen, guidance)
        report(name, *judged(images, chosen), (time.perf_counter() - begun) / len(images))


if __name__ == "__main__":
    sys.exit(main())
