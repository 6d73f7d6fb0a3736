"""Registry of all displayed columns: name, titles, number format and meaning.

The page, the terminal and the loggers take their columns from here, so a new column of the neuron table is one entry
of :data:`NEURONS` besides the code that computes it. CSV files and W&B tables have all columns of a frame under their
own names, those of the registry first and in its order.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from emodissect.core import number_format as words
from emodissect.core.table_files import joined_lists


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: of the frame's column.
        title: heading on a page.
        form: how a cell is written: ``text``, ``long`` (text that wraps), ``list``, ``count``, ``percent`` (of a
            fraction), ``points`` (a difference of fractions), ``p``, ``setting`` (a number as it was typed), ``id`` (an
            integer without commas), ``figure`` (a sensible number of digits), ``flag``, or a number of digits.
        help: its meaning, in a phrase.
        short: heading in the terminal; by default the title.
        rank: which columns a narrow terminal omits: the highest first; 0 is always shown, None never.
        on_page: whether tables of a page have it.

    Example:
        >>> Column("delta", "change (points)", "points").shown(-0.0021)
        '−0.21'
    """

    name: str
    title: str = ""
    form: str | int = "text"
    help: str = ""
    short: str = ""
    rank: int | None = 0
    on_page: bool = True

    @property
    def heading(self) -> str:
        """The heading on a page."""
        return self.title or self.name.replace("_", " ")

    @property
    def is_number(self) -> bool:
        """Whether its cells are aligned and sorted as numbers."""
        return self.form not in ("text", "long", "list", "flag")

    def shown(self, value: Any) -> str:
        """A formatted cell; a missing value is a dash."""
        if self.form == "list":
            return ", ".join(map(str, value))
        if words.missing(value) or value is pd.NA:
            return words.DASH
        if isinstance(self.form, int):
            return words.number(value, self.form)
        match self.form:
            case "count":
                return words.number(int(value))
            case "percent":
                return words.percent(value)
            case "points":
                return words.points(value)
            case "p":
                return words.p_value(value)
            case "setting":
                return value if isinstance(value, str) else words.plain(value)
            case "id":
                return str(int(value))
            case "flag":
                return "yes" if value else "no"
            case "figure":
                return words.figure(value)
            case _:
                return str(value)


NEURONS = (
    Column("layer", "layer", help="module path in the network"),
    Column("neuron", "neuron", "id", "its number in the layer"),
    Column("concept", "label", help="the concept that its top images share most"),
    Column("label_set", "label set", "long", "the concepts that remain plausible when images are resampled", rank=None),
    Column("explanation", "explanation", "long", "a sum of concepts that predicts the activation", rank=None),
    Column("explanation_pearson", "explanation r", 2, "of predicted and true activations, held-out images", rank=None),
    Column("relevance_concept", "used for", help="the label by relevance to the predicted class", rank=None),
    Column("drives", "moves logit of", help="the class whose logit it moves most; − where it lowers it", rank=None),
    Column("effect", "by", 3, "change of that logit per standard deviation of the neuron", rank=None),
    Column("edit", "edit", help="what the chosen edit does to it", rank=4),
    Column("similarity", "similarity", 2, "to that concept"),
    Column("margin", "margin", 2, "similarity above the second concept", rank=7),
    Column("z", "z", 1, "standard deviations above random image sets", rank=3),
    Column("p_value", "p", "p", "share of random image sets with as large a similarity", rank=5),
    Column("q_value", "q", "p", "false discovery rate within the layer"),
    Column("accuracy", "accuracy", "percent", "share of its top images whose class is one of the label's"),
    Column("accuracy_chance", "by chance", "percent", "the same for images drawn at random", rank=6),
    Column("accuracy_low", "accuracy from", "percent", "95 % interval (Wilson)", rank=None, on_page=False),
    Column("accuracy_high", "accuracy to", "percent", "95 % interval (Wilson)", rank=None, on_page=False),
    Column("dead", "dead", "flag", "the same output for every image", rank=None, on_page=False),
    Column("interpretable", "interpretable", "flag", "similarity above tau", rank=None, on_page=False),
    Column("significant", "beyond chance", "flag", "q below the level", rank=None, on_page=False),
    Column(
        "held_out",
        "held-out r",
        2,
        "correlation, on one half of the images, with the label chosen on the other",
        rank=8,
    ),
    Column("held_out_low", "held-out r from", 2, "95 % interval", rank=None, on_page=False),
    Column("held_out_high", "held-out r to", 2, "95 % interval", rank=None, on_page=False),
    Column("held_out_q", "held-out q", "p", "false discovery rate within the layer", rank=None, on_page=False),
    Column("held_out_concept", "half's label", help="label chosen on half of the images", rank=None, on_page=False),
    Column(
        "alike", "group", "id", "neurons of its layer with nearly the same concept profile (cosine 0.95)", rank=None
    ),
    Column("top_ids", "top images", "list", "ids of its top images, strongest first", rank=None, on_page=False),
    Column("top_values", "activations", "list", "on these images", rank=None, on_page=False),
    Column("runners_up", "next labels", "list", "the concepts that come next", rank=None, on_page=False),
    Column("runners_up_similarity", "their similarity", "list", "to those concepts", rank=None, on_page=False),
)
"""The neuron table."""

