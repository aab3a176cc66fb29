"""Muon: gradient descent whose steps move a weight matrix equally far in every direction.

Jordan et al. 2024 (kellerjordan.github.io/posts/muon). The momentum G = U S V^T of a weight matrix is replaced by the
orthogonal matrix nearest to it, U V^T: so directions in which gradients are small learn as fast as the others. A
convolution's weight counts as the matrix (C_out, C_in * h * w) that it applies to each patch of its input.
"""

from collections import defaultdict

import torch
from torch import Tensor

MOMENTUM = 0.95
# s <- a s + b s^3 + c s^5 brings singular values of 0.003 to 1 to 0.68 .. 1.20 in five rounds; a is the slope at 0.
A, B, C = 3.4445, -4.7750, 2.0315
ROUNDS = 5


def orthogonal(G: Tensor) -> Tensor:
    """The matrix with G's singular vectors and singular values near 1; (..., m, n) float32, each matrix by itself.

    Newton-Schulz: X <- (a I + b X X^T + c (X X^T)^2) X. All rounds are polynomials of one Gram matrix X X^T, of the
    shorter side, so the rounds multiply small square matrices and the long side is touched twice only.
    """
    if G.shape[-2] > G.shape[-1]:
        return orthogonal(G.mT).mT
    X = G / (G.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # no singular value is above 1
    gram = X @ X.mT
    eye = torch.eye(gram.shape[-1], device=G.device)
    product = eye
    for _ in range(ROUNDS):
        factor = A * eye + B * gram + C * gram @ gram
        product = factor @ product
        gram = factor @ gram @ factor  # of the next X; all of these commute, and are symmetric
    return product @ X


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised. For weights of two or more dimensions.

    A group may say `parts`, as how many matrices stacked by rows its weights count (3 for q, k and v in one layer).
    weight_decay: W <- (1 - lr * weight_decay) W before each step, as in AdamW (Liu et al. 2025, arXiv:2502.16982,
    section 2.2). All steps have one length and point anywhere, so weights would grow, and the same step turn them less
    and less; where a norm follows, nothing but their direction counts.
    """

    def __init__(self, params, lr: float, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "parts": 1, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        alike = defaultdict(list)  # matrices of one size become orthogonal together: a GPU starts each product anew
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                momentum = state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
                ahead = weight.grad.lerp(momentum, MOMENTUM)
                matrices = ahead.reshape(group["parts"], weight.shape[0] // group["parts"], -1).float()
                alike[matrices.shape].append((weight, group["lr"], matrices))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
        for (_, m, n), found in alike.items():
            weights, rates, matrices = zip(*found, strict=True)
            # A tall matrix has fewer singular values than rows: the factor keeps the size of a row's change.
            updates = orthogonal(torch.stack(matrices)).mul_(max(1, m / n) ** 0.5)
            for weight, lr, update in zip(weights, rates, updates, strict=True):
                weight.sub_(update.reshape(weight.shape).to(weight), alpha=lr)
