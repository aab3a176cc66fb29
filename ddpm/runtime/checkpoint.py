"""Save and load: one file from which a run goes on, and from which `sample.py` draws.

A checkpoint holds version, config, classes, contrasts, step, model, ema, opt. It is loaded with
weights_only=True, which reads tensors and plain containers and never runs code.

What torch.save writes is a ZIP file with a checksum of each part. torch.load does not look at the checksums (of 400
files with one flipped bit each it took 356), so `load` and `newest` do (files.is_whole). They are not read back after
a save: that would ask the memory in front of the disk, not the disk. A damaged file is found when it is needed, and
the run's older checkpoints are there for that moment.
"""

import pickle
import zipfile
from pathlib import Path

import torch

from ddpm import UserError
from ddpm.runtime.config import Config
from ddpm.runtime.files import is_whole, write_whole
from ddpm.unet import UNet

VERSION = 1
KEYS = {"version", "config", "classes", "contrasts", "step", "model", "ema", "opt"}


def save(path: str | Path, **parts) -> None:
    """Write the parts named in KEYS (all but version) to `path`: whole, or not at all. Raises OSError."""
    checkpoint = {"version": VERSION, **parts}
    assert checkpoint.keys() == KEYS
    write_whole(path, lambda file: torch.save(checkpoint, file), durable=True)


def load(path: str | Path) -> dict:
    """The checkpoint at `path`, on the CPU, with its config as a Config. Raises UserError if it is missing, damaged or not one of ours."""
    if not Path(path).exists():
        raise UserError(f"{path}: no such checkpoint; `make train` makes one")
    try:
        if not is_whole(path):
            raise zipfile.BadZipFile
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise UserError(f"{path}: damaged, or not a checkpoint of this program; name another") from None
    if not isinstance(checkpoint, dict) or not {"version", "config", "model"} <= checkpoint.keys():
        raise UserError(f"{path}: a checkpoint of some other program; train one with train.py")
    if checkpoint["version"] != VERSION or checkpoint.keys() != KEYS:
        raise UserError(f"{path}: checkpoint version {checkpoint['version']}; this program reads version {VERSION}")
    try:
        checkpoint["config"] = Config(**checkpoint["config"])
    except TypeError:
        raise UserError(f"{path}: its configuration is not one of this version; train again with train.py") from None
    return checkpoint


def newest(place: str | Path = "results") -> Path:
    """The newest whole checkpoint of a run's folder, or, in a folder of runs, of the run that saved last.

    Damaged ones are passed over, with a line each. Raises UserError if there is none.
    """
    place = Path(place)
    found = [*place.glob("checkpoints/*.pt"), *place.glob("*/checkpoints/*.pt")]
    if not found and (place / "config.json").exists():
        raise UserError(f"{place}: this run stopped before it saved a checkpoint; start it again without --resume")
    if not found:
        raise UserError(f"{place}: no checkpoint in this folder; `make train` makes one, or name one")
    found.sort(key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
    of_one_run = [path for path in found if path.parent == found[0].parent]
    for path in of_one_run:
        if is_whole(path):
            return path
        print(f"{path}: damaged; trying the one before it")
    raise UserError(f"{found[0].parent}: no whole checkpoint ({len(of_one_run)} damaged); name one of another run")


def make_unet(config: Config, classes: tuple[str, ...], contrasts: tuple[str, ...]) -> UNet:
    """The network that a configuration describes, its weights drawn from torch's global random state."""
    return UNet(
        image_channels=config.image_channels,
        num_classes=len(classes),
        num_contrasts=len(contrasts),
        channels=config.channels,
        mults=tuple(config.mults),
        blocks=config.blocks,
        attention=tuple(config.attention),
        patch=config.patch,
        dropout=config.dropout,
    )


def load_unet(checkpoint: dict, weights: str, path: str | Path) -> UNet:
    """The checkpoint's network, ready to sample: weights "ema" (averaged) or "raw". Raises UserError."""
    unet = make_unet(checkpoint["config"], checkpoint["classes"], checkpoint["contrasts"])
    try:
        unet.load_state_dict(checkpoint["ema" if weights == "ema" else "model"])
    except RuntimeError:
        raise UserError(f"{path}: its weights do not fit its own configuration; the file was altered") from None
    return unet.eval().requires_grad_(False)
