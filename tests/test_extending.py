"""docs/extending.md: each example is written to files unchanged, selected by config, and used."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from torch import nn

import emodissect as emo
from emodissect.editing.fast.edited_logits import EditedLogits
from emodissect.lightning.sinks import sink_for
from emodissect.models.inference import Inference
from emodissect.similarity import Pearson

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"^`(mine/[^`]+)`\n\n```\w+\n(.*?)```", PAGE, flags=re.S | re.M))


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("extending")
    for name, text in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    sys.path.insert(0, str(root))
    yield root / "mine" / "conf"
    sys.path.remove(str(root))


def chosen(mine: Path, group: str, name: str, *words: str) -> Any:
    cfg = emo.compose("edit", [f"hydra.searchpath=[file://{mine}]", f"{group}={name}", *words])
    return instantiate(cfg[group])


def test_each_example_is_short_and_is_two_files() -> None:
    python = [name for name in FILES if name.endswith(".py")]
    assert len(python) == len(FILES) - len(python) == 6
    assert all(len(text.splitlines()) <= 20 for text in FILES.values())


def test_the_similarity_has_a_null(mine: Path) -> None:
    similarity = chosen(mine, "similarity", "spearman")
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (60, 1, 4, 4), dtype=torch.uint8, generator=generator)
    scores = torch.rand(60, 3, generator=generator)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    found = emo.dissect(
        *(network, images, ["a", "b", "c"]),
        layers="1",
        scorer=scores,
        similarity=similarity,
        null_draws=99,
        progress=False,
    )
    values = network(images / 255).detach()
    ranks = pd.DataFrame(np.concatenate([values, scores], axis=1)).corr("spearman").to_numpy()[:5, 5:]
    np.testing.assert_allclose(found["1"]["similarity"], ranks.max(1), atol=1e-5)
    assert found["1"]["p_value"].between(0.01, 1).all()
    assert isinstance(Pearson(), type(similarity).__mro__[1])


def test_the_selection_and_the_rule_make_an_edit(mine: Path) -> None:
    layer = nn.Linear(4, 20)
    selected = chosen(mine, "selection", "weakest", "selection.share=0.25")(None, layer)
    assert int(selected.sum()) == 5
    operation = chosen(mine, "edit", "squash", "edit.strength=2")(selected, torch.full((20,), 0.5))
    expected = torch.where(selected, 1 + 2 * torch.tensor(0.5).tanh(), 1.0)
    network = nn.Sequential(layer)
    torch.testing.assert_close(emo.bake(network, emo.Edit("0", operation))["0.bias"], layer.bias)
    torch.testing.assert_close(
        emo.bake(network, emo.Edit("0", operation))["0.weight"], layer.weight.detach() * expected[:, None]
    )


def test_the_source_of_images_has_three_splits(mine: Path) -> None:
    splits = chosen(mine, "data", "discs", "data.radius=5").splits
    assert [len(split) for split in (splits.train, splits.val, splits.test)] == [30, 30, 30]
    assert splits.train.images[0].max() == 200


def test_the_alternative_is_fitted(mine: Path) -> None:
    cfg = emo.compose("edit", [f"hydra.searchpath=[file://{mine}]", "+baseline@baseline.prior=prior"])
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    images = emo.image_set(torch.rand(30, 1, 2, 2), torch.arange(30) % 3 % 2, as_given=True)
    kept = EditedLogits(Inference(lambda x: x, network), "1", images)
    predict, _ = instantiate(cfg.baseline.prior).fit(kept)
    assert predict(kept).softmax(1).mean(0)[0] > kept.before.logits.softmax(1).mean(0)[0]


def test_the_logging_back_end_prints(mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg = emo.compose("edit", [f"hydra.searchpath=[file://{mine}]", "logger=printed"])
    sink = sink_for(instantiate(cfg.logger.printed))
    sink.summary({"edit/delta": 0.5})
    assert capsys.readouterr().out == "edit/delta 0.5\n"
