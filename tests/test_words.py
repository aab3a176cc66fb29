"""Words as a condition: what the phantom says of its images, and prompts."""

import itertools
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_image_to_image import pixels, trained  # noqa: F401 (a fixture)

import sample
import train
from benchmarks import prompts
from ddpm import UserError
from ddpm.asked import read_asked, said_contrast
from ddpm.conditions import Condition, Vocabulary, split_words
from ddpm.data import descriptions, phantom
from ddpm.data.descriptions import PARTS, WORDS, all_said, asked, contradictions, describe, held_out, some, text
from ddpm.data.sources import load_data
from ddpm.data.texts import read_embeddings
from ddpm.model import Sampling, draw, load_model, noise_source, predictor
from ddpm.runtime import checkpoint
from ddpm.runtime.config import Config
from ddpm.training import draw_batch
from tools import embed

MM = phantom.FOV / 64  # a pixel of 64 x 64


def patch(u, v, mm2, size=(64, 64)):
    """A square lesion of that area, its middle u mm to the image's right and v mm below its middle."""
    pixel = phantom.FOV / min(size)
    half = np.sqrt(mm2) / 2
    y, x = np.mgrid[: size[0], : size[1]] - np.reshape([(size[0] - 1) / 2, (size[1] - 1) / 2], (2, 1, 1))
    return (abs(x * pixel - u) < half) & (abs(y * pixel - v) < half)


# What is said


@pytest.mark.parametrize(
    "u, v, mm2, expected",
    [
        (50, 0, 300, ("small", "left", "lateral")),  # the image's right is the patient's left
        (-50, 0, 300, ("small", "right", "lateral")),
        (0, 0, 500, ("medium", "midline", "central")),
        (15, -60, 500, ("medium", "left", "frontal")),  # up is to the front
        (-30, 70, 1200, ("large", "right", "posterior")),
        (20, 10, 500, ("medium", "left", "central")),
        (2, -60, 1200, ("large", "midline", "frontal")),
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (128, 160)])
def test_size_side_and_region_follow_their_rules(u, v, mm2, expected, size):
    said = describe(patch(u, v, mm2, size), "T2")
    assert tuple(said[part] for part in ("size", "side", "region")) == expected
    assert said["presence"] == "lesion" and said["contrast"] == "T2"


def test_left_is_where_the_phantom_says_it_is():
    """A subject's lesion lies in the world, x to the patient's right: so left is x below the middle's."""
    sides = []
    for i in range(60):
        subject = phantom.draw_subject(0, "train", i)
        _, labels = phantom.render(subject, 64)
        said = describe(labels == phantom.LESION_LABEL)
        if said.get("side") in ("left", "right"):
            sides.append((said["side"], subject.lesion.centre[0] < 0))
    assert len(sides) > 30 and {("left", True), ("right", False)} == set(sides)


def test_a_description_is_a_sentence():
    assert text(describe(patch(20, -60, 1200), "FLAIR")) == "axial FLAIR, large lesion, left frontal"
    assert text(describe(np.zeros((64, 64), bool), "T1")) == "axial T1, no lesion"
    assert text({"presence": "lesion", "side": "left"}) == "axial, lesion, left"
    assert text({}) == "axial"


def test_every_description_is_in_words_that_are_known_and_says_what_it_said():
    numbers = Vocabulary(words=WORDS).numbers([text(said) for said in all_said()])
    assert len({tuple(sorted(row)) for row in numbers.tolist()}) == len(all_said()) == 328  # and no two are the same
    for said in all_said():
        assert asked(text(said)) == {part: [value] for part, value in said.items()}
        assert contradictions(text(said), []) == []


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_parts_are_left_out_and_none_is_made_up(seed):
    random = np.random.default_rng(seed)
    said = describe(patch(20, -60, 1200), "FLAIR")
    kept = some(said, random)
    assert kept.items() <= said.items() and kept in all_said()
    assert "presence" in kept or not {"size", "side", "region"} & kept.keys()


