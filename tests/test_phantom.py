"""The phantom: an image is a function of (seed, split, index); anatomy and physics are as stated."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from ddpm.data import phantom
from ddpm.data.phantom import CONTRASTS, Lesion, draw_subject, load, render, signal
from ddpm.runtime import cache


def plain(lesion=None, **changes):
    """A subject with nothing random left but the noise: axial, undeformed, nominal tissue, no shading."""
    simple = dict(affine=np.eye(3, 4), tilt=np.eye(3), z=20.0, tissue=np.ones((4, 3)), bias=np.zeros(5))
    still = np.zeros((3, phantom.KNOTS, phantom.KNOTS))
    values = simple | dict(deformation=still, gain=1.0, sigma=0.01) | changes
    return replace(draw_subject(0, "train", 0), lesion=lesion, **values)


def ball(x, y, z, radius=10.0):
    return Lesion(np.array([x, y, z]), radius, np.zeros((6, 3)), np.zeros(6), np.zeros(6))


def in_every_contrast(subject, size):
    """The same slice -> (3, H, W) uint8, in the order of CONTRASTS."""
    return np.stack([render(subject, size, name)[0] for name in CONTRASTS])


def numbers(subject):
    return np.concatenate([subject.affine.ravel(), subject.deformation.ravel(), [subject.z, subject.sigma]])


def test_the_same_subject_gives_the_same_image_in_any_order():
    first = [render(draw_subject(3, "val", i), 32) for i in range(6)]
    for i in reversed(range(6)):
        image, labels = render(draw_subject(3, "val", i), 32)
        assert np.array_equal(image, first[i][0]) and np.array_equal(labels, first[i][1])


def test_splits_and_seeds_share_no_subject_and_no_image():
    keys = [(seed, split, i) for seed in (0, 1) for split in phantom.SPLITS for i in range(30)]
    subjects = [draw_subject(*key) for key in keys]
    assert len({numbers(s).tobytes() for s in subjects}) == len(keys)
    assert len({render(s, 32)[0].tobytes() for s in subjects}) == len(keys)


def test_noise_does_not_repeat_the_numbers_of_the_anatomy_or_of_another_contrast(monkeypatch):
    """A SeedSequence does not tell keys apart that differ by a zero at the end."""
    streams = []

    def watched(key):
        sequence = np.random.SeedSequence(key)
        streams.append(sequence.generate_state(4).tobytes())
        return sequence

    with monkeypatch.context() as patch:
        patch.setattr(phantom, "SeedSequence", watched)
        in_every_contrast(draw_subject(0, "val", 2), 32)
    assert len(streams) == len(set(streams)) == 4
    air = in_every_contrast(plain(), 64)[:, :, :6].reshape(3, -1).astype(float)  # columns of air: noise
    assert np.abs(np.corrcoef(air) - np.eye(3)).max() < 0.25


def test_85_percent_have_a_lesion_and_it_lies_in_the_brain():
    subjects = [draw_subject(0, "test", i) for i in range(600)]
    assert abs(np.mean([s.lesion is not None for s in subjects]) - 0.85) < 4 * np.sqrt(0.85 * 0.15 / 600)
    for s in subjects[:60]:
        labels = render(s, 64)[1]
        brain = render(replace(s, lesion=None), 64)[1] > 0
        assert (labels == 4).any() == (s.lesion is not None)
        assert brain[labels == 4].all()


def test_signal_equations_by_hand():
    # 0.77 (1 - e^-1) e^(-15/70); 1.0 (1 - e^(-4500/2569)) e^(-100/329)
    assert signal("T1", 500, 70, 0.77) == pytest.approx(0.392851, abs=1e-6)
    assert signal("T2", 2569, 329, 1.0) == pytest.approx(0.609881, abs=1e-6)
    # TI = 2569 ln(2 / (1 + e^(-9000/2569))) = 1704.515; 0.86 (1 - 2 e^(-TI/833) + e^(-9000/833)) e^(-120/83)
    assert phantom.FLAIR_TI == pytest.approx(1704.515, abs=1e-3)
    assert signal("FLAIR", 833, 83, 0.86) == pytest.approx(0.150231, abs=1e-6)
    assert signal("FLAIR", 2569, 329, 1.0) == pytest.approx(0, abs=1e-12)


def test_contrasts_look_as_they_should():
    subject = plain(lesion=ball(30, -10, 20))
    labels = render(subject, 128)[1]
    images = in_every_contrast(subject, 128)
    t1, t2, flair = ([np.median(image[labels == k]) for k in range(5)] for image in images)
    air, csf, gm, wm, lesion = range(5)
    assert t1[wm] > t1[gm] > t1[lesion] > t1[csf] > t1[air]
    assert t2[csf] > t2[lesion] > t2[gm] > t2[wm] > t2[air]
    assert flair[lesion] > flair[gm] > flair[wm] > flair[csf]
    for image, brightest in zip(images, (wm, csf, lesion), strict=True):  # pure pixels: 0.8 of full scale
        assert np.quantile(image[labels == brightest], 0.95) / 255 == pytest.approx(0.8, abs=0.03)


def test_a_pixel_adds_up_its_tissues_each_with_its_own_t1_t2_and_density_times_the_gain():
    lesion, own = ball(30, -10, 20), phantom.TISSUE * np.random.default_rng(0).uniform(0.8, 1.1, (4, 3))
    subject = plain(lesion, sigma=0.0, tissue=own / phantom.TISSUE, gain=0.9)
    fractions, _ = phantom._anatomy(subject, (64, 64))
    for contrast, image in zip(CONTRASTS, in_every_contrast(subject, 64), strict=True):
        parts = [signal(contrast, *tissue) * fraction for tissue, fraction in zip(own, fractions, strict=True)]
        expected = 255 * 0.9 * phantom.GAIN[contrast] * sum(parts)
        assert 100 < expected.max() < 255 and np.abs(image - expected).max() < 0.51


def test_shading_is_the_exponential_of_a_polynomial_of_the_place():
    """In shares of half the field of view, to the image's right and downwards."""
    even = render(plain(sigma=0.0), 64, "T1")[0].astype(float)
    v, u = np.meshgrid(*[(np.arange(64) - 31.5) / 32] * 2, indexing="ij")
    for k, term in enumerate((u, v, u**2, v**2, u * v)):
        shaded = render(plain(sigma=0.0, bias=-0.2 * np.eye(5)[k]), 64, "T1")[0]
        assert np.abs(shaded - even * np.exp(-0.2 * term))[even < 200].max() <= 1.1, k


