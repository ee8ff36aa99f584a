"""The scorecard: what is measured of methods, how they are ranked, what is kept, and the command that does it."""

import csv
import json
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from coloured import COLOUR, Coloured
from nets import ConvNet, images, seeded
from PIL import Image
from torch import Tensor, nn

from concepts.cli import app
from concepts.dissection.dissection import Dissection
from concepts.scorecard_rows import PATTERNS, Material, NetworkRows, map_layer
from concepts.tcav.tcav import Tcav
from probing.attribution import METHODS
from probing.attribution.base import Attribution, Demand, LocalMethod, attribution
from probing.attribution.baselines import Constant, Samples
from probing.attribution.cam.cam import CAM
from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.gradient import GradientTimesInput, Saliency
from probing.attribution.path import ExpectedGradients
from probing.attribution.perturbation.lime import LIME
from probing.attribution.perturbation.superpixels import Grid
from probing.attribution.perturbation.surrogate import Local
from probing.data.images import Preprocess
from probing.evaluation.base import EvaluationError
from probing.evaluation.curves import Insertion
from probing.evaluation.scorecard.cost import Cost, PeakMemory, cost_of, hyperparameters
from probing.evaluation.scorecard.criteria import (
    DESIDERATA,
    QUANTITIES,
    QUESTIONS,
    third,
)
from probing.evaluation.scorecard.measure import (
    Scoring,
    declared,
    effective_number,
    evaluate,
    parts_to_read,
    spread_out,
    stated,
)
from probing.evaluation.scorecard.page import scorecard_page
from probing.evaluation.scorecard.ranking import ranks, standings, summary
from probing.evaluation.scorecard.scorecard import Row, Scorecard
from probing.models.loading import LoadedModel
from probing.models.readings import Regression
from probing.models.scores import Score
from probing.results.result import Provenance

NO_COST = Cost(1, 0, 0.1, 1.0, 0.0, 1, 0)
QUICK = Scoring(steps=4, grid=4, draws=8, seeds=1, probed=2)


def values(**given: float | list[float]) -> dict[str, Tensor]:
    return {k: torch.tensor(v if isinstance(v, list) else [v]).double() for k, v in given.items()}


def card(*rows: tuple[str, dict[str, Tensor]], family: str = "backprop") -> Scorecard:
    facts = Provenance.collect()
    made = [Row(facts, name, "Saliency", family, "", own, NO_COST) for name, own in rows]  # type: ignore[arg-type]
    return Scorecard.of(made, facts)


# Ranks


def test_a_standing_is_the_mean_of_scaled_ranks_of_a_desideratum_s_quantities() -> None:
    rows = [
        values(abpc=3.0, gap=0.0, passes=2.0),
        values(abpc=1.0, gap=0.5, passes=9.0),
        values(abpc=2.0, gap=0.5, passes=9.0),
    ]
    found, low, high = standings(rows, draws=10)
    fidelity, efficiency = DESIDERATA.index("fidelity"), DESIDERATA.index("efficiency")
    # abpc: 1, 0, 1/2. gap, less is better and ties are averaged: 1, 1/4, 1/4.
    assert found[:, fidelity].tolist() == [1.0, 0.125, 0.375]
    assert found[:, efficiency].tolist() == [1.0, 0.25, 0.25]
    assert found[:, DESIDERATA.index("sufficiency")].isnan().all()
    torch.testing.assert_close(low, found, equal_nan=True)  # facts are no draws
    torch.testing.assert_close(high, found, equal_nan=True)


def test_intervals_are_wide_where_inputs_disagree_and_closed_where_they_agree() -> None:
    better, mixed = [5.0, 6.0, 7.0, 8.0], [1.0, -1.0, 1.0, -1.0]
    rows = [values(abpc=better), values(abpc=mixed), values(abpc=[-x for x in mixed])]
    found, low, high = (t[:, 0] for t in standings(rows))
    assert (found[0], low[0], high[0]) == (1.0, 1.0, 1.0)
    assert found[1] == found[2] == 0.25
    assert low[1:].tolist() == [0.0, 0.0]
    assert high[1:].tolist() == [0.5, 0.5]


