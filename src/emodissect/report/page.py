"""One self-contained HTML page: sections of prose, tables, figures and cards, written atomically."""

from __future__ import annotations

import base64
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from emodissect.core import number_format as words
from emodissect.core.atomic_files import atomic_write
from emodissect.core.errors import UserError
from emodissect.report.columns import Column, on_page, plain
from emodissect.report.figures import style
from emodissect.report.images import ImagePool

_TILE = re.compile(r"tile:(\d+)(?=\")")
"""Placeholder for an image's data URL until the page is assembled."""


LONG_TABLE = 24
"""Number of rows above which a figure's table is collapsed."""


@dataclass(frozen=True)
class Fact:
    """A key figure at the top of the page: its value, name and a note on how to read it."""

    value: str
    name: str
    note: str = ""
    tone: str = ""  # "", "good" or "bad"


@dataclass(frozen=True)
class Extra:
    """An additional section: a table, a figure or both, with a caption that says what to conclude.

    Attributes:
        columns: of the frame's table; None shows all under their own names.
        short: title in the navigation; by default the title.
    """

    title: str
    caption: str
    frame: pd.DataFrame | None = None
    figure: Figure | None = None
    columns: Sequence[Column] | None = None
    short: str = ""


@dataclass
class Section:
    """A part of the page."""

    anchor: str
    title: str
    html: Markup
    short: str = ""  # title in the navigation


@dataclass(frozen=True)
class Folded:
    """A collapsible part of a section."""

    title: str
    figures: Sequence[Markup] = ()
    parts: Sequence[Markup] = ()
    is_open: bool = False


@dataclass
class Content:
    """Collects images, heat maps and the neurons' payload while the sections are rendered."""

    pool: ImagePool = field(default_factory=ImagePool)
    payload: dict[str, Any] = field(default_factory=dict)
    figures: int = 0

    def figure(self, figure: Figure, caption: str) -> Markup:
        """HTML of a figure with its caption."""
        self.figures += 1
        wide = figure.get_size_inches()[0] > style.NARROW + 0.8
        drawing = Markup(style.svg(figure, f"f{self.figures}"))
        return render("figure.html.j2", svg=drawing, caption=caption, wide=wide)

    def image(self, image_id: int, caption: str = "", note: str = "", heat: ArrayLike | None = None) -> Markup:
        """HTML of an image of the pool as a small tile; its pixels are inserted when the page is assembled."""
        packed = None if heat is None else pack_heat(heat)
        return render("tile.html.j2", at=self.pool.index(image_id), caption=caption, note=note, heat=packed)


def table(
    frame: pd.DataFrame,
    columns: Sequence[Column],
    marked: Sequence[bool] | None = None,
    caption: str = "",
    limit: int | None = None,
    links: Sequence[str] = (),
) -> Markup:
    """A static table that scripts make sortable.

    Args:
        frame: one table row per row.
        columns: columns to show; those that the frame lacks are skipped.
        marked: which rows are highlighted.
        caption: what to conclude.
        limit: maximum number of rows.
        links: link of the first cell of each row, relative to the page; empty for no link.
    """
    chosen = on_page(columns, frame)
    records = frame.to_dict("records")
    rows = []
    for at, record in enumerate(records[:limit]):
        cells = [(column.shown(record[column.name]), _sortable(record[column.name]), column) for column in chosen]
        link = quote(links[at]) if links else ""
        rows.append({"cells": cells, "marked": bool(marked[at]) if marked is not None else False, "link": link})
    return render("table.html.j2", columns=chosen, rows=rows, caption=caption, cut=len(records) - len(rows))


def block(
    text: str = "",
    figures: Sequence[Markup] = (),
    parts: Sequence[Markup] = (),
    folded: Folded | None = None,
) -> Markup:
    """A section's body: a paragraph, figures side by side, further parts, and a collapsible part."""
    return render("block.html.j2", text=text, figures=figures, parts=parts, folded=folded)


