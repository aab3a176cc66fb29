"""Inception-V3 as the Frechet Inception Distance uses it.

The network: Szegedy et al. 2015, "Rethinking the Inception Architecture", arXiv:1512.00567. FID (Heusel et al. 2017,
arXiv:1706.08500) and KID compare images by the 2,048 numbers that this network, trained to name photographs, holds
before its last layer. Scores agree with published ones only if the network is the same down to its oddities, which
come from a TensorFlow file of 2015-12-05. The port of that file by mseitzer/pytorch-fid loads here, name by name
(hence the names of the layers), and the oddities are kept:

    input          resized to 299x299, bilinear without antialiasing, then [0, 1] -> [-1, 1]; no ImageNet mean
    average pools  divide by the pixels inside the image, not by 9
    last block     takes a maximum where the other blocks average
    batch norm     eps is 0.001
    classes        1008, of which ImageNet fills 1000

Photographs taught it what matters in an image. For MRI, read its scores as a habit of the field, not as the truth.
"""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.runtime.files import reading

WEIGHTS_FILE = "pt_inception-2015-12-05-6726825d.pth"
WHERE = f'{WEIGHTS_FILE} is usually found in the GitHub release "fid_weights" of mseitzer/pytorch-fid'


def to_rgb(images: np.ndarray | Tensor) -> Tensor:
    """uint8 (N, C, H, W), C = 1 or 3 -> float32 (N, 3, H, W) in [0, 1]; grey is repeated. Raises ValueError."""
    images = torch.as_tensor(images)
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, not uint8 (N, 1 or 3, H, W)")
    return (images.float() / 255).expand(-1, 3, -1, -1)


def prepare(images: Tensor) -> Tensor:
    """float (B, 3, H, W) in [0, 1] -> (B, 3, 299, 299) in [-1, 1].

    Bilinear between pixel centres, without antialiasing: of a large image, most pixels are never looked at.
    """
    x = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False, antialias=False)
    return 2 * x - 1


average_pool = partial(F.avg_pool2d, kernel_size=3, stride=1, padding=1, count_include_pad=False)
max_pool = partial(F.max_pool2d, kernel_size=3, stride=1, padding=1)
halve = partial(F.max_pool2d, kernel_size=3, stride=2)


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU. Stride 1 keeps the size unless padding says otherwise; stride 2 does not pad.

    The norm always uses its stored statistics, even if someone calls train(): features must not depend on the batch.
    Then it is a fixed scale and shift of each channel, and can be put into the convolution's own weights.
    """

    def __init__(self, c_in: int, c_out: int, size: int | tuple[int, int], stride: int = 1, padding=None):
        super().__init__()
        size = (size, size) if isinstance(size, int) else size
        if padding is None:
            padding = (size[0] // 2, size[1] // 2) if stride == 1 else 0
        self.conv = nn.Conv2d(c_in, c_out, size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.bn.weight / (self.bn.running_var + self.bn.eps).sqrt()
        shift = self.bn.bias - self.bn.running_mean * scale
        weight = self.conv.weight * scale[:, None, None, None]
        return F.relu_(F.conv2d(x, weight, shift, self.conv.stride, self.conv.padding))


class Mixed(nn.Module):
    """Parallel branches over one input, their outputs joined over the channels.

    pool      what "branch_pool" begins with
    branches  name -> the convolutions of that branch in a row, each (channels, size) or (channels, size, stride).
              A list of two in the last place is a fork: both are applied, side by side.
    """

    def __init__(self, c_in: int, pool, branches: dict[str, list]):
        super().__init__()
        self.pool = pool
        self.paths = {}  # name of a branch -> for each step the names of its layers: one, or two at a fork
        for branch, steps in branches.items():
            c, self.paths[branch] = c_in, []
            for number, step in enumerate(steps, start=1):
                name = branch if len(steps) == 1 else f"{branch}_{number}"
                layers = {name + "a": step[0], name + "b": step[1]} if isinstance(step, list) else {name: step}
                for layer, (c_out, *shape) in layers.items():
                    self.add_module(layer, ConvNorm(c, c_out, *shape))
                self.paths[branch].append(tuple(layers))
                c = c_out

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for branch, path in self.paths.items():
            y = [self.pool(x) if branch == "branch_pool" else x]
            for layers in path:
                y = [self.get_submodule(layer)(y[0]) for layer in layers]
            outputs += y
        return torch.cat(outputs, dim=1)


def mixed_a(c_in: int, c_pool: int) -> Mixed:
    """The paper's figure 5, at 35x35; these weights have a 5x5 where the figure has its lone 3x3."""
    branches = {
        "branch1x1": [(64, 1)],
        "branch5x5": [(48, 1), (64, 5)],
        "branch3x3dbl": [(64, 1), (96, 3), (96, 3)],
        "branch_pool": [(c_pool, 1)],
    }
    return Mixed(c_in, average_pool, branches)


