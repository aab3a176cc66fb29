"""Inception-V3 for FID: the reference's names, its numbers, its oddities; and files that are not its weights."""

import os
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inception_vector import FEATURES, FINGERPRINT, LOGITS, drawn_weights, fingerprint, fixed_image

from ddpm import UserError
from ddpm.metrics.features import make_extractor
from ddpm.metrics.inception import WEIGHTS_FILE, Inception, load_inception, prepare, to_rgb


@pytest.fixture(scope="module")
def weights():
    with torch.device("meta"):
        state = Inception().state_dict()
    return drawn_weights(state)


@pytest.fixture(scope="module")
def inception(weights):
    network = Inception()
    network.load_state_dict(weights)
    return network


@pytest.fixture(scope="module")
def untrained():
    return Inception()


@pytest.fixture(scope="module")
def light(weights):
    """All names and shapes, and a file of a few bytes."""
    return {name: torch.zeros(()).expand(values.shape) for name, values in weights.items()}


@pytest.fixture
def weights_file(weights, tmp_path):
    torch.save(weights, tmp_path / WEIGHTS_FILE)
    return tmp_path / WEIGHTS_FILE


def close(a, b, tolerance=1e-5):
    """Equal to `tolerance` of the largest value."""
    return (a - b).abs().max() <= tolerance * b.abs().max()


def test_parameter_counts():
    with torch.device("meta"):
        counts = {name: p.numel() for name, p in Inception().named_parameters()}
    assert sum(counts.values()) == 23_850_960
    assert sum(n for name, n in counts.items() if not name.startswith("fc.")) == 21_785_568


def test_names_and_shapes_are_the_references(weights):
    assert fingerprint(weights) == FINGERPRINT


def test_features_and_logits_are_the_references(inception, weights_file):
    features = inception(fixed_image())
    logits = features @ torch.from_numpy(make_extractor("inception", weights_file).classifier)
    assert features.shape == (1, 2048) and logits.shape == (1, 1008) and features.dtype == torch.float32
    assert close(features[0, ::128], torch.tensor(FEATURES))
    assert close(logits[0, ::144], torch.tensor(LOGITS))


AVERAGED = [[2.0, 2.5, 3.0], [3.5, 4.0, 4.5], [5.0, 5.5, 6.0]]  # with the padding counted the corner would be 0.8889
GREATEST = [[4.0, 5.0, 5.0], [7.0, 8.0, 8.0], [7.0, 8.0, 8.0]]


@pytest.mark.parametrize(
    ("name", "c_in", "c_pool", "pooled"),
    [
        ("Mixed_5b", 192, 32, AVERAGED),
        ("Mixed_5c", 256, 64, AVERAGED),
        ("Mixed_5d", 288, 64, AVERAGED),
        *((f"Mixed_6{letter}", 768, 192, AVERAGED) for letter in "bcde"),
        ("Mixed_7b", 1280, 192, AVERAGED),
        ("Mixed_7c", 2048, 192, GREATEST),
    ],
)
def test_each_block_pools_arange_9_as_the_reference(untrained, name, c_in, c_pool, pooled):
    """The pooling branch comes last; its convolution is made to pass on the mean of its inputs unchanged."""
    block = getattr(untrained, name)
    torch.nn.init.constant_(block.branch_pool.conv.weight, 1 / c_in)
    block.branch_pool.bn.running_var.fill_(1 - 1e-3)
    x = torch.arange(9.0).view(1, 1, 3, 3).expand(1, c_in, 3, 3)
    pool = block(x)[0, -c_pool:]
    assert torch.allclose(pool, torch.tensor(pooled).expand_as(pool), atol=1e-4)


def test_train_mode_has_no_effect(inception, weights):
    image, before = fixed_image(), inception(fixed_image())
    for module in inception.modules():
        module.train()
    assert torch.equal(inception(image), before)
    assert close(inception(torch.cat([image, 1 - image]))[:1], before)
    assert all(torch.equal(values, weights[name]) for name, values in inception.state_dict().items())


