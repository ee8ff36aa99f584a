"""Local against network-level explanations: closed forms of linear heads, sums that hold, and truths that were planted."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from concepts.effects.concept_attribution import ConceptGradients, DirectionError
from concepts.local_vs_global.compare import Compare
from concepts.local_vs_global.matched_pairs import (
    ComparisonError,
    MatchedConcept,
    Sides,
    evidence,
    silenced,
)
from concepts.local_vs_global.result import CLAIMED, HIDDEN, REVERSED, Comparison
from probing.attribution.base import Attribution
from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.gradient import GradientTimesInput
from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.results.result import Result, rebuild
from probing.statistics.hypothesis_tests import TooFewError, spearman
from probing.store.store import ActivationStore


class Planted(nn.Module):
    """Copies three channels, rectifies them, averages over places, and mixes them into two logits.

    Class 0 rises with channel 0 and falls with channel 1, class 1 rises with channel 2 alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 3, 1, bias=False)
        self.rectify = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(3, 2, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[:, :, None, None])
            self.head.weight.copy_(torch.tensor([[8.0, -4.0, 0.0], [0.0, 0.0, 6.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.rectify(self.features(x))).flatten(1))


class Bent(nn.Module):
    """A layer of features, and logits that bend behind it: (v·f)² / 2 and a product of two features."""

    def __init__(self, v: Tensor) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.register_buffer("v", v)

    def forward(self, x: Tensor) -> Tensor:
        f = self.features(x)
        return torch.stack([(f @ self.v).square() / 2, f[:, 0] * f[:, 1]], 1)


def linear(weight: Tensor) -> nn.Module:
    net = nn.Sequential(nn.Identity(), nn.Linear(weight.shape[1], len(weight), bias=False)).double()
    net[1].weight.data.copy_(weight)
    return net.eval()


def test_behind_a_linear_head_parts_are_coordinates_times_slopes(
    generator: torch.Generator,
) -> None:
    weight, directions, x, start = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((2, 5), (2, 5), (4, 5), (4, 5))
    )
    found = ConceptGradients("0", steps=3)(Score(linear(weight), 1), x, directions, ("a", "b"), start)
    coordinates = torch.linalg.lstsq(directions.T, (x - start).T).solution.T
    torch.testing.assert_close(found.values, coordinates * (directions @ weight[1]))
    left = (x - start) - coordinates @ directions
    torch.testing.assert_close(found.remainder, left @ weight[1])
    torch.testing.assert_close(found.change, (x - start) @ weight[1])
    assert found.gap.abs().max() < 1e-12
    torch.testing.assert_close(found.explained, 1 - left.square().sum(1) / (x - start).square().sum(1))


def test_along_the_direction_that_a_square_bends_by_all_of_it_is_carried() -> None:
    v = torch.tensor([0.6, 0.8, 0.0], dtype=torch.float64)
    across = torch.tensor([-0.8, 0.6, 0.0], dtype=torch.float64)
    x = torch.tensor([[1.0, 2.0, 3.0], [-2.0, 0.5, 1.0]], dtype=torch.float64)
    score = Score(Bent(v).eval(), 0)
    found = ConceptGradients("features")(score, x, torch.stack([v, across]), ("along", "across"))
    torch.testing.assert_close(found.values[:, 0], (x @ v).square() / 2)
    assert found.values[:, 1].abs().max() < 1e-12
    assert found.remainder.abs().max() < 1e-12


def test_parts_add_up_to_the_change_of_the_score_and_do_not_depend_on_lengths_or_order(
    generator: torch.Generator,
) -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Softplus(), nn.Flatten(), nn.Linear(80, 2)
    ).double()
    x, start = torch.randn(2, 3, 3, 8, 8, generator=generator, dtype=torch.float64)
    directions = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    score, method = Score(net.eval(), 1), ConceptGradients("1", steps=200)
    found = method(score, x, directions, ("a", "b", "c"), start)
    with torch.no_grad():
        change = net(x)[:, 1] - net(start)[:, 1]
    torch.testing.assert_close(found.change, change)
    torch.testing.assert_close(found.values.sum(1) + found.remainder + found.gap, change)
    coarse = replace(method, steps=50)(score, x, directions, ("a", "b", "c"), start)
    assert (found.gap.abs() < 1e-5 * change.abs().max()).all()
    assert (found.gap.abs() < coarse.gap.abs().max() / 8).all()  # the midpoint rule's error falls with the square: 1/16
    assert found.maps.shape == (3, 3, 6, 6)
    torch.testing.assert_close(found.maps.sum((2, 3)), found.values)
    scaled = directions[[2, 0, 1]] * torch.tensor([[-3.0], [0.1], [20.0]], dtype=torch.float64)
    other = method(score, x, scaled, ("c", "a", "b"), start)
    torch.testing.assert_close(other.values, found.values[:, [2, 0, 1]])
    whole = method(score, x, torch.eye(4).double(), ("0", "1", "2", "3"), start)
    assert whole.remainder.abs().max() < 1e-10
    torch.testing.assert_close(whole.values, method.path(score, x, start).by_unit)
    torch.testing.assert_close(whole.explained, torch.ones(3, dtype=torch.float64))