@pytest.mark.parametrize("x, y, z", [(40, -16, 20), (-40, -16, 20), (0, 30, 20), (20, -60, 20)])
def test_a_lesion_in_the_world_appears_where_radiology_shows_it(x, y, z):
    labels = render(plain(lesion=ball(x, y, z)), 64)[1]
    row, col = np.argwhere(labels == 4).mean(0)
    # the middle of the image is the world's (0, -16); right is drawn left, anterior is drawn up
    assert col == pytest.approx(31.5 - x / 3.25, abs=0.5)
    assert row == pytest.approx(31.5 - (y + 16) / 3.25, abs=0.5)
    assert (labels == 4).sum() == pytest.approx(np.pi * 10**2 / 3.25**2, rel=0.15)
    assert not (render(plain(lesion=ball(x, y, z + 30)), 64)[1] == 4).any()  # another slice's lesion


def test_a_tilted_slice_shows_what_lies_in_its_plane():
    """20 mm to the image's right and 15 mm up from its middle, along the slice's own right and anterior."""
    tilt = Rotation.from_euler("xyz", [10, 4, 30], degrees=True).as_matrix()
    centre = phantom.CENTRE + [0, 0, 20] - 20 * tilt[:, 0] + 15 * tilt[:, 1]
    row, col = np.argwhere(render(plain(tilt=tilt, lesion=ball(*centre)), 64)[1] == 4).mean(0)
    assert col == pytest.approx(31.5 + 20 / 3.25, abs=0.5) and row == pytest.approx(31.5 - 15 / 3.25, abs=0.5)


def test_the_lobes_of_a_lesion_are_where_its_waves_say():
    """1 + 0.4 cos(pi/2 n_x + pi/2) radii: 0.6 towards the patient's right, which is the image's left, and 1.4 towards
    the other side."""
    turn, one = np.pi / 2, np.eye(6)[0]
    lobed = replace(
        ball(0, -16, 20, radius=20.0), wave=turn * one[:, None] * [1, 0, 0], phase=turn * one, size=0.4 * one
    )
    columns = np.flatnonzero((render(plain(lesion=lobed), 128)[1] == 4)[63:65].all(0))
    assert columns[0] == pytest.approx(63.5 - 0.6 * 20 / 1.625, abs=1)
    assert columns[-1] == pytest.approx(63.5 + 1.4 * 20 / 1.625, abs=1)


def test_the_deformation_is_in_mm():
    """The same everywhere, it moves all of the anatomy: 6.5 mm are two pixels of 64, or a slice so much higher."""
    still, shift = render(plain(), 64)[1], 6.5 * np.eye(3)[..., None, None] * np.ones((phantom.KNOTS, phantom.KNOTS))
    sideways, back, up = (render(plain(deformation=part), 64)[1] for part in shift)
    assert (sideways[:, 2:] == still[:, :-2]).mean() > 0.999 and (back[2:] == still[:-2]).mean() > 0.999
    assert (up == render(plain(z=26.5), 64)[1]).mean() > 0.999 and (up != still).mean() > 0.01