def test_nothing_is_differentiated_but_features_can_be_learned_from(inception):
    assert not any(p.requires_grad for p in inception.parameters())
    features = inception(fixed_image())
    head = torch.nn.Linear(2048, 1)
    head(features).sum().backward()  # inference_mode would forbid this
    assert not features.requires_grad and torch.equal(head.weight.grad, features)


def test_weights_lie_channels_last_and_still_do_after_loading(inception, untrained):
    for network in (untrained, inception):
        weight = network.Mixed_7c.branch3x3dbl_2.conv.weight
        assert weight.is_contiguous(memory_format=torch.channels_last)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """Bilinear interpolation between pixel centres, (H, W) -> (size, size), written out with matrices."""

    def matrix(n):
        where = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        lower = np.floor(where).astype(int)
        weights = np.zeros((size, n))
        np.add.at(weights, (np.arange(size), lower), 1 - (where - lower))
        np.add.at(weights, (np.arange(size), np.minimum(lower + 1, n - 1)), where - lower)
        return weights

    return matrix(image.shape[0]) @ image @ matrix(image.shape[1]).T


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 700), width=st.integers(1, 700), seed=st.integers(0, 2**32 - 1))
def test_prepare_is_plain_bilinear_and_then_minus_one_to_one(height, width, seed):
    image = np.random.default_rng(seed).random((height, width), dtype=np.float32)
    expected = 2 * resized(image, 299) - 1
    prepared = prepare(torch.from_numpy(image).expand(1, 3, -1, -1))
    assert prepared.shape == (1, 3, 299, 299)
    assert np.abs(prepared[0, 1].numpy() - expected).max() < 3e-4  # places are float32: 700 pixels, each 6e-8, twice


@pytest.mark.parametrize("size", [(1, 1), (330, 301)])
def test_any_size_is_taken(inception, size):
    assert inception(torch.rand(1, 3, *size)).shape == (1, 2048)


def test_features_of_an_image_do_not_depend_on_its_batch(inception):
    images = torch.rand(3, 3, 32, 32)
    alone = torch.cat([inception(images[i : i + 1]) for i in range(3)])
    assert close(inception(images), alone)


def test_bf16_features_come_back_in_float32_and_close(inception):
    exact = inception(fixed_image())
    with torch.autocast("cpu", torch.bfloat16):
        features = inception(fixed_image())
    assert features.dtype == torch.float32
    assert close(features, exact, 0.1) and not torch.equal(features, exact)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(3, 32, 32),
        torch.zeros(1, 1, 32, 32),
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.full((1, 3, 32, 32), 255.0),
        torch.full((1, 3, 32, 32), -1.0),
        torch.full((1, 3, 32, 32), torch.nan),
    ],
    ids=["no batch", "grey", "uint8", "0..255", "-1..1", "NaN"],
)
def test_other_images_are_refused(inception, images):
    with pytest.raises(ValueError, match="to_rgb"):
        inception(images)


