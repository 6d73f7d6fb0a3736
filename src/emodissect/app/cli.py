"""From the command line to the tasks: starting Hydra, error messages without tracebacks, exit codes."""

from __future__ import annotations

import logging
import math
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, InstantiationException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from emodissect.app.arguments import prepared, split_flags
from emodissect.app.config_keys import misspelt_key
from emodissect.app.ending import RESUMES, cut_off, exit_on_signals, leave_gone_directory
from emodissect.app.manifest import program, write_json
from emodissect.app.process import OwnProcess
from emodissect.app.run_names import in_multirun, job_folder, report_length, run_name, sweep_name
from emodissect.app.streams import keep_streams_open
from emodissect.app.user_paths import expand_user, settle_paths
from emodissect.core.errors import UserError, missing_extra, nearest
from emodissect.core.places import cache_folder, checkout, config_groups

log = logging.getLogger(__name__)

ERROR_FILE = "error.json"
SUMMARY_FILE = "summary.json"
SWEEP_TABLE = "sweep.csv"

VERBS = {
    "train": "emodissect.app.train.train",
    "dissect": "emodissect.app.dissect.dissect",
    "edit": "emodissect.app.edit.edit",
}
"""Verb -> the function that runs it; imported late, so that --help does not wait for torch."""


PLUGINS = {
    ("hydra/launcher", "joblib"): ("hydra-joblib-launcher", "joblib"),
    ("hydra/launcher", "submitit_slurm"): ("hydra-submitit-launcher", "submitit"),
    ("hydra/launcher", "submitit_local"): ("hydra-submitit-launcher", "submitit"),
    ("hydra/launcher", "ray"): ("hydra-ray-launcher", "ray"),
    ("hydra/launcher", "ray_aws"): ("hydra-ray-launcher", "ray"),
    ("hydra/sweeper", "optuna"): ("hydra-optuna-sweeper", "optuna"),
}
"""Hydra plugins that need an extra: (group, choice) -> (package, extra)."""


def register_resolvers() -> None:
    """Register the OmegaConf resolvers that conf/ uses."""
    resolvers: dict[str, Callable[..., Any]] = {
        "len": len,
        "project_root": lambda *_: str(project_root()),
        "cache_folder": lambda *_: str(cache_folder()),
        "job_folder": job_folder,
        "expand_user": expand_user,
        "program": lambda verb: " ".join(program(verb)),
        "sweep_name": sweep_name,
        "run_name": run_name,
        "report_length": report_length,
        "class_folders": _class_folders,
        "listed_classes": _listed_classes,
    }
    for name, resolver in resolvers.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)


def project_root() -> Path:
    """The default folder of results and data: the checkout; for an installed wheel, the working directory."""
    if (root := checkout()) is not None:
        return root
    return Path(HydraConfig.get().runtime.cwd) if HydraConfig.initialized() else Path.cwd()


def _class_folders(*given: Any) -> list[str]:
    from emodissect.data.folder import class_folders  # only needed for a user's own folders; takes a second

    return list(class_folders(*given))


def _listed_classes(*given: Any) -> list[str]:
    from emodissect.data.image_list import listed_classes

    return list(listed_classes(*given))


def start(verb: str) -> None:
    """Run a verb as a Hydra application with the arguments in ``sys.argv``, then end the process."""
    process = OwnProcess()
    conf = config_groups()

    @hydra.main(version_base="1.3", config_path=str(conf), config_name=verb)
    def main(cfg: DictConfig) -> float | None:
        task = get_object(VERBS[verb])
        process.imported()
        return run(task, cfg)

    launch(main, conf, verb)
    process.end()


def launch(main: Callable[[], Any], conf: Path, verb: str) -> None:
    """Start a Hydra application and report user mistakes in a few lines.

    On its own, Hydra answers a misspelt key or an unwritable folder with an internal traceback.
    """
    keep_streams_open()
    exit_on_signals()
    leave_gone_directory()
    register_resolvers()
    try:
        sys.argv[1:] = prepared(sys.argv[1:], conf)
    except UserError as error:
        _print_error(str(error))
        sys.exit(1)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra re-raises exceptions unchanged
    # Ray's workers use this environment as it is; under `uv run` Ray would build its own
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        try:
            main()
        except Exception as error:
            if not end_unfinished_multirun() or isinstance(error, HydraException | OmegaConfBaseException):
                raise
            log.debug("%s", traceback.format_exc())
            lines = str(error).strip().splitlines() or [""]
            _print_error(
                f"The launcher failed ({type(error).__name__}: {lines[0]}). The table has the jobs that had finished "
                f"by then. {RESUMES}"
            )
            sys.exit(1)
        except BaseException:
            end_unfinished_multirun()
            raise
    except (KeyboardInterrupt, SystemExit) as end:
        cut = cut_off(end)
        if cut is not None:
            Console(stderr=True).print(f"\n{cut.said} {RESUMES}", style="yellow", markup=False, highlight=False)
        raise (cut or end) from None
    except (HydraException, OmegaConfBaseException) as error:
        _print_error(composing_mistake(error, conf, verb, split_flags(sys.argv[1:])[1]))
        sys.exit(1)
    except ValueError as error:  # e.g. -m together with --cfg
        if not _raised_by_hydra(error):
            raise
        _print_error(str(error))
        sys.exit(1)
    except OSError as error:
        if error.filename is None or not _raised_by_hydra(error):
            raise
        _print_error(
            f"Cannot create the run folder {error.filename}: {error.strerror}. Give another: paths.log_dir=<folder>."
        )
        sys.exit(1)