def test_a_direction_of_the_whole_layer_is_one_of_all_its_places(
    generator: torch.Generator,
) -> None:
    net = Planted().double().eval()
    x = torch.rand(2, 3, 4, 4, generator=generator, dtype=torch.float64)
    everywhere = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    everywhere[0, 0] = x[0, 0]
    found = ConceptGradients("features")(Score(net, 0), x[:1], everywhere.flatten(1), ("red",))
    torch.testing.assert_close(found.values[:, 0], 8 * x[:1, 0].mean((1, 2)))
    assert found.maps.shape == (1, 1)


class Turned(nn.Module):
    """Hands on a map with channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


def test_channels_may_come_last_and_tokens_are_places(generator: torch.Generator) -> None:
    weight = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    x = torch.rand(2, 3, 4, 5, generator=generator, dtype=torch.float64)

    class Last(nn.Module):
        def __init__(self, *, tokens: bool) -> None:
            super().__init__()
            self.turned, self.tokens = nn.Sequential(Turned(), nn.Flatten(1, 2)) if tokens else Turned(), tokens
            self.register_buffer("weight", weight)

        def forward(self, x: Tensor) -> Tensor:
            y = self.turned(x).square()
            return y.mean(1 if self.tokens else (1, 2)) @ self.weight.T

    directions = torch.randn(2, 3, generator=generator, dtype=torch.float64)
    found = [
        ConceptGradients("turned", channels_last=not tokens)(Score(Last(tokens=tokens).eval(), 1), x, directions, ("a", "b"))
        for tokens in (False, True)
    ]
    coordinates = x.movedim(1, -1) @ torch.linalg.pinv(directions)
    slope = x.movedim(1, -1) * weight[1] / 20  # half of 2 x w, as the path starts at zero
    expected = (coordinates * (slope @ directions.T)).sum((1, 2))
    for one in found:
        torch.testing.assert_close(one.values, expected)
    assert found[0].maps.shape == (2, 2, 4, 5)
    assert found[1].maps.shape == (2, 2, 20)
    score = Score(Last(tokens=False).eval(), 0)
    without = silenced(score, "turned", x, [0, 1], channels_last=True)
    torch.testing.assert_close(without, x[:, 2].square().mean((1, 2)) * weight[0, 2])


def test_directions_that_do_not_tell_parts_apart_are_refused(generator: torch.Generator) -> None:
    score, x = Score(linear(torch.eye(3).double()), 0), torch.ones(2, 3, dtype=torch.float64)
    method, one = ConceptGradients("0"), torch.tensor([[1.0, 0.0, 0.0]])
    with pytest.raises(DirectionError, match=r"'a', 'b'.* do not differ enough"):
        method(score, x, torch.cat([one, -2 * one]), ("a", "b"))
    with pytest.raises(DirectionError, match="do not differ enough"):
        method(score, x, torch.zeros(1, 3), ("a",))
    with pytest.raises(DirectionError, match="the direction of 'b' holds NaN or infinity"):
        method(score, x, torch.cat([one, torch.nan * one]), ("a", "b"))
    with pytest.raises(DirectionError, match="do not differ enough"):
        method(score, x, torch.randn(4, 3, generator=generator), ("a", "b", "c", "d"))
    with pytest.raises(DirectionError, match=r"of 2 numbers do not fit layer '0', which returns \(3,\)"):
        method(score, x, one[:, :2], ("a",))
    with pytest.raises(DirectionError, match="1 directions have 2 names"):
        method(score, x, one, ("a", "b"))


def test_concept_attribution_is_saved_and_its_method_rebuilt(tmp_path: Path) -> None:
    method = ConceptGradients("0", steps=7)
    score, x = Score(linear(torch.eye(3).double()), 0), torch.ones(2, 3, dtype=torch.float64)
    found = method(score, x, torch.eye(3).double()[:2], ("a", "b"))
    loaded = Result.load(found.save(tmp_path))
    assert torch.equal(loaded.values, found.values)  # type: ignore[attr-defined]
    assert rebuild(loaded.provenance.method) == method
    assert list(found.to_pandas().columns) == ["a", "b", "remainder", "gap", "change"]


def map_of(values: Tensor) -> Attribution:
    one = torch.zeros(len(values))
    net = linear(torch.ones(1, 2).double())
    base = GradientTimesInput()(Score(net, 0), torch.ones(len(values), 2, dtype=torch.float64))
    return replace(base, values=values, score=one)


def test_evidence_is_what_lies_inside_beyond_what_the_area_gives() -> None:
    masks = torch.zeros(6, 4, 4, dtype=torch.bool)
    masks[:, :2, :2] = True
    maps = torch.zeros(6, 2, 4, 4)
    maps[0] = 1  # everywhere alike
    maps[1, 0, :2, :2] = 1  # inside alone
    maps[2, 0, :2, :2] = -1
    maps[3, 0, 2:, 2:] = 1  # elsewhere alone
    maps[4, 0, :2, :2], maps[4, 1, :2, :2] = 1, -1  # nothing once channels are summed
    maps[5, 0, :2, :2], maps[5, 0, 2:, :2] = 1, -1  # as much against as for
    expected = torch.tensor([0.0, 0.75, -0.75, -0.25, 0.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(evidence(map_of(maps), masks), expected)


def scenes(seed: int, n: int = 48) -> dict[str, MatchedConcept]:
    """Return pairs: a red patch and a green tint that class 0 uses, a blue patch that it does not see."""
    generator = torch.Generator().manual_seed(seed)
    base = 0.2 + 0.1 * torch.rand(n, 3, 8, 8, generator=generator)
    clusters = tuple(f"place {i // 2}" for i in range(n))
    found = {}
    for channel, name in enumerate(("red", "green", "blue")):
        patched = base.clone()
        rows, columns = (slice(0, 8),) * 2 if name == "green" else (slice(2, 5), slice(3, 7))
        patched[:, channel, rows, columns] += 0.5 + 0.1 * torch.rand(n, 1, 1, generator=generator)
        found[name] = MatchedConcept(name, TensorExamples(patched), TensorExamples(base), clusters, units=(channel,))
    return found


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """Return the comparison of three concepts for two classes of the planted net."""
    net = Planted().eval()
    method = Compare(
        "rectify",
        {"gxi": GradientTimesInput(), "gradcam": GradCAM("rectify")},
        steps=4,
        explained=8,
        relabellings=999,
        pseudo_concepts=39,
    )
    targets = {"zero": Score(net, 0), "one": Score(net, 1)}
    return method(ActivationStore(progress=False), targets, list(scenes(0).values()))


def of(found: Comparison, measure: str, concept: str, target: str = "zero") -> float:
    at = found.concepts.index(concept), found.targets.index(target)
    return float(found.value[found.measures.index(measure)][at])


def told(found: Comparison, measure: str, concept: str, target: str = "zero") -> bool:
    at = found.concepts.index(concept), found.targets.index(target)
    return bool(found.significant[found.measures.index(measure)][at])


def test_a_planted_concept_is_found_by_every_measure_and_one_that_is_not_used_by_none(
    comparison: Comparison,
) -> None:
    for measure in comparison.measures:
        if measure != "tcav":  # one gradient for all inputs: 0 or 1 by construction
            assert told(comparison, measure, "red")
            assert not told(comparison, measure, "blue")
    assert of(comparison, "tcav", "red") == 1
    patch = 12 / 64
    assert of(comparison, "swap", "red") == pytest.approx(8 * patch * 0.55, rel=0.05)
    for measure in ("concept attribution", "units (weight)", "units (ablation)", "effect"):
        ratio = of(comparison, measure, "red") / of(comparison, "swap", "red")
        assert ratio == pytest.approx(1, abs=0.35), measure
    own, swap = (comparison.by_pair[comparison.measures.index(m), 0, 0] for m in ("concept attribution", "swap"))
    torch.testing.assert_close(own[~own.isnan()], swap[~own.isnan()], rtol=1e-4, atol=1e-6)
    assert abs(of(comparison, "swap", "blue")) < 1e-6
    assert of(comparison, "swap", "blue", "one") == pytest.approx(6 * patch * 0.55, rel=0.05)


def test_what_has_no_place_of_its_own_is_listed_as_hidden_with_the_pairs_that_show_it(
    comparison: Comparison,
) -> None:
    assert of(comparison, "swap", "green") == pytest.approx(-4 * 0.55, rel=0.05)
    assert of(comparison, "gxi", "green") == pytest.approx(0, abs=1e-6)
    parted = [p for p in comparison.partings() if (p.concept, p.target) == ("green", "zero")]
    assert [(p.kind, p.heat_map) for p in parted] == [(HIDDEN, "gxi"), (HIDDEN, "gradcam")]
    found = parted[1]
    assert len(found.pairs) == 3
    c = comparison.concepts.index("green")
    assert set(found.pairs) <= set(comparison.pairs[c])
    swaps = comparison.by_pair[comparison.measures.index("swap"), c, 0]
    looked = ~comparison.by_pair[comparison.measures.index("gradcam"), c, 0].isnan()
    largest = comparison.pairs[c][int(torch.where(looked, swaps.abs(), -1).argmax())]
    assert found.pairs[0] == largest
    assert any("green for zero" in line and "gradcam" in line for line in comparison.sentences())
    assert not [p for p in comparison.partings() if (p.concept, p.heat_map) == ("red", "gxi")]


def test_the_parts_of_every_pair_add_up_to_its_swap(comparison: Comparison) -> None:
    own = comparison.by_pair[comparison.measures.index("concept attribution")]
    swap = comparison.by_pair[comparison.measures.index("swap")]
    known = ~own.isnan()
    assert int(known.sum()) == 3 * 2 * 8
    total = own + comparison.others + comparison.remainder + comparison.gap
    torch.testing.assert_close(total[known], swap[known], atol=1e-5, rtol=1e-5)


def test_measures_are_compared_by_rank_over_concepts_and_classes(comparison: Comparison) -> None:
    agreement = comparison.agreement("concept attribution", "swap")
    assert agreement.n == 6
    assert agreement.r == pytest.approx(1)
    assert comparison.plot().get_title() == ""
    frame = comparison.to_pandas()
    assert len(frame) == len(comparison.measures) * 6
    assert "green for zero" in comparison._repr_html_()


def test_partings_follow_from_what_is_told(comparison: Comparison) -> None:
    i = {name: k for k, name in enumerate(comparison.measures)}
    p = torch.ones_like(comparison.p_corrected)

    def kinds(told_by: tuple[str, ...], sign: float = 1.0) -> set[str]:
        changed, value = p.clone(), comparison.value.clone()
        for name in told_by:
            changed[i[name], 0, 0] = 0.001
        value[i["gxi"], 0, 0] = sign
        found = replace(comparison, p_corrected=changed, value=value).partings()
        return {x.kind for x in found if x.heat_map == "gxi" and (x.concept, x.target) == ("red", "zero")}

    assert kinds(()) == set()
    assert kinds(("swap", "effect")) == {HIDDEN}
    assert kinds(("swap", "tcav")) == {HIDDEN}
    assert kinds(("swap",)) == set()
    assert kinds(("effect", "tcav")) == set()
    assert kinds(("gxi",)) == {CLAIMED}
    assert kinds(("gxi", "effect")) == set()
    assert kinds(("gxi", "swap", "effect")) == set()
    assert kinds(("gxi", "swap", "effect"), -1.0) == {REVERSED}


def test_a_comparison_is_saved_and_repeats(comparison: Comparison, tmp_path: Path) -> None:
    loaded = Result.load(comparison.save(tmp_path))
    assert isinstance(loaded, Comparison)
    torch.testing.assert_close(loaded.value, comparison.value, equal_nan=True)
    method = rebuild(loaded.provenance.method)
    assert isinstance(method, Compare)
    net = Planted().eval()
    targets = {"zero": Score(net, 0), "one": Score(net, 1)}
    again = method(ActivationStore(progress=False), targets, list(scenes(0).values()))
    assert torch.equal(again.value.nan_to_num(9), comparison.value.nan_to_num(9))


def test_directions_are_fitted_on_clusters_that_are_not_judged() -> None:
    concept = scenes(0)["red"]
    sides = Sides.of(concept, None, 0.5, 0)
    fit, judge = (set(sides.clusters(side)) for side in (sides.fit, sides.judge))
    assert fit
    assert judge
    assert not fit & judge
    assert len(fit | judge) == 24
    chosen = sides.some(6)
    assert len({sides.clusters(sides.judge)[i] for i in chosen}) == 6
    named = Sides.of(concept, {"place 0"}, 0.5, 0)
    assert named.fit == (0, 1)


def test_pixels_are_where_a_pair_differs_unless_masks_say_otherwise() -> None:
    concept = scenes(0)["blue"]
    found = concept.pixels([3, 5])
    expected = torch.zeros(2, 8, 8, dtype=torch.bool)
    expected[:, 2:5, 3:7] = True
    assert torch.equal(found, expected)
    masked = replace(concept, masks=torch.ones(48, 8, 8, dtype=torch.bool))
    assert masked.pixels([0]).all()


def test_silent_units_are_zero_everywhere_and_the_model_is_left_as_found() -> None:
    net = Planted().eval()
    x = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    without = silenced(Score(net, 0), "features", x, [0, 2])
    torch.testing.assert_close(without, (-4 * x[:, 1].mean((1, 2))).double())
    assert all(p.requires_grad for p in net.parameters())
    tops = net(x).argmax(1)
    named, silent = Score(net, tops), Score(net)
    assert torch.equal(*(silenced(s, "features", x, [0, 2]) for s in (named, silent)))
    with torch.no_grad():
        torch.testing.assert_close(silenced(Score(net, 0), "features", x, []), net(x)[:, 0].double())


def test_concepts_that_do_not_fit_are_refused() -> None:
    concept = scenes(0, 4)["red"]
    with pytest.raises(ComparisonError, match="'red' has 4 positives and 1 negatives"):
        replace(concept, negative=TensorExamples(torch.ones(1, 3, 8, 8)))
    with pytest.raises(ComparisonError, match="4 positives and 2 clusters"):
        replace(concept, clusters=("a", "b"))
    with pytest.raises(ComparisonError, match="4 positives and 3 masks"):
        replace(concept, masks=torch.ones(3, 8, 8, dtype=torch.bool))
    with pytest.raises(ComparisonError, match="0 training pairs and 4 held-out ones"):
        Sides.of(concept, set(), 0.5, 0)


def test_spearman_has_the_interval_of_bonett_and_wright() -> None:
    first = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    second = torch.tensor([1.0, 3.0, 2.0, 4.0, 6.0, 5.0])
    found = spearman(first, second)
    rho = 1 - 6 * 4 / (6 * 35)
    half = 1.959963984540054 * math.sqrt((1 + rho**2 / 2) / 3)
    assert found.r == pytest.approx(rho)
    assert found.low == pytest.approx(math.tanh(math.atanh(rho) - half))
    assert found.high == pytest.approx(math.tanh(math.atanh(rho) + half))
    assert found.r == pytest.approx(float(stats.spearmanr(first, second).statistic))
    assert (spearman(first[:3], second[:3]).low, spearman(first[:3], second[:3]).high) == (-1, 1)
    assert math.isnan(spearman(first, torch.ones(6)).r)
    with pytest.raises(TooFewError, match="at least 2 pairs, got 1"):
        spearman(first[:1], second[:1])
