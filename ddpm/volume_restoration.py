"""`sample.py --restore SCAN.nii.gz`: restoration slice by slice, written on the scan's grid and in its units.

The modes are those of restoration.py in which a slice says all that is measured of it. Slices with hardly any brain are
left as they are: the network has seen none such.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import median_filter

from ddpm import UserError, printable
from ddpm.conditions import Condition
from ddpm.data.images import grid, rgb, to_uint8, write_png
from ddpm.data.scans import MIN_BRAIN, read_labels
from ddpm.data.volumes import along, foreground_share, is_nifti, read_nifti, window
from ddpm.inverse import Inpainting, Operator
from ddpm.model import Model, Sampling
from ddpm.restoration import (
    AMPLIFIED,
    SMOOTHED,
    Measurement,
    asked_for,
    completed,
    draws_of,
    noise_in_air,
    of_noisy,
    written,
)
from ddpm.runtime.files import make_samples_folder, refuse_overwriting
from ddpm.runtime.progress import progress
from ddpm.stack import SHOWN, Stack, stack_of

MODES = ("inpaint", "denoise", "anomaly")
DIFFERENCES = ("anomaly", "deviation")


def run(args, model: Model, how: Sampling) -> None:
    """Restore, slice by slice, and write the volumes and an overview. Raises UserError."""
    check(args)
    volume, affine = read_nifti(args.restore)
    scan = along(volume, model.config.axis).astype(np.float32)  # (N, h, w)
    stack = stack_of(args.restore, scan, affine, model)
    low, high = window(args.restore, volume)
    if args.mode == "denoise":
        if volume.min() < 0 and not args.gaussian:
            raise UserError(f"{args.restore}: values under 0, where a magnitude image has none; shift or clip them")
        below, low = -low, 0.0  # noise is Rician from there on
    todo, new = np.flatnonzero(foreground_share(scan) >= MIN_BRAIN), np.ones(scan.shape, np.uint8)
    if args.mode == "inpaint":
        new = read_region(args.region, stack, volume, affine)
        todo = np.flatnonzero(new[:, stack.looked_at].any(axis=1))
    measured = measure(args, stack, ((scan[todo] - low) / (high - low)).clip(0, 1), new[todo])
    # What noise of this size does not explain is brain, and would be cut to black.
    if args.mode == "denoise" and below > 3 * measured.sigma * high:
        found = f"1 % of its values are under {-below:g}, too far down for noise of {measured.sigma:.1%} of {high:g}"
        raise UserError(f"{args.restore}: {found} on a black of 0; shift it until air is 0, or give another --noise")
    masks = None if args.mask is None else read_masks(args.mask, stack, volume, affine, model)[todo]
    condition, asked = asked_for(args, model, len(todo), masks)
    how = completed(args, model, how, condition.given)
    refuse_overwriting(args.out, written(args), (args.restore, args.region, args.mask))
    args.out = make_samples_folder(args.out)
    work = f"{len(todo)} of {len(scan)} {stack.axis} slices of {scan.shape[1]}x{scan.shape[2]}"
    print(printable(f"{model.name}: step {model.step}; {args.mode}: {work}; {measured.about}; {asked} -> {args.out}"))

    names, shown, rows = [stack.names[n] for n in todo], set(np.linspace(0, len(todo) - 1, SHOWN).round()), []
    looked_at = stack.looked_at
    volumes: dict[str, np.ndarray] = {}
    made = restored(args, model, how, measured, condition, stack, names)
    for i, pictures in enumerate(progress(made, "restoring", total=len(todo), unit="slice")):
        for name, picture in pictures.items():
            difference = name in DIFFERENCES  # elsewhere it is 0, and the others are the scan
            slices = volumes.setdefault(name, np.zeros_like(scan) if difference else scan.copy())
            values = (high - low) * stack.to_file(picture.numpy()) + low * (not difference)
            slices[todo[i]] = np.where(looked_at & (new[todo[i]] == 1), values, slices[todo[i]])
        if i in shown:
            bright = {name: x * (AMPLIFIED if name in DIFFERENCES else 1) for name, x in pictures.items()}
            rows.append([measured.shown[i], *bright.values()])
    out = Path(args.out)
    for name, slices in volumes.items():
        stack.write(out / f"{name}.nii.gz", slices)
    write_png(out / "grid.png", grid(np.stack([rgb(to_uint8(2 * torch.stack(row) - 1)) for row in rows])))
    files, columns = ", ".join(f"{name}.nii.gz" for name in volumes), " | ".join(["measured", *volumes])
    print(printable(f"{files} on the grid of {args.restore} and in its units; grid.png ({columns}) in {out}"))


def restored(
    args, model: Model, how: Sampling, measured: Measurement, condition: Condition, stack: Stack, names: list[str]
):
    """Yields for each slice, by name, pictures (1, H, W) in [0, 1]: the mean of the draws, each draw if --n asks for them,
    and how they differ from what was measured or from each other. names: of the slices, for their noise."""
    for start in range(0, len(names), args.batch_size):
        part = slice(start, start + args.batch_size)
        here = part_of(measured, part)

        def seeds(k: int, part=part) -> list:
            return [stack.seed(name, k, args.seed, args.coherence) for name in names[part]]

        walked = draws_of(model, here, condition[part], args, how, seeds)
        draws = torch.stack([draw.clamp(0, 1).cpu() for draw in walked])
        mean = draws.mean(dim=0)
        made = {"restored": mean, **{f"draw_{k}": draws[k] for k in range(args.n or 0)}}
        if args.mode == "anomaly":
            changed = median_filter((here.y - mean).abs().numpy(), (1, 1, SMOOTHED, SMOOTHED))
            made["anomaly"] = torch.from_numpy(changed)
        elif (args.n or 1) > 1:  # of draws: the walks of means differ less than the images that fit y
            made["deviation"] = draws.std(dim=0, correction=0)
        for i in range(len(mean)):
            yield {name: pictures[i] for name, pictures in made.items()}


def check(args) -> None:
    """Raises UserError for what a volume cannot be asked."""
    if args.mode not in MODES:
        remedy = "cut it into pictures with tools/slices.py"
        raise UserError(f"--as {args.mode}: a volume is restored as {', '.join(MODES)}; {remedy}")
    if args.simulate:
        raise UserError(f"--simulate measures a picture, and {args.restore} is a volume; leave it out")
    for name, given in (("--mask", args.mask), ("--region", args.region)):
        if given is not None and not is_nifti(given):
            raise UserError(f"{name} {given}: --restore takes a volume here, so give a NIfTI volume on its grid")


def measure(args, stack: Stack, share: np.ndarray, new: np.ndarray) -> Measurement:
    """What is known of slices, in the network's pixels. share (n, h, w) of full scale; new (n, h, w): 1 where an image shall
    be drawn anew. Raises UserError."""
    if not len(share):
        raise UserError(
            f"{args.restore}: no slice of it shows a brain (more than {MIN_BRAIN:.0%} that is not background)"
        )

    def as_seen(slices: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([stack.to_network(picture) for picture in slices]))

    seen = as_seen(share)
    if args.mode == "inpaint":
        known = torch.from_numpy(~np.stack([stack.region_to_network(region) for region in new]))[:, None]
        kept = (new == 0).astype(np.float32)  # resampling reaches over the edge of a pixel: only what is kept counts
        seen = as_seen(kept * share) / as_seen(kept).clamp(min=0.1)
        operator, about = Inpainting(known.float()), f"{(new == 1).mean():.1%} of them drawn anew"
        return Measurement(operator, operator.apply(seen), args.noise or 0.0, torch.where(known, seen, 0.5), about)
    if args.mode == "anomaly":
        return Measurement(Operator(), seen, 0.0, seen, "healed, and what that changed")
    if stack.true_size != stack.shape[1:]:
        here, there = ("{}x{}".format(*size) for size in (stack.shape[1:], stack.true_size))
        found = f"slices of {here} would become {there}, and their noise would not be what it was"
        raise UserError(f"{args.restore}: {found}; resample it before, or train a network of its pixels")
    air = torch.from_numpy(share)[:, None]  # not what was padded
    return of_noisy(seen, None, args.noise or noise_in_air(air, args.gaussian), args)


def part_of(measured: Measurement, part: slice) -> Measurement:
    operator = measured.operator
    if isinstance(operator, Inpainting):
        operator = Inpainting(operator.known[part])
    return replace(measured, operator=operator, y=measured.y[part], shown=measured.shown[part])


def read_region(path: str | None, stack: Stack, volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(N, h, w), on the grid of the volume: 1 where the image shall be drawn anew. Raises UserError."""
    if path is None:
        raise UserError("--as inpaint needs --region: a volume that is not 0 where the image shall be drawn anew")
    region = along(read_labels(path, stack.path, volume, affine, ("known", "new")), stack.axis)
    if not region.any():
        raise UserError(f"{path}: nothing of it is marked; mark what shall be drawn anew")
    if outside := np.count_nonzero(region[:, ~stack.looked_at]):
        found = f"{path}: {outside} of {np.count_nonzero(region)} marked voxels lie beside what the network sees"
        if outside == np.count_nonzero(region):
            raise UserError(f"{found}; crop or pad the scan, so that they lie near its middle")
        print(printable(f"{found}, and stay as they are"))
    return region


def read_masks(path: str, stack: Stack, volume: np.ndarray, affine: np.ndarray, model: Model) -> np.ndarray:
    """The mask of each slice as the network sees it, (N, H, W). Raises UserError."""
    known = model.vocabulary
    if not known.classes:
        raise UserError(f"--mask: {model.name} was trained without masks; leave --mask out")
    labels = along(read_labels(path, stack.path, volume, affine, known.classes, known.values), stack.axis)
    return np.stack([stack.labels_to_network(of_slice) for of_slice in labels])