LAYERS = (
    Column("layer", "layer", help="module path in the network"),
    Column("neurons", "neurons", "count", "of the layer"),
    Column("dead", "dead", "count", "the same output for every image", rank=5),
    Column("interpretable", "interpretable", "count", "similarity above tau, as in the study", short="sim > tau"),
    Column("not_interpretable", "others", "count", "the other live neurons", rank=None),
    Column("proportion", "proportion", "percent", "interpretable, of the live neurons", short="share"),
    Column("proportion_null", "of random sets", "percent", "interpretable among random image sets", short="by chance"),
    Column("significant", "beyond chance", "count", "neurons with q below the level", short="q < level", rank=2),
    Column("accuracy", "neuron accuracy", "percent", "share of a neuron's top images whose class is one of its label's",
           short="accuracy"),
    Column("accuracy_interpretable", "accuracy of interpretable", "percent", "the same, of the interpretable neurons",
           short="of sim > tau", rank=4),
    Column("accuracy_others", "accuracy of others", "percent", "the same, of the others", short="of others", rank=3),
    Column("accuracy_chance", "accuracy by chance", "percent", "the same, for images drawn at random", short="chance",
           rank=1),
    Column("mean_z", "mean z", 2, "mean of standard deviations above random image sets", rank=None,
           on_page=False),
)  # fmt: skip
"""The layer table, as published, with chance levels."""

SHARES = (
    Column("layer", "layer"),
    Column("concept", "label"),
    Column("neurons", "neurons", "count", "whose label fits at least half of their top images"),
    Column("share", "share", "percent", "of those neurons of the layer"),
)
"""Each concept's share of the neurons whose label fits."""

CONCEPTS = (
    Column("layer", "layer"),
    Column("concept", "label"),
    Column("labelled", "neurons", "count", "with this label"),
    Column("beyond", "beyond chance", "count", "of them, q below the level"),
    Column("neurons", "fitting", "count", "whose label fits at least half of their top images"),
    Column("share", "share of fitting", "percent", "of the layer's neurons whose label fits"),
)
"""Each label of each layer."""

