"""CLIP's image encoder in other runtimes gives the same embeddings as torch, or is refused."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import Tensor

from emodissect.concepts import ClipScorer, clip_runtimes
from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.data.images import ImageSet
from emodissect.demo.sketches import draw_faces
from emodissect.demo.tiny_clip import TinyClip

pytest.importorskip("onnxruntime", reason="the extra clip-cpu is not installed")
pytest.importorskip("openvino", reason="the extra clip-cpu is not installed")

OTHERS = [name for name in clip_runtimes.RUNTIMES if name != "torch"]


@pytest.fixture(scope="module")
def faces() -> ImageSet:
    drawn = draw_faces(range(24))
    return ImageSet(
        torch.as_tensor(drawn.images).reshape(24, 1, 48, 48), torch.as_tensor(drawn.labels).long(), torch.arange(24)
    )


@pytest.mark.parametrize("runtime", OTHERS)
def test_embeddings_are_torchs(runtime: str, faces: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = Cache(tmp_path)
    scorer = ClipScorer(TinyClip(runtime=runtime), batch_size=10, progress=False)
    plain = ClipScorer(TinyClip(), batch_size=10, progress=False)
    expected = plain.image_embeddings(faces, cache)
    with caplog.at_level(logging.INFO):
        found = scorer.image_embeddings(faces, cache)  # 24 images in batches of 10: the last is smaller
    assert float((found * expected).sum(1).min()) > 0.999
    assert not torch.equal(found, expected)
    assert "smallest cosine" in caplog.text
    assert scorer.fingerprint() != plain.fingerprint()
    assert len(list((tmp_path / "clip_towers").glob("*/image_tower.onnx"))) == 1
    assert len(list((tmp_path / "clip_images").glob("*/embeddings.safetensors"))) == 2  # each runtime has its own


def test_a_runtime_that_gives_other_embeddings_is_refused(
    faces: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(path: Path) -> clip_runtimes.Tower:
        def tower(images: Tensor) -> Tensor:
            return torch.randn(len(images), 64)

        return tower

    monkeypatch.setattr(clip_runtimes, "_openvino", wrong)
    width = ClipScorer(TinyClip(), progress=False).image_embeddings(faces, Cache(tmp_path)).shape[1]
    monkeypatch.setattr(torch, "randn", lambda n, _: torch.ones(n, width))
    with pytest.raises(UserError, match=r"clip\.runtime=openvino, the embeddings .* below 0\.999"):
        ClipScorer(TinyClip(runtime="openvino"), progress=False).image_embeddings(faces, Cache(tmp_path))


def test_mistakes_are_reported_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="Did you mean 'onnx_int8'"):
        ClipScorer(TinyClip(runtime="onnx"))
    monkeypatch.setattr(clip_runtimes, "find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"emodissect\[clip-cpu\]"):
        ClipScorer(TinyClip(runtime="openvino"))
    monkeypatch.undo()
    with pytest.raises(UserError, match="runs only on CPUs"):
        clip_runtimes.check_runtime("openvino", torch.device("meta"))