def test_a_part_in_eight_of_the_combinations_is_held_out_and_no_value_never_seen():
    every = [said for said in all_said() if len(said) == len(PARTS)]
    out = [said for said in every if held_out(said)]
    assert out == descriptions.combinations_held_out() and 0.1 < len(out) / len(every) < 0.2
    kept = [said for said in every if said not in out]
    for a, b in itertools.combinations(
        [part for part in PARTS if part != "presence"], 2
    ):  # each pair of values is seen
        pairs = {(said[a], said[b]) for said in kept}
        assert pairs == set(itertools.product(PARTS[a], PARTS[b]))


def test_training_sees_no_combination_that_is_held_out_and_words_that_are_true(small_phantom):
    config = Config(image_size=[32, 32], words=True)
    train_data, val = load_data(config, "train"), load_data(config, "val")
    assert len(train_data) < phantom.SPLITS["train"] and len(val) == phantom.SPLITS["val"]
    for data in (train_data, val):
        for mask, contrast, numbers in zip(data.masks, data.labels["contrast"], data.words, strict=True):
            said = describe(mask == 1, phantom.CONTRASTS[contrast - 1])
            told = {data.vocabulary.words[n - 1] for n in numbers if n}
            assert told <= set(split_words(text(said))) | {"axial"} and "axial" in told
            assert data is val or not held_out(said)
    data = load_data(Config(image_size=[32, 32], words=True, source="T1"), "train")
    assert data.vocabulary.given == ("mask", "source", "words", "contrast")
    for i in (0, len(data) // 2, len(data) - 1):  # also where others were left out before it
        subject = phantom.draw_subject(0, "train", int(data.subjects[i]))
        assert np.array_equal(data.source[i, 0], phantom.render(subject, 32, "T1")[0])


@pytest.mark.parametrize(
    "prompt, mask, says",
    [
        ("large lesion, left frontal", patch(-50, -60, 1200), "the prompt says left, the mask right"),
        ("no lesion", patch(-50, -60, 1200), "the prompt says no lesion, the mask lesion"),
        ("small lesion", np.zeros((64, 64), bool), "the prompt says lesion, the mask no lesion"),
        ("T1 T2", None, "the prompt says T1 and T2"),
        ("FLAIR and T1", None, "the prompt says FLAIR and T1"),
        ("axial T2-FLAIR, large lesion", None, None),
        (
            "lesion on the left side of the image",
            None,
            "the prompt says left of the image, but sides are the patient's: it is the image's right",
        ),
        ("axial T1 image, left lesion", None, None),
        ("no lesion, left", None, "the prompt says no lesion, and left"),
        ("large lesion, right frontal", patch(-50, -60, 1200), None),
    ],
)
def test_contradictions_are_found(prompt, mask, says):
    found = contradictions(prompt, [] if mask is None else [("the mask", describe(mask))])
    assert found == ([] if says is None else [says]) or (says is not None and says in found)


def test_what_a_prompt_says_first_or_twice():
    assert said_contrast("FLAIR and T1") == "FLAIR" and said_contrast("T1 and FLAIR") == "T1"
    assert said_contrast("axial T2 FLAIR, lesion") == said_contrast("T2-FLAIR") == "FLAIR"
    known = Vocabulary(words=descriptions.WORDS)
    assert np.array_equal(known.numbers(["small lesion, small lesion"]), known.numbers(["small lesion"]))


# All conditions in one model


@pytest.fixture
def everything(trained):  # noqa: F811
    return load_model(trained("--words", "--source", "T1"))


def condition_of(model, n=2):
    masks, source = (
        np.arange(n * 1024).reshape(n, 32, 32) % 2,
        np.random.default_rng(0).random((n, 1, 32, 32), np.float32),
    )
    words = model.vocabulary.numbers(["FLAIR, large lesion", "no lesion"][:n])
    return model.vocabulary.condition(masks, source, words, contrast=["FLAIR", "T2"][:n])


def test_each_kind_moves_the_image_alone_and_beside_the_others(everything):
    whole = condition_of(everything)
    assert whole.given == everything.vocabulary.given == ("mask", "source", "words", "contrast")
    x_t, t = torch.randn(2, 1, 32, 32), torch.tensor([900, 500])
    null = everything.unet(x_t, t)
    for kind in whole.given:
        alone = whole.map(lambda name, x, kind=kind: x if name == kind else torch.zeros_like(x))
        without = whole.map(lambda name, x, kind=kind: torch.zeros_like(x) if name == kind else x)
        assert (everything.unet(x_t, t, alone) - null).abs().amax((1, 2, 3)).min() > 1e-5, kind
        assert (everything.unet(x_t, t, without) - everything.unet(x_t, t, whole)).abs().amax((1, 2, 3)).min() > 1e-5, (
            kind
        )


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_every_kind_is_guided_alone_and_together(everything, number):
    """u + k (c - u), u without what is guided and with all else: x_0_hat is affine in the network's answer."""
    whole, x_t = condition_of(everything), 0.1 * torch.randn(2, 1, 32, 32)
    t = torch.tensor([700, 700])
    c = everything.unet(x_t, t, whole)
    for guided in itertools.combinations(whole.given, number):
        how = Sampling(guidance=2.5, guided=guided, interval=(0, 1)).complete(everything, whole.given)
        found = predictor(everything, whole, how)(x_t, 700)
        u = everything.unet(x_t, t, whole.map(lambda name, x, g=guided: torch.zeros_like(x) if name in g else x))
        expected = everything.schedule.x_0_from("v", u + 2.5 * (c - u), x_t, 700).clamp(-1, 1)
        assert torch.allclose(found, expected, atol=1e-4), guided


def test_training_leaves_out_every_subset(everything):
    data = load_data(everything.config, "train")
    config = Config(image_size=[32, 32], batch_size=64, mask_drop=0.5, label_drop=0.5, source_drop=0.5, words_drop=0.5)
    seen = set()
    for step in range(6):
        _, condition = draw_batch(data, config, step)
        gone = [(x.reshape(64, -1) == 0).all(dim=1) for x in condition.parts.values()]
        seen |= {tuple(row) for row in torch.stack(gone, dim=1).tolist()}
    assert len(seen) == 2**4


# Prompts


def test_a_prompt_changes_the_image_and_the_same_words_do_not(trained):  # noqa: F811
    ckpt = trained("--words", "--source", "T1")
    drawn = {}
    for name, prompt in (
        ("a", "FLAIR, large lesion, left"),
        ("b", "a left lesion: large; flair"),
        ("c", "T2, no lesion"),
    ):
        assert sample.main(["--ckpt", ckpt, "--prompt", prompt, "--sample-steps", "3", "--n", "1", "--out", name]) == 0
        drawn[name] = pixels(f"{name}/unconditional_0.png")
    assert np.abs(drawn["a"] - drawn["b"]).max() <= 1 < np.abs(drawn["a"] - drawn["c"]).max()


def test_a_contradiction_between_prompt_and_mask_is_told_and_both_go_in(trained, capsys):  # noqa: F811
    ckpt = trained("--words", "--source", "T1")
    Image.fromarray(255 * patch(50, 0, 1500, (32, 32)).astype(np.uint8)).save("m.png")
    flags = ["--ckpt", ckpt, "--mask", "m.png", "--sample-steps", "2", "--n", "1"]
    assert sample.main([*flags, "--prompt", "FLAIR, lesion, right", "--contrast", "T2", "--out", "a"]) == 0
    told = capsys.readouterr().out
    assert "note: the prompt says right, m's mask left" in told
    assert "note: the prompt says FLAIR, --contrast T2" in told
    assert sample.main([*flags, "--prompt", "FLAIR, lesion, left", "--out", "b"]) == 0
    assert "note" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "prompt, says",
    [
        ("glioma in the pons", "unknown: glioma, pons; known are axial, t1"),
        ("x" * 10_000, "10,000 characters, more than 200"),
        (" ", "no word"),
    ],
)
def test_a_prompt_that_is_not_understood_draws_nothing(trained, prompt, says, capsys):  # noqa: F811
    assert sample.main(["--ckpt", trained("--words", "--source", "T1"), "--prompt", prompt, "--out", "o"]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1 and len(error) < 400 and not Path("o").exists()


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--prompt", "left", "--mask"], "was trained without words; it can be asked for --mask, --contrast"),
        (["--prompt", "glioma"], "--prompt: unknown: glioma; known are axial"),
        (["--text-embeddings", "f.npz"], "give that too"),
        (["--guided", "words", "--guidance", "2", "--mask"], "needs --prompt"),
    ],
)
def test_a_model_without_words_says_what_it_knows(ckpt, flags, says, capsys):
    assert sample.main(["--ckpt", ckpt, *flags, "--out", "o"]) == 2
    assert says in capsys.readouterr().err and not Path("o").exists()


