"""Images and masks of your own: recognised (formats/), split by subject, decoded once (store.py).

docs/data.md shows what may lie in a folder, and the command for each.
"""

import hashlib
import os
import re
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from ddpm import UserError, printable
from ddpm.conditions import Vocabulary
from ddpm.data import Slices, store
from ddpm.data.formats import recognise
from ddpm.data.images import MAX_PIXELS, crop_or_pad, resize, resize_labels
from ddpm.data.layout import SPLITS, Findings, Item, Layout, Request, ending, walk
from ddpm.data.pictures import ENDINGS
from ddpm.data.volumes import to_grey
from ddpm.runtime import cache
from ddpm.runtime.progress import progress

SHARED = ("folders", "layout", "pictures", "scans", "volumes", "dicom", "images", "store")
FORMATS = sorted(path.stem for path in Path(__file__).with_name("formats").glob("*.py"))
CODE = cache.code(*(f"data/{name}.py" for name in SHARED), *(f"data/formats/{name}.py" for name in FORMATS), "seeds.py")
COLUMNS = ("names", "subjects", "contrasts", "fingerprints", "class_pixels")  # of the index: a value for each image
SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing"}  # as folders, in any case
SPLIT_FOLDER = re.compile(rf"(?:.*coil_)?({'|'.join(SPLIT_WORDS)})|.*_(training|validation|testing)data", re.IGNORECASE)
CHANGED = "are not those of the folder now: files came, went or changed, which can move subjects between splits"
HELD_OUT = 0.1  # of the subjects, for val and again for test, where the data has no splits


def load(config, split: str) -> Slices:
    """A split ("train", "val", "test") of the data in the folder config.data, its arrays mapped into memory from the
    store. config is a runtime.config.Config: its first block of fields says what each option means.

    Images get config.image_channels and config.image_size, averaged where they shrink; masks are resized by nearest
    neighbour. Raises UserError, in one line, for what is missing, unpaired, unreadable or in two splits; with
    config.skip_bad, single files are left out instead and listed in the index.
    """
    findings = Findings(config.skip_bad)
    layout = find(config, findings)
    images, masks, source, index = decoded(layout, config, split)
    if split != "train" and any(item.split == "train" for item in layout.items):
        *_, train = decoded(layout, config, "train")
        images, masks, source, index = without_doubles(images, masks, source, index, train, findings, split)
    subjects = {name: {item.subject for item in layout.items if item.split == name} - {""} for name in SPLITS}
    about = f"{layout.about}{how_cut(config) if layout.volumes else ''}{subjects_told(config, layout.items)}"
    index |= {
        "about": printable(f"{config.data}: {about}"),
        "elsewhere": {name: [sum(item.split == name for item in layout.items), len(subjects[name])] for name in SPLITS},
        "unused": layout.unused,
        "set_left_out": layout.left_out,
        "bad": findings.bad + index["bad"],
    }
    labels, known = {}, {}
    if layout.contrasts:
        labels, known = {"contrast": np.array(index["contrasts"]) + 1}, {"contrast": layout.contrasts}
    names, numbers = np.unique(index["subjects"], return_inverse=True)
    whose = None if "" in names else numbers  # "" is where the layout does not tell
    channels = () if source is None else ("source",) if source.shape[1] == 1 else ("red", "green", "blue")
    values = layout.values if layout.classes and layout.values != (*range(len(layout.classes)),) else ()
    vocabulary = Vocabulary(layout.classes, known, channels, values=values)
    return Slices(images, masks, labels, vocabulary, whose, index, source)


def how_cut(config) -> str:
    of = f" of {config.spacing:g} mm a pixel" if config.spacing else ""
    return f", {config.axis} slices{of}" if of or config.axis != "axial" else ""


def subjects_told(config, items: list[Item]) -> str:
    """What --subject-pattern found: the user is to see where that is a class, which would be held out whole."""
    if not config.subject_pattern:
        return ""
    found = {item.name: item.subject for item in items}
    some = ", ".join(map(repr, list(dict.fromkeys(found.values()))[:3]))
    return f", subjects such as {some}" + ", each a whole folder" * are_folders(found)


def are_folders(subjects: dict[str, str]) -> bool:
    """Is each subject, of pictures by their names, a folder of several?"""
    pairs = {(subject, os.path.dirname(name)) for name, subject in subjects.items()}
    return 1 < len(pairs) == len(set(subjects.values())) == len({folder for _, folder in pairs}) < len(subjects)


