"""A checkpoint of version 1 still gives the samples that it gave.

data/version_1.pt and the samples beside it were written by the last program of version 1 (commit 2ccdfe2): `--preset
tiny --channels 4 --mults 1 1 --patch 1 --image-size 16 --labels tissue --min-snr 5 --lr 0.01 --seed 5 --minutes 1
--precision fp32`, 40 steps, its weights then shaken so that every part of the network is heard. On the machine that wrote
them not a pixel differs; another processor may round a few to the neighbouring grey level.
"""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample

DATA = Path(__file__).parent / "data"
MASK = str(Path(sample.__file__).parent / "examples" / "masks" / "tissue" / "large_left.png")
DDIM = ["--sampler", "ddim", "--sample-steps", "20"]  # what version 1 had of it; its dpm-solver ended otherwise
RUNS = {
    "masked": ("large_left", ["--mask", MASK, "--n", "3", *DDIM]),
    "unconditional": ("unconditional", ["--n", "2", "--contrast", "none", *DDIM]),
    "ancestral": (
        "large_left",
        ["--mask", MASK, "--n", "2", "--contrast", "FLAIR", "--weights", "raw"]
        + ["--sampler", "ancestral", "--sample-steps", "20", "--guidance", "1"],
    ),
}


@pytest.mark.parametrize("run", RUNS)
def test_the_samples_of_version_1(run, tmp_path):
    name, flags = RUNS[run]
    if "--mask" in flags and "--guidance" not in flags:  # what was the default
        flags = [*flags, "--guidance", "1.5", "--guided", "mask", "--guidance-interval", "0", "1"]
    flags = ["--ckpt", str(DATA / "version_1.pt"), "--precision", "fp32", *flags]
    assert sample.main([*flags, "--out", str(tmp_path)]) == 0
    with np.load(DATA / "version_1_samples.npz") as stored:
        expected = stored[run].astype(int)
    drawn = np.stack([np.asarray(Image.open(tmp_path / f"{name}_{k}.png")) for k in range(len(expected))])
    difference = np.abs(drawn - expected)
    assert difference.max() <= 1 and (difference > 0).mean() <= 0.01
