"""A split of the data that a configuration names: the embedded phantom, or a folder."""

import numpy as np

from ddpm import UserError
from ddpm.conditions import Vocabulary
from ddpm.data import Slices, folders, phantom


def load_data(config, split: str) -> Slices:
    """The "train", "val" or "test" split of config.data (a runtime.config.Config). Raises UserError."""
    return load_phantom(config, split) if config.data == "phantom" else folders.load(config, split)


def load_phantom(config, split: str) -> Slices:
    """The phantom's slices (rendered once, then cached), each of a subject of its own."""
    try:
        n = (config.phantom_images or None) if split == "train" else None
        pixels, tissue, contrasts = phantom.load(split, config.image_size, n=n)
    except ValueError as error:
        raise UserError(f"--image-size: {error}") from None
    subjects, names = np.arange(len(pixels)), phantom.CONTRASTS
    if config.contrast != "all":
        chosen = contrasts == names.index(config.contrast)
        names, subjects, pixels, tissue = (config.contrast,), subjects[chosen], pixels[chosen], tissue[chosen]
        contrasts = np.zeros(len(pixels), dtype=np.int64)
    masked = config.labels != "none"
    masks = phantom.to_label_set(tissue, config.labels) if masked else None
    vocabulary = Vocabulary(phantom.CLASSES[config.labels] if masked else (), {"contrast": names})
    return Slices(pixels, masks, {"contrast": contrasts + 1}, vocabulary, subjects)
