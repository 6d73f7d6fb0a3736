"""Edit studies on a network whose noisy neurons are known, against brute force, and without any true effect."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom
from torch import Tensor, nn
from torchmetrics.functional.classification import multiclass_f1_score

from emodissect.core.errors import UserError
from emodissect.core.statistics import exceedance_p, holm, mcnemar
from emodissect.data.datamodule import joined
from emodissect.data.images import ImageSet
from emodissect.editing.edit import edited
from emodissect.editing.fast.edited_logits import EditedLogits, require_same_logits
from emodissect.editing.operations import Operation, Scaling
from emodissect.editing.rules import Ablate, Proportional, Scale, ScaleChosen
from emodissect.editing.selection import AllNeurons, Fdr, Inverse, LabelledWith, Tau, WeightNorm
from emodissect.models.inference import Inference
from emodissect.studies import ConceptAblation, EditStudy, ablate_concepts, null_studies, run_study, warn_of_few_draws
from emodissect.studies.ablation import leave_one_out_z
from emodissect.studies.cells import Cell, CellResults, choose, shuffled
from emodissect.studies.claim import claims_gain

GOOD, NOISE, CLASSES = 12, 12, 3


def flat(images: Tensor) -> Tensor:
    return images.flatten(1).float() / 128 - 1


def network() -> nn.Sequential:
    """The first neurons determine the class; the others add noise to the logits."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        OrderedDict(lin=nn.Linear(16, GOOD + NOISE), relu=nn.ReLU(inplace=True), out=nn.Linear(GOOD + NOISE, CLASSES))
    )
    with torch.no_grad():
        net.lin.weight.copy_(torch.randn(GOOD + NOISE, 16, generator=generator))
        net.lin.bias.copy_(0.1 * torch.randn(GOOD + NOISE, generator=generator))
        net.out.weight.copy_(torch.randn(CLASSES, GOOD + NOISE, generator=generator))
        net.out.bias.zero_()
    return net.eval()