GRID = (
    Column("layer", "layer"),
    Column("selection", "selection", rank=None),
    Column("rule", "rule", rank=None),
    Column("selected", "selected", "count", "neurons in the selection", short="chosen", rank=5),
    Column("accuracy_before", "before", "percent", "accuracy of the unedited network", rank=None),
    Column("accuracy_after", "after", "percent", "accuracy of the edited network", short="accuracy", rank=1),
    Column("delta", "change (points)", "points", "of accuracy", short="points"),
    Column("delta_low", "from", "points", "95 % interval, compatible with exact McNemar", rank=None),
    Column("delta_high", "to", "points", "95 % interval, compatible with exact McNemar", rank=None),
    Column("gained", "newly correct", "count", "images that only the edited network gets right", rank=2),
    Column("lost", "newly wrong", "count", "images that only the unedited network gets right", rank=3),
    Column("p_value", "p", "p", "exact McNemar"),
    Column("p_holm", "p after Holm", "p", "corrected over the grid", short="p, Holm", rank=4),
    Column("nll_before", "NLL before", 3, "negative log-likelihood of the unedited network", rank=None),
    Column("nll_after", "NLL after", 3, "negative log-likelihood of the edited network", rank=None),
)
"""The grid of an edit study; its settings (tau, factor, ...) follow the rule, see :func:`settings`."""

CONTROLS = (
    Column("control", "control"),
    Column("about", "what it is", "long"),
    Column("draws", "draws", "count"),
    Column("median", "median (points)", "points"),
    Column("low", "2.5\xa0%", "points"),
    Column("high", "97.5\xa0%", "points"),
    Column("reached", "as good as the edit", "count"),
)
"""Results of the control edits on the same images."""

MEASURES = (
    Column("measure", "measure"),
    Column("before", "before", 3),
    Column("after", "after", 3),
    Column("change", "change", 3),
)
"""A network before and after an edit."""

LADDER = (
    Column("alternative"),
    Column("fitted_on", "fitted on"),
    Column("delta", "change (points)", "points", "of accuracy on test", short="points"),
    Column("low", "from", "points", "95 % interval, compatible with exact McNemar", rank=1),
    Column("high", "to", "points", "95 % interval, compatible with exact McNemar", rank=1),
    Column("p_value", "p", "p", "exact McNemar"),
    Column("p_against_edit", "p, against the edit", "p", "exact McNemar between the two", rank=None),
    Column("metric_delta", "metric (points)", "points", "change of the study's metric on test", short="metric"),
    Column("metric_p_value", "p, metric", "p", "permutation test: each image's two predictions swapped at random"),
    Column("accuracy_after", "accuracy", "percent", rank=2),
    Column("nll_after", "NLL", 3, "negative log-likelihood", rank=3),
    Column("settled", "setting found", rank=4),
)
"""Cheap alternatives to an edit."""

EFFECTS = (
    Column("measure", "measure"),
    Column("effect", "effect"),
    Column("neurons", "neurons", "count"),
    Column("correlation", "correlation", 2, "Spearman's"),
    Column("low", "from", 2, "95 % interval"),
    Column("high", "to", 2, "95 % interval"),
    Column("p_value", "p", "p"),
)
"""Label quality against the effects of neurons."""

GROUPS = (
    Column("class"),
    Column("present", "concept present", "flag", short="present"),
    Column("images", "images", "count"),
    Column("accuracy_before", "before", "percent"),
    Column("accuracy_after", "after", "percent"),
    Column("delta", "change (points)", "points", short="points"),
)
"""Classes with and without an annotated concept."""

ABLATION = (
    Column("concept", "without"),
    Column("class", "class"),
    Column("neurons", "neurons", "count", "that the concept labels", rank=3),
    Column("recall_before", "recall", "percent", "of the unedited network", rank=2),
    Column("drop", "loss (points)", "points", "of recall", short="loses"),
    Column("random_mean", "random neurons", "points", "mean loss without as many random neurons", short="by random"),
    Column("z", "z", 1, "standard deviations above the loss from random neurons", rank=1),
    Column("p_value", "p", "p", "corrected for the size of the matrix"),
)
"""What ablating each concept's neurons costs each class."""

CHECKS = (Column("check", "what"), Column("found", "found", "long"))
"""How an edit was compared."""

