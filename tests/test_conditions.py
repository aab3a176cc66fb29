"""What a sample is asked to follow: null, withheld, encoded."""

import itertools
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.conditions import KINDS, LONGEST, Condition, Vocabulary, one_hot

LABELS = {"contrast": ("T1", "T2"), "sex": ("F", "M")}
KNOWN = Vocabulary(("background", "lesion"), LABELS, source=("PD",), words=("large", "lesion", "left"))


def of_four():
    """Every kind of condition, of four samples; the source is black, -1."""
    masks, source = np.eye(4, dtype=int).reshape(4, 2, 2), -np.ones((4, 1, 2, 2), np.float32)
    words = KNOWN.numbers(["large lesion", "left", "lesion", "lesion, left"])
    return KNOWN.condition(masks, source, words, contrast=["T1", "T2", None, "T1"], sex=["F"] * 4)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 7), st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_one_hot_has_one_channel_set_and_it_is_the_label(classes, height, width, seed):
    labels = np.random.default_rng(seed).integers(0, classes, (2, height, width), dtype=np.uint8)
    mask = one_hot(labels, classes)
    assert mask.shape == (2, classes, height, width) and mask.dtype == torch.float32
    assert (mask.sum(dim=1) == 1).all() and np.array_equal(mask.argmax(dim=1).numpy(), labels)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32])
def test_one_hot_takes_labels_of_any_type_and_no_class_that_is_not_there(dtype):
    assert one_hot(np.array([[[0, 1]]], dtype), 2).tolist() == [[[[1, 0]], [[0, 1]]]]
    with pytest.raises(ValueError, match="in a mask; known are 0 to 0"):
        one_hot(np.array([[[0, 1]]], dtype), 1)
    if dtype is np.int64:
        with pytest.raises(ValueError, match="classes -1 to 1"):
            one_hot(np.array([[[-1, 1]]], dtype), 2)


@pytest.mark.parametrize("value", [0.5, 0.999, np.nan, 1.5])
def test_a_mask_of_fractions_is_no_mask(value):
    """Such a pixel is of no class, which is what a mask that is withheld looks like."""
    with pytest.raises(ValueError, match="whole numbers"):
        one_hot(np.array([[[0, value]]]), 3)


@pytest.mark.parametrize(
    "source", [np.full((1, 1, 2, 2), 200, np.uint8), np.full((1, 1, 2, 2), 1.5), np.full((1, 1, 2, 2), np.nan)]
)
def test_a_source_is_in_minus_1_to_1(source):
    with pytest.raises(ValueError, match=r"it must be in \[-1, 1\]"):
        KNOWN.condition(source=source)


def test_values_are_counted_from_1_and_none_is_0():
    condition = of_four()
    assert condition.given == KNOWN.given == ("mask", "source", "words", "contrast", "sex")
    assert set(KINDS) <= set(KNOWN.given) and condition.words.tolist() == [[1, 2], [3, 0], [2, 0], [2, 3]]
    assert condition.labels["contrast"].tolist() == [1, 2, 0, 1] and condition.labels["sex"].tolist() == [1] * 4
    assert Condition().given == KNOWN.condition().given == ()


def test_a_value_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="contrast 'PD' is none of T1, T2"):
        KNOWN.condition(contrast=["T1", "PD"])


def test_part_and_beside_without_treat_every_kind():
    condition = of_four()
    two = condition[torch.tensor([1, 3])]
    assert torch.equal(two.mask, condition.mask[[1, 3]]) and two.labels["contrast"].tolist() == [2, 1]
    assert two.words.tolist() == [[3, 0], [2, 3]] and two.source.shape == (2, 1, 2, 2)
    twice = condition.beside_without("mask", "sex", "words")
    assert twice.words.tolist() == condition.words.tolist() + [[0, 0]] * 4 and (twice.source == -1).all()
    assert torch.equal(twice.mask, torch.cat([condition.mask, 0 * condition.mask]))
    assert twice.labels["contrast"].tolist() == [1, 2, 0, 1] * 2 and twice.labels["sex"].tolist() == [1] * 4 + [0] * 4
    assert len(condition.mask) == 4 and condition.labels["sex"].tolist() == [1] * 4  # it is not changed itself
    assert condition.to("meta").labels["sex"].device.type == "meta" and condition.to("meta").mask.device.type == "meta"


def test_an_empty_mask_is_not_null():
    empty, null = one_hot(np.zeros((1, 2, 2), int), 2), torch.zeros(1, 2, 2, 2)
    assert not torch.equal(empty, null)
    assert torch.equal(Condition(empty).withhold(1.0, 0.0, 0.0, 0.0, all=0.0).mask, null)


