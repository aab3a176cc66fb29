"""Imports torchvision, which pytorch-fid needs, also beside a CPU build of PyTorch.

Package registries ship torchvision compiled for CUDA. Beside a CPU build of PyTorch its compiled part cannot be
loaded, and the import fails for want of two operators' names. Giving it the names is enough: the networks are plain
PyTorch, and nobody here calls the operators.
"""

import sys

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # what the failed import left behind
    import torchvision  # noqa: F401
