"""What is compared: samples, real images in their place, and the real images of other subjects that both are held against.

A question (questions.py) is put to one `Comparison`. `from_model` draws its samples from a trained model, for the masks
and labels of held-out images; `from_folders` reads two folders of pictures or volumes.
"""

import zlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm import UserError, printable
from ddpm.conditions import Vocabulary
from ddpm.data import Slices, folders, images
from ddpm.data.formats.nifti import bare
from ddpm.data.scans import grey_slices
from ddpm.data.sources import load_data
from ddpm.data.volumes import is_nifti, stem
from ddpm.metrics import features, segmenter
from ddpm.metrics.features import Extractor, extract
from ddpm.metrics.fid import Extrapolation
from ddpm.metrics.manifold import nearest
from ddpm.metrics.spectrum import intensity_histogram, radial_power_spectrum
from ddpm.model import Model, Sampling, draw
from ddpm.runtime import cache, distributed
from ddpm.runtime.files import check_writable
from ddpm.runtime.progress import progress
from ddpm.seeds import generator

FEW = 4  # subjects on a side; with fewer, a set of slices tells of these heads more than of the model
JUDGE_STEPS = 2000  # batches of 32, to train a judge for data of your own
BLOCK = 2**23  # numbers in memory at once where images are compared pixel by pixel: 64 MB in float64


class Sides(NamedTuple):
    """The same thing of each of the three sets."""

    samples: Any
    stand_in: Any
    reference: Any


@dataclass
class Comparison:
    samples: Slices  # with the masks, labels and subjects that they were drawn for
    real: Slices  # real images that no model was trained on ...
    chosen: np.ndarray  # ... those judged as if they were samples: as many, and of the same masks where there are masks
    others: np.ndarray  # ... and those of other subjects: what samples and stand-ins are compared with
    extractor: Extractor
    judge: segmenter.Segmenter | None = None  # what says whether an image shows its mask
    model: Model | None = None  # what drew the samples, if it is known ...
    train: Slices | None = None  # ... and what it was trained on
    seed: int = 0
    choices: dict[str, str] = field(default_factory=dict)  # every choice behind the numbers, for the reader
    warnings: list[str] = field(default_factory=list)
    fid_line: Extrapolation | None = None  # left here by the question of FID, to be plotted

    def __post_init__(self):
        """Whose image it is decides about margins and partners; unknown, each is taken for another subject's."""
        known = self.real.subjects is not None
        self.samples, self.real = map(with_subjects, (self.samples, self.real))
        sides = [np.unique(self.real.subjects[i]) for i in (self.chosen, self.others)]
        self.choices["subjects"] = "{} in the place of samples, {} others to compare with".format(*map(len, sides))
        if not known:
            self.choices["subjects"] = "not known: each image is taken for a subject of its own"
        elif np.isin(*sides).any():
            told = "all held-out images are of one subject: no margins, and distances that mean nothing, real or not"
            self.warnings.append(told)
        elif min(map(len, sides)) < FEW:
            told = "distances tell of these few heads more than of the model, and margins are rough"
            self.warnings.append(f"{self.choices['subjects']}: {told} under {FEW} subjects")

    # Computed when first asked for. Of each image of each set:
    stand_in = cached_property(lambda c: c.real.part(c.chosen))
    reference = cached_property(lambda c: c.real.part(c.others))
    spectra = cached_property(lambda c: c.of_each(radial_power_spectrum))  # (frequencies (R,), power (N, R)) each
    grey_levels = cached_property(lambda c: c.of_each(intensity_histogram))  # (N, 256) each
    to_train = cached_property(lambda c: c.of_each(lambda x: nearest_training(x, c.train.images)[0]))  # (N,) each
    # The judge's Verdict on the samples, and on the real images in their place.
    verdicts = cached_property(lambda c: [c.judge.judge(data.images) for data in (c.samples, c.stand_in)])

    def of_each(self, function) -> Sides:
        """function(uint8 images (N, C, H, W)) of each set."""
        return Sides(*(function(data.images) for data in (self.samples, self.stand_in, self.reference)))

    @cached_property
    def features(self) -> Sides:
        """(N, D) each."""
        real = extract(self.extractor, self.real.images, keep=True, desc="features of real images")
        samples = extract(self.extractor, self.samples.images, desc="features of samples")
        return Sides(samples, real[self.chosen], real[self.others])

    @cached_property
    def partners(self) -> np.ndarray | None:
        """For each sample another one, drawn for another subject, (n,); None if there is only one subject."""
        rng, subjects = generator(self.seed, 2), self.samples.subjects
        if len(np.unique(subjects)) < 2:
            return None
        return np.array([rng.choice(np.flatnonzero(subjects != subject)) for subject in subjects])


def with_subjects(data: Slices) -> Slices:
    return data if data.subjects is not None else replace(data, subjects=np.arange(len(data)))


