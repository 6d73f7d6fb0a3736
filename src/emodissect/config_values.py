"""What the plain values of conf/ may be, looked at before any work; what a group's class takes, it says itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from omegaconf import DictConfig, ListConfig, OmegaConf

from emodissect.errors import UserError

_ABSENT = object()


class Accepted(Protocol):
    """The values that a key takes; ``str`` says which, as it stands behind "give"."""

    def takes(self, value: Any) -> bool:
        """Whether the value is one of them."""


@dataclass(frozen=True)
class Number:
    """A finite number.

    Attributes:
        least, most: both included.
        above, below: neither included.
        whole: no fractions.
        several: a list of them as well, for a grid.
        also: further values.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False
    several: bool = False
    also: tuple[Any, ...] = ()

    def takes(self, value: Any) -> bool:
        """Whether the value is one of them."""
        if self.several and isinstance(value, ListConfig):
            return len(value) > 0 and all(self._takes_one(item) for item in value)
        return self._takes_one(value)

    def _takes_one(self, value: Any) -> bool:
        if any(value is other or value == other for other in self.also):
            return True
        if isinstance(value, bool) or not isinstance(value, int if self.whole else int | float):
            return False
        in_range = self.least <= value <= self.most and self.above < value < self.below
        return math.isfinite(value) and in_range

    def __str__(self) -> str:
        bounds = [
            f"{word} {limit:.15g}"
            for word, limit in (("from", self.least), ("above", self.above), ("to", self.most), ("below", self.below))
            if math.isfinite(limit)
        ]
        words = " ".join([f"a {'whole ' if self.whole else ''}number", *bounds])
        further = ["a list of such", *self._further] if self.several else self._further
        return " or ".join([words, *further])

    @property
    def _further(self) -> list[str]:
        return ["null" if value is None else str(value) for value in self.also]


@dataclass(frozen=True)
class Flag:
    """True or false."""

    def takes(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


@dataclass(frozen=True)
class Words:
    """A list of words."""

    def takes(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return isinstance(value, ListConfig)

    def __str__(self) -> str:
        return "a list, e.g. [first,second]"


_COUNT, _PRESENT = Number(least=0, whole=True), Number(least=1, whole=True)

ACCEPTED: Mapping[str, Accepted] = {
    "seed": Number(least=0, most=2**32 - 1, whole=True),
    "tags": Words(),
    "tau": Number(several=True),
    "level": Number(above=0, most=1, several=True),
    "factor": Number(several=True),
    **dict.fromkeys(("reuse", "print_config", "soft_labels", "evaluate", "fit", "test"), Flag()),
    **dict.fromkeys(("training.ten_crop", "training.channels_last", "training.compile"), Flag()),
    "training.label_smoothing": Number(least=0, below=1),
    "probe.limit": Number(least=1, whole=True, also=(None,)),
    **dict.fromkeys(("probe.top_images", "probe.null_draws", "probe.batch_size"), _PRESENT),
    "quality.noise": Number(least=0),
    "study.alpha": Number(above=0, below=1),
    **dict.fromkeys(("study.controls", "study.null_studies"), _COUNT),
    "study.bootstrap": _PRESENT,
    "study.ablate_concepts": Flag(),
    **dict.fromkeys(("pictures.maps", "pictures.saliency", "pictures.samples"), _COUNT),
    "trainer.max_epochs": Number(least=1, whole=True, also=(-1, None)),
    "optimizer.lr": Number(above=0),
    **dict.fromkeys(("data.batch_size", "data.eval_batch_size"), _PRESENT),
    **dict.fromkeys(("data.num_workers", "data.seed", "data.split_seed"), _COUNT),
    **dict.fromkeys((f"data.difficulty.{name}" for name in ("least", "blended", "blend")), Number(least=0, most=1)),
    "data.difficulty.spread": Number(least=0),
    **dict.fromkeys(("data.audit", "data.clean", "data.on_device"), Flag()),
}
"""By key; a key that a chosen group does not have is passed over."""


def check_values(cfg: DictConfig) -> None:
    """Raises UserError for the first value that its key does not take: what was given, and what may be."""
    for key, accepted in ACCEPTED.items():
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if value is not _ABSENT and not accepted.takes(value):
            given = "null" if value is None else value
            raise UserError(f"{key}={given}: give {accepted}.")