JOBS = (
    Column("job", "job"),
    Column("layer", "layer"),
    Column("selection", "selection", rank=None),
    Column("rule", "rule", rank=None),
    Column("tau", "τ", "setting", short="tau"),
    Column("factor", "factor", "setting"),
    Column("delta_val", "change on validation (points)", "points", short="on val"),
    Column("delta", "change on test (points)", "points", short="on test", rank=1),
    Column("delta_low", "from", "points", "95 % interval, compatible with exact McNemar", rank=None),
    Column("delta_high", "to", "points", "95 % interval, compatible with exact McNemar", rank=None),
    Column("p_value", "p", "p", "exact McNemar, on test", rank=2),
    Column("gained", "newly correct", "count", rank=None, on_page=False),
    Column("lost", "newly wrong", "count", rank=None, on_page=False),
    Column("val/acc", "accuracy, validation", "percent", short="val acc"),
    Column("test/acc", "accuracy, test", "percent", short="test acc", rank=3),
    Column("neurons", "neurons", "count", rank=None, on_page=False),
    Column("interpretable", "interpretable", "count", rank=None, on_page=False),
    Column("significant", "beyond chance", "count", "neurons with q below the level", short="q < level", rank=4),
    Column("neuron_accuracy", "neuron accuracy", "percent", "of the layer whose labels fit best", short="accuracy",
           rank=5),
    Column("neuron_accuracy_chance", "by chance", "percent", short="chance", rank=6),
    Column("accuracy_before", "before", "percent", rank=None, on_page=False),
    Column("accuracy_after", "after", "percent", rank=None, on_page=False),
    Column("seconds", "seconds", 1, rank=None, on_page=False),
    Column("error", "error", "long", rank=None),
)  # fmt: skip
"""The jobs of a sweep. A page shows the settings that differ and the main results; the rest is in sweep.csv."""

TRAININGS = (
    Column("what", "what"),
    Column("seeds", "trainings", "count"),
    Column("mean", "mean (points)", "points", "change of accuracy on test", short="points"),
    Column("low", "from", "points", "95 % interval over trainings"),
    Column("high", "to", "points", "95 % interval over trainings"),
    Column("gain", "gain", "count", "trainings with a gain"),
    Column("p_value", "p, t-test", "p"),
    Column("p_sign", "p, sign test", "p"),
)
"""The edit and cheap alternatives over trainings."""

SEEDS = (
    Column("figure", "figure"),
    Column("seeds", "seeds", "count"),
    Column("mean", "mean", 2),
    Column("sd", "sd", 2),
    Column("low", "from", 2, "95 % interval, Student's t over seeds"),
    Column("high", "to", 2, "95 % interval, Student's t over seeds"),
    Column("positive", "above 0", "count", "seeds whose figure is above 0"),
    Column("p_value", "p", "p", "one-sample t-test against no change"),
)
"""Figures over the seeds of a sweep."""


HELD_OUT = (
    Column("layer", "layer"),
    Column("holds", "holds", "percent", "neurons whose label correlates with them on held-out images (q < level)"),
    Column("pearson", "pearson", "figure", "correlation with the label's presence"),
    Column("cosine", "cosine", "figure", "the same without subtracting the means", rank=7),
    Column("auprc", "auprc", "figure", "area under the precision-recall curve of presence by activation", rank=2),
    Column("f1", "f1", "figure", "at the best threshold", rank=6),
    Column("iou", "iou", "figure", "of the images with the label and those of high activation", rank=5),
    Column("simulation", "simulation", "figure", "correlation with an activation simulated from the label", rank=1),
    Column(
        "explanation_pearson", "explanation", "figure", "correlation with the activation predicted by a sum", rank=1
    ),
    Column("inverse_auc", "inverse auc", "figure", "presence detected by activation, classes balanced", rank=4),
    Column("mad", "mad", "figure", "mean activation with the label minus that without, in standard deviations", rank=3),
    Column("true_pearson", "true pearson", "figure", "correlation with the label's true presence", rank=8),
    Column("clarity", "clarity", "figure", "how alike the top images are to CLIP", rank=9),
    Column("scattered", "scattered", "percent", "neurons whose top images are no more alike than random ones", rank=10),
)
"""Scores of a layer's labels on images that they were not chosen on, means over its neurons."""