@pytest.fixture
def masks_in_the_box(trained, tmp_path, monkeypatch):  # noqa: F811
    """A tiny model of masks where that of the box lies."""
    box = tmp_path / "box"
    box.mkdir()
    monkeypatch.setattr(checkpoint, "PRETRAINED", box / "pretrained.pt")
    shutil.copy(trained("--segment", "--words", "--source-drop", "1"), box / "pretrained-masks.pt")


def test_a_folders_model_gets_no_masks_of_the_phantom(ckpt, masks_in_the_box, capsys):
    """Its lesions may be in another organ, whatever their class is called."""
    raw = torch.load(ckpt, weights_only=True)
    raw["config"]["data"] = "folder"
    torch.save(raw, "own.pt")
    assert sample.main(["--ckpt", "own.pt", "--prompt", "large lesion", "--out", "o"]) == 2
    assert "was trained without words" in capsys.readouterr().err and not Path("o").exists()


def test_a_model_of_masks_alone_is_given_those_that_the_prompt_asks_for(ckpt, masks_in_the_box):
    flags = ["--ckpt", ckpt, "--precision", "fp32", "--batch-size", "2"]
    for out, prompt in (("a", "FLAIR, large lesion, left"), ("b", "T1, no lesion")):
        assert sample.main([*flags, "--prompt", prompt, "--n", "3", "--out", out]) == 0
    masks = {out: [pixels(f"{out}/masks/prompt_{k}.png") for k in range(3)] for out in "ab"}
    assert all(set(np.unique(mask)) <= {0, 255} for mask in masks["a"])
    assert any((a != b).any() for a, b in zip(masks["a"], masks["b"], strict=True))
    assert any((a != masks["a"][0]).any() for a in masks["a"][1:])  # each of its own noise
    # What was drawn is what the masks and the contrast give, asked for by themselves.
    assert sample.main([*flags, "--mask", "a/masks", "--contrast", "FLAIR", "--n", "1", "--out", "c"]) == 0
    for k in range(3):
        assert np.array_equal(pixels(f"a/prompt_{k}_0.png"), pixels(f"c/prompt_{k}_0.png"))


