"""Between the shell and the tasks: words Hydra's grammar lacks, messages without tracebacks, exit codes."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.panel import Panel

from emodissect.errors import UserError
from emodissect.provenance import write_json

log = logging.getLogger(__name__)

ERROR_FILE = "error.json"

ROOT = Path(__file__).resolve().parents[2]


def register_resolvers() -> None:
    """The resolvers that conf/ uses: ``len``, ``project_root``, ``sweep_name`` and ``class_folders``."""
    OmegaConf.register_new_resolver("len", len, replace=True)
    OmegaConf.register_new_resolver("project_root", lambda *_: str(ROOT), replace=True)
    OmegaConf.register_new_resolver("sweep_name", sweep_name, replace=True)
    OmegaConf.register_new_resolver("class_folders", _class_folders, replace=True)


def _class_folders(*given: Any) -> list[str]:
    from emodissect.data.folder import class_folders  # only a user's own folders need it, and it takes a second

    return list(class_folders(*given))


def sweep_name(*_: object) -> str | None:
    """The name of the multirun's folder, None in a single run: W&B groups the jobs of a sweep by it."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).name


def with_layer_words(arguments: Sequence[str], conf: Path) -> list[str]:
    """Command-line words with ``layer=`` made free: beside conf/layer's entries any module path, glob or list works.

    ``layer=layer4.1.conv2``, ``layer=conv4*`` and ``layer=[lin1,lin2]`` become ``layer=named layer.names=...``; a
    sweep over several (``layer=a,b`` with ``-m``) becomes one over ``layer.names`` where any of them is no entry.

    Args:
        arguments: as typed, without the program's name.
        conf: the folder of config groups.
    """
    entries = {path.stem for path in (conf / "layer").glob("*.yaml")}
    words: list[str] = []
    for word in arguments:
        value = word.removeprefix("layer=")
        if value == word:
            words.append(word)
        elif value.startswith("["):
            words += ["layer=named", f"layer.names={value}"]
        elif all(choice.strip() in entries for choice in value.split(",")):
            words.append(word)
        else:
            words += ["layer=named", f"layer.names={value}"]
    return words


def prepare(conf: Path) -> None:
    """Makes ``sys.argv`` what Hydra reads, and registers the resolvers. Called by each script before its main."""
    register_resolvers()
    sys.argv[1:] = with_layer_words(sys.argv[1:], conf)


def run(task: Callable[[DictConfig], dict[str, float]], cfg: DictConfig) -> float | None:
    """Runs a task; a user's mistake is told in a few lines and ends with exit code 1.

    In a multirun the error is written to the job's folder instead, and the other jobs go on.

    Returns:
        the figure that a sweeper optimises: the task's ``objective``, NaN for a failed job of a multirun.
    """
    try:
        return task(cfg).get("objective")
    except KeyboardInterrupt:
        Console(stderr=True).print("\nInterrupted. The same command goes on from the last good state.", style="yellow")
        sys.exit(130)
    except Exception as error:
        mistake = users_mistake(error)
        if mistake is None and not _in_multirun():
            raise
        message = mistake or f"{type(error).__name__}: {error}"
        if mistake is None:
            log.error("%s", traceback.format_exc())
        Console(stderr=True).print(Panel(message, title="Error", title_align="left", border_style="red"), markup=False)
        if not _in_multirun():
            sys.exit(1)
        folder = Path(HydraConfig.get().runtime.output_dir)
        write_json(folder / ERROR_FILE, {"error": message, "overrides": list(HydraConfig.get().overrides.task)})
        return float("nan")


def users_mistake(error: BaseException) -> str | None:
    """The message of the UserError behind ``error`` (Hydra wraps what a config's target raises), else None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return str(seen)
        if isinstance(seen, OmegaConfBaseException):
            return f"The config does not resolve: {seen}"
        seen = seen.__cause__ or seen.__context__
    if isinstance(error, HydraException):
        return str(error)
    return None


def _in_multirun() -> bool:
    return bool(HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN)


def objective(values: dict[str, Any], name: str) -> dict[str, Any]:
    """``values`` with the named one also under ``objective``."""
    return {**values, "objective": values.get(name)}
