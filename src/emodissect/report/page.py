"""One self-contained HTML page: sections of prose, tables, figures and cards, written whole or not at all."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from emodissect.core import number_format as words
from emodissect.core.atomic_files import atomic_write
from emodissect.core.errors import UserError
from emodissect.report.figures import style
from emodissect.report.images import ImagePool


@dataclass(frozen=True)
class Fact:
    """One of the figures at the top: a number, what it is, and how to take it."""

    value: str
    name: str
    note: str = ""
    tone: str = ""  # "", "good" or "bad"


@dataclass(frozen=True)
class Column:
    """A column of a static table.

    Attributes:
        name: of the frame's column.
        heading: what the reader sees.
        form: ``text``, ``long`` (wraps), ``count``, ``percent``, ``points``, ``p``, ``flag``,
            ``setting`` (a number as it was typed) or a number of digits.
        help: shown when the pointer rests on the heading.
    """

    name: str
    heading: str
    form: str | int = "text"
    help: str = ""


@dataclass(frozen=True)
class Extra:
    """A further section: a table, a figure or both, with a caption that says what to conclude."""

    title: str
    caption: str
    frame: pd.DataFrame | None = None
    figure: Figure | None = None


_CLASSES: dict[str | int, str] = {"text": "", "long": "long"}


@dataclass
class Section:
    """A part of the page."""

    anchor: str
    title: str
    html: Markup
    short: str = ""  # in the list of sections


@dataclass
class Content:
    """What is collected while the sections are written: images, heat maps and the neurons' payload."""

    pool: ImagePool = field(default_factory=ImagePool)
    payload: dict[str, Any] = field(default_factory=dict)
    figures: int = 0

    def figure(self, figure: Figure, caption: str) -> Markup:
        """A figure with its caption."""
        self.figures += 1
        wide = figure.get_size_inches()[0] > style.NARROW + 0.8
        return _template("figure.html.j2").render(
            svg=Markup(style.svg(figure, f"f{self.figures}")), caption=caption, wide=wide
        )

    def image(self, image_id: int, caption: str = "", note: str = "", heat: ArrayLike | None = None) -> Markup:
        """An image of the pool as a small picture; the sheets' styles place it once the page is packed."""
        return _template("tile.html.j2").render(
            at=self.pool.index(image_id), caption=caption, note=note, heat=None if heat is None else pack_heat(heat)
        )


def table(
    frame: pd.DataFrame,
    columns: Sequence[Column],
    marked: Sequence[bool] | None = None,
    caption: str = "",
    limit: int | None = None,
) -> Markup:
    """A static table that sorts on a click where scripts run.

    Args:
        frame: one row a row.
        columns: those shown; ones that the frame lacks are left out.
        marked: rows that stand out.
        caption: what to conclude.
        limit: rows shown at most.
    """
    shown = [column for column in columns if column.name in frame]
    records = frame.to_dict("records")
    rows = []
    for at, record in enumerate(records[:limit]):
        cells = [(_shown(record[c.name], c.form), _sortable(record[c.name]), _CLASSES.get(c.form, "n")) for c in shown]
        rows.append({"cells": cells, "marked": bool(marked[at]) if marked is not None else False})
    cut = len(records) - len(rows)
    return _template("table.html.j2").render(columns=shown, rows=rows, caption=caption, cut=cut)


def frame_table(frame: pd.DataFrame, caption: str = "", limit: int | None = 200) -> Markup:
    """Any frame as a static table, its columns as they are called."""
    columns = [
        Column(str(name), str(name).replace("_", " "), 3 if pd.api.types.is_float_dtype(frame[name]) else "text")
        if not pd.api.types.is_integer_dtype(frame[name])
        else Column(str(name), str(name).replace("_", " "), "count")
        for name in frame.columns
    ]
    return table(frame.rename(columns=str), columns, caption=caption, limit=limit)


def extra_sections(content: Content, extras: Sequence[Extra]) -> list[Section]:
    """The further sections that a caller adds."""
    sections = []
    for at, extra in enumerate(extras):
        parts = []
        if extra.figure is not None:
            parts.append(content.figure(extra.figure, extra.caption))
        if extra.frame is not None:
            parts.append(frame_table(extra.frame, "" if parts else extra.caption))
        sections.append(Section(f"extra-{at}", extra.title, Markup("").join(parts)))
    return sections


def pack_heat(heat: ArrayLike, side: int = 14) -> dict[str, Any]:
    """A map in [0, 1], shape (height, width), as one byte a cell in base64, no larger than ``side``."""
    values = np.nan_to_num(np.asarray(heat, dtype=np.float32)).clip(0, 1)
    steps = [max(1, -(-length // side)) for length in values.shape]
    if steps != [1, 1]:
        edges = [(0, -length % step) for length, step in zip(values.shape, steps, strict=True)]
        padded = np.pad(values, edges, mode="edge")
        height, width = (length // step for length, step in zip(padded.shape, steps, strict=True))
        values = padded.reshape(height, steps[0], width, steps[1]).mean(axis=(1, 3))
    height, width = values.shape
    return {"w": width, "h": height, "d": base64.b64encode((255 * values).round().astype(np.uint8).tobytes()).decode()}


def compose(
    content: Content,
    *,
    kind: str,
    title: str,
    lede: str,
    facts: Sequence[Fact],
    sections: Sequence[Section],
    command: str,
    manifest: Mapping[str, Any],
    warning: str = "",
) -> str:
    """The page's HTML.

    Args:
        content: what the sections collected.
        kind: ``train``, ``dissect``, ``edit`` or ``sweep``.
        title, lede, facts, warning: the header.
        sections: in order.
        command, manifest: where the numbers come from.
    """
    sheets = content.pool.sheets()
    payload = {**content.payload, "tiles": len(content.pool), "columns": _columns()}
    return _template("page.html.j2").render(
        kind=kind,
        title=title,
        lede=lede,
        warning=warning,
        facts=facts,
        sections=sections,
        command=command,
        manifest=json.dumps(manifest, indent=2, default=str, ensure_ascii=False),
        css=Markup(_asset("report.css")),
        sheets=sheets,
        js=Markup(_asset("report.js")),
        payload=Markup(_script_json(payload)),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )


def write(path: str | Path, html: str) -> Path:
    """Write the page under a temporary name and rename it.

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
            "Give a folder that can be: paths.output_dir=<folder>."
        ) from error
    return path


def _columns() -> dict[str, int]:
    from emodissect.report.images import COLUMNS, PER_SHEET

    return {"across": COLUMNS, "sheet": PER_SHEET}


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _shown(value: Any, form: str | int) -> str:
    if isinstance(form, int):
        return words.number(value, form)
    if words.missing(value) or value is pd.NA:
        return words.DASH
    match form:
        case "count":
            return words.number(int(value))
        case "percent":
            return words.percent(value)
        case "setting":
            return words.plain(value)
        case "points":
            return words.points(value)
        case "p":
            return words.p_value(value)
        case "flag":
            return "yes" if value else "no"
        case _:
            return str(value)


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


class _Safe:
    """A template whose result may be put into another as it is."""

    def __init__(self, template: jinja2.Template) -> None:
        self.template = template

    def render(self, **values: Any) -> Markup:
        return Markup(self.template.render(**values))


def _template(name: str) -> _Safe:
    return _Safe(_environment().get_template(name))


def _asset(name: str) -> str:
    return (resources.files("emodissect.report") / "assets" / name).read_text(encoding="utf-8")
