"""What sample.py is asked to draw: masks, sources, a contrast, a prompt, read from files and made into conditions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ddpm import UserError, printable
from ddpm.conditions import LABELS, Condition
from ddpm.data import descriptions, folders, images, phantom
from ddpm.data.sources import COARSE
from ddpm.data.volumes import is_nifti
from ddpm.model import Model, draw, load_model
from ddpm.runtime.command_line import label_values, words_of
from ddpm.stack import Stack, read_stack

EXAMPLES = Path(__file__).parents[1] / "examples" / "masks"


@dataclass(frozen=True, eq=False)
class Asked:
    """Samples have names, those of their masks or sources; sample k of a name has value k of each label."""

    model: Model
    names: tuple[str, ...]
    n: int  # samples of each
    masks: dict[str, np.ndarray]  # labels (H, W) by name; {} if none are asked for
    sources: dict[str, np.ndarray]  # (C, H, W) uint8 by name; {} likewise
    labels: dict[str, list[str]]  # a value for each sample of a name, or for each name if the masks were drafted
    words: np.ndarray | None  # (1, L) or (1, D), for all
    stack: Stack | None  # the volume that the masks are slices of
    drafted: bool = False  # the masks were drawn, as a prompt asks

    @property
    def given(self) -> tuple[str, ...]:
        """The kinds of condition, as Condition.given has them."""
        kinds = {"mask": self.masks, "source": self.sources, "words": self.words is not None}
        return tuple(kind for kind, there in kinds.items() if there) + tuple(self.labels)

    def condition(self, samples: Sequence[tuple[str, int]]) -> Condition:
        """Of these samples: (name, k)."""
        masks = np.stack([self.masks[name] for name, _ in samples]) if self.masks else None
        sources = images.to_float(np.stack([self.sources[name] for name, _ in samples])) if self.sources else None
        words = None if self.words is None else self.words.repeat(len(samples), axis=0)
        number = [self.names.index(name) if self.drafted else k for name, k in samples]
        labels = {label: [values[i] for i in number] for label, values in self.labels.items()}
        return self.model.vocabulary.condition(masks, sources, words, **labels)

    def alike(self) -> dict[str, list[int]]:
        """The samples of a name that are asked for the same, such as "_T2" -> [0, 2, 4]; "" if all are."""
        asked = ["".join(f"_{values[k]}" for values in self.labels.values()) for k in range(self.n)]
        several = len(set(asked)) > 1
        return {kind * several: [k for k in range(self.n) if asked[k] == kind] for kind in dict.fromkeys(asked)}

    def contradictions(self, prompt: str) -> list[str]:
        """Where a prompt in the phantom's words says one thing, and a mask or the contrast another."""
        last = len(self.model.vocabulary.classes) - 1
        others = [(f"{name}'s mask", descriptions.describe(mask == last)) for name, mask in self.masks.items()]
        others += [("--contrast", {"contrast": value}) for value in dict.fromkeys(self.labels.get("contrast", ()))]
        return descriptions.contradictions(prompt, others)

    def row(self, name: str, drawn: np.ndarray) -> np.ndarray:
        """Of the overview: the source, the mask (as far as there are such) and the samples (n, C, H, W) of a name, uint8
        (columns, 3, H, W)."""
        cells = [images.rgb(self.sources[name][None])] if self.sources else []
        if self.masks:
            cells.append(images.colour_labels(self.masks[name], len(self.model.vocabulary.classes))[None])
        return np.concatenate([*cells, images.rgb(drawn)])


def read_asked(args, model: Model) -> Asked:
    """What the command line asks for. Raises UserError."""
    # A prompt says itself which contrast, and so does a source, unless it is to be translated into another one.
    says_it = args.prompt is not None or (args.source is not None and model.config.source not in phantom.CONTRASTS)
    wanted = {name: getattr(args, name) or ("none" if says_it else "each") for name in LABELS}
    drafted = args.prompt is not None and args.mask is None and not args.restore and by_masks_alone(model)
    if drafted:
        wanted["contrast"] = args.contrast or said_contrast(args.prompt)
    sources = read_sources(args.source, model)
    n, needed = (1, max(args.n, len(sources))) if drafted else (args.n, args.n)  # a drawn mask is a name of its own
    labels = {name: label_values(name, value, model, needed) for name, value in wanted.items()}
    masks, stack = (draft_masks(args, model), None) if drafted else read_masks(args.mask, model)
    masks, sources = by_common_names(masks, sources)
    names = tuple(masks or sources or ("unconditional",))
    labels = {name: values for name, values in labels.items() if values}
    words = None if drafted else words_of(args, model, 1)
    return Asked(model, names, n, masks, sources, labels, words, stack, drafted)


