"""Volumes slice by slice: how much do neighbours differ, and what becomes of a noisy head?

    python benchmarks/volumes.py [--ckpt RUN]

The phantom's test subjects in slices 1 mm apart, 30 mm from their own height up. The first table: the mean difference of
two slices, of the phantom itself and of what is drawn for its masks, under each rule for the noise of slices
(`sample.py --coherence`). Then one of those heads as a NIfTI file: denoised, and its lesion drawn anew, as sample.py does.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import sample
from ddpm import UserError
from ddpm.data import phantom
from ddpm.data.images import to_uint8
from ddpm.data.volumes import along, from_slices, library, read_nifti
from ddpm.metrics.paired import psnr
from ddpm.model import Model, Sampling, draw, load_model
from ddpm.runtime.command_line import Parser, one_line_errors, quicker_precision
from ddpm.runtime.config import check_limits
from ddpm.runtime.progress import progress
from ddpm.stack import Stack

SIZE, FINE = 64, 208
HEIGHTS = np.arange(31)  # mm above a subject's own slice
APART = (1, 3, 5, 10, 20, 30)  # mm, of two slices that are compared
RULES = {  # name -> mm between slices with noise of their own
    "drawn, each slice with noise of its own": 1e-2,
    "drawn, all slices with the same noise": 1e6,
    "drawn, `--coherence 40`": 40.0,
    "**drawn, `--coherence 20` (the default)**": 20.0,
}
NOISE = 0.1  # of full scale, Rician


def head(subject: phantom.Subject, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The slices of a subject (N, H, W) uint8, each with noise of its own as a scanner's, and where its lesion is."""
    key, z = subject.key, subject.z
    slices = [replace(subject, z=z + height, key=(*key, height)) for height in HEIGHTS.tolist()]
    images, labels = zip(*(phantom.render(s, size) for s in slices), strict=True)
    return np.stack(images), phantom.to_label_set(np.stack(labels), "lesion")


def subjects(n: int) -> list[phantom.Subject]:
    """The first n of the test split that have a lesion, and 30 mm of brain above them. Raises UserError for fewer."""
    drawn = (phantom.draw_subject(0, "test", i) for i in range(phantom.SPLITS["test"]))
    fit = (subject for subject in drawn if subject.lesion is not None and subject.z < 30)
    if len(found := list(islice(fit, n))) < n:
        raise UserError(f"--n {n}: {len(found)} test subjects have a lesion, and enough of the brain above them")
    return found


def check_draws(model: Model) -> None:
    """Raises UserError unless the model draws slices of the phantom for masks of lesions, and restores them."""
    masks, contrasts = model.vocabulary.classes, model.vocabulary.labels.get("contrast", ())
    size = tuple(model.config.image_size)
    if (size, masks) != ((SIZE, SIZE), phantom.CLASSES["lesion"]) or not {*phantom.CONTRASTS} <= {*contrasts}:
        needed = f"images of {SIZE}x{SIZE}, masks of lesions and the contrasts {', '.join(phantom.CONTRASTS)}"
        raise UserError(f"{model.name}: a model of {needed} is needed; name another --ckpt")
    if model.config.few_times:
        knows = f"{model.name} knows {model.config.few_steps} steps alone"
        raise UserError(f"restoration asks at every time, but {knows}; name another --ckpt")
    Sampling(guidance=1.0).complete(model, ())  # what is restored is told nothing


def differences(heads: list[np.ndarray]) -> list[float]:
    """The mean difference of two slices so many mm apart, of 255."""
    volumes = np.stack(heads).astype(float)
    return [abs(volumes[:, d:] - volumes[:, :-d]).mean() for d in APART]