RECOVERY = (
    Column("layer", "layer"),
    Column("similarity", "similarity"),
    Column("source", "labels from"),
    Column("truth", "truth", rank=2),
    Column("neurons", "neurons", "count", rank=3),
    Column("top1", "top-1", "percent", "neurons whose label is the true concept"),
    Column("top1_low", "from", "percent", "95 % interval", rank=6),
    Column("top1_high", "to", "percent", "95 % interval", rank=6),
    Column("top1_chance", "by chance", "percent"),
    Column("top3", "top-3", "percent", "neurons with the true concept among the first three labels", rank=4),
    Column("meta_auprc", "meta-AUPRC", "figure", rank=5),
)
"""Labels compared with a known ground truth."""

PLANTED = (
    Column("layer", "layer"),
    Column("similarity", "similarity"),
    Column("kind", "kind"),
    Column("neurons", "neurons", "count"),
    Column("top1", "top-1", "percent", "neurons whose label is one that was planted"),
    Column("labelled", "label beyond chance", "percent"),
)
"""How each similarity labels planted neurons."""

EXPLANATIONS = (
    Column("layer", "layer"),
    Column("explanation", "explanation"),
    Column("neurons", "neurons", "count", rank=3),
    Column("concepts", "concepts", 1, "mean number of concepts of a neuron", rank=2),
    Column("pearson", "correlation", 2, "of predicted and true activations of held-out images, mean over neurons"),
    Column("pearson_low", "from", 2, "95 % interval over neurons", rank=4),
    Column("pearson_high", "to", 2, "95 % interval over neurons", rank=4),
    Column("ratio", "of the label's", 2, "the correlation over that of the run's label"),
    Column("moved", "interventions", 2, "cosine of predicted and true changes where one property is moved", rank=1),
    Column("top1", "top-1", "percent", "neurons whose heaviest concept is a true one, of the true sign", rank=1),
    Column("exact", "exact", "percent", "neurons with exactly the true concepts", rank=1),
    Column("covered", "weights covered", "percent", "true weights that lie in their 95 % interval", rank=1),
)
"""How well each kind of explanation predicts activations."""

EXPLAINED_LAYERS = (
    Column("layer", "layer"),
    Column("pearson", "explanation", 2, "correlation of predicted and true activations of held-out images"),
    Column("pearson_label", "label", 2),
    Column("pearson_best_concept", "best concept", 2),
    Column("pearson_constant", "constant", 2, "one concept for the whole layer"),
)
"""An explanation and its baselines, means over a layer's neurons."""

EXPLAINED_NEURONS = (
    Column("layer", "layer"),
    Column("neuron", "neuron", "id"),
    Column("explanation", "explanation", "long"),
    Column("pearson", "correlation", 2, "of predicted and true activations of held-out images"),
    Column("pearson_label", "the label's", 2),
)
"""The explanations of single neurons."""

COVERAGE = (
    Column("layer", "layer"),
    Column("source", "labels from"),
    Column("kind", "kind"),
    Column("level", "level", "percent", "share of the resamples in which the set holds the label"),
    Column("neurons", "neurons", "count", rank=2),
    Column("covered", "covered", "percent", "neurons whose set holds a true concept"),
    Column("low", "from", "percent", "95 % interval (Wilson)", rank=1),
    Column("high", "to", "percent", "95 % interval (Wilson)", rank=1),
    Column("size", "words", 1, "mean number of words in a set"),
)
"""How often label sets contain the true concept of planted neurons."""

RELEVANCE_LAYERS = (
    Column("layer", "layer"),
    Column("same_label", "same label", "percent", "neurons with the same label by activation and by relevance"),
    Column("shared_top", "shared top images", "percent", "top images by relevance that are among those by activation"),
)
"""Agreement of labels by activation and by relevance."""