def by_masks_alone(model: Model) -> bool:
    """Whether a prompt must become a mask first: the model knows no words, and the phantom's masks."""
    phantoms = model.config.data == "phantom" and model.vocabulary.classes == phantom.CLASSES["lesion"]
    return phantoms and "words" not in model.vocabulary.given


def said_contrast(prompt: str) -> str:
    """The contrast that a prompt names (of several, the first), or "none"."""
    return descriptions.asked(prompt).get("contrast", ["none"])[0]


def draft_masks(args, model: Model) -> dict[str, np.ndarray]:
    """Name -> mask (H, W), --n of them, as --prompt asks for: drawn by the model of masks in the box. Raises UserError."""
    drafter = load_model("pretrained-masks")
    words = words_of(args, drafter, args.n)
    masks, size = {}, tuple(model.config.image_size)
    for start in range(0, args.n, args.batch_size):
        part = range(args.n)[start : start + args.batch_size]
        maps = drawn_masks(drafter, words[part.start : part.stop], [(args.seed, k) for k in part])
        masks |= {f"prompt_{k}": fitted(mask, size) for k, mask in zip(part, maps, strict=True)}
    return masks


def fitted(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A drawn mask (h, h) in the size (H, W) of a model's images: the phantom's field of view is as wide as the shorter
    side."""
    return images.crop_or_pad(images.resize_labels(mask, (min(size), min(size))), size)


def drawn_masks(drafter: Model, words: np.ndarray, seeds: Sequence) -> np.ndarray:
    """A mask for each row of words: 0 and 1, (B, H, W) uint8, drawn by a model of masks (train.py --segment --words)."""
    *_, (_, x_0) = draw(drafter, drafter.vocabulary.condition(words=words), seeds)
    return (x_0[:, 0] > 0).cpu().numpy().astype(np.uint8)


def read_masks(wanted: str | Path | None, model: Model) -> tuple[dict[str, np.ndarray], Stack | None]:
    """Name -> label map (H, W) of each mask asked for, and the volume that they are slices of, if they are. Raises
    UserError."""
    classes, size = model.vocabulary.classes, tuple(model.config.image_size)
    if wanted is None:
        return {}, None
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
    for name, file in pictures_of(place).items():
        mask = images.read_mask(file, classes, known=model.vocabulary.values)
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
    if is_nifti(wanted):
        raise UserError(f"--source {wanted}: a volume; cut it into pictures with tools/slices.py")
    size, sources = tuple(model.config.image_size), {}
    for name, file in pictures_of(Path(wanted)).items():
        picture = images.read_pixels(file, len(model.vocabulary.source))
        if picture.dtype != np.uint8:
            remedy = "save all sources of its subject in 8 bits, in one window made as docs/data.md says under Depth"
            raise UserError(f"{file}: more than 8 bits a pixel; {remedy}")
        if model.config.source == "coarse" and picture.shape[1:] == tuple(n // COARSE for n in size):
            picture = picture.repeat(COARSE, axis=1).repeat(COARSE, axis=2)  # as the network was shown it
        if picture.shape[1:] != size:
            shapes = [f"{height}x{width}" for height, width in (picture.shape[1:], size)]
            print(printable(f"{file}: source of {shapes[0]} resized to {shapes[1]}"))
        sources[name] = images.resize(picture, size)
    return sources


def pictures_of(place: Path) -> dict[str, Path]:
    """Name -> file of each picture in a folder, or of a single one. Raises UserError."""
    return folders.pictures_in(place) if place.is_dir() else {place.stem: place}


def by_common_names(masks: dict, sources: dict) -> tuple[dict, dict]:
    """Masks and sources with the same names; a single one goes with all of the others. Raises UserError."""
    if len(sources) == 1 and masks:
        sources = dict.fromkeys(masks, *sources.values())
    elif len(masks) == 1 and sources:
        masks = dict.fromkeys(sources, *masks.values())
    if masks and sources and (lonely := sorted(masks.keys() ^ sources.keys())):
        has, lacks = ("mask", "source") if lonely[0] in masks else ("source", "mask")
        raise UserError(
            f"{lonely[0]}: a {has} without a {lacks} of that name; name them alike, or give a single {lacks}"
        )
    return masks, sources