def test_a_quantity_of_one_method_ranks_nobody_and_missing_values_are_left_out() -> None:
    rows = [
        values(abpc=[1.0, math.nan], on_object=0.5),
        values(abpc=[0.0, 4.0]),
        values(abpc=[math.nan, math.nan]),
    ]
    found = standings(rows, draws=5)[0]
    assert found[:2, 0].tolist() == [0.0, 1.0]
    assert math.isnan(found[2, 0])
    assert found[:, DESIDERATA.index("understandability")].isnan().all()
    assert ranks([1.0, math.nan, 3.0, 3.0], "higher")[::2] == [3.0, 1.5]
    assert summary(values(abpc=[1.0, 3.0, math.nan])["abpc"])[::3] == (2.0, 1)
    assert summary(values(abpc=7.0)["abpc"]) == (7.0, 7.0, 7.0, 0)
    mean, low, high, _ = summary(values(effects=[0.9, 0.2, 1.0])["effects"], (-1.0, 1.0))
    assert low < mean < high == 1.0


def test_one_method_can_t_be_ranked() -> None:
    with pytest.raises(EvaluationError, match="compares methods, got 1: give at least two"):
        standings([values(abpc=1.0)])
    with pytest.raises(EvaluationError, match="compares methods, and 1 explain this network"):
        card(("only", values(abpc=1.0)))


def test_thirds_and_where_they_differ_from_what_was_expected() -> None:
    assert [third(s) for s in (0.0, 1 / 3, 0.34, 0.66, 2 / 3, 1.0, math.nan)] == [
        "-",
        "-",
        "0",
        "0",
        "+",
        "+",
        None,
    ]
    mixed = [1.0, -1.0, 1.0, -1.0]
    found = card(
        ("good", values(abpc=[5.0, 6.0, 7.0, 8.0], passes=1.0)),
        ("one", values(abpc=mixed, passes=2.0)),
        ("other", values(abpc=[-x for x in mixed], passes=3.0)),
    ).disagreements
    # + is expected of backpropagation in both columns: "good" agrees.
    assert {(d.method, d.desideratum, d.measured, d.certain) for d in found} == {
        ("one", "fidelity", "-", True),
        ("other", "fidelity", "-", True),
        ("one", "efficiency", "0", True),
        ("other", "efficiency", "-", True),
    }
    assert str(found[-1]) == "other, efficiency: measured \N{MINUS SIGN}, expected +."
    near = card(("a", values(abpc=mixed)), ("b", values(abpc=[-x for x in mixed]))).disagreements
    assert "reaches the expected third" in str(near[0])


# Quantities


def test_all_that_is_measured_belongs_to_a_desideratum_and_every_method_says_what_it_answers() -> None:
    assert {q.desideratum for q in QUANTITIES.values()} == set(DESIDERATA)
    for kind in (*METHODS.values(), Tcav, Dissection):
        assert set(kind.answers) <= set(range(1, len(QUESTIONS) + 1)), kind
        assert set(kind.demands) <= set(get_args(Demand)), kind
    assert all(kind.family in {"backprop", "local"} for kind in METHODS.values())


def test_a_method_that_does_not_say_what_it_demands_is_refused_and_one_without_gradients_is_so_counted() -> None:
    class Flat(LocalMethod):
        def explain(self, score: Score, inputs: Tensor) -> Attribution:
            raise AssertionError

    with pytest.raises(ValueError, match="can't place Flat: let the class say family, answers, demands"):
        declared(Flat())
    Flat.family, Flat.answers, Flat.demands = "local", (1, 2, 3), ()
    assert declared(Flat()) == ("local", (1, 2, 3), ())
    cost = Cost(1, 0, 1.0, 1.0, 1.0, 2, 0)
    assert float(stated((1, 2, 3), (), cost)["constraints"]) == 0


