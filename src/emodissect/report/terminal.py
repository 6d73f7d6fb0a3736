"""Terminal output: the config as a tree, results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from emodissect.core import number_format as words
from emodissect.report import columns as registry
from emodissect.report.columns import Column

LONGEST_WORD, SHORTEST_FOLD = 40, 8
"""Word length in characters that a text column has room for: by default, and at least in a narrow console."""

_HIDDEN = ("hydra", "paths", "print_config", "task_name")


def config_tree(cfg: DictConfig) -> Tree:
    """The config of a run as a tree, one branch per group: its class and arguments.

    Omitted: switches that are off, empty arguments, and the folders of ``paths``, which the summary shows. The whole
    config is in ``.hydra/config.yaml`` of the run folder.
    """
    tree = Tree(f"[bold]{escape(str(cfg.task_name))}[/]", guide_style="dim")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    folders = {str(folder) for folder in (plain.get("paths") or {}).values()}
    run_dir = str((plain.get("paths") or {}).get("run_dir", ""))
    for name, value in plain.items():
        if str(name) not in _HIDDEN and value is not False and not _is_empty(value):
            tree.add(Text.assemble((f"{name!s}: ", "cyan"), written(_without_folders(value, folders, run_dir))))
    return tree


def written(value: Any) -> str:
    """A config value on one line: ``Class(key=value, ...)`` for a node with a target, plain YAML otherwise.

    A group of several nodes with targets is shown by their names, more than eight lists by number and first names.
    """
    if isinstance(value, Mapping):
        arguments = {k: v for k, v in value.items() if not str(k).startswith("_") and not _is_empty(v)}
        target = str(value.get("_target_", "")).rpartition(".")[2]
        inside = ", ".join(f"{k}={_nested(v)}" for k, v in arguments.items())
        if target:
            return f"{target}({inside})" if inside else target
        if arguments and all(isinstance(v, Mapping) and "_target_" in v for v in arguments.values()):
            return ", ".join(map(str, arguments))
        if all(isinstance(v, list) for v in value.values()) and len(value) > 8:
            return f"{len(value)}: {', '.join(list(value)[:3])}, …"
        return inside
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    return "null" if value is None else str(value)


def _nested(value: Any) -> str:
    return f"{{{written(value)}}}" if isinstance(value, Mapping) and "_target_" not in value else written(value)


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (isinstance(value, Mapping | list) and not value)


def _without_folders(value: Any, folders: Set[str], run_dir: str) -> Any:
    """The value without the arguments that are one of the folders or inside the run folder."""
    if not isinstance(value, Mapping):
        return value
    return {
        key: _without_folders(item, folders, run_dir)
        for key, item in value.items()
        if not (isinstance(item, str) and (item in folders or (run_dir and item.startswith(f"{run_dir}/"))))
    }


def frame_table(
    frame: pd.DataFrame,
    title: str,
    columns: Sequence[Column] | None = None,
    rows: int = 30,
    console: Console | None = None,
) -> Table:
    """A data frame as a rich table; numbers are never cut or folded, missing ones are a dash.

    In a narrow console the padding shrinks first, then columns of the highest rank are omitted (the caption says so),
    then long words are folded.

    Args:
        frame: one table row per row.
        title: above the table.
        columns: which to show, in this order, if the frame has them; None shows all by their type.
        rows: maximum number of rows.
        console: where it will be printed; None is the terminal.
    """
    console = console or Console()
    given = registry.plain(frame) if columns is None else registry.on_terminal(columns, frame)
    shown, spare = list(given), sorted((c for c in given if c.rank), key=lambda column: column.rank or 0)
    longest = LONGEST_WORD
    table = _laid_out(frame.head(rows), title, shown, longest)
    further = [f"{len(frame) - rows} more rows in the files."] if len(frame) > rows else []
    while too_wide(table, console):
        if table.padding != (0, 0, 0, 0):
            table.padding = (0, 0)
        elif spare or longest > SHORTEST_FOLD or len(shown) > 1:
            if spare:
                shown.remove(spare.pop())
            elif longest > SHORTEST_FOLD:
                longest -= 4
            else:
                shown.pop()
            table = _laid_out(frame.head(rows), title, shown, longest)
            table.padding = (0, 0)
        else:
            break
    measured = _measured(table, console)
    if measured.maximum > console.width:  # else rich may take a character from any column to fit
        room = console.width - measured.minimum
        for column in table.columns:
            least = column.min_width or 1
            most = max((len(str(cell)) for cell in column.cells), default=least)
            column.width = least + max(min(most - least, room), 0)
            room -= column.width - least
    if len(shown) < len(given):
        further.append("The files have further columns.")
    table.caption = " ".join(further) or None
    return table


def _laid_out(frame: pd.DataFrame, title: str, columns: Sequence[Column], longest: int) -> Table:
    table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD)
    table.pad_edge, table.collapse_padding = False, True
    cells = [[column.shown(value) for value in frame[column.name]] for column in columns]
    for column, texts in zip(columns, cells, strict=True):
        heading = column.short or column.heading
        fragments = [*(texts if column.is_number else " ".join(texts).split()), *heading.split()]
        width = max(map(len, fragments), default=1)  # rich would fold within a number or a word
        width = width if column.is_number else min(width, longest)
        table.add_column(
            escape(heading), justify="right" if column.is_number else "left", overflow="fold", min_width=width
        )
    for row in zip(*cells, strict=True):
        table.add_row(*map(escape, row))  # names in brackets are not markup
    return table


def too_wide(table: Table, console: Console) -> bool:
    """Whether rich would cut numbers or drop columns to print the table in this console."""
    return _measured(table, console).minimum > console.width


def _measured(table: Table, console: Console) -> Measurement:
    return Measurement.get(console, console.options.update_width(10_000), table)


def figures_table(figures: Mapping[str, Any], title: str) -> Table:
    """A table of named numbers, one per row."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right", no_wrap=True)  # names fold, numbers do not
    for name, value in figures.items():
        table.add_row(escape(name), escape(words.figure(value)))
    return table


def matrix_table(
    title: str, corner: str, rows: Sequence[str], columns: Sequence[str], cells: Mapping[tuple[str, str], str]
) -> Table:
    """A small matrix of cells, given by (row, column) in rich's markup; a missing cell is a dash."""
    table = Table(title=escape(title), title_justify="left", title_style="bold", header_style="dim", box=SIMPLE_HEAD)
    table.add_column(escape(corner), style="dim", justify="right", no_wrap=True)
    for column in columns:
        table.add_column(escape(column), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(escape(row), *(cells.get((row, column), "–") for column in columns))
    return table