def test_anatomy_is_the_right_way_up():
    tissue, origin, spacing = phantom._atlas(1.625)
    # the eyes' side of the brain is narrower than the back: the outline tells anterior from posterior
    labels = render(plain(), 128)[1] > 0
    rows = np.flatnonzero(labels.any(1))
    quarter = len(rows) // 4
    assert labels[rows[:quarter]].sum() < labels[rows[-quarter:]].sum()
    assert tissue.shape[0] == 3 and origin[0] < 0 < spacing


def test_the_atlas_is_mirror_symmetric_but_subjects_are_not():
    tissue, origin, spacing = phantom._atlas(3.25)
    assert np.allclose(tissue, tissue[:, ::-1], atol=1e-6)
    assert origin[0] + spacing * (tissue.shape[1] - 1) / 2 == pytest.approx(0)  # about x = 0
    labels = render(plain(), 64)[1]
    assert (labels == labels[:, ::-1]).mean() > 0.995
    # bend only: what is left of the asymmetry is the deformation's
    bent = render(plain(deformation=draw_subject(0, "train", 5).deformation), 64)[1]
    assert (bent == bent[:, ::-1]).mean() < 0.95


def test_fractions_are_fractions():
    for i in range(10):
        fractions, _ = phantom._anatomy(draw_subject(0, "train", i), (64, 64))
        assert fractions.min() >= 0 and fractions.sum(0).max() < 1.01 and fractions.sum(0).max() > 0.98


def test_contrasts_of_a_subject_share_labels_and_differ_in_image():
    subject = draw_subject(0, "train", 2)
    stack = in_every_contrast(subject, 32)
    rendered = [render(subject, 32, name) for name in CONTRASTS]
    assert np.array_equal(stack, np.stack([image for image, _ in rendered]))
    assert all(np.array_equal(labels, rendered[0][1]) for _, labels in rendered)
    assert np.array_equal(render(subject, 32)[0], stack[subject.contrast])
    assert len({image.tobytes() for image in stack}) == 3


def test_sizes_that_are_not_square_show_the_same_anatomy():
    wide = render(plain(), (64, 96))[1]
    assert wide.shape == (64, 96)
    assert np.array_equal(wide[:, 16:80], render(plain(), 64)[1])
    assert render(plain(), (256, 16))[0].shape == (256, 16)


def test_rician_background_mean():
    # S = 0: |n1 + i n2| is Rayleigh, mean sigma sqrt(pi / 2)
    noise = phantom.rician(np.zeros((500, 500), np.float32), 0.02, np.random.default_rng(0))
    assert noise.mean() == pytest.approx(0.02 * np.sqrt(np.pi / 2), rel=0.01)
    air = render(plain(sigma=0.025), 256)[0][:20]
    assert air.mean() / 255 == pytest.approx(0.025 * np.sqrt(np.pi / 2), rel=0.03)


def test_label_sets():
    labels = np.arange(5, dtype=np.uint8)
    assert phantom.to_label_set(labels, "lesion").tolist() == [0, 0, 0, 0, 1]
    assert phantom.to_label_set(labels, "tissue").tolist() == [0, 1, 2, 3, 4]


def test_load_caches_and_recovers(own_cache, monkeypatch):
    first = load("val", 16, n=5)
    assert [a.shape for a in first] == [(5, 1, 16, 16), (5, 16, 16), (5,)]
    assert [a.dtype for a in first] == [np.uint8, np.uint8, np.int64]
    image, labels = render(draw_subject(0, "val", 3), 16)
    assert np.array_equal(first[0][3, 0], image) and np.array_equal(first[1][3], labels)
    [path] = own_cache.iterdir()

    with monkeypatch.context() as patch:  # the second load must not render
        patch.setattr(phantom, "render", None)
        assert all(map(np.array_equal, load("val", 16, n=5), first))

    load("val", 16, n=4), load("val", (16, 17), n=5), load("val", 16, seed=1, n=5), load("test", 16, n=5)
    assert len(list(own_cache.iterdir())) == 5

    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], whole[:400] + b"\xff" * 50 + whole[450:]):
        path.write_bytes(damaged)
        assert all(map(np.array_equal, load("val", 16, n=5), first))
        assert len(path.read_bytes()) == len(whole)  # written anew (not equal: a zip holds the time of day)


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "CACHE", tmp_path / "file" / "cache")
    assert len(load("val", 16, n=2)[0]) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "call, found",
    [
        (lambda: draw_subject(0, "training", 0), "'training'"),
        (lambda: load("dev", 16), "'dev'"),
        (lambda: render(plain(), 15), "15 x 15"),
        (lambda: load("val", (64, 257)), "64 x 257"),
        (lambda: load("val", 16, n=2001), "2001"),
        (lambda: render(plain(), 16, "PD"), "'PD'"),
        (lambda: phantom.to_label_set(np.zeros(1), "organs"), "'organs'"),
    ],
)
def test_errors_are_one_clear_line(call, found):
    with pytest.raises(ValueError, match=found) as error:
        call()
    assert "\n" not in str(error.value)
