"""How good are the samples? One table, one report.

python evaluate.py                         the newest checkpoint: samples for held-out masks, then all the questions
python evaluate.py --real DIR --fake DIR   two folders of images
"""

import sys
import time
from pathlib import Path

import numpy as np
import torch

from ddpm import UserError
from ddpm.data import Slices, folders, images
from ddpm.data.sources import load_data
from ddpm.evaluation import questions as evaluation
from ddpm.evaluation.questions import Sets, contrasts_of, draw_for
from ddpm.evaluation.report import table, write_report
from ddpm.metrics import features, segmenter
from ddpm.model import Model, load_model
from ddpm.reverse import denoiser
from ddpm.runtime import cache, checkpoint, distributed
from ddpm.runtime.command_line import (
    Parser,
    add_sampling_flags,
    check_range,
    one_line_errors,
    pick_device,
    sampling_of,
)
from ddpm.runtime.files import check_writable
from ddpm.seeds import generator

# What each question costs, and needs, beside the samples.
METRICS = {
    "fid": "Frechet distance, and its limit for infinitely many samples",
    "kid": "kernel distances: KID, CMMD's",
    "manifold": "precision, recall, density, coverage",
    "spectrum": "power spectrum and grey levels",
    "memorisation": "nearest training images (with --ckpt)",
    "mask": "does the image obey the mask, and the contrast? (with --ckpt)",
    "two-sample": "can a network tell samples from real images? (about a minute)",
    "useful": "a segmenter trained on samples, tested on real images (with --ckpt; minutes; only if asked for)",
    "likelihood": "bits per dimension (with --ckpt; a minute; only if asked for)",
}
DEFAULT = ("fid", "kid", "manifold", "spectrum", "memorisation", "mask", "two-sample")
ONLY_CKPT = {"memorisation", "mask", "useful", "likelihood"}
JUDGE_STEPS = 2000  # batches of 32, to train a judge for data of your own


@one_line_errors
@distributed.in_each_process  # they share the sampling, then process 0 goes on alone
def main(argv):
    args = distributed.broadcast(read_arguments, argv)
    begun = time.perf_counter()
    if args.real:
        distributed.gather(None)
        sets, judge, extractor = from_folders(args)
        model, title = None, f"{args.fake} against {args.real}"
    else:
        sets, judge, extractor, model, title = from_checkpoint(args)

    fakes = features.extract(extractor, sets.samples, args.batch_size, desc="features of samples")
    reals = features.extract(extractor, sets.pool, args.batch_size, keep=True, desc="features of real images")
    rows, line = [], None
    if "kid" in args.metrics:
        rows += evaluation.kernel_rows(fakes, reals, sets, args.seed)
    if "fid" in args.metrics:
        frechet, line = evaluation.frechet_rows(fakes, reals, sets, args.seed)
        rows = frechet + rows if len(fakes) >= 2048 else rows + frechet  # below 2,048 images KID leads
    if "manifold" in args.metrics:
        rows += evaluation.manifold_rows(fakes, reals, sets, args.seed)
    if extractor.classifier is not None:
        rows += evaluation.inception_score_rows(fakes, reals, sets, extractor.classifier)
    if "spectrum" in args.metrics:
        rows += evaluation.spectrum_rows(sets, args.seed)
    if "memorisation" in args.metrics:
        rows += evaluation.memorisation_rows(sets, args.seed)
    if "mask" in args.metrics:
        verdicts = judge.judge(sets.samples), judge.judge(sets.asked.images)
        rows += evaluation.obedience_rows(*verdicts, judge, sets.asked)
    if "two-sample" in args.metrics:
        rows += evaluation.two_sample_rows(sets, args.seed)
    if "useful" in args.metrics:
        rows += evaluation.usefulness_rows(sets, args.seed)
    if "likelihood" in args.metrics:
        rows += evaluation.likelihood_rows(model, sets.others, args.seed)

    print(table(rows))
    for name, choice in sets.choices.items():
        print(f"{name}: {choice}")
    if len(sets.samples) < 2048 and "fid" in args.metrics:
        print(f"warning: FID wants 2,048 images or more, here are {len(sets.samples)}: read KID first")
    notice = write_report(Path(args.out), title, rows, sets, report_cells(sets), line)
    print(
        f"{notice + chr(10) if notice else ''}{args.out}/report.html, report.json; {time.perf_counter() - begun:.0f} s"
    )


