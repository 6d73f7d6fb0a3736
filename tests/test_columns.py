"""One registry of columns: a column added there appears wherever its table is shown."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from report_samples import dissection, faces, layer_row
from rich.console import Console
from test_dissection import CLASSES, CONCEPTS, World, world  # noqa: F401
from test_report import payload, said

from emodissect.dissection.labels import Dissection, Labelling, label_neurons
from emodissect.lightning import tracking
from emodissect.report import columns
from emodissect.report.columns import Column
from emodissect.report.terminal import frame_table
from emodissect.similarity import Pearson

NEW = Column("skew", "skewness", 1, "of its activations", short="skew")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What is sent to loggers, by name."""
    found: dict[str, Any] = {}

    class Kept:
        def table(self, name: str, frame: pd.DataFrame, step: int | None = None) -> None:
            found[name] = frame

        def summary(self, values: dict[str, float]) -> None:
            found.update(values)

        def histogram(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(tracking, "sinks_of", lambda loggers: [Kept()])
    return found


def test_a_column_added_to_the_neuron_table_shows_up_everywhere(
    monkeypatch: pytest.MonkeyPatch, sent: dict[str, Any], tmp_path: Path
) -> None:
    monkeypatch.setattr(columns, "NEURONS", (*columns.NEURONS, NEW))
    source = dissection()
    source.neurons = source.neurons.assign(skew=np.where(source.neurons["dead"], np.nan, -1.25))
    html = source.html()
    assert 'title="of its activations">skewness</th>' in html  # without scripts
    assert " −1.2 " in said(html)
    data = payload(html)
    assert [field["title"] for field in data["fields"]].count("skewness") == 1
    assert data["neurons"]["skew"][:2] == [None, -1.25]
    labels = Dissection(source.neurons, source.layers, source.shares)
    tracking.log_dissection([DummyLogger()], labels, faces(), CLASSES)
    assert sent["dissect/neurons"]["skew"].iloc[1] == sent["dissect/neuron_cards"]["skew"].iloc[0] == -1.25
    labels.save(tmp_path)
    assert pd.read_csv(tmp_path / "neurons.csv")["skew"].iloc[1] == -1.25
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(frame_table(source.neurons.head(2), "", columns.NEURONS, console=console))
    assert "skew" in (text := console.export_text())
    assert "−1.2" in text


def test_a_column_added_to_the_layer_table_shows_up_everywhere(
    monkeypatch: pytest.MonkeyPatch, sent: dict[str, Any]
) -> None:
    monkeypatch.setattr(columns, "LAYERS", (*columns.LAYERS, NEW))
    source = dissection()
    source.layers = source.layers.assign(skew=[0.5, 0.25])
    assert ">skewness</th>" in source.html()
    labels = Dissection(source.neurons, source.layers, source.shares)
    tracking.log_dissection([DummyLogger()], labels, faces(), CLASSES)
    assert (sent["dissect/lin2/skew"], sent["dissect/layers"]["skew"].tolist()) == (0.25, [0.5, 0.25])


def test_lists_are_one_text_for_loggers_and_csv(sent: dict[str, Any], tmp_path: Path) -> None:
    source = dissection()
    labels = Dissection(source.neurons, source.layers, source.shares)
    tracking.log_dissection([DummyLogger()], labels, faces(), CLASSES)
    labels.save(tmp_path)
    first = ";".join(map(str, source.neurons["top_ids"].iloc[1]))
    assert pd.read_csv(tmp_path / "neurons.csv")["top_ids"].iloc[1] == first
    assert sent["dissect/neurons"]["top_ids"].iloc[1] == first


def test_the_registry_knows_every_column_that_is_computed(world: World) -> None:  # noqa: F811
    settings = Labelling(draws=10, top_images=2)
    found = label_neurons({"lin": world.layer}, world.scores, Pearson(), world.probe, CONCEPTS, CLASSES, settings)
    assert {column.name for column in columns.NEURONS} >= set(found.neurons)
    assert {column.name for column in columns.LAYERS} == set(found.layers)
    assert {column.name for column in columns.LAYERS} == set(layer_row(dissection().neurons))
    assert {column.name for column in columns.SHARES} == set(found.shares)


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        ("id", 1234, "1234"),
        ("count", 1234.0, "1,234"),
        ("percent", 0.1234, "12.3 %"),
        ("points", -0.0021, "−0.21"),
        ("p", 0.0123, ".012"),
        ("setting", -0.5, "−0.5"),
        ("setting", "weight", "weight"),
        ("flag", np.True_, "yes"),
        ("list", [1, 2], "1, 2"),
        ("figure", 0.5, "0.5000"),
        (2, 0.126, "0.13"),
        (2, float("nan"), "–"),
        ("text", None, "–"),
    ],
)
def test_forms(form: str | int, value: Any, text: str) -> None:
    assert Column("x", form=form).shown(value) == text


def test_names_are_unique_within_each_table() -> None:
    for table in vars(columns).values():
        if isinstance(table, tuple) and table and isinstance(table[0], Column):
            names = [column.name for column in table]
            assert len(names) == len(set(names))
