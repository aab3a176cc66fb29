"""The judge: it learns what it is shown, is stored exactly, and what it says means what it should."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ddpm import UserError
from ddpm.data import phantom
from ddpm.metrics import features
from ddpm.metrics import segmenter as module
from ddpm.metrics.paired import dice
from ddpm.metrics.segmenter import (
    EMBEDDED,
    Segmenter,
    load_segmenter,
    moved,
    save_segmenter,
    segmentation_loss,
    train_segmenter,
)


@pytest.fixture(scope="session")
def judge():
    return load_segmenter()


@pytest.fixture(scope="session")
def real():
    """60 test subjects: images (N, 1, 64, 64), tissue labels, contrasts."""
    subjects = [phantom.draw_subject(0, "test", i) for i in range(60)]
    images, labels = zip(*(phantom.render(s, 64) for s in subjects), strict=True)
    return np.stack(images)[:, None], np.stack(labels), np.array([s.contrast for s in subjects])


def squares(n=64, size=24):
    """Bright squares on noise, labelled; the second "contrast" is dark squares on bright noise."""
    rng = np.random.default_rng(0)
    images, labels = rng.integers(60, 100, (n, 1, size, size)).astype(np.uint8), np.zeros((n, size, size), np.uint8)
    contrasts = rng.integers(0, 2, n)
    for i, (v, u) in enumerate(rng.integers(4, size - 12, (n, 2))):
        labels[i, v : v + 8, u : u + 8] = 1
        images[i, 0, v : v + 8, u : u + 8] += 80
    images[contrasts == 1] = 255 - images[contrasts == 1]
    return images, labels, contrasts


NAMES = (("background", "square"), ("bright", "dark"))


def test_it_learns_to_segment_and_to_name_the_contrast():
    images, labels, contrasts = squares()
    state = torch.get_rng_state()
    trained = train_segmenter(images[:48], labels[:48], contrasts[:48], *NAMES, steps=60)
    assert torch.equal(state, torch.get_rng_state())  # training a judge must not change what a run draws next
    verdict = trained.judge(images[48:])
    assert dice(verdict.labels[:, None] == 1, labels[48:, None] == 1).mean() > 0.85
    assert (verdict.contrasts == contrasts[48:]).mean() == 1
    of_training = trained.judge(images[:48]).features
    assert np.abs(of_training.mean(0)).max() < 0.05 and np.abs(of_training.std(0, ddof=1) - 1).max() < 0.02


def test_features_are_scaled_by_images_from_all_over_the_set(monkeypatch):
    """The first ones in the file may be a few subjects: here, all dark."""
    images, labels, contrasts = squares(200)
    images[:100], images[100:] = 20, 220
    monkeypatch.setattr(module, "BATCH", 1)  # so that 64 images scale the features
    trained = train_segmenter(images, labels, contrasts, *NAMES, steps=0)
    of_all = trained.judge(images).features
    assert np.abs(of_all.mean(0)).max() < 0.5 and of_all.std(0).max() < 1.3


def test_the_same_arguments_give_the_same_weights():
    images, labels, contrasts = squares(40)
    a, b = (train_segmenter(images, labels, contrasts, *NAMES, steps=2, seed=s) for s in (3, 3))
    other = train_segmenter(images, labels, contrasts, *NAMES, steps=2, seed=4)
    assert a.fingerprint() == b.fingerprint() != other.fingerprint()
    first, second = (train_segmenter(images, labels, contrasts, *NAMES, steps=0, seed=s) for s in (3, 4))
    assert not torch.equal(first.first.weight, second.first.weight)  # the weights it begins with come from the seed too


def test_the_stored_judge_is_the_trained_one(tmp_path):
    images, labels, contrasts = squares(40)
    trained = train_segmenter(images, labels, contrasts, *NAMES, steps=2)
    save_segmenter(trained, tmp_path / "judge.pt")
    stored = load_segmenter(tmp_path / "judge.pt")
    assert stored.fingerprint() == trained.fingerprint()
    assert np.array_equal(stored.judge(images).features, trained.judge(images).features)
    assert (stored.classes, stored.contrasts, stored.size) == (*NAMES, (24, 24))


@pytest.mark.parametrize("content", [b"", b"not a judge", b"PK\x03\x04 half a zip"])
def test_a_file_that_is_no_judge_is_refused(tmp_path, content):
    (tmp_path / "judge.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"judge\.pt: damaged"):
        load_segmenter(tmp_path / "judge.pt")
    with pytest.raises(UserError, match="no such segmenter"):
        load_segmenter(tmp_path / "nothing.pt")


def test_a_judge_with_one_flipped_bit_is_refused(tmp_path):
    content = bytearray(EMBEDDED.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "judge.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"judge\.pt: damaged"):
        load_segmenter(tmp_path / "judge.pt")


def test_soft_dice_of_a_certain_answer_is_dice():
    labels = torch.from_numpy(squares(4)[1]).long()
    shifted = labels.roll(2, dims=2)  # 6 of 8 columns overlap
    certain = 100.0 * F.one_hot(shifted, 2).movedim(-1, 1)
    soft = segmentation_loss(certain, labels) - F.cross_entropy(certain, labels)
    assert soft.item() == pytest.approx(1 - (2 * 48 + 1) / (64 + 64 + 1), abs=1e-6)
    assert segmentation_loss(100.0 * F.one_hot(labels, 2).movedim(-1, 1), labels).item() < 1e-6


def test_image_and_labels_move_together_and_nothing_wraps_around():
    images, labels, _ = squares(20)
    images[:] = labels[:, None] * 200
    x, y = moved(images, labels, np.random.default_rng(0), mirror=True)
    assert np.array_equal(x[:, 0], y * 200) and not np.array_equal(y, labels)
    edge = np.zeros((20, 1, 24, 24), np.uint8)
    edge[:, :, :, 0] = 255  # a line on the left edge may move right or vanish, but never appear on the right
    x, _ = moved(edge, labels, np.random.default_rng(0), mirror=False)
    assert not x[:, :, :, 12:].any()
    assert 0 < x.any(axis=(1, 2, 3)).sum() < 20


def test_other_sizes_come_back_at_their_own_size():
    judge = Segmenter(*NAMES, size=(32, 32)).eval()
    logits, contrast, feature = judge(torch.zeros(2, 1, 48, 40))
    assert logits.shape == (2, 2, 48, 40) and contrast.shape == (2, 2) and feature.shape == (2, 272)


# ---------------------------------------------------------------- the one that is committed


def test_the_embedded_judge_is_small_and_knows_its_data(judge, real):
    assert EMBEDDED.stat().st_size <= 2_000_000
    assert judge.classes == phantom.CLASSES["tissue"] and judge.contrasts == phantom.CONTRASTS
    images, tissue, contrasts = real
    verdict = judge.judge(images)
    lesion, area = tissue == 4, (tissue == 4).sum((1, 2))
    assert dice(verdict.labels[:, None] == 4, lesion[:, None])[area >= 12].mean() > 0.7
    assert (verdict.contrasts == contrasts).mean() > 0.95


def test_what_is_found_in_an_enlarged_image_lies_where_it_does_in_the_image(judge, real):
    images = real[0][:8]
    found, large = judge.judge(images).labels, judge.judge(images.repeat(2, axis=2).repeat(3, axis=3)).labels
    assert large.shape == (8, 128, 192)
    expected = found.repeat(2, axis=1).repeat(3, axis=2)
    assert (expected == 4).any() and dice(large[:, None] == 4, expected[:, None] == 4).mean() > 0.8
    assert (large == expected).mean() > 0.9


def test_a_verdict_does_not_depend_on_what_is_judged_beside_it(judge, real):
    images = real[0]
    whole, one = judge.judge(images), judge.judge(images[7:8])
    assert np.allclose(whole.features[7], one.features[0], atol=1e-3)
    assert np.array_equal(whole.labels[7], one.labels[0])


# ---------------------------------------------------------------- features and their cache


def test_features_are_cached_under_what_they_were_made_from(judge, real, own_cache, monkeypatch):
    images = real[0][:10].copy()
    extractor = features.segmenter_features(judge, "test")
    first = features.extract(extractor, images)
    assert not own_cache.exists()
    assert np.array_equal(features.extract(extractor, images, keep=True), first)
    [stored] = own_cache.iterdir()
    np.savez(stored, first + 1)  # were it not read, the next line would not see this
    assert np.array_equal(features.extract(extractor, images, keep=True), first + 1)
    images[0, 0, 0, 0] ^= 1
    assert np.abs(features.extract(extractor, images, keep=True) - first).max() < 0.5  # one pixel: another name
    assert len(list(own_cache.iterdir())) == 2
    images[0, 0, 0, 0] ^= 1
    with monkeypatch.context() as patch:
        patch.setattr(features, "CODE", "edited")
        assert np.array_equal(features.extract(extractor, images, keep=True), first)
    stored.write_bytes(b"damaged")
    assert np.allclose(features.extract(extractor, images, keep=True), first)
    other = features.Extractor("another", "0", lambda images: torch.zeros(len(images), 2))
    assert features.extract(other, images, keep=True).shape == (10, 2)  # the same images, another network


def test_a_network_of_the_users_own(tmp_path):
    class Own(torch.nn.Module):
        def forward(self, x):
            return x.mean(dim=(2, 3))  # (B, 3): grey, three times

    path = str(tmp_path / "own.ts")
    torch.jit.script(Own()).save(path)
    extractor = features.torchscript_features(path)
    images = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8)).astype(np.uint8)
    assert np.allclose(features.extract(extractor, images), (images / 255).mean((2, 3)).repeat(3, 1), atol=1e-6)
    assert "own.ts" in str(extractor) and len(extractor.fingerprint) == 12


def test_a_network_that_does_not_take_three_channels_is_refused_in_one_line(tmp_path):
    torch.jit.script(torch.nn.Conv2d(1, 4, 3)).save(str(tmp_path / "grey.ts"))
    extractor = features.torchscript_features(str(tmp_path / "grey.ts"))
    with pytest.raises(UserError, match=r"--features .*grey\.ts: .*to have 1 channels, but got 3") as refused:
        features.extract(extractor, np.zeros((2, 1, 8, 8), np.uint8))
    assert len(str(refused.value).replace(str(tmp_path), "")) < 300 and r"\n" not in str(refused.value)


def test_a_file_that_is_no_torchscript_is_refused(tmp_path):
    (tmp_path / "own.ts").write_bytes(b"no")
    with pytest.raises(UserError, match="not a TorchScript file"):
        features.torchscript_features(str(tmp_path / "own.ts"))


def test_features_that_are_not_numbers_are_refused():
    broken = features.Extractor("broken", "0", lambda images: torch.full((len(images), 2), torch.nan))
    with pytest.raises(UserError, match="broken.*not finite"):
        features.extract(broken, np.zeros((3, 1, 8, 8), np.uint8))
    wrong = features.Extractor("wrong", "0", lambda images: torch.zeros(len(images), 2, 2, 2))
    with pytest.raises(UserError, match="wrong.*tensor"):
        features.extract(wrong, np.zeros((3, 1, 8, 8), np.uint8))