def test_parts_to_read_are_the_exponential_of_the_entropy() -> None:
    assert float(effective_number(torch.tensor([[0.5, -0.25, 0.125, 0.125]]))) == pytest.approx(3.3636, abs=1e-4)
    assert effective_number(torch.tensor([[0.0, 7.0], [2.0, 2.0], [0.0, 0.0]])).nan_to_num(-1).tolist() == [1, 2, -1]


def test_parts_are_pixels_cells_of_a_layer_or_segments() -> None:
    model, x = seeded(nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))), picture()
    score = Score(model, 0)
    assert 20 < float(parts_to_read(Saliency()(score, x))) <= 64
    assert float(parts_to_read(GradCAM("0")(score, x))) <= 16
    found = LIME(parts=Grid(2), surrogate=Local(samples=40))(score, x)
    by_part = dict(zip(found.diagnostics["parts"].flatten().tolist(), found.values.flatten().tolist(), strict=True))
    assert 1 < len(by_part) <= 16
    expected = effective_number(torch.tensor([list(by_part.values())]))
    torch.testing.assert_close(parts_to_read(found), expected)


def test_sums_over_segments_count_each_coefficient_once_and_lime_is_held_to_its_own_prediction() -> None:
    model, x = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 2))), picture(2)
    method = LIME(parts=Grid(2), hidden=Constant((0.0,)), surrogate=Local(samples=200))
    score = Score(model, 0)
    found = method(score, x)
    once = spread_out(found).values.sum((1, 2, 3)).double() + found.diagnostics["intercept"]
    torch.testing.assert_close(once, found.diagnostics["prediction"], atol=1e-4, rtol=1e-4)
    # A linear score of segments is what LIME says, but for its penalty; these patches are the segments.
    scoring = replace(QUICK, substrate=Constant((0.0,)), grid=2)
    values = scoring.rows({"lime": method}, score, x)[0].values
    assert (values["gap"] < 0.15).all()
    assert (values["effects"] > 0.98).all()
    assert spread_out(Saliency()(score, x)).values.shape == x.shape


def picture(n: int = 1) -> Tensor:
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_costs_are_counted() -> None:
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    x, score = picture(3), Score(model, torch.tensor([0, 1, 0]))
    one = cost_of(Saliency(), score, x, runs=2)
    assert (one.n_forward, one.n_backward, one.images, one.labels) == (1, 1, 0, 0)
    assert one.relative > 0
    lime = cost_of(LIME(parts=Grid(2), surrogate=Local(samples=40)), score, x, runs=1)
    assert lime.n_forward >= 16
    assert lime.n_backward == 0
    many = ExpectedGradients(background=Samples.of(picture(5)), samples=6)
    assert cost_of(many, score, x, runs=1).images == 5
    assert hyperparameters(Saliency()) == 0
    assert hyperparameters(many) > hyperparameters(GradientTimesInput()) - 1


def test_memory_is_what_the_work_holds_whatever_ran_before() -> None:
    found = []
    for megabytes in (80, 20, 80):
        with PeakMemory(accelerator=False) as memory:
            held = torch.ones(megabytes * 250_000)
            passing = held[:250_000].repeat(40)
            time.sleep(0.1)  # long enough to be seen on a busy machine
            held = held + 0 * float(passing.sum())
            del passing
        found.append(memory.peak_mb)
    assert found[1] < 0.7 * found[0]
    assert abs(found[2] - found[0]) < 40


@dataclass(frozen=True)
class Backwards(LocalMethod):
    """A map that says the opposite: a control."""

    family = "backprop"
    answers = (1, 2)
    demands = ("gradients",)

    def explain(self, score: Score, inputs: Tensor) -> Attribution:
        found = GradientTimesInput()(score, inputs)
        return attribution(self, score, inputs, -found.values, found.score, n_forward=1, n_backward=1)


