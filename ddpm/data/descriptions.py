"""What the embedded data's images show, in words: "axial FLAIR, large lesion, left frontal".

Left is the patient's left, which the image shows on its right (the radiological convention of phantom.py). Everything is
read off the lesion's pixels in the slice, by these rules:

    side    left or right: three quarters of its area lie there; else midline
    region  where its middle lies, in mm from the image's middle: frontal, over 25 in front; posterior, over 35 behind;
            else central, under 28 to either side, or lateral
    size    its area: small, under 370 mm^2; large, 790 mm^2 or more; else medium (a third of all lesions each)
"""

import itertools
import re
import zlib
from collections.abc import Mapping, Sequence

import numpy as np

from ddpm.conditions import split_words
from ddpm.data.phantom import CONTRASTS, FOV

# What can be said, and the words for it.
PARTS = {
    "contrast": CONTRASTS,
    "presence": ("lesion", "no lesion"),
    "size": ("small", "medium", "large"),
    "side": ("left", "right", "midline"),
    "region": ("frontal", "central", "lateral", "posterior"),
}
WORDS = ("axial", *dict.fromkeys(word for values in PARTS.values() for value in values for word in split_words(value)))
SMALL, LARGE = 370.0, 790.0  # mm^2
MOSTLY = 0.75
KEPT = 0.85  # probability of each part in a description that is learnt from
HELD_OUT = 8  # one combination of so many


def describe(lesion: np.ndarray, contrast: str | None = None) -> dict[str, str]:
    """The lesion's pixels (H, W) bool, and the contrast if it is known -> what to say: part -> value."""
    said = {"contrast": contrast} if contrast else {}
    if not lesion.any():
        return {**said, "presence": "no lesion"}
    height, width = lesion.shape
    pixel = FOV / min(height, width)
    v, u = ((np.argwhere(lesion) - [(height - 1) / 2, (width - 1) / 2]) * pixel).T  # mm downwards, to the right
    area, on_the_right = len(u) * pixel**2, (np.sign(u).mean() + 1) / 2  # of the image, the patient's left
    size = "small" if area < SMALL else "large" if area >= LARGE else "medium"
    side = "left" if on_the_right >= MOSTLY else "right" if on_the_right <= 1 - MOSTLY else "midline"
    if v.mean() < -25:
        region = "frontal"
    elif v.mean() > 35:
        region = "posterior"
    else:
        region = "central" if abs(u.mean()) < 28 else "lateral"
    return {**said, "presence": "lesion", "size": size, "side": side, "region": region}


def text(said: Mapping[str, str]) -> str:
    """{"contrast": "T1", "presence": "lesion", "side": "left"} -> "axial T1, lesion, left"."""
    first = " ".join(["axial", *[said[part] for part in ("contrast",) if part in said]])
    second = " ".join(said[part] for part in ("size", "presence") if part in said)
    third = " ".join(said[part] for part in ("side", "region") if part in said)
    return ", ".join(phrase for phrase in (first, second, third) if phrase)


def some(said: Mapping[str, str], random: np.random.Generator) -> dict[str, str]:
    """The same with each part left out now and then. Without "lesion", nothing is said of where it is."""
    kept = {part: value for part, value in said.items() if random.random() < KEPT}
    return kept if "presence" in kept else {part: value for part, value in kept.items() if part == "contrast"}


def all_said() -> list[dict[str, str]]:
    """Everything that `some` can leave to say."""
    choices = {part: (None, *values) for part, values in PARTS.items()}
    every = (dict(zip(PARTS, values, strict=True)) for values in itertools.product(*choices.values()))
    without = ({part: value for part, value in said.items() if value} for said in every)
    return [
        said for said in without if said.get("presence") == "lesion" or not {"size", "side", "region"} & said.keys()
    ]


def held_out(said: Mapping[str, str]) -> bool:
    """Whether this combination of contrast, size, side and region is kept out of training on words."""
    return "size" in said and zlib.crc32(text(said).encode()) % HELD_OUT == 0


def combinations_held_out() -> list[dict[str, str]]:
    return [said for said in all_said() if len(said) == len(PARTS) and held_out(said)]


def asked(prompt: str) -> dict[str, list[str]]:
    """What a prompt asks for: part -> values in its order, more than one where it contradicts itself."""
    words = split_words(prompt)
    found = {part: [value for value in values if value.lower() in words] for part, values in PARTS.items()}
    found = {part: sorted(values, key=lambda value: words.index(value.lower())) for part, values in found.items()}
    if "no" in words:
        found["presence"] = ["no lesion"] if "lesion" in words else []
    return {part: values for part, values in found.items() if values}


def contradictions(prompt: str, others: Sequence[tuple[str, Mapping[str, str]]]) -> list[str]:
    """Where a prompt contradicts itself, or what else is asked for: by name, such as "the mask", what it says."""
    wanted = asked(prompt)
    found = [f"the prompt says {' and '.join(values)}" for values in wanted.values() if len(values) > 1]
    if wanted.get("presence") == ["no lesion"] and (where := [p for p in ("size", "side", "region") if p in wanted]):
        found.append(f"the prompt says no lesion, and {wanted[where[0]][0]}")
    for side, other in (("left", "right"), ("right", "left")):
        if re.search(rf"{side}( side)? of the image|image('s)? {side}", prompt.lower()):
            found.append(f"the prompt says {side} of the image, but sides are the patient's: it is the image's {other}")
    for name, said in others:
        for part in wanted.keys() & said.keys():
            if said[part] not in wanted[part]:
                found.append(f"the prompt says {' and '.join(wanted[part])}, {name} {said[part]}")
    return found