def find(config, findings: Findings) -> Layout:
    """The layout of the folder, every item with a split, no subject in two. Raises UserError."""
    root, masks = Path(config.data), Path(config.masks) if config.masks else None
    for name, place in (("--data", root), ("--masks", masks)):
        if place and place.is_file():
            raise UserError(f"{name} {place}: a file; if it is an archive unpack it, and name the folder")
        if place and not place.is_dir():
            raise UserError(f"{name} {place}: no such folder; see docs/data.md for what may lie in one")
    layout = recognise(Request(root, masks, config, findings, walk(root, findings)))
    if not (items := layout.items):
        why = [*findings.bad[:1], *layout.left_out] or ["no images"]
        raise UserError(f"{config.data}: {layout.about}, but nothing to use ({why[0]}); see docs/data.md")
    if pattern := config.subject_pattern:
        items = [replace(item, subject=subject_of(item.name, pattern), drawn_by="") for item in items]
    elif stray := next((item for item in items if item.subject.lower() in SPLIT_WORDS), None):
        remedy = "call folders of splits train/, val/ and test/, or name subjects by --subject-pattern"
        raise UserError(f"{stray.images[0]}: is {stray.subject!r} a subject? {remedy}")
    if not any(item.split for item in items):
        refuse_pooling(items)
    items = split_by_subject(items, config.seed, config.data)
    places: dict[str, str] = {}
    for item in items:
        if item.subject and places.setdefault(item.subject, item.split) != item.split:
            found = " and ".join(sorted((places[item.subject], item.split)))
            remedy = "keep each subject in one split" + ", or name subjects by --subject-pattern" * (not pattern)
            raise UserError(f"{item.images[0]}: subject {item.subject!r} is in {found}; {remedy}")
    train = [item for item in items if item.split == "train" and not item.subject]
    if train and not layout.volumes:  # pictures, then; each scan has a window of its own
        layout = replace(layout, decode=partial(layout.decode, train=train))
    return replace(layout, items=items)


def refuse_pooling(items: list[Item]) -> None:
    """Raises UserError if images that lie in folders of several splits, which no format knows as such, would be mixed."""
    found: dict[str, str] = {}
    for item in items:
        for folder in item.name.split("/")[:-1]:
            if word := SPLIT_FOLDER.fullmatch(folder):
                found.setdefault((word[1] or word[2]).lower(), folder)
    if len(found) > 1:
        folders = " and ".join(sorted(found.values()))
        below = "images/" if ending(items[0].images[0]) in ENDINGS else ""
        names = f"train/{below}, val/{below} and test/{below}"
        remedy = f"call them {names} as docs/data.md shows, or name one of them by --data"
        raise UserError(f"{items[0].images[0]}: {folders} would be mixed, and split anew; {remedy}")


def subject_of(name: str, pattern: str) -> str:
    try:
        match = re.search(pattern, name)
    except re.error as error:
        raise UserError(f"--subject-pattern {pattern}: not a regular expression ({error}); mend it") from None
    found = match and (match[1] if match.re.groups else match[0])
    if not found:
        raise UserError(f"--subject-pattern {pattern}: finds nothing in {name}; it must find a subject in every name")
    return found


def patterns_for(names: list[str]) -> str:
    """What --subject-pattern may be, each with what it finds in these names, for the user to choose by."""
    told = []
    for pattern in ("^[^_]+", ".+", "^[^/]+"):
        found = {name: match[0] for name in names if (match := re.match(pattern, name))}
        n = len(set(found.values()))
        a_class = pattern == "^[^_]+" and are_folders(found)  # glioma/Tr of glioma/Tr_1, say: no patient
        if pattern == ".+" or (3 <= n < len(names) == len(found) and not a_class):
            told.append(f"{pattern!r} ({n} subjects, such as {found[names[0]]!r})")
    return " or ".join(told)


def split_by_subject(items: list[Item], seed: int, data: str) -> list[Item]:
    """Items with their split: the folder's own, or else drawn subject by subject from a hash of (seed, subject).

    A subject's number is its own: when others come or go it stays in its split (unless there are so few subjects
    that a split would be empty). Raises UserError if the subjects are not known or fewer than three.
    """
    given = [item for item in items if item.split]
    if given and len(given) == len(items):
        return items
    if given:
        stray = next(item for item in items if not item.split)
        raise UserError(f"{stray.images[0]}: in no split, but others are; put it into train, val or test")
    if any(not item.subject for item in items):
        patterns = patterns_for([item.name for item in items])
        remedy = f"by a folder a subject below images/, by train/ and val/, or by --subject-pattern {patterns}"
        raise UserError(f"{data}: which pictures are of one subject? Say it {remedy}")
    number = {item.subject: subject_number(seed, item.drawn_by or item.subject) for item in items}
    order = sorted(number, key=number.get)
    if len(order) < 3:
        remedy = "name subjects by --subject-pattern, or make folders train/ and val/"
        raise UserError(f"{data}: {len(order)} subject(s), {order[0]!r} for one, cannot be split into three; {remedy}")
    val = min(max(sum(u < HELD_OUT for u in number.values()), 1), len(order) - 2)
    test = min(max(sum(u < 2 * HELD_OUT for u in number.values()) - val, 1), len(order) - 1 - val)
    split = dict.fromkeys(order, "train") | dict.fromkeys(order[val : val + test], "test")
    split |= dict.fromkeys(order[:val], "val")
    return [replace(item, split=split[item.subject]) for item in items]


