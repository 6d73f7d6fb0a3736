"""What a person sees in the terminal: the config as a tree, results as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

_HIDDEN = ("hydra", "paths", "print_config")


def config_tree(cfg: DictConfig) -> Tree:
    """The resolved config, a branch a group: the class it names, and its arguments."""
    tree = Tree(f"[bold]{cfg.task_name}[/]", guide_style="dim")
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    for name, value in plain.items():
        if str(name) not in _HIDDEN and value is not None:
            tree.add(Text.assemble((f"{name!s}: ", "cyan"), written(value)))
    return tree


def written(value: Any) -> str:
    """A config value on one line: ``Class(key=value, ...)`` for a node with a target, plain YAML words otherwise."""
    if isinstance(value, Mapping):
        arguments = {k: v for k, v in value.items() if not str(k).startswith("_")}
        target = str(value.get("_target_", "")).rpartition(".")[2]
        if target:
            return f"{target}({', '.join(f'{k}={written(v)}' for k, v in arguments.items())})"
        if all(isinstance(v, list) for v in arguments.values()) and len(arguments) > 8:
            return f"{len(arguments)}: {', '.join(arguments)}"
        return ", ".join(f"{k}={written(v)}" for k, v in arguments.items())
    if isinstance(value, list):
        return f"[{', '.join(written(item) for item in value)}]"
    return "null" if value is None else str(value)


def frame_table(frame: pd.DataFrame, title: str, columns: Sequence[str] | None = None, rows: int = 30) -> Table:
    """A data frame as a rich table; numbers are rounded, missing ones are a dash."""
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    shown = list(columns or frame.columns)
    for column in shown:
        numeric = pd.api.types.is_numeric_dtype(frame[column])
        table.add_column(str(column).replace("_", " "), justify="right" if numeric else "left")
    for record in frame.head(rows).to_dict("records"):
        table.add_row(*(figure(record[column]) for column in shown))
    if len(frame) > rows:
        table.caption = f"{len(frame) - rows} more rows in the files."
    return table


def figures_table(figures: Mapping[str, Any], title: str) -> Table:
    """Named figures, one a row."""
    table = Table(title=title, title_justify="left", title_style="bold", show_header=False)
    table.add_column(style="dim")
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, figure(value))
    return table


def figure(value: Any) -> str:
    """A number with as many digits as one reads, a dash for a missing one."""
    if value is None or (isinstance(value, float) and value != value):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 10):
        return f"{int(value):,}"
    return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"
