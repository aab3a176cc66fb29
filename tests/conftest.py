import os

# Before numpy is imported: what is multiplied here is too small for two threads, which would only wait for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
import torch

import train
from ddpm.data import phantom, store

torch.set_num_threads(1)  # for the same reason


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """Scripts write below the working directory, and decoded images into a cache apart from the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "CACHE", tmp_path / "store")


@pytest.fixture(scope="session")
def small_phantom(tmp_path_factory):
    """The embedded data with fewer images, cached apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantom, "SPLITS", {"train": 96, "val": 24, "test": 96})
        patch.setattr(phantom, "CACHE", tmp_path_factory.mktemp("cache"))
        yield


@pytest.fixture(scope="session")
def tiny_run(small_phantom, tmp_path_factory):
    """The folder of a finished run of the preset `tiny`: 40 steps, checkpoints at 20 and 40."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    assert train.main(["--preset", "tiny", "--out", str(folder), "--precision", "fp32"]) == 0
    return folder