def test_to_rgb():
    grey = np.array([0, 51, 255], dtype=np.uint8).reshape(1, 1, 1, 3)
    assert to_rgb(grey).shape == (1, 3, 1, 3)
    for channel in range(3):
        assert to_rgb(grey)[0, channel, 0].tolist() == pytest.approx([0, 0.2, 1])
    colour = torch.arange(3, dtype=torch.uint8).view(1, 3, 1, 1)
    assert (to_rgb(colour) * 255).round().flatten().tolist() == [0, 1, 2]
    for wrong in (grey[0], grey.astype(np.float32), np.zeros((1, 2, 4, 4), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            to_rgb(wrong)


# ---- files


@pytest.mark.parametrize(("zipped", "counters"), [(True, True), (False, False)], ids=["new format", "old format"])
def test_a_weights_file_loads(weights, tmp_path, zipped, counters):
    """The usual file dates from before torch's zip format, when the norms' counters might be missing too."""
    chosen = {name: w for name, w in weights.items() if counters or not name.endswith("num_batches_tracked")}
    torch.save(chosen, tmp_path / "weights.pth", _use_new_zipfile_serialization=zipped)
    loaded = load_inception(tmp_path / "weights.pth").state_dict()
    assert loaded.keys() == weights.keys() and all(torch.equal(loaded[name], w) for name, w in weights.items())


def refused(path):
    with pytest.raises(UserError) as caught:
        load_inception(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message


def test_a_missing_file_is_told_with_where_to_find_it_and_what_to_do_without(tmp_path):
    message = refused(tmp_path / "nothing.pth")
    for part in ("no such", WEIGHTS_FILE, "mseitzer/pytorch-fid", "fid_weights", "--features segmenter"):
        assert part in message


def test_a_folder_is_refused(tmp_path):
    assert "not the weights of this network (Is a directory)" in refused(tmp_path)


@pytest.mark.parametrize(
    "foreign",
    [
        lambda w: {},
        lambda w: [1, 2, 3],
        lambda w: torch.zeros(3),
        lambda w: {"state_dict": w},
        lambda w: {name: values for name, values in w.items() if name != "Mixed_6c.branch7x7_2.conv.weight"},
        lambda w: {**w, "AuxLogits.fc.bias": torch.zeros(1)},  # torchvision's own network has these
        lambda w: {**w, "fc.weight": torch.zeros(1000, 2048)},
        lambda w: {**w, "fc.weight": "a string"},
        lambda w: dict.fromkeys(range(5), torch.zeros(1)),
    ],
    ids=["empty", "list", "tensor", "wrapped", "one missing", "one more", "1000 classes", "no tensor", "no names"],
)
def test_foreign_files_are_refused(light, tmp_path, foreign):
    torch.save(foreign(light), tmp_path / "foreign.pth")
    assert "not the weights of this network" in refused(tmp_path / "foreign.pth")


def test_weights_that_are_not_finite_are_refused(light, tmp_path):
    torch.save(light, tmp_path / "sound.pth")
    load_inception(tmp_path / "sound.pth")
    spoilt = light["Mixed_6c.branch7x7_2.conv.weight"].clone()
    spoilt[0, 0, 0, 0] = torch.nan
    torch.save({**light, "Mixed_6c.branch7x7_2.conv.weight": spoilt}, tmp_path / "spoilt.pth")
    assert "not finite" in refused(tmp_path / "spoilt.pth")


def test_a_download_that_broke_off_is_refused(weights_file):
    size = weights_file.stat().st_size
    for kept in (0.99, 0.5, 0.001):
        os.truncate(weights_file, int(size * kept))
        assert "damaged" in refused(weights_file)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "the older format"])
def test_a_file_cut_anywhere_is_refused(tmp_path, zipped):
    torch.save({"a": torch.zeros(3)}, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
    whole = (tmp_path / "whole.pth").read_bytes()
    for kept in range(0, len(whole), 7):
        (tmp_path / "cut.pth").write_bytes(whole[:kept])
        refused(tmp_path / "cut.pth")


@settings(max_examples=100, deadline=None)
@given(content=st.one_of(st.binary(max_size=200), st.binary(max_size=50).map(lambda b: b"PK\x03\x04" + b)))
def test_any_bytes_are_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "bytes.pth"
    path.write_bytes(content)
    refused(path)


class Trap:
    """Code that a careless loader would run."""

    def __reduce__(self):
        return os.mkdir, ("trapped",)


@pytest.mark.parametrize("write", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing))])
def test_code_in_a_file_is_not_run(tmp_path, write):
    write({"a": Trap()}, tmp_path / "trap.pth")
    assert "damaged" in refused(tmp_path / "trap.pth")
    assert not (tmp_path / "trapped").exists()
