"""Computes neuron labels, the layer table and concept shares from activations and concept scores."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from emodissect.concepts import ConceptScores
from emodissect.concepts.concept_set import ConceptSet
from emodissect.core.errors import UserError, nearest
from emodissect.core.fingerprint import content_key
from emodissect.core.number_format import percent
from emodissect.core.statistics import benjamini_hochberg, wilson
from emodissect.core.table_files import read_parquet, write_both
from emodissect.core.tensor_files import save_tensors
from emodissect.data.images import ImageSet
from emodissect.dissection.label_table import checked_labels, checked_null
from emodissect.recording import LayerActivations
from emodissect.similarity import Similarity, best_similarity_null, draws_to_pass, permutation_p, reached, standardised

log = logging.getLogger(__name__)

RUNNERS_UP = 4
NO_CONCEPT = ""
REFERENCE_LEVEL = 0.05
"""The false discovery rate that determines the number of null draws; other levels use the same p-values."""
THRESHOLDED = ("interpretable", "significant")
_CHEAP = 2**23  # number of (draw, concept) pairs that takes only seconds to score


@dataclass(frozen=True)
class Labelling:
    """Parameters of the null and of neuron accuracy.

    Attributes:
        draws: number of random image sets for the p-values; wide layers may use more, see ``draws_to_pass``.
        top_images: number of most activating images used for a neuron's accuracy.
        seed: random seed of the random image sets.
    """

    draws: int = 1000
    top_images: int = 10
    seed: int = 0

    def check(self, images: int) -> None:
        """Raises UserError if there are fewer than two images, or fewer than ``top_images``."""
        if images < 2:
            raise UserError(
                f"There {'is 1 probe image' if images else 'are no probe images'}, and neurons cannot be labelled with "
                "fewer than two: give more images (probe.limit)."
            )
        if images < self.top_images:
            raise UserError(
                f"top_images={self.top_images} are chosen from the probe images, but there are only {images}. Give "
                f"more images, or top_images={images} or fewer (probe.limit, probe.top_images)."
            )


@dataclass(frozen=True, eq=False, repr=False)
class Dissection:
    """The labels of a network's neurons, at thresholds that :meth:`at` changes without recomputation.

    Attributes:
        neurons: one row per neuron of each layer.
        layers: one row per layer: the published study's table, with its null.
        shares: each concept's share of the correctly labelled neurons, by layer.
        null: by layer, the highest similarity of random image sets, Float["draw"] (pooled over neurons).
        tau: a neuron is interpretable if its similarity is above tau.
        level: false discovery rate at which a label is significant.

    Example:
        >>> neurons = pd.DataFrame({"layer": "fc", "neuron": [0, 1], "concept": ["smile", "tears"], "dead": False,
        ...     "similarity": [0.2, 0.9], "q_value": [0.5, 0.01], "accuracy": [0.5, 1.0], "accuracy_chance": 0.5,
        ...     "z": [0.1, 4.0]})
        >>> labels = Dissection.of_neurons(neurons, {}, tau=0.5)
        >>> labels
        Dissection of 2 neurons in 1 layer: 1 interpretable (similarity > 0.5), 1 significant (q < 0.05), 0 dead
          fc: 1 of 2 interpretable, accuracy 75.0 % (chance 50.0 %)
          most frequent labels: smile (1), tears (1)
        >>> int(labels.at(tau=0.1).layers["interpretable"].sum()), labels["fc"].concept.tolist()
        (2, ['smile', 'tears'])
    """

    neurons: pd.DataFrame
    layers: pd.DataFrame
    shares: pd.DataFrame
    null: Mapping[str, np.ndarray] = field(default_factory=dict)
    tau: float = 0.0
    level: float = REFERENCE_LEVEL

    @classmethod
    def of_neurons(
        cls,
        neurons: pd.DataFrame,
        null: Mapping[str, np.ndarray],
        tau: float = 0.0,
        level: float = REFERENCE_LEVEL,
    ) -> Dissection:
        """Builds the layer tables from the rows of the neurons.

        Args:
            neurons: as in the class; the columns ``interpretable`` and ``significant`` are computed.
            null: as in the class.
            tau, level: the thresholds.
        """
        neurons = with_thresholds(neurons, tau, level)
        return cls(neurons, layer_table(neurons, null, tau), concept_shares(neurons), null, tau, level)

    @classmethod
    def joined(cls, parts: Sequence[Dissection]) -> Dissection:
        """Joins the labels of several layers, at the first part's thresholds."""
        neurons = pd.concat([part.neurons for part in parts], ignore_index=True)
        null = {layer: draws for part in parts for layer, draws in part.null.items()}
        return cls.of_neurons(neurons, null, parts[0].tau, parts[0].level)

    def of_layer(self, layer: str) -> Dissection:
        """The labels of one layer as a dissection."""
        null = {layer: self.null[layer]} if layer in self.null else {}
        return self.of_neurons(self[layer], null, self.tau, self.level)

    def at(self, tau: float | None = None, level: float | None = None) -> Dissection:
        """The same labels at other thresholds; None keeps a threshold."""
        tau, level = self.tau if tau is None else tau, self.level if level is None else level
        if (tau, level) == (self.tau, self.level):
            return self
        return self.of_neurons(self.neurons, self.null, tau, level)

    def __getitem__(self, layer: str) -> pd.DataFrame:
        """The rows of one layer, ordered by neuron. Raises UserError for a layer that was not dissected."""
        rows = self.neurons[self.neurons["layer"] == layer]
        if rows.empty:
            known = list(self.layers["layer"])
            raise UserError(f"The labels have no layer '{layer}'. {nearest(layer, known)}")
        return rows.sort_values("neuron").reset_index(drop=True)

    def __repr__(self) -> str:
        neurons, layers = self.neurons, self.layers
        counts = {name: int(layers[name].sum()) for name in ("interpretable", "significant", "dead")}
        lines = [
            f"Dissection of {len(neurons):,} neurons in {len(layers)} layer{'s' if len(layers) != 1 else ''}: "
            f"{counts['interpretable']:,} interpretable (similarity > {self.tau:g}), "
            f"{counts['significant']:,} significant (q < {self.level:g}), {counts['dead']:,} dead"
        ]
        best = layers.iloc[int(layers["proportion"].fillna(-1).to_numpy().argmax())]
        accuracy = (
            "no class labels"
            if math.isnan(best["accuracy"])
            else f"accuracy {percent(best['accuracy'], 1)} (chance {percent(best['accuracy_chance'], 1)})"
        )
        which = "" if len(layers) == 1 else "most interpretable layer "
        lines.append(
            f"  {which}{best['layer']}: {best['interpretable']} of {best['neurons']} interpretable, {accuracy}"
        )
        labels = neurons.loc[~neurons["dead"], "concept"].value_counts().head(3)
        lines.append("  most frequent labels: " + ", ".join(f"{name} ({count:,})" for name, count in labels.items()))
        return "\n".join(lines)

    def fingerprint(self) -> str:
        """SHA-256 of all neuron rows, independent of the thresholds."""
        rows = self.neurons.drop(columns=list(THRESHOLDED), errors="ignore")
        return hashlib.sha256(rows.to_json(orient="split", double_precision=15).encode()).hexdigest()

    def save(self, folder: Path) -> None:
        """Writes neurons.parquet and .csv, layers.csv, shares.csv and null.safetensors, which holds the thresholds.

        The CSV files are for reading and for spreadsheets; they are never loaded.
        """
        folder.mkdir(parents=True, exist_ok=True)
        write_both(self.neurons, folder / "neurons.parquet")
        self.layers.to_csv(folder / "layers.csv", index=False)
        self.shares.to_csv(folder / "shares.csv", index=False)
        about = {"tau": repr(self.tau), "level": repr(self.level), "neurons": self.fingerprint()}
        null = {name: torch.from_numpy(draws.copy()) for name, draws in self.null.items()}
        save_tensors(null, folder / "null.safetensors", {**about, "content": content_key({**about, "null": self.null})})

    @classmethod
    def load(cls, folder: str | Path, sealed: bool = False) -> Dissection:
        """The inverse of :meth:`save`: loads neurons.parquet and null.safetensors, never a CSV file.

        Both are validated (:func:`emodissect.dissection.label_table.checked_labels`). Without null.safetensors, e.g.
        for a table from another source, shares by chance are unknown.

        Args:
            folder: a run folder, or the path of a neurons.parquet.
            sealed: whether the files' hashes have already been verified, as for a cache entry.

        Raises:
            UserError: the folder has no labels, or damaged ones, or a null.safetensors that does not belong to them.
        """
        path = Path(folder)
        path = path.parent if path.name == "neurons.parquet" else path
        table = path / "neurons.parquet"
        try:
            neurons = read_parquet(table, sealed)
        except (OSError, ValueError) as error:
            raise UserError(
                f"{folder} contains no neuron labels ({error}). Give the folder of a dissect.py run, which contains "
                "neurons.parquet (its CSV files cannot be loaded), or leave labels_dir=null to dissect now."
            ) from error
        neurons = checked_labels(neurons, table)
        null, about = _read_null(path / "null.safetensors")
        checked_null(null, set(neurons["layer"]), path / "null.safetensors")
        tau, level = (float(about.get(name, known)) for name, known in (("tau", 0.0), ("level", REFERENCE_LEVEL)))
        found = cls.of_neurons(neurons, null, tau, level)
        if about.get("neurons", content := found.fingerprint()) != content:
            log.warning("%s does not match the null.safetensors next to it: it was edited, or is damaged.", table)
        return found


