"""The network of appendix B: size, shapes, conditions."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from unet_vector import VECTOR, answer, fixed_input, ho_network

from ddpm.conditions import Condition, Vocabulary
from ddpm.model import make_unet
from ddpm.runtime.config import PRESETS, Config
from ddpm.unet import Attention, ResBlock, UNet, conv, norm, time_embedding

KNOWN = Vocabulary(("background", "lesion"), {"contrast": ("T1", "T2", "FLAIR")})


def small(**changes):
    arguments = {"vocabulary": KNOWN, "channels": 8, "mults": (1, 2), "blocks": 1, "attention": (1,)}
    return UNet(**{**arguments, **changes})


def of_contrast(*numbers, mask=None):
    return Condition(mask, {"contrast": torch.tensor(numbers)})


def alive(unet):
    """Fill what starts at zero, or nothing could be told from the output."""
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return unet.eval()


def test_ho_preset_is_the_cifar10_network():
    """An independent implementation's size and, with the same weights, its answer."""
    unet = ho_network()
    assert sum(p.numel() for p in unet.parameters()) == 35_746_307
    with torch.no_grad():
        pixels = answer(unet, *fixed_input())[0, :, ::8, ::8].flatten()
    assert torch.allclose(pixels, torch.tensor(VECTOR), rtol=0, atol=3e-5)


def test_parameter_counts_of_smaller_networks():
    with torch.device("meta"):
        counts = [sum(p.numel() for p in UNet(channels=base).parameters()) for base in (32, 64)]
        paper = UNet()  # unless told otherwise, but for a grey image
    assert counts == [2_244_609, 8_949_761]
    assert sum(p.numel() for p in paper.parameters()) == 35_746_307 - 2 * 128 * 9 - 2 * (128 * 9 + 1)
    assert all(module.p == 0 for module in paper.modules() if isinstance(module, torch.nn.Dropout))


def test_weights_start_as_ho_wrote():
    """Glorot's uniform law with the fans of each layer; last layers and all shifts are zero; norms do nothing."""
    unet = small(channels=32)
    for name, weight in unet.named_parameters():
        if name.endswith("bias") or any(part in name for part in ("conv_2", "attention.out", "conv_out")):
            assert not weight.any(), name
        elif "norm" in name:
            assert (weight == 1).all(), name
        elif "labels" in name:
            assert weight.std().item() == pytest.approx(1, abs=0.1) and weight.mean().abs() < 0.1, name
        else:
            for w in weight.chunk(3) if "qkv" in name else [weight]:  # q, k and v are three layers
                bound = (6 / (w[0].numel() + w[:, 0].numel())) ** 0.5
                assert 0.97 * bound < w.abs().max() <= bound, name
                assert w.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


@pytest.mark.parametrize("size", [1, 3, 5])
def test_convolutions_of_stride_1_keep_height_and_width(size):
    assert conv(2, 4, size)(torch.zeros(1, 2, 6, 7)).shape == (1, 4, 6, 7)


def test_dropout_is_before_the_second_convolution_and_only_in_training():
    block, x, time = ResBlock(32, 32, 8, dropout=0.25), torch.zeros(4, 32, 16, 16), torch.randn(4, 8)
    torch.nn.init.dirac_(block.conv_2.weight)  # passes on what it gets, and adds 1
    torch.nn.init.ones_(block.conv_2.bias)
    torch.nn.init.normal_(block.norm_2.bias)
    kept = block.eval()(x, time)
    assert torch.equal(kept, block(x, time))
    dropped = block.train()(x, time)
    zero = dropped == 1
    assert torch.allclose(dropped - 1, torch.where(zero, 0, (kept - 1) / 0.75), atol=1e-6)
    assert zero.float().mean().item() == pytest.approx(0.25, abs=0.02)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_dropout_is_in_every_block(dropout):
    blocks = [module for module in small(dropout=dropout).modules() if isinstance(module, ResBlock)]
    assert len(blocks) == 8 and all(block.dropout.p == dropout for block in blocks)


def test_time_embedding_has_the_published_values():
    published = [-0.54402, 0.44767, 0.02154, 0.001, -0.83907, 0.89420, 0.99977, 1.0]
    assert time_embedding(torch.tensor([10]), 8)[0].tolist() == pytest.approx(published, abs=1e-5)
    assert time_embedding(torch.tensor([10]), 9)[0].tolist() == pytest.approx([*published, 0], abs=1e-5)


