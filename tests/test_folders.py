"""Folders of one's own: what lies there is recognised, split by subject, decoded once and never stale."""

import json
import os
import re
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_sets import SIZE, noise, split_set, subject_set, write, yes_no_set

from ddpm import UserError
from ddpm.data import folders, pictures, store
from ddpm.data.folders import split_by_subject
from ddpm.data.layout import Item, lies_in
from ddpm.evaluation.comparison import read_folder
from ddpm.runtime import cache
from ddpm.runtime.config import Config

pytestmark = pytest.mark.usefixtures("own_cache")


def load(root, split="train", size=SIZE, masks="", **options):
    return folders.load(Config(data=str(root), masks=str(masks), image_size=list(size), **options), split)


# What is decoded is what lies there


def test_pixels_and_labels_are_those_of_the_files(tmp_path):
    split_set(tmp_path / "d")
    for s, split in enumerate(("train", "val")):
        data = load(tmp_path / "d", split)
        assert data.images.shape == (3, 1, *SIZE) and data.masks.shape == (3, *SIZE)
        assert data.index["names"] == ["s0", "s1", "s2"] and data.classes == ("background", "class 1")
        for i in range(3):
            assert np.array_equal(data.images[i, 0], noise(s, i))
            assert np.array_equal(data.masks[i], noise(s, i, 1, top=2) * (i > 0))
        pixels = np.array(data.index["class_pixels"])  # (N, K)
        assert (pixels[:, 1] == 0).sum() == 1
        assert (pixels.sum(axis=1) == data.masks[0].size).all()
        assert np.array_equal(pixels[:, 1], data.masks.sum(axis=(1, 2)))


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "tif", "tiff", "PNG"])
def test_every_ending_is_read_and_pairs_with_a_mask_of_another(tmp_path, ending):
    for split, grey in (("train", 60), ("val", 90)):
        flat = np.full(SIZE, grey, np.uint8)
        flat[5:] += 40
        write(tmp_path / "d" / split / "images" / f"x.{ending}", flat)
        write(tmp_path / "d" / split / "masks" / "x.png", noise(1, top=2))
    data = load(tmp_path / "d")
    assert abs(data.images[0, 0].astype(int) - np.where(np.arange(20) < 5, 60, 100)[:, None]).max() <= 8  # JPEG


def test_masks_shrink_by_nearest_neighbour_and_images_by_their_average(tmp_path):
    for split in ("train", "val"):
        stripes = np.tile(np.array([0, 200], np.uint8), (40, 20))  # columns of 0 and 200
        stripes[0, 0] = 100 if split == "val" else 0
        write(tmp_path / "d" / split / "images" / "x.png", stripes)
        write(tmp_path / "d" / split / "masks" / "x.png", np.tile(np.array([0, 1], np.uint8), (40, 20)))
    data = load(tmp_path / "d", size=(8, 8))
    assert abs(data.images[0, 0, 2:-2, 2:-2].astype(int) - 100).max() < 25
    assert set(np.unique(data.masks)) <= {0, 1}


def test_masks_elsewhere_and_no_masks(tmp_path):
    split_set(tmp_path / "d")
    for split in ("train", "val"):
        (tmp_path / "m").mkdir(exist_ok=True)
        (tmp_path / "d" / split / "masks").rename(tmp_path / "m" / split)
    assert load(tmp_path / "d", masks=tmp_path / "m").masks.any()
    without = load(tmp_path / "d")
    assert without.masks is None and without.classes == ()
    assert load(tmp_path / "d", masks=tmp_path / "m", labels="none").masks is None


def test_more_classes(tmp_path):
    for s, split in enumerate(("train", "val")):
        write(tmp_path / "d" / split / "images" / "x.png", noise(s))
        write(tmp_path / "d" / split / "masks" / "x.png", noise(s, 1, top=4))
    data = load(tmp_path / "d", num_classes=4)
    assert data.classes == ("background", "class 1", "class 2", "class 3")
    assert np.array_equal(data.masks[0], noise(0, 1, top=4))