def mixed_b(c_in: int) -> Mixed:
    """35x35 -> 17x17 (figure 10)."""
    branches = {"branch3x3": [(384, 3, 2)], "branch3x3dbl": [(64, 1), (96, 3), (96, 3, 2)], "branch_pool": []}
    return Mixed(c_in, halve, branches)


def mixed_c(c_in: int, c: int) -> Mixed:
    """Figure 6, at 17x17: a 7x7 is a 1x7 and a 7x1."""
    wide, tall = (1, 7), (7, 1)
    branches = {
        "branch1x1": [(192, 1)],
        "branch7x7": [(c, 1), (c, wide), (192, tall)],
        "branch7x7dbl": [(c, 1), (c, tall), (c, wide), (c, tall), (192, wide)],
        "branch_pool": [(192, 1)],
    }
    return Mixed(c_in, average_pool, branches)


def mixed_d(c_in: int) -> Mixed:
    """17x17 -> 8x8."""
    branches = {
        "branch3x3": [(192, 1), (320, 3, 2)],
        "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 3, 2)],
        "branch_pool": [],
    }
    return Mixed(c_in, halve, branches)


def mixed_e(c_in: int, pool) -> Mixed:
    """Figure 7, at 8x8: two branches end in a 1x3 beside a 3x1."""
    fork = [(384, (1, 3)), (384, (3, 1))]
    branches = {
        "branch1x1": [(320, 1)],
        "branch3x3": [(384, 1), fork],
        "branch3x3dbl": [(448, 1), (384, 3), fork],
        "branch_pool": [(192, 1)],
    }
    return Mixed(c_in, pool, branches)


class Inception(nn.Module):
    """float32 (B, 3, H, W) in [0, 1], any size -> features (B, 2048) float32.

    The weights are random until a file is loaded (`load_inception`). They are never trained here: no gradients, and
    no difference between train() and eval(). Images and weights are laid out channels_last, which is faster on a CPU.
    Under torch.autocast in bf16 only the convolutions lose precision (benchmarks/fid.py prints what it does to FID).
    """

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3, padding=0)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3, padding=0)
        self.Mixed_5b = mixed_a(192, 32)
        self.Mixed_5c = mixed_a(256, 64)
        self.Mixed_5d = mixed_a(288, 64)
        self.Mixed_6a = mixed_b(288)
        self.Mixed_6b = mixed_c(768, 128)
        self.Mixed_6c = mixed_c(768, 160)
        self.Mixed_6d = mixed_c(768, 160)
        self.Mixed_6e = mixed_c(768, 192)
        self.Mixed_7a = mixed_d(768)
        self.Mixed_7b = mixed_e(1280, average_pool)
        self.Mixed_7c = mixed_e(2048, max_pool)
        self.fc = nn.Linear(2048, 1008)
        self.to(memory_format=torch.channels_last).requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Features (B, 2048) of images float (B, 3, H, W) in [0, 1]. Raises ValueError for anything else.

        Their product with fc.weight are the logits (B, 1008) that the Inception Score takes, without fc's bias (Salimans
        et al. 2016, arXiv:1606.03498).
        """
        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}, not float (B, 3, H, W); see to_rgb")
        low, high = images.aminmax()
        if not (low >= 0 and high <= 1):  # written so that NaN is refused too
            raise ValueError(f"images lie in [{low:.3g}, {high:.3g}], not in [0, 1]; see to_rgb")
        x = prepare(images).contiguous(memory_format=torch.channels_last)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # (B, 64, 147, 147)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halve(x)))  # (B, 192, 71, 71)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(halve(x))))  # (B, 288, 35, 35)
        x = self.Mixed_6a(x)  # (B, 768, 17, 17)
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # (B, 2048, 8, 8)
        return x.float().mean(dim=(2, 3))


def load_inception(path: str | Path) -> Inception:
    """The network with the weights of the usual file. It is never fetched. Raises UserError in one line if the file is
    missing, damaged or another network's."""
    missing = f"no such weights file; {WHERE}, and --features segmenter needs no file"
    with reading(path, "the weights of this network", WHERE, missing):
        weights = torch.load(path, map_location="cpu", weights_only=True)  # runs no code that is in the file
        inception = Inception()
        inception.load_state_dict(weights)
        if not all(values.isfinite().all() for values in inception.state_dict().values()):
            raise ValueError("some are not finite")
    return inception