def drawn_head(model: Model, subject: phantom.Subject, masks: np.ndarray, apart: float, how: Sampling) -> np.ndarray:
    """What is drawn for the masks (N, H, W) of a subject, in its contrast; (N, H, W) uint8."""
    affine = np.diag([phantom.FOV / SIZE, phantom.FOV / SIZE, 1, 1])
    stack = Stack(f"{subject.key[-1]}.nii.gz", affine, "axial", masks.shape, (SIZE, SIZE), (SIZE, SIZE))
    condition = model.vocabulary.condition(masks, contrast=[phantom.CONTRASTS[subject.contrast]] * len(masks))
    *_, (_, x_0) = draw(model, condition, [stack.seed(name, 0, 0, apart) for name in stack.names], how)
    return to_uint8(x_0)[:, 0]


def write_head(path: Path, slices: np.ndarray) -> None:
    """Slices (N, H, W) as a NIfTI file, 1 mm apart."""
    pixel = phantom.FOV / slices.shape[1]
    library("nibabel").Nifti1Image(from_slices(slices, "axial"), np.diag([pixel, pixel, 1, 1])).to_filename(path)


def restored(place: Path, ckpt: str, *flags: str) -> tuple[np.ndarray, float]:
    """What sample.py makes of place/scan.nii.gz, (N, H, W), and the seconds that it took."""
    begun, asked = time.perf_counter(), ["--ckpt", ckpt, "--restore", str(place / "scan.nii.gz"), *flags]
    if sample.main([*asked, "--out", str(place / "restored")]):
        raise SystemExit(2)  # it has said why
    seconds = time.perf_counter() - begun
    return along(read_nifti(place / "restored" / "restored.nii.gz")[0], "axial").copy(), seconds


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/volumes.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ckpt", default="pretrained", help="default: the model in the box")
    parser.add_argument("--n", type=int, default=8, help="subjects of the table (default 8)")
    args = parser.parse_args(argv)
    check_limits("n", args.n, at_least=1)
    library("nibabel")  # that it is not installed is said before the work
    model = load_model(args.ckpt)
    check_draws(model)
    some = subjects(args.n)
    how = Sampling(precision=quicker_precision(next(model.unet.parameters()).device))
    images, masks = zip(*(head(subject, SIZE) for subject in some), strict=True)
    rows = {"the phantom": images}
    for rule, apart in RULES.items():
        pairs = progress(zip(some, masks, strict=True), rule, total=args.n, unit="head")
        rows[rule] = [drawn_head(model, subject, mask, apart, how) for subject, mask in pairs]
    print(f"{model.name}, {args.n} subjects\n| mean difference of two slices, of 255 | {APART} mm apart |")
    for name, heads in rows.items():
        print(f"| {name} | " + " | ".join(f"{d:.1f}" for d in differences(list(heads))) + " |")

    with tempfile.TemporaryDirectory() as place:
        place, truth = Path(place), torch.from_numpy(images[0][:, None] / 255).float()
        noisy = phantom.rician(images[0].astype(np.float32) / 255, NOISE, np.random.default_rng(0))
        write_head(place / "scan.nii.gz", noisy)
        found, seconds = restored(place, args.ckpt, "--as", "denoise")
        before, after = (
            psnr(torch.from_numpy(x[:, None]).float().clamp(0, 1), truth, 1.0).mean() for x in (noisy, found)
        )
        print(f"noise: {before:.1f} dB, denoised {after:.1f} dB, {len(found)} slices in {seconds:.1f} s")

        scan, lesion = head(some[0], FINE)
        region = ndimage.binary_dilation(lesion, iterations=3).astype(np.uint8)
        write_head(place / "scan.nii.gz", scan.astype(np.float32))
        write_head(place / "region.nii.gz", region)
        found, seconds = restored(
            place, args.ckpt, "--as", "inpaint", "--region", str(place / "region.nii.gz"), "--n", "2"
        )
        kept = np.array_equal(found[region == 0], scan[region == 0])
        print(f"a lesion drawn anew in {region.any((1, 2)).sum()} slices of {FINE}x{FINE}, 2 draws, in {seconds:.0f} s; "
              f"the rest is {'exactly' if kept else 'NOT'} the scan")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