def test_each_kind_is_withheld_at_its_rate_and_all_of_them_at_once():
    n, rates, together = 40_000, dict(mask=0.1, labels=0.3, source=0.4, words=0.2), 0.25
    ones = torch.ones(n).long()
    condition = Condition(
        torch.ones(n, 1, 1, 1), {"contrast": ones, "sex": ones}, torch.ones(n, 1, 1, 1), ones[:, None]
    )
    condition = condition.withhold(**rates, all=together)
    gone = {name: x.flatten() == 0 for name, x in condition.parts.items()}
    assert torch.equal(gone.pop("sex"), gone["contrast"])  # the labels go together
    for kinds in itertools.product((False, True), repeat=4):  # which of them are gone
        chosen = torch.stack(
            [gone[k] == there for k, there in zip(("mask", "contrast", "source", "words"), kinds, strict=True)]
        )
        each = [rate if there else 1 - rate for rate, there in zip(rates.values(), kinds, strict=True)]
        expected = (1 - together) * np.prod(each) + together * all(kinds)
        assert chosen.all(dim=0).double().mean().item() == pytest.approx(expected, abs=0.01)
    kept = of_four().withhold(0.0, 0.0, 0.0, 0.0, all=0.0)
    assert all(torch.equal(kept.parts[name], x) for name, x in of_four().parts.items())


def test_what_is_withheld_does_not_depend_on_what_else_is_there():
    masks = []
    for condition in (of_four(), Condition(of_four().mask)):
        torch.manual_seed(0)
        masks.append(condition.withhold(0.5, 0.5, 0.5, 0.5, all=0.0).mask)
    assert torch.equal(*masks)


@pytest.mark.parametrize("condition", [Condition(), KNOWN.condition(sex=["F", "M"]), Condition(torch.ones(2, 2, 1, 1))])
def test_withholding_leaves_out_nothing_that_is_not_there(condition):
    without = condition.withhold(0.0, 0.0, 0.0, 0.0, all=1.0)
    assert without.given == condition.given
    assert not any(x.any() for x in (without.mask, *without.labels.values()) if x is not None)


def test_mirror_turns_what_has_sides():
    condition, chosen = of_four(), torch.tensor([True, False, True, False]).view(-1, 1, 1, 1)
    mirrored = condition.mirror(chosen)
    assert torch.equal(mirrored.mask[0], condition.mask[0].flip(-1)) and torch.equal(
        mirrored.mask[1], condition.mask[1]
    )
    turned = Condition(source=torch.arange(3.0).expand(4, 1, 1, 3)).mirror(chosen).source
    assert turned.flatten(1).tolist() == [[2, 1, 0], [0, 1, 2]] * 2
    assert mirrored.labels == condition.labels and torch.equal(mirrored.words, condition.words)
    assert Condition().mirror(chosen).given == ()


# Words


@pytest.mark.parametrize(
    "prompt", ["a large lesion, left", "LARGE lesion (left)", "large_lesion-left", "lesion left large"]
)
def test_words_are_found_in_any_dress(prompt):
    assert sorted(KNOWN.numbers([prompt])[0].tolist()) == [1, 2, 3]


@pytest.mark.parametrize(
    "prompt, says",
    [
        ("large tumour of the pons", "unknown: tumour, pons; known are large, lesion, left"),
        ("", "no word"),
        ("the", "no word"),
        ("lesion " * 1500, f"10,500 characters, more than {LONGEST}"),
    ],
)
def test_a_prompt_that_cannot_be_understood_is_told_why(prompt, says):
    with pytest.raises(ValueError, match=says):
        KNOWN.numbers([prompt])


def test_any_text_is_numbers_or_a_reason():
    """Of letters at random hardly a word is known: so half of what is tried is made of words."""
    known = st.lists(st.sampled_from([*KNOWN.words, "LARGE", "the", "Left,"]), max_size=8).map(" ".join)
    seen = set()

    @settings(max_examples=100, deadline=None)
    @given(known | st.text(max_size=300))
    def either(prompt):
        try:
            numbers = KNOWN.numbers([prompt])
        except ValueError as error:
            assert str(error)
            seen.add("a reason")
        else:
            assert numbers.shape[0] == 1 and ((numbers > 0) & (numbers <= 3)).all()
            said = re.findall("[a-z]+", prompt.lower())
            assert {KNOWN.words[i - 1] for i in numbers[0]} == {word for word in said if word in KNOWN.words}
            seen.add("numbers")

    either()
    assert seen == {"a reason", "numbers"}