def test_sixteen_bits_are_windowed_by_percentiles_of_the_folder(tmp_path):
    """The window is of all pictures of the folder together, so grey levels can be compared between them."""
    split_set(tmp_path / "d", n=8, top=4000, dtype=np.uint16)
    data = load(tmp_path / "d")
    raw = np.stack([noise(0, i, top=4000, dtype=np.uint16) for i in range(8)]).astype(float)
    low = np.percentile(raw, 1)
    high = np.percentile(raw[raw > low], 99.5)
    assert data.index["windows"] == {"": [low, high]}
    expected = np.rint(255 * ((raw - low) / (high - low)).clip(0, 1))
    assert abs(data.images[:, 0] - expected).max() <= 1
    assert len(np.unique(data.images)) > 200


def test_every_split_is_shown_in_the_window_of_the_one_to_train_on(tmp_path):
    root = split_set(tmp_path / "d", top=4000, dtype=np.uint16)
    for i in range(3):  # of twice the intensities
        write(root / "val" / "images" / f"s{i}.png", noise(1, i, top=8000, dtype=np.uint16))
    train, val = load(root), load(root, "val")
    assert val.index["windows"] == train.index["windows"]
    low, high = train.index["windows"][""]
    expected = np.rint(255 * ((noise(1, 2, top=8000, dtype=np.uint16) - low) / (high - low)).clip(0, 1))
    assert abs(val.images[2, 0] - expected).max() <= 1
    write(root / "train" / "images" / "s0.png", noise(0, 0, top=2000, dtype=np.uint16))
    assert load(root, "val").index["windows"] == load(root).index["windows"] != train.index["windows"]  # not stale


@pytest.mark.parametrize("name", ["{}.png", "{}/a.png"])
def test_a_picture_of_16_bits_in_two_splits_is_noticed(tmp_path, name):
    """Whatever the window of its subject makes of it."""
    folders_of = {split: tmp_path / "d" / split / "images" for split in ("train", "val")}
    for s, (split, folder) in enumerate(folders_of.items()):
        for i in range(3):
            write(folder / name.format(f"{split}{i}"), noise(s, i, top=4000, dtype=np.uint16))
    write(folders_of["val"] / name.format("val9").replace("a.png", "b.png"), noise(1, 9, top=9000, dtype=np.uint16))
    assert len(load(tmp_path / "d", "val")) == 4
    write(folders_of["val"] / name.format("val9"), noise(0, 1, top=4000, dtype=np.uint16))
    with pytest.raises(UserError, match="val9.* in val is the same image as train1.* in train"):
        load(tmp_path / "d", "val")


def test_the_window_of_a_subject_is_its_own(tmp_path):
    for s, top in enumerate((100, 1000, 10_000, 60_000)):
        for i in range(2):
            write(tmp_path / "d" / "images" / f"p{s}" / f"{i}.png", noise(s, i, top=top, dtype=np.uint16))
    for split in ("train", "val", "test"):
        data = load(tmp_path / "d", split)
        for (subject, (_, high)), image in zip(data.index["windows"].items(), data.images[::2], strict=True):
            assert 0.9 < high / {"p0": 100, "p1": 1000, "p2": 10_000, "p3": 60_000}[subject] <= 1
            assert image.max() == 255


def test_three_channels_only_when_asked(tmp_path):
    for s, split in enumerate(("train", "val")):
        write(tmp_path / "d" / split / "images" / "x.png", noise(s, size=(*SIZE, 3)))
    colours = load(tmp_path / "d", image_channels=3)
    assert np.array_equal(colours.images[0], np.moveaxis(noise(0, size=(*SIZE, 3)), -1, 0))
    grey = load(tmp_path / "d")
    assert np.array_equal(grey.images[0, 0], np.asarray(Image.fromarray(noise(0, size=(*SIZE, 3))).convert("L")))
    assert load(tmp_path / "d", image_channels=3, size=(10, 12)).images.shape == (1, 3, 10, 12)


def test_links_are_followed_and_hidden_files_are_not_data(tmp_path):
    split_set(tmp_path / "d")
    (tmp_path / "d" / "val" / "images").rename(tmp_path / "elsewhere")
    (tmp_path / "d" / "val" / "images").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "d" / "train" / "images" / "._s0.png").write_bytes(b"macOS leaves these")
    (tmp_path / "d" / "train" / "images" / "__MACOSX").mkdir()
    (tmp_path / "d" / "train" / "images" / "__MACOSX" / "s9.png").write_bytes(b"and these")
    assert len(load(tmp_path / "d")) == len(load(tmp_path / "d", "val")) == 3