def test_time_embedding_is_made_where_the_time_is():
    t = torch.tensor([10])
    with torch.device("meta"):
        elsewhere = time_embedding(t, 8)
    assert torch.equal(elsewhere, time_embedding(t, 8))


def test_times_next_to_each_other_differ_even_under_autocast():
    unet = alive(small())
    x = torch.randn(1, 1, 8, 8)
    without = unet.embed(torch.tensor([998]), Condition())
    with torch.autocast("cpu", torch.bfloat16):
        a, b = (unet.embed(torch.tensor([t]), Condition()) for t in (998, 999))
    assert torch.equal(a, without) and not torch.equal(a, b)
    assert not torch.equal(unet(x, torch.tensor([998])), unet(x, torch.tensor([999])))


def test_a_label_has_a_row_for_each_value_and_one_for_null():
    assert {name: table.num_embeddings for name, table in small().labels.items()} == {"contrast": 4}


def test_labels_are_added_to_the_time():
    unet = alive(small(vocabulary=Vocabulary(labels={"contrast": ("T1", "T2"), "sex": ("f", "m")})))
    torch.nn.init.zeros_(unet.time_2.weight)
    labels = {"contrast": torch.tensor([2, 0]), "sex": torch.tensor([1, 1])}
    rows = sum(unet.labels[name].weight[numbers] for name, numbers in labels.items())
    found = unet.embed(torch.tensor([7, 70]), Condition(labels=labels))
    assert torch.allclose(found, torch.nn.functional.silu(unet.time_2.bias + rows), atol=1e-6)


def test_output_is_zero_at_the_start():
    assert not small()(torch.randn(2, 1, 8, 8), torch.tensor([1, 1000])).any()


@settings(max_examples=25, deadline=None)
@given(
    channels=st.sampled_from([6, 9, 16]),  # 9 and 6: not multiples of 32 groups
    mults=st.sampled_from([(1,), (1, 2), (2, 1, 3)]),
    blocks=st.integers(1, 2),
    patch=st.sampled_from([1, 2]),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    image_channels=st.sampled_from([1, 3]),
    num_classes=st.sampled_from([0, 2, 5]),
)
def test_shapes(channels, mults, blocks, patch, height, width, image_channels, num_classes):
    """Any size that the levels divide, not square either; odd channel counts; any number of classes."""
    known = Vocabulary(tuple("abcde"[:num_classes]))
    unet = UNet(image_channels, known, channels, mults, blocks, (len(mults) - 1,), patch)
    x = torch.randn(2, image_channels, height * unet.multiple, width * unet.multiple)
    mask = torch.zeros(2, num_classes, *x.shape[2:])
    assert unet(x, torch.tensor([1, 7]), Condition(mask)).shape == x.shape


def test_what_does_not_fit_is_refused():
    unet, x, t = small(), torch.randn(2, 1, 8, 8), torch.tensor([1, 2])
    for wrong in (torch.randn(2, 1, 8, 9), torch.randn(2, 1, 9, 8), torch.randn(2, 3, 8, 8)):
        with pytest.raises(ValueError, match="multiples of 2"):
            unet(wrong, t)
    for wrong in (torch.tensor([1]), torch.tensor(1), torch.tensor([[1], [2]]), torch.tensor([1, 2, 3])):
        with pytest.raises(ValueError, match="each image has a time"):
            unet(x, wrong)
    for wrong in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 2, 4, 8), torch.zeros(1, 2, 8, 8)):
        with pytest.raises(ValueError, match="mask is"):
            unet(x, t, Condition(wrong))
    for wrong in ({"sex": torch.tensor([1, 1])}, {"contrast": torch.tensor([1])}):  # one value for two images
        with pytest.raises(ValueError, match="known are"):
            unet(x, t, Condition(labels=wrong))


def test_no_mask_is_not_the_empty_mask():
    unet, x, t = alive(small()), torch.randn(1, 1, 8, 8), torch.tensor([500])
    empty = torch.zeros(1, 2, 8, 8)
    empty[:, 0] = 1  # background everywhere
    lesion = empty.flip(1)
    answers = [unet(x, t, Condition(mask)) for mask in (None, torch.zeros(1, 2, 8, 8), empty, lesion)]
    assert torch.equal(answers[0], answers[1])
    assert not torch.allclose(answers[0], answers[2]) and not torch.allclose(answers[2], answers[3])


