"""Files are there whole or not at all; what is cached is never stale, and what is damaged is made again."""

import ast
import os
import resource
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from ddpm import UserError
from ddpm.data import folders, phantom
from ddpm.metrics import features, segmenter
from ddpm.runtime import cache
from ddpm.runtime.files import check_writable, is_whole, refuse_overwriting, write_whole

ROOT = Path(cache.__file__).parents[2]


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


def test_a_file_that_is_read_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o").mkdir()
    (tmp_path / "link").symlink_to("o")
    for folder, read in (("o", "o/a.png"), (str(tmp_path / "o"), "o/../o/a.png"), ("link", "o/a.png"), (".", "a.png")):
        with pytest.raises(UserError, match=f"--out {folder}: a.png there is read, and would be overwritten"):
            refuse_overwriting(folder, {"b.png", "a.png"}, [None, read])
    for folder, read in (("o", "a.png"), ("o", "o/c.png"), ("p", "o/a.png"), (None, "a.png"), ("", "a.png")):
        refuse_overwriting(folder, {"b.png", "a.png"}, [None, read])


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


PLAIN = {"", "conditions", "data", "runtime.cache", "runtime.files", "runtime.progress"}  # machinery, and names


def imported(file):
    """The modules of ddpm/ that a file there imports, anywhere in it: "unet", "data.images" ..."""
    names = []
    for node in ast.walk(ast.parse((ROOT / "ddpm" / file).read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    names = [name.removeprefix("ddpm").removeprefix(".") for name in names if name.split(".")[0] == "ddpm"]
    return {name if (ROOT / "ddpm" / file_of(name)).exists() else name.rpartition(".")[0] for name in names}


def file_of(name):
    path = name.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / "ddpm" / path).is_dir() else f"{path}.py"


@pytest.mark.parametrize("module", [phantom, folders, features, segmenter])
def test_the_code_that_a_key_names_is_all_that_is_used(module):
    used, waiting = set(), [module.__name__.removeprefix("ddpm.")]
    while waiting:
        used.add(name := waiting.pop())
        waiting += imported(file_of(name)) - PLAIN - used
    assert module.CODE == cache.code(*map(file_of, used)), used


def test_an_edit_of_what_makes_it_makes_it_again(tmp_path, monkeypatch):
    (tmp_path / "ddpm" / "data").mkdir(parents=True)
    monkeypatch.setattr(cache, "ROOT", tmp_path)
    for name in ("a.py", "data/b.py"):
        (tmp_path / "ddpm" / name).write_text("")
    before = cache.code("a.py", "data/b.py")
    assert before == cache.code("a.py", "data/b.py")
    (tmp_path / "ddpm" / "data" / "b.py").write_text("# edited")
    assert before != cache.code("a.py", "data/b.py")


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


def test_what_a_killed_process_left_is_removed_in_time(own_cache):
    """A file of `kept` and a folder of a store; what is fresh may be of a process at work."""
    own_cache.mkdir()
    for name, age in (("old", 8), ("new", 0)):
        (own_cache / f"slices-k.{name}.tmp").mkdir()
        (own_cache / f"slices-k.{name}.tmp" / "images.npy").write_text("half")
        (own_cache / f".{name}.tmp").write_text("half")
        for path in own_cache.glob(f"*{name}.tmp"):
            os.utime(path, (time.time() - 86400 * age,) * 2)
    cache.kept("x.npz", lambda: (np.ones(3),))
    assert sorted(os.listdir(own_cache)) == [".new.tmp", "slices-k.new.tmp", "x.npz"]