RELEVANCE_NEURONS = (
    Column("layer", "layer"),
    Column("neuron", "neuron", "id"),
    Column("concept", "fires for", help="the label by activation"),
    Column("relevance_concept", "used for", help="the label by relevance to the predicted class"),
    Column("drives", "moves logit of", help="the class whose logit it moves most; − where it lowers it"),
    Column("effect", "by", 3, "change of that logit per standard deviation of the neuron"),
)
"""What single neurons do."""

STABILITY = (
    Column("layer", "layer"),
    Column("change", "change"),
    Column("neurons", "neurons", "count", rank=2),
    Column("share", "keep their label", "percent"),
    Column("low", "from", "percent", "95 % interval"),
    Column("high", "to", "percent", "95 % interval"),
    Column("chance", "by chance", "percent", "two labellings with the same concept shares"),
    Column("kappa", "kappa", "figure", "agreement beyond chance (Cohen)", rank=1),
)
"""Stability of labels under changes that should not matter."""

SANITY = (
    Column("layer", "layer"),
    Column("presence", "presence"),
    Column("metric", "metric"),
    Column("neurons", "neurons", "count", rank=2),
    Column("score", "score", "figure"),
    Column("missing_lowered", "lowered: missing", "percent", "when half of the positives are removed"),
    Column("extra_lowered", "lowered: extra", "percent", "when positives are doubled at random", short="extra"),
    Column("passed", "passes", "flag"),
    Column("fails_in_literature", "fails in literature", "flag", rank=1),
)
"""Whether a metric drops when labels are corrupted."""


def present(columns: Iterable[Column], frame: pd.DataFrame) -> list[Column]:
    """The columns that a frame has, in the registry's order."""
    return [column for column in columns if column.name in frame]


def on_page(columns: Iterable[Column], frame: pd.DataFrame) -> list[Column]:
    """The columns that a frame has and a page's table shows."""
    return [column for column in present(columns, frame) if column.on_page]


def on_terminal(columns: Iterable[Column], frame: pd.DataFrame) -> list[Column]:
    """The columns that a frame has and a terminal's table shows."""
    return [column for column in present(columns, frame) if column.rank is not None]


def plain(frame: pd.DataFrame, names: Sequence[str] | None = None) -> list[Column]:
    """Columns for a frame that is not in the registry: its own names, formats by type."""
    return [Column(str(name), form=_form_of(frame[name])) for name in (frame.columns if names is None else names)]


def settings(frame: pd.DataFrame, names: Iterable[str]) -> list[Column]:
    """Columns of an edit's settings: numbers as they were typed, tau as τ."""
    numbers = {name for name in names if pd.api.types.is_numeric_dtype(frame[name])}
    return [
        Column(name, "τ" if name == "tau" else name, "setting" if name in numbers else "text", short=name)
        for name in names
    ]


def after(columns: Sequence[Column], name: str, further: Iterable[Column]) -> list[Column]:
    """The columns with further ones inserted after the one called ``name``."""
    at = [column.name for column in columns].index(name) + 1
    return [*columns[:at], *further, *columns[at:]]


def renamed(columns: Iterable[Column], **titles: str) -> list[Column]:
    """The columns with other terminal headings, e.g. ``significant="q < 0.05"``."""
    return [replace(column, short=titles.get(column.name, column.short)) for column in columns]


def flat(frame: pd.DataFrame, columns: Sequence[Column] = ()) -> pd.DataFrame:
    """A frame for loggers: the registry's columns first, lists joined with semicolons."""
    known = [column.name for column in present(columns, frame)]
    return joined_lists(frame[[*known, *(name for name in frame if name not in known)]])


def _form_of(values: pd.Series) -> str | int:
    if pd.api.types.is_bool_dtype(values):
        return "flag"
    if pd.api.types.is_integer_dtype(values):
        return "count"
    return "figure" if pd.api.types.is_float_dtype(values) else "text"
