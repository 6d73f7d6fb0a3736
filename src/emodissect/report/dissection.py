"""The page of a dissection: layers, similarities compared with chance, concepts, and every neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from markupsafe import Markup
from numpy.typing import ArrayLike

from emodissect.core import number_format as words
from emodissect.data.images import ImageSet
from emodissect.models.predictions import Predictions
from emodissect.report import claims, columns, figures, page
from emodissect.report.neurons import NeuronFacts, neuron_payload, predicted_classes, saliency_tiles
from emodissect.report.page import Content, Extra, Fact, Folded, Page, Section

#: Number of layers whose figures are expanded; the others' are collapsed.
OPEN_LAYERS = 2
#: Maximum number of concepts in the concept x class matrix.
MOST_CONCEPTS = 30


@dataclass
class DissectionPage(Page):
    """The page of ``dissect.py``.

    Attributes:
        neurons: one row per neuron, from :class:`emodissect.dissection.labels.Dissection`.
        layers: the layer table.
        shares: each concept's share of the correctly labelled neurons (columns layer, concept, neurons, share).
        images: the probe set.
        class_names: in the order of ``images.labels``.
        command, manifest: command line and manifest of the run.
        predictions: the network's, on any of the images; shown beside the true class.
        null: layer -> best similarities of random image sets.
        tau: similarity cutoff; None for none.
        level: of the false discovery rate.
        title: page title.
        published: a published layer table, shown for comparison.
        heat: activation maps in [0, 1] by (layer, neuron), shape (rank, height, width).
        saliency: gradient saliency in [0, 1] by image id, shape (height, width).
        held_out: scores, on one half of the images, of labels chosen on the other, by layer and neuron.
        about: further facts for the neurons' cards.
        main_layer: whose figures come first; by default the layer with most neurons beyond chance.
        extras: further sections.
        notes: further warnings.
    """

    kind: ClassVar[str] = "dissect"

    neurons: pd.DataFrame
    layers: pd.DataFrame
    shares: pd.DataFrame
    images: ImageSet
    class_names: Sequence[str]
    command: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    predictions: Predictions | None = None
    null: Mapping[str, ArrayLike] = field(default_factory=dict)
    tau: float | None = 0.0
    level: float = 0.05
    title: str = "What the neurons respond to"
    published: pd.DataFrame | None = None
    heat: Mapping[tuple[str, int], ArrayLike] = field(default_factory=dict)
    saliency: Mapping[int, ArrayLike] = field(default_factory=dict)
    held_out: pd.DataFrame | None = None
    about: NeuronFacts = field(default_factory=NeuronFacts)
    main_layer: str | None = None
    extras: Sequence[Extra] = ()
    notes: Sequence[str] = ()

    def sections(self, content: Content) -> list[Section]:
        """The sections, which an edit's page includes as well."""
        parts = [
            Section("layers", "Layers", self._layers(content)),
            Section("similarity", "Similarity against chance", self._similarity(content), "Similarity"),
            Section("concepts", "Concepts", self._concepts(content)),
            Section("neurons", "Neurons", self._neurons(content)),
        ]
        if self.saliency:
            parts.append(Section("saliency", "Where the classifier looked", self._saliency(content), "Saliency"))
        return parts

    @property
    def ordered_layers(self) -> list[str]:
        """The main layer first, then by neurons labelled beyond chance, descending; ties: the deeper layer first."""
        names = [str(name) for name in self.layers["layer"]]
        if not names:
            return []
        main = self.main_layer
        if main not in names:
            main = names[int(np.nan_to_num(self._significant(), nan=0).argmax())]
        count = dict(zip(names, np.nan_to_num(self._significant(), nan=0), strict=True))
        return [main, *sorted((name for name in reversed(names) if name != main), key=lambda name: -count[name])]

    def summary(self) -> str:
        live = int(self.neurons["dead"].eq(False).sum())
        chosen, beyond = int(self.neurons["interpretable"].sum()), int(self._significant().sum())
        where = f"layer {self.ordered_layers[0]}" if len(self.layers) == 1 else words.count(len(self.layers), "layer")
        share_null = self._null_share()
        tau = "" if self.tau is None else f" at τ = {words.plain(self.tau)}"
        text = (
            f"{words.count(len(self.neurons), 'neuron')} in {where} were given a label. "
            f"{chosen:,} of the {live:,} live ones ({words.percent(chosen / max(live, 1), 0)}) count as "
            f"interpretable{tau}"
        )
        if share_null is not None:
            text += f", and so would {words.percent(share_null, 0)} of random image sets"
        return (
            f"{text}. {beyond:,} ({words.percent(beyond / max(live, 1), 0)}) are labelled beyond chance "
            f"(q < {self.level:g})."
        )

    def warnings(self) -> list[str]:
        return [claims.one_label_text(self.neurons), *self.notes]

    def facts(self) -> list[Fact]:
        live = self.neurons[~self.neurons["dead"].astype(bool)]
        beyond = int(self._significant().sum())
        accuracy, chance = live["accuracy"].mean(), live.get("accuracy_chance", pd.Series(dtype=float)).mean()
        facts = [
            Fact(f"{len(self.neurons):,}", "neurons", f"{len(self.neurons) - len(live):,} dead"),
            Fact(
                f"{int(live['interpretable'].sum()):,}",
                "interpretable" if self.tau is None else f"interpretable, similarity > {words.plain(self.tau)}",
                f"{words.percent(self._null_share(), 0)} of random image sets"
                if self._null_share() is not None
                else "",
            ),
            Fact(
                f"{beyond:,}",
                f"labelled beyond chance, q < {self.level:g}",
                f"{words.percent(beyond / max(len(live), 1), 0)} of the live neurons",
                "good" if beyond else "bad",
            ),
            Fact(words.percent(accuracy), "neuron accuracy", f"{words.percent(chance)} by chance"),
        ]
        if len(self.shares):
            top = self.shares[self.shares["layer"] == self.ordered_layers[0]] if "layer" in self.shares else self.shares
            if len(top):
                best = claims.equals(top, "share")
                tied = f"; {len(best)} labels tie" if len(best) > 1 else ""
                share = f"{words.percent(best['share'].iloc[0])} of them{tied}"
                facts.append(Fact(str(best["concept"].iloc[0]), "most frequent fitting label", share))
        return facts

    def _significant(self) -> np.ndarray:
        return self.layers["significant"].to_numpy(dtype=float)

    def _null_share(self) -> float | None:
        """Share of random image sets above tau, over the layers weighted by their neurons."""
        if "proportion_null" not in self.layers:
            return None
        known = self.layers.dropna(subset=["proportion_null"])
        if known.empty:
            return None
        return float(np.average(known["proportion_null"], weights=known["neurons"]))

    def _layers(self, content: Content) -> Markup:
        layers = self.layers
        caption = claims.layers_text(layers, self.level)
        null = self._null_share()
        if null is not None and null > 0.5:
            caption += (
                f" At this cutoff {words.percent(null, 0)} of random image sets would count as interpretable too: "
                "the proportion is uninformative; compare neuron accuracy with chance instead."
            )
        parts = [
            page.table(layers, columns.LAYERS, [name == self.ordered_layers[0] for name in layers["layer"]], caption)
        ]
        if len(layers) > 1:
            drawing = figures.layer_proportions(layers)
            parts.append(
                content.figure(
                    drawing,
                    "A layer's proportion is informative where its blue bar ends clearly to the right of the orange "
                    "mark, the proportion among random image sets.",
                )
            )
        if self.published is not None:
            matched = set(self.published["layer"].astype(str)) & set(layers["layer"].astype(str))
            parts.append(
                content.figure(
                    figures.layer_table(layers, self.published),
                    f"Measured here and, in orange, as published ({words.count(len(matched), 'layer')} in both).",
                )
            )
        return page.block(parts=parts)

    def _similarity(self, content: Content) -> Markup:
        return self._by_layer(content, self._histogram)

    def _histogram(self, content: Content, layer: str) -> Markup:
        best = self.neurons.loc[self.neurons["layer"] == layer, "similarity"].to_numpy(dtype=float)
        best = best[np.isfinite(best)]
        null = self.null.get(layer)
        chance = np.asarray([] if null is None else null, dtype=float).ravel()
        chance = chance[np.isfinite(chance)]
        caption = f"{layer}: "
        if chance.size:
            limit = float(np.quantile(chance, 0.95))
            above = float((best > limit).mean()) if best.size else 0.0
            caption += (
                f"95 % of random image sets stay below {words.number(limit)}; {words.percent(above)} of the neurons "
                "lie above it (5 % would if labels were chance). "
            )
            if self.tau is not None:
                passed = float((chance > self.tau).mean())
                caption += f"τ = {words.plain(self.tau)} lets {words.percent(passed)} of the random sets through"
                caption += ", so it hardly selects." if passed > 0.5 else "."
        elif self.tau is not None and best.size:
            above = float((best > self.tau).mean())
            caption += f"{words.percent(above)} of the neurons lie above τ = {words.plain(self.tau)}."
        return content.figure(
            figures.similarity_histogram(best, chance if chance.size else None, self.tau, layer), caption
        )

    def _concepts(self, content: Content) -> Markup:
        parts = [self._by_layer(content, self._bars)]
        if all(layer in self.about.responses for layer in self.ordered_layers):
            parts.append(self._by_layer(content, self._matrix))
        if "significant" in self.neurons:
            counts = self._counts()
            table = page.table(counts, columns.CONCEPTS, limit=1000)
            title = f"All labels by layer, {words.count(len(counts), 'row')}"
            parts.append(page.block(folded=Folded(title, parts=[table])))
        return page.block(parts=parts)

    def _matrix(self, content: Content, layer: str) -> Markup:
        """Concept x class figure: mean activation of each label's neurons on each class's images."""
        table = claims.concept_classes(self.neurons, layer, self.about.responses[layer], self.class_names)
        shown = table.head(MOST_CONCEPTS)
        drawing = figures.concept_classes(
            shown[[str(name) for name in self.class_names]], shown["neurons"].tolist(), layer
        )
        return content.figure(drawing, claims.concept_classes_text(table, self.class_names, layer))

    def _counts(self) -> pd.DataFrame:
        """Counts by layer and concept: labelled neurons, those beyond chance, and those whose label fits."""
        living = self.neurons[~self.neurons["dead"].astype(bool)]
        counts = living.groupby(["layer", "concept"], sort=False).agg(
            labelled=("neuron", "size"), beyond=("significant", "sum")
        )
        if {"layer", "neurons"} <= set(self.shares):
            counts = counts.join(self.shares.set_index(["layer", "concept"])[["neurons", "share"]])
        return counts.reset_index().sort_values(["layer", "labelled"], ascending=[True, False], kind="stable")

    def _bars(self, content: Content, layer: str) -> Markup:
        shares = self.shares[self.shares["layer"] == layer] if "layer" in self.shares else self.shares
        shares = shares.sort_values("share", ascending=False, kind="stable")
        return content.figure(figures.concept_shares(shares, layer), claims.shares_text(shares, layer))

    def _by_layer(self, content: Content, draw: Any) -> Markup:
        """One figure per layer; those after the first ``OPEN_LAYERS`` are collapsed."""
        names = self.ordered_layers
        drawings = [draw(content, name) for name in names]
        if len(names) <= OPEN_LAYERS:
            return page.block(figures=drawings)
        rest = words.count(len(names) - OPEN_LAYERS, "further layer")
        return page.block(figures=drawings[:OPEN_LAYERS], folded=Folded(rest, drawings[OPEN_LAYERS:]))

    def _neurons(self, content: Content) -> Markup:
        predicted = predicted_classes(self.predictions)
        payload = neuron_payload(
            self.neurons, self.images, content.pool, self.class_names, predicted, self.heat, self.held_out, self.about
        )
        content.payload.update(payload | {"level": self.level})
        strongest = self.neurons.sort_values("z" if "z" in self.neurons else "similarity", ascending=False)[:50]
        text = "Each neuron with the images that activate it most"
        text += (
            ", the class of each image and, in orange, the wrong prediction where there was one. "
            if predicted
            else " and the class of each image. "
        )
        text += "Trust a label when q is small, when the images show what it says"
        text += " and when it holds on images that it was not chosen on." if self.held_out is not None else "."
        if self.heat:
            text += " The orange shade shows where in the image a convolutional neuron is active."
        static = page.table(strongest, columns.NEURONS)
        return page.render("neurons.html.j2", text=text, shown=len(strongest), static=static)

    def _saliency(self, content: Content) -> Markup:
        content.pool.add(self.images, list(self.saliency))
        return saliency_tiles(content, self.saliency, self.class_names, self.predictions)
