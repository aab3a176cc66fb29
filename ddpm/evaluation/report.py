"""What an evaluation leaves behind: report.json, and one self-contained report.html with the table and the pictures."""

import base64
import html
import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from ddpm.data.images import grid, to_float
from ddpm.evaluation.questions import Row, Sets
from ddpm.metrics.fid import Extrapolation
from ddpm.metrics.spectrum import intensity_histogram, radial_power_spectrum
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
    head = ("", "samples", "real images", "shuffled masks", "goal")
    lines = [
        (row.metric, figure(row.samples, row.margin), figure(row.real), figure(row.wrong), row.goal) for row in rows
    ]
    widths = [max(len(line[i]) for line in (head, *lines)) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, *lines)
    )


def write_report(
    out: Path, title: str, rows: list[Row], sets: Sets, cells: np.ndarray, line: Extrapolation | None
) -> str:
    """Write report.json and report.html to `out`, whole or not at all; returns a notice ("" if nothing is missing).

    cells: uint8 (rows, columns, 3, H, W), the grid to show; line: FID against 1/N, if it was computed.
    """
    content = {"title": title, "choices": sets.choices, "rows": [asdict(row) for row in rows]}
    if line is not None:
        content["fid_line"] = {"sizes": [int(n) for n in line.sizes], "values": [float(v) for v in line.values]}
    write_whole(out / "report.json", lambda file: file.write((json.dumps(content, indent=2) + "\n").encode()))

    columns = "mask | sample | nearest training image" if sets.train is not None else "samples"
    pictures, notice = [(columns, png(grid(cells)))], ""
    try:
        pictures += plots(sets, line)
    except ImportError:
        notice = NO_PLOTS
    page = page_of(title, rows, sets.choices, pictures, notice)
    write_whole(out / "report.html", lambda file: file.write(page.encode(errors="backslashreplace")))
    return notice


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
        f"{cells}</table>\n<p>A margin (±) is half of a 95 % interval unless the line says otherwise; "
        "<i>real images</i> is the same number for held-out real images in the place of samples.</p>\n"
        f"{shown}{f'<p>{html.escape(notice)}</p>' if notice else ''}<h2>what was compared</h2><dl>{chosen}</dl>\n</body></html>\n"
    )


def plots(sets: Sets, line: Extrapolation | None) -> list[tuple[str, str]]:
    """FID against 1/N, grey levels, power spectrum: (name, PNG in base64). Raises ImportError without matplotlib."""
    from matplotlib.figure import Figure

    real = sets.pool[sets.reference]
    drawn = []

    def panel(name, draw, **labels):
        canvas = Figure(figsize=(6, 3), layout="constrained", dpi=110)
        axis = canvas.add_subplot()
        draw(axis)
        axis.set(**labels)
        axis.spines[["top", "right"]].set_visible(False)
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png")
        drawn.append((name, base64.b64encode(buffer.getvalue()).decode()))

    def fid_line(axis):
        inverse = 1 / np.asarray(line.sizes)
        axis.plot(inverse, line.values, "o", ms=4, label="samples")
        reach = np.array([0, inverse.max()])
        axis.plot(reach, line.fid_infinity + line.slope * reach, lw=1, color="0.5", label="straight line to 1/N = 0")
        axis.legend(frameon=False)

    def histograms(axis):
        for images, name in ((real, "real"), (sets.samples, "samples")):
            axis.plot(intensity_histogram(images), lw=1, label=name)
        axis.legend(frameon=False)

    def spectra(axis):
        for images, name in ((real, "real"), (sets.samples, "samples")):
            axis.plot(*radial_power_spectrum(to_float(images)), lw=1, label=name)
        axis.legend(frameon=False)

    if line is not None:
        panel("FID and the number of samples", fid_line, xlabel="1 / N", ylabel="FID")
    panel("grey levels", histograms, xlabel="grey level", ylabel="share of pixels", yscale="log")
    panel("power spectrum", spectra, xlabel="cycles per pixel", ylabel="power", yscale="log")
    return drawn


def png(picture: np.ndarray) -> str:
    """uint8 (H, W, 3) -> a PNG in base64."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
