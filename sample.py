"""Draw images that follow a mask: the paper's Algorithm 2 (the loop itself is in ddpm/reverse.py).

`python sample.py --mask` takes the newest checkpoint and the masks in examples/masks. Nothing that training
chose has to be repeated here: it is read from the checkpoint.
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ddpm import UserError
from ddpm.data import folders, images, phantom
from ddpm.reverse import denoiser, noise_source, trajectory
from ddpm.runtime import checkpoint, distributed
from ddpm.runtime.config import Parser, one_line_errors, pick_device
from ddpm.runtime.files import check_writable
from ddpm.runtime.sampling_flags import add_sampling_flags, check_at_least, load_checkpoint, settle
from ddpm.schedule import make_schedule

EXAMPLES = Path(__file__).parent / "examples" / "masks"
FILM_FRAMES = 60


@one_line_errors
@distributed.in_each_process
@torch.inference_mode()
def main(argv):
    args, path, loaded, masks, wanted = distributed.from_rank_0(prepare, argv)
    config, classes, steps, out = loaded["config"], tuple(loaded["classes"]), args.sample_steps, Path(args.out)
    device = pick_device(args.device)
    schedule = make_schedule(config.schedule, config.timesteps, config.zero_terminal_snr)
    unet = checkpoint.load_unet(loaded, args.weights, path).to(device)
    check_writable(str(out))
    names = list(masks)
    jobs = distributed.share([(name, k) for name in names for k in range(args.n)])
    finished, frames = {}, {}
    bar = tqdm(total=len(jobs) * steps, unit="step", desc="sampling", disable=None, dynamic_ncols=True)
    for start in range(0, len(jobs), args.batch_size):
        batch = jobs[start : start + args.batch_size]
        mask = None
        if args.mask is not None:
            mask = images.one_hot(np.stack([masks[name] for name, _ in batch]), len(classes)).to(device)
        contrast = None if wanted is None else torch.tensor([wanted[k] for _, k in batch], device=device)
        noise = noise_source(args.seed, batch, (config.image_channels, *config.image_size), device)
        predict_x_0 = denoiser(unet, schedule, config.objective, mask, contrast, args.guidance)

        # Algorithm 2. Line 1: x_T ~ N(0, I). Lines 2 to 5: t = T .. 1, each x_t from the one before.
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            for i, x_t in enumerate(trajectory(args.sampler, predict_x_0, schedule, noise(), noise, steps, args.eta)):
                if args.film and (i % -(-steps // FILM_FRAMES) == 0):
                    frames.setdefault(i, {}).update(zip(batch, images.to_uint8(x_t), strict=True))
                bar.update(len(batch) if i else 0)
        for job, image in zip(batch, images.to_uint8(x_t), strict=True):
            finished[job] = image
            images.write_png(out / f"{job[0]}_{job[1]}.png", image)
    bar.close()

    for others, others_frames in distributed.gather((finished, frames)):
        finished |= others
        for i, cells in others_frames.items():
            frames.setdefault(i, {}).update(cells)

    def picture(cells: dict) -> np.ndarray:
        return images.grid(np.stack([row(name, masks[name], cells, args.n, classes) for name in names]))

    images.write_png(out / "grid.png", picture(finished))
    if args.film:
        images.write_gif(out / "film.gif", [*(picture(frames[i]) for i in sorted(frames)), picture(finished)])
    print(f"{len(finished)} images, grid.png{' and film.gif' if args.film else ''} in {out}")


def prepare(argv):
    """What to draw: the command line, the checkpoint and its path, the masks, and the contrast of each sample."""
    args = make_parser().parse_args(argv)
    check_numbers(args)
    path, loaded = load_checkpoint(args.ckpt)
    config, classes, contrasts = loaded["config"], tuple(loaded["classes"]), tuple(loaded["contrasts"])
    settle(args, config, args.mask is not None and bool(classes), path)
    check_trained_without(args, config, classes, contrasts, path)
    masks, notices = read_masks(args.mask, classes, tuple(config.image_size), path)
    wanted = contrast_labels(args.contrast, contrasts, args.n, path)
    args.out = args.out or f"results/samples-{time.strftime('%Y%m%d-%H%M%S')}"
    print(
        f"{path}: step {loaded['step']}, {args.weights} weights, {args.sample_steps} {args.sampler} steps, "
        f"guidance {args.guidance:g} -> {args.out}"
    )
    for notice in notices:
        print(notice)
    return args, path, loaded, masks, wanted


def make_parser() -> Parser:
    parser = Parser(prog="sample.py", description="Draw images that follow a mask (Algorithm 2).")
    add_sampling_flags(parser, batch_size=16)
    add = parser.add_argument
    add(
        "--mask",
        nargs="?",
        const=EXAMPLES,
        metavar="PATH",
        help="a mask or a folder of masks (PNG); without PATH those in examples/masks; without --mask, unconditional",
    )
    add("--n", type=int, default=6, help="images for each mask (default 6)")
    add(
        "--contrast",
        default="each",
        help="T1, T2 or FLAIR as the checkpoint knows them; 'each' in turn (default), or 'none'",
    )
    add("--eta", type=float, default=0.0, help="ddim's noise: 0 deterministic (default), 1 as much as ancestral")
    add("--weights", choices=("ema", "raw"), default="ema", help="averaged (default) or the last ones")
    add("--film", action="store_true", help="also film.gif, from noise to images")
    add("--out", help="folder for the images (default results/samples-TIME)")
    return parser


def check_numbers(args) -> None:
    check_at_least(args, n=1, eta=0)
    if args.eta > 1:
        raise UserError(f"--eta is {args.eta}; it must lie between 0 and 1")
    if args.eta and args.sampler != "ddim":
        raise UserError(f"--eta belongs to --sampler ddim, not {args.sampler}")


def check_trained_without(args, config, classes: tuple, contrasts: tuple, path: Path) -> None:
    """The network knows "none given" only if training sometimes withheld the mask, or the contrast."""
    if classes and args.mask is None and config.mask_drop == 0:
        raise UserError(f"{path} was trained with --mask-drop 0: it needs --mask, and knows no --guidance")
    if contrasts and args.contrast == "none" and config.contrast_drop == 0:
        raise UserError(f"--contrast none: {path} was trained with --contrast-drop 0; ask for {', '.join(contrasts)}")


def read_masks(wanted: str | None, classes: tuple, size: tuple, path: Path) -> tuple[dict, list[str]]:
    """Name -> label map (H, W) of each mask asked for, and notices of masks that were resized.

    Without a mask, {"unconditional": None}. Raises UserError.
    """
    if wanted is None:
        return {"unconditional": None}, []
    if not classes:
        raise UserError(f"--mask: {path} was trained without masks; leave --mask out")
    place = Path(wanted)
    if wanted == EXAMPLES:
        sets = [name for name, known in phantom.CLASSES.items() if len(known) == len(classes)]
        if not sets:
            raise UserError(f"--mask: no examples for the {len(classes)} classes of {path}; give a PATH")
        place = EXAMPLES / sets[0]
    files = folders.pictures_in(place) if place.is_dir() else {place.stem: place}
    read = {name: images.read_labels(file, classes, size) for name, file in files.items()}
    return {name: labels for name, (labels, _) in read.items()}, [notice for _, notice in read.values() if notice]


def contrast_labels(wanted: str, contrasts: tuple, n: int, path: Path) -> list[int] | None:
    """The contrast of sample 0 .. n-1, as the network takes it (from 1; 0 asks for none). Raises UserError."""
    if not contrasts:
        if wanted not in ("each", "none"):
            raise UserError(f"--contrast {wanted}: {path} was trained without contrasts; leave --contrast out")
        return None
    if wanted == "each":
        return [k % len(contrasts) + 1 for k in range(n)]
    if wanted == "none":
        return [0] * n
    if wanted not in contrasts:
        raise UserError(f"--contrast {wanted}: {path} knows {', '.join(contrasts)}")
    return [contrasts.index(wanted) + 1] * n


def row(name: str, labels, cells: dict, n: int, classes: tuple) -> np.ndarray:
    """A row of the grid: the mask (if there is one) and its n samples, uint8 (columns, 3, H, W)."""
    samples = images.rgb(np.stack([cells[name, k] for k in range(n)]))
    if labels is None:
        return samples
    return np.concatenate([images.colour_labels(labels, len(classes))[None], samples])


if __name__ == "__main__":
    sys.exit(main())
