"""The interface of logging back ends, and the registry that maps Lightning loggers to them."""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import pandas as pd
from lightning.pytorch.loggers import Logger

from emodissect.core.distributed import first_rank

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Picture:
    """An image in a table cell.

    Attributes:
        pixels: uint8 (height, width) or (height, width, channel).
        caption: text below the image.
    """

    pixels: np.ndarray
    caption: str = ""


@dataclass(frozen=True)
class Artifact:
    """Files that a back end stores as one artifact.

    Attributes:
        name: the artifact's name; W&B versions it by content.
        kind: ``checkpoint``, ``labels`` or ``edited-checkpoint``.
        paths: files, or folders with files.
        metadata: e.g. content hashes of the inputs, so that the lineage is recorded offline too.
    """

    name: str
    kind: str
    paths: Sequence[Path]
    metadata: Mapping[str, Any] = field(default_factory=dict)


class Sink:
    """Sends results to one logger.

    The base class works with any Lightning logger (metrics and config only); back ends override what they support.
    To add your own, subclass it and register it for your logger's class with :func:`register_sink`.

    Args:
        logger: the Lightning logger.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger: Any = logger

    def config(self, values: Mapping[str, Any]) -> None:
        """Log the run's resolved config."""
        self.logger.log_hyperparams(dict(values))

    def metrics(self, values: Mapping[str, float], step: int) -> None:
        """Log one point of each curve; ``epoch`` among the values is the epoch that they belong to."""
        self.logger.log_metrics(dict(values), step=step)

    def summary(self, values: Mapping[str, float | str]) -> None:
        """Log results of the whole run; the base class skips text."""
        numbers = {name: value for name, value in values.items() if not isinstance(value, str)}
        if numbers:
            self.logger.log_metrics(numbers, step=None)

    def table(self, name: str, frame: pd.DataFrame, step: int | None = None) -> None:
        """Log a data frame; cells may be :class:`Picture`."""

    def image(self, name: str, path: Path, step: int | None = None) -> None:
        """Log a figure from a PNG file."""

    def histogram(self, name: str, values: Sequence[float], step: int | None = None) -> None:
        """Log a histogram of values."""

    def artifact(self, artifact: Artifact, made_from: Sequence[Artifact] = ()) -> None:
        """Log files as an artifact, with the artifacts that they were made from."""

    def finish(self, failed: bool) -> str | None:
        """End the run; returns the location of its results, for the terminal."""
        self.logger.finalize("failed" if failed else "success")
        return None


SinkClass = TypeVar("SinkClass", bound=type[Sink])

_SINKS: dict[str, type[Sink]] = {}
"""Qualified name of a logger's class -> its sink; names, so that no back end is imported before it is used."""


def register_sink(logger_class: type[Logger] | str) -> Callable[[SinkClass], SinkClass]:
    """Class decorator that registers a sink for a logger class and its subclasses.

    Args:
        logger_class: the class, or its qualified name if importing it is slow or needs an extra.

    Example:
        >>> from emodissect.lightning.sinks import Sink, register_sink, sink_for
        >>> from lightning.pytorch.loggers.logger import DummyLogger
        >>> @register_sink(DummyLogger)
        ... class DummySink(Sink):
        ...     def summary(self, values):
        ...         print(values)
        >>> sink_for(DummyLogger()).summary({"edit/delta": 0.01})
        {'edit/delta': 0.01}
    """
    name = logger_class if isinstance(logger_class, str) else _qualified(logger_class)

    def register(sink: SinkClass) -> SinkClass:
        _SINKS[name] = sink
        return sink

    return register


def sink_for(logger: Logger) -> Sink:
    """The sink registered for the logger's class or nearest base class, else one for metrics and config only.

    Its exceptions become warnings: results are on disk, and a logging back end must not end a run.
    """
    _import_all()
    kinds = (_SINKS.get(_qualified(kind)) for kind in type(logger).__mro__)
    sink = next((kind for kind in kinds if kind is not None), Sink)
    return cast(Sink, _Guarded(sink, logger))


def sinks_of(loggers: Iterable[Logger]) -> list[Sink]:
    """The sinks of a trainer's loggers; empty on ranks other than 0."""
    return [sink_for(logger) for logger in loggers] if first_rank() else []


class _Guarded:
    """A sink whose exceptions become warnings."""

    def __init__(self, kind: type[Sink], logger: Logger) -> None:
        self._sink, self._name = kind(logger), type(logger).__name__

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._sink, name)
        if not callable(found):
            return found

        @functools.wraps(found)
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return found(*args, **kwargs)
            except Exception as error:
                what = f" {args[0]}" if args and isinstance(args[0], str) else ""
                log.warning(
                    "%s failed to log %s%s (%s: %s). The run continues; its results are kept in the run folder.",
                    *(self._name, name, what, type(error).__name__, error),
                )
                return None

        return call


def without_pictures(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns without :class:`Picture` cells."""
    return frame[[name for name in frame if not frame[name].map(lambda cell: isinstance(cell, Picture)).any()]]


def _qualified(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@functools.cache
def _import_all() -> None:
    """Import all modules of this package; each registers its sink."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{module.name}")