def test_contrasts_of_drawn_masks_come_in_turn_too(ckpt, masks_in_the_box):
    args = sample.read_arguments(["--prompt", "large lesion", "--contrast", "each", "--n", "4", "--ckpt", ckpt])
    asked_for = read_asked(args, load_model(ckpt))
    labels = asked_for.condition([(name, 0) for name in asked_for.names]).labels["contrast"]
    assert labels.tolist() == [1, 2, 3, 1]


def test_a_drawn_mask_goes_with_every_source(trained, masks_in_the_box, tmp_path):  # noqa: F811
    (tmp_path / "in").mkdir()
    for name in "abc":
        Image.new("L", (32, 32), 90).save(tmp_path / "in" / f"{name}.png")
    ckpt = trained("--source", "coarse")
    flags = ["--prompt", "T2, large lesion", "--source", "in", "--n", "1", "--sample-steps", "2"]
    assert sample.main(["--ckpt", ckpt, *flags, "--out", "o"]) == 0
    assert {path.name for path in Path("o").glob("?_0.png")} == {"a_0.png", "b_0.png", "c_0.png"}


def test_the_benchmark_of_prompts_asks_a_model_of_masks_too(ckpt, masks_in_the_box, capsys):
    assert prompts.main(["--ckpt", ckpt, "--n", "3", "--guidance", "1"]) == 0
    told = capsys.readouterr().out
    assert "3 prompts of" in told and "a mask against" not in told


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--words", "--flip"], "--flip makes left and right one"),
        (["--words", "--data", "d"], "the phantom's"),
        (["--text-embeddings", "f.npz"], "give that too"),
        (["--words", "--text-embeddings", "f.npz"], "f.npz: no such file"),
    ],
)
def test_words_that_cannot_be_learnt_are_refused(flags, says, capsys):
    assert train.main(["--preset", "tiny", *flags]) == 2
    assert says in capsys.readouterr().err and not Path("results").exists()


