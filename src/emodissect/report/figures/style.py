"""The style of every figure: one palette, one font size, readable on white, on black and by colour-blind readers."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike

from emodissect.core.atomic_files import atomic_write
from emodissect.report.figures.fonts import with_letters

# The light theme's values. In an inline SVG each becomes the CSS variable of its name, so a page's theme recolours it.
INK, MUTED, LINE, PAPER = "#1c2128", "#57606b", "#d5dbe1", "#ffffff"
BLUE, ORANGE, GREEN, GREY = "#0b6fb3", "#d15a0a", "#0b8f6b", "#8b96a1"  # after Okabe & Ito's palette
PALETTE = {"ink": INK, "muted": MUTED, "line": LINE, "paper": PAPER} | {
    "blue": BLUE,
    "orange": ORANGE,
    "green": GREEN,
    "grey": GREY,
}
NARROW, WIDE = 4.8, 7.6  # inches; a narrow figure is still legible on a phone

_RC: Any = {
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
    "svg.fonttype": "none",
    "lines.linewidth": 1.6,
}


@contextmanager
def drawn() -> Iterator[None]:
    """Context manager with the settings under which every figure is drawn and saved."""
    with matplotlib.rc_context(_RC), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # fonts.py warns once
        yield


def new(width: float, height: float) -> Figure:
    """An empty figure (outside pyplot, so it needs no closing). Sizes in inches."""
    return Figure(figsize=(width, height), layout="constrained")


def save_png(figure: Figure, path: str | Path, dpi: int = 160) -> Path:
    """Write a figure as PNG on a white background, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with_letters(figure)
    with atomic_write(path) as unfinished, drawn():
        figure.savefig(unfinished, format="png", dpi=dpi, facecolor=PAPER)
    return path


def svg(figure: Figure, prefix: str) -> str:
    """A figure as an inline ``<svg>`` that takes its colours from the page's CSS variables.

    Args:
        figure: made by a function of this package.
        prefix: put before every id, so that several figures can share a page.
    """
    stream = io.StringIO()
    with_letters(figure)
    with drawn(), matplotlib.rc_context({"svg.hashsalt": prefix}):
        figure.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="(?!clip)[^"]*">', "<g>", text)  # only glyphs and clips are referenced
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r"url\(#", f"url(#{prefix}-", text)
    text = re.sub(r'href="#', f'href="#{prefix}-', text)
    for name, colour in PALETTE.items():
        text = text.replace(colour, f"var(--{name})")
    width, height = (round(72 * side) for side in figure.get_size_inches())
    text = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" style="--w:{width};--h:{height}"', 1)
    return re.sub(r"\n\s*", "\n", text)


def signed_cells(axes: Axes, values: ArrayLike, limit: float) -> None:
    """Fill a matrix of cells: blue above zero, orange below, stronger with size, nothing at zero.

    Zero is transparent, so the same cells are readable on white and on black. Row 0 is on top.
    """
    table = np.asarray(values, dtype=float)
    for row, column in np.ndindex(*table.shape):
        value = float(table[row, column])
        known = np.isfinite(value)
        strength = min(abs(value) / limit, 1.0) if known and limit > 0 else 0.0
        axes.add_patch(
            Rectangle(
                (column + 0.03, row + 0.03),
                0.94,
                0.94,
                facecolor=BLUE if value >= 0 else ORANGE,
                alpha=0.72 * strength if known else 0.0,
                linewidth=0,
            )
        )
    axes.set_xlim(0, table.shape[1])
    axes.set_ylim(table.shape[0], 0)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def cell_ticks(axes: Axes, rows: list[str], columns: list[str], rotation: float = 0) -> None:
    """Name the rows and columns of a matrix of cells."""
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns, rotation=rotation, ha="right" if rotation else "center")
