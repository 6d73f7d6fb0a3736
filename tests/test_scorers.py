"""Concept scores: annotations by hand, CLIP against open_clip's own code, cached, resumed, offline."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import save_file
from torch.nn import functional as F

from emodissect.concepts import AnnotationScorer, ClipScorer, ConceptScores, OpenClip, clip_weights
from emodissect.concepts.clip import TEMPLATES, prompts, resolve_device, resolve_precision, resolve_templates
from emodissect.concepts.clip_images import ClipImages
from emodissect.concepts.concept_set import ConceptSet, concept_set
from emodissect.core.cache import Cache
from emodissect.core.errors import UserError
from emodissect.data.images import Annotations, ImageSet
from emodissect.demo.tiny_clip import TinyClip

CONF = Path(__file__).parents[1] / "conf"
CLASSES = ("Angry", "Happy", "Sad")
ARCHITECTURE = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def _images(count: int = 9, channels: int = 1, side: int = 20, seed: int = 0) -> ImageSet:
    made = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, channels, side, side), generator=made, dtype=torch.uint8)
    return ImageSet(pixels, torch.arange(count) % 3, torch.arange(count) * 7 + 3)


# ---------------------------------------------------------------------------------------------- scores


def test_scores_are_placed_by_id(tmp_path: Path) -> None:
    scores = ConceptScores(torch.tensor([5, 2, 9]), ("a", "b"), torch.tensor([[5.0, 0], [2, 1], [9, 2]]), {"x": 1})
    assert scores.at(torch.tensor([9, 5])).tolist() == [[9, 2], [5, 0]]
    assert scores.at(torch.tensor([5, 2, 9])) is scores.values
    scores.save(tmp_path / "s.safetensors")
    again = ConceptScores.load(tmp_path / "s.safetensors")
    assert again.names == scores.names
    assert again.source == {"x": 1}
    assert torch.equal(again.ids, scores.ids)
    assert torch.equal(again.values, scores.values)
    with pytest.raises(UserError, match=r"2 of 3 images have no concept scores.*\[4, 11\]"):
        scores.at(torch.tensor([4, 5, 11]))


def test_scores_refuse_what_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shape"):
        ConceptScores(torch.tensor([1]), ("a", "b"), torch.zeros(1, 3))
    (tmp_path / "s.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="contains no concept scores"):
        ConceptScores.load(tmp_path / "s.safetensors")


# ---------------------------------------------------------------------------------------------- annotations

CONCEPTS = concept_set({"Smile": ["happy"], "Tears": ["sad", "ANGER"], "Happy": None}, "mine")


def test_labels_by_hand() -> None:
    images = _images(3)
    scores = AnnotationScorer("labels").score(images, CONCEPTS, CLASSES)
    assert scores.values.tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert torch.equal(scores.ids, images.ids)
    assert scores.source == {"scorer": "annotations", "source": "labels"}


def test_votes_by_hand() -> None:
    votes = Annotations(("neutral", "happiness", "sadness", "anger"), torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2))
    images = _images(2)
    images = ImageSet(images.images, images.labels, images.ids, {"votes": votes})
    scores = AnnotationScorer("votes").score(images, CONCEPTS, CLASSES)
    assert scores.values[0].tolist() == pytest.approx([0.2, 0.7, 0.2])


def test_presence_by_name() -> None:
    presence = Annotations(("tears", "HAPPY", "Smile ", "Hat"), torch.tensor([[0.1, 0.2, 0.3, 0.4]] * 2))
    images = _images(2)
    images = ImageSet(images.images, images.labels, images.ids, {"presence": presence})
    scores = AnnotationScorer("presence").score(images, CONCEPTS, CLASSES)
    assert scores.values[1].tolist() == pytest.approx([0.3, 0.1, 0.2])


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize("id_column", ["image_id", "id"])
def test_a_users_table(tmp_path: Path, kind: str, id_column: str) -> None:
    images = _images(3)
    frame = pd.DataFrame({"smile": [1, 2, 3, 4], "Other": list("abcd"), id_column: [17, 3, 10, 99]})
    frame["Tears"], frame["happy"] = [0.5, 0.25, 0.125, 0], [7, 8, 9, 10]
    path = tmp_path / f"mine.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    scores = AnnotationScorer(str(path)).score(images, CONCEPTS, CLASSES)
    assert scores.values.tolist() == [[2, 0.25, 8], [3, 0.125, 9], [1, 0.5, 7]]
    assert scores.source["source"] == f"mine.{kind}"
    assert len(scores.source["sha256"]) == 64


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,Smile,Tears\n3,1,1\n10,1,1\n17,1,1\n", r"1 of 3 concepts are missing from the table.*'Happy'"),
        ("image_id,Smiles,Tears,Happy\n3,1,1,1\n10,1,1,1\n17,1,1,1\n", r"'Smile'.*Did you mean 'Smiles'"),
        ("image,Smile,Tears,Happy\n3,1,1,1\n", "has no column 'image_id'"),
        ("image_id,Smile,Tears,Happy\n3,1,1,1\n3,1,1,1\n", "contains an image twice"),
        ("image_id,Smile,Tears,Happy\n0,1,1,1\n1,inf,1,1\n", "no finite number in row 2 of the column 'Smile'"),
        ("image_id,Smile,Tears,Happy\n0,1,1e39,1\n", "no finite number in row 1 of the column 'Tears'"),
        ("image_id,Smile,Tears,Happy\n0,1,1,1\n1.5,1,1,1\n", "has no integer in row 2"),
        ("image_id,Smile,Tears,Happy\ninf,1,1,1\n", "has no integer in row 1"),
        ("image_id,Smile,Tears,Happy\nx,1,1,1\n3,1,1,1\n", "has no integer in row 1"),
        (
            "image_id,Smile,Tears,Happy\n3,1,1,1\n10,1,,1\n17,1,1,1\n",
            r"no finite number in row 2 of the column 'Tears'",
        ),
        ("image_id,Smile,Tears,Happy\n3,1,1,1\n", r"2 of 3 images have no concept scores"),
        ("", "cannot be read"),
    ],
)
def test_a_faulty_table(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mine.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        AnnotationScorer(str(tmp_path / "mine.csv")).score(_images(3), CONCEPTS, CLASSES)


def test_what_annotations_cannot_tell(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="Did you mean 'labels'"):
        AnnotationScorer("label")
    with pytest.raises(UserError, match="does not exist"):
        AnnotationScorer(str(tmp_path / "none.csv"))
    with pytest.raises(UserError, match=r"votes needs annotations.*FER\+.*It has: labels"):
        AnnotationScorer("votes").score(_images(3), CONCEPTS, CLASSES)
    with pytest.raises(UserError, match=r"1 of 1 in plain have none: 'Hat'"):
        AnnotationScorer("labels").score(_images(3), concept_set(["Hat"], "plain"), CLASSES)
    with pytest.raises(UserError, match="has the class 'joyful'"):
        AnnotationScorer("labels").score(_images(3), concept_set({"Smile": "joyful"}), CLASSES)


# ---------------------------------------------------------------------------------------------- templates


def test_templates() -> None:
    assert resolve_templates("bare") == resolve_templates(["{}"]) == resolve_templates("{}") == ("{}",)
    assert len(TEMPLATES["imagenet"]) == 80
    assert all(template.count("{}") == 1 for ensemble in TEMPLATES.values() for template in ensemble)
    assert prompts("a {b}", ("x {}", "{}")) == ["x a {b}", "a {b}"]
    with pytest.raises(UserError, match=r"must contain \{\} exactly once"):
        resolve_templates(["a face"])
    with pytest.raises(UserError, match="empty"):
        resolve_templates([])


# ---------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 48, 48), (3, 60, 91), (1, 300, 250), (3, 32, 32)])
def test_preprocessing_is_open_clips_own(mode: str, channels: int, height: int, width: int) -> None:
    """Differs by at most one grey level of 255, .1 of a level on average (uint8 rounding in the resampling)."""
    made = torch.Generator().manual_seed(1)
    small = torch.rand(4, channels, 9, 9, generator=made)
    pixels = (F.interpolate(small, (height, width), mode="bicubic") * 255).clamp(0, 255).to(torch.uint8)
    cfg = open_clip.transform.PreprocessCfg(size=32, resize_mode=mode)
    theirs = open_clip.transform.image_transform_v2(cfg, is_train=False)
    expected = torch.stack([theirs(Image.fromarray(p.permute(1, 2, 0).squeeze(-1).numpy())) for p in pixels])
    ours = ClipImages.of(vars(cfg))(pixels)
    levels = (ours - expected).abs() * torch.tensor(cfg.std).view(1, 3, 1, 1) * 255
    assert ours.shape == expected.shape == (4, 3, 32, 32)
    assert levels.max() < 1.01
    assert levels.mean() < 0.1


# ---------------------------------------------------------------------------------------------- CLIP


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> OpenClip:
    """A small architecture with random weights, saved to a file and loaded by the real code."""
    folder = tmp_path_factory.mktemp("clip")
    (folder / "small-test-clip.json").write_text(json.dumps(ARCHITECTURE))
    open_clip.add_model_config(folder / "small-test-clip.json")
    torch.manual_seed(0)
    model = open_clip.create_model("small-test-clip")
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "small.safetensors")
    torch.save(model.state_dict(), folder / "small.pt")
    return OpenClip("small-test-clip", weights=str(folder / "small.safetensors"))


def _by_hand(clip: OpenClip, images: ImageSet, names: tuple[str, ...], templates: tuple[str, ...]) -> torch.Tensor:
    """One image and one prompt at a time, through open_clip's own functions."""
    model, _, transform = open_clip.create_model_and_transforms(clip.model_name, pretrained=clip.weights)
    model.eval()
    tokenizer = clip.tokenizer
    rows = []
    with torch.no_grad():
        for pixels in images.images:
            picture = transform(Image.fromarray(pixels.permute(1, 2, 0).squeeze(-1).numpy()))
            rows.append(F.normalize(model.encode_image(picture[None]), dim=-1)[0])
        texts = []
        for name in names:
            each = [F.normalize(model.encode_text(tokenizer([t.format(name)])), dim=-1)[0] for t in templates]
            texts.append(F.normalize(torch.stack(each).mean(0), dim=0))
    return torch.stack(rows) @ torch.stack(texts).T