def _read_null(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The null's draws by layer, and the file's metadata; both empty if there is no such file."""
    if not path.exists():
        return {}, {}
    try:
        with safe_open(path, framework="np") as file:
            held = file.metadata() or {}
            null = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a dict
        about = {name: text for name, text in held.items() if name != "content"}
        if held.get("content", content := content_key({**about, "null": null})) != content:
            raise ValueError("its content has changed since it was written")
        return null, about
    except (SafetensorError, OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}). Copy it again, or remove it: labels without it have no shares by chance."
        ) from error


def with_thresholds(neurons: pd.DataFrame, tau: float, level: float) -> pd.DataFrame:
    """The rows with ``interpretable`` (similarity > tau) and ``significant`` (q < level); dead neurons are neither."""
    alive = ~neurons["dead"]
    rows = neurons.drop(columns=list(THRESHOLDED), errors="ignore")
    place = list(rows).index("dead") + 1
    rows.insert(place, "interpretable", alive & (neurons["similarity"] > tau))
    rows.insert(place + 1, "significant", alive & (neurons["q_value"] < level))
    return rows


def require_living(dissection: Dissection) -> Dissection:
    """Raises UserError if every neuron of every layer is dead."""
    neurons = dissection.neurons
    if len(neurons) and bool(neurons["dead"].all()):
        layers = ", ".join(map(str, dissection.layers["layer"]))
        raise UserError(
            f"All {len(neurons)} neurons of {layers} are dead: each has the same activation for every probe image. Are "
            "the weights trained, and does the input match the training data (size, channels, mean and std)?"
        )
    return dissection


def label_neurons(
    activations: Mapping[str, LayerActivations],
    scores: ConceptScores,
    measure: Similarity,
    probe: ImageSet,
    concepts: ConceptSet,
    class_names: Sequence[str],
    labelling: Labelling = Labelling(),
) -> Dissection:
    """Labels every neuron of every layer.

    Args:
        scores: concept scores of at least these images, matched by id.
        class_names: the classes in the order of ``probe.labels``; empty if the images have no labels.
    """
    tables, nulls = [], {}
    for name, layer in activations.items():
        neurons, nulls[name] = label_layer(layer, scores, measure, probe, concepts, class_names, labelling)
        tables.append(neurons)
    return Dissection.of_neurons(pd.concat(tables, ignore_index=True), nulls)


def label_layer(
    layer: LayerActivations,
    scores: ConceptScores,
    measure: Similarity,
    probe: ImageSet,
    concepts: ConceptSet,
    class_names: Sequence[str],
    labelling: Labelling,
) -> tuple[pd.DataFrame, np.ndarray]:
    """The label table of a layer, one row per neuron, and the null of the highest similarity.

    A dead neuron (the same activation for every image) has no concept and a similarity of NaN: it is neither
    interpretable nor significant, and takes no part in the false discovery rate.
    """
    presence = scores.at(layer.ids)
    similarity = measure.of_layer(presence, layer)
    shown = min(RUNNERS_UP + 1, similarity.shape[1])
    best, concept = similarity.topk(shown, dim=1)
    dead = layer.dead
    null = best_similarity_null(measure, presence, layer, labelling.draws, labelling.seed, _null_of(layer))
    p_value = _p_values(best[:, 0], null, measure, presence, layer, labelling)
    z = standardised(best[:, 0], null)
    q_value = torch.full_like(p_value, float("nan"))
    if (~dead).any():
        q_value[~dead] = torch.as_tensor(benjamini_hochberg(p_value[~dead].numpy()), dtype=p_value.dtype)

    top_ids = layer.top_ids[: labelling.top_images]
    top_values = layer.top_values[: labelling.top_images]
    accuracy, chance = neuron_accuracy(probe, top_ids, concept[:, 0], concepts.class_mask(class_names))
    images = top_ids.shape[0]
    intervals = np.array([wilson(hits, images) for hits in range(images + 1)])
    low, high = intervals[(accuracy * images).nan_to_num().round().long().numpy()].T
    unknown = accuracy.isnan().numpy() | dead.numpy()

    names = np.array([*scores.names, NO_CONCEPT], dtype=object)
    labels = np.where(dead.numpy(), NO_CONCEPT, names[concept[:, 0].numpy()])

    def live(values: Tensor) -> np.ndarray:
        return np.where(dead.numpy(), np.nan, values.double().numpy())

    margin = best[:, 0] - best[:, 1] if shown > 1 else torch.full_like(best[:, 0], float("nan"))
    frame = pd.DataFrame(
        {
            "layer": layer.layer,
            "neuron": np.arange(layer.neurons),
            "concept": labels,
            "similarity": live(best[:, 0]),
            "margin": live(margin),
            "z": live(z),
            "p_value": live(p_value),
            "q_value": q_value.double().numpy(),
            "accuracy": np.where(unknown, np.nan, accuracy.double().numpy()),
            "accuracy_chance": np.where(unknown, np.nan, chance.double().numpy()),
            "accuracy_low": np.where(unknown, np.nan, low),
            "accuracy_high": np.where(unknown, np.nan, high),
            "dead": dead.numpy(),
            "top_ids": top_ids.T.tolist(),
            "top_values": top_values.T.double().tolist(),
            "runners_up": [list(names[row]) for row in concept[:, 1:].numpy()],
            "runners_up_similarity": best[:, 1:].double().tolist(),
        }
    )
    return frame, pooled(null)


def _p_values(
    best: Float[Tensor, " neuron"],
    null: Float[Tensor, "draw neuron"],
    measure: Similarity,
    presence: Float[Tensor, "image concept"],
    layer: LayerActivations,
    labelling: Labelling,
) -> Float[Tensor, " neuron"]:
    """p-values from the null, with additional draws if in a wide layer no neuron could be significant otherwise.

    Where additional draws would take too long, a warning says how many are needed.
    """
    draws, seed = len(null), labelling.seed
    p_value = permutation_p(best, null)
    needed = draws_to_pass(p_value[~layer.dead], draws, REFERENCE_LEVEL)
    if needed == draws:
        return p_value
    if measure.needs_values or needed * presence.shape[1] > _CHEAP:
        log.warning(
            "Layer %s: some neurons exceed all %s draws of the null, but that is too few draws for a false discovery "
            "rate of %g among %s neurons: the smallest p-value is 1/%s. Set probe.null_draws=%d.",
            *(layer.layer, f"{draws:,}", REFERENCE_LEVEL, f"{layer.neurons:,}", f"{draws + 1:,}", needed),
        )
        return p_value
    counts, rounds = reached(best, null), math.ceil(needed / draws)
    for further in range(1, rounds):
        counts += reached(best, best_similarity_null(measure, presence, layer, draws, seed + further, _null_of(layer)))
    return (1 + counts) / (1 + rounds * draws)


def _null_of(layer: LayerActivations) -> str:
    return f"null of {layer.layer}"


def pooled(null: Float[Tensor, "draw neuron"], kept: int = 20_000) -> np.ndarray:
    """The null's draws over all neurons as one sorted sample, thinned evenly to at most ``kept`` values."""
    flat = np.sort(null.flatten().double().numpy())
    if len(flat) <= kept:
        return flat
    return flat[np.linspace(0, len(flat) - 1, kept).round().astype(int)]


def neuron_accuracy(
    probe: ImageSet,
    top_ids: Int64[Tensor, "rank neuron"],
    concept: Int64[Tensor, " neuron"],
    class_mask: Bool[Tensor, "concept class"],
) -> tuple[Float[Tensor, " neuron"], Float[Tensor, " neuron"]]:
    """The share of a neuron's top images whose class is one of its label's classes, and the same share by chance.

    Chance is the expected share for images drawn at random from the probe set: the sum of the class frequencies of the
    label's classes. Both are NaN for a concept without classes.
    """
    accepted = class_mask[concept]  # shape [neuron, class]
    if not (probe.labelled and class_mask.shape[1]):
        unknown = torch.full((len(concept),), float("nan"))
        return unknown, unknown.clone()
    labels = probe.labels[probe.rows_of(top_ids.flatten())].view(top_ids.shape)
    hit = accepted.gather(1, labels.T)
    priors = torch.bincount(probe.labels, minlength=class_mask.shape[1]).float() / len(probe)
    chance = accepted.float() @ priors
    without_class = ~accepted.any(dim=1)
    accuracy = hit.float().mean(dim=1)
    nan = torch.tensor(float("nan"))
    return torch.where(without_class, nan, accuracy), torch.where(without_class, nan, chance)


def layer_table(neurons: pd.DataFrame, nulls: Mapping[str, np.ndarray], tau: float) -> pd.DataFrame:
    """The published study's table, one row per layer, with chance levels.

    ``proportion`` is the share of live neurons that are interpretable (similarity > tau), ``proportion_null`` the same
    share among random image sets, ``significant`` the number of neurons with q below the level.
    """
    rows = []
    for layer, group in neurons.groupby("layer", sort=False):
        live = group[~group["dead"]]
        chosen, others = live[live["interpretable"]], live[~live["interpretable"]]
        null = nulls.get(str(layer))
        rows.append(
            {
                "layer": layer,
                "neurons": len(group),
                "dead": int(group["dead"].sum()),
                "interpretable": len(chosen),
                "not_interpretable": len(others),
                "accuracy": live["accuracy"].mean(),
                "accuracy_interpretable": chosen["accuracy"].mean(),
                "accuracy_others": others["accuracy"].mean(),
                "accuracy_chance": live["accuracy_chance"].mean(),
                "proportion": len(chosen) / max(len(live), 1),
                "proportion_null": float(np.mean(null > tau)) if null is not None else np.nan,
                "significant": int(group["significant"].sum()),
                "mean_z": live["z"].mean(),
            }
        )
    return pd.DataFrame(rows)


def concept_shares(neurons: pd.DataFrame, correct_at: float = 0.5) -> pd.DataFrame:
    """Each concept's share of a layer's correctly labelled neurons.

    A neuron counts as correctly labelled if at least a share ``correct_at`` of its top images belong to one of its
    label's classes.
    """
    correct = neurons[neurons["accuracy"] >= correct_at]
    counts = correct.groupby(["layer", "concept"], sort=False).size().rename("neurons").reset_index()
    counts["share"] = counts["neurons"] / counts.groupby("layer")["neurons"].transform("sum")
    return counts.sort_values(["layer", "share"], ascending=[True, False], kind="stable").reset_index(drop=True)


def most_interpretable(layers: pd.DataFrame, by: str = "interpretable", tails: Sequence[str] = ()) -> str:
    """The layer to edit.

    Args:
        by: ``interpretable`` counts interpretable neurons, as the published study does, which favours wide layers;
            ``corrected`` takes the share of interpretable neurons minus that among random image sets.
        tails: layers to exclude, e.g. the logits.

    Raises:
        UserError: an unknown criterion.
    """
    criteria = {
        "interpretable": layers["interpretable"],
        "corrected": layers["proportion"] - layers["proportion_null"],
    }
    if by not in criteria:
        raise UserError(f"layer.keep.by={by} is unknown. {nearest(by, criteria)}")
    considered = ~layers["layer"].isin(list(tails))
    return str(layers["layer"].iloc[int(criteria[by].where(considered, float("-inf")).to_numpy().argmax())])