def subject_number(seed: int, subject: str) -> float:
    """A number in [0, 1) that is the subject's own."""
    name = f"{seed} {subject}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64


# ---------------------------------------------------------------------------------------------------------
# Decoding, once


def decoded(layout: Layout, config, split: str):
    """Images, label maps, sources and index of a split, from its store, which is made if it is not there. Raises
    UserError."""
    items = [item for item in layout.items if item.split == split]
    if not items:
        raise UserError(f"{config.data}: no images for {split}; see docs/data.md for the layouts")
    # Of files their sizes and times of change, as make does: reading every byte would cost as much as decoding.
    files = [path for item in items for path in item.files]
    if not all(item.subject for item in items):  # their window is of these
        train = [item for item in layout.items if item.split == "train" and not item.subject]
        files += [path for item in train for path in (item.images[0], item.source) if path]
    named = [(item.name, item.subject) for item in items]
    states = [(path, *store.status_of(path)) for path in files]
    options = config.image_size, config.image_channels, config.skip_bad, config.axis, config.spacing, config.volume
    here = os.path.abspath(config.data), config.masks and os.path.abspath(config.masks)
    key = cache.key(CODE, split, options, layout.about, layout.classes, named, states, here)
    if whole := store.read(key):
        return whole
    if store.folder_of(key).exists():
        print(f"{store.folder_of(key)}: damaged, so {split} is decoded again")
    try:
        decode_all(layout, items, config, key, split)
    except OSError as error:
        remedy = f"decoded images go to {cache.CACHE}: make room there, and let it be written"
        raise UserError(f"{error.filename or cache.CACHE}: {error.strerror}; {remedy}") from None
    if whole := store.read(key):
        return whole
    raise UserError(f"{store.folder_of(key)}: changed while it was read; start again")


def decode_all(layout: Layout, items: list[Item], config, key: str, split: str) -> None:
    """Write the store of a split, subject by subject. Raises UserError, OSError."""
    groups = defaultdict(list)
    for item in items:
        groups[item.subject].append(item)
    findings, size, rows, windows = Findings(config.skip_bad), tuple(config.image_size), [], {}
    sourced = config.source == "pairs"
    with store.Writer(key, (config.image_channels, *size), bool(layout.classes), sourced) as writer:
        for subject, group in progress(groups.items(), desc=f"decoding {split}"):
            for one in layout.decode(group, findings):
                image = to_grey(one.image, *one.window) if one.window else one.image
                labels = one.labels if layout.classes else None
                image, labels = fit(image, labels, size, one.pixel_mm, config.spacing)
                writer.add(image, labels, resize(one.source, size) if sourced else None)
                pixels = [] if labels is None else np.bincount(labels.ravel(), minlength=len(layout.classes)).tolist()
                rows.append((one.name, subject, one.contrast, fingerprint(one.image), pixels))
                if one.window:
                    scan = one.scan or subject
                    windows[f"{scan} {layout.contrasts[one.contrast]}" if layout.contrasts else scan] = one.window
        if not rows:
            why = (findings.bad or ["air only"])[0]
            raise UserError(f"{items[0].images[0]}: nothing in {split} can be used ({why})")
        columns = dict(zip(COLUMNS, zip(*rows, strict=True), strict=True))
        # windows: the intensities that became 0 and 255
        writer.index = {"key": key, "split": split, "windows": windows, **columns}
        writer.index |= {"bad": findings.bad, "left_out": findings.left_out}


