"""Faces with one property changed: nothing else changes, and they define a neuron's true concept causally."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import emodissect.dissection.quality as quality
from emodissect.data.images import ImageSet
from emodissect.data.interventions import UNMOVED, Interventions
from emodissect.demo.sketches import CONCEPTS, Sketches
from emodissect.demo.sketches.appearance import draw_appearance
from emodissect.demo.sketches.drawing import draw_face
from emodissect.demo.sketches.faces import draw_faces
from emodissect.demo.sketches.interventions import Moved, move_faces
from emodissect.demo.sketches.parameters import PARAMETERS, draw_expression, draw_label
from emodissect.dissection.explanations import LabelExplainer, LinearExplainer, Part
from emodissect.dissection.quality.explained import explanation_table, labelling_parts
from emodissect.dissection.quality.truth import caused_concepts, dose_response
from emodissect.recording import LayerActivations
from emodissect.similarity import Pearson

FACES, VALUES = 6, 3


@pytest.fixture(scope="module")
def moved() -> Moved:
    return move_faces(FACES, VALUES, first=77, seed=3)


@pytest.fixture(scope="module")
def interventions(moved: Moved) -> Interventions:
    images = ImageSet(
        torch.from_numpy(moved.images)[:, None], torch.from_numpy(moved.labels), torch.arange(len(moved[0]))
    )
    face, number, value = (torch.from_numpy(column) for column in (moved.face, moved.moved, moved.value))
    return Interventions(images, face, number, value.float(), PARAMETERS)


def test_one_parameter_is_moved_and_nothing_else(moved: Moved) -> None:
    assert len(moved.images) == FACES * (1 + len(PARAMETERS) * VALUES)
    as_drawn = draw_faces(range(77, 77 + FACES), seed=3)
    still = moved.moved == UNMOVED
    assert (moved.images[still] == as_drawn.images).all()
    assert np.allclose(moved.presence[still], as_drawn.presence)
    assert moved.labels[still].tolist() == as_drawn.labels.tolist()
    rng = np.random.default_rng([3, 78])
    expression = draw_expression(rng, draw_label(rng))
    appearance = draw_appearance(rng)
    rows = (moved.face == 1) & (moved.moved == PARAMETERS.index("mouth_curve"))
    assert moved.value[rows].tolist() == [0, 0.5, 1]
    for image, set_to in zip(moved.images[rows], (-1.0, 0.0, 1.0), strict=True):
        assert (image == draw_face(expression._replace(mouth_curve=set_to), appearance)).all()
    smile = moved.presence[rows][:, CONCEPTS.index("Smile")]
    assert smile.tolist() == [0, 0, 1]


def test_a_property_set_to_what_it_was_changes_no_pixel(moved: Moved) -> None:
    drawn = draw_faces(range(77, 77 + FACES), seed=3)
    unchanged = 0
    for face, number, value, image in zip(moved.face, moved.moved, moved.value, moved.images, strict=True):
        if PARAMETERS[number] in ("tears", "chin", "nose_wrinkle") and value == drawn.expressions[face, number]:
            unchanged += 1
            assert (image == drawn.images[face]).all()
    assert unchanged > 3


def test_changes_are_from_the_same_face_unmoved_in_any_order(interventions: Interventions, moved: Moved) -> None:
    values = torch.from_numpy(moved.presence)
    changes = interventions.changes(values)
    assert len(changes) == FACES * len(PARAMETERS) * VALUES
    first = changes[: len(PARAMETERS) * VALUES]
    assert torch.equal(first, values[1 : 1 + len(first)] - values[0])
    order = torch.randperm(len(values))
    images = interventions.images
    shuffled = Interventions(
        ImageSet(images.images[order], images.labels[order], images.ids[order]),
        *(column[order] for column in (interventions.face, interventions.moved, interventions.value)),
        PARAMETERS,
    )
    assert shuffled.changes(values[order]).double().sum() == pytest.approx(changes.double().sum().item())


def test_interventions_tell_concepts_apart_that_go_along_with_each_other(
    interventions: Interventions, moved: Moved
) -> None:
    """Neurons that follow one concept but correlate almost as much with another on the probe set."""
    presence = torch.from_numpy(moved.presence).float()
    changes = interventions.changes(presence)
    caused = caused_concepts(changes, changes)
    assert (caused == torch.eye(25, dtype=torch.bool)).all()
    smile, eyes = (CONCEPTS.index(name) for name in ("Smile", "Twinkling or Crinkled Eyes"))
    drawn = torch.from_numpy(draw_faces(range(600), seed=0).presence).float()
    natural = torch.corrcoef(drawn[:, [smile, eyes]].t())[0, 1]
    apart = torch.nn.functional.cosine_similarity(changes[:, smile], changes[:, eyes], dim=0)
    assert natural > 0.7 > 0.1 > abs(apart)
    assert not caused_concepts(torch.zeros_like(changes[:, :1]), changes).any()


def test_dose_response_by_hand(interventions: Interventions, moved: Moved) -> None:
    """A neuron that is twice a property's position in its range, and one that depends on no property."""
    place = PARAMETERS.index("chin")
    own = interventions.moved == place
    activations = torch.zeros(len(own), 2)
    activations[own, 0] = 2 * interventions.value[own] + 0.01 * interventions.face[own] * interventions.value[own]
    table = dose_response(interventions, activations, torch.tensor([4.0, 0.0])).set_index(["neuron", "moved"])
    assert len(table) == 2 * len(PARAMETERS)
    row = table.loc[(0, "chin")]
    assert row["slope"] == pytest.approx((2 + 0.01 * 2.5) / 4)
    assert row["low"] < row["slope"] < row["high"]
    assert row["responses"] == pytest.approx([0, 0.25 + 0.0125 / 4, 0.5 + 0.025 / 4])
    assert (table.drop(index=(0, "chin"))["slope"] == 0).all()


def test_explanations_are_scored_by_the_changes_that_they_predict(interventions: Interventions, moved: Moved) -> None:
    drawn = torch.from_numpy(draw_faces(range(600), seed=0).presence).float()
    planted = quality.planted_mixtures(drawn, neurons=20, concepts=2)
    layer = LayerActivations.of("own", torch.arange(600), planted.activations)
    changes = interventions.changes(torch.from_numpy(moved.presence).float())
    spread = drawn.std(0, correction=0)
    true = Part((changes / spread) @ planted.weights.t(), changes)
    explainers = {"label": LabelExplainer(Pearson()), "linear": LinearExplainer()}
    table = explanation_table(labelling_parts(layer, drawn), explainers, changes=true).set_index("explanation")
    assert table["moved"]["linear"] > 0.95 > table["moved"]["label"]
    assert (table["moved_low"] < table["moved"]).all()


def test_drawn_data_offers_interventions_that_no_split_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emodissect.demo.sketches.source.MOVED_FACES", 2)
    data = Sketches(cache_dir=tmp_path, train=3, val=2, test=2)
    found = data.interventions(seed=1)
    assert found.names == PARAMETERS
    assert len(found.images) == 2 * (1 + 20 * 5)
    held: Tensor = torch.cat([split.ids for split in (data.splits.train, data.splits.val, data.splits.test)])
    assert not torch.isin(found.images.ids, held).any()
    assert tuple(found.images.annotations["presence"].names) == CONCEPTS
    assert (data.interventions(seed=1).images.images == found.images.images).all()
    assert (data.interventions(seed=2).images.images != found.images.images).any()
