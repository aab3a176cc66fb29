"""A split of the data that a configuration names: the embedded phantom, or a folder."""

from dataclasses import replace

import numpy as np

from ddpm import UserError
from ddpm.conditions import Vocabulary
from ddpm.data import Slices, descriptions, folders, phantom
from ddpm.data.texts import read_embeddings
from ddpm.seeds import generator

NOISE = (0.02, 0.15)  # sigma of a noisy source, of full scale: uniform in between
COARSE = 4  # pixels of an image, each way, that are one of a coarse source


def load_data(config, split: str) -> Slices:
    """The "train", "val" or "test" split of config.data (a runtime.config.Config). Raises UserError."""
    data = load_phantom(config, split) if config.data == "phantom" else folders.load(config, split)
    if config.source in ("noisy", "coarse"):
        spoilt = noisy(data.images, split) if config.source == "noisy" else coarse(data.images)
        data = with_source(data, spoilt, config.source)
    return turned_round(data, config.source_drop < 1) if config.segment else data


def load_phantom(config, split: str) -> Slices:
    """The phantom's slices (rendered once, then cached), each of a subject of its own."""
    n = (config.phantom_images or None) if split == "train" else None

    def rendered(contrast: str | None):
        return phantom.load(split, config.image_size, n=n, contrast=contrast)

    try:
        pixels, tissue, contrasts = rendered(None if config.contrast == "all" else config.contrast)
    except ValueError as error:
        raise UserError(f"--image-size: {error}") from None
    names = phantom.CONTRASTS if config.contrast == "all" else (config.contrast,)
    masked = config.labels != "none"
    masks = phantom.to_label_set(tissue, config.labels) if masked else None
    labels = {"contrast": np.array([1 + names.index(phantom.CONTRASTS[i]) for i in contrasts])}
    vocabulary = Vocabulary(phantom.CLASSES[config.labels] if masked else (), {"contrast": names})
    data = Slices(pixels, masks, labels, vocabulary, np.arange(len(pixels)))
    if config.words:
        data = with_words(data, tissue == phantom.LESION_LABEL, config, split)
    if config.source in phantom.CONTRASTS:
        data = with_source(data, rendered(config.source)[0][data.subjects], config.source)
        if config.source in names:  # to copy the source is no task
            data = without_contrast(data, config.source)
    return data


def with_source(data: Slices, source: np.ndarray, name: str) -> Slices:
    """source: (N, C, H, W) uint8."""
    channels = (name,) if source.shape[1] == 1 else tuple(f"{name} {c}" for c in range(source.shape[1]))
    return replace(data, source=source, vocabulary=replace(data.vocabulary, source=channels))


def without_contrast(data: Slices, name: str) -> Slices:
    """The images of the other contrasts."""
    names = data.vocabulary.labels["contrast"]
    left = tuple(other for other in names if other != name)
    data = data.part(data.labels["contrast"] != 1 + names.index(name))
    numbers = np.array([1 + left.index(names[i - 1]) for i in data.labels["contrast"]])
    return replace(data, labels={"contrast": numbers}, vocabulary=replace(data.vocabulary, labels={"contrast": left}))


def noisy(images: np.ndarray, split: str) -> np.ndarray:
    """Each image with Rician noise of its own strength and of its own seed, (N, C, H, W) uint8."""
    spoilt = np.empty_like(images)
    for i, image in enumerate(images):
        random = generator(list(phantom.SPLITS).index(split), i, 1)  # not the numbers of with_words
        magnitude = phantom.rician(image / np.float32(255), random.uniform(*NOISE), random)
        spoilt[i] = np.rint(magnitude.clip(0, 1) * 255)
    return spoilt


def coarse(images: np.ndarray) -> np.ndarray:
    """Each pixel the mean of the COARSE x COARSE that it lies in, as a scan of so much larger voxels has it. Raises
    UserError."""
    n, c, h, w = images.shape
    if h % COARSE or w % COARSE:
        raise UserError(f"--source coarse: --image-size {h} {w} must be multiples of {COARSE}")
    blocks = images.reshape(n, c, h // COARSE, COARSE, w // COARSE, COARSE).mean((3, 5))
    return np.rint(blocks).astype(np.uint8).repeat(COARSE, axis=2).repeat(COARSE, axis=3)


def turned_round(data: Slices, sees: bool) -> Slices:
    """Segmentation by diffusion (Wolleb et al. 2021, arXiv:2112.03145): x_0 is the mask, black and white, and the image
    its source; or, if it never sees one, masks alone are drawn. Raises UserError."""
    if data.masks is None:
        raise UserError("--segment draws masks, and this data has none")
    if len(data.classes) != 2:
        remedy = "make them one, in masks of 0 and 255"
        raise UserError(f"--segment draws masks of two classes, and these have {', '.join(data.classes)}; {remedy}")
    vocabulary = replace(data.vocabulary, classes=(), values=(), source=("image",) if sees else ())
    masks = (data.masks * np.uint8(255))[:, None]
    return replace(data, images=masks, masks=None, source=data.images if sees else None, vocabulary=vocabulary)


def with_words(data: Slices, lesions: np.ndarray, config, split: str) -> Slices:
    """Each image described; lesions: (N, H, W) bool. What is trained on has nothing of the combinations that are held
    out, and of each description some parts at random: a prompt need not say all. Raises UserError."""
    found = [
        descriptions.describe(lesion, phantom.CONTRASTS[i])
        for lesion, i in zip(lesions, contrasts_of(data), strict=True)
    ]
    if split == "train":
        kept = np.array([not descriptions.held_out(one) for one in found])
        data, found = data.part(kept), [one for one, keep in zip(found, kept, strict=True) if keep]
    texts = [descriptions.text(descriptions.some(one, generator(0, i))) for i, one in enumerate(found)]
    if not config.text_embeddings:
        vocabulary = replace(data.vocabulary, words=descriptions.WORDS)
        return replace(data, words=vocabulary.numbers(texts), vocabulary=vocabulary)
    vectors = read_embeddings(config.text_embeddings).of(texts)
    return replace(data, words=vectors, vocabulary=replace(data.vocabulary, vectors=vectors.shape[1]))


def contrasts_of(data: Slices) -> list[int]:
    """The index into phantom.CONTRASTS of each image."""
    names = data.vocabulary.labels["contrast"]
    return [phantom.CONTRASTS.index(names[i - 1]) for i in data.labels["contrast"]]
