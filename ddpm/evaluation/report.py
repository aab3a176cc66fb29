"""What an evaluation leaves behind: report.json, and one self-contained report.html with the table and the pictures."""

import base64
import html
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.data.images import colour_labels, grid, rgb
from ddpm.evaluation.comparison import Comparison, nearest_training
from ddpm.evaluation.questions import Row
from ddpm.runtime.files import write_whole

NO_PLOTS = "plots need matplotlib, which is not installed: `make evaluate`, or pip install -r requirements/plots.txt"
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .7rem; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #888 } tr + tr td { border-top: 1px solid #ddd } td.number { text-align: right; white-space: nowrap }
td.note { color: #666; font-size: .85rem } img { max-width: 100% } dt { font-weight: 600 } dd { margin: 0 0 .4rem 1rem }
"""


def figure(value: float | None, margin: float | None = None) -> str:
    """A number for the table, with as many digits as its margin makes sense of."""
    if value is None:
        return ""
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:.{digits}f}" + (f" ± {margin:.{digits}f}" if margin is not None else "")


def table(rows: list[Row]) -> str:
    """The table, for the terminal."""
    lines = [("", "samples", "real images", "shuffled masks", "goal")]
    for row in rows:
        lines.append((row.metric, figure(row.samples, row.margin), figure(row.real), figure(row.wrong), row.goal))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ([cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in padded)


def write_report(out: Path, title: str, rows: list[Row], c: Comparison) -> str:
    """Write report.json and report.html to `out`, whole or not at all; returns a notice ("" if nothing is missing)."""
    choices = c.choices | ({"warnings": "; ".join(c.warnings)} if c.warnings else {})
    content = {"title": title, "choices": choices, "rows": [asdict(row) for row in rows]}
    if c.fid_line is not None:
        content["fid_line"] = {"sizes": c.fid_line.sizes.tolist(), "values": c.fid_line.values.tolist()}
    text = json.dumps(content, indent=2, allow_nan=False)
    write_whole(out / "report.json", lambda file: file.write(f"{text}\n".encode()))

    columns = " | ".join(["mask"] * bool(c.samples.classes) + ["sample"] + ["nearest training image"] * bool(c.train))
    pictures, notice = [(columns, png(grid(cells(c))))], ""
    try:
        pictures += plots(c)
    except ImportError:
        notice = NO_PLOTS
    page = page_of(title, rows, choices, pictures, notice)
    write_whole(out / "report.html", lambda file: file.write(page.encode(errors="backslashreplace")))
    return notice


def cells(c: Comparison) -> np.ndarray:
    """uint8 (rows, columns, 3, H, W): mask | sample | nearest training image, of 18 samples, three times a row;
    up to three of them were asked for nothing but health."""
    empty = np.flatnonzero(~c.samples.masks.any((1, 2)))[:3] if c.samples.classes else np.array([], dtype=int)
    rest = np.setdiff1d(np.arange(len(c.samples)), empty)
    shown = np.r_[empty, rest[np.linspace(0, len(rest) - 1, min(18, len(c.samples) // 3 * 3) - len(empty)).astype(int)]]
    pictures = c.samples.images[shown]
    columns = [rgb(pictures)]
    if c.samples.classes:
        columns.insert(0, colour_labels(c.samples.masks[shown], len(c.samples.classes)))
    if c.train is not None:
        columns.append(rgb(c.train.images[nearest_training(pictures, c.train.images)[1]]))
    return np.stack(columns, axis=1).reshape(-1, 3 * len(columns), 3, *pictures.shape[2:])


def page_of(title: str, rows: list[Row], choices: dict[str, str], pictures: list[tuple[str, str]], notice: str) -> str:
    """The page as HTML; pictures: (title, PNG in base64)."""
    cells = "".join(
        f"<tr><td>{html.escape(row.metric)}</td><td class=number>{figure(row.samples, row.margin)}</td>"
        f"<td class=number>{figure(row.real)}</td><td class=number>{figure(row.wrong)}</td>"
        f"<td>{html.escape(row.goal)}</td><td class=note>{html.escape(row.note)}</td></tr>\n"
        for row in rows
    )
    chosen = "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in choices.items())
    shown = "".join(
        f'<h2>{html.escape(name)}</h2><img alt="{html.escape(name)}" src="data:image/png;base64,{data}">\n'
        for name, data in pictures
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style></head><body>\n<h1>{html.escape(title)}</h1>\n"
        "<table><tr><th></th><th>samples</th><th>real images</th><th>shuffled masks</th><th>goal</th><th></th></tr>\n"
        f"{cells}</table>\n<p>A margin (±) is half of a 95 % interval over the subjects; "
        "<i>real images</i> is the same number for held-out real images in the place of samples.</p>\n"
        f"{shown}{f'<p>{html.escape(notice)}</p>' if notice else ''}<h2>what was compared</h2><dl>{chosen}</dl>\n</body></html>\n"
    )


def plots(c: Comparison) -> list[tuple[str, str]]:
    """FID against 1/N, grey levels, power spectrum: (name, PNG in base64). Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    sides = {"real": 2, "samples": 0}
    levels = {name: (np.arange(256), c.grey_levels[i].mean(0)) for name, i in sides.items()}
    spectra = {name: (c.spectra[i][0], c.spectra[i][1].mean(0)) for name, i in sides.items()}
    panels = [
        ("grey levels", levels, {"xlabel": "grey level", "ylabel": "share of pixels", "yscale": "log"}),
        ("power spectrum", spectra, {"xlabel": "cycles per pixel", "ylabel": "power", "yscale": "log"}),
    ]
    if line := c.fid_line:
        reach = np.array([0, 1 / line.sizes.min()])
        curves = {"samples": (1 / line.sizes, line.values, "o")}
        curves["straight line to 1/N = 0"] = (reach, line.fid_infinity + line.slope * reach)
        panels.insert(0, ("FID and the number of samples", curves, {"xlabel": "1 / N", "ylabel": "FID"}))
    drawn = []
    for name, curves, labels in panels:
        canvas, buffer = Figure(figsize=(6, 3), layout="constrained", dpi=110), io.BytesIO()
        axis = canvas.add_subplot()
        for label, curve in curves.items():
            axis.plot(*curve, lw=1, ms=4, label=label)
        axis.legend(frameon=False)
        axis.set(**labels)
        axis.spines[["top", "right"]].set_visible(False)
        canvas.savefig(buffer, format="png")
        drawn.append((name, base64.b64encode(buffer.getvalue()).decode()))
    return drawn


def png(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) -> a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