def end_unfinished_multirun() -> bool:
    """Write the table of a multirun that ends before its last job; returns whether any of its jobs began."""
    module = sys.modules.get("emodissect.app.sweep")  # Hydra imports it when it first composes a config
    return module is not None and bool(module.SweepTable.end_unfinished())


def _raised_by_hydra(error: Exception) -> bool:
    """Whether the last frame outside the standard library is Hydra's (it parses flags and creates the run folder)."""
    library = str(Path(os.__file__).parent)
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    own = [name for name in frames if not name.startswith(library) or "site-packages" in name]
    return bool(own) and Path(hydra.__file__).parent in Path(own[-1]).parents


def composing_mistake(error: Exception, conf: Path, verb: str, words: Sequence[str] = ()) -> str:
    """The error message for a command line that Hydra cannot compose; suggests the nearest key or choice."""
    text = str(error).split("Config search path:")[0].strip()
    absent = re.search(r"Could not (?:find|load) '([\w/]+)/([\w.-]+)'", text)
    if absent:
        group, choice = absent.groups()
        extra = PLUGINS.get((group, choice))
        if extra:
            return f"{group}={choice} is not installed. {missing_extra('It', extra[0], extra[1])}"
        known = re.findall(r"^\t(\S+)$", text, flags=re.MULTILINE)
        return f"{group} has no entry '{choice}'. {nearest(choice, known, shown=40)}"
    misspelt = re.search(r"Key '([^']+)' is not in struct", f"{text} {error.__cause__}")
    if misspelt is None:
        return text
    full = re.search(r"full_key: (\S+)", f"{text} {error.__cause__}")
    key = full.group(1) if full else misspelt.group(1)
    return (
        f"There is no key '{key}'. {misspelt_key(verb, words, key, conf)} "
        "`--cfg job` shows every key that the chosen groups have."
    )


def _print_error(message: str) -> None:
    Console(stderr=True).print(Panel(Text(message), title="Error", title_align="left", border_style="red"))


def run(task: Callable[[DictConfig], dict[str, float]], cfg: DictConfig) -> float | None:
    """Run a task; a user's mistake is reported in a few lines and ends with exit code 1.

    In a multirun the error is written to the job's folder instead, and the other jobs continue.

    Returns:
        the value that a sweeper optimises: the task's ``objective``; the worst possible value for a failed job of a
        multirun, or one without an objective.
    """
    _forget_earlier_results()
    try:
        settle_paths(cfg)
        objective = task(cfg).get("objective")
        return worst_objective() if objective is None or math.isnan(objective) else objective
    except (KeyboardInterrupt, SystemExit) as end:
        cut = cut_off(end)
        if cut is not None and in_multirun():
            leave_error(*_job(), cut.said)
        raise (cut or end) from None
    except Exception as error:
        mistake = user_error_message(error)
        if mistake is None and not in_multirun():
            raise
        message = mistake or f"{type(error).__name__}: {error}"
        if mistake is None:
            log.error("%s", traceback.format_exc())
        _print_error(message)
        if not in_multirun():
            sys.exit(1)
        leave_error(*_job(), message)
        return worst_objective()


def leave_error(folder: Path, overrides: Sequence[str], message: str) -> None:
    """Write a job's error to its folder, for the multirun's table."""
    write_json(folder / ERROR_FILE, {"error": message, "overrides": list(overrides)})


def _job() -> tuple[Path, list[str]]:
    return Path(HydraConfig.get().runtime.output_dir), list(HydraConfig.get().overrides.task)


def worst_objective() -> float:
    """A sweeper's value for a job without an objective: infinitely bad in its direction, NaN if it has none."""
    return worst_for(HydraConfig.get().sweeper) if in_multirun() else math.nan


def worst_for(sweeper: DictConfig) -> float:
    """The same, given the sweeper's config. Optuna's plugin aborts the whole sweep at a NaN."""
    direction = str(sweeper.get("direction", "")).rpartition(".")[2]
    return {"maximize": -math.inf, "minimize": math.inf}.get(direction, math.nan)


def _forget_earlier_results() -> None:
    """Delete an earlier run's summary and error from the run folder, lest a failed run be mistaken for it."""
    if HydraConfig.initialized():
        for name in (ERROR_FILE, SUMMARY_FILE):
            (Path(HydraConfig.get().runtime.output_dir) / name).unlink(missing_ok=True)


def user_error_message(error: BaseException) -> str | None:
    """The message of the user error behind ``error`` (Hydra wraps what a config's target raises), else None."""
    chain: list[BaseException] = []
    seen: BaseException | None = error
    while seen is not None:
        chain.append(seen)
        seen = seen.__cause__ or seen.__context__
    for cause in chain:
        if isinstance(cause, UserError | _misconfigurations()):
            return str(cause)
    for cause in chain:
        if isinstance(cause, OmegaConfBaseException):
            return f"The config does not resolve: {cause}"
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return _refusal(error)
    if isinstance(error, HydraException):
        return str(error)
    return None


def _misconfigurations() -> type[Exception]:
    from lightning.fabric.utilities.exceptions import MisconfigurationException  # a slow import, not for --help

    return MisconfigurationException


def _refusal(error: InstantiationException) -> str:
    """Why a class could not be instantiated: its key and name, and its own message without Hydra's wrapping."""
    target = re.search(r"target '([^']+)'", str(error))
    where = re.search(r"full_key: (\S+)", str(error))
    names = [part.group(1) for part in (where, target) if part]
    if isinstance(error.__cause__, ImportError) and re.search(r"\btensorboard\b", str(error.__cause__)):
        return missing_extra(" = ".join(names), "tensorboard", "tensorboard")
    return f"{' = '.join(names)} cannot be instantiated as configured: {error.__cause__}"