def test_a_sentence_goes_into_restoration_too(trained, capsys):  # noqa: F811
    ckpt = trained("--words", "--source", "T1")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)).save("noisy.png")
    flags = ["--ckpt", ckpt, "--restore", "noisy.png", "--as", "denoise", "--noise", "0.3"]
    for out, prompt in (("a", []), ("b", ["--prompt", "T1, large lesion"]), ("c", ["--prompt", "a large lesion; T1"])):
        assert sample.main([*flags, *prompt, "--out", out]) == 0
    assert "no mask, 'T1, large lesion'" in capsys.readouterr().out
    images = [np.load(f"{out}/restored.npy") for out in "abc"]
    assert np.abs(images[1] - images[0]).max() > 1e-4 > np.abs(images[1] - images[2]).max()
    assert sample.main([*flags, "--prompt", "a tumour", "--out", "d"]) == 2
    assert "unknown: tumour" in capsys.readouterr().err and not Path("d").exists()


# Vectors of another program


def write_vectors(path, texts, width=12, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(len(texts), width)).astype(np.float16)
    np.savez(path, texts=np.array(texts), vectors=vectors)
    return str(path)


def test_vectors_stand_for_texts_in_training_and_in_prompts(small_phantom, capsys):
    texts = [text(said) for said in all_said()]
    file = write_vectors("v.npz", [*texts, "a big bright thing"])
    flags = [
        "--preset",
        "tiny",
        "--steps",
        "2",
        "--words",
        "--text-embeddings",
        file,
        "--out",
        "run",
        "--words-drop",
        "0",
    ]
    assert train.main(flags) == 0
    model = load_model("run")
    assert model.vocabulary.vectors == 12 and not model.vocabulary.words and "words" in model.vocabulary.given
    data = load_data(model.config, "val")
    assert data.words.shape == (len(data), 12) and data.words.dtype == np.float32
    asks = ["--ckpt", "run", "--sample-steps", "2", "--n", "1"]
    assert sample.main([*asks, "--prompt", "a big bright thing", "--out", "a"]) == 0
    write_vectors("other.npz", ["something else"])
    assert sample.main([*asks, "--prompt", "something else", "--text-embeddings", "other.npz", "--out", "b"]) == 0
    assert sample.main([*asks, "--prompt", "something else", "--out", "c"]) == 2
    assert "v.npz: no vector of 'something else'" in capsys.readouterr().err
    assert prompts.main(["--ckpt", "run", "--parts", "asked", "--n", "3", "--guidance", "1"]) == 0
    assert "3 prompts of" in capsys.readouterr().out
    write_vectors("wide.npz", ["something else"], width=13)
    assert sample.main([*asks, "--prompt", "something else", "--text-embeddings", "wide.npz"]) == 2
    assert "wide.npz: vectors of 13 numbers" in capsys.readouterr().err
    *_, (_, x_0) = draw(model, Condition(words=torch.zeros(1, 12)), [0], Sampling(steps=2))
    *_, (_, null) = draw(model, Condition(), [0], Sampling(steps=2))
    assert torch.allclose(x_0, null, atol=1e-4)