@pytest.mark.parametrize("end", [nn.Softmax(1), nn.Sigmoid()])
def test_of_probabilities_the_sufficient_parts_are_those_of_the_probabilities_themselves(
    end: nn.Module,
) -> None:
    logits = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 2))).eval()
    ended = nn.Sequential(*logits, end).eval()
    x, scoring = picture(2), replace(QUICK, substrate=Constant((0.0,)), steps=8, grid=8, draws=3)
    (row,) = scoring.rows({"map": Saliency()}, Score(ended, 0), x)
    found = row.values["sufficient"]
    score, maps = Score(ended, 0), Saliency()(Score(ended, 0), x)
    insertion = Insertion(baselines=(Constant((0.0,)),), steps=8, patch=1, seed=scoring.seed)
    curves = insertion(maps, score, x)
    enough = curves.values[0, 0] >= 0.9 * curves.values[0, 0][:, -1:]
    torch.testing.assert_close(found, curves.shares[enough.double().argmax(1)].double())


def test_of_a_linear_score_the_true_map_is_faithful_and_its_opposite_is_not() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2, bias=False)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(0.5, 3.5, 128).view(2, 64))
    x = picture(4).abs() + 0.1
    scoring = replace(QUICK, substrate=Constant((0.0,)), steps=8, grid=8, draws=12)
    found = scoring({"true": GradientTimesInput(), "opposite": Backwards()}, Score(model, 0), x)
    true, opposite = (row.values for row in found.rows)
    torch.testing.assert_close(true["effects"], torch.ones(4).double())
    torch.testing.assert_close(opposite["effects"], -torch.ones(4).double())
    assert (true["abpc"] > 0).all()
    torch.testing.assert_close(opposite["abpc"], -true["abpc"])
    torch.testing.assert_close(true["gap"], torch.zeros(4).double(), atol=1e-6, rtol=0)
    torch.testing.assert_close(opposite["gap"], torch.full((4,), 2.0).double())
    assert (true["sufficient"] <= opposite["sufficient"]).all()
    assert found.mark(0, 0) == "+"
    assert found.mark(1, 0) == "-"


def test_energy_on_the_object_is_measured_where_masks_are_given() -> None:
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    masks = torch.zeros(2, 8, 8, dtype=torch.bool)
    masks[:, :4] = True
    methods = {"a": Saliency(), "b": GradientTimesInput()}
    rows = QUICK.rows(methods, Score(model, 0), picture(2), masks)
    assert all(0 <= float(v) <= 1 for row in rows for v in row.values["on_object"])
    assert "on_object" not in QUICK.rows({"a": Saliency()}, Score(model, 0), picture(2))[0].values


def test_a_method_that_refuses_the_network_has_a_row_that_says_why() -> None:
    model = seeded(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)))
    methods = {"saliency": Saliency(), "cam": CAM(), "gxi": GradientTimesInput()}
    found = QUICK(methods, Score(model, 0), picture(2))
    assert found.rows[1].refused
    assert found.standing[1].isnan().all()
    assert not found.standing[0].isnan().all()
    assert found.table()[1]["refused"] == found.rows[1].refused
    with pytest.raises(EvaluationError, match=r"1 explain this network.* cam: "):
        QUICK({"cam": CAM(), "a": Saliency()}, Score(model, 0), picture(2))


# What is kept


def test_rows_are_kept_and_made_again_only_if_what_they_depend_on_has_changed(
    tmp_path: Path,
) -> None:
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    methods = {"a": Saliency(), "b": GradientTimesInput()}
    told: list[tuple[str, bool]] = []

    def made(scoring: Scoring = QUICK, x: Tensor = picture(2), target: int = 0) -> set[str]:  # noqa: B008
        told.clear()
        score = Score(model, target)
        scoring.rows(methods, score, x, folder=tmp_path, done=lambda *d: told.append(d))
        return {name for name, computed in told if computed}

    assert made() == {"a", "b"}
    assert made() == set()
    (tmp_path / "b" / "result.json").write_text("{", encoding="utf-8")  # as after a crash
    assert made() == {"b"}
    assert made(replace(QUICK, seed=1)) == {"a", "b"}
    assert made(replace(QUICK, seed=1), picture(3)) == {"a", "b"}
    assert made(replace(QUICK, seed=1), picture(3), 1) == {"a", "b"}
    with torch.no_grad():
        model[1].bias.add_(1)  # type: ignore[operator, union-attr]
    assert made(replace(QUICK, seed=1), picture(3), 1) == {"a", "b"}


