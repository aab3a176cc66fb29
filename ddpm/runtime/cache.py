"""What can be made again is kept: rendered, decoded, features, a judge.

One rule: its name is a key of all that could change it, which is the inputs, the options and the source code of what
makes it. So nothing stale is ever found. What is damaged is made again, and a disk that is full or cannot be written
to costs time, not the run.
"""

import contextlib
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ddpm.runtime.files import remove_left_overs, write_whole

ROOT = Path(__file__).resolve().parents[2]


def place() -> Path:
    """The cache's folder: .cache of a checkout, or, for an installed package, one among the user's caches."""
    if (ROOT / "pyproject.toml").exists():
        return ROOT / ".cache"
    try:
        home = Path.home()
    except RuntimeError:  # a container's user may have none
        home = Path(tempfile.gettempdir())
    if sys.platform == "darwin":
        caches = home / "Library" / "Caches"
    elif sys.platform == "win32":
        caches = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    else:
        caches = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    return caches / "ddpm-mri"


CACHE = place()


def code(*files: str) -> str:
    """A hash of source files of ddpm/: those that decide what is kept.

    Taken when a module is imported (CODE = cache.code("data/phantom.py")): what is edited afterwards is not what runs.
    """
    return key([(ROOT / "ddpm" / file).read_bytes() for file in sorted(files)])


def key(*parts) -> str:
    """20 hexadecimal digits that stand for arrays and for values whose repr says it all."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(repr((part.shape, part.dtype.str)).encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()[:20]


def read_arrays(path: Path) -> tuple[np.ndarray, ...]:
    with np.load(path) as file:  # a ZIP file, whose checksums numpy looks at
        return tuple(file[name] for name in file.files)


def write_arrays(arrays: tuple[np.ndarray, ...], path: Path) -> None:
    write_whole(path, lambda file: np.savez(file, *arrays))


def kept(name: str, make: Callable, read: Callable = read_arrays, write: Callable = write_arrays):
    """What lies in the cache under this name (which holds its key), or else make(), which is then put there.

    make() -> arrays in a tuple, or what write(made, path) writes and read(path) reads; read raises if it is damaged.
    """
    path = CACHE / name
    try:
        return read(path)
    except Exception:
        pass  # not there yet, or damaged, in whichever of many ways
    made = make()
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_left_overs(CACHE)
        write(made, path)
    return made
