"""What a sample is asked to follow: null, withheld, encoded."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.conditions import Condition, Vocabulary, one_hot

KNOWN = Vocabulary(("background", "lesion"), {"contrast": ("T1", "T2"), "sex": ("F", "M")})


def of_four():
    return KNOWN.condition(np.eye(4, dtype=int).reshape(4, 2, 2), contrast=["T1", "T2", None, "T1"], sex=["F"] * 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_one_hot_has_one_channel_set_and_it_is_the_label(classes, height, width, seed):
    labels = np.random.default_rng(seed).integers(0, classes, (2, height, width), dtype=np.uint8)
    mask = one_hot(labels, classes)
    assert mask.shape == (2, classes, height, width) and mask.dtype == torch.float32
    assert (mask.sum(dim=1) == 1).all() and np.array_equal(mask.argmax(dim=1).numpy(), labels)


def test_values_are_counted_from_1_and_none_is_0():
    condition = of_four()
    assert condition.given == ("mask", "contrast", "sex")
    assert condition.labels["contrast"].tolist() == [1, 2, 0, 1] and condition.labels["sex"].tolist() == [1] * 4
    assert Condition().given == KNOWN.condition().given == ()


def test_a_value_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="contrast 'PD' is none of T1, T2"):
        KNOWN.condition(contrast=["T1", "PD"])


def test_part_and_beside_without_treat_every_kind():
    condition = of_four()
    two = condition[torch.tensor([1, 3])]
    assert torch.equal(two.mask, condition.mask[[1, 3]]) and two.labels["contrast"].tolist() == [2, 1]
    twice = condition.beside_without("mask", "sex")
    assert torch.equal(twice.mask, torch.cat([condition.mask, 0 * condition.mask]))
    assert twice.labels["contrast"].tolist() == [1, 2, 0, 1] * 2 and twice.labels["sex"].tolist() == [1] * 4 + [0] * 4
    assert len(condition.mask) == 4 and condition.labels["sex"].tolist() == [1] * 4  # it is not changed itself
    assert condition.to("meta").labels["sex"].device.type == "meta" and condition.to("meta").mask.device.type == "meta"


def test_an_empty_mask_is_not_null():
    empty, null = one_hot(np.zeros((1, 2, 2), int), 2), torch.zeros(1, 2, 2, 2)
    assert not torch.equal(empty, null)
    assert torch.equal(Condition(empty).withhold(mask=1.0, labels=0.0, both=0.0).mask, null)


def test_of_each_sample_mask_or_labels_or_both_are_withheld_at_their_rates():
    n = 20_000
    condition = Condition(torch.ones(n, 1, 1, 1), {"contrast": torch.ones(n).long(), "sex": torch.ones(n).long()})
    condition = condition.withhold(mask=0.1, labels=0.3, both=0.2)
    mask, contrast, sex = ((x.flatten() == 0) for x in (condition.mask, *condition.labels.values()))
    assert torch.equal(contrast, sex)  # the labels go together
    for gone, share in ((mask & ~sex, 0.1), (~mask & sex, 0.3), (mask & sex, 0.2), (~mask & ~sex, 0.4)):
        assert gone.double().mean().item() == pytest.approx(share, abs=0.015)
    kept = of_four().withhold(mask=0.0, labels=0.0, both=0.0)
    assert torch.equal(kept.mask, of_four().mask) and torch.equal(kept.labels["sex"], of_four().labels["sex"])


@pytest.mark.parametrize("condition", [Condition(), KNOWN.condition(sex=["F", "M"]), Condition(torch.ones(2, 2, 1, 1))])
def test_withholding_leaves_out_nothing_that_is_not_there(condition):
    without = condition.withhold(mask=0.0, labels=0.0, both=1.0)
    assert without.given == condition.given
    assert not any(x.any() for x in (without.mask, *without.labels.values()) if x is not None)


def test_mirror_turns_what_has_sides():
    condition, chosen = of_four(), torch.tensor([True, False, True, False]).view(-1, 1, 1, 1)
    mirrored = condition.mirror(chosen)
    assert torch.equal(mirrored.mask[0], condition.mask[0].flip(-1)) and torch.equal(
        mirrored.mask[1], condition.mask[1]
    )
    assert mirrored.labels is condition.labels
    assert Condition().mirror(chosen).given == ()