def test_a_card_is_saved_tabulated_and_made_a_page(tmp_path: Path) -> None:
    model = seeded(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)))
    found = QUICK({"a": Saliency(), "b": GradientTimesInput()}, Score(model, 0), picture(3))
    again = Scorecard.load(found.save(tmp_path / "result"))
    torch.testing.assert_close(again.standing, found.standing, equal_nan=True)
    assert again.rows[1].cost == found.rows[1].cost
    table = found.to_pandas()
    assert set(table["method"]) == {"a", "b"}
    sampled = table[(table["inputs"] > 1) & table["low"].notna()]
    assert (sampled["low"] <= sampled["high"]).all()
    page = scorecard_page(found, "a net <script>").html()
    assert "a net &lt;script&gt;" in page
    assert page.count("<details") > len(DESIDERATA)
    findings = scorecard_page(found, "").findings
    assert findings[0].claim.startswith("Fidelity: ")
    assert all("a" in f.claim and "b" in f.claim for f in findings)


# The command

TRANSFORM = Preprocess(size=16, resize=None, channels="grey", mean=(0.4,), std=(0.25,))


def pictured() -> LoadedModel:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 3),
    )
    return LoadedModel(seeded(net), TRANSFORM, ("ant", "bee", "cat"))


MODEL = "test_scorecard:pictured"
FEW = [
    "--method",
    "saliency",
    "--method",
    "gradcam",
    "--method",
    "lime",
    "--lime-samples",
    "20",
    "--no-network",
]


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (16, 16), dtype=np.uint8)).save(path)
    return [str(path) for path in paths]