@pytest.mark.parametrize(
    "spoil, says",
    [
        (dict(texts=["a"], vectors=np.ones((2, 3))), r"\(N,\) and \(N, D\)"),
        (dict(texts=["a", "b"], vectors=np.array([[1.0], [np.nan]])), "the vector of 'b'"),
        (dict(texts=["a"], vectors=np.ones((1, 3), int)), "are needed"),
        (dict(texts=["a"]), "damaged, or not a .npz"),
        (dict(texts=np.zeros(0, str), vectors=np.zeros((0, 3))), "are needed"),
    ],
)
def test_a_file_of_vectors_that_is_broken_is_named(spoil, says):
    np.savez("v.npz", **spoil)
    with pytest.raises(UserError, match=says):
        read_embeddings("v.npz")


def test_texts_without_a_vector_are_named_before_training(small_phantom, capsys):
    write_vectors("v.npz", ["axial"])
    assert train.main(["--preset", "tiny", "--words", "--text-embeddings", "v.npz", "--out", "run"]) == 2
    assert "v.npz: no vector of 'axial" in capsys.readouterr().err and not Path("run").exists()


def test_the_worked_example_says_what_it_needs(monkeypatch, capsys):
    monkeypatch.setattr(embed.importlib.util, "find_spec", lambda name: None)
    assert embed.main(["--out", "e.npz"]) == 2
    assert "pip install -r requirements/text.txt" in capsys.readouterr().err and not Path("e.npz").exists()


def test_the_worked_example_writes_what_training_reads(monkeypatch):
    monkeypatch.setattr(embed, "embed", lambda texts: np.random.default_rng(0).random((len(texts), 5), np.float32))
    Path("mine.txt").write_text("a big bright thing\n\naxial\n")
    assert embed.main(["--texts", "mine.txt", "--out", "new/e.npz"]) == 0
    found = read_embeddings("new/e.npz")
    assert found.of([text(said) for said in all_said()]).shape == (328, 5) and len(found.texts) == 329
    assert found.of(["a big bright thing"]).dtype == np.float32


# The benchmark


def test_what_is_judged_is_described_by_the_same_rules():
    """A judge that sees the truth finds what was asked; one that sees its mirror image finds the other side."""
    masks = np.stack([patch(30, -60, 1200), patch(-30, 60, 500), patch(50, 0, 200), np.zeros((64, 64), bool)])
    images, names = masks[:, None].astype(np.uint8), ["T1", "T2", "FLAIR", "T1"]

    def judge(images):
        found = np.where(images[:, 0] > 0, 4, 0)
        return SimpleNamespace(labels=found, contrasts=np.array([0, 1, 2, 0])[: len(images)])

    looking = SimpleNamespace(judge=judge, contrasts=("T1", "T2", "FLAIR"))
    wanted = [describe(*of) for of in zip(masks, names, strict=True)]
    for part, right in prompts.shares(wanted, prompts.seen(looking, images)).items():
        assert right.all() and len(right) == (4 if part in ("contrast", "presence") else 3)
    specks = np.zeros((1, 1, 64, 64), np.uint8)
    specks[..., 20, 20:23] = specks[..., 40, 50] = 1  # four pixels, but no patch of four
    (found,) = prompts.seen(looking, specks)
    assert found == {"contrast": "T1", "presence": "no lesion"}
    turned = prompts.shares(wanted, prompts.seen(looking, images[..., ::-1]))
    assert not turned["side"].any() and turned["region"].all() and turned["size"].all()


def test_the_benchmark_of_prompts_runs(trained, capsys):  # noqa: F811
    ckpt = trained("--words", "--source", "T1")
    assert prompts.main(["--ckpt", ckpt, "--n", "6", "--guidance", "1", "--conflicts", "4", "--picture", "p.png"]) == 0
    told = capsys.readouterr().out
    for line in (
        "6 prompts of",
        "| side |",
        "| presence, of no lesion |",
        "a mask against a prompt",
        "0.2, with the sentence",
    ):
        assert line in told
    assert pixels("p.png").ndim == 3


