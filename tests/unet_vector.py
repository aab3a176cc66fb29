"""What an independent network answers, so that ours can be held against it where the other is not installed.

The other is UNet2DModel of diffusers 0.42.1, configured as its ddpm-cifar10-32, the network of Ho et al. 2020. Weights
are drawn by a rule. `make parity` gives both networks these weights and fails if VECTOR is not what they answer.
"""

import numpy as np
import torch

from ddpm.conditions import Vocabulary
from ddpm.model import make_unet
from ddpm.runtime.config import PRESETS, Config
from ddpm.unet import UNet


def ho_network() -> UNet:
    """The network of `--preset ho` without masks; Ho's CIFAR-10 has three channels. In eval mode, weights drawn."""
    with torch.device("meta"):  # no time lost on weights that are replaced
        unet = make_unet(Config(**PRESETS["ho"], image_channels=3), Vocabulary())
    unet.load_state_dict(drawn_weights(unet.state_dict()), assign=True)
    return unet.eval()


def answer(unet: UNet, x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The network's answer without a condition."""
    return unet(x_t, t)


def drawn_weights(state: dict) -> dict:
    """New values for a state dict, name by name in sorted order, all uniform and from one generator.

    Weights of layers have variance 2 / fan-in; the norms' scales lie in [0.5, 1.5] and all other vectors in
    [-0.5, 0.5], so that nothing is a neutral 0 or 1 whose omission would go unnoticed.
    """
    rng, drawn = np.random.default_rng(2020_06_19), {}
    for name in sorted(state):
        shape = tuple(state[name].shape)
        values = rng.random(shape, dtype=np.float32) - np.float32(0.5)
        if len(shape) > 1:
            values *= np.float32((24 / np.prod(shape[1:])) ** 0.5)
        elif "norm" in name and name.endswith("weight"):
            values += 1
        drawn[name] = torch.from_numpy(values)
    return drawn


def fixed_input() -> tuple[torch.Tensor, torch.Tensor]:
    """x_t (1, 3, 32, 32) and t (1,): noise over a brightness that rises from the upper left to the lower right."""
    y, x = np.mgrid[0:32, 0:32] / 31
    noise = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32))
    return torch.from_numpy(noise + x + 2 * y - 1.5).float()[None], torch.tensor([300])


VECTOR = [  # every 8th pixel, both ways, of the answer to fixed_input(), channel by channel
    *(-0.9540632, 0.1716892, -0.3015094, -0.1219717, -0.1412573, -0.9872562, -2.193195, -0.3925851),
    *(-0.4322155, -1.49538, -3.200146, -1.16459, -0.3201013, -0.3896253, -0.8723651, -1.359809),
    *(0.3211674, 0.7195964, -0.1353633, 0.7060224, 0.07463564, 1.072043, 0.5771961, 0.6807826),
    *(0.126492, 0.7186068, 1.584885, 1.667426, 0.2484127, 1.335433, 0.9289679, 1.554251),
    *(-0.1594666, -1.469615, -0.3517942, -0.2893462, -0.6381201, -0.6240703, -0.8836821, 0.6631),
    *(-0.9640355, 0.1887904, -0.3761211, 0.1542867, -0.1681108, -0.1932111, -0.1838355, -0.695787),
]
