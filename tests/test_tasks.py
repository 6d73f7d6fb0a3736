"""The three commands end to end on a few drawn faces: what they write, reuse, log and refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from composing import CONF, SMALL, small_checkpoint
from matplotlib.figure import Figure
from safetensors.torch import load_file
from torch import nn

from emodissect.core.cache import file_hash
from emodissect.core.errors import UserError
from emodissect.core.fingerprint import fingerprint, weights_hash
from emodissect.core.statistics import wilson
from emodissect.demo.sketches import CLASS_NAMES
from emodissect.demo.sketches.source import BLOCK
from emodissect.demo.tiny_clip.model import WEIGHTS
from emodissect.dissection.labels import Dissection
from emodissect.models.classifier import Classifier
from emodissect.models.preprocessing import Preprocess
from emodissect.models.vgg import VGG
from emodissect.models.weights import load_weights
from emodissect.similarity import SoftWPMI
from emodissect.studies import EditStudy

Verb = Callable[..., tuple[Path, dict[str, Any]]]


def written(folder: Path) -> set[str]:
    """The files of a run folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_train_writes_a_page_figures_and_a_manifest(verb: Verb) -> None:
    folder, result = verb("train")
    assert {"report.html", "summary.json", "manifest.json"} <= written(folder)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["test/acc_low"] < summary["test/acc"] < summary["test/acc_high"]
    assert result["objective"] == summary["val/acc"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"command", "commit", "versions", "seed", "weights", "data"} <= manifest.keys() | manifest["inputs"].keys()
    page = (folder / "report.html").read_text()
    assert "Most confident mistakes" in page
    assert "pixels that the answer depends on most" in page


def test_a_training_is_reused_and_a_change_makes_another(verb: Verb, home: Path) -> None:
    verb("train")
    before = set((home / "training").iterdir())
    _, again = verb("train")
    assert set((home / "training").iterdir()) == before
    _, other = verb("train", "optimizer.lr=0.02")
    assert len(set((home / "training").iterdir()) - before) >= 1
    assert again["val/nll"] != other["val/nll"]