def test_the_command_writes_table_figures_and_page_and_goes_on_where_it_stopped(
    photos: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "card"
    command = ["evaluate", MODEL, *photos, "--out", str(out), *FEW]
    assert app.main(command) == 0
    printed = capsys.readouterr()
    # Besides, a slow machine says how long it takes.
    measured = [line for line in printed.err.splitlines() if line.endswith(": measured")]
    assert measured == [f"{m}: measured" for m in ("saliency", "gradcam", "lime")]
    assert "fidelity" in printed.out
    with (out / "scorecard.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["method"] for line in lines] == ["saliency", "gradcam", "lime"]
    assert all(set(DESIDERATA) <= set(line) for line in lines)
    assert lines[2]["n_backward"] == "0"
    document = json.loads((out / "scorecard.json").read_text(encoding="utf-8"))
    assert document["table"][0]["method"] == "saliency"
    assert document["answered"]["lime"] == [1, 2, 3, 8]
    assert "Which explanation should I trust?" in (out / "scorecard.html").read_text("utf-8")
    for name in ("scorecard.png", "scorecard.pdf", "evidence.png", "evidence.pdf"):
        assert (out / name).stat().st_size > 1000
    monkeypatch.setattr(Scorecard, "write", lambda *_: ())  # drawn once is enough
    assert app.main(command) == 0
    assert capsys.readouterr().err.count("kept from before") == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "magic", "--method", "lime"], "there is no method 'magic'"),
        (["--method", "lime"], "compares methods, got 1"),
        (["--method", "lime", "--method", "lime"], "--method lime is given twice"),
        (["--method", "lime", "--method", "layer_ig"], "layer_ig explains a layer"),
        (["--method", "layer_conductance", "--method", "lime"], "layer_conductance explains a layer"),
        (["--method", "lime", "--method", "expected_gradients"], "needs --background"),
        ([*FEW, "--target", "dog"], "dog"),
        ([*FEW, "--concept", "red=here"], "--concept needs --random"),
        ([*FEW, "--random", "here"], "needs three concepts or more, by --concept, got 0"),
    ],
)
def test_what_can_t_be_compared_is_refused_in_a_sentence(
    photos: list[str],
    tmp_path: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert app.main(["evaluate", MODEL, *photos, "--out", str(tmp_path / "o"), *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1


# Whole networks


@pytest.fixture(scope="module")
def material() -> Material:
    drawn = Material.drawn(COLOUR, 9)
    return Material(drawn.concepts[3:6], drawn.pool)


@pytest.fixture(scope="module")
def colours() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_the_layer_read_is_the_last_one_finer_than_the_last_map() -> None:
    x = torch.zeros(1, 3, 16, 16)
    assert map_layer(Score(Coloured(linear=True).eval(), 0), x) == "fine"
    flat = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 2)).eval()
    assert map_layer(Score(flat, 0), x) == "1"
    assert [c.name for c in Material.drawn(COLOUR, 9).concepts] == list(PATTERNS)


def test_concepts_effects_are_predicted_exactly_by_a_linear_network_and_not_by_another(
    material: Material, colours: Tensor
) -> None:
    found = {}
    for linear in (True, False):
        score = Score(seeded(Coloured(linear=linear)), torch.tensor([0, 1, 0]))
        tcav, dissection = NetworkRows(scenes=8, draws=9)(score, colours, COLOUR, material)
        found[linear] = tcav.values["effects"]
        assert tcav.family == dissection.family == "network"
        assert tcav.cost.images == tcav.cost.labels + 18 == 3 * 9 + 18
        assert tcav.cost.n_forward == 3 * 9 + 18 + 3
        assert tcav.cost.n_backward == 3
        assert dissection.cost.n_forward == 8
        assert 1 <= float(tcav.values["parts"][0]) <= 3
        assert "accuracy" in tcav.notes[0]
        assert "effects" not in dissection.values
    torch.testing.assert_close(found[True], torch.ones(3).double(), atol=1e-4, rtol=0)
    assert (found[False] < 0.999).all()


def test_rows_of_whole_networks_stand_beside_those_of_maps_and_are_kept(
    material: Material, colours: Tensor, tmp_path: Path
) -> None:
    score = Score(seeded(Coloured(linear=False)), 0)
    told: list[tuple[str, bool]] = []
    for _ in range(2):
        rows = NetworkRows(scenes=8, draws=9)(
            score, colours, COLOUR, material, folder=tmp_path, done=lambda *d: told.append(d)
        )
    assert [computed for _, computed in told] == [True, True, False, False]
    found = QUICK.card((*QUICK.rows({"saliency": Saliency()}, score, colours), *rows), score, colours)
    efficiency, fidelity = DESIDERATA.index("efficiency"), DESIDERATA.index("fidelity")
    assert found.mark(0, efficiency) == "+"
    assert found.mark(1, efficiency) == "-"
    assert found.mark(2, fidelity) is None
    assert "it has no fidelity here" in scorecard_page(found, "a net").html()


def test_a_network_without_places_has_no_dissection_and_says_so(material: Material, colours: Tensor) -> None:
    net = seeded(nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, 2)))
    row = NetworkRows("2", scenes=8, draws=9)(Score(net, 0), colours, COLOUR, material)[1]
    assert "returns shape (1, 4), no map" in row.refused
    assert not row.values


def test_a_score_of_another_kind_gets_a_scorecard_without_what_needs_a_probability() -> None:
    score = Score(seeded(ConvNet()), Regression(1, unit="kg"))
    methods = {"saliency": Saliency(), "input": GradientTimesInput()}
    card = evaluate(score, images(3), methods=methods, scoring=Scoring(steps=4, grid=3, draws=8, probed=2))
    assert [row.name for row in card.rows] == ["saliency", "input"]
    assert all(bool(row.values["sufficient"].isnan().all()) for row in card.rows)
    assert bool(card.rows[0].values["abpc"].isfinite().all())
    assert set(card.to_pandas()["method"]) == {"saliency", "input"}
    assert "saliency" in str(scorecard_page(card, "a number"))
