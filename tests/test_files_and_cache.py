"""Files are there whole or not at all; what is cached is never stale, and what is damaged is made again."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ddpm import UserError
from ddpm.data import folders, phantom
from ddpm.metrics import features, segmenter
from ddpm.runtime import cache
from ddpm.runtime.files import check_writable, is_whole, write_whole


def test_a_file_is_replaced_whole_or_stays(tmp_path):
    path = tmp_path / ("x" * 255)  # the longest name there is
    write_whole(path, lambda file: file.write(b"first"))

    def fails(file):
        file.write(b"sec")
        raise ValueError

    with pytest.raises(ValueError):
        write_whole(path, fails)
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == [path.name]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5, hard))  # the operating system's own limit
    try:
        with pytest.raises(OSError):
            write_whole(path, lambda file: file.write(b"second"), durable=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == [path.name]
    write_whole(path, lambda file: file.write(b"second"), durable=True)
    assert path.read_bytes() == b"second" and os.listdir(tmp_path) == [path.name]


def test_two_that_write_one_file_at_once_do_not_mix(tmp_path):
    path = tmp_path / "f"

    def outer(file):
        file.write(b"outer")
        write_whole(path, lambda file: file.write(b"inner, and longer"))
        assert path.read_bytes() == b"inner, and longer"

    write_whole(path, outer)
    assert path.read_bytes() == b"outer" and os.listdir(tmp_path) == ["f"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: write_whole(path, lambda file: file.write(bytes([i]) * i)), range(200)))
    assert len(set(path.read_bytes())) == 1 and os.listdir(tmp_path) == ["f"]


def test_many_may_ask_at_once_whether_a_folder_can_be_written(tmp_path):
    """As the processes of torchrun do."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_writable, [str(tmp_path / "a" / "b")] * 2000))
    assert os.listdir(tmp_path / "a" / "b") == []
    with pytest.raises(UserError, match="--out /proc/x: cannot write there"):
        check_writable("/proc/x")


# ---------------------------------------------------------------- the cache


def test_a_checkout_caches_in_itself_and_a_package_among_the_users_caches(tmp_path, monkeypatch):
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("LOCALAPPDATA", str(home / "Local"))
    assert cache.place() == Path(cache.__file__).parents[2] / ".cache"
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    assert cache.place() == home / ".cache" / "ddpm-mri"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.place() == tmp_path / "xdg" / "ddpm-mri"
    monkeypatch.setattr(cache.sys, "platform", "darwin")
    assert cache.place() == home / "Library" / "Caches" / "ddpm-mri"
    monkeypatch.setattr(cache.sys, "platform", "win32")
    assert cache.place() == home / "Local" / "ddpm-mri"


def test_the_code_is_all_that_a_module_imports(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    sources = {
        "ddpm/__init__.py": "",
        "ddpm/a.py": "import numpy\nfrom ddpm.part import (\n    b,\n)\n",
        "ddpm/part/__init__.py": "",
        "ddpm/part/b.py": "def f():\n    import ddpm.c as later\n",
        "ddpm/c.py": "from ddpm.a import x  # in a circle\n",
        "ddpm/other.py": "",
    }
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)

    def code():
        cache.read_source.cache_clear()
        return cache.code_of("ddpm.a")

    before = code()
    assert before == code()
    for name, source in sources.items():
        (tmp_path / name).write_text(source + "# edited\n")
        assert (code() == before) == (name in ("ddpm/other.py", "ddpm/__init__.py")), name
        (tmp_path / name).write_text(source)
    cache.read_source.cache_clear()


@pytest.mark.parametrize(
    "module, of",
    [
        (phantom, ["data.phantom", "runtime.cache"]),
        (folders, ["data.folders", "data.decode", "data.volumes", "data.images", "data.store", "data.layouts"]),
        (features, ["metrics.features", "metrics.segmenter", "metrics.inception", "unet", "data.images"]),
        (segmenter, ["metrics.segmenter", "unet", "data.images"]),
    ],
)
def test_an_edit_of_what_makes_it_makes_it_again(module, of, monkeypatch):
    assert cache.code_of(module.__name__) == module.CODE
    read = cache.read_source
    for edited in of:
        monkeypatch.setattr(
            cache, "read_source", lambda name, e=edited: (b"#", []) if name == f"ddpm.{e}" else read(name)
        )
        assert cache.code_of(module.__name__) != module.CODE, edited


def test_keys_differ_where_anything_does():
    a = np.arange(6, dtype=np.uint8)
    parts = [(a,), (a.reshape(2, 3),), (a.view(np.int8),), (a, 0), ("a", "b"), ("ab",), (1,), ("1",), (b"1",)]
    assert len({cache.key(*part) for part in parts}) == len(parts)
    assert cache.key(a[::2]) == cache.key(a[::2].copy())


def test_what_is_kept_is_made_once_and_again_where_it_is_damaged(own_cache):
    made = []

    def make():
        made.append(1)
        return np.arange(1000.0), np.ones((2, 3), np.uint8)

    for _ in range(2):
        first, second = cache.kept("x-1.npz", make)
        assert np.array_equal(first, np.arange(1000)) and second.shape == (2, 3)
    assert len(made) == 1 and os.listdir(own_cache) == ["x-1.npz"]
    whole = (own_cache / "x-1.npz").read_bytes()
    for damaged in (b"", whole[:-9], whole[:4000] + bytes([whole[4000] ^ 1]) + whole[4001:]):
        (own_cache / "x-1.npz").write_bytes(damaged)
        before = len(made)
        assert np.array_equal(cache.kept("x-1.npz", make)[0], np.arange(1000))
        assert len(made) == before + 1 and is_whole(own_cache / "x-1.npz")


def test_a_cache_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "CACHE", tmp_path / "file" / "cache")
    assert cache.kept("x.npz", lambda: (np.ones(3),))[0].sum() == 3
    assert os.listdir(tmp_path) == ["file"]