def faces(count: int, seed: int) -> ImageSet:
    """Random images, labelled with the prediction of the good neurons alone."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 1, 4, 4), dtype=torch.uint8, generator=generator)
    net = network()
    with torch.no_grad():
        net.out.weight[:, GOOD:] = 0
        labels = net(flat(images)).argmax(1)
    return ImageSet(images, labels, torch.randperm(count, generator=generator) + 1000 * seed)


def labels(good: float = 1.0, noise: float = -1.0) -> pd.DataFrame:
    count = GOOD + NOISE
    jitter = np.linspace(0, 0.1, count)
    return pd.DataFrame(
        {
            "layer": "lin",
            "neuron": range(count),
            "concept": ["Tears"] * GOOD + ["Frown"] * NOISE,
            "similarity": np.where(np.arange(count) < GOOD, good, noise) + jitter,
            "dead": False,
        }
    )


VAL, TEST = faces(300, 1), faces(400, 2)
SELECTIONS, RULES = [Tau(-5.0), Tau(0.0), Tau(1.05)], [Scale(factor=1.0), Scale(factor=1.5), Scale(factor=3.0)]


def study(**changes: object) -> EditStudy:
    settings = {"controls": 60, "batch_size": 128, **changes}
    net = settings.pop("net", None) or network()
    inference = Inference(flat, net)
    arguments = {"neurons": labels(), "selections": SELECTIONS, "rules": RULES, "val": VAL, "test": TEST, **settings}
    return run_study(inference, ["lin"], **arguments)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def found() -> EditStudy:
    return study()


def test_the_planted_edit_is_found_and_claimed(found: EditStudy) -> None:
    assert (found.selection, found.rule) == ("tau", "scale")
    assert found.settings == {"tau": 0.0, "factor": 3.0, "parameters": "weight"}
    assert found.selected.tolist() == [True] * GOOD + [False] * NOISE
    assert found.claims_gain
    assert not found.optimistic
    assert found.test.delta > 0.1
    assert found.p_random < 0.05
    assert found.p_shuffled < 0.05
    assert found.verdict.startswith("Gain: +")
    assert "more than the same number of random neurons (p = .016)" in found.verdict
    assert "shuffled labels (p = " in found.verdict
    assert found.is_cut
    assert found.kept_bytes == 4 * (GOOD + NOISE) * 700


def test_every_cell_is_what_edited_weights_give(found: EditStudy) -> None:
    net = network()
    truth = VAL.labels
    before = net(flat(VAL.images)).argmax(1)
    assert len(found.grid) == 9
    for row in found.grid.itertuples():
        net.lin.weight.data.mul_(Scale(row.factor)(labels()["similarity"] > row.tau).values[:, None])
        after = net(flat(VAL.images)).argmax(1)
        net = network()
        gained, lost = (
            int(((after == truth) & (before != truth)).sum()),
            int(((after != truth) & (before == truth)).sum()),
        )
        assert (row.gained, row.lost) == (gained, lost)
        assert row.delta == pytest.approx((gained - lost) / 300)
        assert row.accuracy_before == pytest.approx(float((before == truth).double().mean()))
        assert row.accuracy_after == pytest.approx(float((after == truth).double().mean()))
        assert row.p_value == pytest.approx(mcnemar(gained, lost))
        assert row.delta_low <= row.delta <= row.delta_high
    np.testing.assert_allclose(found.grid["p_holm"], holm(found.grid["p_value"]))
    assert found.grid["chosen"].sum() == 1
    chosen = found.grid[found.grid["chosen"]].iloc[0]
    assert chosen["delta"] == found.grid["delta"].max()
    assert (found.val.gained, found.val.lost) == (chosen["gained"], chosen["lost"])
    plain = found.grid[found.grid["factor"] == 1.0]
    assert (plain["delta"] == 0).all()
    np.testing.assert_allclose(plain["nll_after"], plain["nll_before"])


def test_the_chosen_edit_on_test_is_exact(found: EditStudy) -> None:
    net = network()
    with edited(net, found.edit), torch.no_grad():
        logits = net(flat(TEST.images[torch.argsort(TEST.ids)]))
    torch.testing.assert_close(found.after.logits, logits)
    assert found.identical_predictions
    assert 0 <= found.logit_difference < 1e-4
    assert found.before.ids.tolist() == sorted(TEST.ids.tolist())


def test_controls(found: EditStudy) -> None:
    counts = found.controls.groupby("control").size().to_dict()
    assert counts == {"random": 60, "shuffled": 60, "all": 1, "inverse": 1}
    random = found.controls[found.controls["control"] == "random"]
    assert random["draw"].tolist() == list(range(60))
    assert found.p_random == exceedance_p(found.test.delta, random["delta_test"])
    net, images, scales = network(), TEST, found.edit.operation.values
    before = net(flat(images.images)).argmax(1) == images.labels
    for control, scale in (("inverse", 1 / scales), ("all", torch.full_like(scales, 3.0))):
        net = network()
        net.lin.weight.data.mul_(scale[:, None])
        after = net(flat(images.images)).argmax(1) == images.labels
        delta = found.controls.set_index("control").loc[control, "delta_test"]
        assert delta == pytest.approx(float(after.double().mean() - before.double().mean()))


def test_one_cell_has_one_set_of_random_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated: list[int] = []
    really = EditedLogits._of_one_kind

    def counted(logits: EditedLogits, operations: Sequence[Operation]) -> Tensor:
        evaluated.append(len(operations))
        return really(logits, operations)

    monkeypatch.setattr(EditedLogits, "_of_one_kind", counted)
    single = study(selections=[Tau(0.0)], rules=[Scale(factor=3.0)])
    deltas = {name: part["delta_test"].tolist() for name, part in single.controls.groupby("control")}
    assert deltas["random"] == deltas["shuffled"]
    assert len(set(deltas["random"])) > 10
    assert single.p_random == single.p_shuffled
    assert evaluated == [1, 63, 1, 1]  # validation; the edit, 60 draws, all, inverse; the edit's logits on both


def test_weights_are_left_to_the_bit_and_the_study_repeats() -> None:
    net = network()
    before = {name: value.numpy().tobytes() for name, value in net.state_dict().items()}
    first, second = study(net=net, controls=5), study(net=net, controls=5)
    assert {name: value.numpy().tobytes() for name, value in net.state_dict().items()} == before
    assert first.row() == second.row()
    pd.testing.assert_frame_equal(first.controls, second.controls)


def test_saved_and_loaded(found: EditStudy, tmp_path: Path) -> None:
    found.save(tmp_path / "study")
    again = EditStudy.load(tmp_path / "study")
    assert again.row() == found.row()
    pd.testing.assert_frame_equal(again.grid, found.grid)
    pd.testing.assert_frame_equal(again.controls, found.controls)
    assert torch.equal(again.edit.operation.values, found.edit.operation.values)
    assert torch.equal(again.after.logits, found.after.logits)


def test_chosen_on_test_is_optimistic(caplog: pytest.LogCaptureFixture) -> None:
    other = study(select_on_test=True, controls=5)
    assert other.optimistic
    assert other.verdict.startswith("Optimistic, because it was chosen on the same test images: ")
    assert "result is optimistic" in caplog.text
    chosen = other.grid[other.grid["chosen"]].iloc[0]
    assert (chosen["gained"], chosen["lost"]) == (other.test.gained, other.test.lost)


def test_verdicts(found: EditStudy) -> None:
    def said(p_value: float = 0.01, delta: float = 0.02, random: float = 0.01, shuffled: float = 0.01) -> str:
        test = replace(found.test, delta=delta, gained=12, lost=4, p_value=p_value)
        return replace(found, test=test, p_random=random, p_shuffled=shuffled).verdict

    flips = "+2.00 points on test (12 images newly correct, 4 newly wrong, p = .010)"
    assert said() == (
        f"Gain: {flips}, more than the same number of random neurons (p = .010) and shuffled labels (p = .010) give."
    )
    assert said(shuffled=float("nan")).endswith("more than the same number of random neurons (p = .010) give.")
    assert said(random=0.41) == (
        f"Gain within what the same number of random neurons give, p = .41: {flips}, "
        "so the choice of neurons does not explain it."
    )
    assert said(shuffled=0.2) == f"Gain within what the same study with shuffled labels gives, p = .20: {flips}."
    assert said(p_value=0.5, random=0.41).startswith("No gain beyond chance: +2.00 points")
    assert said(p_value=0.5, random=0.41).endswith("within what the same number of random neurons give, p = .41.")
    assert "which chance explains" in said(p_value=0.5)
    assert said(delta=-0.02) == "Loss: -2.00 points on test (12 images newly correct, 4 newly wrong, p = .010)."
    assert said(delta=-0.02, p_value=0.3).startswith("No gain: -2.00")
    assert (
        said(delta=0.0, p_value=1.0)
        == "No gain: +0.00 points on test (12 images newly correct, 4 newly wrong, p = 1.00)."
    )
    assert "p < .001" in said(p_value=1e-5)


def test_no_edit_helps() -> None:
    other = study(neurons=labels(-1.0, 1.0), selections=[Tau(0.0)], controls=5)
    assert other.settings["factor"] == 1.0
    assert not other.claims_gain
    assert other.verdict.startswith("No edit of the grid was better")


def test_without_labels_nothing_is_shuffled() -> None:
    other = study(selections=[WeightNorm()], rules=[Scale(factor=1.5)], controls=5)
    assert np.isnan(other.p_shuffled)
    assert set(other.controls["control"]) == {"random", "all", "inverse"}
    proportional = study(selections=[AllNeurons()], rules=[Proportional(factor=2.0, parameters="outgoing")], controls=5)
    assert "shuffled" in set(proportional.controls["control"])
    assert proportional.identical_predictions


def test_an_edit_that_changes_nothing_says_why() -> None:
    none = study(selections=[Tau(1e9)], rules=[ScaleChosen(factor=2.0)], controls=5)
    assert none.verdict == "The edit changes nothing: the selection chose no neuron (0 of 24 neurons of lin chosen)."
    one = study(selections=[Tau(0.0)], rules=[Scale(factor=1.0)], controls=5)
    assert one.verdict == "The edit changes nothing: each neuron's scale is 1 (12 of 24 neurons of lin chosen)."
    for unchanged in (none, one):
        assert (unchanged.test.gained, unchanged.test.lost, unchanged.p_random) == (0, 0, 1.0)
        assert unchanged.logit_difference < 1e-5
        assert not unchanged.claims_gain


def test_all_neurons_chosen_is_what_random_neurons_give() -> None:
    every = study(selections=[Tau(-1e9)], rules=[Scale(factor=2.0)], controls=20)
    assert every.selected.all()
    assert every.verdict.endswith(" The selection took every neuron of lin.")
    assert study(selections=[Tau(1e9)], rules=[Scale()], controls=1).verdict.endswith("took no neuron of lin.")
    assert every.p_random == every.p_shuffled == 1.0
    assert not every.claims_gain


def test_without_controls_nothing_is_claimed(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_few_draws(0.05, 40)
    assert not caplog.text
    warn_of_few_draws(0.05, 39)
    assert (
        "With study.controls=39 draws, only an edit that no draw equals can reach p < 0.05. Give 99 or more"
        in caplog.text
    )
    warn_of_few_draws(0.05, 19)
    assert "With study.controls=19 draws, no edit can reach p < 0.05" in caplog.text
    other = study(controls=0)
    assert np.isnan(other.p_random)
    assert other.verdict.startswith("No claim, because no controls were drawn: +")
    assert not other.claims_gain


def test_an_edit_that_overflows_never_wins_and_alone_is_an_error() -> None:
    rules = [Proportional(factor=1e38), Proportional(factor=1.0)]
    for metric in ("nll", "accuracy", "macro_f1"):
        other = study(selections=[AllNeurons()], rules=rules, metric=metric, controls=3)
        assert other.settings["factor"] == 1.0, metric
        assert len(other.grid) == 2
    for metric in ("nll", "accuracy"):
        with pytest.raises(
            UserError, match=r"Every edit produces logits that are not finite; the largest value .* 1e\+38"
        ):
            study(selections=[AllNeurons()], rules=rules[:1], metric=metric, controls=3)


def test_a_network_that_gives_nan_is_reported() -> None:
    net = network()
    with torch.no_grad():
        net.lin.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=r"NaN or infinite logits for 300 of 300 images"):
        study(net=net)


def test_the_choice_is_not_made_on_images_that_judge() -> None:
    with pytest.raises(
        UserError,
        match=r"10 of the 300 images that the edit is chosen on are among those it is "
        r"evaluate",
    ):
        study(test=joined([TEST, VAL.subset(range(10))]))
    assert study(test=joined([TEST, VAL]), select_on_test=True, controls=3).optimistic


def test_chosen_on_test_never_claims() -> None:
    other = study(select_on_test=True)
    assert other.test.p_value < 0.05
    assert other.p_random < 0.05
    assert not other.claims_gain


def test_dead_neurons_stay_dead_in_every_control() -> None:
    """The labels of live neurons are uninformative; avoiding dead neurons must not count in their favour."""
    named = labels(1.0, np.nan)
    generator = np.random.default_rng(0)
    for _ in range(20):
        moved = shuffled(named, generator)
        assert moved["similarity"].isna().tolist() == [False] * GOOD + [True] * NOISE
        assert sorted(moved["similarity"].dropna()) == sorted(named["similarity"].dropna())
        assert moved["neuron"].tolist() == named["neuron"].tolist()
    # All living neurons are chosen: no shuffling and no draw gives another edit, so nothing can be claimed.
    other = study(neurons=named, selections=[Tau(0.0)], rules=[Scale(factor=3.0)], controls=39)
    assert other.test.delta > 0.1
    assert other.p_random == other.p_shuffled == 1.0
    assert not other.claims_gain


def test_a_grid_of_levels_keeps_them_apart() -> None:
    named = labels().assign(q_value=np.linspace(0, 1, GOOD + NOISE))
    other = study(neurons=named, selections=[Fdr(0.2), Inverse(Fdr(0.5))], controls=3)
    assert other.grid["level"].tolist() == [0.2] * 3 + [0.5] * 3
    assert "tau" not in other.grid


def test_large_grids_shuffle_less_often() -> None:
    other = study(controls=120, control_cells=9 * 110)
    assert (other.controls["control"] == "shuffled").sum() == 110


def cell(change: float) -> Cell:
    return Cell("lin", Tau(0.0), Scale(), torch.tensor([True, False]), Scaling([change, 1.0]))


def test_ties_take_the_smallest_change() -> None:
    truth = torch.tensor([0, 1, 1, 2])
    predicted = torch.tensor([[0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 2], [0, 1, 1, 0]])
    judged = CellResults(predicted, torch.tensor([1.0, 2.0, 0.5, 2.0]), truth, torch.tensor([0, 0, 0, 0]), 1.0, 3)
    assert judged.gained.tolist() == [1, 2, 2, 2]
    assert judged.lost.tolist() == [0, 0, 0, 0]
    cells = [cell(1.1), cell(3.0), cell(2.0), cell(1 / 2.0)]
    assert choose(cells, judged, "accuracy") == 2
    assert choose([*cells[:3], cell(0.6)], judged, "accuracy") == 3
    assert choose(cells, judged, "nll") == 2
    expected = [float(multiclass_f1_score(row, truth, 3, average="macro")) for row in predicted]
    np.testing.assert_allclose(judged.metric("macro_f1"), expected, rtol=1e-6)
    assert cell(0.0).operation.size == pytest.approx(np.log(1e6) / 2)


def test_mistakes_come_before_any_forward_pass() -> None:
    def untouched(images: Tensor) -> Tensor:
        raise AssertionError("a forward pass")

    inference = Inference(untouched, network())
    for changes, message in [
        ({"metric": "acc"}, "study.metric=acc is not known. Did you mean 'accuracy'"),
        ({"val": VAL.subset([])}, "validation set is empty"),
        ({"layers": ["lin2"]}, "no neuron labels for layer 'lin2'. Did you mean 'lin'"),
        ({"selections": []}, "at least one"),
        ({"selections": [LabelledWith(["Tear"])]}, "Did you mean 'Tears'"),
    ]:
        arguments = {
            "layers": ["lin"],
            "neurons": labels(),
            "selections": SELECTIONS,
            "rules": RULES,
            "val": VAL,
            "test": TEST,
            **changes,
        }
        with pytest.raises(UserError, match=message.replace(".", r"\.")):
            run_study(inference, **arguments)  # type: ignore[arg-type]


def threes() -> tuple[nn.Sequential, pd.DataFrame, ImageSet]:
    """Neurons 3k, 3k + 1 and 3k + 2 each suffice to detect class k; nine neurons do nothing; the last is dead."""
    net = nn.Sequential(OrderedDict(lin=nn.Linear(16, 19), relu=nn.ReLU(), out=nn.Linear(19, 3)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
        for neuron in range(9):
            net.lin.weight[neuron, neuron // 3] = net.out.weight[neuron // 3, neuron] = 1.0
        net.lin.bias[18] = 1.0
        net.out.weight[0, 18] = 0.01  # a network that knows nothing says class 0
    truth = torch.arange(30) % 3
    images = torch.full((30, 16), 128, dtype=torch.uint8)
    images[torch.arange(30), truth] = 255
    named = pd.DataFrame(
        {
            "layer": "lin",
            "neuron": range(19),
            "concept": ["zero"] * 3 + ["one"] * 3 + ["two"] * 3 + ["rest"] * 10,
            "similarity": [1.0] * 18 + [np.nan],
        }
    )
    return net, named, ImageSet(images.reshape(30, 1, 4, 4), truth, torch.arange(30))


def test_concept_ablation_by_hand(tmp_path: Path) -> None:
    net, named, faces = threes()
    found = ablate_concepts(Inference(flat, net), "lin", named, faces, ("a", "b", "c"), draws=400)
    assert found.matrix().index.tolist() == ["rest", "zero", "one", "two"]
    expected = np.array([[0.0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 0, 1]])
    np.testing.assert_allclose(found.matrix().to_numpy(), expected)
    assert found.matrix("neurons")["a"].tolist() == [9, 3, 3, 3]  # the dead neuron is never silenced
    # Nine of 18 hold all three of a class with chance C(15, 6) / C(18, 9), three with chance 1 / C(18, 3).
    np.testing.assert_allclose(found.matrix("random_mean").loc["rest", ["b", "c"]], 5005 / 48620, atol=0.05)
    np.testing.assert_allclose(found.matrix("random_mean").loc["one", ["b", "c"]], 1 / 816, atol=0.01)
    assert (found.matrix("random_mean")["a"] == 0).all()
    # Chance gives as much anywhere when one of three concepts takes all of class b or c: 6 / 816, about 3 of 400 draws.
    assert 1 / 401 <= found.matrix("p_value").loc["one", "b"] < 0.03
    assert found.beyond().to_numpy().tolist() == (expected == 1).tolist()
    assert (found.matrix("p_value").to_numpy()[expected == 0] > 0.5).all()
    found.save(tmp_path)
    pd.testing.assert_frame_equal(ConceptAblation.load(tmp_path).frame, found.frame)


def test_nineteen_draws_can_mark_a_concept() -> None:
    p_values = [exceedance_p(1.0, np.zeros(19)), exceedance_p(1.0, [*np.zeros(18), 1.0])]
    found = ConceptAblation(pd.DataFrame({"concept": "tears", "class": ["sad", "happy"], "p_value": p_values}))
    assert found.beyond().loc["tears"].tolist() == [True, False]


def test_a_large_grid_keeps_enough_draws_to_claim() -> None:
    several = study(control_cells=1, controls=120)
    assert (several.controls["control"] == "shuffled").sum() == 99


def test_a_flip_that_random_neurons_never_do_is_no_discovery() -> None:
    """If the draws have deviation 0, z is measured in images, and one image is not a finding."""
    drops = np.zeros((101, 1, 2))
    drops[0] = [[0.01, 0.5]]
    drops[1:, 0, 1] = np.tile([0.0, 0.02], 50)
    z = leave_one_out_z(drops, np.array([100.0, 100.0]))
    assert z[0, 0, 0] == pytest.approx(1.0)
    assert z[0, 0, 1] == pytest.approx((0.5 - 0.01) / np.hypot(np.std([0.0, 0.02] * 50, ddof=1), 0.01))
    others = np.delete(drops, 7, axis=0)  # every draw is held against all others, the real one among them
    expected = (drops[7] - others.mean(0)) / np.hypot(others.std(0, ddof=1), 0.01)
    np.testing.assert_allclose(z[7], expected)


def test_concepts_that_say_nothing_are_seldom_called_beyond_random() -> None:
    """Family-wise: at level .05, at most 5 % of matrices have any mark, although the neurons truly differ."""
    inference = Inference(flat, network())
    generator = np.random.default_rng(0)
    marked = 0
    for study in range(60):
        named = labels()
        named["concept"] = generator.permutation([f"c{i % 6}" for i in range(GOOD + NOISE)])
        found = ablate_concepts(inference, "lin", named, VAL, "abc", draws=39, seed=study)
        marked += int(found.beyond().to_numpy().any())
    assert marked <= binom.ppf(0.999, 60, 0.05)


def test_ablation_rules_and_mistakes() -> None:
    inference = Inference(flat, network())
    found = ablate_concepts(inference, "lin", labels(), VAL, "abc", rule=Ablate(parameters="outgoing"), draws=20)
    assert found.matrix().index.tolist() == ["Tears", "Frown"]
    assert found.matrix().loc["Tears"].sum() > found.matrix().loc["Frown"].sum()
    with pytest.raises(UserError, match="No living neuron"):
        ablate_concepts(inference, "lin", labels(np.nan, np.nan), VAL, "abc")
    with pytest.raises(UserError, match="draws=1 is too small"):
        ablate_concepts(inference, "lin", labels(), VAL, "abc", draws=1)


@pytest.mark.slow
@pytest.mark.parametrize(("taus", "factors", "studies"), [((0.0,), (3.0,), 200), ((-0.93, 0.0, 1.02), (1.5, 3.0), 100)])
def test_labels_that_say_nothing_lead_to_a_claim_at_most_as_often_as_alpha(
    taus: tuple[float, ...], factors: tuple[float, ...], studies: int
) -> None:
    """Neurons truly differ here (some carry noise), so McNemar's test alone would claim a gain far too often."""
    frame = null_studies(
        *(Inference(flat, network()), ["lin"], labels()),
        *([Tau(tau) for tau in taus], [Scale(factor=factor) for factor in factors], VAL, TEST),
        studies=studies,
        controls=39,
    )
    assert len(frame) == studies
    print(f"claims: {frame['claims_gain'].mean():.3f} of {studies}")
    assert frame["claims_gain"].sum() <= binom.ppf(0.999, studies, 0.05)
    assert ((frame["p_value"] < 0.05) & (frame["delta_test"] > 0)).mean() > 0.05
    # p-values of an exact permutation test are uniform, or larger.
    assert (frame["p_shuffled"] <= 0.25).sum() <= binom.ppf(0.999, studies, 0.25)