NAMES = concept_set(["Smile", "Wide Open Eyes", "a hat"])


@pytest.mark.parametrize("templates", [("{}",), ("{}", "a face with {}", "{} face")])
@pytest.mark.parametrize("channels", [1, 3])
def test_scores_are_open_clips_cosines(
    small: OpenClip, tmp_path: Path, templates: tuple[str, ...], channels: int
) -> None:
    images = _images(7, channels, side=32)  # of the model's own size: no resampling, so equal to rounding
    scorer = ClipScorer(small, templates, batch_size=4, shard_size=3, device="cpu", progress=False)
    scores = scorer.score(images, NAMES, CLASSES, Cache(tmp_path))
    torch.testing.assert_close(scores.values, _by_hand(small, images, NAMES.names, templates), atol=2e-6, rtol=1e-5)
    assert torch.equal(scores.ids, images.ids)
    assert scores.names == NAMES.names


def test_resampled_images_score_alike(small: OpenClip, tmp_path: Path) -> None:
    images = _images(7, side=48)
    scores = ClipScorer(small, device="cpu", progress=False).score(images, NAMES, CLASSES, Cache(tmp_path))
    torch.testing.assert_close(scores.values, _by_hand(small, images, NAMES.names, ("{}",)), atol=5e-3, rtol=0)


