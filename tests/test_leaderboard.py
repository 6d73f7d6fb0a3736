"""The leaderboard: finding true concepts, predicting, ranks and intervals."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch
from torch import Tensor

import emodissect.similarity as sim
from emodissect.core.statistics import wilson
from emodissect.dissection.explanations import (
    BestConceptExplainer,
    ConstantExplainer,
    Explanation,
    LabelExplainer,
    LinearExplainer,
    Part,
)
from emodissect.dissection.quality.explained import labelling_parts
from emodissect.dissection.quality.leaderboard import Case, compared_by, leaderboard, names_truth
from emodissect.recording import LayerActivations


def case(activations: Tensor, scores: Tensor, **others: object) -> Case:
    layer = LayerActivations.of("own", torch.arange(len(activations)), activations)
    return Case(labelling_parts(layer, scores), **others)  # type: ignore[arg-type]


def test_methods_are_ranked_by_every_test() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1200, 8, generator=generator)
    concepts = torch.arange(24) % 8
    noise = torch.randn(1200, 24, generator=generator)
    single = scores[:, concepts] + noise
    pair = scores[:, concepts] + 0.8 * scores[:, (concepts + 1) % 8] + 0.5 * noise
    truth = torch.nn.functional.one_hot(concepts, 8).bool()
    changes = Part(pair[:300] - pair[300:600], scores[:300] - scores[300:600])
    cases = [
        case(single, scores, truths={"planted": truth}),
        case(pair, scores, truths={"planted": truth, "trained": truth}, changes=changes, predicts=True),
    ]
    explainers = {
        "constant": ConstantExplainer(),
        "pearson": LabelExplainer(sim.Pearson()),
        "best": BestConceptExplainer(),
        "linear": LinearExplainer(),
    }
    board = leaderboard(cases, explainers)
    assert compared_by(board) == ["planted", "trained", "predicts", "predicts changes"]
    assert board["method"].iloc[0] == "linear"
    assert board["method"].iloc[-1] == "constant"
    by = board.set_index("method")
    assert by.loc["constant", "planted"] == pytest.approx(1 / 8)
    right = round(by.loc["pearson", "planted"] * 48)
    assert (by.loc["pearson", "planted_low"], by.loc["pearson", "planted_high"]) == pytest.approx(wilson(right, 48))
    assert by.loc["linear", "predicts"] > by.loc["best", "predicts"] + 0.1
    assert by.loc["linear", "predicts changes"] > by.loc["best", "predicts changes"] + 0.1
    assert by.loc["constant", "rank"] == 4
    assert (by["seconds"] >= 0).all()


def test_a_name_is_right_where_its_heaviest_concept_is_and_raises_the_neuron() -> None:
    weights = torch.tensor([[0.9, 0.2], [-0.9, 0.2], [0.1, 0.8], [0.0, 0.0]])
    found = Explanation(
        torch.tensor([[0, 1]] * 3 + [[-1, -1]]), weights, weights, weights, torch.zeros(3), torch.ones(3)
    )
    truth = torch.tensor([[True, False, False]] * 4)
    assert names_truth(found, truth).tolist() == [True, False, False, False]


def test_dead_neurons_and_neurons_without_a_truth_take_no_part() -> None:
    scores = torch.randn(200, 3, generator=torch.Generator().manual_seed(1))
    activations = torch.stack([scores[:, 0], scores[:, 1], torch.ones(200)], 1)
    truth = torch.tensor([[True, False, False], [False] * 3, [False, False, True]])
    board = leaderboard([case(activations, scores, truths={"planted": truth})], {"best": BestConceptExplainer()})
    assert board["planted"][0] == 1.0
    assert board["planted_low"][0] == pytest.approx(wilson(1, 1)[0])


def test_a_method_of_ones_own_joins() -> None:
    """The example of docs/leaderboard.md."""
    text = (Path(__file__).parents[1] / "docs" / "leaderboard.md").read_text()
    found: dict[str, type] = {"__name__": "mine"}  # type: ignore[dict-item]
    sys.modules["mine"] = types.ModuleType("mine")
    try:
        exec(text.split("```python\n")[1].split("```")[0], found)
    finally:
        del sys.modules["mine"]
    scores = torch.rand(800, 6, generator=torch.Generator().manual_seed(2))
    concepts = torch.arange(12) % 6
    activations = scores[:, concepts] + 0.2 * torch.randn(800, 12, generator=torch.Generator().manual_seed(3))
    cases = [case(activations, scores, truths={"planted": torch.nn.functional.one_hot(concepts, 6).bool()})]
    board = leaderboard(cases, {"mine": found["TopHalf"](), "constant": ConstantExplainer()})
    assert board["method"].tolist() == ["mine", "constant"]
    assert board["planted"][0] == 1.0