def test_dissect_labels_and_a_second_concept_set_runs_no_network(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = verb("dissect", "layer=[conv2a,lin2]")
    assert {"neurons.parquet", "neurons.csv", "layers.csv", "shares.csv", "report.html"} <= written(folder)
    assert {"figures/similarity_lin2.png", "figures/similarity_conv2a.png"} <= written(folder)
    found = Dissection.load(folder)
    assert list(found.layers["layer"]) == ["conv2a", "lin2"]
    assert found.neurons["q_value"].dropna().between(0, 1).all()
    page = (folder / "report.html").read_text()
    assert "Where the classifier looked" in page
    assert "where in the image a convolutional neuron is active" in page

    def no_network(*_: object, **__: object) -> None:
        raise AssertionError("the network was run again")

    monkeypatch.setattr("emodissect.app.stages.dissection._predict", no_network)
    folder, _ = verb("dissect", "layer=[conv2a,lin2]", "concepts=fer7")
    words = {"angry", "disgust", "fear", "happy", "sad", "surprise", "neutral"}
    assert set(Dissection.load(folder).neurons["concept"].str.lower().dropna()) <= words


def test_what_changes_the_numbers_changes_what_is_taken_from_the_cache(verb: Verb, home: Path) -> None:
    folder, _ = verb("dissect", "layer=conv2a")
    assert len(Dissection.load(folder).neurons) == 6
    folder, _ = verb("dissect", "layer=conv2a", "layer.channels_last=true")
    assert len(Dissection.load(folder).neurons) == 20  # columns of the map, taken for neurons
    checkpoint = small_checkpoint(home)
    logits = []
    for order in ("[angry,disgust,fear,happy,sad,surprise,neutral]", "[disgust,angry,fear,happy,sad,surprise,neutral]"):
        before = set((home / "predictions").glob("*/predictions.safetensors"))
        verb("dissect", "layer=conv2a", f"ckpt_path={checkpoint}", f"model.class_order={order}")
        (made,) = set((home / "predictions").glob("*/predictions.safetensors")) - before
        logits.append(load_file(made)["logits"])
    torch.testing.assert_close(logits[0][:, [1, 0, 2, 3, 4, 5, 6]], logits[1])


def test_edit_judges_a_grid_and_its_checkpoint_is_what_it_says(verb: Verb) -> None:
    folder, result = verb("edit", "tau=[-1,0]", "factor=[1.5,2]", "study.ablate_concepts=true")
    assert {"edited.ckpt", "report.html", "study/grid.csv", "figures/grid_lin2.png"} <= written(folder)
    study = EditStudy.load(folder / "study")
    assert len(study.grid) == 4
    assert int(study.grid["chosen"].sum()) == 1
    assert result["identical_predictions"]
    assert result["logit_difference"] < 1e-3
    fitted = {
        f"ladder/{name}/{images}" for name in ("head", "learned_scale", "temperature") for images in ("val", "train")
    }
    alternatives = {name for name in json.loads((folder / "summary.json").read_text()) if name.startswith("ladder/")}
    assert alternatives == fitted | {"ladder/mirror", "ladder/ceiling/test"}
    assert "Cheap alternatives" in (folder / "report.html").read_text()
    assert "refitting the head" in (folder / "report.html").read_text()
    checkpoint = str(folder / "edited.ckpt")
    assert torch.load(checkpoint, weights_only=True)["edit"]["layer"] == "lin2"
    _, tested = verb("train", "fit=false", f"ckpt_path={checkpoint}")
    assert tested["test/acc"] == pytest.approx(result["accuracy_after"], abs=1e-6)
    folder, _ = verb("dissect", f"ckpt_path={checkpoint}")
    assert (folder / "neurons.csv").exists()
    folder, again = verb("edit", f"ckpt_path={checkpoint}", "factor=1")  # editing what was edited
    assert again["accuracy_before"] == again["accuracy_after"] == result["accuracy_after"]
    for name, tensor in torch.load(folder / "edited.ckpt", weights_only=True)["state_dict"].items():
        assert torch.equal(tensor, torch.load(checkpoint, weights_only=True)["state_dict"][name])


def test_a_planted_bias_is_edited_and_shown_by_group(verb: Verb) -> None:
    folder, result = verb("edit", "experiment=remove_spurious", "study.baselines=[head]")
    study = EditStudy.load(folder / "study")
    assert study.groups == "Glasses"
    assert study.group_table["images"].sum() == 150
    assert result["metric_delta"] == result["metric_after"] - result["metric_before"]
    assert "Accuracy of the worst group" in result["verdict"] or study.edit.operation.is_identity
    assert "Accuracy by group" in (folder / "report.html").read_text()


def test_a_shorter_report_draws_only_what_it_shows(verb: Verb, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []

    def savefig(self: Figure, target: Any, **options: Any) -> None:
        drawn.append(options["format"])
        save(self, target, **options)

    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", savefig)
    full, _ = verb("edit", "report=full")
    both = drawn.copy()
    drawn.clear()
    summary, _ = verb("edit", "report=summary")
    assert set(drawn) == {"svg"}
    assert len(drawn) < len(both) / 2
    drawn.clear()
    none, _ = verb("edit", "report=none")
    assert not drawn
    assert (full / "figures").is_dir()
    assert not (summary / "figures").exists()
    assert len((summary / "report.html").read_bytes()) < len((full / "report.html").read_bytes())
    assert not (none / "report.html").exists()
    for folder in (full, summary, none):
        assert (folder / "neurons.csv").read_bytes() == (full / "neurons.csv").read_bytes()
        assert json.loads((folder / "summary.json").read_text())["verdict"]


def test_an_edit_again_is_read_from_the_cache_with_the_same_figures(verb: Verb) -> None:
    _, first = verb("edit", "factor=2")
    _, second = verb("edit", "factor=2")
    assert json.dumps(first) == json.dumps(second)  # NaN as a word


def test_labels_of_an_earlier_dissection_are_taken(verb: Verb) -> None:
    labels, _ = verb("dissect", "similarity=pearson")
    folder, _ = verb("edit", f"labels_dir={labels}")
    pd.testing.assert_frame_equal(Dissection.load(folder).neurons, Dissection.load(labels).neurons)
    with pytest.raises(UserError, match="lin1"):
        verb("edit", f"labels_dir={labels}", "layer=lin1")


PLAIN = ("saliency.maps=0", "saliency.images=0")


@pytest.mark.slow
def test_labels_of_another_network_or_of_other_images_are_reported(
    verb: Verb, caplog: pytest.LogCaptureFixture
) -> None:
    labels, _ = verb("dissect")
    with pytest.raises(UserError, match="holds 205 neurons of layer 'lin2', and this network has 410"):
        verb("edit", *PLAIN, f"labels_dir={labels}", "model.width=0.1")
    with pytest.raises(UserError, match="top images of layer 'lin2' that are not among this run's 100 probe images"):
        verb("edit", *PLAIN, f"labels_dir={labels}", "probe.limit=100")
    edited, _ = verb("edit", *PLAIN, f"labels_dir={labels}", "factor=3")
    assert "labels are of another network" not in caplog.text
    folder, _ = verb("edit", *PLAIN, f"labels_dir={labels}", f"ckpt_path={edited / 'edited.ckpt'}")
    assert "The labels are of another network" in caplog.text
    assert "The labels are of another network" in (folder / "report.html").read_text()
    # The labels' own content decides what is taken from the cache, not where they lie.
    before = json.loads((edited / "manifest.json").read_text())["inputs"]["study"]
    neurons = pd.read_parquet(labels / "neurons.parquet")
    neurons["similarity"] = -neurons["similarity"]
    neurons.to_parquet(labels / "neurons.parquet")
    folder, _ = verb("edit", *PLAIN, f"labels_dir={labels}", "factor=3")
    assert json.loads((folder / "manifest.json").read_text())["inputs"]["study"] != before
    assert EditStudy.load(folder / "study").selected.sum() != EditStudy.load(edited / "study").selected.sum()


def test_selections_that_wrap_others_are_not_taken_for_one_another(verb: Verb) -> None:
    inverse = ("selection=inverse", "~selection.of.tau")
    _, none = verb("edit", *PLAIN, *inverse, "selection.of._target_=emodissect.editing.selection.AllNeurons")
    _, some = verb("edit", *PLAIN, *inverse, "selection.of._target_=emodissect.editing.selection.WeightNorm")
    assert none["selected"] == 0 < some["selected"]


def test_null_studies_are_counted(verb: Verb) -> None:
    folder, result = verb("edit", *PLAIN, "study.null_studies=6")
    assert result["null_studies"] == 6
    assert 0 <= result["null_claims"] <= 1
    assert len(pd.read_csv(folder / "null_studies.csv")) == 6
    assert "of 6 claim a gain" in (folder / "report.html").read_text()


SIMILARITIES = ("soft_wpmi", "wpmi", "rank_reorder", "cos_similarity", "cos_similarity_cubed", "pearson")


def judged(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables that ``label_quality=true`` wrote."""
    return {path.stem[len("label_quality_") :]: pd.read_csv(path) for path in folder.glob("label_quality_*.csv")}


@pytest.mark.slow
def test_evaluate_writes_label_quality(verb: Verb) -> None:
    folder, _ = verb("dissect", "label_quality=true", "layer=lin3", "clip@quality.another_clip=tiny")
    found = judged(folder)
    assert set(found) == {
        "neurons",
        "sanity",
        "recovery",
        "planted",
        "coverage",
        "explanations",
        "stability",
        "responses",
    }
    neurons = found["neurons"]
    assert len(neurons) == 7
    assert neurons["clarity"].between(-1, 1).all()
    assert neurons["scattered"].dtype == bool
    for score in ("pearson", "cosine", "auprc", "f1", "iou", "simulation", "inverse_auc", "mad"):
        assert neurons[f"{score}_p"].between(0, 1).all()
    recovery = found["recovery"]
    assert set(recovery["similarity"]) >= {"soft_wpmi", "pearson"}
    assert set(recovery["layer"]) == {"lin3", "planted neurons", "planted network", "class logits"}
    assert set(recovery.query("layer == 'lin3'")["truth"]) == {"correlation", "top images", "interventions"}
    assert set(recovery["source"]) == {"scorer", "annotations", "another template", "another CLIP"}
    logits = recovery.query("layer == 'class logits'")
    assert (logits["neurons"] == 7).all()
    assert (logits["top1_chance"] - 1 / 7).abs().max() < 1e-9
    planted = found["planted"].query("similarity == 'pearson'").set_index(["layer", "kind"])
    assert (planted["labelled"].xs("single", level="kind") > 0.9).all()
    assert (planted["labelled"].xs("dead", level="kind") == 0).all()
    explained = found["explanations"].set_index(["layer", "explanation"])
    assert {"label", "soft_wpmi", "linear", "best_concept", "constant"} <= set(explained.loc["lin3"].index)
    assert explained.loc[("planted mixtures, annotations", "linear"), "exact"] > 0.8
    assert explained.loc[("planted mixtures, annotations", "linear"), "covered"] > 0.8
    assert explained.loc[("planted mixtures, scorer", "linear"), "ratio"] > 1.3
    covered = found["coverage"].query("source == 'annotations' and kind == 'single'")
    assert (covered["covered"] >= covered["level"]).all()
    assert explained.loc["lin3", "moved"].between(-1, 1).all()
    assert len(found["responses"]) == 7 * 20
    assert found["responses"]["slope"].between(found["responses"]["low"], found["responses"]["high"]).all()
    stable = found["stability"].set_index("change")["share"]
    assert stable["another CLIP"] == 1  # the same one here
    assert {"the other half of the images", "noise on the images", "another template", "top_k 50"} <= set(stable.index)
    assert set(found["sanity"]["layer"]) >= {"class logits"}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dissect/lin3/held_out_pearson"] == pytest.approx(neurons["pearson"].mean())
    page = (folder / "report.html").read_text()
    assert '"held_out_concept"' in page
    assert "Do the labels hold?" in page


def test_the_leaderboard_ranks_every_method(verb: Verb) -> None:
    folder, _ = verb("dissect", "leaderboard=true", "layer=lin3", "scorer=annotations", "scorer.source=presence")
    board = pd.read_csv(folder / "leaderboard.csv").set_index("method")
    assert set(board.index) == {*SIMILARITIES, "linear", "best_concept", "constant"}
    assert board["rank"].is_monotonic_increasing
    assert board["rank"].idxmin() != "constant"
    assert board["planted neurons"].drop("constant").min() > board["planted neurons"]["constant"]
    assert board.loc["linear", "planted neurons"] > 0.9
    assert (board["by interventions_low"] <= board["by interventions"] + 1e-9).all()
    assert "Which way to name neurons is best?" in (folder / "report.html").read_text()


def test_relevance_says_what_neurons_do(verb: Verb) -> None:
    folder, _ = verb("dissect", "relevance=true", "layer=lin3")
    does = pd.read_parquet(folder / "relevance.parquet")
    assert does["neuron"].tolist() == list(range(7))
    effects = does[[f"effect_{name}" for name in CLASS_NAMES]].to_numpy()
    # lin3 gives the logits: each moves its own class, and no other
    assert does["drives"].tolist() == list(CLASS_NAMES)
    assert np.allclose(effects, np.diag(np.diag(effects)), atol=1e-5)
    assert does["shared_top"].between(0, 1).all()
    assert does["concept"].tolist() == pd.read_parquet(folder / "neurons.parquet")["concept"].tolist()
    assert pd.read_parquet(folder / "neurons.parquet")["drives"].tolist() == list(CLASS_NAMES)
    assert "What the neurons do" in (folder / "report.html").read_text()


def test_label_sets_are_a_column_of_the_neurons_and_their_cards(verb: Verb) -> None:
    folder, _ = verb("dissect", "label_sets.resamples=20", "layer=lin3")
    neurons = pd.read_parquet(folder / "neurons.parquet")
    assert neurons["label_set"].str.len().gt(0).all()
    assert sum(label in words for label, words in zip(neurons["concept"], neurons["label_set"], strict=True)) >= 5
    assert '"label_set"' in (folder / "report.html").read_text()
    assert Dissection.load(folder)["lin3"]["label_set"].tolist() == neurons["label_set"].tolist()
    again, _ = verb("dissect", "label_sets.resamples=20", "label_sets.level=1", "layer=lin3", f"labels_dir={folder}")
    wider = pd.read_parquet(again / "neurons.parquet")
    assert list(wider) == list(neurons)
    assert (wider["label_set"].str.len() >= neurons["label_set"].str.len()).all()


def test_an_explanation_is_a_table_a_section_and_a_figure_of_the_summary(verb: Verb) -> None:
    folder, _ = verb("dissect", "explanation=linear", "layer=lin3")
    neurons = pd.read_parquet(folder / "explanations.parquet")
    assert neurons["layer"].tolist() == ["lin3"] * 7
    assert [len(row) for row in neurons["weights"]] == [len(row) for row in neurons["concepts"]]
    assert neurons["concepts"].map(len).between(1, 5).all()
    assert neurons["pearson"].between(neurons["pearson_low"], neurons["pearson_high"]).all()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dissect/lin3/explanation_pearson"] == pytest.approx(neurons["pearson"].mean())
    assert pd.read_parquet(folder / "neurons.parquet")["explanation"].tolist() == neurons["explanation"].tolist()
    assert "What predicts the activations?" in (folder / "report.html").read_text()
    assert len(pd.read_csv(folder / "explanations.csv")) == 7
    plain, _ = verb("dissect", "layer=lin3")
    same = ["concept", "similarity", "p_value", "top_ids"]
    for name in same:
        kept, beside = (pd.read_parquet(path / "neurons.parquet")[name] for path in (plain, folder))
        assert kept.map(str).tolist() == beside.map(str).tolist(), "an explanation stands beside the labels"


def test_evaluate_without_clip_and_with_classes_as_concepts(verb: Verb) -> None:
    folder, _ = verb("dissect", "label_quality=true", "layer=lin3", "concepts=fer7", "scorer=annotations")
    found = judged(folder)
    assert "clarity" not in found["neurons"]
    assert "another template" not in set(found["stability"]["change"])
    scorer = found["recovery"].query("source == 'scorer'").set_index(["layer", "similarity", "truth"])["top1"]
    ceiling = found["recovery"].query("source == 'annotations'").set_index(["layer", "similarity", "truth"])["top1"]
    assert (scorer == ceiling).all()  # the labels are the truth


def test_evaluate_with_one_concept_and_dead_neurons(verb: Verb, home: Path, tmp_path: Path) -> None:
    words = tmp_path / "one.txt"
    words.write_text("Smile\n")
    checkpoint = tmp_path / "dead.pt"
    verb("dissect")
    state = torch.load(small_checkpoint(home), weights_only=True)["state_dict"]
    state = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
    state["lin2.weight"][:3], state["lin2.bias"][:3] = 0.0, 0.0
    torch.save(state, checkpoint)
    folder, _ = verb(
        "dissect", "label_quality=true", "concepts=file", f"concepts.path={words}", f"ckpt_path={checkpoint}"
    )
    neurons = judged(folder)["neurons"].set_index("neuron")
    assert neurons["pearson"][:3].isna().all()
    assert neurons["concept"][:3].isna().all()
    assert set(neurons["concept"][3:].dropna()) == {"Smile"}


def test_the_audit_is_a_file_and_a_section(verb: Verb) -> None:
    folder, _ = verb("train", "data.audit=true")
    assert (folder / "audit.csv").exists()
    assert "Audit of the images" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("dissect", ["layer=named", "layer.names=lin9"], "Did you mean"),
        ("edit", ["ckpt_path=/nowhere/x.ckpt"], "does not exist"),
        ("train", ["fit=false"], "ckpt_path"),
        ("edit", ["data=fer2013", "data.path=/nowhere/fer2013.csv"], "kaggle"),
        ("edit", ["concepts=file", "concepts.path=/nowhere/words.txt"], "words.txt"),
        ("dissect", ["saliency.ids=[-5]"], "saliency.ids"),
        ("edit", ["labels_dir=/nowhere"], "neurons.parquet"),
        ("dissect", ["similarity.top_k=0"], "top_k"),
        ("dissect", ["label_sets.resamples=-1"], "label_sets.resamples"),
        ("dissect", ["explanation=linear", "explanation.penalty=2"], "penalty"),
        ("edit", ["study.metric=acuracy"], "accuracy"),
        ("edit", ["study.test_split=tst"], "test"),
        ("edit", ["study.test_split=val+test"], "share no images"),
        ("edit", ["selection=accuracy", "selection.level=[]"], "an empty grid"),
        ("edit", ["selection=accuracy", "selection.level=[0.5,x]"], "x is not a number"),
        ("edit", ["layer=bn4b"], "Did you mean 'conv4b'"),
        ("edit", ["layer=lin3", "edit.parameters=outgoing"], "layer behind 'lin3'"),
        ("dissect", ["model=timm", "model.name=vit_tiny_patch16_224", "layer=all"], "cannot take the images, 3x64x64"),
        ("train", ["model=timm", "model.name=vit_tiny_patch16_224"], "img_size:64"),
        ("dissect", ["model=timm", "model.num_classes=10", "layer=all"], "10 logits for 7 classes"),
        ("dissect", ["label_quality=true", "probe.limit=12"], "12 are too few"),
        ("dissect", ["label_quality=true", "quality.alphas=[2]"], "quality.alphas"),
        (
            "dissect",
            ["label_quality=true", "scorer=annotations", "clip@quality.another_clip=tiny"],
            "needs scorer=clip",
        ),
    ],
)
def test_mistakes_are_reported_before_anything_is_trained(
    verb: Verb, name: str, overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_training(*_: object, **__: object) -> None:
        raise AssertionError("trained before the mistake was told")

    monkeypatch.setattr("emodissect.app.stages.classifier._fit", no_training)
    with pytest.raises(Exception, match=r"(?i)" + message.replace(".", r"\.")) as caught:
        verb(name, "seed=99", *overrides)
    from emodissect.app.cli import user_error_message

    assert user_error_message(caught.value)


@pytest.mark.parametrize(
    "further",
    [
        pytest.param(["model.dropout=0.5"], id="one process"),
        # worker processes draw their seeds from torch's generator; rotations, zooms and erasing from theirs
        pytest.param(
            ["model.dropout=0.5", "data.num_workers=2", "augment=khaireddin2021", "similarity=pearson", "layer=all"],
            id="two workers, all random augmentation",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_dissecting_while_training_leaves_the_weights_to_the_bit(verb: Verb, home: Path, further: list[str]) -> None:
    words = ["seed=5", "data.train=200", "trainer.max_epochs=2", "test=false", *further]
    plain, _ = verb("train", *words)
    watched, _ = verb("train", *words, "callbacks=dissect")
    kept = [torch.load(f / "checkpoints" / "last.ckpt", weights_only=True) for f in (plain, watched)]
    assert [k["epoch"] for k in kept] == [1, 1]
    assert all(torch.equal(kept[1]["state_dict"][name], value) for name, value in kept[0]["state_dict"].items())
    assert str(kept[0]["optimizer_states"]) == str(kept[1]["optimizer_states"])
    logged = pd.read_csv(watched / "csv" / "metrics.csv")
    assert len(logged["dissect/lin2/interpretable"].dropna()) >= 2
    assert logged["dissect/lin2/accuracy"].dropna().between(0, 1).all()


def test_a_dissections_manifest_names_everything_it_came_from(verb: Verb, home: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("Smile\nFrown\n")
    folder, _ = verb("dissect", "concepts=file", f"concepts.path={words}", "scorer.templates=faces", "layer=lin1")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {"command", "overrides", "commit", "seed", "machine"} <= manifest.keys()
    assert {"timm", "torch", "open_clip_torch", "numpy", "scipy", "statsmodels"} <= manifest["versions"].keys()
    inputs = manifest["inputs"]
    assert inputs["concepts"] == {"from": str(words), "sha256": file_hash(words)}
    assert inputs["data_config"]["train"] == 400
    assert set(inputs["data"]) == {"train", "val", "test"}
    assert {"optimizer", "scheduler", "augment", "images", "seed"} <= inputs["training"].keys()
    found = inputs["dissection"]
    assert found["classifier"]["weights"] == inputs["weights"]
    assert found["probe"][0] == inputs["data"]["train"]
    assert (found["layers"], found["recorded"]["pool"]) == (["lin1"], "avg")
    scorer = found["scorer"]["parameters"]
    assert (list(found["concepts"]), len(scorer["templates"]) > 1) == (["Smile", "Frown"], True)
    assert scorer["clip"]["parameters"]["weights"] == file_hash(WEIGHTS)
    assert found["similarity"] == fingerprint(SoftWPMI())
    assert (found["labelling"]["draws"], found["labelling"]["seed"]) == (100, 42)
    checkpoint = small_checkpoint(home)
    given, _ = verb("dissect", f"ckpt_path={checkpoint}")
    inputs = json.loads((given / "manifest.json").read_text())["inputs"]
    assert inputs["checkpoint"] == {"path": str(checkpoint), "sha256": file_hash(checkpoint)}
    assert inputs["concepts"] == {"from": "expressions25"}
    assert "training" not in inputs


def test_a_network_is_dissected_as_it_is_made(verb: Verb, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("emodissect.app.stages.classifier._fit", lambda *_: pytest.fail("trained"))
    words = ["model=timm", "model.name=test_vit", "model.arguments={img_size:64}", "model.num_classes=12"]
    words += ["layer=[blocks.0.attn.qkv,head]", "layer.pool=token_mean", "data.train=120"]
    folder, result = verb("dissect", "fit=false", *words)
    labels = Dissection.load(folder)
    assert (labels["blocks.0.attn.qkv"]["similarity"].notna().all(), len(labels["head"])) == (True, 12)
    page = (folder / "report.html").read_text()
    assert "what the classifier took it for" not in page
    assert "Where the classifier looked" not in page
    _, again = verb("dissect", "fit=false", *words)
    assert again == result  # random weights are those of the seed

    torch.manual_seed(1)
    network = timm.create_model("test_vit", num_classes=12, img_size=64)
    torch.save(network.state_dict(), folder / "twelve.pt")
    given, _ = verb("dissect", f"ckpt_path={folder / 'twelve.pt'}", *words)
    manifest = json.loads((given / "manifest.json").read_text())
    assert manifest["inputs"]["weights"] == weights_hash(network)
    assert Dissection.load(given).fingerprint() != labels.fingerprint()
    with pytest.raises(UserError, match="12 logits for 7 classes"):
        verb("edit", f"ckpt_path={folder / 'twelve.pt'}", *words[:4], "layer=head")


@pytest.mark.slow
def test_two_processes_train_and_label_one_network(tmp_path: Path) -> None:
    words = [w for w in SMALL if not w.startswith("trainer=")]
    folder = tmp_path / "two"
    ran = subprocess.run(
        [
            *(sys.executable, str(CONF.parent / "dissect.py"), *words, "layer=[conv2a,lin2]", "trainer=ddp_sim"),
            *(f"paths.cache_dir={tmp_path / 'cache'}", f"paths.log_dir={tmp_path}", f"hydra.run.dir={folder}"),
        ],
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    (training,) = (tmp_path / "cache" / "training").glob("*/entry.json")
    assert list(pd.read_csv(training.parent / "history.csv")["epoch"]) == [0]
    assert {"train/loss", "val/acc"} <= set(pd.read_csv(training.parent / "history.csv"))
    kinds = {path.parts[-3] for path in (tmp_path / "cache").glob("*/*/entry.json")}
    assert {"training", "activations", "predictions", "labels"} <= kinds
    assert list(Dissection.load(folder).layers["layer"]) == ["conv2a", "lin2"]


@pytest.mark.slow
def test_two_processes_label_as_one(verb: Verb, home: Path, tmp_path: Path) -> None:
    verb("train")
    checkpoint = small_checkpoint(home)
    one, _ = verb("dissect", "layer=[conv2a,lin2]", "similarity=pearson", f"ckpt_path={checkpoint}")
    words = [w for w in SMALL if not w.startswith("trainer=")]
    folder = tmp_path / "two"
    subprocess.run(
        [
            *(sys.executable, str(CONF.parent / "dissect.py"), *words, "layer=[conv2a,lin2]", "similarity=pearson"),
            *("trainer=ddp_sim", f"ckpt_path={checkpoint}", f"paths.cache_dir={tmp_path / 'cache2'}"),
            *(f"paths.log_dir={tmp_path}", f"hydra.run.dir={folder}"),
        ],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=300,
    )
    assert not [*folder.glob("distributed/*-0"), *folder.glob("distributed/training")]
    found, expected = Dissection.load(folder).neurons, Dissection.load(one).neurons
    assert list(found["concept"]) == list(expected["concept"])
    assert [list(x) for x in found["top_ids"]] == [list(x) for x in expected["top_ids"]]
    assert (found["similarity"] - expected["similarity"]).abs().max() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "further",
    [
        [],
        # the published recipe's schedule; at this rate validation stands still, so the rate falls in each epoch
        ["scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.00001", "callbacks=ema", "augment=warp"],
    ],
    ids=["one cycle", "plateau and moving average"],
)
def test_a_killed_training_goes_on_and_ends_as_an_unbroken_one(further: list[str], verb: Verb, tmp_path: Path) -> None:
    words = ["seed=7", "trainer.max_epochs=4", *further]
    unbroken, _ = verb("train", *words)
    script = f"""
import sys, os, signal
sys.argv = ["train.py"]
import lightning.pytorch as L
from composing import composed, SMALL
from emodissect.app.cli import register_resolvers
from emodissect.app.train import train
from emodissect.models.classifier import Classifier
register_resolvers()
def die(self):
    if self.current_epoch == 2:
        os.kill(os.getpid(), signal.SIGKILL)
Classifier.on_train_epoch_start = die
from pathlib import Path
folder = Path({str(tmp_path / "killed")!r})
further = ["paths.cache_dir={tmp_path / "cache3"}", "paths.log_dir={tmp_path}"]
train(composed("train", *SMALL, *{words!r}, *further, run_dir=folder))
"""
    killed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -9, killed.stderr.decode()[-2000:]
    assert not list((tmp_path / "cache3" / "training").glob("*/classifier.ckpt"))
    resumed, _ = verb("train", *words, f"paths.cache_dir={tmp_path / 'cache3'}")
    assert load_weights_of(unbroken) == load_weights_of(resumed)
    assert_same_end(unbroken, tmp_path / "killed")
    (curves,) = (tmp_path / "cache3" / "training").glob("*/history.csv")
    assert list(pd.read_csv(curves)["epoch"]) == [0, 1, 2, 3]  # those before the kill as well


def last_of(folder: Path) -> dict[str, Any]:
    """The checkpoint of a run's last epoch."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def assert_same_end(one: Path, other: Path) -> None:
    """Weights, optimizer and schedule of two trainings are bit-identical."""
    first, second = last_of(one), last_of(other)
    assert first["epoch"] == second["epoch"]
    for name, value in first["state_dict"].items():
        assert torch.equal(value, second["state_dict"][name]), name
    assert str(first["optimizer_states"]) == str(second["optimizer_states"])
    assert str(first["lr_schedulers"]) == str(second["lr_schedulers"])


def test_resume_goes_on_with_a_training_and_starting_from_its_weights_does_not(verb: Verb) -> None:
    words = ["data.train=200", "scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.0001"]
    whole, _ = verb("train", *words, "trainer.max_epochs=4")
    half, _ = verb("train", *words, "trainer.max_epochs=2")
    last = f"ckpt_path={half / 'checkpoints' / 'last.ckpt'}"
    resumed, _ = verb("train", *words, "trainer.max_epochs=4", "resume=true", last)
    assert_same_end(whole, resumed)
    histories = [last_of(folder)["callbacks"]["EpochHistory"]["epochs"] for folder in (whole, resumed)]
    assert histories[0] == histories[1]  # the curves of all four epochs
    assert list(histories[0]) == [0, 1, 2, 3]
    recompute, _ = verb("train", *words, "trainer.max_epochs=4", last)
    assert last_of(recompute)["epoch"] == 3
    assert last_of(recompute)["global_step"] == 16
    assert not torch.equal(
        last_of(recompute)["state_dict"]["network.lin3.weight"], last_of(whole)["state_dict"]["network.lin3.weight"]
    )
    with pytest.raises(UserError, match=r"already been trained for 2 epochs, and trainer\.max_epochs=2"):
        verb("train", *words, "trainer.max_epochs=2", "resume=true", last)
    with pytest.raises(UserError, match="ckpt_path is null"):
        verb("train", *words, "resume=true")
    weights = half / "weights.pt"
    torch.save(last_of(half)["state_dict"], weights)
    with pytest.raises(UserError, match=r"lacks epoch.*resume=false starts a new training from its weights"):
        verb("train", *words, "resume=true", f"ckpt_path={weights}")
    cycle, _ = verb("train", "data.train=200", "trainer.max_epochs=2", "seed=3")
    with pytest.raises(UserError, match=r"is for 2 epochs, and trainer\.max_epochs=3"):
        verb(
            "train",
            *("data.train=200", "trainer.max_epochs=3", "seed=3", "resume=true"),
            f"ckpt_path={cycle / 'checkpoints' / 'last.ckpt'}",
        )


def test_a_resumed_training_keeps_the_best_checkpoint_that_the_first_run_knew(verb: Verb) -> None:
    words = ["data.train=200", "scheduler=plateau"]
    first, _ = verb("train", *words, "trainer.max_epochs=2")
    state = last_of(first)
    (keeper,) = [known for name, known in state["callbacks"].items() if "val/acc" in name]
    keeper["best_model_score"] = torch.tensor(2.0)  # no later epoch is better
    last = first / "checkpoints" / "changed.ckpt"
    torch.save(state, last)
    resumed, _ = verb("train", *words, "trainer.max_epochs=3", "resume=true", f"ckpt_path={last}")
    kept = resumed / "checkpoints" / "best.ckpt"
    assert file_hash(kept) == file_hash(first / "checkpoints" / "best.ckpt")
    (keeper,) = [known for name, known in last_of(resumed)["callbacks"].items() if "val/acc" in name]
    assert keeper["best_model_path"] == str(kept)
    assert float(keeper["best_model_score"]) == 2.0


def test_a_moving_average_is_what_is_validated_kept_and_tested(verb: Verb) -> None:
    words = ["data.train=300", "trainer.max_epochs=3", "callbacks=ema", "callbacks.ema.decay=0.5"]
    folder, result = verb("train", *words)
    assert "current_model_state" in last_of(folder)
    logged = pd.read_csv(folder / "csv" / "metrics.csv")["val/acc"].dropna()
    assert len(logged) == 3  # the best checkpoint's own validation is not logged beside the first epoch's
    assert result["val/acc"] == pytest.approx(logged.max(), abs=1e-6)
    best = f"ckpt_path={folder / 'checkpoints' / 'best.ckpt'}"
    _, again = verb("train", "data.train=300", "fit=false", best)
    assert again["test/acc"] == result["test/acc"]


def test_soft_labels_are_those_of_all_images_trained_on_and_other_votes_train_anew(
    verb: Verb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[torch.Tensor] = []
    plain = Classifier.set_soft_labels

    def noted(self: Classifier, ids: torch.Tensor, distributions: torch.Tensor | None) -> None:
        given.append(ids)
        plain(self, ids, distributions)

    monkeypatch.setattr(Classifier, "set_soft_labels", noted)
    generator = np.random.default_rng(0)
    held = {"pixels": generator.integers(0, 256, (98, 48, 48), dtype=np.uint8), "labels": np.arange(98) % 7}
    weights = []
    for turn in range(2):
        path = tmp_path / f"{turn}.npz"
        votes = generator.multinomial(10, np.full(10, 0.1), size=98).astype(np.uint8)
        np.savez(path, **held, usage=np.repeat([0, 1, 2], [70, 14, 14]), ferplus_votes=votes)
        words = ["data=fer2013", f"data.path={path}", "soft_labels=true", "data.fit_on=train+val"]
        folder, _ = verb("train", *words, "trainer.max_epochs=1")
        weights.append(load_weights_of(folder))
    assert given[0].tolist() == list(range(84))
    assert weights[0] != weights[1]


def test_the_saliency_of_named_test_images_is_shown_whether_they_are_mistaken_or_not(verb: Verb) -> None:
    with pytest.raises(UserError, match=r"saliency\.ids names images that do not exist: 999999"):
        verb("train", "saliency.ids=[999999]")
    folder, _ = verb("train")
    assert "Where the classifier looked" not in (folder / "report.html").read_text()
    # all of test, more than the mistakes shown
    ids = "[" + ",".join(str(2 * BLOCK + place) for place in range(150)) + "]"
    folder, _ = verb("train", f"saliency.ids={ids}")
    assert "Where the classifier looked" in (folder / "report.html").read_text()


def test_the_interval_is_that_of_the_images_that_were_tested(verb: Verb) -> None:
    _, result = verb("train", "+trainer.limit_test_batches=1", "data.eval_batch_size=50")
    low, high = wilson(round(result["test/acc"] * 50), 50)
    assert (result["test/acc_low"], result["test/acc_high"]) == pytest.approx((float(low), float(high)))


@pytest.mark.parametrize(
    "words",
    [
        ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/nll2"],
        ["callbacks.best.monitor=val/nll2"],
        ["+training.monitor=val/nll2", "scheduler=plateau"],
    ],
)
def test_a_figure_that_nobody_logs_is_reported_before_the_first_epoch(words: list[str], verb: Verb) -> None:
    with pytest.raises(UserError, match=r"has monitor=val/nll2, which is never logged\. Did you mean 'val/nll'"):
        verb("train", *words, "seed=11")


def test_every_figure_that_can_be_followed_is_logged(verb: Verb) -> None:
    folder, _ = verb("train", "seed=12")
    (epoch,) = last_of(folder)["callbacks"]["EpochHistory"]["epochs"].values()
    assert set(Classifier(nn.Identity(), Preprocess(8), CLASS_NAMES).logged) == set(epoch) - {"train/lr"}


def test_few_validated_batches_have_no_interval(verb: Verb, capsys: pytest.CaptureFixture[str]) -> None:
    verb("train", "+trainer.limit_val_batches=1", "data.eval_batch_size=50")
    said = {line.split("│")[1].strip(): line for line in capsys.readouterr().out.splitlines() if line.count("│") == 3}
    assert "95 %" not in said["val accuracy"]
    assert "95 %" in said["test accuracy"]
    assert "training accuracy, last epoch" in said


def test_a_missing_accelerator_is_reported_with_what_runs_everywhere(verb: Verb) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"trainer\.accelerator=gpu, trainer\.devices=1\. trainer=cpu runs everywhere"):
        verb("train", "trainer=gpu", "seed=11")


def test_early_stopping_stops(verb: Verb) -> None:
    still = ["optimizer.lr=1e-9", "scheduler=constant", "callbacks.early_stopping.patience=1"]
    folder, _ = verb("train", "data.train=200", "trainer.max_epochs=9", "callbacks=early_stopping", *still)
    assert last_of(folder)["epoch"] < 8


def test_a_fit_on_validation_images_keeps_the_last_weights_and_says_so(
    verb: Verb, caplog: pytest.LogCaptureFixture
) -> None:
    folder, _ = verb("train", "data.train=200", "trainer.max_epochs=3", "data.fit_on=train+val", "data.audit=true")
    assert "weights of the last epoch are kept" in caplog.text
    kept = json.loads((folder / "manifest.json").read_text())["inputs"]["weights"]
    network = VGG(width=0.05)  # as in SMALL
    load_weights(network, folder / "checkpoints" / "last.ckpt")
    assert weights_hash(network) == kept


def load_weights_of(folder: Path) -> str:
    """The hash of a run's final weights."""
    return str(json.loads((folder / "manifest.json").read_text())["inputs"]["weights"])


def test_null_draws_are_kept_beside_the_labels(verb: Verb) -> None:
    folder, _ = verb("dissect")
    null = load_file(folder / "null.safetensors")
    assert list(null) == ["lin2"]
    assert null["lin2"].isfinite().all()
