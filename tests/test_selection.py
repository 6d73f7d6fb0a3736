"""Every selection on one layer of four neurons, worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from emodissect.core.errors import UserError
from emodissect.editing.selection import (
    AllNeurons,
    Fdr,
    Inverse,
    LabelledWith,
    NeuronAccuracy,
    RandomNeurons,
    Selection,
    Tau,
    WeightNorm,
    similarities,
)


@pytest.fixture
def neurons() -> pd.DataFrame:
    """Neuron 3 is dead, though its other columns would fit."""
    return pd.DataFrame(
        {
            "layer": "lin",
            "neuron": range(4),
            "concept": ["Tears", "Frown", "Tears", None],
            "similarity": [1.0, 0.0, -1.0, np.nan],
            "q_value": [0.01, 0.05, 0.5, 0.0],
            "accuracy": [0.9, 0.5, 0.1, 1.0],
            "dead": [False, False, False, True],
            "runners_up": [["Dimples"], ["Tears"], ["Frown"], []],
        }
    )


@pytest.fixture
def layer() -> nn.Module:
    linear = nn.Linear(2, 4)
    linear.weight.data = torch.tensor([[1.0, -3.0], [2.0, 2.0], [0.0, 1.0], [-5.0, 0.0]])  # sums 4, 4, 1, 5; mean 3.5
    return linear


@pytest.mark.parametrize(
    ("selection", "chosen"),
    [
        (Tau(-2.0), [1, 1, 1, 0]),
        (Tau(0.0), [1, 0, 0, 0]),
        (Tau(-0.5), [1, 1, 0, 0]),
        (Fdr(0.05), [1, 0, 0, 0]),
        (Fdr(0.1), [1, 1, 0, 0]),
        (NeuronAccuracy(0.5), [1, 0, 0, 0]),
        (NeuronAccuracy(0.05), [1, 1, 1, 0]),
        (LabelledWith(["Tears"]), [1, 0, 1, 0]),
        (LabelledWith("Frown"), [0, 1, 0, 0]),
        (LabelledWith(["Dimples"]), [0, 0, 0, 0]),
        (WeightNorm(), [1, 1, 0, 1]),
        (AllNeurons(), [1, 1, 1, 1]),
        (Inverse(Tau(0.0)), [0, 1, 1, 1]),
        (Inverse(WeightNorm()), [0, 0, 1, 0]),
    ],
)
def test_chosen(selection: Selection, chosen: list[int], neurons: pd.DataFrame, layer: nn.Module) -> None:
    mask = selection(neurons, layer)
    assert mask.dtype == torch.bool
    assert mask.int().tolist() == chosen


def test_random_takes_as_many_and_is_seeded(neurons: pd.DataFrame, layer: nn.Module) -> None:
    assert int(RandomNeurons(share=0.5)(neurons, layer).sum()) == 2
    drawn = [RandomNeurons(like=Tau(-0.5), seed=seed)(neurons, layer) for seed in range(300)]
    assert {int(mask.sum()) for mask in drawn} == {2}
    assert torch.equal(drawn[7], RandomNeurons(like=Tau(-0.5), seed=7)(neurons, layer))
    share = torch.stack(drawn).double().mean(0)
    torch.testing.assert_close(share, torch.full_like(share, 0.5), atol=0.1, rtol=0)


def test_mistakes(neurons: pd.DataFrame, layer: nn.Module) -> None:
    with pytest.raises(UserError, match=r"'Tear', which labels no neuron.*Did you mean 'Tears'"):
        LabelledWith(["Tear"])(neurons, layer)
    with pytest.raises(UserError, match="needs the concepts"):
        LabelledWith([])
    with pytest.raises(UserError, match="one of"):
        RandomNeurons()
    with pytest.raises(UserError, match=r"selection\.share=2"):
        RandomNeurons(share=2)
    with pytest.raises(UserError, match=r"selection\.level=5"):
        Fdr(5)
    with pytest.raises(UserError, match="no column 'q_value'"):
        Fdr()(neurons.drop(columns="q_value"), layer)
    with pytest.raises(UserError, match="ReLU has none"):
        WeightNorm()(neurons, nn.ReLU())


def test_what_they_say_of_themselves(neurons: pd.DataFrame) -> None:
    assert Inverse(Tau()).uses_labels
    assert not Inverse(WeightNorm()).uses_labels
    assert not RandomNeurons(like=Tau()).uses_labels
    assert similarities(neurons)[:3].tolist() == [1.0, 0.0, -1.0]
    assert similarities(neurons)[3].isnan()


def test_a_list_from_hydra_is_taken(neurons: pd.DataFrame, layer: nn.Module) -> None:
    concepts = OmegaConf.create({"concepts": ["Tears", "Frown"]}).concepts
    assert LabelledWith(concepts)(neurons, layer).tolist() == [True, True, True, False]
