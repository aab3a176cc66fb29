"""Draw images that follow a mask: the paper's Algorithm 2 (the loop is `draw` in ddpm/model.py, its steps are in
ddpm/reverse.py).

`python sample.py --mask` takes the newest checkpoint, or the model in the box, and the masks in examples/masks. Nothing
that training chose has to be repeated here: it is read from the checkpoint.
"""

import os
import sys
import time
import zlib
from pathlib import Path

import numpy as np

from ddpm import UserError, printable, restoration, volume_restoration
from ddpm.conditions import LABELS
from ddpm.data import folders, images, phantom
from ddpm.data.volumes import is_nifti
from ddpm.model import Model, draw, load_model
from ddpm.runtime import distributed
from ddpm.runtime.command_line import (
    Parser,
    add_sampling_flags,
    check_range,
    label_values,
    one_line_errors,
    pick_device,
    sampling_of,
)
from ddpm.runtime.config import flag
from ddpm.runtime.files import check_writable
from ddpm.runtime.progress import progress
from ddpm.stack import COHERENCE, Stack, read_stack

EXAMPLES = Path(__file__).parent / "examples" / "masks"
FILM_FRAMES = 60
DRAWING_ALONE = ("film", "sampler", "eta")
RESTORATION_ALONE = {  # and the modes that use it
    "simulate": restoration.MODES,
    "region": ("inpaint",),
    "resample": ("inpaint",),
    "acceleration": ("kspace",),
    "lines": ("kspace",),
    "real": ("kspace",),
    "factor": ("super-resolution",),
    "gaussian": ("denoise",),
    "noisy_prior": ("denoise",),
    "noise": ("inpaint", "kspace", "super-resolution", "denoise"),
}


