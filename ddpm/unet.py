"""The network: unet(x_t, t, condition) is eps_hat, or x_0_hat or v_hat if asked so (the paper's appendix B).

A U-Net halves the image level by level and comes back up, taking along what it saw at each size.
Residual blocks do the work, the time t enters each of them, and self-attention on the small
levels lets distant places agree. The condition enters in two places: a mask and a source image beside x_t, as extra input
channels, and labels and words with the time.
"""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ddpm.conditions import Condition, Vocabulary


def time_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoids of t (B,), (B, dim) float32: [sin | cos] of dim / 2 frequencies from 1 to 1/10,000.

    Vaswani et al. 2017, section 3.5, in Ho's arrangement. Never in bf16, where 998 and 999 are the same number.
    """
    half = dim // 2
    freq = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, device=t.device))
    angle = t.float()[:, None] * freq[None, :]
    return F.pad(torch.cat([angle.sin(), angle.cos()], dim=1), (0, dim % 2))  # an odd dim ends in a 0


def norm(channels: int, lean: bool = False) -> nn.GroupNorm:
    """GroupNorm with Ho's 32 groups, or fewer where a group would have under 4 channels; under 16 if lean.

    With one channel a group, subtracting the mean would subtract all that the time embedding adds. And with under 16,
    its backward pass is 10 to 50 times slower on a CPU in the layout that lean networks compute in.
    """
    least = 16 if lean else 4
    groups = next(n for n in (32, 16, 8, 4, 2, 1) if channels % n == 0 and (channels >= least * n or n == 1))
    return nn.GroupNorm(groups, channels, eps=1e-6)


def conv(c_in: int, c_out: int, size: int = 3, stride: int = 1, scale: float = 1.0) -> nn.Conv2d:
    """A convolution with Ho's initialisation: variance scaling, fan_avg, uniform; zero if scale is 0.

    Last layers start at zero, so that each block begins as its shortcut and the network answers 0.
    """
    layer = nn.Conv2d(c_in, c_out, size, stride, padding=size // 2 if stride == 1 else 0)
    nn.init.xavier_uniform_(layer.weight)
    layer.weight.data *= scale
    nn.init.zeros_(layer.bias)
    return layer


def linear(c_in: int, c_out: int) -> nn.Linear:
    layer = nn.Linear(c_in, c_out)
    nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """Two convolutions beside a shortcut, and the time embedding in between.

    The paper adds it before the second normalisation. A lean block scales and shifts by it after that (Dhariwal &
    Nichol 2021, arXiv:2105.05233, section 3.1), where no mean is subtracted any more.
    """

    def __init__(self, c_in: int, c_out: int, c_time: int, dropout: float, lean: bool = False):
        super().__init__()
        self.lean = lean
        self.norm_1, self.conv_1 = norm(c_in, lean), conv(c_in, c_out)
        self.time = linear(c_time, 2 * c_out if lean else c_out)
        self.norm_2, self.conv_2 = norm(c_out, lean), conv(c_out, c_out, scale=0)
        self.dropout = nn.Dropout(dropout)
        self.shortcut = conv(c_in, c_out, size=1) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.conv_1(F.silu(self.norm_1(x)))  # (B, c_out, H, W)
        time = self.time(time)[:, :, None, None]
        if self.lean:
            scale, shift = time.chunk(2, dim=1)
            h = torch.addcmul(shift, self.norm_2(h), 1 + scale)
        else:
            h = self.norm_2(h + time)
        return self.shortcut(x) + self.conv_2(self.dropout(F.silu(h)))


class Attention(nn.Module):
    """Single-head self-attention over all places of a feature map, with a residual connection."""

    def __init__(self, channels: int, lean: bool = False):
        super().__init__()
        self.norm = norm(channels, lean)
        self.qkv = conv(channels, 3 * channels, size=1)
        for weight in self.qkv.weight.data.chunk(3):  # Ho's q, k and v are three layers, each initialised by itself
            nn.init.xavier_uniform_(weight)
        self.out = conv(channels, channels, size=1, scale=0)

    def forward(self, x: Tensor) -> Tensor:
        height = x.shape[2]
        # PyTorch's fused attention, which keeps no (h w) x (h w) matrix, wants the channels of a place side by side.
        h = self.norm(x).contiguous(memory_format=torch.channels_last)
        q, k, v = rearrange(self.qkv(h), "b (three c) h w -> three b 1 (h w) c", three=3)
        h = F.scaled_dot_product_attention(q, k, v)  # softmax(q k^T / sqrt(c)) v
        return x + self.out(rearrange(h, "b 1 (h w) c -> b c h w", h=height))


class Down(nn.Module):
    """Halve height and width by a strided convolution, padded on the right and bottom as in Ho's network."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Up(nn.Module):
    """Double height and width by repeating pixels, then a convolution."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.conv = conv(c_in, c_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Words(nn.Module):
    """Prompts -> what is added to the time embedding, (B, c_time): indices of words (B, L) through embeddings of our own,
    or vectors (B, D) that another program made of the texts, through two layers. Of words the sum counts, not their order.

    A word has a row of its own, as a label's value has. (Behind a layer that all words share, one step moves all of them
    together, and what tells one from the other is not learnt.)
    """

    def __init__(self, words: int, vectors: int, c_time: int):
        super().__init__()
        self.table = None if vectors else nn.Embedding(words + 1, c_time, padding_idx=0)  # 0: no word
        if vectors:
            self.layer_1, self.layer_2 = linear(vectors, c_time), linear(c_time, c_time)
            nn.init.zeros_(self.layer_2.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is not None:
            return self.table(x).sum(dim=1)
        return self.layer_2(F.silu(self.layer_1(x)))


class Stage(nn.Module):
    """One residual block, followed by attention where the level has it."""

    def __init__(self, c_in: int, c_out: int, c_time: int, dropout: float, attention: bool, lean: bool):
        super().__init__()
        self.block = ResBlock(c_in, c_out, c_time, dropout, lean)
        self.attention = Attention(c_out, lean) if attention else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.attention(self.block(x, time))


def size_multiple(patch: int, mults) -> int:
    """Height and width of images must be multiples of this: the patch, halved again between the levels."""
    return patch * 2 ** (len(mults) - 1)


class UNet(nn.Module):
    """The network of the paper, with a condition.

    image_channels   C of the images
    vocabulary       what it can be asked for: K classes of masks, a source of S channels, labels, words; nothing is the
                     paper's network
    channels         after the first convolution; a level has channels * mults[level]
    mults            one entry a level; between two levels height and width are halved
    blocks           residual blocks a level on the way down (one more on the way up)
    attention        the levels with attention, counted from 0; the middle always has it
    patch            patch x patch pixels are folded into channels before the first level (1 is the paper's
                     network); at 2, a quarter of the places makes every layer about four times cheaper
    lean             three changes that learn more in equal time: norms of 16 channels or more a group, so that the
                     fast channels_last layout can be used; the time as scale and shift; and the way up narrows before
                     it joins the larger level, not after. False is the paper's network
    """

    def __init__(
        self,
        image_channels: int = 1,
        vocabulary: Vocabulary = Vocabulary(),  # noqa: B008 (it is frozen)
        channels: int = 128,
        mults: tuple[int, ...] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: tuple[int, ...] = (1,),
        patch: int = 1,
        dropout: float = 0.0,
        lean: bool = False,
    ):
        super().__init__()
        self.lean = lean
        self.image_channels, self.num_classes = image_channels, len(vocabulary.classes)
        self.source_channels = len(vocabulary.source)
        self.text_width = vocabulary.vectors
        self.channels, self.patch = channels, patch
        self.multiple = size_multiple(patch, mults)

        c_time = 4 * channels
        self.time_1, self.time_2 = linear(channels, c_time), linear(c_time, c_time)
        # Row 0 is the null label. Rows start as N(0, 1), so that the blocks can tell the values apart from the start.
        self.labels = nn.ModuleDict(
            {name: nn.Embedding(len(known) + 1, c_time) for name, known in vocabulary.labels.items()}
        )
        self.words, self.place_channels = None, 0
        if "words" in vocabulary.given:
            self.words, self.place_channels = Words(len(vocabulary.words), vocabulary.vectors, c_time), 2
        channels_in = image_channels + self.num_classes + self.source_channels + self.place_channels
        self.conv_in = conv(channels_in * patch**2, channels)

        c, skips = channels, [channels]
        self.down = nn.ModuleList()
        for level, mult in enumerate(mults):
            for _ in range(blocks):
                self.down.append(Stage(c, channels * mult, c_time, dropout, level in attention, lean))
                c = channels * mult
                skips.append(c)
            if level < len(mults) - 1:
                self.down.append(Down(c))
                skips.append(c)

        self.middle_1 = Stage(c, c, c_time, dropout, True, lean)
        self.middle_2 = Stage(c, c, c_time, dropout, False, lean)

        self.up = nn.ModuleList()
        for level, mult in reversed(list(enumerate(mults))):
            for _ in range(blocks + 1):
                self.up.append(Stage(c + skips.pop(), channels * mult, c_time, dropout, level in attention, lean))
                c = channels * mult
            if level > 0:
                narrowed = channels * mults[level - 1] if lean else c
                self.up.append(Up(c, narrowed))
                c = narrowed

        self.norm_out = norm(c, lean)
        self.conv_out = conv(c, image_channels * patch**2, scale=0)
        if lean:
            self.to(memory_format=torch.channels_last)

    def forward(self, x_t: Tensor, t: Tensor, condition: Condition = Condition()) -> Tensor:  # noqa: B008
        """x_t (B, C, H, W); t (B,) in 1 .. T; the answer is shaped like x_t.

        Raises ValueError if sizes do not fit, or if the condition holds what the network does not know.
        """
        self.check(x_t, t, condition)
        mask, source = condition.mask, condition.source
        if mask is None:
            mask = x_t.new_zeros(len(x_t), self.num_classes, *x_t.shape[2:])
        if source is None:
            source = x_t.new_zeros(len(x_t), self.source_channels, *x_t.shape[2:])
        time = self.embed(t, condition)  # (B, c_time)

        x = torch.cat([x_t, mask, source, self.places(x_t)], dim=1)  # (B, C + K + S, H, W), with words 2 more
        x = F.pixel_unshuffle(x, self.patch)
        if self.lean:  # every layer after this one keeps the layout
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv_in(x)  # (B, channels, H / patch, W / patch)
        skips = [x]
        for layer in self.down:
            x = layer(x) if isinstance(layer, Down) else layer(x, time)
            skips.append(x)
        x = self.middle_2(self.middle_1(x, time), time)
        for layer in self.up:
            x = layer(x) if isinstance(layer, Up) else layer(torch.cat([x, skips.pop()], dim=1), time)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch)

    def places(self, x_t: Tensor) -> Tensor:
        """How far right and how far down each pixel lies, -1 to 1, (B, 2, H, W); without words (B, 0, H, W).

        "Left" names a place, and a word enters all places alike: convolutions alone would have to learn from the image's
        edge where they are (Liu et al. 2018, arXiv:1807.03247).
        """
        B, _, H, W = x_t.shape
        right, down = (torch.linspace(-1, 1, n, device=x_t.device, dtype=x_t.dtype) for n in (W, H))
        both = torch.stack([right.expand(H, W), down[:, None].expand(H, W)])
        return both[: self.place_channels].expand(B, -1, -1, -1)

    def embed(self, t: Tensor, condition: Condition) -> Tensor:
        """The activated embedding of time, labels and words that every block takes in, (B, c_time) float32."""
        with torch.autocast(t.device.type, enabled=False):
            time = self.time_2(F.silu(self.time_1(time_embedding(t, self.channels))))
            for name, embedding in self.labels.items():
                time = time + embedding(condition.labels.get(name, torch.zeros_like(t)))
            if self.words is not None:
                words = condition.words
                if words is None:
                    words = time.new_zeros(len(t), self.text_width) if self.text_width else t.new_zeros(len(t), 1)
                time = time + self.words(words)
            return F.silu(time)

    def check(self, x_t: Tensor, t: Tensor, condition: Condition) -> None:
        """Raises ValueError, as `forward` says: what does not fit would be broadcast, or not heard."""
        B, C, H, W = x_t.shape
        if C != self.image_channels or H % self.multiple or W % self.multiple:
            raise ValueError(
                f"x_t is {tuple(x_t.shape)}; this network takes {self.image_channels} channel(s), "
                f"with height and width multiples of {self.multiple}"
            )
        if t.shape != (B,):
            raise ValueError(f"t is {tuple(t.shape)}, not {(B,)}: each image has a time")
        for name, given, channels in (
            ("mask", condition.mask, self.num_classes),
            ("source", condition.source, self.source_channels),
        ):
            if given is not None and given.shape != (B, channels, H, W):
                raise ValueError(f"{name} is {tuple(given.shape)}, not {(B, channels, H, W)} as x_t asks for")
        if (words := condition.words) is not None:
            fits = words.ndim == 2 and len(words) == B and words.is_floating_point() == bool(self.text_width)
            if self.words is None or not fits or self.text_width not in (0, words.shape[1]):
                wanted = f"vectors ({B}, {self.text_width})" if self.text_width else f"numbers ({B}, L)"
                wanted = "none" if self.words is None else wanted
                raise ValueError(f"words are {words.dtype} {tuple(words.shape)}; this network takes {wanted}")
        for name, label in condition.labels.items():
            if name not in self.labels or label.shape != (B,):
                raise ValueError(f"label {name!r} {tuple(label.shape)}: known are {list(self.labels)}, each ({B},)")
