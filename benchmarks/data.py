"""Is a data set in a memory-mapped file as fast as one in memory, and does it leave memory alone?

    python benchmarks/data.py [--images 200000] [--size 128] [--batches 500] [--folder DIR]
    python benchmarks/data.py --volumes 1000 [--folder DIR]

Writes a synthetic store (images and two-class labels, 200,000 of each take 6.6 GB) into a temporary folder, draws
batches from it as training does (training.draw_batch), and measures, in processes of their own so that nothing is shared:

    anonymous memory (RssAnon) while a whole epoch is drawn; the pages of the file itself are the system's to give back
    images/s when the system has nothing of the file in its cache, as for a set that is larger than memory
    images/s from the mapped file against images/s from a copy in memory, taken in turn, median of --rounds

A training step waits for draw_batch, so its images/s are an upper limit of a training's.

With --volumes it measures instead what it takes to open a folder of so many NIfTI volumes of 240 x 240 x 155 (packed, each
an ellipsoid of blocks, which pack to a hundredth: real ones take longer to unpack), the first time, when they are
decoded, and the second: seconds, and the process's peak of memory.
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from ddpm import UserError
from ddpm.conditions import Vocabulary
from ddpm.data import Slices, folders, store
from ddpm.data.volumes import library
from ddpm.runtime import cache
from ddpm.runtime.command_line import Parser, one_line_errors
from ddpm.runtime.config import Config, check_limits
from ddpm.training import draw_batch, order

CLASSES = ("background", "lesion")
CONFIG = Config(batch_size=16)  # of what is drawn from the store


@one_line_errors
def main(argv):
    parser = Parser(
        prog="benchmarks/data.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200_000, help="in the file (default 200000)")
    parser.add_argument("--size", type=int, default=128, help="pixels each way (default 128)")
    parser.add_argument("--batches", type=int, default=500, help="of 16, in a round (default 500)")
    parser.add_argument("--rounds", type=int, default=7, help="default 7")
    parser.add_argument("--folder", help="where to put the file (default: the system's temporary folder)")
    parser.add_argument("--volumes", type=int, help="measure how so many volumes are opened")
    parser.add_argument("--opened", help=argparse.SUPPRESS)  # the folder, in the process that is measured
    parser.add_argument("--watch", action="store_true", help=argparse.SUPPRESS)  # the process that is measured
    args = parser.parse_args(argv)
    if args.watch:
        cache.CACHE = Path(args.folder)
        return watch_memory(mapped())
    if args.opened:
        cache.CACHE = Path(args.folder)
        return time_opening(args.opened)
    for name, least in (("images", 10 * CONFIG.batch_size), ("size", 1), ("batches", 1), ("rounds", 1)):
        check_limits(name, getattr(args, name), at_least=least)
    if args.volumes is not None:
        check_limits("volumes", args.volumes, at_least=3)  # a split each
        return open_twice(args.volumes, args.folder)
    needed = 2 * args.images * args.size**2
    folder = Path(tempfile.mkdtemp(prefix="data-bench-", dir=args.folder))
    try:
        if shutil.disk_usage(folder).free < 1.1 * needed:
            raise UserError(f"{folder}: the file needs {needed / 1e9:.1f} GB; make room, or name another --folder")
        cache.CACHE = folder
        write(args.images, args.size)
        command = [sys.executable, __file__, "--watch", "--folder", str(folder)]
        run(command)
        cold(args)
        compare(args)
    finally:
        shutil.rmtree(folder)


def run(command: list[str]) -> None:
    if subprocess.run(command).returncode:
        raise SystemExit(2)  # it has said why


def write(n: int, size: int) -> None:
    """A store of noise; a block of 256 images is used over and over, each time rotated."""
    rng, begun = np.random.default_rng(0), time.perf_counter()
    block = rng.integers(0, 256, (256, 1, size, size), dtype=np.uint8)
    with store.Writer("bench", (1, size, size), labelled=True) as writer:
        for i in range(n):
            image = np.roll(block[i % 256], i // 256, axis=-1)
            writer.add(image, image[0] >> 7)
    print(f"{n} images and labels of {size}x{size} written in {time.perf_counter() - begun:.0f} s")


def open_twice(n: int, where: str | None) -> None:
    """Write n volumes, and open them twice, each time in a process of its own."""
    folder = Path(tempfile.mkdtemp(prefix="data-bench-", dir=where))
    try:
        if shutil.disk_usage(folder).free < n * 3e6:
            raise UserError(f"{folder}: this needs {n * 3e6 / 1e9:.1f} GB; make room, or name another --folder")
        write_volumes(folder / "volumes", n)
        for _ in range(2):
            command = [sys.executable, __file__, "--opened", str(folder / "volumes"), "--folder", str(folder / "cache")]
            run(command)
    finally:
        shutil.rmtree(folder)


def write_volumes(folder: Path, n: int) -> None:
    nibabel, begun = library("nibabel"), time.perf_counter()
    nibabel.openers.Opener.default_compresslevel = 1
    folder.mkdir()
    shape = (240, 240, 155)
    x, y, z = np.ogrid[:240, :240, :155]
    inside = ((x - 120) / 75) ** 2 + ((y - 120) / 95) ** 2 + ((z - 77) / 72) ** 2 < 1
    for i in range(n):
        blocks = np.random.default_rng(i).integers(100, 1000, (30, 30, 31), dtype=np.int16)
        volume = np.where(inside, blocks.repeat(8, 0).repeat(8, 1).repeat(5, 2), np.int16(0))
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([-1.0, -1, 1, 1])), folder / f"volume{i:05d}.nii.gz")
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    print(f"{n} volumes of {'x'.join(map(str, shape))} written in {time.perf_counter() - begun:.0f} s ({size:.0f} MB)")


def time_opening(folder: str) -> None:
    """Open it as training does, and print the time by the clock, that of the processor, and the peak of memory."""
    config, begun, busy = Config(data=folder), time.perf_counter(), time.process_time()
    images = sum(len(folders.load(config, split)) for split in ("train", "val"))
    seconds, busy = time.perf_counter() - begun, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{images} slices opened in {seconds:.2f} s ({busy:.2f} s of a core), peak of memory {peak:.0f} MB")


def mapped() -> Slices:
    images, labels, *_ = store.read("bench")
    return Slices(images, labels, {}, Vocabulary(CLASSES))


def watch_memory(data: Slices) -> None:
    """Draw an epoch; print the process's memory at the start and at each tenth."""
    steps = len(data) // CONFIG.batch_size
    for step in range(20):  # buffers, and the order of the first epoch
        draw_batch(data, CONFIG, step)
    start, most = rss(), {"RssAnon": 0, "RssFile": 0}
    for step in range(steps):
        draw_batch(data, CONFIG, step)
        if step % max(steps // 50, 1) == 0:
            most = {kind: max(most[kind], value) for kind, value in rss().items()}
    grown = most["RssAnon"] - start["RssAnon"]
    print(
        f"an epoch of {len(data)} images: anonymous memory {start['RssAnon']:.0f} MB at the start, at most "
        f"{most['RssAnon']:.0f} MB after (grown by {grown:.1f} MB); mapped pages of the file up to {most['RssFile']:.0f} MB"
    )


def rss() -> dict[str, float]:
    """This process's anonymous and file-backed memory in MB. Raises UserError where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        raise UserError("/proc/self/status: not there; this measurement needs Linux") from None
    found = {
        line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith(("RssAnon", "RssFile"))
    }
    return found


def cold(args) -> None:
    """images/s when nothing of the file is in the system's cache, as for a set that is larger than memory."""
    for path in store.folder_of("bench").glob("*.npy"):
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    data = mapped()
    steps = min(args.batches, len(data) // (10 * CONFIG.batch_size))  # a tenth of an epoch at most
    order(len(data), CONFIG.seed, 0)  # drawn once an epoch; not what is measured here
    begun = time.perf_counter()
    for step in range(steps):
        draw_batch(data, CONFIG, step)
    images = steps * CONFIG.batch_size
    print(
        f"draw_batch from a file of which nothing is cached: {images / (time.perf_counter() - begun):.0f} images/s "
        f"({images} images)"
    )


def compare(args) -> None:
    """images/s of draw_batch from the mapped file and from memory, in turn."""
    torch.set_num_threads(1)
    n = min(args.images, 100_000)  # what is copied into memory; the mapped set is as long, so both walk alike
    data = mapped()
    part = Slices(data.images[:n], data.masks[:n], {}, data.vocabulary)
    copy = Slices(np.array(part.images), np.array(part.masks), {}, data.vocabulary)
    seconds = {"mapped": [], "memory": []}
    for round in range(args.rounds + 1):
        for name, source in (("mapped", part), ("memory", copy))[:: 1 if round % 2 else -1]:
            begun = time.perf_counter()
            for step in range(round * args.batches, (round + 1) * args.batches):
                draw_batch(source, CONFIG, step)
            if round:  # the first one warms up
                seconds[name].append(time.perf_counter() - begun)
    speed = {name: args.batches * CONFIG.batch_size / statistics.median(times) for name, times in seconds.items()}
    ratios = [memory / mapped for mapped, memory in zip(seconds["mapped"], seconds["memory"], strict=True)]
    print(
        f"draw_batch: {speed['mapped']:.0f} images/s from the mapped file, {speed['memory']:.0f} from memory; ratio "
        f"{statistics.median(ratios):.3f} (median of {args.rounds}, {min(ratios):.3f} to {max(ratios):.3f})"
    )


if __name__ == "__main__":
    sys.exit(main())
