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
from typing import NamedTuple

import numpy as np

from ddpm import UserError, printable, restoration, volume_restoration
from ddpm.conditions import LABELS
from ddpm.data import descriptions, folders, images, phantom
from ddpm.data.sources import COARSE
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
    words_of,
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


class Asked(NamedTuple):
    """What the samples of one name are drawn for."""

    mask: np.ndarray | None  # labels (H, W)
    source: np.ndarray | None  # (C, H, W) uint8


@one_line_errors
@distributed.in_each_process
def main(argv):
    args = distributed.broadcast(read_arguments, argv)
    if args.restore:
        distributed.gather(None)  # one image is the work of one process
        restore = volume_restoration if is_nifti(args.restore) else restoration
        restore.run(args, load_model(args.ckpt, args.weights, pick_device(args.device)), sampling_of(args))
        return
    model, sampling, asked, stack, labels, words = distributed.broadcast(prepare, args)
    model.unet.to(pick_device(args.device))
    out = Path(args.out)
    check_writable(args.out)
    times = sampling.times
    filmed = times[:: -(-len(times) // FILM_FRAMES)] if args.film else []
    frames = {t: {} for t in (*filmed, 0)}  # x_t of each image, as it comes by; x_0 is the image
    jobs = distributed.shard([(name, k) for name in asked for k in range(args.n)])  # image k of a mask
    with progress(total=len(jobs) * (len(times) - 1), unit="step", desc="sampling", leave=True) as bar:
        for start in range(0, len(jobs), args.batch_size):
            batch = jobs[start : start + args.batch_size]
            label_maps = None if args.mask is None else np.stack([asked[name].mask for name, _ in batch])
            source = None if args.source is None else np.stack([asked[name].source for name, _ in batch])
            its_labels = {label: [values[k] for _, k in batch] for label, values in labels.items()}
            its_words = None if words is None else words.repeat(len(batch), axis=0)
            condition = model.vocabulary.condition(
                label_maps, None if source is None else images.to_float(source), its_words, **its_labels
            )
            if stack:  # slices of a volume: neighbours shall agree
                seeds = [stack.seed(name, k, args.seed, args.coherence) for name, k in batch]
            else:
                seeds = [(args.seed, zlib.crc32(os.fsencode(name)), k) for name, k in batch]
            for t, x_t in draw(model, condition, seeds, sampling):
                if t in frames:
                    frames[t] |= zip(batch, images.to_uint8(x_t), strict=True)
                bar.update(len(batch) if t < times[0] else 0)
            for name, k in batch:
                images.write_png(out / f"{name}_{k}.png", frames[0][name, k])

    for part in distributed.gather(frames):
        for t, cells in part.items():
            frames[t] |= cells

    def picture(cells: dict) -> np.ndarray:
        rows = [
            row(asked[name], np.stack([cells[name, k] for k in range(args.n)]), model.vocabulary.classes)
            for name in (stack.shown if stack else asked)
        ]
        return images.grid(np.stack(rows))

    if args.source is not None and args.n > 1 and distributed.rank() == 0:
        for name in asked:
            drawn = np.stack([frames[0][name, k] for k in range(args.n)])
            write_summary(out, name, drawn, model.config.segment)

    images.write_png(out / "grid.png", picture(frames[0]))
    if args.film:
        images.write_gif(out / "film.gif", [*map(picture, frames.values())])
    if stack:
        for k in range(args.n):
            stack.write(
                out / f"{stack.stem}_{k}.nii.gz", np.stack([stack.to_file(frames[0][name, k]) for name in asked])
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
    for name in ("source", "prompt"):
        if getattr(args, name) is not None and is_nifti(args.mask):
            raise UserError(f"--{name} with --mask {args.mask}, a volume: give pictures, or leave --{name} out")
    if args.source is not None and args.restore:
        raise UserError("--source does not go with --restore; leave it out")
    if args.film and is_nifti(args.mask):
        raise UserError(f"--film: {args.mask} is a volume; leave one of them out")
    if not args.n and not args.restore:  # a restoration without --n is the best single estimate
        args.n = 1 if is_nifti(args.mask) else 6
    args.out = args.out or f"results/samples-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


def prepare(args):
    """What to draw: the model, how, what is asked for by name, of what volume these are slices (or None), the labels of
    each sample of a name, and the words (1, ...) of all (or None). Raises UserError."""
    model = load_model(args.ckpt, args.weights)
    # A prompt says itself which contrast, and so does a source, unless it is to be translated into another one.
    says_it = args.prompt is not None or (args.source is not None and model.config.source not in phantom.CONTRASTS)
    wanted = {name: getattr(args, name) or ("none" if says_it else "each") for name in LABELS}
    labels = {name: label_values(name, value, model, args.n) for name, value in wanted.items()}
    labels = {name: values for name, values in labels.items() if values}
    words = words_of(args, model, 1)
    there = {"mask": args.mask, "source": args.source, "words": words}
    given = tuple(name for name, x in there.items() if x is not None) + tuple(labels)
    sampling = sampling_of(args).complete(model, given)
    how = f"{args.weights} weights, {sampling.steps} {sampling.sampler} steps in {sampling.precision}"
    print(f"{model.name}: step {model.step}, {how}, {sampling.guidance_text} -> {args.out}")
    masks, stack = read_masks(args.mask, model)
    asked = paired(masks, read_sources(args.source, model))
    if args.prompt is not None and model.config.words:
        others = [
            (f"{name}'s mask", descriptions.describe(one.mask == len(model.vocabulary.classes) - 1))
            for name, one in asked.items()
            if one.mask is not None
        ]
        others += [("--contrast", {"contrast": args.contrast})] * bool(labels.get("contrast"))
        for found in descriptions.contradictions(args.prompt, others):
            print(f"note: {found}; docs/uses.md tells which of two is followed")
    columns = args.n + (args.mask is not None) + (args.source is not None)
    height, width = images.grid_size(len(asked), columns, *model.shape[1:])
    if args.film and max(height, width) > 65535:
        raise UserError(f"--film: {width}x{height} pixels, but a GIF has at most 65,535 a side; ask for fewer images")
    return model, sampling, asked, stack, labels, words


def make_parser() -> Parser:
    parser = Parser(prog="sample.py", description="Draw images that follow a mask (Algorithm 2).")
    add_sampling_flags(parser, batch_size=16)
    add = parser.add_argument
    masks = "a mask or a folder of masks (PNG), or a volume of labels (NIfTI)"
    without = "without PATH those in examples/masks; without --mask, unconditional"
    add("--mask", nargs="?", const=EXAMPLES, metavar="PATH", help=f"{masks}; {without}")
    add("--n", type=int, help="images for each mask (default 6), or volumes (default 1)")
    add("--source", metavar="PATH", help="the picture that is translated, or a folder of them, named as their masks")
    add("--prompt", metavar="TEXT", help='what to show, such as "axial FLAIR, large lesion, left frontal"')
    add("--text-embeddings", metavar="FILE", help="where the prompt's vector is, of a model that was trained with such")
    values = (
        "one of its values as the checkpoint knows them; 'each' in turn, or 'none' (default each, with a prompt none)"
    )
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


def read_sources(wanted: str | None, model: Model) -> dict[str, np.ndarray]:
    """Name -> picture (C, H, W) uint8 of each source asked for. Raises UserError."""
    if wanted is None:
        return {}
    if not model.vocabulary.source:
        raise UserError(f"--source: {model.name} was trained without a source; leave --source out")
    size, place, sources = tuple(model.config.image_size), Path(wanted), {}
    for name, file in (folders.pictures_in(place) if place.is_dir() else {place.stem: place}).items():
        picture = images.read_pixels(file, len(model.vocabulary.source))
        if picture.dtype != np.uint8:
            raise UserError(f"{file}: more than 8 bits a pixel; convert it with the window of the training images")
        if model.config.source == "coarse" and picture.shape[1:] == tuple(n // COARSE for n in size):
            picture = picture.repeat(COARSE, axis=1).repeat(COARSE, axis=2)  # as the network was shown it
        if picture.shape[1:] != size:
            shapes = [f"{height}x{width}" for height, width in (picture.shape[1:], size)]
            print(printable(f"{file}: source of {shapes[0]} resized to {shapes[1]}"))
        sources[name] = images.resize(picture, size)
    return sources


def paired(masks: dict[str, np.ndarray | None], sources: dict[str, np.ndarray]) -> dict[str, Asked]:
    """Masks and sources by their common names; a single one goes with all of the others. Raises UserError."""
    first = next(iter(masks.values()))
    if not sources or (len(sources) == 1 and first is not None):
        return {name: Asked(mask, next(iter(sources.values()), None)) for name, mask in masks.items()}
    if len(masks) == 1:
        return {name: Asked(first, source) for name, source in sources.items()}
    if lonely := sorted(masks.keys() ^ sources.keys()):
        has, lacks = ("mask", "source") if lonely[0] in masks else ("source", "mask")
        raise UserError(
            f"{lonely[0]}: a {has} without a {lacks} of that name; name them alike, or give a single {lacks}"
        )
    return {name: Asked(mask, sources[name]) for name, mask in masks.items()}


def write_summary(out: Path, name: str, drawn: np.ndarray, segment: bool) -> None:
    """The mean of several draws (n, C, H, W) uint8 for one source, how they differ, and, of masks, what most of them say."""
    images.write_png(out / f"{name}_mean.png", np.rint(drawn.mean(axis=0)).astype(np.uint8))
    spread = (restoration.AMPLIFIED * drawn.std(axis=0)).clip(0, 255)
    images.write_png(out / f"{name}_deviation.png", np.rint(spread).astype(np.uint8))
    if segment:
        images.write_png(out / f"{name}_mask.png", 255 * (drawn.mean(axis=0) >= 127.5).astype(np.uint8))


def row(asked: Asked, drawn: np.ndarray, classes: tuple) -> np.ndarray:
    """A row of the grid: the source and the mask (if there are), and the samples, uint8 (columns, 3, H, W)."""
    cells = [images.rgb(drawn)]
    if asked.mask is not None:
        cells.insert(0, images.colour_labels(asked.mask, len(classes))[None])
    if asked.source is not None:
        cells.insert(0, images.rgb(asked.source[None]))
    return np.concatenate(cells)


if __name__ == "__main__":
    sys.exit(main())
