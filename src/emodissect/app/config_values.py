"""What the plain values of conf/ may be, looked at before any work; what a group's class takes, it says itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError

from emodissect.core.errors import UserError, nearest

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
        instead: what else to do, told beside what is taken.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    whole: bool = False
    several: bool = False
    also: tuple[Any, ...] = ()
    instead: str = ""

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
        return " or ".join([words, *further]) + (f" ({self.instead})" if self.instead else "")

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
    """A list of words.

    Attributes:
        also: further values.
    """

    also: tuple[Any, ...] = ()

    def takes(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return isinstance(value, ListConfig) or value in self.also

    def __str__(self) -> str:
        return " or ".join(["a list, e.g. [first,second]", *("null" for v in self.also if v is None)])


@dataclass(frozen=True)
class Nodes:
    """Several entries by name, as a mapping.

    Attributes:
        like: where some stand.
        also: further values.
    """

    like: str = "conf/base.yaml"
    also: tuple[Any, ...] = ()

    def takes(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return value in self.also or isinstance(value, DictConfig)

    def __str__(self) -> str:
        return " or ".join([f"entries by name, as in {self.like}", *("null" for v in self.also if v is None)])


@dataclass(frozen=True)
class Arguments:
    """A class with its arguments, as a group's file gives it.

    Attributes:
        also: further values.
    """

    also: tuple[Any, ...] = ()

    def takes(self, value: Any) -> bool:
        """Whether the value is one of them."""
        return value in self.also or (isinstance(value, DictConfig) and "_target_" in value)

    def __str__(self) -> str:
        return " or ".join(["a class by _target_ and its keys", *("null" if v is None else str(v) for v in self.also)])


_COUNT, _PRESENT = Number(least=0, whole=True), Number(least=1, whole=True)

ACCEPTED: Mapping[str, Accepted] = {
    "seed": Number(least=0, most=2**32 - 1, whole=True),
    "tags": Words(),
    "tau": Number(several=True),
    "level": Number(above=0, most=1, several=True),
    "factor": Number(several=True),
    **dict.fromkeys(("reuse", "print_config", "soft_labels", "label_quality", "fit", "test"), Flag()),
    **dict.fromkeys(("training.ten_crop", "training.channels_last", "training.compile"), Flag()),
    "training.label_smoothing": Number(least=0, below=1),
    "probe.limit": Number(least=1, whole=True, also=(None,)),
    **dict.fromkeys(("probe.top_images", "probe.null_draws", "probe.batch_size"), _PRESENT),
    "quality.noise": Number(least=0),
    **dict.fromkeys(("quality.similarities", "quality.templates"), Nodes()),
    "published": Nodes("conf/experiment/published_edit.yaml", also=(None,)),
    "quality.alphas": Number(above=0, most=1, several=True),
    **dict.fromkeys(("similarity.a", "similarity.lam", "similarity.p", "similarity.scale_p"), Number()),
    **dict.fromkeys(("similarity.min_prob", "similarity.min_norm"), Number(least=0)),
    **dict.fromkeys(("similarity.p_start", "similarity.p_end", "similarity.top_fraction"), Number(least=0, most=1)),
    "similarity.top_k": _PRESENT,
    "selection.of": Arguments(),
    "selection.like": Arguments(also=(None,)),
    "study.alpha": Number(above=0, below=1),
    **dict.fromkeys(("study.controls", "study.null_studies"), _COUNT),
    "study.baselines": Words(also=(None,)),
    "study.ablate_concepts": Flag(),
    "study.select_on_test": Flag(),
    **dict.fromkeys(("saliency.maps", "saliency.images", "saliency.samples"), _COUNT),
    "saliency.ids": Number(least=0, whole=True, several=True, also=(None,)),
    "trainer.max_epochs": Number(
        least=1, whole=True, also=(-1, None), instead="dissect.py fit=false takes a network as it is made"
    ),
    "optimizer.lr": Number(above=0),
    **dict.fromkeys(("data.batch_size", "data.eval_batch_size"), _PRESENT),
    **dict.fromkeys(("data.num_workers", "data.seed", "data.split_seed"), _COUNT),
    **dict.fromkeys((f"data.difficulty.{name}" for name in ("least", "blended", "blend")), Number(least=0, most=1)),
    "data.difficulty.spread": Number(least=0),
    **dict.fromkeys(("data.audit", "data.clean", "data.on_device"), Flag()),
}
"""By key; a key that a chosen group does not have is passed over."""

TOLD_BY_THEIR_STAGE = (
    *("probe.split", "study.metric", "study.groups", "study.selection_split", "study.test_split"),
    "training.monitor",
)
"""Further keys of conf/base.yaml's sections, whose values are looked at where the images or the network are known."""

SECTIONS = ("training", "probe", "study", "saliency")
"""Parts of conf/base.yaml that are no class's arguments, so that nobody else would notice a key too many."""


def check_values(cfg: DictConfig) -> None:
    """Raises UserError for a value left open, a key that nobody reads, or a value that its key does not take."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
    except InterpolationToMissingValueError as error:  # a key that refers to the one left open
        missing = [str(error).partition("Missing mandatory value: ")[2].split()[0]]
    for key in missing:
        raise UserError(f"{key} has no default: give {key}=…. What it takes is said beside it in conf/.")
    known = (*ACCEPTED, *TOLD_BY_THEIR_STAGE)
    for section in SECTIONS:
        for name in cfg.get(section) or {}:
            if f"{section}.{name}" not in known:
                names = [key.partition(".")[2] for key in known if key.startswith(f"{section}.")]
                raise UserError(f"{section}.{name} is unknown. {nearest(str(name), names)}")
    for key, accepted in ACCEPTED.items():
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if value is not _ABSENT and not accepted.takes(value):
            given = "null" if value is None else value
            raise UserError(f"{key}={given}: give {accepted}.")