def test_hidden_pictures_are_none_to_sample_and_to_compare(tmp_path):
    for name in ("a.png", "b.png"):
        write(tmp_path / "d" / name, noise(1))
    (tmp_path / "d" / "._a.png").write_bytes(b"macOS leaves these")
    (tmp_path / "d" / "._a.nii.gz").write_bytes(b"and these")
    assert list(folders.pictures_in(tmp_path / "d")) == ["a", "b"]
    assert len(read_folder(str(tmp_path / "d"), "--real", "", False)) == 2


@pytest.mark.parametrize("name", ["schön und größer", "切片 7", "a" * 240, "slice.with.dots", "a'b\"c$(d)"])
def test_names_may_be_odd(tmp_path, name):
    root = split_set(tmp_path / "d")
    write(root / "train" / "images" / f"{name}.png", noise(9))
    write(root / "train" / "masks" / f"{name}.png", noise(9, top=2))
    assert name in load(root).index["names"]
    assert "train" in folders.table(load(root), load(root, "val"))


# Splits


def test_a_split_is_of_subjects(tmp_path):
    subject_set(tmp_path / "d", subjects=12, n=3)
    found = {split: load(tmp_path / "d", split).index["subjects"] for split in ("train", "val", "test")}
    assert sorted(sum(found.values(), [])) == sorted(f"p{s}" for s in range(12) for _ in range(3))
    for one in found:
        for other in found:
            assert one == other or not set(found[one]) & set(found[other])
    assert len(set(found["train"])) > 6


def test_a_pattern_finds_subjects_in_names(tmp_path):
    subject_set(tmp_path / "flat", nested=False)
    with pytest.raises(UserError, match="which pictures are of one subject"):
        load(tmp_path / "flat")
    for pattern in ("^[^_]+", r"^(p\d)_"):
        found = [load(tmp_path / "flat", split, subject_pattern=pattern) for split in ("train", "val", "test")]
        assert sorted(sum((data.index["subjects"] for data in found), [])) == [f"p{s}" for s in range(6) for _ in "ab"]
    subject_set(tmp_path / "deep", n=4)  # and overrules the folders
    assert set(load(tmp_path / "deep", subject_pattern=r"\d$").index["subjects"]) < set("0123")


def test_the_question_whose_the_pictures_are_shows_what_patterns_would_find(tmp_path):
    """Where a pattern for names finds classes it is not offered; what the one that is given finds is told."""
    subject_set(tmp_path / "flat", nested=False)
    offered = r"--subject-pattern '\^\[\^_\]\+' \(6 subjects, such as 'p0'\) or '.\+' \(12 subjects, such as 'p0_0'\)$"
    with pytest.raises(UserError, match=offered):
        load(tmp_path / "flat")
    for c, kind in enumerate(("glioma", "meningioma", "pituitary")):
        for i in range(4):
            write(tmp_path / "kaggle" / kind / f"Tr-{kind[:2]}_{i:04d}.jpg", noise(c, i))
    with pytest.raises(
        UserError, match=r"--subject-pattern '.\+' \(12 .* or '.*/.*' \(3 subjects, such as 'glioma'\)$"
    ):
        load(tmp_path / "kaggle")
    told = load(tmp_path / "kaggle", subject_pattern="^[^_]+").index["about"]
    assert told.endswith("subjects such as 'glioma/Tr-gl', 'meningioma/Tr-me', 'pituitary/Tr-pi', each a whole folder")
    assert "subjects" not in load(subject_set(tmp_path / "d")).index["about"]
    assert load(tmp_path / "d", subject_pattern=".+").index["about"].endswith("subjects such as 'p0/0', 'p0/1', 'p1/0'")


@pytest.mark.parametrize("folder", ["Train", "TEST", "Training", "validation"])
def test_a_folder_that_is_named_as_a_split_is_is_no_subject(tmp_path, folder):
    root = subject_set(tmp_path / "d")
    for kind in ("images", "masks"):
        (root / kind / "p0").rename(root / kind / folder)
    with pytest.raises(UserError, match=f"is '{folder}' a subject. call folders of splits train/"):
        load(root)
    assert len(load(root, subject_pattern="^[^/]+")) > 0  # the user says so


