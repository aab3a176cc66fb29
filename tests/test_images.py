"""uint8 <-> [-1, 1], masks, grids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ddpm import UserError
from ddpm.data import images
from ddpm.data.images import colour_labels, grid, grid_size, read_mask, read_pixels, to_float, to_uint8, write_png


def test_every_grey_level_survives_the_round_trip():
    levels = np.arange(256, dtype=np.uint8)
    assert np.array_equal(to_uint8(to_float(levels)), levels)
    assert to_float(levels)[[0, 255]].tolist() == [-1, 1]


def test_values_outside_are_clipped_not_wrapped():
    assert to_uint8(torch.tensor([-7.0, -1.001, 1.001, 7.0])).tolist() == [0, 0, 255, 255]


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([(2, "L"), (5, "L"), (5, "P")]), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1)
)
def test_resizing_a_mask_invents_no_label(tmp_path_factory, kind, height, width, seed):
    """Nearest neighbour only: each pixel is the one of the file whose area its middle lies in."""
    classes, mode = kind
    labels = np.random.default_rng(seed).integers(0, classes, (17, 23), dtype=np.uint8)
    picture = Image.fromarray(labels)
    if mode == "P":
        picture = picture.convert("P")
        picture.putpalette([i * 40 for i in range(classes) for _ in range(3)])
        picture.frombytes(labels.tobytes())
    path = tmp_path_factory.mktemp("masks") / "m.png"
    picture.save(path)
    read = read_mask(path, tuple("abcdefg"[:classes]), (height, width))
    rows, columns = ((np.arange(n) * 2 + 1) * old // (2 * n) for n, old in ((height, 17), (width, 23)))
    assert np.array_equal(read, labels[rows][:, columns])


def test_masks_of_0_and_255_are_two_classes_only(tmp_path):
    labels = np.zeros((8, 8), np.uint8)
    labels[2:4] = 255
    Image.fromarray(labels).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", ("background", "lesion")), labels // 255)
    with pytest.raises(UserError, match="labels 255"):
        read_mask(tmp_path / "m.png", ("background", "CSF", "GM"))


@pytest.mark.parametrize("palette", [[255, 255, 255, 0, 0, 0], [0, 0, 0, 255, 255, 255]])
def test_of_a_palette_of_black_and_white_white_is_the_lesion(tmp_path, palette):
    """Whichever comes first: as which index a quantised mask has its background is chance."""
    shown = np.zeros((8, 8), np.uint8)
    shown[2:4] = 1
    for lesion in (shown, shown * 0, shown * 0 + 1):
        picture = Image.fromarray(lesion ^ np.uint8(palette[0] == 255), "P")
        picture.putpalette(palette)
        picture.save(tmp_path / "m.png")
        assert np.array_equal(read_mask(tmp_path / "m.png", ("background", "lesion")), lesion)
    picture.putpalette([*palette, 9, 9, 9])
    picture.putpixel((0, 0), 2)  # of more colours it is the indices that count
    picture.save(tmp_path / "m.png")
    labels = read_mask(tmp_path / "m.png", ("background", "CSF", "GM"))
    assert labels[0, 0] == 2 and (labels.ravel()[1:] == (palette[0] == 0)).all()


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_what_is_transparent_is_black(tmp_path, mode):
    """The colour beneath may be anything; here white, which is not seen."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    grey[:, :2] = 255
    picture = Image.fromarray(grey).convert(mode)
    if mode in ("RGBA", "LA"):
        picture.putalpha(Image.fromarray(np.where(grey == 255, 0, 255).astype(np.uint8)))
        picture.save(tmp_path / "a.png")
    else:
        picture.save(tmp_path / "a.png", transparency=255)
    expected = np.where(grey == 255, 0, grey)
    assert np.array_equal(read_pixels(tmp_path / "a.png")[0], expected)
    if mode == "RGBA":
        assert np.array_equal(read_pixels(tmp_path / "a.png", 3), np.stack([expected] * 3))


@pytest.mark.parametrize("ending", ["png", "jpg", "tif"])
def test_a_picture_is_turned_as_a_viewer_turns_it(tmp_path, ending):
    picture = Image.fromarray(np.repeat(np.uint8([[250], [0], [0], [0]]), 8, axis=0).repeat(32, axis=1))
    note = picture.getexif()
    note[0x0112] = 6  # the top is on the right
    picture.save(tmp_path / f"a.{ending}", exif=note)
    (turned,) = read_pixels(tmp_path / f"a.{ending}")
    assert (turned[:, 24:] > 240).all() and (turned[:, :24] < 10).all()
    picture.save(tmp_path / "damaged.jpg", exif=b"Exif\0\0neither order of bytes")
    assert read_pixels(tmp_path / "damaged.jpg")[0, 0].min() > 240


def test_the_values_of_a_mask_may_be_others_than_0_to_the_last(tmp_path):
    labels = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    Image.fromarray(np.array([0, 2, 4], np.uint8)[labels]).save(tmp_path / "m.png")
    assert np.array_equal(read_mask(tmp_path / "m.png", tuple("abc"), known=(0, 2, 4)), labels)
    with pytest.raises(UserError, match="labels 2 that are not known; known are 0 a, 1 b, 4 c"):
        read_mask(tmp_path / "m.png", tuple("abc"), known=(0, 1, 4))


def test_grid_puts_rows_under_each_other(monkeypatch):
    monkeypatch.setattr(images, "CELL_SIZE", 8)
    cells = np.zeros((2, 3, 3, 4, 4), np.uint8)
    cells[1, 2] = 200
    picture = grid(cells)
    assert picture.shape == (*grid_size(2, 3, 4, 4), 3) == (2 * 10, 3 * 10, 3)
    assert (picture[11:19, 21:29] == 200).all() and (picture[1:9, 1:9] == 0).all()


def test_lesions_are_red_and_background_is_black():
    for classes in (2, 5):
        coloured = colour_labels(np.array([[0, classes - 1]]), classes)
        assert coloured.shape == (3, 1, 2)
        assert coloured[:, 0, 0].tolist() == [0, 0, 0] and coloured[0, 0, 1] > 2 * coloured[1, 0, 1]


def test_png_is_written_whole(tmp_path):
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    write_png(tmp_path / "a.png", image)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), image[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
