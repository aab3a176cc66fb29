"""The two-sample test: silent on equal sets, whatever their order or size; loud on small damage; its interval exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from ddpm import UserError
from ddpm.metrics import two_sample
from ddpm.metrics.two_sample import split, two_sample_test
from ddpm.seeds import generator


def pictures(n, seed, size=16):
    """Smooth random fields and noise, each image a little brighter or darker: uint8 (n, 1, size, size)."""
    rng = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(rng.standard_normal((n, 1, size, size)), (0, 0, 2, 2)) * 80
    fields += rng.normal(120, 4, (n, 1, 1, 1)) + rng.normal(0, 8, fields.shape)
    return np.rint(fields.clip(0, 255)).astype(np.uint8)


REAL, OTHERS = pictures(240, 0), pictures(240, 1)


def examine(real, fake, steps=60, seed=0):
    return two_sample_test(real, fake, steps=steps, seed=seed)


def test_equal_distributions_cannot_be_told_apart():
    result = examine(REAL, OTHERS)
    assert result.low < 0.5 < result.high
    assert result.n == 240 and result.low < result.accuracy < result.high


@pytest.mark.parametrize(
    "damage",
    [
        lambda x: x + 12.0,  # two standard deviations of the images' brightness
        lambda x: ndimage.gaussian_filter(x.astype(float), (0, 0, 0.5, 0.5)),
        lambda x: x + np.random.default_rng(2).normal(0, 8, x.shape),
        lambda x: x // 16 * 16,  # 16 grey levels
    ],
    ids=["brighter", "blurred", "noisy", "coarse"],
)
def test_damage_is_found(damage):
    damaged = np.rint(damage(OTHERS).clip(0, 255)).astype(np.uint8)
    assert examine(REAL, damaged).low > 0.6


def test_different_sets_stay_different_the_other_way_round():
    darker = (OTHERS * 0.5).astype(np.uint8)
    for real, fake in ((REAL, darker), (darker, REAL)):
        assert examine(real, fake, steps=40).accuracy > 0.95


def test_a_set_and_its_copy_give_exactly_one_half():
    """Each image is asked about twice, as real and as fake, and one of the two answers is right."""
    assert examine(REAL, REAL, steps=20).accuracy == 0.5


def test_the_order_of_the_images_tells_nothing():
    by_brightness = REAL[REAL.mean(axis=(1, 2, 3)).argsort()]
    result = examine(by_brightness, OTHERS)
    assert result.low < 0.5 < result.high


def test_a_larger_set_that_is_sorted_tells_nothing():
    """Its first part would be all dark."""
    many = pictures(720, 3)
    many = many[many.mean(axis=(1, 2, 3)).argsort()]
    for real, fake in ((many, OTHERS), (OTHERS, many)):
        result = examine(real, fake)
        assert result.low < 0.5 < result.high and result.n == 240


def test_what_is_remembered_is_not_counted():
    """Images of pure noise can be learnt by heart, and that alone. On the half that was seen it would be right always."""
    rng = np.random.default_rng(1)
    real, fake = rng.integers(0, 256, (2, 60, 1, 8, 8), dtype=np.uint8)
    result = examine(real, fake, steps=150)
    assert result.low < 0.5 < result.high and result.n == 60


def test_the_examined_half_has_no_part_in_the_training():
    """Other images in its place: the very same network."""
    trained = []

    def remember(net, *rest, fit=two_sample.fit):
        fit(net, *rest)
        trained.append({name: value.clone() for name, value in net.state_dict().items()})

    unseen = split(np.arange(240), np.arange(240), generator(0))[2]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_sample, "fit", remember)
        for value in (0, 255):
            real, fake = REAL.copy(), OTHERS.copy()
            real[unseen[0]], fake[unseen[1]] = value, 255 - value
            examine(real, fake, steps=20)
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_training_goes_back_to_the_best_validation():
    """The validation half has the answers the other way round, so the more it learns the worse it does there."""
    bright, dark = torch.full((20, 1, 8, 8), 200, dtype=torch.uint8), torch.full((20, 1, 8, 8), 20, dtype=torch.uint8)
    seen = []

    def remember(net, pair, answers=two_sample.answers):
        said = list(answers(net, pair))
        seen.append(torch.cat([answer for answer, _ in said]))
        return said

    net = two_sample.classifier((bright, dark))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_sample, "answers", remember)
        two_sample.fit(net, (bright, dark), (dark, bright), 3 * two_sample.CHECK_EVERY, np.random.default_rng(0))
    kept = torch.cat([said for said, _ in two_sample.answers(net, (dark, bright))])
    assert len(seen) == 3 and torch.equal(kept, seen[0]) and not torch.equal(kept, seen[2])


def test_training_moves_its_images_and_slows_down(monkeypatch):
    moved, rates = [], []
    monkeypatch.setattr(two_sample, "moved", lambda batch, rng: moved.append(len(batch)) or batch)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: rates.append(self.param_groups[0]["lr"]))
    pair = torch.from_numpy(REAL), torch.from_numpy(OTHERS)
    two_sample.fit(two_sample.classifier(pair), pair, pair, 10, np.random.default_rng(0))
    assert moved == [2 * two_sample.BATCH] * 10
    assert rates == pytest.approx(np.linspace(two_sample.LEARNING_RATE, two_sample.LEARNING_RATE / 10, 10))


def test_every_image_gets_an_answer():
    """Also beyond the 256 of a batch."""
    real, fake = (torch.from_numpy(pictures(n, n, size=8)) for n in (257, 300))
    said, truth = (torch.cat(x) for x in zip(*two_sample.answers(Brightness(), (real, fake)), strict=True))
    assert truth.tolist() == [0] * 257 + [1] * 300
    assert torch.allclose(said, Brightness()(torch.cat([real, fake]))[:, 0])


class Brightness(torch.nn.Module):
    def forward(self, images):
        return images.float().mean(dim=(1, 2, 3))[:, None]


def test_images_are_moved_round_each_by_itself():
    """By up to a sixteenth: 2 of 32 rows and 1 of 16 columns here, all 15 moves about as often; channels together."""
    image = torch.zeros(2, 32, 16, dtype=torch.uint8)
    image[0, 10, 5], image[1, 20, 8] = 1, 2
    moved = two_sample.moved(image.expand(3000, -1, -1, -1), np.random.default_rng(0))
    first, second = (moved[:, channel].flatten(1).argmax(dim=1) for channel in (0, 1))
    assert (second - first == 10 * 16 + 3).all() and (moved.flatten(1).sum(dim=1) == 3).all()
    moves, times = torch.stack([first // 16 - 10, first % 16 - 5]).unique(dim=1, return_counts=True)
    assert moves.T.tolist() == [[down, right] for down in range(-2, 3) for right in range(-1, 2)]
    assert (times > 140).all() and (times < 260).all()  # 200 +- 13.7 each


def test_the_network_sees_both_sets_on_one_scale():
    """Mean 0 and deviation 1 over the two together, not each: that would take away what sets them apart."""
    pair = torch.from_numpy(REAL), torch.from_numpy(OTHERS // 3)
    scale = two_sample.classifier(pair)[0]
    both = scale(torch.cat(pair))
    assert both.mean().item() == pytest.approx(0, abs=1e-4) and both.std().item() == pytest.approx(1, abs=1e-3)
    assert scale(pair[0]).mean() > 0.8 and scale(pair[1]).mean() < -0.8
    assert two_sample.Scale((torch.zeros_like(pair[0]),) * 2)(pair[0]).isfinite().all()  # all black


def test_a_seed_decides_everything_and_nothing_global_changes():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    brighter = OTHERS + 6  # by so little that any other network would be right in other cases
    one = examine(REAL, brighter, steps=20, seed=5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = examine(REAL, brighter, steps=20, seed=5)
    assert one == again and one.accuracy < 0.9 and torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == before[1]).all()  # noqa: NPY002
    parts = [split(np.arange(100), np.arange(100), np.random.default_rng(i))[0][0].tolist() for i in (0, 1)]
    assert parts[0] != parts[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 40), st.integers(4, 90), st.integers(1, 9), st.integers(0, 99))
def test_parts_are_balanced_and_no_subject_is_in_two(n_real, n_fake, most, seed):
    rng = np.random.default_rng(seed)
    whose = [np.repeat(np.arange(n), rng.integers(1, most + 1, n)) for n in (n_real, n_fake)]
    parts = split(*whose, rng)
    for side in (0, 1):
        of_part = [set(whose[side][part[side]].tolist()) for part in parts]
        assert all(of_part) and not (of_part[0] & of_part[1] or of_part[0] & of_part[2] or of_part[1] & of_part[2])
        assert all(len(np.unique(part[side])) == len(part[side]) == len(part[0]) for part in parts)


def test_parts_of_images_that_are_subjects_of_their_own_have_their_shares():
    assert [len(a) for a, b in split(np.arange(80), np.arange(80), np.random.default_rng(0))] == [30, 10, 40]


def test_all_of_a_larger_set_is_equally_likely():
    rng, drawn = np.random.default_rng(0), np.zeros(500)
    for _ in range(1000):
        for _, b in split(np.arange(100), np.arange(500), rng):
            drawn[b] += 1
    assert 90_000 < drawn.sum() <= 100_000 and abs(drawn * 500 / drawn.sum() - 1).max() < 0.3


def heads(subjects, slices, seed):
    """Slices that resemble the other slices of their subject, and no other's."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 200, (subjects, 1, 8, 8)).repeat(2, 2).repeat(2, 3).repeat(slices, 0)
    return (images + rng.integers(-3, 4, images.shape)).astype(np.uint8), np.repeat(np.arange(subjects), slices)


def test_knowing_the_heads_again_is_no_difference():
    """Other subjects of the same kind: known again slice by slice, unknown subject by subject; and the interval is that
    of the few subjects, not of the many slices."""
    (real, a), (fake, b) = heads(8, 20, 0), heads(8, 20, 1)
    by_slice, by_subject = examine(real, fake, steps=100), two_sample_test(real, fake, a, b, steps=100)
    assert by_slice.low > 0.8
    assert by_subject.low < 0.5 < by_subject.high
    assert by_subject.high - by_subject.low > 2 * (by_slice.high - by_slice.low)


def test_too_few_or_unequal_images_are_refused():
    with pytest.raises(UserError, match="39 fake images.*at least 40"):
        two_sample_test(REAL, OTHERS[:39])
    with pytest.raises(UserError, match="one size"):
        two_sample_test(REAL, OTHERS[..., :8])
    with pytest.raises(UserError, match="fake images of 3 subjects.*at least 4"):
        two_sample_test(REAL, OTHERS, np.arange(240), np.arange(240) // 80)
    for wrong in (OTHERS / 255, OTHERS[:, 0]):
        with pytest.raises(ValueError, match="uint8"):
            two_sample_test(REAL, wrong)
