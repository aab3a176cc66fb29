"""Save and load: one file from which a run goes on, and from which `sample.py` draws.

A checkpoint holds version, config, conditions, step, model, ema, opt, trained_on. It is loaded with weights_only=True, which
reads tensors and plain containers and never runs code. `conditions` says which kinds of condition the network knows and what
their values are called: {"mask": [...], "labels": {"contrast": [...]}, "source": [...], "words": [...], "vectors": D},
and by "values" what a mask's files call its classes, if not 0 .. K-1. A kind that is not there is not known, so a new kind
refuses no old file. `opt` has the state of each optimiser in turn.
`trained_on` stands for the images (folders.contents). A file to draw from only, such as the model in the box, has no raw
weights and no optimisers: `model` is {} and `opt` is [].

What torch.save writes is a ZIP file with a checksum of each part. torch.load does not look at the checksums (of 400
files with one flipped bit each it took 356), so `load` and `newest` do (files.is_whole). They are not read back after
a save: that would ask the memory in front of the disk, not the disk. A damaged file is found when it is needed, and
the run's older checkpoints are there for that moment.
"""

from pathlib import Path

import torch

from ddpm import UserError
from ddpm.conditions import Vocabulary
from ddpm.runtime.config import STUDENT, Config
from ddpm.runtime.files import is_whole, reading, write_whole

VERSION = 7
# The models in the box (docs/model-card.md; `make pretrained`): the one meant where none is named, its student that takes
# four steps, one of 128x128, and one that draws the masks that prompts ask for. A file each, beside this package's code.
IN_THE_BOX = ("pretrained", "pretrained-fast", "pretrained-128", "pretrained-masks")
PRETRAINED = Path(__file__).parents[1] / "pretrained.pt"
KEYS = {"version", "config", "conditions", "step", "model", "ema", "opt", "trained_on"}


def save(path: str | Path, **parts) -> None:
    """Write the parts named in KEYS (all but version) to `path`: whole, or not at all. Raises OSError."""
    checkpoint = {"version": VERSION, **parts}
    assert checkpoint.keys() == KEYS
    write_whole(path, lambda file: torch.save(checkpoint, file), durable=True)


def load(path: str | Path) -> dict:
    """The checkpoint at `path`, on the CPU, its config a Config and its conditions a Vocabulary. Raises UserError if it
    is missing, damaged or not one of ours."""
    missing = (
        f"no such checkpoint; `make {'pretrained' if Path(path).parent == PRETRAINED.parent else 'train'}` makes one"
    )
    with reading(path, "a checkpoint of this program", "name another", missing):
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        if not is_whole(path):
            raise ValueError("a checksum is wrong")
    if not isinstance(checkpoint, dict) or not {"version", "config", "model"} <= checkpoint.keys():
        raise UserError(f"{path}: a checkpoint of some other program; train one with train.py")
    with reading(path, "a checkpoint of this program", "name another"):
        for version, upgrade in enumerate(UPGRADES, 1):  # each makes it one of the next version
            if checkpoint["version"] == version:
                checkpoint = upgrade(checkpoint)
    if checkpoint["version"] != VERSION or checkpoint.keys() != KEYS:
        version = checkpoint["version"]
        raise UserError(f"{path}: checkpoint version {version}; this program reads versions 1 to {VERSION}")
    if unknown := checkpoint["conditions"].keys() - {"mask", "labels", "source", "words", "vectors", "values"}:
        raise UserError(f"{path}: it follows {', '.join(sorted(unknown))}, which this program does not know")
    try:
        student = {"extra_noise": STUDENT["extra_noise"]} if checkpoint["config"].get("teacher") else {}
        checkpoint["config"] = Config(**{**student, **checkpoint["config"]})  # older students do not name it
        checkpoint["config"].choose_few_times()  # nor did older checkpoints name these
    except (TypeError, AttributeError, ValueError):
        raise UserError(f"{path}: its configuration is not one of this version; train again with train.py") from None
    conditions = checkpoint["conditions"]
    labels = {name: tuple(values) for name, values in conditions.get("labels", {}).items()}
    classes, source, words, values = (tuple(conditions.get(kind, ())) for kind in ("mask", "source", "words", "values"))
    checkpoint["conditions"] = Vocabulary(classes, labels, source, words, conditions.get("vectors", 0), values)
    return checkpoint


def description(vocabulary: Vocabulary) -> dict:
    """What a checkpoint's `conditions` holds."""
    labels = {name: list(known) for name, known in vocabulary.labels.items()}
    source, words, values = list(vocabulary.source), list(vocabulary.words), list(vocabulary.values)
    kinds = {"mask": list(vocabulary.classes), "source": source, "words": words}
    kinds |= {"vectors": vocabulary.vectors, "values": values}
    return {"labels": labels, **{kind: known for kind, known in kinds.items() if known or kind == "mask"}}