def test_folders_of_splits_that_a_format_does_not_know_are_not_mixed(tmp_path):
    """What a user holds out must not be trained on."""
    for name in ("{}/c{}/c{}_t1", "{}/c{}/c{}", "{}/yes/c{}{}", "multicoil_{}/f{}{}"):
        found = {}
        for split in ("Training", "Testing"):
            found[split] = [Item(name.format(split, s, s), ("x",), None, f"{split}{s}") for s in range(5)]
            folders.refuse_pooling(found[split])  # of one folder alone there is nothing to mix
        with pytest.raises(
            UserError, match=".*Testing and .*Training would be mixed.*call them train/, val/ and test/"
        ):
            folders.refuse_pooling(sum(found.values(), []))
    visits = [
        Item(f"s{s}/{visit}/t1", ("x",), None, f"s{s}") for s in range(5) for visit in ("pre_training", "post_test")
    ]
    folders.refuse_pooling(visits)
    brats = [Item(f"MICCAI_BraTS2020_{split}Data/c/c", ("x",), None, split) for split in ("Training", "Validation")]
    with pytest.raises(UserError, match="TrainingData and .*ValidationData would be mixed"):
        folders.refuse_pooling(brats)
    for split in ("Training", "Testing"):
        for s in range(9):
            write(tmp_path / "d" / split / "glioma" / f"p{s}.png", noise(s, len(split)))
    with pytest.raises(
        UserError, match="Testing and Training would be mixed.*call them train/images/, val/images/ and"
    ):
        load(tmp_path / "d", subject_pattern=".+")
    assert len(load(tmp_path / "d" / "Training", subject_pattern=".+")) > 3


@pytest.mark.parametrize("name", ["Masks/0.png", "a/x_seg.png", "a/mask.png", "x-Segmentation.png", "IXI2label.png"])
def test_what_is_named_as_a_mask_is_is_no_image(tmp_path, name):
    for s in range(8):
        write(tmp_path / "d" / "a" / f"p{s}.png", noise(s))
    write(tmp_path / "d" / "a" / "unmask_this.png", noise(9))
    write(tmp_path / "d" / name, noise(10))
    write((tmp_path / "d" / name).with_suffix(".tif"), noise(11))  # of the same name: it keeps its ending
    with pytest.raises(UserError, match=f"{name}: an image that is named as masks are"):
        load(tmp_path / "d", subject_pattern=".+")
    found = [load(tmp_path / "d", split, subject_pattern=".+", skip_bad=True) for split in ("train", "val", "test")]
    assert sum(map(len, found)) == 9 and len(found[0].index["bad"]) == 2


@pytest.mark.parametrize("name", ["images/p0/0_mask.png", "train/images/s1_label.png"])
def test_what_is_named_as_a_mask_is_is_no_image_below_images_either(tmp_path, name):
    root = subject_set(tmp_path / "d") if name.startswith("images") else split_set(tmp_path / "d", masks=False)
    shutil.rmtree(root / "masks", ignore_errors=True)
    load(root)
    write(root / name, noise(9))
    with pytest.raises(UserError, match=f"{name}: an image that is named as masks are"):
        load(root)


@pytest.mark.parametrize("name", ["a/p3_mask_1.png", "a/p3-seg-tumour.png", "a/p3_annotation.png", "a/p3.Label2.tif"])
def test_what_is_named_as_the_mask_of_an_image_is_is_none(tmp_path, name):
    for s in range(8):
        write(tmp_path / "d" / "a" / f"p{s}.png", noise(s))
    for stranger in ("label_1.png", "p9_mask_1.png", "p3_segment.png", "p3_masked.png"):  # of no image, or no mask
        write(tmp_path / "d" / "a" / stranger, noise(9, len(stranger)))
    assert sum(len(load(tmp_path / "d", split, subject_pattern=".+")) for split in ("train", "val", "test")) == 12
    write(tmp_path / "d" / name, noise(10))
    with pytest.raises(UserError, match=f"{name}: an image that is named as masks are"):
        load(tmp_path / "d", subject_pattern=".+")


@pytest.mark.parametrize("name", ["image/p{}_tumour.png", "image/p{}.tif", "gt/p{}.png", "Ground truth/p{}.png"])
def test_a_picture_of_few_values_beside_its_image_is_none(tmp_path, name):
    """Whatever it is called; x.tif beside x.png, as one beside another folder, is an image if its values are many."""
    for s in range(4):
        write(tmp_path / "d" / "image" / f"p{s}.png", noise(s))
        write(tmp_path / "d" / name.format(s), noise(s, 9))
    pattern = {"subject_pattern": r"p\d"}
    assert sum(len(load(tmp_path / "d", split, **pattern)) for split in ("train", "val", "test")) == 8
    for s in range(4):
        write(tmp_path / "d" / name.format(s), noise(s, top=8))
    with pytest.raises(UserError, match=name.format(".") + r": few different values, as a mask of p\d.png has"):
        load(tmp_path / "d", **pattern)
    found = [load(tmp_path / "d", split, skip_bad=True, **pattern) for split in ("train", "val", "test")]
    assert sum(map(len, found)) == 4 and all(image.max() > 8 for data in found for image in data.images)