def test_the_benchmark_wants_a_model_of_words_or_of_masks(trained, capsys):  # noqa: F811
    assert prompts.main(["--ckpt", trained("--labels", "none")]) == 2
    assert "without words and without masks" in capsys.readouterr().err
    assert prompts.main(["--ckpt", trained("--words", "--labels", "none")]) == 2
    assert "its --labels are none; give a run with those of lesions" in capsys.readouterr().err


def test_the_benchmark_draws_mask_and_image_from_noise_of_their_own(ckpt, masks_in_the_box, monkeypatch):
    """And a mask of the drafter's 64 x 64 pixels is brought to the model's 32 x 32."""
    seen, drafted = {}, np.zeros((3, 64, 64), np.uint8)
    drafted[:, 20:40, 30:50] = 1

    def draw_nothing(model, condition, seeds, sampling):
        seen.update(condition=condition, images=seeds)
        yield 0, torch.zeros(len(seeds), 1, 32, 32)

    monkeypatch.setattr(prompts, "drawn_masks", lambda drafter, words, seeds: seen.update(masks=seeds) or drafted)
    monkeypatch.setattr(prompts, "draw", draw_nothing)
    prompts.drawn(load_model(ckpt), ["FLAIR, large lesion"] * 3, 1, None)
    noise = noise_source([*seen["masks"], *seen["images"]], (1, 8, 8), "cpu")()
    assert len({tuple(one.flatten().tolist()) for one in noise}) == 6
    assert np.array_equal(seen["condition"].mask[:, 1], drafted[:, ::2, ::2])


def test_real_images_of_what_is_prompted_are_taken_once():
    a, b, c = ({"contrast": name, "presence": "lesion"} for name in ("T1", "T2", "FLAIR"))
    shown, chosen = prompts.real_of([a, b, c] * 3, [a, b, a, b, b, b], np.arange(10, 16), np.random.default_rng(0))
    assert shown == [a, b, a, b, b] and len(set(chosen)) == 5
    assert {chosen[0], chosen[2]} == {10, 12} and {11, 13, 14, 15} > {chosen[i] for i in (1, 3, 4)}


def test_the_benchmark_counts_the_slices_that_there_are(trained, capsys):  # noqa: F811
    ckpt = trained("--words", "--source", "T1")
    assert prompts.main(["--ckpt", ckpt, "--parts", "denoise", "--conflicts", "500"]) == 0
    told = capsys.readouterr().out
    slices = int(told.split(" slices with a lesion")[0].split("| ")[-1])
    assert 2 <= slices < phantom.SPLITS["test"]


def test_the_benchmark_says_first_what_it_cannot_do(ckpt, masks_in_the_box, trained, capsys):  # noqa: F811
    few, always = trained("--words", "--few-steps", "4"), trained("--words", "--mask-drop", "0", "--all-drop", "0")
    capsys.readouterr()
    for flags, says in (
        (["--ckpt", ckpt, "--parts", "asked", "conflict"], "--parts conflict: "),
        (["--ckpt", few, "--parts", "denoise"], "knows 4 steps alone; leave it out"),
        (["--ckpt", always], "it needs --mask"),
        (["--ckpt", "pretrained-masks"], "give a run with --words"),
        (["--ckpt", ckpt, "--n", "2"], "--n is 2; it must be at least 3"),
        (["--ckpt", ckpt, "--conflicts", "1"], "--conflicts is 1; it must be at least 2"),
        (["--ckpt", ckpt, "--picture", "/proc/x/p.png"], "--picture /proc/x: cannot write there"),
        (["--ckpt", ckpt, "--parts", "all"], "invalid choice: 'all'"),
        ([], "the following arguments are required: --ckpt"),
    ):
        assert prompts.main(flags) == 2
        told = capsys.readouterr()
        assert says in told.err and told.err.count("\n") == 1 and told.out == ""
