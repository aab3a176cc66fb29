"""Progress of long work: a bar on a terminal; elsewhere (a notebook's `!make train`, a log file, CI) a line now and then."""

import sys

from tqdm import tqdm

EVERY = 30.0  # seconds between two lines
LINE = "{desc}{n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"


class Lines:
    """stderr for tqdm, on which each redrawing of the bar is a line of its own."""

    def write(self, text: str) -> None:
        if text := text.strip("\r\n "):
            sys.stderr.write(text + "\n")

    def flush(self) -> None:
        sys.stderr.flush()


def progress(iterable=None, desc: str | None = None, leave: bool = False, **options) -> tqdm:
    """tqdm, shown as suits where stderr goes. options: tqdm's total, initial, unit."""
    desc = desc and f"{desc}: "
    if sys.stderr.isatty():
        return tqdm(iterable, desc, leave=leave, dynamic_ncols=True, **options)
    slow = {"mininterval": EVERY, "miniters": 1, "delay": EVERY}
    return tqdm(iterable, desc, leave=False, file=Lines(), bar_format=LINE, **slow, **options)
