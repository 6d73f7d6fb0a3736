from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from emodissect.concepts import ConceptScores
from emodissect.concepts.concept_set import ConceptSet
from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.dissection.labels import (
    Dissection,
    Labelling,
    concept_shares,
    label_neurons,
    layer_table,
    most_interpretable,
    neuron_accuracy,
    pooled,
    require_living,
)
from emodissect.recording import LayerActivations
from emodissect.similarity import Pearson, RankReorder, Similarity, SoftWPMI

CLASSES = ("angry", "happy", "sad")
CONCEPTS = ConceptSet(("frown", "smile", "tears"), {"frown": ("angry", "sad"), "smile": ("happy",), "tears": ("sad",)})


@dataclass(frozen=True)
class World:
    """30 images, 10 per class; neuron 0 responds to smiles, 1 to tears, 2 is dead, 3 is noise."""

    probe: ImageSet
    scores: ConceptScores
    layer: LayerActivations


@pytest.fixture
def world() -> World:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(30) % 3
    ids = torch.arange(100, 130)
    presence = torch.stack([(labels != 1).float(), (labels == 1).float(), (labels == 2).float()], 1)
    presence = presence + 0.01 * torch.rand(presence.shape, generator=generator)
    noise = torch.rand(30, generator=generator)
    values = torch.stack([presence[:, 1], 2 * presence[:, 2] + 1, torch.full((30,), 0.5), noise], 1)
    probe = ImageSet(torch.zeros(30, 1, 4, 4, dtype=torch.uint8), labels, ids)
    return World(probe, ConceptScores(ids, CONCEPTS.names, presence), LayerActivations.of("lin", ids, values, top_k=10))


def test_planted_neurons_get_their_labels_and_the_dead_one_none(world: World) -> None:
    found = label_neurons(
        {"lin": world.layer},
        world.scores,
        Pearson(),
        world.probe,
        CONCEPTS,
        CLASSES,
        Labelling(draws=200),
    ).at(tau=0.9)
    rows = found["lin"]
    assert list(rows["concept"][:3]) == ["smile", "tears", ""]
    np.testing.assert_allclose(rows["similarity"][:2], [1.0, 1.0], atol=1e-5)
    assert np.isnan(rows["similarity"][2])
    assert list(rows["interpretable"]) == [True, True, False, False]
    assert list(rows["dead"]) == [False, False, True, False]
    np.testing.assert_allclose(rows["p_value"][:2], [1 / 201, 1 / 201], rtol=1e-6)
    assert rows["p_value"][3] > 0.05
    # Benjamini-Hochberg by hand over the three live neurons: the two smallest share (2 of 3)
    np.testing.assert_allclose(rows["q_value"][:2], [3 / 2 / 201] * 2, rtol=1e-6)
    assert np.isnan(rows["q_value"][2])
    assert list(rows["significant"]) == [True, True, False, False]


@pytest.mark.parametrize("measure", [SoftWPMI(top_k=10), Pearson(), RankReorder(top_fraction=0.3)], ids=repr)
def test_rows_are_placed_by_id_whatever_their_order(world: World, measure: Similarity) -> None:
    """Ids with gaps, and a different order in each part."""
    ids = torch.tensor([(7919 * i) % 100_003 for i in range(30)])
    assert world.layer.values is not None

    def labels(*orders: Tensor) -> str:
        first, second, third = orders
        probe = ImageSet(world.probe.images[first], world.probe.labels[first], ids[first])
        scores = ConceptScores(ids[second], CONCEPTS.names, world.scores.values[second])
        layer = LayerActivations.of("lin", ids[third], world.layer.values[third].round(decimals=1), top_k=10)
        return label_neurons({"lin": layer}, scores, measure, probe, CONCEPTS, CLASSES).fingerprint()

    generator = torch.Generator().manual_seed(0)
    plain = labels(*[torch.arange(30)] * 3)
    assert labels(*(torch.randperm(30, generator=generator) for _ in range(3))) == plain


def test_neuron_accuracy_by_hand(world: World) -> None:
    ids = world.probe.ids
    happy, sad = ids[world.probe.labels == 1], ids[world.probe.labels == 2]
    top_ids = torch.stack([torch.cat([happy[:3], sad[:1]]), torch.cat([sad[:2], happy[:2]])], 1)
    accuracy, chance = neuron_accuracy(world.probe, top_ids, torch.tensor([1, 0]), CONCEPTS.class_mask(CLASSES))
    torch.testing.assert_close(accuracy, torch.tensor([0.75, 0.5]))
    torch.testing.assert_close(chance, torch.tensor([1 / 3, 2 / 3]))