@pytest.mark.parametrize("channels", [8, 16, 32, 48, 64])
def test_time_and_contrast_are_heard_through_the_norms(channels):
    """A norm over single channels would take away what they add; so ask for more than rounding."""
    unet, x = alive(small(channels=channels)), torch.randn(1, 1, 8, 8)
    by_contrast = [unet(x, torch.tensor([500]), of_contrast(c)) for c in range(4)]
    by_time = [unet(x, torch.tensor([t])) for t in (10, 500, 990)]
    for answers in (by_contrast, by_time):
        for i in range(1, len(answers)):
            for j in range(i):
                assert (answers[i] - answers[j]).abs().max() > 1e-2 * answers[i].abs().max()
    assert torch.equal(by_contrast[0], unet(x, torch.tensor([500])))  # 0 means none was asked for


def test_norm_has_32_groups_where_the_paper_has():
    assert [norm(c).num_groups for c in (128, 256, 384, 512, 64, 16, 9, 6)] == [32, 32, 32, 32, 16, 4, 1, 1]
    assert [norm(c).num_groups for c in (40, 8)] == [8, 2]
    assert norm(128).eps == 1e-6


def test_samples_of_a_batch_do_not_see_each_other():
    unet = alive(small())
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([5, 500, 900])
    condition = of_contrast(0, 1, 3, mask=torch.rand(3, 2, 8, 8))
    together = unet(x, t, condition)
    alone = torch.cat([unet(x[i : i + 1], t[i : i + 1], condition[i : i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_attention_is_the_formula():
    """softmax(q k^T / sqrt(c)) v, written out with matrices."""
    attention = Attention(8)
    torch.nn.init.normal_(attention.out.weight)
    x = torch.randn(2, 8, 3, 5)
    h = attention.norm(x).flatten(2).transpose(1, 2)  # (B, places, c)
    q, k, v = (h @ w.squeeze().T for w in attention.qkv.weight.flatten(1).chunk(3))
    weights = torch.softmax(q @ k.transpose(1, 2) / 8**0.5, dim=-1)
    out = (weights @ v) @ attention.out.weight.flatten(1).T
    assert torch.allclose(attention(x), x + out.transpose(1, 2).reshape(x.shape), atol=1e-5)


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_attention_takes_the_fused_kernel(precision):
    """Which never holds all places x places at once; without this kernel there is none, and PyTorch raises."""
    x = torch.randn(2, 8, 4, 6)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), torch.autocast("cpu", precision, precision != torch.float32):
        assert Attention(8)(x).is_contiguous()


def test_mask_reaches_the_pixel_it_lies_on():
    """Without a way down (one level) a mask pixel changes the output around it, not on the other side."""
    unet = alive(UNet(vocabulary=Vocabulary(("background", "lesion")), channels=8, mults=(1,), blocks=1, attention=()))
    unet.middle_1.attention = torch.nn.Identity()  # attention sees everything
    # GroupNorm's statistics see everything too, so let it only scale.
    for module in unet.modules():
        if isinstance(module, torch.nn.GroupNorm):
            module.forward = lambda x: x
    x, t, mask = torch.randn(1, 1, 32, 32), torch.tensor([500]), torch.zeros(1, 2, 32, 32)
    changed = mask.clone()
    changed[0, 1, 2, 3] = 1
    difference = (unet(x, t, Condition(mask)) - unet(x, t, Condition(changed))).abs()[0, 0]
    assert difference[2, 3] > 0 and difference[20:, 20:].max() == 0


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_make_networks_that_take_their_own_image_size(preset):
    config = Config(**PRESETS[preset])
    with torch.device("meta"):
        unet = make_unet(config, KNOWN)
    assert all(size % unet.multiple == 0 for size in config.image_size)
    assert 32 % unet.multiple == 0


# The lean network


def test_a_lean_block_scales_and_shifts_by_the_time():
    block, x, time = ResBlock(32, 32, 8, dropout=0.0, lean=True), torch.randn(2, 32, 4, 4), torch.randn(2, 8)
    torch.nn.init.dirac_(block.conv_2.weight)  # passes on what it gets
    h = block.norm_2(block.conv_1(torch.nn.functional.silu(block.norm_1(x))))
    scale, shift = (time @ block.time.weight.T + block.time.bias)[:, :, None, None].split(32, dim=1)
    assert torch.allclose(block(x, time) - x, torch.nn.functional.silu(h * (1 + scale) + shift), atol=1e-5)


def test_every_norm_of_a_network_is_of_its_kind():
    """Where no level is named lean, none is: that is the paper's network."""

    def smallest(unet):
        return min(
            layer.num_channels // layer.num_groups for layer in unet.modules() if isinstance(layer, nn.GroupNorm)
        )

    assert smallest(small(channels=64)) == 4 and smallest(small(channels=64, lean=True)) == 16
    assert ResBlock(64, 64, 8, dropout=0.0).norm_2.num_groups == 16 == Attention(64).norm.num_groups


def test_lean_norms_have_16_channels_a_group():
    assert [norm(channels, lean=True).num_groups for channels in (16, 64, 128, 512, 1024)] == [1, 4, 8, 32, 32]


def test_a_lean_network_narrows_on_the_way_up_before_it_joins_the_larger_level():
    wide, lean = (small(channels=16, mults=(1, 2, 4), lean=lean) for lean in (False, True))
    ups = [[layer.conv.weight.shape[:2] for layer in unet.up if hasattr(layer, "conv")] for unet in (wide, lean)]
    assert ups == [[(64, 64), (32, 32)], [(32, 64), (16, 32)]]
    assert [unet(torch.zeros(1, 1, 16, 16), torch.tensor([3])).shape for unet in (wide, lean)] == [(1, 1, 16, 16)] * 2


def test_a_lean_network_computes_in_channels_last_throughout():
    unet, layouts = alive(small(channels=16, lean=True, patch=2)), {}
    for name, module in unet.named_modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.GroupNorm):
            module.register_forward_pre_hook(
                lambda module, args, name=name: layouts.update(
                    {name: args[0].is_contiguous(memory_format=torch.channels_last)}
                )
            )
    unet(torch.randn(2, 1, 32, 32), torch.tensor([3, 4]), of_contrast(1, 2, mask=torch.zeros(2, 2, 32, 32)))
    assert len(layouts) > 20 and all(layouts.values())
    weights = [weight for weight in unet.parameters() if weight.ndim == 4]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.parametrize("lean", [False, True])
def test_the_layout_is_not_heard(lean):
    """What a network of channels_last answers is what its weights answer in the usual layout."""
    unet = alive(small(channels=16, lean=lean))
    x, t = torch.randn(2, 1, 16, 16), torch.tensor([3, 4])
    answer = unet(x, t)
    unet.lean = False  # the input stays as it is, and so do all layers after it
    assert torch.allclose(unet.to(memory_format=torch.contiguous_format)(x, t), answer, atol=1e-5)


# Words


def test_words_enter_with_the_time_their_order_does_not_and_none_is_null():
    unet = UNet(1, Vocabulary(words=("a", "b", "c")), channels=16, mults=(1, 2), blocks=1, attention=())
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    unet.words.table.weight.data[0] = 0
    x, t = torch.zeros(1, 1, 8, 8), torch.tensor([3])

    def answer(*numbers):
        return unet(x, t, Condition(words=torch.tensor([numbers])))

    assert torch.allclose(answer(1, 2), answer(2, 1, 0), atol=1e-5) and torch.equal(answer(0, 0), unet(x, t))
    answers = [answer(0), answer(1), answer(2), answer(1, 2), answer(1, 1)]
    assert all((a - b).abs().max() > 1e-4 for a, b in itertools.combinations(answers, 2))
    for wrong in (torch.tensor([[0.5]]), torch.tensor([[1], [2]]), torch.tensor([1])):
        with pytest.raises(ValueError, match=r"words are .*takes numbers \(1, L\)"):
            unet(x, t, Condition(words=wrong))
    time = unet.time_2(nn.functional.silu(unet.time_1(time_embedding(t, 16))))
    numbers = torch.tensor([[1, 2]])
    whole = nn.functional.silu(time + unet.words(numbers))
    assert torch.allclose(unet.embed(t, Condition(words=numbers)), whole, atol=1e-5)
    with pytest.raises(ValueError, match="this network takes none"):
        UNet(1, channels=16, mults=(1, 2), blocks=1, attention=())(x, t, Condition(words=torch.tensor([[1]])))


def test_with_words_the_network_is_told_where_each_pixel_lies():
    unet, x = (
        UNet(1, Vocabulary(words=("a",)), channels=16, mults=(1, 2), blocks=1, attention=()),
        torch.zeros(2, 1, 4, 6),
    )
    right, down = unet.places(x)[1]
    assert torch.allclose(right, torch.tensor([-1, -0.6, -0.2, 0.2, 0.6, 1]).expand(4, 6))
    assert torch.allclose(down, torch.tensor([[-1], [-1 / 3], [1 / 3], [1]]).expand(4, 6))
    assert (
        unet.conv_in.weight.shape[1] == 3 and UNet(1, channels=16, mults=(1, 2), attention=()).places(x).shape[1] == 0
    )
    torch.nn.init.zeros_(unet.conv_in.weight)
    unet.conv_in.weight.data[:, 1, 1, 1] = 1  # what comes in then is right alone
    seen = []
    unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output))
    unet(torch.randn(2, 1, 4, 6), torch.tensor([3, 4]))
    assert torch.allclose(seen[0], right.expand_as(seen[0]))