# ---------------------------------------------------------------- what is compared


def from_checkpoint(args):
    """Draw n samples for held-out masks -> (sets, judge, extractor, what likelihood needs, title)."""
    device = pick_device(args.device)
    model = load_model(distributed.broadcast(checkpoint.find, args.ckpt), "ema", device)
    config, path = model.config, model.name
    with distributed.rank_0_first():
        train = load_data(config, "train")
        # The phantom has a test split, and a folder may have one; its validation split does otherwise.
        split = "test" if train.index is None or train.index["elsewhere"]["test"][0] else "val"
        held_out, split = load_data(config, split), f"{config.data}'s {split} split"
    n, least = args.n or min(1000, len(held_out) // 2), max(40, distributed.size())
    if not least <= n <= len(held_out) - 40:
        raise UserError(f"--n {n}: give {least} to {len(held_out) - 40}, as {split} has {len(held_out)} images")
    if "mask" in args.metrics and not held_out.classes and not held_out.labels:
        args.metrics.remove("mask")
    if "useful" in args.metrics and not held_out.classes:
        raise UserError(f"--metrics useful: {path} was trained without masks")
    sampling = sampling_of(args).complete(model, ("mask",) * bool(held_out.classes) + tuple(held_out.labels))

    chosen = np.sort(generator(args.seed).permutation(len(held_out))[:n])
    others = np.setdiff1d(np.arange(len(held_out)), chosen)
    with distributed.rank_0_first():
        judge, judged_by = make_judge(config, train)
    extractor = make_extractor(args, judge, judged_by)
    print(
        f"{path}: step {model.step}, ema weights, {n} samples by {sampling.steps} {sampling.sampler} steps, "
        f"compared with {len(others)} other images of {split} -> {args.out}"
    )
    check_writable(args.out)
    estimate(args, model, sampling, held_out, chosen, judge)
    drawn = draw_for(model, held_out, distributed.shard(chosen), sampling, args.seed, args.batch_size)
    samples = np.concatenate(distributed.gather(drawn))
    choices = {
        "model": f"{path}, step {model.step}, averaged weights",
        "samples": f"{n}, {args.sampler} in {sampling.steps} steps, guidance {sampling.guidance:g}, {sampling.precision}, "
        f"seed {args.seed}, for the masks and contrasts of {n} images of {split}",
        "real images": f"the other {len(others)} of {split}; in the place of samples: the {n} real images of the same masks",
        "features": f"{extractor}, of images of {samples.shape[2]}x{samples.shape[3]}, 8 bits",
        "judge of masks": f"segmenter {judged_by} [{judge.fingerprint()}]",
    }
    sets = Sets(samples, held_out.images, others, chosen, others, train.images, choices=choices)
    sets.asked, sets.others = held_out.part(chosen), held_out.part(others)
    sets.mirror = config.data == "phantom"
    return sets, judge, extractor, model, f"{path}, step {model.step}"


def from_folders(args):
    """Read two folders of pictures -> (sets, judge, extractor)."""
    real, fake = (
        read_folder(folder, flag, args.skip_bad) for folder, flag in ((args.real, "--real"), (args.fake, "--fake"))
    )
    if real.shape[1:] != fake.shape[1:]:
        raise UserError(
            f"--fake {args.fake}: images of {fake.shape[2]}x{fake.shape[3]}, but those of --real {args.real} are "
            f"{real.shape[2]}x{real.shape[3]}; resize one of them, always in the same way"
        )
    if args.n:
        fake = fake[np.sort(generator(args.seed).permutation(len(fake))[: args.n])]
    for flag, folder, number, needed in (("--real", args.real, len(real), 80), ("--fake", args.fake, len(fake), 40)):
        if number < needed:
            raise UserError(f"{flag} {folder}: {number} images; {needed} are needed at least")
    shuffled = generator(args.seed, 1).permutation(len(real))
    half = min(len(fake), len(real) // 2)
    judge = segmenter.load_segmenter()
    extractor = make_extractor(args, judge, "of the embedded data")
    check_writable(args.out)
    print(f"{len(fake)} images of {args.fake} against {len(real)} of {args.real} -> {args.out}")
    choices = {
        "samples": f"{len(fake)} of {args.fake}",
        "real images": f"{len(real)} of {args.real}; in the place of samples: {half} of them, against the other {len(real) - half}",
        "features": f"{extractor}, of images of {real.shape[2]}x{real.shape[3]}, 8 bits, grey",
    }
    return Sets(fake, real, np.arange(len(real)), shuffled[:half], shuffled[half:], choices=choices), judge, extractor


def read_folder(folder: str, flag: str, skip_bad: bool) -> np.ndarray:
    """The pictures of a folder in grey, (N, 1, H, W) uint8. Raises UserError for what cannot be read or differs in size;
    with skip_bad, unreadable files are counted and left out."""
    read, bad = [], []
    for path in folders.pictures_in(Path(folder)).values():
        if path.name == "grid.png":  # sample.py's overview
            continue
        try:
            read.append((path, images.read_image(path)))
        except UserError as error:
            bad.append(str(error))
    if bad and not skip_bad:
        raise UserError(f"{bad[0]}; {len(bad)} such file(s) in {flag} {folder}, go on without them by --skip-bad")
    if bad:
        print(f"{flag} {folder}: {len(bad)} unreadable file(s) left out, the first: {bad[0]}")
    if not read:
        raise UserError(f"{flag} {folder}: no images that can be read")
    size = read[0][1].shape
    for path, image in read:
        if image.shape != size:
            raise UserError(
                f"{path}: {image.shape[0]}x{image.shape[1]}, but {read[0][0].name} is {size[0]}x{size[1]}; "
                f"all images of {flag} must be of one size"
            )
    return np.stack([image for _, image in read])[:, None]


def make_judge(config, train: Slices) -> tuple[segmenter.Segmenter, str]:
    """The judge that knows this data, and what to call it: the embedded one for the phantom, else one trained on the
    training split (once, then cached under a key of those pairs)."""
    if config.data == "phantom" or not train.classes:
        judge = segmenter.load_segmenter()
        return judge, "of the embedded data"

    def trained():
        print(f"training a judge on {len(train)} pairs of {config.data}, once")
        return segmenter.train_segmenter(train.images, train.masks, *contrasts_of(train), JUDGE_STEPS)

    # The store's key stands for every pixel, so that a large set need not be read to name its judge.
    key = cache.key(segmenter.CODE, train.index["key"], JUDGE_STEPS, train.vocabulary)
    judge = cache.kept(f"segmenter-{key}.pt", trained, segmenter.load_segmenter, segmenter.save_segmenter)
    return judge, f"trained for {JUDGE_STEPS} steps on the training pairs"


def make_extractor(args, judge: segmenter.Segmenter, judged_by: str) -> features.Extractor:
    match args.features:
        case "segmenter":
            return features.segmenter_features(judge, judged_by)
        case "inception":
            return features.inception_features(args.weights)
        case path:
            return features.torchscript_features(path)


def estimate(args, model: Model, sampling, held_out: Slices, chosen: np.ndarray, judge: segmenter.Segmenter) -> None:
    """Say how long it will take, from the time of one network call and of judging a few images."""
    part = chosen[: args.batch_size]
    device = next(model.unet.parameters()).device
    x, condition = torch.randn(len(part), *model.shape, device=device), held_out.condition(part).to(device)
    predict_x_0 = denoiser(
        model.unet, model.schedule, model.config.objective, condition, bf16=sampling.precision == "bf16"
    )
    call = seconds(lambda: predict_x_0(x, model.schedule.T))
    drawing = (
        call
        * sampling.steps
        * -(-len(distributed.shard(chosen)) // args.batch_size)
        * (1 if sampling.guidance == 1 else 2)
    )
    images = 2 * len(chosen) + len(held_out)
    # A step of training takes as long as judging each of its images twice; the two-sample test, as judging 3,300.
    images += 3300 * ("two-sample" in args.metrics) + 4 * evaluation.USEFUL_STEPS * segmenter.BATCH * (
        "useful" in args.metrics
    )
    rest = images / 32 * seconds(lambda: judge.judge(held_out.images[:32]))
    terms = evaluation.LIKELIHOOD_IMAGES * evaluation.LIKELIHOOD_TIMES * ("likelihood" in args.metrics)
    rest += call * terms / len(x)
    print(f"sampling will take about {drawing / 60:.1f} minutes, the rest about {rest / 60:.1f}")


def seconds(work) -> float:
    """The time of the second call: the first is slower."""
    work()
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def report_cells(sets: Sets) -> np.ndarray:
    """The grid of the report: mask | sample | nearest training image, three times a row; or samples alone."""
    shown = sets.samples[:18]
    columns = [images.rgb(shown)]
    if sets.train is not None:
        _, index = evaluation.nearest_training(shown, sets.train)
        columns.append(images.rgb(sets.train[index]))
    if sets.asked is not None and sets.asked.masks is not None:
        columns.insert(0, images.colour_labels(sets.asked.masks[:18], len(sets.asked.classes)))
    cells = np.stack(columns, axis=1)  # (18, columns, 3, H, W)
    whole = len(cells) // 3 * 3
    return cells[:whole].reshape(-1, 3 * cells.shape[1], *cells.shape[2:])


# ---------------------------------------------------------------- the command line


def make_parser() -> Parser:
    parser = Parser(prog="evaluate.py", description="How good are the samples? One table, one report.")
    add_sampling_flags(parser, batch_size=50)
    add = parser.add_argument
    add("--real", metavar="DIR", help="compare two folders: real images ...")
    add("--fake", metavar="DIR", help="... and samples")
    add(
        "--metrics",
        nargs="+",
        choices=[*METRICS, "all"],
        default=list(DEFAULT),
        help="; ".join(f"{k}: {v}" for k, v in METRICS.items()),
    )
    add("--n", type=int, help="samples (default 1000, or half of the held-out images)")
    add(
        "--features",
        default="segmenter",
        help="segmenter (default), inception (with --weights), or a TorchScript FILE that takes (B, 3, H, W) in [0, 1] and returns (B, D)",
    )
    add("--weights", default="", metavar="FILE", help="Inception's weights, pt_inception-2015-12-05-6726825d.pth")
    add("--skip-bad", action="store_true", help="leave unreadable files out, and count them")
    add("--out", help="folder of the report (default results/evaluation-TIME)")
    return parser


def read_arguments(argv):
    """The command line, checked. Raises UserError."""
    args = make_parser().parse_args(argv)
    if bool(args.real) != bool(args.fake):
        raise UserError("--real and --fake go together: give two folders, or neither")
    if args.real and args.ckpt:
        raise UserError("--ckpt or --real and --fake, not both")
    check_range(args, n=(40, 10**9))
    given = list(METRICS) if "all" in args.metrics else args.metrics
    if args.real and tuple(given) != DEFAULT and "all" not in args.metrics and (wrong := ONLY_CKPT & set(given)):
        raise UserError(f"--metrics {sorted(wrong)[0]} needs --ckpt; two folders do not say what was asked for")
    args.metrics = [name for name in given if not (args.real and name in ONLY_CKPT)]
    if args.features == "inception" and not args.weights:
        raise UserError(
            "--features inception needs --weights FILE: see 'Inception' in docs/evaluation.md; or use --features segmenter"
        )
    if args.weights and args.features != "inception":
        raise UserError("--weights belongs to --features inception")
    args.out = args.out or f"results/evaluation-{time.strftime('%Y%m%d-%H%M%S')}"
    return args


if __name__ == "__main__":
    sys.exit(main())