def fit(image: np.ndarray, labels: np.ndarray | None, size: tuple[int, int], mm, spacing: float):
    """uint8 image (C, h, w) and labels (h, w) or None -> (C, H, W) and (H, W) of `size`: stretched to it, or, under
    --spacing, with pixels of that size (theirs is `mm`, height and width), cropped or padded with 0. Raises UserError."""
    if not spacing:
        return resize(image, size), None if labels is None else resize_labels(labels, size)
    true_size = tuple(max(1, round(n * m / spacing)) for n, m in zip(image.shape[1:], mm, strict=True))
    if true_size[0] * true_size[1] > MAX_PIXELS:
        raise UserError(f"--spacing {spacing:g}: makes slices of {true_size[0]}x{true_size[1]} pixels; make it larger")
    image = crop_or_pad(resize(image, true_size), size)
    return image, None if labels is None else crop_or_pad(resize_labels(labels, true_size), size)


def fingerprint(image: np.ndarray) -> str:
    """Equal for equal values, whatever the window makes of them; empty for an image of a single one, which says nothing
    of where it is from."""
    if image.min() == image.max():
        return ""
    return hashlib.blake2b(np.ascontiguousarray(image, np.float32), digest_size=8).hexdigest()


def contents(data: Slices) -> str:
    """What stands for the images of a split: equal for the same images, whatever they are called and wherever they lie.
    Empty for the phantom, which is always the same."""
    return cache.key(*sorted(data.index["fingerprints"])) if data.index else ""


def without_doubles(images, labels, source, index: dict, train: dict, findings: Findings, split: str):
    """The split without images that are also in train: they would be remembered, not drawn. Raises UserError."""
    known = dict(zip(train["fingerprints"], train["names"], strict=True))
    known.pop("", None)
    doubles = [i for i, mark in enumerate(index["fingerprints"]) if mark in known]
    if not doubles:
        return images, labels, source, index
    for i in doubles:
        twin = known[index["fingerprints"][i]]
        findings.refuse(f"{index['names'][i]} in {split} is the same image as {twin} in train; remove one")
    kept = np.setdiff1d(np.arange(len(images)), doubles)
    if not kept.size:
        raise UserError(f"{index['names'][0]}: every image of {split} is in train too; keep the splits apart")
    for name in COLUMNS:
        index[name] = [index[name][i] for i in kept]
    labels, source = (None if x is None else x[kept] for x in (labels, source))
    return images[kept], labels, source, index


# ---------------------------------------------------------------------------------------------------------
# What is told before training


def table(*splits: Slices) -> str:
    """What was recognised, and for each split its images, subjects, share of empty masks and classes."""
    first = splits[0].index
    lines = [first["about"], f"{'':6} {'images':>8} {'subjects':>9} {'empty masks':>12}"]
    for data in splits:
        pixels = np.array(data.index["class_pixels"])  # (N, K)
        empty = f"{(pixels[:, 1:] == 0).all(axis=1).mean():.1%}" if data.classes else "no masks"
        subjects = len(set(data.index["subjects"]) - {""})
        lines.append(f"{data.index['split']:6} {len(data):8} {subjects or '?':>9} {empty:>12}")
    for name, (items, subjects) in first["elsewhere"].items():
        if items and name not in [data.index["split"] for data in splits]:
            lines.append(f"{name:6} {'-':>8} {subjects or '?':>9} {'not read':>12}")
    if splits[0].classes:
        pixels = np.sum([counts for data in splits for counts in data.index["class_pixels"]], axis=0)
        shares = ", ".join(f"{name} {n / pixels.sum():.2%}" for name, n in zip(splits[0].classes, pixels, strict=True))
        lines.append(f"share of the pixels: {shares}")
    if unused := first["unused"]:
        kinds = ", ".join(f"{n} {kind or 'without ending'}" for kind, n in sorted(unused.items()))
        lines.append(f"not used: {kinds}")
    left_out = sum((Counter(data.index["left_out"]) for data in splits), Counter(first["set_left_out"]))
    lines += [f"left out: {n} {what}" for what, n in left_out.items()]
    bad = list(dict.fromkeys(line for data in splits for line in data.index["bad"]))
    if bad:
        lines.append(f"skipped {len(bad)} bad: " + "; ".join(bad[:3]) + "; ..." * (len(bad) > 3))
    return "\n".join(lines)


def pictures_in(folder: Path) -> dict[str, Path]:
    """Stem -> path of every picture in the folder. Raises UserError if there is none, or two of one name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one that holds pictures")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS and not path.name.startswith("."):  # as layout.walk
            if path.stem in found:
                raise UserError(f"{path}: the same name as {found[path.stem].name}; names must differ")
            found[path.stem] = path
    if not found:
        inside = sorted(path.name for path in folder.iterdir() if path.is_dir())[:3]
        remedy = f"; name one of its folders ({', '.join(inside)}, ...)" if inside else ""
        raise UserError(f"{folder}: no pictures here ({', '.join(sorted(ENDINGS))}){remedy}")
    return found