def from_version_1(checkpoint: dict) -> dict:
    """Version 1 knew masks and one label, the contrast, and called some things by other names."""
    checkpoint = {**checkpoint, "version": 2, "config": dict(checkpoint["config"])}
    contrasts = checkpoint.pop("contrasts")
    labels = {"contrast": contrasts} if contrasts else {}
    checkpoint["conditions"] = {"mask": checkpoint.pop("classes"), "labels": labels}
    config = checkpoint["config"]
    config["label_drop"] = config.pop("contrast_drop")
    gamma = config.pop("min_snr")
    config |= {"loss_weight": "min-snr" if gamma else "plain", "gamma": gamma or 5.0}
    renamed = {"contrast.weight": "labels.contrast.weight"}
    for weights in ("model", "ema"):
        checkpoint[weights] = {renamed.get(name, name): value for name, value in checkpoint[weights].items()}
    return checkpoint


def from_version_2(checkpoint: dict) -> dict:
    """Version 2 knew one optimiser, and not what later became the defaults."""
    config = {**checkpoint["config"], "both_drop": 0.0}
    config |= {"lean": False, "time_mean": 0.0, "time_std": 0.0, "muon_lr": 0.0, "phantom_images": 0}
    return {**checkpoint, "version": 3, "config": config, "opt": [checkpoint["opt"]]}


def from_version_3(checkpoint: dict) -> dict:
    """Version 3 knew masks and labels alone. Its probabilities of withholding excluded each other; now they do not, which
    changes what a run that goes on withholds by a few in a thousand."""
    config = dict(checkpoint["config"])
    config["all_drop"] = config.pop("both_drop")
    return {**checkpoint, "version": 4, "config": config}


def from_version_4(checkpoint: dict) -> dict:
    """Version 4 knew neither weights of the foreground nor Muon's decay; a run that goes on goes on without them."""
    config = {**checkpoint["config"], "foreground_weight": 1.0, "muon_decay": 0.0}
    return {**checkpoint, "version": 5, "config": config}


def from_version_5(checkpoint: dict) -> dict:
    """Version 5 had Muon's decay of a step in its configuration, where now there is that of a training of 3,000 steps. Its
    warm-up could be longer than a tenth of the training, which a run that goes on does not keep."""
    config = dict(checkpoint["config"])
    config["muon_decay"] *= config["steps"] / 3000
    return {**checkpoint, "version": 6, "config": config}


def from_version_6(checkpoint: dict) -> dict:
    """Version 6 did not say what it was trained on."""
    return {**checkpoint, "version": 7, "trained_on": ""}


UPGRADES = (from_version_1, from_version_2, from_version_3, from_version_4, from_version_5, from_version_6)


def find(path: str | Path | None = None) -> Path:
    """The checkpoint that is meant: a file, the newest of a folder, one IN_THE_BOX by its name, or (None) the newest of
    results/, and the model in the box where there is none. Raises UserError."""
    if path == "":
        raise UserError("an empty name for a checkpoint (an unset variable?); leave it out for the newest")
    if path is None and not checkpoints_in(Path("results")):
        return PRETRAINED
    if str(path) in IN_THE_BOX:
        return PRETRAINED.with_name(f"{path}.pt")
    return newest(path or "results") if path is None or Path(path).is_dir() else Path(path)


def checkpoints_in(place: Path) -> list[Path]:
    """Those of a run's folder, of its checkpoints/, or of a folder of runs."""
    own = place.glob("*.pt") if place.name == "checkpoints" else ()
    return [*own, *place.glob("checkpoints/*.pt"), *place.glob("*/checkpoints/*.pt")]


def newest(place: str | Path) -> Path:
    """The last whole checkpoint of a run's folder, or, in a folder of runs, of the run that saved last.

    Within a run the step in the name decides, not when the file was written, which copying changes; files of other names
    come after those. Damaged ones are passed over, with a line each. Raises UserError if there is none.
    """
    place = Path(place)
    found = checkpoints_in(place)
    if not found and (place / "config.json").exists():
        raise UserError(f"{place}: this run stopped before it saved a checkpoint; start it again without --resume")
    if not found:
        raise UserError(f"{place}: no checkpoint in this folder; `make train` makes one, or name one")
    folder = max(found, key=lambda path: path.stat().st_mtime_ns).parent

    def step(path: Path) -> int:
        number = path.stem.removeprefix("step_")
        return int(number) if number.isdigit() else -1

    of_one_run = sorted(folder.glob("*.pt"), key=lambda path: (step(path), path.name), reverse=True)
    for path in of_one_run:
        if is_whole(path):
            return path
        print(f"{path}: damaged; trying the one before it")
    raise UserError(f"{folder}: no whole checkpoint ({len(of_one_run)} damaged); name one of another run")