def test_a_concept_that_stands_for_no_class_has_no_accuracy(world: World) -> None:
    mask = torch.zeros(3, 3, dtype=torch.bool)
    accuracy, chance = neuron_accuracy(world.probe, world.layer.top_ids, torch.tensor([0, 1, 2, 0]), mask)
    assert accuracy.isnan().all()
    assert chance.isnan().all()


def test_layer_table_by_hand() -> None:
    neurons = pd.DataFrame(
        {
            "layer": "lin",
            "dead": [False, False, False, True],
            "interpretable": [True, True, False, False],
            "significant": [True, False, False, False],
            "accuracy": [0.8, 0.4, 0.1, np.nan],
            "accuracy_chance": [0.2, 0.2, 0.5, np.nan],
            "z": [4.0, 2.0, 0.0, np.nan],
        }
    )
    row = layer_table(neurons, {"lin": np.array([-1.0, 0.5, 1.0, 2.0])}, 0.0).iloc[0]
    assert (row["neurons"], row["dead"], row["interpretable"], row["not_interpretable"]) == (4, 1, 2, 1)
    assert row["proportion"] == pytest.approx(2 / 3)
    assert row["proportion_null"] == pytest.approx(0.75)
    assert row["accuracy"] == pytest.approx(1.3 / 3)
    assert row["accuracy_interpretable"] == pytest.approx(0.6)
    assert row["accuracy_others"] == pytest.approx(0.1)
    assert row["accuracy_chance"] == pytest.approx(0.3)
    assert row["mean_z"] == pytest.approx(2.0)
    assert row["significant"] == 1


def test_concept_shares_count_correctly_labelled_neurons() -> None:
    neurons = pd.DataFrame(
        {"layer": "lin", "concept": ["smile", "smile", "tears", "tears"], "accuracy": [0.9, 0.5, 0.6, 0.4]}
    )
    shares = concept_shares(neurons)
    assert list(shares["concept"]) == ["smile", "tears"]
    np.testing.assert_allclose(shares["share"], [2 / 3, 1 / 3])


def test_most_interpretable_counts_or_corrects() -> None:
    layers = pd.DataFrame(
        {
            "layer": ["wide", "narrow", "logits"],
            "interpretable": [90, 40, 99],
            "proportion": [0.9, 0.8, 1.0],
            "proportion_null": [0.85, 0.3, 0.0],
        }
    )
    assert most_interpretable(layers, "interpretable", tails=["logits"]) == "wide"
    assert most_interpretable(layers, "corrected", tails=["logits"]) == "narrow"
    with pytest.raises(UserError, match="Did you mean 'corrected'"):
        most_interpretable(layers, "correct")


def test_pooled_thins_evenly_and_keeps_the_ends() -> None:
    null = torch.arange(1000.0).flip(0).reshape(10, 100)
    thinned = pooled(null, kept=11)
    assert len(thinned) == 11
    assert (thinned[0], thinned[-1]) == (0.0, 999.0)
    np.testing.assert_array_equal(pooled(null), np.arange(1000.0))


def test_a_dissection_is_read_back_as_it_was(world: World, tmp_path: Path) -> None:
    layer = LayerActivations.of("a.b", world.layer.ids, world.layer.values, top_k=50)
    found = label_neurons({"a.b": layer}, world.scores, Pearson(), world.probe, CONCEPTS, CLASSES)
    found.save(tmp_path)
    again = Dissection.load(tmp_path)
    pd.testing.assert_frame_equal(again.layers, found.layers)
    assert list(again.neurons["concept"]) == list(found.neurons["concept"])
    assert [list(x) for x in again.neurons["top_ids"]] == [list(x) for x in found.neurons["top_ids"]]
    assert list(again.null) == list(found.null) == ["a.b"]
    np.testing.assert_array_equal(again.null["a.b"], found.null["a.b"])
    assert (tmp_path / "neurons.csv").read_text().splitlines()[1].startswith("a.b,0,smile")


def test_labels_that_are_not_there_are_reported(tmp_path: Path, world: World) -> None:
    with pytest.raises(UserError, match=r"neurons\.parquet"):
        Dissection.load(tmp_path)
    found = label_neurons({"lin": world.layer}, world.scores, Pearson(), world.probe, CONCEPTS, CLASSES)
    with pytest.raises(UserError, match="Did you mean 'lin'"):
        found["lin2"]


def test_noise_is_called_significant_at_most_nominally() -> None:
    """Of 200 random neurons, hardly any has q < .05, and about 5 % have p < .05."""
    generator = torch.Generator().manual_seed(3)
    images, neurons = 300, 200
    labels = torch.randint(3, (images,), generator=generator)
    ids = torch.arange(images)
    presence: Tensor = torch.rand(images, 3, generator=generator)
    layer = LayerActivations.of("lin", ids, torch.randn(images, neurons, generator=generator), top_k=50)
    probe = ImageSet(torch.zeros(images, 1, 2, 2, dtype=torch.uint8), labels, ids)
    found = label_neurons(
        {"lin": layer}, ConceptScores(ids, CONCEPTS.names, presence), Pearson(), probe, CONCEPTS, CLASSES,
        Labelling(draws=300),
    )  # fmt: skip
    share = (found.neurons["p_value"] < 0.05).mean()
    assert share <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / neurons)
    assert found.neurons["significant"].mean() <= 0.02


