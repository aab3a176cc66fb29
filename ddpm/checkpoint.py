"""Save and load: one file from which a run goes on, and from which `sample.py` draws.

A checkpoint holds version, config, classes, contrasts, step, model, ema, opt. It is loaded with
weights_only=True, which reads tensors and plain containers and never runs code.
"""

import io
import os
import pickle
import zipfile
from pathlib import Path

import torch

from ddpm import UserError
from ddpm.config import Config
from ddpm.unet import UNet

VERSION = 1
KEYS = {"version", "config", "classes", "contrasts", "step", "model", "ema", "opt"}


def save(path: str | Path, **parts) -> None:
    """Write the parts named in KEYS (all but version) to `path`: whole, or not at all.

    The bytes are made in memory (where a full disk cannot confuse torch.save), written beside their place,
    flushed to the disk, then renamed. Raises OSError.
    """
    checkpoint = {"version": VERSION, **parts}
    assert checkpoint.keys() == KEYS
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    temporary = Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: str | Path) -> dict:
    """The checkpoint at `path`, on the CPU, with its config as a Config. Raises UserError if it is missing, damaged or not one of ours."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint; `make train` makes one") from None
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
    """The newest checkpoint of a run's folder, or of all runs in a folder. Raises UserError if there is none."""
    place = Path(place)
    found = [*place.glob("checkpoints/*.pt"), *place.glob("*/checkpoints/*.pt")]
    if not found:
        raise UserError(f"{place}: no checkpoint in this folder; `make train` makes one, or name one")
    return max(found, key=lambda path: (path.stat().st_mtime_ns, path.name))


def make_unet(config: Config, classes: tuple[str, ...], contrasts: tuple[str, ...]) -> UNet:
    """The network that a configuration describes, its weights drawn from torch's global random state."""
    return UNet(
        image_channels=1,
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
