"""Validation of the plain values of conf/ by pydantic, before any work; each group's class checks its own arguments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from emodissect.core.errors import UserError

_ABSENT = object()

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Real = Annotated[float, Field(allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Level = Annotated[float, Field(gt=0, le=1)]
OpenLevel = Annotated[float, Field(gt=0, lt=1)]
Words = Annotated[list[Any], Field(description="a list, e.g. [first,second]")]


class _Target(BaseModel, extra="allow"):
    target: str = Field(alias="_target_")


Target = Annotated[_Target, Field(description="a class by _target_ and its keys")]
Entries = Annotated[dict[str, Any], Field(description="entries by name, as in conf/base.yaml")]
Published = Annotated[dict[str, Any], Field(description="entries by name, as in conf/experiment/published_edit.yaml")]


def _several(one: Any) -> Any:
    """One value, or a list of them for a grid."""
    return one | Annotated[list[one], Field(min_length=1)]


ACCEPTED: Mapping[str, Any] = {
    "report": Literal["full", "summary", "none"],
    "seed": Annotated[int, Field(ge=0, le=2**32 - 1)],
    "tags": Words,
    "tau": _several(Real),
    "level": _several(Level),
    "factor": _several(Real),
    **dict.fromkeys(("reuse", "print_config", "soft_labels", "label_quality", "fit", "resume", "test"), bool),
    **dict.fromkeys(("ckpt_path", "labels_dir"), str | None),
    **dict.fromkeys((f"paths.{name}" for name in ("root_dir", "data_dir", "log_dir", "cache_dir", "run_dir")), str),
    **dict.fromkeys(("training.ten_crop", "training.channels_last", "training.compile"), bool),
    "training.label_smoothing": Annotated[float, Field(ge=0, lt=1)],
    "training.mixup": Annotated[float, Field(ge=0)],
    "probe.limit": Annotated[int, Field(ge=2)] | None,
    **dict.fromkeys(("probe.top_images", "probe.null_draws", "probe.batch_size"), Positive),
    "quality.noise": NonNegative,
    **dict.fromkeys(("quality.similarities", "quality.templates"), Entries),
    "published": Published | None,
    "quality.alphas": _several(Level),
    **dict.fromkeys(("similarity.a", "similarity.lam", "similarity.p", "similarity.scale_p"), Real),
    **dict.fromkeys(("similarity.min_prob", "similarity.min_norm"), NonNegative),
    **dict.fromkeys(("similarity.p_start", "similarity.p_end", "similarity.top_fraction"), Share),
    "similarity.top_k": Positive,
    "selection.of": Target,
    "selection.like": Target | None,
    "study.alpha": OpenLevel,
    **dict.fromkeys(("study.controls", "study.null_studies", "study.effects"), Count),
    "study.baselines": Words | None,
    **dict.fromkeys(("study.ablate_concepts", "study.select_on_test", "study.refit_head", "study.recalibrate"), bool),
    **dict.fromkeys(("saliency.maps", "saliency.images", "saliency.samples"), Count),
    "saliency.ids": _several(Count) | None,
    "trainer.max_epochs": Annotated[
        Positive | Literal[-1] | None,
        Field(description="an integer >= 1, -1 or null (dissect.py fit=false takes a network as it is made)"),
    ],
    "optimizer.lr": Annotated[float, Field(gt=0, allow_inf_nan=False)],
    **dict.fromkeys(("data.batch_size", "data.eval_batch_size"), Positive),
    **dict.fromkeys(("data.num_workers", "data.seed", "data.split_seed"), Count),
    **dict.fromkeys((f"data.difficulty.{name}" for name in ("least", "blended", "blend")), Share),
    "data.difficulty.spread": NonNegative,
    **dict.fromkeys(("data.audit", "data.clean", "data.on_device"), bool),
}
"""Key -> accepted type; keys that the chosen groups do not have are skipped."""


def check_values(cfg: DictConfig) -> None:
    """Raise UserError for a missing mandatory value, or a value that its key does not accept."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
    except InterpolationToMissingValueError as error:  # a key that refers to the missing one
        missing = [str(error).partition("Missing mandatory value: ")[2].split()[0]]
    for key in missing:
        raise UserError(f"{key} has no default: give {key}=…. The comment next to it in conf/ says what it accepts.")
    for key, kind in ACCEPTED.items():
        value = OmegaConf.select(cfg, key, default=_ABSENT)
        if value is _ABSENT:
            continue
        given = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
        adapter = TypeAdapter(kind)
        try:
            adapter.validate_python(given, strict=True)
        except ValidationError:
            shown = "null" if given is None else given
            raise UserError(f"{key}={shown} is not accepted; it must be {described(adapter.json_schema())}.") from None


def described(schema: Mapping[str, Any]) -> str:
    """A human-readable description of a JSON schema.

    >>> described({"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]})
    'an integer >= 1 or null'
    """
    if "description" in schema:
        return str(schema["description"])
    if "anyOf" in schema:
        return " or ".join(described(kind) for kind in schema["anyOf"])
    bounds = [
        f"{sign} {schema[name]:.15g}"
        for name, sign in (("minimum", ">="), ("exclusiveMinimum", ">"), ("maximum", "<="), ("exclusiveMaximum", "<"))
        if name in schema
    ]
    return " ".join([_NOUNS[str(schema["type"])], " and ".join(bounds)]).strip()


_NOUNS = {
    "integer": "an integer",
    "number": "a number",
    "array": "a list of such values",
    "boolean": "true or false",
    "null": "null",
    "string": "text",
}
