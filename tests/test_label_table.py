"""Labels read from a folder: damaged or unrelated ones are errors, older ones load."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from emodissect.concepts import ConceptScores
from emodissect.concepts.concept_set import ConceptSet
from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.dissection.label_table import checked_labels, require_concepts
from emodissect.dissection.labels import Dissection, Labelling, label_neurons
from emodissect.recording import LayerActivations
from emodissect.similarity import Pearson

NEURONS = 20


@pytest.fixture(scope="module")
def labels() -> Dissection:
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(100, 160)
    values = torch.rand(60, NEURONS, generator=generator)
    values[:, 3] = 0.5  # dead
    concepts = ConceptSet(("a", "b", "c"), {"a": ("x",)})
    scores = ConceptScores(ids, concepts.names, torch.rand(60, 3, generator=generator))
    probe = ImageSet(torch.zeros(60, 1, 2, 2, dtype=torch.uint8), torch.arange(60) % 2, ids)
    layers = {name: LayerActivations.of(name, ids, values, 10) for name in ("fc1", "fc2")}
    return label_neurons(layers, scores, Pearson(), probe, concepts, ("x", "y"), Labelling(draws=50))


def test_what_is_saved_is_read_back_unchanged(labels: Dissection, tmp_path: Path) -> None:
    labels.save(tmp_path)
    found = Dissection.load(tmp_path)
    assert found.fingerprint() == labels.fingerprint()
    assert list(found.neurons) == list(labels.neurons)
    for name in ("similarity", "z", "q_value", "accuracy_low"):
        np.testing.assert_array_equal(found.neurons[name], labels.neurons[name])
    pd.testing.assert_frame_equal(found.layers, labels.layers)


def put(name: str, row: int, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(neurons: pd.DataFrame) -> pd.DataFrame:
        values = list(neurons[name])
        values[row] = value
        return neurons.assign(**{name: pd.Series(values, dtype=object)})

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("neuron", 5, 6), "neuron 6 of layer 'fc1' occurs twice"),
        (put("neuron", 5, 25), "neuron 5 of layer 'fc1' is missing, but numbers go up to 25"),
        (put("neuron", 5, -1), "-1 is not a neuron number"),
        (put("neuron", 5, 5.5), "5.5 is not a neuron number"),
        (put("neuron", 5, "five"), "'five' is not a neuron number"),
        (put("layer", 5, "fc3"), "neuron 0 of layer 'fc3' is missing|neuron 5 of layer 'fc1' is missing"),
        (put("layer", 5, None), "a row has no layer name"),
        (put("layer", 5, 7), "the column layer contains 7, not a name"),
        (lambda neurons: neurons.drop(index=5), "neuron 5 of layer 'fc1' is missing"),
        (lambda neurons: pd.concat([neurons, neurons.iloc[:1]]), "neuron 0 of layer 'fc1' occurs twice"),
        (lambda neurons: neurons.iloc[:0], "they contain no neurons"),
        (lambda neurons: neurons.drop(columns=["neuron", "top_ids"]), "lack the columns neuron, top_ids"),
        (put("similarity", 5, float("inf")), r"similarity is inf, not a finite number \(row 6, neuron 5\)"),
        (put("similarity", 5, "high"), "similarity is 'high', not a finite number"),
        (put("similarity", 5, None), "a living neuron has no concept or no similarity"),
        (put("concept", 5, ""), "a living neuron has no concept"),
        (put("concept", 3, "a"), "a dead neuron has a concept"),
        (put("concept", 5, 3), "the column concept contains 3, not a name"),
        (put("dead", 5, "maybe"), "dead contains values other than true and false"),
        (put("q_value", 5, 1.5), "q_value is 1.5, not between 0 and 1"),
        (put("accuracy", 5, -0.1), "accuracy is -0.1, not between 0 and 1"),
        (put("z", 5, float("-inf")), "z is -inf, not a finite number"),
        (put("top_ids", 5, [1.5] * 10), "top_ids contains values other than image ids"),
        (put("top_ids", 5, [100] * 10), "top_ids contains an image twice"),
        (put("top_ids", 5, [100, 101]), "top_ids and top_values differ in length"),
        (put("top_ids", 5, None), "top_ids is None, not a list"),
        (put("top_values", 5, [float("inf")] * 10), "top_values contains values other than finite numbers"),
        (put("runners_up", 5, ["a", 3]), "runners_up contains values other than names"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_hold_is_refused(
    labels: Dissection, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        checked_labels(change(labels.neurons), "neurons.parquet")


def test_an_older_versions_table_loads_and_says_what_it_lacks(
    labels: Dissection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = labels.neurons.drop(columns=["margin", "accuracy_low", "accuracy_high", "runners_up", "top_values", "dead"])
    older.to_parquet(tmp_path / "neurons.parquet")
    with caplog.at_level(logging.WARNING):
        found = Dissection.load(tmp_path)
    assert "lack margin, accuracy_low, accuracy_high, dead, top_values, runners_up, which older versions" in caplog.text
    assert found.neurons["margin"].isna().all()
    assert found.neurons["dead"].sum() == 2
    assert found.layers["interpretable"].tolist() == labels.layers["interpretable"].tolist()
    assert found.layers["proportion_null"].isna().all()  # no null.safetensors beside it
    found.save(tmp_path / "again")
    assert Dissection.load(tmp_path / "again").fingerprint() == found.fingerprint()


def test_concepts_that_the_set_does_not_hold(labels: Dissection) -> None:
    require_concepts(labels.neurons, ("a", "b", "c"), "abc", "labels")
    with pytest.raises(UserError, match=r"labels_dir=labels has 1 concepts that ab does not contain, e.g. 'c'"):
        require_concepts(labels.neurons, ("a", "b"), "ab", "labels")


@pytest.mark.parametrize(
    ("null", "message"),
    [
        ({"fc9": np.zeros(3)}, "draws for layer 'fc9', which has no labels"),
        ({"fc1": np.array([np.inf])}, "not a list of finite numbers"),
        ({"fc1": np.zeros((2, 2))}, "not a list of finite numbers"),
        (b"no safetensors file", r"null\.safetensors is damaged"),
        (b"", r"null\.safetensors is damaged"),
    ],
)
def test_a_null_that_is_not_the_labels(labels: Dissection, null: Any, message: str, tmp_path: Path) -> None:
    labels.save(tmp_path)
    file = tmp_path / "null.safetensors"
    if isinstance(null, bytes):
        file.write_bytes(null)
    else:
        save_file(null, file)
    with pytest.raises(UserError, match=message):
        Dissection.load(tmp_path)


def test_rows_that_were_edited_are_used_with_a_warning(
    labels: Dissection, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    labels.save(tmp_path)
    Dissection.load(tmp_path)
    assert caplog.text == ""
    edited = labels.neurons.assign(similarity=-labels.neurons["similarity"])
    edited.to_parquet(tmp_path / "neurons.parquet", index=False)
    assert Dissection.load(tmp_path).neurons["similarity"].iloc[0] == -labels.neurons["similarity"].iloc[0]
    assert "does not match the null.safetensors next to it: it was edited, or is damaged" in caplog.text


def test_csv_files_are_not_read_back(labels: Dissection, tmp_path: Path) -> None:
    labels.save(tmp_path)
    for name in ("neurons.csv", "layers.csv", "shares.csv"):
        (tmp_path / name).write_text("something else\n")
    assert Dissection.load(tmp_path).fingerprint() == labels.fingerprint()
    (tmp_path / "neurons.parquet").unlink()
    with pytest.raises(UserError, match="its CSV files cannot be loaded"):
        Dissection.load(tmp_path)