def test_slices_that_are_nearly_air_are_images(tmp_path):
    """They have as few values as a mask, and slices of other heads have their names."""
    root = subject_set(tmp_path / "d", n=3)
    shutil.rmtree(root / "masks")
    for s in range(6):
        write(root / "images" / f"p{s}" / "0.png", noise(s, top=5))
    assert sum(len(load(root, split)) for split in ("train", "val", "test")) == 18


@pytest.mark.parametrize("name", ["labels", "Masks", "tumour_masks", "gt"])
def test_masks_beside_images_under_another_name_are_not_overlooked(tmp_path, name):
    root = subject_set(tmp_path / "d")
    masks = load(root).masks.copy()
    (root / "masks").rename(root / name)
    with pytest.raises(UserError, match=f"d/{name}: named as masks are, but not used; give --masks .*d/{name}, or"):
        load(root)
    assert np.array_equal(load(root, masks=root / name).masks, masks) and load(root, labels="none").masks is None
    root = split_set(tmp_path / "e")
    for split in ("train", "val"):
        (root / split / "masks").rename(root / split / name)
    with pytest.raises(UserError, match=f"train/{name}: named as masks are, but not used; call it masks/, or"):
        load(root)
    assert load(root, labels="none").masks is None


def test_boxes_beside_images_are_no_masks(tmp_path):
    root = split_set(tmp_path / "d", masks=False)
    for split in ("train", "val"):
        (root / split / "labels").mkdir()
        (root / split / "labels" / "s0.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert load(root).masks is None


def test_masks_may_lie_in_a_folder_among_the_pictures(tmp_path, monkeypatch):
    for s in range(8):
        write(tmp_path / "d" / f"p{s}.png", noise(s))
        write(tmp_path / "d" / "masks" / f"p{s}.png", noise(s, top=2))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "d")
    for masks in (str(tmp_path / "d" / "masks"), "d/masks", "d/../d/masks", "link/masks"):
        where = {"masks": masks, "subject_pattern": ".+"}
        found = [load(tmp_path / "d", split, **where) for split in ("train", "val", "test")]
        assert sum(map(len, found)) == 8 and all(data.masks is not None for data in found)


def test_bad_pictures_at_the_start_do_not_hide_how_deep_the_others_are(tmp_path):
    for i in range(4):
        write(tmp_path / "d" / "train" / "images" / f"{i}.png", noise(i, top=4000, dtype=np.uint16))
        write(tmp_path / "d" / "val" / "images" / f"{i}.png", noise(i, 1, top=4000, dtype=np.uint16))
    for i in (0, 2):  # those that are looked at first
        (tmp_path / "d" / "train" / "images" / f"{i}.png").write_bytes(b"")
    assert len(load(tmp_path / "d", skip_bad=True)) == 2
    for i in (1, 3):
        write(tmp_path / "d" / "train" / "images" / f"{i}.png", np.zeros(SIZE, np.uint16))
    with pytest.raises(UserError, match="every voxel has the value 0"):
        load(tmp_path / "d", skip_bad=True)


def test_folders_yes_and_no_are_not_subjects(tmp_path):
    found = [load(yes_no_set(tmp_path / "d"), split, size=(32, 32)) for split in ("train", "val", "test")]
    assert sum(map(len, found)) == 12 and all(data.masks is None for data in found)
    assert len({name.split("/")[1] for name in found[0].index["names"]}) == 2  # pictures of both in train


def test_without_masks_names_need_not_differ(tmp_path):
    root = split_set(tmp_path / "d", masks=False)
    write(root / "train" / "images" / "s1.jpg", noise(9))
    assert load(root).index["names"] == ["s0", "s1", "s1.png", "s2"]


def items_of(subjects, n=2):
    return [Item(f"{s}_{i}", (), None, s) for s in subjects for i in range(n)]


