"""The tiny CLIP: its tokenizer by hand, its loader, its warnings, and the accuracy of the included weights."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file

from emodissect.concepts import ClipScorer
from emodissect.concepts.concept_set import ConceptSet, concept_set
from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.data.images import Annotations, Batch, ImageSet
from emodissect.demo.sketches import CLASS_NAMES, CONCEPTS, captions, draw_faces
from emodissect.demo.tiny_clip import MODEL_NAME, WEIGHTS, TinyClip, WordTokenizer
from emodissect.demo.tiny_clip.figures import zero_shot
from emodissect.demo.tiny_clip.model import VOCABULARY
from emodissect.demo.tiny_clip.tokenizer import vocabulary, words_of
from emodissect.demo.tiny_clip.training import ContrastiveTraining, caption_vocabulary, save_tiny_clip

CONF = Path(__file__).parents[1] / "conf"


def _concepts(name: str) -> ConceptSet:
    return instantiate(OmegaConf.load(CONF / "concepts" / f"{name}.yaml"))


@pytest.fixture(scope="module")
def held_out() -> ImageSet:
    """Faces of the test split, on which the tiny CLIP was not trained."""
    ids = range(2_000_000, 2_000_600)
    drawn = draw_faces(ids)
    return ImageSet(
        torch.from_numpy(drawn.images).unsqueeze(1),
        torch.from_numpy(drawn.labels),
        torch.arange(ids.start, ids.stop),
        {"presence": Annotations(CONCEPTS, torch.from_numpy(drawn.presence).float())},
    )


def test_tokenizer_by_hand() -> None:
    tokenizer = WordTokenizer(("a", "smile"), context_length=6, vocab_size=8)
    assert tokenizer("A smile!").tolist() == [[2, 3, 4, 7, 0, 0]]
    assert tokenizer(["a, hat", "a a a a a a a"]).tolist() == [[2, 3, 1, 7, 0, 0], [2, 3, 3, 3, 3, 7]]
    assert tokenizer([""]).tolist() == [[2, 7, 0, 0, 0, 0]]
    assert tokenizer.unknown_words("a red Hat with a red smile") == ("red", "hat", "with")


def test_words() -> None:
    assert words_of("  A-b, (C) ﬁne_d été 2 ") == ["a", "b", "c", "fine", "d", "été", "2"]
    assert vocabulary(["b a", "A c", "a b"]) == ("a", "b", "c")


def test_a_vocabulary_that_does_not_fit() -> None:
    with pytest.raises(UserError, match="does not fit an embedding table of 8 rows"):
        WordTokenizer(list("abcde"), 6, 8)
    with pytest.raises(UserError, match="1 distinct"):
        WordTokenizer(["a", "a"], 6, 8)


def test_zero_shot_by_hand() -> None:
    classes = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.6, 0.4], [0.5, 0.1]])
    concepts = torch.tensor([[0.9, 0.0, 0.0], [0.8, 0.0, 0.0], [0.7, 1.0, 0.0], [0.1, 0.0, 0.0]])
    presence = torch.tensor([[1.0, 0.6, 0.0], [0.0, 0.4, 0.0], [0.5, 0.9, 0.0], [0.49, 0.0, 0.0]])
    found = zero_shot(classes, torch.tensor([0, 1, 1, 0]), concepts, presence, ("a", "b", "c"))
    assert found.accuracy == 0.75
    assert found.auroc == {"a": 0.75, "b": 0.75}  # c is in no image
    assert found.mean_auroc == 0.75


def test_shipped_weights_load_by_open_clips_own_loader() -> None:
    assert WEIGHTS.stat().st_size <= 8e6
    model = open_clip.create_model(MODEL_NAME, pretrained=str(WEIGHTS))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    stored = load_file(WEIGHTS)
    assert set(stored) == set(model.state_dict())
    assert open_clip.load_checkpoint(model, str(WEIGHTS)).missing_keys == []


def test_every_caption_word_is_known() -> None:
    clip = TinyClip()
    rng = np.random.default_rng(7)
    presence, labels = rng.random((400, len(CONCEPTS))), np.arange(400) % 7
    for text in (*captions(presence, labels, rng), *CONCEPTS, *CLASS_NAMES):
        assert clip.unknown_words(text) == ()


def test_an_unseen_word_is_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scorer = ClipScorer(TinyClip(), device="cpu", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the log says it; a Python warning beside it would say it twice
        scorer.text_embeddings(["Smile", "Zebra stripes"], Cache(tmp_path))
        assert caplog.text.count("was not trained on these words: 'zebra' and 'stripes' in 'Zebra stripes'.") == 1
        scorer.text_embeddings(_concepts("expressions25").names, Cache(tmp_path))
        scorer.text_embeddings(_concepts("fer7").names, Cache(tmp_path))
    assert caplog.text.count("was not trained") == 1


def test_config_and_missing_vocabulary(tmp_path: Path) -> None:
    clip = instantiate(OmegaConf.load(CONF / "clip" / "tiny.yaml"))
    assert clip.checkpoint == WEIGHTS
    (tmp_path / "mine.safetensors").write_bytes(WEIGHTS.read_bytes())
    with pytest.raises(UserError, match=r"vocabulary.*is missing"):
        TinyClip(str(tmp_path / "mine.safetensors"))
    with pytest.raises(UserError, match="does not exist"):
        TinyClip(str(tmp_path / "none.safetensors"))
    (tmp_path / VOCABULARY).write_bytes(WEIGHTS.with_name(VOCABULARY).read_bytes())
    assert TinyClip(str(tmp_path / "mine.safetensors")).fingerprint() == clip.fingerprint()


def test_zero_shot_classes_of_held_out_faces(held_out: ImageSet, tmp_path: Path) -> None:
    """Within ten points of supervised training (about 85 % on these faces), from the class names alone."""
    scorer = ClipScorer(TinyClip(), device="cpu", progress=False)
    scores = scorer.score(held_out, concept_set(CLASS_NAMES), CLASS_NAMES, Cache(tmp_path))
    accuracy = float((scores.values.argmax(dim=1) == held_out.labels).float().mean())
    assert accuracy >= 0.72


def test_concepts_of_held_out_faces(held_out: ImageSet, tmp_path: Path) -> None:
    """Mean AUROC of the cosine with a bare concept against its presence: at least .85."""
    concepts = _concepts("expressions25")
    scores = ClipScorer(TinyClip(), device="cpu", progress=False).score(
        held_out, concepts, CLASS_NAMES, Cache(tmp_path)
    )
    presence = held_out.annotations["presence"].values
    found = zero_shot(torch.zeros(len(held_out), 7), held_out.labels, scores.values, presence, concepts.names)
    assert len(found.auroc) >= 23
    assert found.mean_auroc >= 0.85
    assert min(found.auroc.values()) >= 0.6


def test_a_few_steps_learn_and_save(held_out: ImageSet, tmp_path: Path) -> None:
    torch.manual_seed(0)
    few = held_out.subset(range(48))
    tokenizer = WordTokenizer(caption_vocabulary(few, CLASS_NAMES, times=5), 28, 256)
    training = ContrastiveTraining(tokenizer, few, few, CLASS_NAMES)
    training.log = lambda *args, **named: None  # type: ignore[method-assign,assignment]
    optimizer = torch.optim.AdamW(training.model.parameters(), lr=2e-3)
    batch = Batch(few.images, few.labels, few.ids)
    losses = []
    for _ in range(10):
        loss = training.training_step(batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert np.mean(losses[-3:]) < np.mean(losses[:3]) - 0.1
    save_tiny_clip(training.model, tokenizer, tmp_path / "mine.safetensors")
    clip = TinyClip(str(tmp_path / "mine.safetensors"))
    assert clip.tokenizer(["a face"]).tolist() == tokenizer(["a face"]).tolist()
    for ours, theirs in zip(training.model.parameters(), clip.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)


def test_experiment_config() -> None:
    cfg = OmegaConf.load(CONF / "experiment" / "tiny_clip.yaml")
    assert cfg.task._target_ == "emodissect.demo.tiny_clip.training.train_tiny_clip"
    assert instantiate(cfg.task.augment).shift == 3
