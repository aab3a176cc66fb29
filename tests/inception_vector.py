"""What the reference network answers, so that ours can be held against it where the reference is not installed.

The usual weights are too large to commit, so weights are drawn by a rule. `make parity` computes FINGERPRINT,
FEATURES and LOGITS again with the network of pytorch-fid 0.3.0, from which they were taken, and fails if they differ.
"""

import hashlib

import numpy as np
import torch


def fingerprint(state: dict) -> str:
    """sha256 of the lines "name shape" of a state dict, sorted."""
    lines = sorted(f"{name} {tuple(values.shape)}" for name, values in state.items())
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def drawn_weights(state: dict) -> dict:
    """New values for a state dict: name by name in sorted order, all from one generator.

    Weights of convolutions and of the last layer are normal with variance 2 / fan-in, so that the signal neither
    dies nor explodes; the norms' scales and variances are uniform in [0.8, 1.2]; all other vectors are normal with
    deviation 0.1, so that nothing is a neutral 0 or 1 whose omission would go unnoticed.
    """
    rng, drawn = np.random.default_rng(2015_12_05), {}
    for name in sorted(state):
        shape = tuple(state[name].shape)
        if name.endswith("num_batches_tracked"):
            drawn[name] = torch.tensor(0)
            continue
        values = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) > 1:
            values *= np.float32((2 / np.prod(shape[1:])) ** 0.5)
        elif name.endswith(("bn.weight", "running_var")):
            values = rng.uniform(0.8, 1.2, shape).astype(np.float32)
        else:
            values *= np.float32(0.1)
        drawn[name] = torch.from_numpy(values)
    return drawn


def fixed_image() -> torch.Tensor:
    """(1, 3, 96, 80) in [0, 1]: smooth waves of three colours with noise on top."""
    y, x = np.mgrid[0:96, 0:80] / 16.0
    waves = np.stack([np.sin(x + y), np.cos(2 * x - y), np.sin(3 * y)]) * 0.4 + 0.5
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, waves.shape)
    return torch.from_numpy(waves + noise).float()[None]


FINGERPRINT = "760681d791cb624e1bf7a2e802a68933dd17aa5e3109fcf498d9dfa521bc10d7"
FEATURES = [  # every 128th of the 2048
    *(0.92452419, 0.0, 0.41467032, 0.0065115653, 0.0, 0.15335304, 0.95917034, 2.3961391),
    *(0.0, 1.0039721, 0.68543386, 0.41170248, 0.12031864, 0.0018633822, 0.28093264, 0.031241534),
]
LOGITS = [  # every 144th of the 1008, without the bias
    *(-0.44114095, 0.75513834, -0.36486387, 1.5387698, 1.4604979, 0.81294262, -0.23741074),
]