@settings(max_examples=60, deadline=None)
@given(st.sets(st.text(min_size=1, max_size=8), min_size=3, max_size=60), st.integers(0, 2**32 - 1))
def test_every_split_gets_subjects_and_no_subject_two_splits(subjects, seed):
    split = split_by_subject(items_of(sorted(subjects)), seed, "d")
    places = {}
    for item in split:
        places.setdefault(item.subject, set()).add(item.split)
    assert all(len(found) == 1 for found in places.values())
    assert {item.split for item in split} == {"train", "val", "test"}
    shuffled = split_by_subject(items_of(sorted(subjects))[::-1], seed, "d")
    assert {item.name: item.split for item in shuffled} == {item.name: item.split for item in split}


def test_a_subject_stays_in_its_split_when_others_come():
    few, many = ([f"case {i}" for i in range(n)] for n in (60, 200))
    before, after = ({item.subject: item.split for item in split_by_subject(items_of(s), 5, "d")} for s in (few, many))
    assert all(after[subject] == split for subject, split in before.items())
    shares = [sum(split == name for split in after.values()) / 200 for name in ("train", "val", "test")]
    assert abs(shares[0] - 0.8) < 0.09 and abs(shares[1] - 0.1) < 0.07 and abs(shares[2] - 0.1) < 0.07


def test_another_seed_splits_otherwise():
    subjects = [f"case {i}" for i in range(50)]
    one, two = ([item.split for item in split_by_subject(items_of(subjects), seed, "d")] for seed in (0, 1))
    assert one != two


def test_no_image_of_train_is_held_out(tmp_path):
    """The same picture under another name, even in another format."""
    root = split_set(tmp_path / "d")
    write(root / "val" / "images" / "s1.png", noise(0, 2), compress_level=1)
    with pytest.raises(UserError, match="s1 in val is the same image as s2 in train"):
        load(root, "val")
    kept = load(root, "val", skip_bad=True)
    assert kept.index["names"] == ["s0", "s2"] and len(kept) == len(kept.masks) == 2
    assert np.array_equal(kept.images[1, 0], noise(1, 2)) and np.array_equal(kept.masks[1], noise(1, 2, 1, top=2))
    assert len(kept.index["bad"]) == 1 and len(kept.index["class_pixels"]) == len(kept)
    assert [counts[1] for counts in kept.index["class_pixels"]] == kept.masks.sum(axis=(1, 2)).tolist()


def test_black_images_are_no_leak(tmp_path):
    root = split_set(tmp_path / "d")
    for split in ("train", "val"):
        write(root / split / "images" / "s0.png", np.zeros(SIZE, np.uint8))
    assert len(load(root, "val")) == 3


# Decoded once, and never stale


def no_decoding(monkeypatch):
    def forbidden(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(pictures, "read_pixels", forbidden)


def test_the_second_start_decodes_nothing(tmp_path, monkeypatch):
    root = split_set(tmp_path / "d")
    first = load(root)
    no_decoding(monkeypatch)
    second = load(root)
    assert np.array_equal(first.images, second.images) and np.array_equal(first.masks, second.masks)
    assert first.index == second.index


def test_arrays_are_mapped_not_read(tmp_path):
    data = load(split_set(tmp_path / "d"))
    for array in (data.images, data.masks):
        assert type(array) is np.ndarray and isinstance(array.base, np.memmap) and not array.flags.writeable
    x_0, condition = data.batch([2, 0])
    assert torch.equal(x_0[1, 0], torch.from_numpy(noise(0, 0)) / 127.5 - 1) and condition.given == ("mask",)
    x_0 += 1  # a batch is a copy
    assert np.array_equal(load(tmp_path / "d").images, data.images)


def test_where_one_stands_decides_what_a_relative_path_means(tmp_path, monkeypatch):
    for place in ("a", "b"):
        (tmp_path / place / "d" / "masks").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / place)
        assert lies_in(Path("d/masks"), "d/masks/x.png") and not lies_in(Path("d/masks"), "d/x.png")
        assert not lies_in(tmp_path / "b" / "d" / "masks", "d/masks/x.png") or place == "b"


