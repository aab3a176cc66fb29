"""What tools/export.py writes: from it alone, without PyTorch, the same images."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from ddpm.conditions import Condition, Vocabulary
from ddpm.data.images import to_uint8
from ddpm.model import Model, Sampling, draw, load_model, make_unet
from ddpm.reverse import SAMPLERS
from ddpm.runtime import checkpoint
from ddpm.runtime.config import make_config
from ddpm.schedule import OBJECTIVES
from tools import export

ROOT = Path(export.__file__).parents[1]
EXAMPLE, WEIGHTS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.S)
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\n"
LABELS = Vocabulary(("background", "lesion"), {"contrast": ("T1", "T2")})


def shaken_model(vocabulary, **given) -> Model:
    """A network of which no layer answers 0."""
    config = make_config("tiny", given)
    unet = make_unet(config, vocabulary).eval().requires_grad_(False)
    for weight in unet.parameters():
        weight += 0.1 * torch.randn(weight.shape)
    schedule = config.make_schedule()
    return Model(config, vocabulary, schedule, unet)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "distilled", "default"])
def test_the_example_of_the_docs_draws_our_images_without_torch(sampler, ckpt, tmp_path):
    if sampler == "distilled":  # with times of its own, not guided, not clipped
        raw = torch.load(ckpt, weights_only=True)
        raw["config"].update(teacher="pretrained", few_steps=3)
        torch.save(raw, tmp_path / "student.pt")
        ckpt, flags, how = "student.pt", [], Sampling()
    elif sampler == "default":
        flags, how = [], Sampling()
    else:
        flags = ["--sampler", sampler, "--sample-steps", "12", "--guidance", "2"]
        how = Sampling(sampler, 12, 2.0)
    assert export.main(["--ckpt", ckpt, *flags]) == 0
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH + EXAMPLE], check=True)
    model = load_model(ckpt)
    mask = np.zeros((4, 32, 32), np.uint8)
    mask[:, 16:24, 12:20] = 1
    condition = model.vocabulary.condition(mask, contrast=["T1", "T2", "FLAIR", None])
    *_, (_, ours) = draw(model, condition, range(4), how)
    for k, image in enumerate(to_uint8(ours)):
        theirs = np.asarray(Image.open(f"drawn_{k}.png")).astype(int)
        assert theirs.std() > 5 and np.abs(theirs - image[0]).max() <= 1


def test_a_sampler_with_two_calls_a_step_is_not_exported(monkeypatch):
    def heun(sampler, predict_x_0, schedule, x_T, times, noise):
        yield x_T
        for t in times[:-1]:
            yield (predict_x_0(x_T, t) + predict_x_0(x_T, t)) / 2

    model = shaken_model(Vocabulary())
    monkeypatch.setattr(export, "trajectory", heun)
    with pytest.raises(AssertionError, match="one call of the network a step"):
        export.multipliers_of(Sampling().complete(model, ()), model.schedule)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_says_how_x_0_hat_comes_from_the_output(objective):
    model = shaken_model(Vocabulary(), objective=objective)
    x_t, output = torch.randn(2, 1, 1, 8, 8, dtype=torch.float64)
    steps = export.walk(model, Sampling().complete(model, ()))["steps"]
    assert len(steps) == 10
    for step in steps:
        assert abs(step["a"] ** 2 + step["s"] ** 2 - 1) < 1e-12 and len(step) == 11
        ours = model.schedule.x_0_from(objective, output, step["scale"] * x_t, step["t"])
        assert torch.allclose(step["x_0_from_x_t"] * x_t + step["x_0_from_output"] * output, ours)


def test_guidance_is_there_inside_its_interval_only():
    model = shaken_model(LABELS)
    sampling = Sampling("ancestral", 20, 3.0, interval=(0.25, 0.75)).complete(model, ("mask", "contrast"))
    guided = [step["t"] for step in export.walk(model, sampling)["steps"] if step["guidance"] == 3]
    assert guided == list(range(750, 200, -50))


@pytest.mark.parametrize(
    "vocabulary, network",
    [
        (LABELS, {}),
        (Vocabulary(), {}),
        (Vocabulary(("background", "a", "b")), dict(image_channels=3, data="x")),
        (LABELS, dict(lean=False, patch=1, mults=[1, 2, 2], attention=[0, 1])),
    ],
    ids=["both", "nothing known", "three channels", "the paper's"],
)
def test_the_onnx_network_answers_as_ours_for_any_number_and_size(vocabulary, network):
    model = shaken_model(vocabulary, **network)
    session = onnxruntime.InferenceSession(export.onnx_of(model))
    for B, height, width in ((2, 32, 32), (1, 32, 32), (5, 16, 40)):
        x_t, t = torch.randn(B, model.shape[0], height, width), torch.randint(1, 1001, (B,))
        mask = torch.randn(B, len(vocabulary.classes), height, width) if vocabulary.classes else None
        labels = {name: torch.randint(0, 3, (B,)) for name in vocabulary.labels}
        inputs = {"x_t": x_t, "t": t, **({} if mask is None else {"mask": mask}), **labels}
        (theirs,) = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        ours = model.unet(x_t, t, Condition(mask, labels)).numpy()
        assert ours.std() > 0.1 and np.abs(theirs - ours).max() < 1e-4


def test_the_weights_come_back_with_their_configuration(ckpt):
    assert export.main(["--ckpt", ckpt]) == 0
    there = {}
    exec(WEIGHTS, there)
    model = load_model(ckpt)
    for name, weight in model.unet.state_dict().items():
        assert torch.equal(weight, there["unet"].state_dict()[name])
    with safe_open("results/export/network.safetensors", "pt") as file:
        assert json.loads(file.metadata()["step"]) == 40


def test_half_precision_stays_half_precision(ckpt, tmp_path):
    raw = torch.load(ckpt, weights_only=True)
    raw["ema"] = {name: weight.half() for name, weight in raw["ema"].items()}
    torch.save(raw, tmp_path / "half.pt")
    for name in (ckpt, "half.pt"):
        assert export.main(["--ckpt", name, "--out", Path(name).stem]) == 0
    sizes = [Path(folder, "network.safetensors").stat().st_size for folder in ("half", Path(ckpt).stem)]
    assert sizes[0] < 0.6 * sizes[1]


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--ckpt", "nowhere.pt"], "no such checkpoint"),
        (["--sample-steps", "2000"], "more than the 1000 steps"),
        (["--sample-steps", "0"], "at least 1"),
        (["--guidance", "-1"], "at least 0"),
        (["--sampler", "euler"], "invalid choice"),
        (["--out", "/proc/o"], "cannot write there"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(flags, says, ckpt, capsys):
    assert export.main(["--ckpt", ckpt, *flags]) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("error: ") and error.count("\n") == 1
    assert not Path("results").exists()


@pytest.mark.parametrize("missing", ["onnx", "safetensors"])
def test_without_the_libraries_it_says_what_to_install(missing, ckpt, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.split(".")[0] == missing]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    assert export.main(["--ckpt", ckpt]) == 2
    error = capsys.readouterr().err
    assert error == f"error: {missing} is needed to export; run: pip install -r requirements/export.txt\n"
    assert not Path("results").exists()


def test_the_model_in_the_box_is_exported(capsys):
    assert export.main(["--ckpt", "pretrained"]) == 0
    assert str(checkpoint.PRETRAINED) in capsys.readouterr().out
    sizes = {path.name: path.stat().st_size / 1e6 for path in Path("results/export").iterdir()}
    assert sizes.keys() == {"network.safetensors", "network.onnx", "sampler.json"}
    assert sizes["network.safetensors"] < 10 and sizes["network.onnx"] < 20