def test_one_detector_in_a_wide_layer_is_found() -> None:
    """With 100 draws no p-value is below 1/101, so one of 300 neurons could not pass at .05 without more draws."""
    generator = torch.Generator().manual_seed(4)
    ids, neurons = torch.arange(1000), 300
    presence = 0.2 + 0.06 * torch.randn(1000, 3, generator=generator)  # as CLIP's cosines
    values = torch.randn(1000, neurons, generator=generator)
    values[:, 0] = presence[:, 1]
    layer = LayerActivations.of("lin", ids, values, top_k=50)
    probe = ImageSet(torch.zeros(1000, 1, 2, 2, dtype=torch.uint8), ids % 3, ids)
    found = label_neurons(
        {"lin": layer}, ConceptScores(ids, CONCEPTS.names, presence), SoftWPMI(top_k=50), probe, CONCEPTS, CLASSES,
        Labelling(draws=100),
    )  # fmt: skip
    assert found.neurons["p_value"][0] == pytest.approx(1 / 6001)
    assert list(found.neurons.index[found.neurons["significant"]]) == [0]


def test_draws_too_dear_to_make_are_asked_for(world: World, caplog: pytest.LogCaptureFixture) -> None:
    values = torch.randn(30, 300, generator=torch.Generator().manual_seed(5))
    values[:, 0] = world.scores.values[:, 1]
    layer = LayerActivations.of("lin", world.layer.ids, values, top_k=10)
    label_neurons({"lin": layer}, world.scores, Pearson(), world.probe, CONCEPTS, CLASSES, Labelling(draws=100))
    assert "Set probe.null_draws=6000." in caplog.text


def test_thresholds_apply_to_labels_afterwards(world: World, tmp_path: Path) -> None:
    found = label_neurons(
        {"lin": world.layer}, world.scores, Pearson(), world.probe, CONCEPTS, CLASSES, Labelling(draws=200)
    )
    stricter = found.at(tau=2.0, level=0.001)
    assert not stricter["lin"]["interpretable"].any()
    assert not stricter["lin"]["significant"].any()
    assert (stricter.layers["interpretable"].iloc[0], stricter.layers["proportion_null"].iloc[0]) == (0, 0.0)
    assert stricter.fingerprint() == found.fingerprint()
    stricter.save(tmp_path)
    loaded = Dissection.load(tmp_path)
    assert (loaded.tau, loaded.level) == (2.0, 0.001)
    pd.testing.assert_frame_equal(loaded.at(0.0, 0.05).neurons, found.neurons)
    pd.testing.assert_frame_equal(loaded.at(0.0, 0.05).layers, found.layers)


def test_the_repr_is_three_lines(world: World) -> None:
    found = label_neurons(
        {"lin": world.layer}, world.scores, Pearson(), world.probe, CONCEPTS, CLASSES, Labelling(draws=200)
    )
    assert len(repr(found).splitlines()) == 3
    assert repr(found.at(tau=0.9)).startswith("Dissection of 4 neurons in 1 layer: 2 interpretable (similarity > 0.9)")


@pytest.mark.parametrize(
    ("images", "top_images", "message"),
    [
        (9, 10, "top_images=10 are chosen from the probe images, but there are only 9.*top_images=9 or fewer"),
        (1, 1, "There is 1 probe image, and neurons cannot be labelled with fewer than two"),
        (0, 10, "There are no probe images"),
    ],
)
def test_top_images_are_ranked_among_more_images(images: int, top_images: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Labelling(top_images=top_images).check(images)
    Labelling(top_images=top_images).check(max(2, top_images))


def test_a_network_of_dead_neurons_only_is_an_error() -> None:
    neurons = pd.DataFrame({"layer": ["a", "a", "b"], "neuron": [0, 1, 0], "concept": "", "dead": [True, True, False]})
    neurons = neurons.assign(similarity=[np.nan, np.nan, 0.1], q_value=np.nan, accuracy=np.nan, accuracy_chance=np.nan)
    neurons = neurons.assign(z=np.nan)
    assert len(require_living(Dissection.of_neurons(neurons, {})).neurons) == 3
    with pytest.raises(UserError, match=r"All 2 neurons of a are dead: .* for every probe image"):
        require_living(Dissection.of_neurons(neurons[:2], {}))