def test_another_folder_of_the_same_name_is_another_set(tmp_path, monkeypatch):
    """Files of one size and time, as archives unpack to: only where they lie tells them apart."""
    for version in ("a", "b"):
        root = split_set(tmp_path / version / "set")
        for path in (root / "train" / "masks").iterdir():
            write(path, np.full(SIZE, 255 * (version == "b"), np.uint8), compress_level=0)
        for path in root.rglob("*.png"):
            os.utime(path, (10**9, 10**9))
    found = {}
    for version in ("a", "b"):
        monkeypatch.chdir(tmp_path / version)
        found[version] = load("set").masks.mean()
    assert found == {"a": 0, "b": 1}


def test_masks_elsewhere_may_be_named_from_where_one_stands(tmp_path, monkeypatch):
    for s in range(8):
        write(tmp_path / "d" / f"p{s}.png", noise(s))
        write(tmp_path / "m" / f"p{s}.png", noise(s, top=2))
    monkeypatch.chdir(tmp_path / "d")
    data = load(".", masks="../m", subject_pattern=".+")
    assert data.masks is not None and len(data) == 5


@pytest.mark.parametrize("change", ["picture", "mask", "time", "new", "size", "classes", "channels"])
def test_whatever_could_change_a_pixel_decodes_again(tmp_path, change):
    root = split_set(tmp_path / "d")
    before = load(root)
    options = {"size": (10, 12)} if change == "size" else {"num_classes": 3} if change == "classes" else {}
    if change == "picture":
        write(root / "train" / "images" / "s1.png", noise(77))
    if change == "mask":
        write(root / "train" / "masks" / "s1.png", noise(77, top=2))
    if change == "time":
        (root / "train" / "images" / "s1.png").touch()
    if change == "new":
        write(root / "train" / "images" / "s3.png", noise(77))
        write(root / "train" / "masks" / "s3.png", noise(77, top=2))
    if change == "classes":
        for path in (root / "train" / "masks").iterdir():
            write(path, np.asarray(Image.open(path)) // 255)
    if change == "channels":
        for path in (root / "train" / "images").iterdir():
            write(path, noise(7, size=(*SIZE, 3)))
        options = {"channels": 3}
    after = load(root, **options)
    assert after.index["key"] != before.index["key"]
    if change == "picture":
        assert np.array_equal(after.images[1, 0], noise(77))
    if change == "mask":
        assert np.array_equal(after.masks[1], noise(77, top=2))
    if change == "new":
        assert len(after) == 4


@pytest.mark.parametrize("damage", ["cut", "byte", "gone", "index", "half index", "other index"])
def test_a_damaged_store_is_made_again(tmp_path, damage, capsys):
    root = split_set(tmp_path / "d")
    before = load(root)
    images, labels = before.images.copy(), before.masks.copy()
    folder = store.folder_of(before.index["key"])
    path = folder / ("images.npy" if damage in ("cut", "byte") else "labels.npy" if damage == "gone" else "index.json")
    content = path.read_bytes()
    if damage == "cut":
        path.write_bytes(content[:-7])
    if damage == "byte":
        path.write_bytes(content[:-7] + bytes([content[-7] ^ 255]) + content[-6:])
    if damage == "gone":
        path.unlink()
    if damage == "index":
        path.write_text("[]")
    if damage == "half index":
        path.write_bytes(content[: len(content) // 2])
    if damage == "other index":
        path.write_text(json.dumps({"files": {"images.npy": [1, 2]}}))
    after = load(root)
    assert np.array_equal(after.images, images) and np.array_equal(after.masks, labels)
    assert "damaged" in capsys.readouterr().out
    load(root)
    assert "damaged" not in capsys.readouterr().out


def test_a_store_is_written_whole_or_not_at_all(tmp_path, own_cache, monkeypatch):
    root, add, calls = split_set(tmp_path / "d"), store.Writer.add, []

    def full_disk(self, *arrays):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        add(self, *arrays)

    monkeypatch.setattr(store.Writer, "add", full_disk)
    with pytest.raises(UserError, match="No space left on device.*make room"):
        load(root)
    assert not list(own_cache.iterdir())
    assert len(load(root)) == 3  # the fourth call is fine again


def test_a_disk_that_fills_up_while_it_is_decoded_to_keeps_nothing(tmp_path, own_cache):
    """The operating system's own limit: what could not be written is tried once more when the files are closed."""
    root = split_set(tmp_path / "d", n=9)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (600, hard))
    try:
        with pytest.raises(UserError, match="File too large; decoded images go to .*make room there"):
            load(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(own_cache.iterdir())


def test_no_file_of_a_store_is_open_when_it_gets_its_name(monkeypatch):
    """Windows would refuse to rename the folder."""
    replace, open_then = os.replace, []

    def noting(old, new):
        if os.path.isdir(old):
            open_then.extend(not file.closed for file in writer.files.values())
        replace(old, new)

    monkeypatch.setattr(store.os, "replace", noting)
    with store.Writer("k", (1, 2, 2), True) as writer:
        writer.add(np.ones((1, 2, 2), np.uint8), np.ones((2, 2), np.uint8))
    assert open_then == [False, False] and store.read("k")[0].sum() == 4


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "CACHE", tmp_path / "file" / "cache")
    with pytest.raises(UserError, match="file/cache.*let it be written"):
        load(split_set(tmp_path / "d"))


def test_two_processes_that_decode_at_once_agree(tmp_path):
    """The slower of two writers finds the store there, and leaves it alone."""
    key, shape = "k", (1, 2, 2)
    with store.Writer(key, shape, False) as slow:
        with store.Writer(key, shape, False) as fast:
            fast.add(np.ones(shape, np.uint8), None)
        inode = (store.folder_of(key) / "images.npy").stat().st_ino
        slow.add(np.ones(shape, np.uint8), None)
    assert (store.folder_of(key) / "images.npy").stat().st_ino == inode
    assert [path.name for path in cache.CACHE.iterdir()] == ["slices-k"]
    assert store.read(key)[0].sum() == 4


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 5), st.booleans())
def test_the_store_is_a_plain_npy_file(tmp_path_factory, n, height, width, labelled):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "CACHE", tmp_path_factory.mktemp("cache"))
        images = noise(n, size=(n, 1, height, width))
        with store.Writer("k", (1, height, width), labelled) as writer:
            for image in images:
                writer.add(image, image[0] if labelled else None)
        assert np.array_equal(np.load(store.folder_of("k") / "images.npy"), images)
        stored, labels, _, _ = store.read("k")
        assert np.array_equal(stored, images) and (np.array_equal(labels, images[:, 0]) if labelled else labels is None)


