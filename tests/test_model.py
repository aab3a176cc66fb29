"""A model as a notebook uses it, and what its checkpoint says that it knows."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ddpm.model
from benchmarks import scaling
from ddpm import UserError
from ddpm.conditions import Condition, Vocabulary
from ddpm.data.images import read_mask, to_uint8
from ddpm.model import Model, Sampling, draw, load_model, make_unet
from ddpm.reverse import SAMPLERS, log_snr_times
from ddpm.runtime import checkpoint
from ddpm.runtime.config import PRESETS, Config
from ddpm.schedule import make_schedule

MASKS = Path(__file__).parents[1] / "examples" / "masks" / "lesion"
KNOWN = Vocabulary(("background", "lesion"), {"contrast": ("T1", "T2")})


@pytest.fixture(scope="module")
def model():
    """Not trained, but every part of the network is heard."""
    torch.manual_seed(1)
    config = Config(**PRESETS["tiny"])
    unet = make_unet(config, KNOWN)
    for parameter in unet.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Model(config, KNOWN, make_schedule("cosine"), unet.eval().requires_grad_(False))


def test_the_benchmark_of_scaling_counts_without_computing():
    """Convolutions are nearly all: four times as many pixels, four times the arithmetic and what is kept."""
    small, large = (Config(**PRESETS["tiny"] | {"image_size": [size, size], "attention": []}) for size in (32, 64))
    assert scaling.flops(large) / scaling.flops(small) == pytest.approx(4, rel=0.1)
    assert scaling.kept_for_backward(large) / scaling.kept_for_backward(small) == pytest.approx(4, rel=0.1)


def test_five_lines_in_a_notebook(tiny_run):
    model = load_model(tiny_run)
    mask = read_mask(MASKS / "large_left.png", model.vocabulary.classes, model.config.image_size)
    condition = model.vocabulary.condition([mask] * 4, contrast=["FLAIR"] * 4)
    *_, (t, x_0) = draw(model, condition, seeds=range(4))
    images = to_uint8(x_0)
    assert t == 0 and images.shape == (4, 1, 32, 32) and not np.array_equal(images[0], images[1])
    assert model.step == 40 and model.name.endswith("step_000040.pt")


def test_every_x_t_comes_by_with_its_time(model):
    seen = list(draw(model, Condition(), [0, 1], Sampling(steps=5)))
    times = [t for t, _ in seen]
    assert times[0] > 990 and times[-1] == 0 and times == sorted(times, reverse=True) and len(times) == 6
    assert all(x_t.shape == (2, 1, 32, 32) and x_t.dtype == torch.float32 for _, x_t in seen)
    assert seen[0][1].std() == pytest.approx(1, abs=0.05)


def test_an_image_is_of_its_seed_and_its_condition(model):
    def one(seed, **labels):
        *_, (_, x_0) = draw(model, KNOWN.condition(**labels), [seed], Sampling(steps=4))
        return x_0

    assert (
        torch.equal(one(3), one((3,))) and not torch.equal(one(3), one(4)) and not torch.equal(one(3), one((3, 0, 1)))
    )
    assert not torch.equal(one(3, contrast=["T1"]), one(3, contrast=["T2"]))
    assert torch.allclose(one(3, contrast=[None]), one(3), atol=1e-4)


def test_guidance_and_precision_reach_the_network(model, monkeypatch):
    asked = []
    monkeypatch.setattr(ddpm.model, "denoiser", lambda *args, **how: asked.append((*args[4:], how)) or (lambda x, t: x))
    how = Sampling(steps=2, guidance=3.0, guided=("contrast",), interval=(0.2, 0.7), precision="bf16")
    list(draw(model, KNOWN.condition([[[1]]], contrast=["T1"]), [0], how))
    assert asked == [(3.0, ("contrast",), (0.2, 0.7), dict(clip=True, bf16=True))]


def test_eta_is_the_noise_of_ddim_from_none_to_the_ancestral_samplers(model):
    def drawn(*how, **more):
        return list(draw(model, Condition(), [0], Sampling(*how, **more)))[-1][1]

    ancestral, noisy, quiet = drawn("ancestral", 4), drawn("ddim", 4, eta=1.0), drawn("ddim", 4)
    assert torch.allclose(ancestral, noisy, atol=1e-3) and not torch.allclose(noisy, quiet, atol=0.1)


def test_bf16_stays_inside_the_network(model):
    *_, (_, x_0) = draw(model, Condition(), [0], Sampling(steps=4, precision="bf16"))
    *_, (_, exact) = draw(model, Condition(), [0], Sampling(steps=4))
    assert x_0.dtype == torch.float32 and 0 < (x_0 - exact).abs().max() < 0.2
    assert not torch.is_autocast_enabled("cpu")


def test_what_was_left_open_is_filled_in(model):
    times = tuple(log_snr_times(model.schedule, 10))
    whole = Sampling("dpm-solver", 10, 1.25, ("mask",), (0.05, 0.9), times=times, extra_noise=0.08)
    assert Sampling().complete(model, ("mask",)) == whole
    of_words = Sampling().complete(model, ("mask", "words"))
    assert of_words.guided == ("mask", "words") and of_words.interval == (0.25, 1.0)
    for how in (Sampling(guided=("mask",)), Sampling(interval=(0.05, 0.9))):  # beside words that it does not strengthen
        assert how.complete(model, ("mask", "words")).interval == (0.05, 0.9)
    assert Sampling("ddim", 4).complete(model, ()).times == (1000, 750, 500, 250, 0)
    assert Sampling().complete(model, ("mask", "contrast")).guided == ("mask", "contrast")
    only_masks = replace(model, config=replace(model.config, label_drop=0.0, all_drop=0.0))
    assert Sampling().complete(only_masks, ("mask", "contrast")).guided == ("mask",)
    assert Sampling().complete(model, ()).guidance == 1.0  # there is nothing to follow
    with pytest.raises(UserError, match="needs --contrast"):  # what is named shall be heard
        Sampling(guided=("contrast",)).complete(model, ("mask",))
    assert Sampling(guided=("mask", "contrast")).complete(model, ("mask", "contrast")).guidance == 1.25
    said = Sampling().complete(replace(model, config=replace(model.config, guidance=1.1, extra_noise=0.02)), ("mask",))
    assert (said.guidance, said.extra_noise) == (1.1, 0.02)  # train.py --guidance, --extra-noise
    assert [Sampling(sampler).complete(model, ()).steps for sampler in ("ancestral", "ddim")] == [250, 100]


def test_extra_noise_is_for_images_by_dpm_solver_and_of_students(model):
    """The paper's sampler stays the paper's; a source tells how sharp its image is; a mask is smooth."""
    extra_of = lambda how, given=(), of=model: how.complete(of, given).extra_noise  # noqa: E731
    assert extra_of(Sampling()) == extra_of(Sampling("dpm-solver", 20), ("mask",)) == 0.08
    for how in (Sampling("ddim", 10), Sampling("ancestral", 10), Sampling(extra_noise=0.0)):
        assert extra_of(how) == 0
    assert extra_of(Sampling(), ("source",)) == 0
    for changed, extra in (
        (dict(segment=True), 0),
        (dict(few_steps=10), 0),
        (dict(few_steps=4, teacher="t"), 0.08),  # a student errs as its teacher does
        (dict(few_steps=4, teacher="t", segment=True), 0),
    ):
        assert extra_of(Sampling(), (), replace(model, config=replace(model.config, **changed))) == extra
    assert Sampling("ddim", extra_noise=0.1).complete(model, ()).in_words == "guidance 1, extra noise 0.1"
    assert Sampling("ddim").complete(model, ()).in_words == "guidance 1"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_extra_noise_is_what_the_network_is_not_told(model, sampler, monkeypatch):
    """Data of one point, and a denoiser that knows it: each x_t, n_t times as long, is sqrt(alpha_bar_t) x_0 and
    1 + extra t / T times the noise of time t; the image is the point itself."""
    told = []
    monkeypatch.setattr(
        ddpm.model, "predictor", lambda *given: lambda x, t: told.append((t, x)) or torch.full_like(x, 0.3)
    )
    *_, (_, x_0) = draw(model, Condition(), [0], Sampling(sampler, 6, extra_noise=0.2))
    assert torch.allclose(x_0, torch.full_like(x_0, 0.3), atol=1e-4)
    for t, x in told:
        a, s = model.schedule.signal_and_noise(t, x)
        assert ((x - 0.3 * a).std() / ((1 + 0.2 * t / 1000) * s)).item() == pytest.approx(1, abs=0.08)
    if sampler != "ancestral":  # without fresh noise, each is that of the first
        (T, x_T), *_ = told
        a, s = model.schedule.signal_and_noise(T, x_T)
        eps = (x_T - 0.3 * a) / ((1 + 0.2 * T / 1000) * s)
        for t, x in told:
            a, s = model.schedule.signal_and_noise(t, x)
            assert torch.allclose(x, 0.3 * a + (1 + 0.2 * t / 1000) * s * eps, atol=2e-3)


@pytest.mark.parametrize(
    "sampling, given, says",
    [
        (Sampling(steps=1001), (), "more than the 1000 steps"),
        (Sampling(guidance=2.0), (), "needs --mask"),
        (Sampling(guidance=2.0, guided=("mask",)), ("contrast",), "needs --mask"),
        (Sampling(guidance=2.0, guided=("mask", "contrast")), ("mask",), "needs --contrast"),
        (Sampling(eta=1.0), (), "--eta belongs to --sampler ddim"),
        (Sampling(interval=(1.0, 0.25)), (), "0 <= LOW <= HIGH <= 1"),
        (Sampling(precision="bfloat16"), (), "none of fp32, bf16"),
        (Sampling(times=(100, 500, 0)), (), "they must fall"),
        (Sampling(times=(500, 100)), (), "end in 0"),
        (Sampling(times=(1001, 0)), (), "from 1000 at most"),
        (Sampling(times=(0,)), (), "end in 0"),
    ],
)
def test_what_cannot_be_done_is_refused(model, sampling, given, says):
    with pytest.raises(UserError, match=says):
        sampling.complete(model, given)


def test_a_network_of_few_steps_is_asked_at_its_times_alone(model):
    few = replace(model, config=replace(model.config, few_steps=4, few_times=[1000, 750, 500, 250, 0]))
    assert Sampling("ddim", times=(1000, 750, 500, 250, 0)).complete(few, ()).steps == 4
    with pytest.raises(UserError, match=r"knows \(1000, 750, 500, 250, 0\) and no others"):
        Sampling("ddim", times=(700, 300, 0)).complete(few, ())


def test_weights_of_another_name_are_refused(tiny_run):
    with pytest.raises(ValueError, match="'EMA' are none of ema, raw"):
        load_model(tiny_run, weights="EMA")


def test_a_label_that_the_network_does_not_know_is_not_ignored(model):
    with pytest.raises(ValueError, match="label 'sex'"):
        list(draw(model, Condition(labels={"sex": torch.tensor([1])}), [0]))
    with pytest.raises(ValueError, match="label 'contrast'"):  # one value for two images
        list(draw(model, Condition(labels={"contrast": torch.tensor([1])}), [0, 1]))


def test_a_loaded_model_draws_without_dropout_and_keeps_no_graph(tiny_run, tmp_path):
    path = altered(tiny_run, tmp_path, lambda raw: raw["config"].update(dropout=0.5))
    drawn = []
    for model in (load_model(tiny_run), load_model(path)):
        *_, (_, x_0) = draw(model, Condition(), [0], Sampling(steps=3))
        assert not x_0.requires_grad
        drawn.append(x_0)
    assert torch.equal(*drawn)


def test_the_condition_goes_where_the_network_is(model, monkeypatch):
    moved = []
    monkeypatch.setattr(Condition, "to", lambda self, device: moved.append(device) or self)
    list(draw(model, KNOWN.condition(contrast=["T1"]), [0], Sampling(steps=2)))
    assert moved == [torch.device("cpu")]


# What a checkpoint says


def altered(tiny_run, tmp_path, change):
    raw = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    change(raw)
    torch.save(raw, tmp_path / "altered.pt")
    return tmp_path / "altered.pt"


def test_conditions_are_described_by_name(tiny_run):
    raw = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    assert raw["version"] == checkpoint.VERSION
    assert raw["conditions"].keys() == {"mask", "labels"}
    assert raw["conditions"]["mask"] == ["background", "lesion"]
    assert raw["conditions"]["labels"]["contrast"] == ["T1", "T2", "FLAIR"]
    known = checkpoint.load(tiny_run / "checkpoints" / "step_000040.pt")["conditions"]
    assert known.classes == ("background", "lesion") and known.labels["contrast"] == ("T1", "T2", "FLAIR")


def test_a_file_that_follows_what_this_program_does_not_know_is_refused(tiny_run, tmp_path):
    path = altered(tiny_run, tmp_path, lambda raw: raw["conditions"].update(sound=["a"]))
    with pytest.raises(UserError, match="it follows sound, which this program does not know"):
        load_model(path)


def test_a_field_that_came_later_does_not_refuse_an_older_file(tiny_run, tmp_path):
    path = altered(tiny_run, tmp_path, lambda raw: (raw["config"].pop("threads"), raw["conditions"]))
    assert load_model(path).config.threads == Config().threads


def test_what_the_classes_are_called_in_files_is_kept_and_older_files_without_it_are_of_the_same_conditions(
    tiny_run, tmp_path
):
    known = load_model(tiny_run).vocabulary
    numbered = replace(known, values=(0, 4))
    told = checkpoint.description(numbered)
    found = load_model(altered(tiny_run, tmp_path, lambda raw: raw.update(conditions=told))).vocabulary
    assert found.values == (0, 4) and known.values == () and found == known
    assert checkpoint.description(known).keys() == {"mask", "labels"}


@pytest.mark.parametrize("path", ["", "nowhere", "nowhere.pt"])
def test_no_checkpoint_there(path):
    with pytest.raises(UserError, match="an empty name|no such checkpoint"):
        load_model(path)


def test_a_file_of_the_version_before_is_read(tiny_run, tmp_path):
    def older(raw):
        raw["version"] = 3
        raw.pop("trained_on")
        raw["config"]["both_drop"] = raw["config"].pop("all_drop") + 0.01
        for name in ("source", "segment", "words", "text_embeddings", "source_drop", "words_drop"):
            raw["config"].pop(name)

    model, now = load_model(altered(tiny_run, tmp_path, older)), load_model(tiny_run)
    assert model.config.all_drop == pytest.approx(now.config.all_drop + 0.01) and model.vocabulary == now.vocabulary
    assert all(torch.equal(a, b) for a, b in zip(model.unet.parameters(), now.unet.parameters(), strict=True))
