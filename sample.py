"""Draw images that follow a mask: the paper's Algorithm 2 (the loop is `draw` in ddpm/model.py, its steps are in
ddpm/reverse.py).

`python sample.py --mask` takes the newest checkpoint, or the model in the box, and the masks in examples/masks. Nothing
that training chose has to be repeated here: it is read from the checkpoint.
"""

import os
import sys
import zlib
from pathlib import Path

import numpy as np

from ddpm import UserError, restoration, volume_restoration
from ddpm.asked import EXAMPLES, pictures_of, read_asked
from ddpm.conditions import LABELS
from ddpm.data import images
from ddpm.data.volumes import is_nifti
from ddpm.model import draw, load_model
from ddpm.runtime import distributed
from ddpm.runtime.command_line import (
    Parser,
    add_sampling_flags,
    check_range,
    one_line_errors,
    pick_device,
    sampling_of,
)
from ddpm.runtime.config import flag
from ddpm.runtime.files import make_samples_folder, refuse_overwriting
from ddpm.runtime.progress import progress
from ddpm.stack import COHERENCE

FILM_FRAMES = 60
OVERVIEW = 64  # names, and samples of each, at most in grid.png and the film
DRAWING_ALONE = ("film", "sampler", "eta", "extra_noise")
MEASURED = tuple(mode for mode in restoration.MODES if mode != "anomaly")
RESTORATION_ALONE = {  # and the modes that use it
    "simulate": MEASURED,
    "region": ("inpaint",),
    "resample": ("inpaint",),
    "acceleration": ("kspace",),
    "lines": ("kspace",),
    "real": ("kspace",),
    "factor": ("super-resolution",),
    "gaussian": ("denoise",),
    "noisy_prior": ("denoise",),
    "noise": MEASURED,
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
    model, asked, sampling, args.out = distributed.broadcast(prepare, args)
    model.unet.to(pick_device(args.device))
    out, times = Path(args.out), sampling.times
    filmed = times[:: -(-len(times) // FILM_FRAMES)] if args.film else []
    frames = {t: {} for t in (*filmed, 0)}  # x_t of each image, as it comes by; x_0 is the image
    jobs = distributed.shard([(name, k) for name in asked.names for k in range(asked.n)])  # image k of a mask
    with progress(total=len(jobs) * (len(times) - 1), unit="step", desc="sampling", leave=True) as bar:
        for start in range(0, len(jobs), args.batch_size):
            batch = jobs[start : start + args.batch_size]
            if asked.stack:  # slices of a volume: neighbours shall agree
                seeds = [asked.stack.seed(name, k, args.seed, args.coherence) for name, k in batch]
            else:
                seeds = [(args.seed, zlib.crc32(os.fsencode(name)), k) for name, k in batch]
            for t, x_t in draw(model, asked.condition(batch), seeds, sampling):
                if t in frames:
                    frames[t] |= zip(batch, images.to_uint8(x_t), strict=True)
                bar.update(len(batch) if t < times[0] else 0)
            for name, k in batch:
                images.write_png(out / f"{name}_{k}.png", frames[0][name, k])

    for part in distributed.gather(frames):
        for t, cells in part.items():
            frames[t] |= cells

    def of(name: str, cells: dict) -> np.ndarray:
        return np.stack([cells[name, k] for k in range(asked.n)])

    def picture(cells: dict) -> np.ndarray:
        shown = asked.stack.shown if asked.stack else asked.names[:OVERVIEW]
        return images.grid(np.stack([asked.row(name, of(name, cells)[:OVERVIEW]) for name in shown]))

    for name in asked.names if asked.sources else ():
        for which, alike in asked.alike().items():
            if len(alike) > 1:
                write_summary(out / "summary", name + which, of(name, frames[0])[alike], model.config.segment)
    if asked.drafted:
        (out / "masks").mkdir(exist_ok=True)
        for name, mask in asked.masks.items():
            images.write_png(out / "masks" / f"{name}.png", 255 * mask[None])
    images.write_png(out / "grid.png", picture(frames[0]))
    if args.film:
        images.write_gif(out / "film.gif", [*map(picture, frames.values())])
    if stack := asked.stack:
        for k in range(args.n):
            slices = np.stack([stack.to_file(frames[0][name, k]) for name in asked.names])
            stack.write(out / f"{stack.stem}_{k}.nii.gz", slices)
        print(f"{args.n} volume(s) {stack.stem}_k.nii.gz on the grid of {args.mask}, 0 is black, 255 white")
    cut = f" (the first {OVERVIEW})" if not asked.stack and max(asked.n, len(asked.names)) > OVERVIEW else ""
    print(f"{len(frames[0])} images, grid.png{' and film.gif' if args.film else ''}{cut} in {out}")


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
    for name in ("mask", "source", "restore", "region"):
        if getattr(args, name) == "":
            raise UserError(f"--{name}: an empty name (an unset variable?); name one, or leave it out")
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
    if args.mode == "denoise" and args.noise == 0:
        raise UserError("--noise 0: there is none to take away; leave it out, and it is found in the image's corners")
    for name in ("source", "prompt"):
        if getattr(args, name) is not None and is_nifti(args.mask):
            raise UserError(f"--{name} with --mask {args.mask}, a volume: give pictures, or leave --{name} out")
    if args.sample_steps and args.mode in ("denoise", "anomaly"):
        raise UserError(f"--sample-steps: --as {args.mode} has a way of its own; leave it out")
    if args.source is not None and args.restore:
        raise UserError("--source does not go with --restore; leave it out")
    if args.film and is_nifti(args.mask):
        raise UserError(f"--film: {args.mask} is a volume; leave one of them out")
    if not args.n and not args.restore:  # a restoration without --n is the best single estimate
        args.n = 1 if is_nifti(args.mask) else 6
    return args


def prepare(args):
    """The model, what it is asked to draw, how, and the folder for it. Raises UserError."""
    model = load_model(args.ckpt, args.weights)
    asked = read_asked(args, model)
    sampling = sampling_of(args).complete(model, asked.given)
    columns = min(asked.n, OVERVIEW) + bool(asked.masks) + bool(asked.sources)
    height, width = images.grid_size(min(len(asked.names), OVERVIEW), columns, *model.shape[1:])
    if args.film and max(height, width) > 65535:
        raise UserError(f"--film: {width}x{height} pixels, but a GIF has at most 65,535 a side; ask for fewer images")
    places = [Path(place) for place in (args.mask, args.source) if place not in (None, EXAMPLES)]
    volume = [asked.stack.stem] if asked.stack else []
    names = [f"{name}_{k}" for name in (*asked.names, *volume) for k in range(asked.n)]
    written = {"grid.png", *(name + ending for name in names for ending in (".png", ".nii.gz"))}
    read = [file for place in places for file in pictures_of(place).values()]
    refuse_overwriting(args.out, written, read)
    out = make_samples_folder(args.out)
    how = f"{args.weights} weights, {sampling.steps} {sampling.sampler} steps in {sampling.precision}"
    print(f"{model.name}: step {model.step}, {how}, {sampling.in_words} -> {out}")
    if args.prompt is not None and (model.config.words or asked.drafted):
        for found in asked.contradictions(args.prompt):
            print(f"note: {found}{'' if asked.drafted else '; docs/uses.md tells which of two is followed'}")
    return model, asked, sampling, out


def make_parser() -> Parser:
    parser = Parser(prog="sample.py", description="Draw images that follow a mask (Algorithm 2).")
    add_sampling_flags(parser, batch_size=16)
    add = parser.add_argument
    masks = "a mask or a folder of masks (PNG), or a volume of labels (NIfTI)"
    without = "without PATH those in examples/masks; without --mask, unconditional"
    add("--mask", nargs="?", const=EXAMPLES, metavar="PATH", help=f"{masks}; {without}")
    add("--n", type=int, help="images for each mask (default 6), or volumes (default 1)")
    add("--source", metavar="PATH", help="the picture that is translated, or a folder of them, named as their masks")
    says = 'what to show, such as "axial FLAIR, large lesion, left frontal"; a model without --words gets drawn masks'
    add("--prompt", metavar="TEXT", help=says)
    add("--text-embeddings", metavar="FILE", help="where the prompt's vector is, of a model that was trained with such")
    values = "one of its values as the checkpoint knows them; 'each' in turn, or 'none' (default each; none with "
    values += "--restore, a prompt, or a source of no known contrast)"
    for name in LABELS:
        add(f"--{name}", help=values)
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


def write_summary(out: Path, name: str, drawn: np.ndarray, segment: bool) -> None:
    """The mean of several draws (n, C, H, W) uint8 for one source, how they differ, and, of masks, what most of them say."""
    out.mkdir(exist_ok=True)
    name = name.replace("/", "-")  # as a label's value may have it
    images.write_png(out / f"{name}_mean.png", np.rint(drawn.mean(axis=0)).astype(np.uint8))
    spread = (restoration.AMPLIFIED * drawn.std(axis=0)).clip(0, 255)
    images.write_png(out / f"{name}_deviation.png", np.rint(spread).astype(np.uint8))
    if segment:
        images.write_png(out / f"{name}_mask.png", 255 * ((drawn >= 128).mean(axis=0) >= 0.5).astype(np.uint8))


if __name__ == "__main__":
    sys.exit(main())