def test_the_null_word_learns_nothing():
    words = UNet(1, Vocabulary(words=("a", "b")), channels=16, mults=(1, 2), blocks=1, attention=()).words
    assert words(torch.tensor([[1, 0]])).any() and not words(torch.tensor([[0, 0]])).any()
    words(torch.tensor([[1, 0]])).sum().backward()
    gradient = words.table.weight.grad
    assert gradient[1].abs().max() > 0 and gradient[0].abs().max() == gradient[2].abs().max() == 0


def test_words_add_up_each_by_a_row_of_its_own():
    words = UNet(1, Vocabulary(words=("a", "b")), channels=16, mults=(1, 2), blocks=1, attention=()).words
    both, a, b = words(torch.tensor([[2, 1], [1, 0], [2, 0]]))
    assert torch.allclose(both, a + b) and not torch.allclose(a, b)
    assert [(name, len(rows)) for name, rows in words.named_parameters()] == [("table.weight", 3)]  # and of no word


def test_vectors_of_texts_pass_two_layers_and_begin_as_nothing():
    unet = UNet(1, Vocabulary(vectors=5), channels=16, mults=(1, 2), blocks=1, attention=())
    x, t, texts = torch.zeros(2, 1, 8, 8), torch.tensor([3, 3]), torch.randn(2, 5)
    assert not unet.words(texts).any()  # so that a network that knew none goes on as it was
    torch.nn.init.normal_(unet.words.layer_2.weight)
    hidden = texts @ unet.words.layer_1.weight.T
    assert torch.allclose(unet.words(texts), hidden * hidden.sigmoid() @ unet.words.layer_2.weight.T, atol=1e-5)
    one, other = alive(unet)(x, t, Condition(words=texts))
    assert not torch.allclose(one, other, atol=1e-3)
    assert torch.equal(unet(x, t), unet(x, t, Condition(words=torch.zeros(2, 5))))  # no text
    for wrong in (torch.randn(2, 4), torch.tensor([[1], [2]])):
        with pytest.raises(ValueError, match=r"takes vectors \(2, 5\)"):
            unet(x, t, Condition(words=wrong))


def test_a_source_enters_beside_the_image_and_the_mask():
    unet = alive(small(vocabulary=Vocabulary(classes=KNOWN.classes, source=("T1", "T2"))))
    assert unet.conv_in.weight.shape[1] == 1 + 2 + 2
    x, t, source = torch.zeros(1, 1, 8, 8), torch.tensor([3]), torch.randn(1, 2, 8, 8)
    assert not torch.allclose(unet(x, t), unet(x, t, Condition(source=source)), atol=1e-3)
    assert torch.equal(unet(x, t), unet(x, t, Condition(source=0 * source)))
    with pytest.raises(ValueError, match=r"source is \(1, 1, 8, 8\), not \(1, 2, 8, 8\)"):
        unet(x, t, Condition(source=source[:, :1]))