class _Counted:
    """Counts the images and texts that are embedded."""

    def __init__(self, clip: OpenClip, monkeypatch: pytest.MonkeyPatch, fail_after: int | None = None) -> None:
        self.images = self.texts = 0
        of_images, of_text = clip.model.encode_image, clip.model.encode_text

        def encode_image(x: torch.Tensor) -> torch.Tensor:
            if fail_after is not None and self.images >= fail_after:
                raise KeyboardInterrupt
            self.images += len(x)
            return of_images(x)

        def encode_text(x: torch.Tensor) -> torch.Tensor:
            self.texts += len(x)
            return of_text(x)

        monkeypatch.setattr(clip.model, "encode_image", encode_image)
        monkeypatch.setattr(clip.model, "encode_text", encode_text)


def test_a_second_concept_set_embeds_no_image(small: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = _Counted(small, monkeypatch)
    images, cache = _images(9), Cache(tmp_path)
    scorer = ClipScorer(small, batch_size=4, shard_size=5, device="cpu", progress=False)
    first = scorer.score(images, NAMES, CLASSES, cache)
    assert (counted.images, counted.texts) == (9, 3)
    again = scorer.score(images, NAMES, CLASSES, cache)
    assert (counted.images, counted.texts) == (9, 3)
    assert torch.equal(first.values, again.values)
    scorer.score(images, concept_set(["Smile", "Frown"]), CLASSES, cache)
    assert (counted.images, counted.texts) == (9, 5)
    # Other ids and labels, the same pixels: nothing new. Other pixels: only their shard.
    relabelled = ImageSet(images.images, images.labels + 1, images.ids + 100)
    scorer.score(relabelled, NAMES, CLASSES, cache)
    assert counted.images == 9
    changed = images.images.clone()
    changed[-1, 0, 0, 0] ^= 1
    scorer.score(ImageSet(changed, images.labels, images.ids), NAMES, CLASSES, cache)
    assert counted.images == 9 + 4
    ClipScorer(small, ["a {}"], shard_size=5, device="cpu", progress=False).score(images, NAMES, CLASSES, cache)
    assert (counted.images, counted.texts) == (13, 8)


def test_a_fresh_process_needs_no_network_when_all_stands(
    small: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path)
    ClipScorer(small, device="cpu", progress=False).score(_images(), NAMES, CLASSES, cache)
    monkeypatch.setattr(open_clip, "create_model", lambda *a, **k: pytest.fail("the network was loaded"))
    fresh = OpenClip(small.model_name, weights=small.weights)
    ClipScorer(fresh, device="cpu", progress=False).score(_images(), NAMES, CLASSES, cache)


def test_an_interrupted_run_goes_on(small: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, cache = _images(9), Cache(tmp_path)
    scorer = ClipScorer(small, batch_size=3, shard_size=3, device="cpu", progress=False)
    with monkeypatch.context() as patched:
        _Counted(small, patched, fail_after=6)
        with pytest.raises(KeyboardInterrupt):
            scorer.image_embeddings(images, cache)
    counted = _Counted(small, monkeypatch)
    resumed = scorer.image_embeddings(images, cache)
    assert counted.images == 3
    whole = ClipScorer(small, batch_size=9, device="cpu", progress=False).image_embeddings(
        images, Cache(tmp_path / "b")
    )
    torch.testing.assert_close(resumed, whole, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole.norm(dim=1), torch.ones(9))


def test_other_weights_are_other_embeddings(small: OpenClip, tmp_path: Path) -> None:
    torch.manual_seed(1)
    other = open_clip.create_model(small.model_name)
    save_file({k: v.contiguous() for k, v in other.state_dict().items()}, tmp_path / "small.safetensors")
    cache = Cache(tmp_path / "cache")
    a = ClipScorer(small, device="cpu", progress=False)
    b = ClipScorer(
        OpenClip(small.model_name, weights=str(tmp_path / "small.safetensors")), device="cpu", progress=False
    )
    weights = [scorer.fingerprint()["clip"]["parameters"]["weights"] for scorer in (a, b)]
    assert weights[0] != weights[1]
    assert not torch.allclose(a.image_embeddings(_images(), cache), b.image_embeddings(_images(), cache))
    assert json.loads(json.dumps(a.fingerprint())) == a.fingerprint()


def test_plain_state_dict_and_bf16(small: OpenClip, tmp_path: Path) -> None:
    pickled = OpenClip(small.model_name, weights=str(small.weights).replace(".safetensors", ".pt"))
    cache = Cache(tmp_path)
    a = ClipScorer(small, device="cpu", progress=False).image_embeddings(_images(), cache)
    b = ClipScorer(pickled, device="cpu", progress=False).image_embeddings(_images(), cache)
    assert torch.equal(a, b)
    half = ClipScorer(small, device="cpu", precision="bf16", progress=False)
    assert half.fingerprint()["precision"] == "bf16"
    c = half.image_embeddings(_images(), cache)
    assert not torch.equal(a, c)
    torch.testing.assert_close(a, c, atol=0.05, rtol=0)


def test_openais_archives_give_their_weights_and_their_program_is_not_run(
    small: OpenClip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_clip.create_model("small-test-clip", pretrained=small.weights)
    torch.jit.trace_module(model, {"encode_image": torch.rand(2, 3, 32, 32)}).save(str(tmp_path / "traced.pt"))
    monkeypatch.setattr(torch.jit, "load", lambda *args, **kwargs: pytest.fail("the archive's program was loaded"))
    read = OpenClip("small-test-clip", weights=str(tmp_path / "traced.pt")).model.state_dict()
    assert all(torch.equal(read[name], value) for name, value in model.state_dict().items())


def test_progress_bar_runs(small: OpenClip, tmp_path: Path) -> None:
    ClipScorer(small, device="cpu", shard_size=4).score(_images(), NAMES, CLASSES, Cache(tmp_path))


def test_many_concepts(small: OpenClip, tmp_path: Path) -> None:
    names = concept_set([f"word {i}" for i in range(300)])
    scorer = ClipScorer(small, batch_size=64, shard_size=128, device="cpu", progress=False)
    scores = scorer.score(_images(), names, CLASSES, Cache(tmp_path))
    alone = scorer.text_embeddings(["word 271"], Cache(tmp_path))
    torch.testing.assert_close(scores.values[:, 271], scorer.image_embeddings(_images(), Cache(tmp_path)) @ alone[0])


def test_settings_that_cannot_be() -> None:
    assert resolve_device("cpu").type == "cpu"
    assert resolve_precision("auto", torch.device("cpu")) == "fp32"
    with pytest.raises(UserError, match=r"scorer.device=gpu is not available"):
        resolve_device("gpu")
    with pytest.raises(UserError, match=r"scorer.precision=fp23.*Did you mean 'fp32'"):
        resolve_precision("fp23", torch.device("cpu"))


# ---------------------------------------------------------------------------------------------- where weights come from


def test_unknown_architectures_tags_and_files(small: OpenClip, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no architecture 'ViT-B16'.*Did you mean 'ViT-B-16'"):
        OpenClip("ViT-B16", pretrained="openai")
    with pytest.raises(UserError, match=r"is not a weights tag of ViT-B-32.*Did you mean 'openai'"):
        OpenClip("ViT-B-32", pretrained="opeani")
    with pytest.raises(UserError, match="does not exist"):
        OpenClip("ViT-B-32", weights=str(tmp_path / "none.pt"))
    check_output = OpenClip("small-test-clip", weights=str(tmp_path / "w.safetensors")) if _saved(tmp_path) else small
    with pytest.raises(UserError, match="do not load as small-test-clip"):
        _ = check_output.model


def _saved(folder: Path) -> bool:
    save_file({"x": torch.zeros(2)}, folder / "w.safetensors")
    return True


@pytest.mark.parametrize("name", ["vit_b_16", "vit_b_32", "rn50"])
def test_configs_name_openais_own_activation(name: str) -> None:
    clip = instantiate(OmegaConf.load(CONF / "clip" / f"{name}.yaml"))
    assert open_clip.get_model_config(clip.model_name)["quick_gelu"]
    assert open_clip.get_pretrained_cfg(clip.model_name, clip.pretrained)["quick_gelu"]
    assert clip.images == ClipImages.of(vars(open_clip.transform.PreprocessCfg()))


def test_scorer_configs_compose(small: OpenClip) -> None:
    file = OmegaConf.load(CONF / "clip" / "file.yaml")
    file.model_name, file.weights = small.model_name, small.weights
    cfg = OmegaConf.create({"clip": file, "scorer": OmegaConf.load(CONF / "scorer" / "clip.yaml")})
    scorer = instantiate(cfg.scorer)
    assert scorer.templates == ("{}",)
    assert scorer.clip.weights == small.weights
    assert instantiate(OmegaConf.load(CONF / "scorer" / "annotations.yaml")).source == "labels"


class _Hub(http.server.BaseHTTPRequestHandler):
    """A local stand-in for the Hub: one repository with one weights file."""

    files: dict[str, bytes] = {}  # noqa: RUF012  filled by the test

    def _answer(self, body: bool) -> None:
        content = self.files.get(self.path)
        if content is None:
            self.send_response(404)
            self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", '"a1b2c3"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self._answer(False)

    def do_GET(self) -> None:
        self._answer(True)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    _at(monkeypatch, address, tmp_path / "hub")
    yield address
    server.shutdown()
    server.server_close()


def _at(monkeypatch: pytest.MonkeyPatch, endpoint: str, folder: Path) -> None:
    """The stand-in for the Hub at its own address, with an empty cache."""
    monkeypatch.setenv("HF_ENDPOINT", endpoint)
    monkeypatch.setattr(clip_weights.hub, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(clip_weights.hub, "HF_HUB_OFFLINE", False)


def test_weights_come_from_a_hub_and_then_from_its_cache(
    small: OpenClip, hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = Path(str(small.weights)).read_bytes()
    monkeypatch.setattr(_Hub, "files", {"/org/small/resolve/main/open_clip_model.safetensors": content})
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, small.model_name, {"mine": {"hf_hub": "org/small/"}})
    clip = OpenClip(small.model_name, pretrained="mine")
    assert clip.checkpoint.read_bytes() == content
    assert torch.equal(clip.model.visual.conv1.weight, small.model.visual.conv1.weight)
    monkeypatch.setattr(_Hub, "files", {})
    assert OpenClip(small.model_name, pretrained="mine").checkpoint == clip.checkpoint


def test_a_hub_without_the_file(small: OpenClip, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_Hub, "files", {})
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, small.model_name, {"mine": {"hf_hub": "org/small/"}})
    with pytest.raises(UserError, match=r"open_clip_model\.safetensors \(no such file\).*clip=tiny"):
        _ = OpenClip(small.model_name, pretrained="mine").checkpoint


def test_an_unreachable_hub_fails_fast_and_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _at(monkeypatch, "http://127.0.0.1:9", tmp_path)
    scorer = ClipScorer(instantiate(OmegaConf.load(CONF / "clip" / "vit_b_16.yaml")), device="cpu", progress=False)
    began = time.perf_counter()
    with pytest.raises(UserError) as caught:
        scorer.score(_images(), NAMES, CLASSES, Cache(tmp_path / "cache"))
    assert time.perf_counter() - began < 60  # with the hub's retries it takes minutes
    for told in (
        "127.0.0.1:9",
        "timm/vit_base_patch16_clip_224.openai",
        "HF_HUB_CACHE",
        "HF_ENDPOINT",
        "clip.weights=",
        "clip=tiny",
    ):
        assert told in str(caught.value)
    assert "scorer=annotations" in str(caught.value)


def test_no_warning_where_every_word_is_spelled(
    small: OpenClip, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ClipScorer(small, device="cpu", progress=False).text_embeddings(["flibbertigibbet"], Cache(tmp_path))
    assert "never saw" not in caplog.text


def test_concept_set_type() -> None:
    assert isinstance(NAMES, ConceptSet)
    assert np.isfinite(len(NAMES))


def _hugging_face_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's weights under the names of a CLIPModel of `transformers`, spelled out one by one."""
    found: dict[str, torch.Tensor] = {
        "logit_scale": state["logit_scale"],
        "visual_projection.weight": state["visual.proj"].T,
        "text_projection.weight": state["text_projection"].T,
        "text_model.embeddings.token_embedding.weight": state["token_embedding.weight"],
        "text_model.embeddings.position_embedding.weight": state["positional_embedding"],
        "text_model.embeddings.position_ids": torch.arange(3),
        "vision_model.embeddings.class_embedding": state["visual.class_embedding"],
        "vision_model.embeddings.patch_embedding.weight": state["visual.conv1.weight"],
        "vision_model.embeddings.position_embedding.weight": state["visual.positional_embedding"],
    }
    norms = {"ln_final": "text_model.final_layer_norm", "visual.ln_pre": "vision_model.pre_layrnorm"}
    norms["visual.ln_post"] = "vision_model.post_layernorm"
    towers = {"transformer.resblocks": "text_model.encoder.layers"}
    towers["visual.transformer.resblocks"] = "vision_model.encoder.layers"
    for ours, theirs in norms.items():
        found |= {f"{theirs}.{kind}": state[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for ours, theirs in towers.items():
        for layer in {name.removeprefix(f"{ours}.").split(".")[0] for name in state if name.startswith(f"{ours}.")}:
            inner = {"attn.out_proj": "self_attn.out_proj", "ln_1": "layer_norm1", "ln_2": "layer_norm2"}
            inner |= {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}
            for kind in ("weight", "bias"):
                for mine, other in inner.items():
                    found[f"{theirs}.{layer}.{other}.{kind}"] = state[f"{ours}.{layer}.{mine}.{kind}"]
                three = state[f"{ours}.{layer}.attn.in_proj_{kind}"].chunk(3)
                for letter, part in zip("qkv", three, strict=True):
                    found[f"{theirs}.{layer}.self_attn.{letter}_proj.{kind}"] = part
    return {name: value.contiguous() for name, value in found.items()}


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_weights_under_hugging_faces_names(small: OpenClip, tmp_path: Path, ending: str) -> None:
    wanted = small.model.state_dict()
    path = tmp_path / f"model{ending}"
    theirs = _hugging_face_names(dict(wanted))
    save_file(theirs, path) if ending == ".safetensors" else torch.save(theirs, path)
    read = OpenClip("small-test-clip", weights=str(path)).model.state_dict()
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], value) for name, value in wanted.items())


def test_hugging_face_weights_of_another_width_are_refused(small: OpenClip, tmp_path: Path) -> None:
    theirs = _hugging_face_names(dict(small.model.state_dict()))
    theirs["visual_projection.weight"] = torch.zeros(3, 5)
    save_file(theirs, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"do not load as small-test-clip: .*visual\.proj"):
        _ = OpenClip("small-test-clip", weights=str(tmp_path / "model.safetensors")).model


def test_texts_that_are_cut_or_become_equal_are_reported(
    small: OpenClip, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "very " * 90
    names = ("smile", f"{long}happy", f"{long}sad", "Smile ")
    scorer = ClipScorer(small, device="cpu", progress=False)
    scores = scorer.text_embeddings(names, Cache(tmp_path))
    assert "reads only 77 tokens per text: 'very very" in caplog.text
    assert "are truncated" in caplog.text
    assert caplog.text.count("their scores are equal") == 2
    assert torch.equal(scores[1], scores[2])
    caplog.clear()
    scorer.text_embeddings(("smile", "frown", "very " * 75), Cache(tmp_path))  # with both marks exactly 77
    assert "truncated" not in caplog.text
    assert "same" not in caplog.text


def test_two_words_that_the_tiny_clip_does_not_know_are_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ClipScorer(TinyClip(), device="cpu", progress=False).text_embeddings(("quark", "zebra"), Cache(tmp_path))
    assert "reads the same text for 'quark', 'zebra'" in caplog.text


def test_the_tiny_clip_doubts_images_that_were_not_drawn(caplog: pytest.LogCaptureFixture) -> None:
    scorer = ClipScorer(TinyClip(), device="cpu", progress=False)
    drawn = replace(_images(), annotations={"presence": Annotations(("Smile",), torch.zeros(9, 1))})
    scorer.check(drawn, concept_set(["smile"]), CLASSES)
    assert caplog.text == scorer.doubts(drawn) == ""
    scorer.check(_images(), concept_set(["smile"]), CLASSES)
    assert "was trained only on drawn faces" in caplog.text


def test_a_tokenizer_that_needs_an_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, **given: Any) -> None:
        raise ModuleNotFoundError("No module named 'transformers'")

    monkeypatch.setattr("open_clip.get_tokenizer", missing)
    monkeypatch.setattr("emodissect.concepts.open_clip_model.find_spec", lambda name: None)
    clip = OpenClip("ViT-B-16-SigLIP", pretrained="webli")
    with pytest.raises(UserError, match=r"the extra: pip install 'emodissect\[transformers\]'"):
        _ = clip.tokenizer