@one_line_errors
@distributed.in_each_process
def main(argv):
    args = distributed.broadcast(read_arguments, argv)
    if args.restore:
        distributed.gather(None)  # one image is the work of one process
        restore = volume_restoration if is_nifti(args.restore) else restoration
        restore.run(args, load_model(args.ckpt, args.weights, pick_device(args.device)), sampling_of(args))
        return
    model, sampling, masks, stack, labels = distributed.broadcast(prepare, args)
    model.unet.to(pick_device(args.device))
    out = Path(args.out)
    check_writable(args.out)
    times = sampling.times
    filmed = times[:: -(-len(times) // FILM_FRAMES)] if args.film else []
    frames = {t: {} for t in (*filmed, 0)}  # x_t of each image, as it comes by; x_0 is the image
    jobs = distributed.shard([(name, k) for name in masks for k in range(args.n)])  # image k of a mask
    with progress(total=len(jobs) * (len(times) - 1), unit="step", desc="sampling", leave=True) as bar:
        for start in range(0, len(jobs), args.batch_size):
            batch = jobs[start : start + args.batch_size]
            label_maps = None if args.mask is None else np.stack([masks[name] for name, _ in batch])
            asked = {label: [values[k] for _, k in batch] for label, values in labels.items()}
            if stack:  # slices of a volume: neighbours shall agree
                seeds = [stack.seed(name, k, args.seed, args.coherence) for name, k in batch]
            else:
                seeds = [(args.seed, zlib.crc32(os.fsencode(name)), k) for name, k in batch]
            for t, x_t in draw(model, model.vocabulary.condition(label_maps, **asked), seeds, sampling):
                if t in frames:
                    frames[t] |= zip(batch, images.to_uint8(x_t), strict=True)
                bar.update(len(batch) if t < times[0] else 0)
            for name, k in batch:
                images.write_png(out / f"{name}_{k}.png", frames[0][name, k])

    for part in distributed.gather(frames):
        for t, cells in part.items():
            frames[t] |= cells

    def picture(cells: dict) -> np.ndarray:
        shown = stack.shown if stack else masks
        rows = [row(name, masks[name], cells, args.n, model.vocabulary.classes) for name in shown]
        return images.grid(np.stack(rows))

    images.write_png(out / "grid.png", picture(frames[0]))
    if args.film:
        images.write_gif(out / "film.gif", [*map(picture, frames.values())])
    if stack:
        for k in range(args.n):
            stack.write(
                out / f"{stack.stem}_{k}.nii.gz", np.stack([stack.to_file(frames[0][name, k]) for name in masks])
            )
        print(f"{args.n} volume(s) {stack.stem}_k.nii.gz on the grid of {args.mask}, 0 is black, 255 white")
    print(f"{len(frames[0])} images, grid.png{' and film.gif' if args.film else ''} in {out}")


def read_arguments(argv):
    """The command line, checked. Raises UserError."""
    parser = make_parser()
    args = parser.parse_args(argv)
    check_range(
        args,
        n=(1, 10**6),
        eta=(0, 1),
        coherence=(0.01, 10**6),
        acceleration=(1, 10**6),
        factor=(1, 4096),
        noise=(0, 1),
        resample=(1, 100),
    )
    if args.eta and args.sampler != "ddim":
        raise UserError("--eta belongs to --sampler ddim; give that too, or leave it out")
    if bool(args.restore) != bool(args.mode):
        raise UserError("--restore IMAGE and --as go together: --as " + ", ".join(restoration.MODES))
    for name in (*DRAWING_ALONE, *RESTORATION_ALONE):
        modes = RESTORATION_ALONE.get(name)
        if getattr(args, name) == parser.get_default(name):
            continue
        if bool(args.restore) != bool(modes):
            raise UserError(f"{flag(name)} {'belongs to' if modes else 'does not go with'} --restore; leave it out")
        if modes and args.mode not in modes:
            raise UserError(f"{flag(name)} is for --as {' or '.join(modes)}, not {args.mode}; leave it out")
        if name in ("acceleration", "lines") and not args.simulate:
            raise UserError(f"{flag(name)} is for --simulate, as a scan says itself what was measured; leave it out")
    if args.coherence != COHERENCE and not is_nifti(args.restore or args.mask):
        raise UserError("--coherence is for volumes (--mask or --restore NAME.nii.gz); leave it out")
    if args.film and is_nifti(args.mask):
        raise UserError(f"--film: {args.mask} is a volume; leave one of them out")
    if not args.n and not args.restore:  # a restoration without --n is the best single estimate
        args.n = 1 if is_nifti(args.mask) else 6
    args.out = args.out or f"results/samples-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def prepare(args):
    """What to draw: the model, how, the masks by name, of what volume they are slices (or None), and the labels of each
    sample of a mask. Raises UserError."""
    model = load_model(args.ckpt, args.weights)
    labels = {name: label_values(name, getattr(args, name), model, args.n) for name in LABELS}
    labels = {name: values for name, values in labels.items() if values}
    given = ("mask",) * (args.mask is not None) + tuple(labels)
    sampling = sampling_of(args).complete(model, given)
    if model.vocabulary.classes and args.mask is None and not model.config.drop_of("mask"):
        raise UserError(f"{model.name} was trained with --mask-drop 0 and --both-drop 0: it needs --mask")
    how = f"{args.weights} weights, {sampling.steps} {sampling.sampler} steps in {sampling.precision}"
    print(f"{model.name}: step {model.step}, {how}, {sampling.guidance_text} -> {args.out}")
    masks, stack = read_masks(args.mask, model)
    height, width = images.grid_size(len(masks), args.n + (args.mask is not None), *model.shape[1:])
    if args.film and max(height, width) > 65535:
        raise UserError(f"--film: {width}x{height} pixels, but a GIF has at most 65,535 a side; ask for fewer images")
    return model, sampling, masks, stack, labels


def make_parser() -> Parser:
    parser = Parser(prog="sample.py", description="Draw images that follow a mask (Algorithm 2).")
    add_sampling_flags(parser, batch_size=16)
    add = parser.add_argument
    masks = "a mask or a folder of masks (PNG), or a volume of labels (NIfTI)"
    without = "without PATH those in examples/masks; without --mask, unconditional"
    add("--mask", nargs="?", const=EXAMPLES, metavar="PATH", help=f"{masks}; {without}")
    add("--n", type=int, help="images for each mask (default 6), or volumes (default 1)")
    values = "one of its values as the checkpoint knows them; 'each' in turn (default), or 'none'"
    for name in LABELS:
        add(f"--{name}", default="each", help=values)
    add("--eta", type=float, default=0.0, help="ddim's noise: 0 deterministic (default), 1 as much as ancestral")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged (default) or the last ones")
    apart = f"of a volume: slices so far apart have noise of their own (default {COHERENCE:g} mm)"
    add("--coherence", type=float, metavar="MM", default=COHERENCE, help=apart)
    add("--film", action="store_true", help="also film.gif, from noise to images")
    add("--out", help="folder for the images (default results/samples-TIME)")

    add = parser.add_argument_group("restoration (docs/uses.md)", "from a measurement back to the image").add_argument
    add(
        "--restore",
        metavar="IMAGE",
        help="what was measured (a picture or a volume); --n several draws instead of the best single estimate",
    )
    add("--as", dest="mode", choices=restoration.MODES, help="what kind of measurement it is")
    add("--simulate", action="store_true", help="IMAGE is whole: measure it first, then say how close the result is")
    add("--region", metavar="MASK", help="inpaint: white where the image shall be drawn anew")
    add("--resample", type=int, default=1, help="inpaint: walk each stretch so many times (RePaint; default 1)")
    add("--acceleration", type=float, default=4.0, help="kspace, simulated: 1 in so many lines (default 4)")
    add(
        "--lines", choices=("equispaced", "random"), default="equispaced", help="kspace, simulated: as fastMRI has them"
    )
    add("--real", action="store_true", help="kspace: of an image without phase, whose k-space is symmetric")
    add("--factor", type=int, default=2, help="super-resolution: pixels each way in one of IMAGE (default 2)")
    add("--gaussian", action="store_true", help="denoise: the noise is Gaussian, not a magnitude image's (Rician)")
    noisy_prior = "denoise: the checkpoint was trained on images with this same noise (Noisier2Noise)"
    add("--noisy-prior", action="store_true", help=noisy_prior)
    add("--noise", type=float, help="its standard deviation as a share of full scale (denoise: found in the air)")
    return parser


def read_masks(wanted: str | Path | None, model: Model) -> tuple[dict[str, np.ndarray | None], Stack | None]:
    """Name -> label map (H, W) of each mask asked for; without a mask, {"unconditional": None}. And the volume that they
    are slices of, if they are. Raises UserError."""
    classes, size = model.vocabulary.classes, tuple(model.config.image_size)
    if wanted is None:
        return {"unconditional": None}, None
    if not classes:
        raise UserError(f"--mask: {model.name} was trained without masks; leave --mask out")
    if is_nifti(wanted):
        return read_stack(wanted, model)
    place = Path(wanted)
    if wanted == EXAMPLES:
        sets = [name for name, known in phantom.CLASSES.items() if len(known) == len(classes)]
        if not sets:
            raise UserError(f"--mask: no examples for the {len(classes)} classes of {model.name}; give a PATH")
        place = EXAMPLES / sets[0]
    masks = {}
    for name, file in (folders.pictures_in(place) if place.is_dir() else {place.stem: place}).items():
        mask = images.read_mask(file, classes)
        masks[name] = images.resize_labels(mask, size)
        if mask.shape != size:
            shapes = [f"{height}x{width}" for height, width in (mask.shape, size)]
            print(printable(f"{file}: mask of {shapes[0]} resized by nearest neighbour to {shapes[1]}"))
    return masks, None


def row(name: str, labels, cells: dict, n: int, classes: tuple) -> np.ndarray:
    """A row of the grid: the mask (if there is one) and its n samples, uint8 (columns, 3, H, W)."""
    samples = images.rgb(np.stack([cells[name, k] for k in range(n)]))
    if labels is None:
        return samples
    return np.concatenate([images.colour_labels(labels, len(classes))[None], samples])


if __name__ == "__main__":
    sys.exit(main())