# What is told


def test_the_table_says_what_was_found(tmp_path):
    root = split_set(tmp_path / "d", splits=("train", "val", "test"))
    text = folders.table(load(root), load(root, "val"))
    assert re.search(r"^train +3 +\? +33.3%$", text, re.M) and re.search(r"^val +3 ", text, re.M)
    assert re.search(r"^test +- +\? +not read$", text, re.M)
    assert "pictures in train/, val/ and test/ with masks" in text
    pixels = np.concatenate([load(root).masks, load(root, "val").masks])
    assert f"class 1 {pixels.mean():.2%}" in text and f"background {1 - pixels.mean():.2%}" in text


def test_the_table_says_one_where_one_subject_is_known(tmp_path):
    root = subject_set(tmp_path / "d", subjects=5)
    assert re.search(r"^val +2 +1 ", folders.table(load(root), load(root, "val")), re.M)
    assert re.search(r"^test +- +1 +not read$", folders.table(load(root), load(root, "val")), re.M)


def test_the_table_counts_files_of_no_use(tmp_path):
    root = split_set(tmp_path / "d")
    (root / "notes.txt").write_text("")
    (root / "train" / "images" / "LICENCE").write_text("")
    write(root / "more" / "s9.png", noise(9))
    assert "not used: 1 without ending, 1 .png, 1 .txt" in folders.table(load(root), load(root, "val"))
    assert "not used" not in folders.table(*(load(split_set(tmp_path / "e"), split) for split in ("train", "val")))
    assert "6 .png" in folders.table(*(load(tmp_path / "e", split, labels="none") for split in ("train", "val")))


def test_the_table_counts_what_was_skipped(tmp_path):
    root = split_set(tmp_path / "d")
    (root / "train" / "images" / "s1.png").write_bytes(b"")
    (root / "val" / "masks" / "s2.png").unlink()
    text = folders.table(load(root, skip_bad=True), load(root, "val", skip_bad=True))
    assert "skipped 2 bad" in text and "s1.png" in text and "s2.png" in text
    assert re.search(r"^train +2 ", text, re.M) and re.search(r"^val +2 ", text, re.M)
    again = folders.table(load(root, skip_bad=True), load(root, "val", skip_bad=True))
    assert again == text  # also when nothing is decoded