def test_logits_that_edited_weights_do_not_give_are_an_error() -> None:
    """No prediction flips, but every cell of the grid was evaluated for a different edit."""
    exact = torch.tensor([[5.0, 0.0, -2.0]])
    require_same_logits(exact + 1e-4, exact, "scale")
    with pytest.raises(
        UserError, match=r"disagree for scale: logits differ by 0\.58, more than the tolerance of 0\.005"
    ):
        require_same_logits(exact + 0.58, exact, "scale")
    with pytest.raises(UserError, match="disagree"):
        require_same_logits(torch.full_like(exact, torch.nan), exact, "scale")
    require_same_logits(torch.full_like(exact, torch.inf), torch.full_like(exact, torch.nan), "scale")


@pytest.mark.parametrize("figures", [(0.1, 0.01, 0.01, 0.01), (0.1, 0.01, 0.01, np.nan), (0.1, 0.01, np.nan, 0.01),
                                     (-0.1, 0.01, 0.01, 0.01), (0.1, 0.2, 0.01, 0.01), (0.1, 0.01, 0.2, 0.01),
                                     (0.1, 0.01, 0.01, 0.2)])  # fmt: skip
def test_studies_claim_by_the_one_rule(found: EditStudy, figures: tuple[float, float, float, float]) -> None:
    delta, p_value, p_random, p_shuffled = figures
    test = replace(found.test, delta=delta, p_value=p_value)
    study = replace(found, test=test, p_random=p_random, p_shuffled=p_shuffled)
    assert study.claims_gain == claims_gain(*figures, alpha=0.05) == (figures[1:3] == (0.01, 0.01)
                                                                      and delta > 0 and figures[3] != 0.2)  # fmt: skip