def split_by_subject(
    data: Slices, n: int, seed: int, samples: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of n images (or a little fewer, if their subjects have no more), and those of all other subjects' images.

    Subjects are drawn until they have n images and are FEW (or half of all, if that is less). One subject alone cannot be
    split: then its images are. samples: whose each sample is, where they may be of the same subjects. Then those with
    samples are drawn first, half of all at most, until as many samples are of none of the others.
    """
    rng = generator(seed)
    subjects = with_subjects(data).subjects
    if len(np.unique(subjects)) == 1:
        subjects = np.arange(len(data))
    names, number, count = np.unique(subjects, return_inverse=True, return_counts=True)
    order = rng.permutation(len(names))
    enough, most = 1 + np.searchsorted(np.cumsum(count[order]), n), len(names) - 1
    if samples is not None and np.isin(samples, names).any():
        of_each = (samples[:, None] == names).sum(axis=0)
        order = order[np.argsort(of_each[order] == 0, kind="stable")]
        usable = len(samples) - of_each.sum() + np.cumsum(of_each[order])
        enough, most = 1 + np.searchsorted(np.minimum(usable, np.cumsum(count[order])), n), max(len(names) // 2, 1)
    here = min(max(enough, min(FEW, len(names) // 2)), most)
    first, others = (np.flatnonzero(np.isin(number, part)) for part in (order[:here], order[here:]))
    return np.sort(rng.permutation(first)[:n]), others


# ---------------------------------------------------------------- a trained model


def from_model(
    model: Model,
    how: Sampling,
    batch_size: int,
    n: int | None,
    seed: int,
    own: Extractor | None,
    out: str,
    split: str | None = None,
) -> Comparison:
    """Draw n samples for held-out images (None: 1,000, or half of them). own: features other than the judge's. out: where
    the report will be written, or its folder, tried before the work. split: "val" or "test" (None: test, where the data
    has one).

    Process 0 alone returns; the others leave when the samples are drawn. Raises UserError for what the data cannot give.
    """
    train, real, split, chosen, others = held_out(model, n, seed, split)
    check_writable(out)
    how = how.complete(model, real.vocabulary.given)
    with distributed.rank_0_first():  # last of all: it may train for minutes
        judge, judged_by = make_judge(model.config, train)
    drawn = f"{len(chosen)}, {how.sampler} in {how.steps} steps, {how.in_words}"
    drawn += f", {how.precision}, seed {seed}"
    print(f"{model.name}: step {model.step}, ema weights; samples: {drawn}; {len(others)} other images of {split}")
    samples = draw_for(model, real, distributed.shard(chosen), how, seed, batch_size)
    samples = np.concatenate(distributed.gather(samples))
    extractor = own or features.segmenter_features(judge, judged_by)
    choices = {
        "model": f"{model.name}, step {model.step}, averaged weights",
        "samples": f"{drawn}, for {' and '.join(real.vocabulary.given) or 'nothing'} of {len(chosen)} images of {split}",
        "real images": f"{len(others)} others of {split}; in the place of samples: the real images of the same masks",
        "features": f"{extractor}, of images of {samples.shape[2]}x{samples.shape[3]}, 8 bits",
        "judge of masks": f"segmenter {judged_by} [{judge.fingerprint()}]",
    }
    warnings = []
    if model.trained_on not in ("", folders.contents(train)):
        remedy = "bring the folder back to what it was, or train anew"
        told = f"the training images of {model.name} {folders.CHANGED}, so it may be judged on some that it has learnt"
        warnings.append(f"{told}; {remedy}")
    samples = replace(real.part(chosen), images=samples)
    return Comparison(samples, real, chosen, others, extractor, judge, model, train, seed, choices, warnings)


def held_out(
    model: Model, n: int | None, seed: int, split: str | None
) -> tuple[Slices, Slices, str, np.ndarray, np.ndarray]:
    """What a model was trained on; the split that it is judged on, and what to call that; which of its images samples are
    drawn for, and those of other subjects. n, seed, split: as for `from_model`. Raises UserError."""
    config = model.config
    for flagged, place in (("--data", config.data), ("--masks", config.masks)):
        if place not in ("", "phantom") and not Path(place).is_dir():
            remedy = "start where train.py was started, or make a link of that name to where it is now (ln -s)"
            raise UserError(f"{model.name} was trained with {flagged} {place}: no such folder here; {remedy}")
    with distributed.rank_0_first():
        train = load_data(config, "train")
        # The phantom has a test split, and a folder may have one; its validation split does otherwise.
        tested = train.index is None or train.index["elsewhere"]["test"][0]
        if split == "test" and not tested:
            raise UserError(f"--split test: {config.data} has no such split; give --split val")
        split = split or ("test" if tested else "val")
        real, split = load_data(config, split), f"{config.data}'s {split} split"
    wanted, least = n or min(1000, len(real) // 2), max(40, distributed.size())
    if len(real) < least + 40:
        needed = f"{least + 40} are needed at least, {least} to draw samples for and 40 of other subjects"
        raise UserError(f"{model.name}: {split} has {len(real)} image(s); {needed}: add some")
    if not least <= wanted <= len(real) - 40:
        raise UserError(f"--n {wanted}: give {least} to {len(real) - 40}, as {split} has {len(real)} images")
    chosen, others = split_by_subject(real, wanted, seed)
    if len(chosen) < least or (n and len(chosen) < n) or len(others) < 40:
        found = f"{len(chosen)} images for samples and {len(others)} of other subjects, {least} and 40 are needed"
        remedy = f"try {'a smaller --n or ' * (wanted > least)}another --seed, or add subjects"
        raise UserError(f"--n {wanted}: {split} gives {found}; {remedy}")
    return train, real, split, chosen, others


def draw_for(
    model: Model, data: Slices, chosen: np.ndarray, sampling: Sampling, seed: int = 0, batch_size: int = 50
) -> np.ndarray:
    """A sample for the mask and the labels of each chosen image of data, (n, C, H, W) uint8. Sample i under a seed is
    the same whatever else is drawn."""
    drawn = []
    for part in progress(np.array_split(chosen, range(batch_size, len(chosen), batch_size)), "sampling", unit="batch"):
        seeds = [(seed, zlib.crc32(str(i).encode()), 0) for i in part]
        *_, (_, x_0) = draw(model, data.condition(part), seeds, sampling)
        drawn.append(images.to_uint8(x_0))
    return np.concatenate(drawn)


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


def contrasts_of(data: Slices) -> tuple[np.ndarray | None, tuple[str, ...], tuple[str, ...]]:
    """The contrasts (N,) counted from 0, as a judge takes them, the classes, and the contrasts' names."""
    contrast = data.labels.get("contrast")
    names = data.vocabulary.labels.get("contrast", ())
    return None if contrast is None else contrast - 1, data.classes, names


def nearest_training(pictures: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The training image nearest to each picture, pixel by pixel: distances (n,) in units of full scale, indices (n,).

    pictures (n, C, H, W) and train (N, C, H, W) uint8; train may be mapped from a file larger than memory, and neither
    is converted as a whole.
    """

    def flat(x):
        return x.reshape(len(x), -1) / 255

    rows = max(1, BLOCK // pictures[0].size)
    best, index = np.full(len(pictures), np.inf), np.zeros(len(pictures), dtype=np.int64)
    for start in progress(range(0, len(train), rows), "nearest training images"):
        block = flat(train[start : start + rows])
        for first in range(0, len(pictures), rows):
            distance, found = nearest(flat(pictures[first : first + rows]), block)
            better = first + np.flatnonzero(distance < best[first : first + rows])
            best[better], index[better] = distance[better - first], start + found[better - first]
    return best, index


# ---------------------------------------------------------------- two folders


def from_folders(
    real: str, fake: str, pattern: str, skip_bad: bool, n: int | None, seed: int, own: Extractor | None, out: str
) -> Comparison:
    """Compare as many pictures of `fake` with one part of `real` as of its other part, which stands in for samples.

    pattern: a regular expression that finds whose picture it is in a name, or "". own, out: as above. Raises UserError.
    """
    reals, fakes = numbered(*(read_folder(*one, pattern, skip_bad) for one in ((real, "--real"), (fake, "--fake"))))
    size, other = ("{}x{}".format(*data.images.shape[2:]) for data in (reals, fakes))
    if size != other:
        these = f"images of {other}, but those of --real {real} are {size}"
        raise UserError(f"--fake {fake}: {these}; resize one of them, always in the same way")
    for flag, folder, data, needed in (("--real", real, reals, 80), ("--fake", fake, fakes, 40)):
        if len(data) < needed:
            raise UserError(f"{flag} {folder}: {len(data)} images; {needed} are needed at least")
    most = min(len(fakes), len(reals) // 2)
    if n and n > most:
        raise UserError(
            f"--n {n}: {len(fakes)} samples and {len(reals)} real images, of which half stand in for samples, give {most}"
        )
    wanted = n or most
    usable = np.arange(len(fakes))
    if reals.subjects is None or fakes.subjects is None:
        chosen, others = split_by_subject(reals, wanted, seed)
    else:  # samples of a head, its reconstructions say, are not to be held against that head
        chosen, others = split_by_subject(reals, wanted, seed, fakes.subjects)
        if len(np.unique(reals.subjects)) > 1:
            usable = np.flatnonzero(~np.isin(fakes.subjects, reals.subjects[others]))
    if min(len(chosen), len(others)) < 40:
        parts = f"{len(chosen)} and {len(others)} images"
        raise UserError(f"--real {real}: its subjects fall into {parts}; 40 each are needed")
    if len(usable) < 40:
        subjects = f"but for those of subjects that are compared with in --real, {len(usable)} images are left"
        raise UserError(f"--fake {fake}: {subjects}; 40 are needed, so add samples of others")
    taken = np.sort(generator(seed, 1).permutation(usable)[: len(chosen)])  # as many as stand in for them
    if len(taken) < len(chosen):
        chosen = np.sort(generator(seed, 2).permutation(chosen)[: len(taken)])
    refuse_copies(fakes, taken, reals, others)
    extractor = own or features.segmenter_features(segmenter.load_segmenter(), "of the embedded data")
    check_writable(out)
    print(f"{len(chosen)} of {len(fakes)} images of {fake} against {len(others)} of {len(reals)} of {real}")
    choices = {
        "samples": f"{len(chosen)} of {len(fakes)} of {fake}",
        "real images": f"{len(others)} of {len(reals)} of {real}; in the place of samples: {len(chosen)} others",
        "features": f"{extractor}, of images of {size}, 8 bits, grey",
    }
    samples = fakes.part(taken)
    return Comparison(samples, reals, chosen, others, extractor, seed=seed, choices=choices)


def refuse_copies(fakes: Slices, taken: np.ndarray, reals: Slices, others: np.ndarray) -> None:
    """Raises UserError if one of the samples is the very image that samples are compared with, pixel by pixel."""
    known = {reals.index["fingerprints"][i]: reals.index["names"][i] for i in others}
    known.pop("", None)
    for i in taken:
        if twin := known.get(fakes.index["fingerprints"][i]):
            found = f"{fakes.index['names'][i]}: the same image as {twin}"
            raise UserError(f"{found}, so --fake holds what it is compared with; remove it from one of the folders")


def numbered(*data: Slices) -> tuple[Slices, ...]:
    """With numbers for subjects, the same for the same name in all of them."""
    known = np.unique(np.concatenate([names for one in data if (names := one.subjects) is not None] or [[]]))
    return tuple(
        one if one.subjects is None else replace(one, subjects=np.searchsorted(known, one.subjects)) for one in data
    )


def read_folder(folder: str, flag: str, pattern: str, skip_bad: bool) -> Slices:
    """The pictures of a folder in grey; or, where it holds NIfTI volumes, their axial slices with brain, in one window a
    volume, each a subject of its own unless the pattern says otherwise. Subjects are names here. Raises UserError for
    what cannot be read or differs in size; with skip_bad, unreadable files are counted and left out. So are masks."""
    volumes = [path for path in sorted(Path(folder).glob("[!.]*")) if is_nifti(path)]
    volumes = volumes if without_masks(volumes) else []
    found = volumes or [*folders.pictures_in(Path(folder)).values()]
    read, bad, kept = [], [], without_masks(found)
    if len(kept) < len(found):
        print(
            f"{flag} {folder}: {len(found) - len(kept)} file(s) left out that are named as masks are, NAME_mask or NAME_seg"
        )
    for path in kept:
        if path.name == "grid.png":  # sample.py's overview
            continue
        try:
            read.append((path, grey_slices(path) if volumes else images.read_image(path)[None]))
        except UserError as error:
            bad.append(str(error))
    if bad and not skip_bad:
        raise UserError(f"{bad[0]}; {len(bad)} such file(s) in {flag} {folder}, go on without them by --skip-bad")
    if bad:
        print(f"{flag} {folder}: {len(bad)} unreadable file(s) left out, the first: {bad[0]}")
    if not read:
        raise UserError(f"{flag} {folder}: no images that can be read")
    if volumes:
        print(printable(f"{flag} {folder}: {sum(len(slices) for _, slices in read)} slices of {len(read)} volumes"))
    sizes = {path: "{}x{}".format(*slices.shape[1:]) for path, slices in read}
    for path, size in sizes.items():
        if size != sizes[read[0][0]]:
            first = f"{read[0][0].name} is {sizes[read[0][0]]}"
            raise UserError(f"{path}: {size}, but {first}; all images of {flag} must be of one size")
    index = {"names": [], "fingerprints": []}
    for path, slices in read:
        index["names"] += [path] * len(slices)
        index["fingerprints"] += map(folders.fingerprint, slices)
    subjects = None
    if pattern or volumes:
        whose = [folders.subject_of(stem(path), pattern) if pattern else stem(path) for path, _ in read]
        subjects = np.array(whose).repeat([len(slices) for _, slices in read])
    return Slices(np.concatenate([slices for _, slices in read])[:, None], None, {}, Vocabulary(), subjects, index)


def without_masks(paths: list[Path]) -> list[Path]:
    return [path for path in paths if bare(stem(path)) == stem(path)]