def extra_sections(content: Content, extras: Sequence[Extra]) -> list[Section]:
    """The additional sections that a caller passes."""
    sections = []
    for at, extra in enumerate(extras):
        parts, folded = [], None
        if extra.figure is not None:
            parts.append(content.figure(extra.figure, extra.caption))
        if extra.frame is not None:
            columns = plain(extra.frame) if extra.columns is None else extra.columns
            drawn = table(extra.frame.rename(columns=str), columns, None, "" if parts else extra.caption, 200)
            if parts and len(extra.frame) > LONG_TABLE:
                folded = Folded(f"As a table, {words.count(len(extra.frame), 'row')}", parts=[drawn])
            else:
                parts.append(drawn)
        sections.append(Section(f"extra-{at}", extra.title, block(parts=parts, folded=folded), extra.short))
    return sections


def pack_heat(heat: ArrayLike, side: int = 14) -> dict[str, Any]:
    """A map in [0, 1], shape (height, width), as base64 with one byte per cell, downscaled to at most ``side``."""
    values = np.nan_to_num(np.asarray(heat, dtype=np.float32)).clip(0, 1)
    steps = [max(1, -(-length // side)) for length in values.shape]
    if steps != [1, 1]:
        edges = [(0, -length % step) for length, step in zip(values.shape, steps, strict=True)]
        padded = np.pad(values, edges, mode="edge")
        height, width = (length // step for length, step in zip(padded.shape, steps, strict=True))
        values = padded.reshape(height, steps[0], width, steps[1]).mean(axis=(1, 3))
    height, width = values.shape
    return {"w": width, "h": height, "d": base64.b64encode((255 * values).round().astype(np.uint8).tobytes()).decode()}


class Page(ABC):
    """Base of the report pages: a header, sections, and their provenance. Subclasses declare these fields."""

    kind: ClassVar[str]
    title: str
    command: str
    manifest: Mapping[str, Any]
    extras: Sequence[Extra]

    @abstractmethod
    def summary(self) -> str:
        """The result in plain words."""

    @abstractmethod
    def facts(self) -> list[Fact]:
        """The key figures at the top."""

    @abstractmethod
    def sections(self, content: Content) -> list[Section]:
        """The sections of the page."""

    def last_sections(self, content: Content) -> list[Section]:
        """Sections that follow the caller's additional ones."""
        return []

    def warnings(self) -> list[str]:
        """Warnings, shown in red."""
        return []

    @property
    def heading(self) -> str:
        """The displayed title."""
        return self.title

    def html(self) -> str:
        """The page as a string."""
        content = Content()
        sections = [*self.sections(content), *extra_sections(content, self.extras), *self.last_sections(content)]
        tiles = content.pool.tiles()
        used = content.payload.get("tiles", 0)
        payload = {**content.payload, "images": tiles[:used]}
        return render(
            "page.html.j2",
            kind=self.kind,
            title=self.heading,
            lede=self.summary(),
            warning=" ".join(filter(None, self.warnings())),
            facts=self.facts(),
            sections=[replace(section, html=_with_images(section.html, tiles)) for section in sections],
            command=self.command,
            manifest=json.dumps(self.manifest, indent=2, default=str, ensure_ascii=False),
            css=Markup(_asset("report.css")),
            js=Markup(_asset("report.js")),
            payload=Markup(_script_json(payload)),
            made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        )

    def write(self, path: str | Path) -> Path:
        """Write the page atomically."""
        return write(path, self.html())


def _with_images(html: Markup, tiles: Sequence[str]) -> Markup:
    """A section with the tile placeholders replaced by data URLs."""
    return Markup(_TILE.sub(lambda found: f"data:image/webp;base64,{tiles[int(found[1])]}", html))


def write(path: str | Path, html: str) -> Path:
    """Write the page atomically.

    Raises:
        UserError: the folder cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as unfinished:
            unfinished.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"The report {path} cannot be written ({error.strerror or error}). "
            "Give another folder: paths.log_dir=<folder>."
        ) from error
    return path


def _script_json(value: Any) -> str:
    """JSON that is safe inside a script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _sortable(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return str(int(value))
    if isinstance(value, (int, float, np.number)):
        return "" if words.missing(float(value)) else repr(float(value))
    return str(value)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("emodissect.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = words.unbroken
    return environment


def render(template: str, **values: Any) -> Markup:
    """Render a template of this package; the result is safe to insert into another."""
    return Markup(_environment().get_template(template).render(**values))


def _asset(name: str) -> str:
    return (resources.files("emodissect.report") / "assets" / name).read_text(encoding="utf-8")
