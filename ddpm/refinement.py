"""A trained network made better by what it draws: direct discriminative optimisation (Zheng et al. 2025, arXiv:2503.01103).

A network that has not learnt everything draws images that can be told from real ones. What could best tell them knows how
much more likely an image x is to be real than to be drawn: d(x) = p(x) / (p(x) + p_ref(x)), where p_ref is the density of
what the network draws (Goodfellow et al. 2014, arXiv:1406.2661, Proposition 1). Read it the other way round: a copy of the
network, with a density p_theta of its own, tells them by d(x) = sigmoid(log p_theta(x) / p_ref(x)). If that is trained as
a discriminator is,

    L = - log d(x_0) - log(1 - d(x_drawn))

where the network that the copy was made of, the reference, stays and draws, then it is best where p_theta = p: what
learns to tell the two kinds apart is what shall draw the real one. There is no second network to be trained.

How likely an image is a diffusion model says by its errors at all times (the paper's Eq. 5, the bound in likelihood.py):
the smaller they are, the likelier. A look at one time estimates it:

    log p_theta(x) / p_ref(x)  ~  SCALE * sum over pixels (error of the reference - error of the copy)

both of the same x_t. So the copy learns to err less on real images, and more on drawn ones, until it can tell a pair, and
no further. A real image and a drawn one of the same condition are looked at under the same noise: what tells them apart is
then not drowned by what is easy or hard at that time, under that noise, or about that mask.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm.conditions import Condition
from ddpm.data.images import to_float, to_uint8
from ddpm.forward import denoising_loss
from ddpm.model import Model, Sampling, draw
from ddpm.runtime.config import Config

LOOKS = 4  # at a pair, each at another time: to draw an image costs as much as about five of them
# The smaller, the farther the copy may go from the reference. (In the bound itself the weights of errors in v add up to
# 5.5 over all times of the cosine schedule.)
SCALE = 0.75


def discriminative_loss(
    unet, reference: Model, config: Config, x_0: Tensor, t: Tensor, eps: Tensor, condition: Condition, seeds: Sequence
) -> Tensor:
    """-log d(x_0) - log(1 - d(x_drawn)) for B pairs, at LOOKS times each: (N, B) float32, 2 log 2 for an equal copy.

    x_0 (B, C, H, W) and its condition; t (N, B); eps (N, B, C, H, W); B seeds, of what the reference draws for the same
    condition, as it draws by default.
    """
    (N, B), schedule = t.shape, reference.schedule
    *_, (_, drawn) = draw(reference, condition, seeds, Sampling(precision=config.precision))
    drawn = to_float(to_uint8(drawn)).to(x_0)  # real ones have 256 grey levels too, which low noise would tell
    pairs = torch.stack([x_0, drawn]).expand(N, -1, -1, -1, -1, -1).flatten(0, 2)  # (N 2 B, C, H, W)
    times, noise = (x[:, None].expand(N, 2, *x.shape[1:]).flatten(0, 2) for x in (t, eps))
    of_both = condition[torch.arange(B, device=x_0.device).repeat(2 * N)]

    def errors(network) -> Tensor:
        return denoising_loss(schedule, network, config.objective, pairs, times, noise, of_both) * x_0[0].numel()

    log_ratio = SCALE * (errors(reference.unet) - errors(unet)).view(N, 2, B)
    of_real, of_drawn = log_ratio.unbind(dim=1)
    return F.softplus(-of_real) + F.softplus(of_drawn)  # softplus(-x) = -log sigmoid(x)
