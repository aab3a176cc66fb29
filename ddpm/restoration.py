"""`sample.py --restore IMAGE --as ...`: from a picture to the measurement, and from the measurement to the result.

The equations are in inverse.py; here are the modes with their settings, and --simulate, which measures a whole picture
first and then compares the result with it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import median_filter
from torch import Tensor

from ddpm import UserError, printable
from ddpm.conditions import LABELS, Condition
from ddpm.data.images import grid, overlaps, read_image, read_mask, resize, rgb, to_uint8, write_png
from ddpm.data.volumes import read_hdf5
from ddpm.inverse import (
    Inpainting,
    KSpace,
    Operator,
    SuperResolution,
    denoise,
    denoise_unseen,
    equispaced_lines,
    estimated_phase,
    heal,
    random_lines,
    resampled_times,
    restore,
    smooth_phase,
)
from ddpm.metrics.fastmri import fastmri_scores
from ddpm.metrics.paired import psnr, ssim
from ddpm.model import Model, Sampling, noise_source, predictor
from ddpm.reverse import log_snr_times, uniform_times
from ddpm.runtime.command_line import label_values, words_of
from ddpm.runtime.files import make_samples_folder, reading, refuse_overwriting, write_whole
from ddpm.runtime.progress import progress

MODES = ("inpaint", "kspace", "super-resolution", "denoise", "anomaly")
DRAWS = 8  # averaged into the best point estimate, unless --n asks for draws
STEPS = 30  # a draw
STRETCH = 5  # steps that --resample walks anew
PRIOR_VARIANCE = 0.1  # of images in [-1, 1], about their mean: see inverse.restore
DRAWN_VARIANCE = 0.005  # for draws: of the fine detail, which is what they differ in
HEAL_FROM = 0.5  # t / T to which an image is noised for its anomaly map: lesions go, the brain stays
HEAL_GUIDANCE = 2.0
SMOOTHED = 5  # pixels: the median of so many each way, so that the edges of folds do not count as anomalies
AMPLIFIED = 5  # errors and deviations are shown so many times as bright as they are
HEAL_STEPS = 50  # of a whole walk, of which it takes those below HEAL_FROM


@dataclass
class Measurement:
    """What is known of an image, and what to call it."""

    operator: Operator
    y: Tensor
    sigma: float
    shown: Tensor  # (1, 1, H, W) in [0, 1]: what one would see without a prior
    about: str
    truth: Tensor | None = None  # the whole picture, with --simulate


def measure(args, model: Model) -> Measurement:
    """What --restore and the flags beside it describe. Raises UserError."""
    size = tuple(model.config.image_size)
    if model.config.image_channels != 1:
        raise UserError(f"--restore takes grey images, and {model.name} draws {model.config.image_channels} channels")
    factor = args.factor if args.mode == "super-resolution" else 1
    if args.mode == "super-resolution" and (factor < 2 or size[0] % factor or size[1] % factor):
        raise UserError(f"--factor {factor}: {size[0]}x{size[1]} must be a multiple of it, and it 2 or more")
    random, sigma = torch.Generator().manual_seed(args.seed), args.noise or 0.0
    if args.mode == "kspace" and not args.simulate:
        return of_kspace(read_kspace(args.restore, size), None, args.real, sigma, args.restore)
    image = torch.from_numpy(read_image(args.restore).astype(np.float32) / 255)[None, None]
    expected = size if args.simulate else (size[0] // factor, size[1] // factor)
    shape = tuple(image.shape[2:])
    if shape != expected:
        found = f"{args.restore} is {shape[0]}x{shape[1]}"
        if not args.simulate and args.mode != "anomaly":  # nothing else may come between a measurement and its image
            raise UserError(f"{found}; {model.name} restores images of {expected[0]}x{expected[1]}")
        print(printable(f"{found}, and resized to {expected[0]}x{expected[1]}"))
        image = torch.tensor(resize(image[0].numpy(), expected))[None].clamp(0, 1)
    truth = image if args.simulate else None
    match args.mode:
        case "kspace":
            if not 1 < args.acceleration < size[1] / 2:
                raise UserError(f"--acceleration {args.acceleration:g}: give more than 1, and less than {size[1] // 2}")
            y = simulated_kspace(image, args.acceleration, args.lines, args.real, sigma, random)
            return of_kspace(y, truth, args.real, sigma, args.restore)
        case "inpaint":
            known = torch.from_numpy(~read_region(args.region, size, shape))
            operator, about = Inpainting(known.float()), f"{(~known).float().mean():.1%} of the pixels drawn anew"
            y = operator.apply(image + sigma * torch.randn(image.shape, generator=random) * args.simulate)
            return Measurement(operator, y, sigma, torch.where(known, y, 0.5), about, truth)
        case "super-resolution":
            operator, about = SuperResolution(factor), f"{factor} times in each direction"
            y = operator.apply(image) if args.simulate else image
            y = y + sigma * torch.randn(y.shape, generator=random) * args.simulate
            return Measurement(operator, y, sigma, operator.pseudo_inverse(y), about, truth)
        case "denoise":
            y = image
            if args.simulate:
                if not sigma:
                    raise UserError(
                        "--simulate --as denoise needs --noise: a standard deviation, as a share of full scale"
                    )
                y = noisy(image, sigma, args.gaussian, random)
            return of_noisy(y, truth, sigma or noise_in_air(y, args.gaussian), args)
        case "anomaly":
            return Measurement(Operator(), image, 0.0, image, "healed, and what that changed")


def noisy(image: Tensor, sigma: float, gaussian: bool, random: torch.Generator) -> Tensor:
    """The image with Gaussian noise, or as the magnitude of one with complex noise: Rician."""
    real, imaginary = sigma * torch.randn(2, *image.shape, generator=random)
    return image + real if gaussian else torch.hypot(image + real, imaginary)


def of_noisy(y: Tensor, truth: Tensor | None, sigma: float, args) -> Measurement:
    """Images (B, 1, H, W) with noise of that strength. Raises UserError if none was found."""
    if not sigma:
        raise UserError(f"{args.restore}: no noise found in its corners; give it with --noise")
    about = f"{'Gaussian' if args.gaussian else 'Rician'} noise of {sigma:.3f} of full scale"
    known = y if args.gaussian or args.noisy_prior else without_rician_bias(y, sigma)  # a noisy prior knows the bias
    return Measurement(Operator(), known, sigma, y.clamp(0, 1), about, truth)


def of_kspace(y: Tensor, truth: Tensor | None, real: bool, sigma: float, path: str) -> Measurement:
    """Cartesian k-space (1, 1, H, W), in which the lines that were not measured are 0. Raises UserError."""
    lines = (y != 0).any(dim=-2)[0, 0]
    centre, measured = unbroken(lines), int(lines.sum())
    if centre.sum() < 3 or lines.all():
        found = f"{measured} of {len(lines)} lines, {int(centre.sum())} of them side by side in the middle"
        raise UserError(f"{path}: {found}; an undersampled scan with 3 or more in the middle is needed")
    about = f"{measured} of {len(lines)} lines: accelerated {len(lines) / measured:.2f} times"
    if real:  # each line tells its mirror image too
        y, lines = symmetrised(y, lines)
        about += f"; a real image, so they count as {int(lines.sum())}"
    operator = KSpace(lines.float(), None if real else estimated_phase(y[0, 0], centre), estimated=not real)
    return Measurement(operator, y, sigma, operator.pseudo_inverse(y).abs(), about, truth)


def simulated_kspace(
    image: Tensor, acceleration: float, kind: str, real: bool, sigma: float, random: torch.Generator
) -> Tensor:
    """k-space of the image (1, 1, H, W), with a smooth phase unless real, 0 in the lines that were not measured. Always
    measured are 8 % of the lines in the middle at 4 times, 4 % at 8, as fastMRI has it. sigma: of the noise, in each of the
    real and the imaginary part."""
    height, width = image.shape[2:]
    choose = random_lines if kind == "random" else equispaced_lines
    lines = choose(width, acceleration, 0.32 / acceleration, random)
    full = KSpace(torch.ones(width), None if real else smooth_phase(height, width, random))
    noise = torch.complex(*torch.randn(2, 1, 1, height, width, generator=random))
    return lines * (full.apply(full.lift(image)) + sigma * noise)


def read_kspace(path: str, size: tuple[int, int]) -> Tensor:
    """(1, 1, H, W) complex64 from a .npy of H x W complex numbers, or the middle slice of a fastMRI .h5, cut to the low
    frequencies that the size holds, and scaled so that the brightest pixel of the zero-filled image is 0.9."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such file")
    if path.endswith(".h5"):
        y = read_hdf5(path, "kspace")
        if y is None:
            raise UserError(f"{path}: no kspace in it; a file of fastMRI's single coil has one")
        y = y[len(y) // 2] if y.ndim == 3 else y
    elif path.endswith(".npy"):
        with reading(path, "an array of NumPy", "save it again"):
            y = np.load(path, allow_pickle=False)
    else:
        raise UserError(f"{path}: a picture holds no k-space; give a .npy or .h5, or --simulate to measure the picture")
    if not isinstance(y, np.ndarray) or y.ndim != 2 or not np.iscomplexobj(y):
        raise UserError(f"{path}: k-space of one coil is needed: complex numbers, height x width")
    if not np.isfinite(y).all():
        raise UserError(f"{path}: holds numbers that are not finite; reconstruct it again")
    whole = within_view(y, size)
    if whole.shape[0] < size[0] or whole.shape[1] < size[1]:
        raise UserError(f"{path}: {y.shape[0]}x{y.shape[1]}; {size[0]}x{size[1]} or more is needed")
    refuse_parts(path, y, size[0] * y.shape[0] // whole.shape[0])
    aspect = whole.shape[1] * size[0] / (whole.shape[0] * size[1])
    if abs(aspect - 1) > 0.01:
        view = f"it shows {whole.shape[0]}x{whole.shape[1]} pixels, so one of {size[0]}x{size[1]}"
        print(printable(f"note: {path}: {view} is {aspect:.2f} times as wide as high"))
    y = torch.from_numpy(middle(whole, size).astype(np.complex64))[None, None]
    brightest = KSpace(torch.ones(size[1])).pseudo_inverse(y).abs().max()
    if not brightest:
        raise UserError(f"{path}: nothing was measured, all of it is 0")
    scale = 0.9 / brightest.item()
    told = "so that the brightest pixel is 0.9; --noise and the results count in that"
    print(printable(f"{path}: times {scale:.4g}, {told}"))
    return y * scale


def middle(y: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The low frequencies of k-space (h, w), zero in its middle, as many as the size (H, W) holds."""
    top, left = (there // 2 - here // 2 for there, here in zip(y.shape, size, strict=True))
    return y[top : top + size[0], left : left + size[1]]


def refuse_parts(path: str, y: np.ndarray, rows: int) -> None:
    """Raises UserError if a line (a column of y) was measured in part: its zeros would be taken for what was measured.
    Only so many rows about the middle come into the image; a zero in a hundred may be one by chance."""
    zeros = (middle(y, (rows, y.shape[1])) == 0).sum(axis=0)
    if (partly := (zeros > max(1, rows // 100)) & (zeros < rows)).any():
        found = f"{partly.sum()} of its lines (columns) were measured in part"
        raise UserError(f"{path}: {found}; whole lines are needed, and 0 in those that were not measured")


def within_view(y: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """k-space (h, w) of square pixels, without what the readout, which is the height, takes in beside the field of view:
    about as much again. As many rows of the image are kept as are in proportion to its columns, but half of them at
    least. size: (H, W) of what it becomes."""
    height, width = y.shape
    kept = min(max(round(width * size[0] / size[1]), height // 2), height)
    first = height // 2 - kept // 2
    image = np.fft.fftshift(np.fft.ifft(np.fft.ifftshift(y, 0), axis=0), 0)[first : first + kept]
    return np.fft.fftshift(np.fft.fft(np.fft.ifftshift(image, 0), axis=0), 0)


def unbroken(lines: Tensor) -> Tensor:
    """The measured lines that lie side by side around the middle, (W,) bool."""
    middle, wide = len(lines) // 2, torch.zeros_like(lines, dtype=torch.bool)
    for step in (1, -1):
        place = middle if step == 1 else middle - 1
        while 0 <= place < len(lines) and lines[place]:
            wide[place] = True
            place += step
    return wide


def symmetrised(y: Tensor, lines: Tensor) -> tuple[Tensor, Tensor]:
    """The k-space of a real image with what its symmetry adds, y(-k) = conj y(k)."""

    def mirrored(x: Tensor, *dims: int) -> Tensor:  # of even sizes, frequency -n has no partner, and is its own
        return torch.roll(x.flip(*dims), tuple(1 - x.shape[d] % 2 for d in dims), dims)

    other = mirrored(lines, -1)
    return torch.where(lines, y, mirrored(y, -2, -1).conj() * other), lines | other


def read_region(path: str | None, size: tuple[int, int], of: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: where the image of that size shall be drawn anew. of: height and width of the picture that it was made
    of. Raises UserError."""
    if path is None:
        raise UserError("--as inpaint needs --region: a mask that is white where the image shall be drawn anew")
    region = read_mask(path, ("known", "new"))
    if abs(region.shape[0] * of[1] / (region.shape[1] * of[0]) - 1) > 0.01:
        found = f"{region.shape[0]}x{region.shape[1]}, but the image is {of[0]}x{of[1]}"
        raise UserError(f"{path}: {found}; mark it in a picture of the same proportions")
    down, across = (overlaps(*sizes) for sizes in zip(size, region.shape, strict=True))
    region = down @ (region != 0) @ across.T  # any pixel some of whose area is marked
    if region.all() or not region.any():
        raise UserError(f"{path}: {'all' if region.all() else 'nothing'} of it is white; mark a part of the image")
    return region


def without_rician_bias(magnitude: Tensor, sigma: float) -> Tensor:
    """A magnitude's square is A^2 + 2 sigma^2 on average (Gudbjartsson & Patz 1995): so A, and 0 where that is less. What
    noise is left is nearly Gaussian where A is over 2 sigma."""
    return (magnitude.square() - 2 * sigma**2).clamp(min=0).sqrt()


def noise_in_air(image: Tensor, gaussian: bool) -> float:
    """sigma, from the corners of a picture, where there is no signal: the mean square of a magnitude is 2 sigma^2 there, that
    of Gaussian noise sigma^2 / 2, as pictures have no negative pixels."""
    height, width = image.shape[2] // 8, image.shape[3] // 8
    corners = [
        image[..., v, u] for v in (slice(height), slice(-height, None)) for u in (slice(width), slice(-width, None))
    ]
    mean_square = torch.stack([corner.square().mean() for corner in corners]).median().item()
    return (mean_square * (2 if gaussian else 0.5)) ** 0.5


def asked_for(args, model: Model, n: int = 1, masks: np.ndarray | None = None) -> tuple[Condition, str]:
    """The condition of n images, and what to call it. masks: --mask, if it has been read, (n, H, W). Raises UserError."""
    vocabulary, size = model.vocabulary, tuple(model.config.image_size)
    mask, name = None, "no mask"
    if args.mode == "anomaly":
        if args.mask is not None:
            raise UserError("--as anomaly finds what is not healthy by itself; leave --mask out")
        if not vocabulary.classes or model.config.labels == "tissue":  # of tissues an empty mask is air
            raise UserError(
                "--as anomaly needs a model of masks that are empty where all is healthy; name another --ckpt"
            )
        mask, name = np.zeros((n, *size), np.uint8), "a mask without lesion"
    elif masks is not None:
        mask, name = masks, f"the mask {args.mask}"
    elif args.mask is not None:
        if not vocabulary.classes or not Path(args.mask).is_file():
            found = f"{model.name} was trained without masks" if not vocabulary.classes else f"{args.mask} is no file"
            raise UserError(f"--restore with --mask: {found}; name one mask, or leave it out")
        mask = read_mask(args.mask, vocabulary.classes, size, vocabulary.values)[None]
        name = f"the mask {args.mask}"
    labels, words = {}, words_of(args, model, n)
    for label in LABELS:
        wanted = getattr(args, label)
        if wanted == "each":
            raise UserError(f"--{label} each: what was measured has one {label}; name it, or leave --{label} out")
        labels[label] = label_values(label, wanted or "none", model, n)
        name += f", {label} {wanted}" * bool(labels[label])
    name += f", {args.prompt!r}" * (words is not None)
    labels = {label: values for label, values in labels.items() if values}
    return vocabulary.condition(mask, words=words, **labels), name


def check_prior(model: Model) -> None:
    """Raises UserError unless the model can be asked at every time for an image, and told no source."""
    config, found = model.config, ""
    if config.few_steps:
        found = f"asks at every time, but {model.name} knows {config.few_steps} steps alone"
    elif config.segment:
        found = f"takes a model of images, and {model.name} draws masks"
    elif model.vocabulary.source and not config.withholds("source"):
        found = f"gives no source, but {model.name} never learnt to do without one"
    if found:
        raise UserError(f"restoration {found}; name another --ckpt")


def completed(args, model: Model, how: Sampling, given: tuple[str, ...]) -> Sampling:
    """How to ask the network in the mode at hand. Raises UserError."""
    check_prior(model)
    if args.mode == "anomaly":
        guidance = how.guidance
        if guidance is None:
            guidance = HEAL_GUIDANCE if model.config.withholds("mask") else 1.0
        how = replace(how, guided=how.guided or ("mask",), guidance=guidance)
    return how.complete(model, given)


def in_one_call(args) -> bool:
    """Is it the mean of what a noisy image may show, which takes one call of the network and no draws?"""
    return args.mode == "denoise" and not (args.n or args.noisy_prior)


def count(args) -> int:
    """How many draws `draws_of` yields."""
    return 1 if in_one_call(args) else args.n or DRAWS


def draws_of(
    model: Model, measured: Measurement, condition: Condition, args, how: Sampling, seeds: Callable[[int], list]
) -> Iterator[Tensor]:
    """Yields one draw after another, (B, 1, H, W), as the operator sees images: in [0, 1], or complex. Of a noisy image,
    unless draws are asked for, its mean in one call of the network. seeds(k): B seeds of draw k."""
    schedule, device = model.schedule, next(model.unet.parameters()).device
    predict_x_0, operator = predictor(model, condition, how), measured.operator.to(device)
    y, sigma = measured.y.to(device), measured.sigma
    if in_one_call(args):
        yield denoise(predict_x_0, schedule, y, sigma)
        return
    for k in range(count(args)):
        noise = noise_source(seeds(k), model.shape, device)
        if args.noisy_prior:
            yield denoise_unseen(predict_x_0, schedule, y, sigma, noise)
        elif args.mode == "anomaly":
            spaced = uniform_times(schedule.T, min(schedule.T, HEAL_STEPS))
            times = [t for t in spaced if t <= HEAL_FROM * schedule.T]
            yield heal(predict_x_0, schedule, y, times, noise)
        else:
            times = log_snr_times(schedule, args.sample_steps or min(STEPS, schedule.T))
            times = resampled_times(times, STRETCH, args.resample)
            # Means of the data step come closer to the truth, draws tell the spread.
            # With noise v is also the weight of what was measured, and a small one counts that for too little.
            v = DRAWN_VARIANCE if args.n and sigma == 0 else PRIOR_VARIANCE
            settings = dict(draws=bool(args.n), prior_variance=v)
            *_, image = restore(predict_x_0, schedule, noise(), times, noise, operator, y, sigma, **settings)
            yield image


def written(args) -> set[str]:
    """The names of all files that a restoration may write."""
    draws = [f"draw_{k}" for k in range(args.n or 0)]
    names = ["measured", "restored", "anomaly", "error", "deviation", "grid", *draws]
    return {f"{name}{ending}" for name in names for ending in (".png", ".npy", ".nii.gz")}


def run(args, model: Model, how: Sampling) -> None:
    """Measure, restore, write the pictures, and say how good the result is where that is known. Raises UserError."""
    measured = measure(args, model)
    condition, asked = asked_for(args, model)
    how = completed(args, model, how, condition.given)
    refuse_overwriting(args.out, written(args), (args.restore, args.region, args.mask))
    args.out = make_samples_folder(args.out)
    out = Path(args.out)
    print(f"{model.name}: step {model.step}; {args.mode}: {measured.about}; {asked} -> {args.out}")
    draws = draws_of(model, measured, condition, args, how, lambda k: [(args.seed, k)])
    walked = progress(draws, "restoring", total=count(args), unit="draw")
    lifted = torch.cat([draw.cpu() for draw in walked])
    images = measured.operator.shown(lifted).clamp(0, 1)
    result = images.mean(dim=0, keepdim=True)
    shown = {"measured": measured.shown, "restored": result}
    if args.mode == "anomaly":
        changed = (measured.y - result).abs()[0, 0].numpy()
        shown["anomaly"] = torch.from_numpy(AMPLIFIED * median_filter(changed, SMOOTHED))[None, None]
    if measured.truth is not None:
        shown["truth"] = measured.truth
        shown["error"] = AMPLIFIED * (result - measured.truth).abs()
    if (args.n or 1) > 1 and args.mode != "anomaly":  # means of the data step differ less than images that fit y do
        shown["deviation"] = AMPLIFIED * images.std(dim=0, correction=0, keepdim=True)
    if args.n:
        shown |= {f"draw_{k}": images[k : k + 1] for k in range(args.n)}
    pictures = {name: to_uint8(2 * image - 1)[0] for name, image in shown.items()}
    for name in pictures.keys() - {"truth"}:
        write_png(out / f"{name}.png", pictures[name])
    write_whole(out / "restored.npy", lambda file: np.save(file, lifted.mean(dim=0).numpy()))
    write_png(out / "grid.png", grid(np.stack([rgb(picture) for picture in pictures.values()])[None]))
    if measured.truth is not None:
        for name in ("measured", "restored"):
            pair = shown[name].clamp(0, 1), measured.truth
            told = f"{name}: PSNR {psnr(*pair, 1.0).item():.2f} dB, SSIM {ssim(*pair, 1.0).item():.4f}"
            if args.mode == "kspace":
                told += "; as fastMRI counts, of this slice: NMSE {:.4f}, PSNR {:.2f} dB, SSIM {:.4f}".format(
                    *fastmri_scores(*pair)
                )
            print(told)
    print(
        f"grid.png ({' | '.join(pictures)}; errors and deviations x {AMPLIFIED}), each as a PNG, restored.npy in {out}"
    )
