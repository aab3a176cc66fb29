"""Decoded slices on disk: uint8 arrays that are mapped into memory, with an index beside them.

A set is decoded once. From then on its arrays are opened, not read: an image comes from the disk (or the system's
cache of it) when it is asked for, so a set may be larger than memory, and the second start takes no time.

A store is a folder of images.npy, labels.npy (if there are masks), source.npy (if there are sources) and index.json.
Its name holds a key of all that could change a pixel (made in folders.decoded). It is written under another name and
renamed, so half a store is never found; the index holds the arrays' sizes and times, so one that was cut or overwritten
is not used.
"""

import contextlib
import json
import os
import secrets
import shutil
from pathlib import Path

import numpy as np

from ddpm.runtime import cache
from ddpm.runtime.files import remove_left_overs, write_whole


def folder_of(key: str) -> Path:
    return cache.CACHE / f"slices-{key}"


def read(key: str) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None, dict] | None:
    """Images (N, C, H, W), labels (N, H, W) or None, sources (N, C, H, W) or None, and the index, of a whole store; None
    if there is none."""
    folder = folder_of(key)
    try:
        index = json.loads((folder / "index.json").read_text())
        arrays = {}
        for name, status in index["files"].items():
            if status != status_of(folder / name):
                return None
            # a plain array that looks at the mapped file: np.memmap's own indexing is slower
            arrays[name] = np.asarray(np.load(folder / name, mmap_mode="r", allow_pickle=False))
        return arrays["images.npy"], arrays.get("labels.npy"), arrays.get("source.npy"), index
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def status_of(path: str | Path) -> list[int]:
    """Size and time of change."""
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


class Writer:
    """Within it, `add` appends slices to a store; when it ends without an error, the store is there. Raises OSError."""

    def __init__(self, key: str, shape: tuple[int, int, int], labelled: bool, sourced: bool = False):
        """shape: (C, H, W) of every image and every source."""
        self.key, self.folder = key, folder_of(key)
        self.temporary = self.folder.with_name(f"{self.folder.name}.{secrets.token_hex(8)}.tmp")
        self.shapes = {"images.npy": shape} | ({"labels.npy": shape[1:]} if labelled else {})
        self.shapes |= {"source.npy": shape} if sourced else {}
        self.index: dict = {}
        self.n = 0

    def __enter__(self):
        remove_left_overs(cache.CACHE)
        self.temporary.mkdir(parents=True)
        self.files = {name: open(self.temporary / name, "wb") for name in self.shapes}  # noqa: SIM115
        self.write_headers()
        return self

    def write_headers(self) -> None:
        for name, file in self.files.items():
            shape = (self.n, *self.shapes[name])
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            file.seek(0)
            np.lib.format.write_array_header_1_0(file, header)  # of the same length for every n: made to grow

    def add(self, image: np.ndarray, label: np.ndarray | None, source: np.ndarray | None = None) -> None:
        """Append an image (C, H, W), its labels (H, W) and its source (C, H, W), all uint8."""
        arrays = {"images.npy": image, "labels.npy": label, "source.npy": source}
        for name, file in self.files.items():
            array = arrays[name]
            assert array.shape == self.shapes[name] and array.dtype == np.uint8
            file.write(np.ascontiguousarray(array))
        self.n += 1

    def __exit__(self, kind, *rest):
        try:
            if kind is None:
                self.write_headers()
                self.keep()
        finally:
            for file in self.files.values():
                with contextlib.suppress(OSError):  # on a full disk once more; what it said first is told
                    file.close()
            shutil.rmtree(self.temporary, ignore_errors=True)

    def keep(self) -> None:
        """Flush everything to the disk, close it (Windows renames no folder of open files), give the store its name."""
        for file in self.files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self.index["files"] = {name: status_of(self.temporary / name) for name in self.files}
        index = json.dumps(self.index).encode()
        write_whole(self.temporary / "index.json", lambda file: file.write(index), durable=True)
        if read(self.key) is None:
            shutil.rmtree(self.folder, ignore_errors=True)  # a damaged one
            os.replace(self.temporary, self.folder)
        # else another process was faster, with the same result
