import os

# Before numpy is imported: what is multiplied here is too small for two threads, which would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch

import train
from ddpm.data import phantom
from ddpm.runtime import cache, command_line

torch.set_num_threads(1)  # for the same reason


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Scripts write below the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session", autouse=True)
def a_cache_apart_from_the_users(tmp_path_factory):
    """One for all tests, so that what they share is rendered once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(autouse=True)
def one_precision(monkeypatch):
    """Which is the quicker one is measured, and on a busy machine changes between two draws that a test compares."""
    monkeypatch.setattr(command_line, "quicker_precision", lambda device: "fp32")


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """The cache of a test that looks into it."""
    monkeypatch.setattr(cache, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def small_phantom():
    """The embedded data with fewer images."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "SPLITS", {"train": 96, "val": 24, "test": 96})
        yield


@pytest.fixture(scope="session")
def tiny_run(small_phantom, tmp_path_factory):
    """The folder of a finished run of the preset `tiny`: 40 steps, checkpoints at 20 and 40."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main(["--preset", "tiny", "--out", str(folder), "--precision", "fp32"]) == 0
    return folder


@pytest.fixture(scope="session")
def ckpt(tiny_run, tmp_path_factory):
    """The tiny run's last checkpoint, shaken: in 40 steps, layers that start at zero hardly learn to listen."""
    raw = torch.load(tiny_run / "checkpoints" / "step_000040.pt", weights_only=True)
    generator = torch.Generator().manual_seed(0)
    for weights in (raw["model"], raw["ema"]):
        for name, weight in weights.items():
            weight += (1.0 if name == "labels.contrast.weight" else 0.05) * torch.randn(
                weight.shape, generator=generator
            )
    path = tmp_path_factory.mktemp("ckpt") / "step_000040.pt"
    torch.save(raw, path)
    return str(path)
