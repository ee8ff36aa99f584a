import math
from dataclasses import replace
from pathlib import Path

import nets
import oracles
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from concepts.effects.logit_effect import (
    Clusters,
    Design,
    LogitEffect,
    layer_effect,
    measure_swap,
    measured_swap,
    split_clusters,
)
from concepts.effects.result import EffectResult
from probing.data.examples import TensorExamples
from probing.models.hooks import edit
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.results.result import describe, rebuild
from probing.statistics.hypothesis_tests import TooFewError, permutation_p
from probing.store.store import ActivationStore

QUICK = LogitEffect(relabellings=99, bootstraps=50)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Quadratic(nn.Module):
    """Class k scores half the square of v_k · f, f being the output of `features`."""

    def __init__(self, v: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.features = nn.Linear(v.shape[1], v.shape[1], bias=False)
        self.head = nn.Linear(*v.T.shape, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(v.shape[1]) * scale)
            self.head.weight.copy_(v / scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).square() / 2


def store() -> ActivationStore:
    return ActivationStore(precision=Precision("float64"))


def run(
    net: nn.Module,
    sides: tuple[Tensor, Tensor, Tensor],
    clusters: Clusters | None = None,
    method: LogitEffect = QUICK,
    layer: str = "features",
) -> EffectResult:
    """Run a method on a net in double precision: positives, negatives, inputs; all classes."""
    classes = net(sides[2][:1].float()).shape[1]
    targets = {f"class {k}": Score(net, k) for k in range(classes)}
    examples = [TensorExamples(side.float()) for side in sides]
    return method(store(), targets, [layer], *examples, clusters=clusters)


def test_tc_14_with_a_linear_tail_effect_and_swap_are_equal_for_any_inputs() -> None:
    net = nn.Sequential()
    net.add_module("features", nn.Identity())
    net.add_module("head", nn.Linear(5, 3))
    net = nets.seeded(net)
    negative, delta = normal(8, 5).float(), normal(5, seed=1).float()
    found = run(net, (negative + delta, negative, 3 * normal(4, 5, seed=2)), Clusters.pairs(8, 4))
    expected = net.head.weight.double() @ delta.double()
    torch.testing.assert_close(found.effect[0], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.swap, expected, atol=1e-6, rtol=0)
    assert found.correlation("features").r == pytest.approx(1)
    assert found.slope.item() == pytest.approx(1)
    assert found.signs_right.tolist() == [3]


def test_tc_15_with_a_quadratic_tail_the_swap_exceeds_the_effect_by_the_second_order() -> None:
    v, x, delta = normal(2, 4), normal(4, seed=1), normal(4, seed=2)
    net = Quadratic(v).eval()
    negative = x.expand(3, 4)
    found = run(net, (negative + delta, negative, x[None]), Clusters.pairs(3, 1))
    expected = (v @ x) * (v @ delta)
    torch.testing.assert_close(found.effect[0], expected, atol=1e-5, rtol=0)
    second = (v @ delta).square() / 2
    torch.testing.assert_close(found.swap - found.effect[0], second, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["unmatched", "pairs", "clusters"])
def test_tc_16_relabelling_keeps_its_level_under_the_null(kind: str) -> None:
    rejected = naive = 0
    trials = 400
    for seed in range(trials):
        clusters = {"unmatched": 40, "pairs": 20, "clusters": 10}[kind]
        tones = 20 // clusters if kind == "clusters" else 1
        # One draw per cluster and side is shared by the cluster's examples: they are correlated.
        own = normal(2, clusters, 1, 6, seed=seed) + 0.3 * normal(2, clusters, tones, 6, seed=seed + 10_000)
        positive, negative = own.flatten(1, 2) if kind != "unmatched" else own.flatten(0, 2).split([20, 60])
        gradients = normal(1, 5, 6, seed=seed + 20_000)
        names = [f"{i // tones}" for i in range(len(positive))]
        grouped = Clusters.none(20, 60, 5) if kind == "unmatched" else Clusters(names, names, list("vwxyz"))
        for clusters_given in (grouped, Clusters.pairs(len(positive), 5)):
            if kind != "clusters" and clusters_given is not grouped:
                continue
            design = Design.of(clusters_given, draws=199, bootstraps=2, seed=seed)
            found = layer_effect(gradients @ torch.cat([positive, negative]).T, design)
            p = permutation_p(found.effect.abs(), found.null.abs(), exact=design.relabelled.exact)
            if clusters_given is grouped:
                rejected += bool(p <= 0.05)
            else:
                naive += bool(p <= 0.05)
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert 0.01 < rejected / trials <= limit
    if kind == "clusters":
        assert naive / trials > limit


def test_tc_17_rescaling_a_layer_and_its_consumer_leaves_the_effect_unchanged() -> None:
    v, sides = normal(2, 4), (normal(9, 4) + 1, normal(7, 4, seed=1), normal(5, 4, seed=2))
    plain, scaled = (run(Quadratic(v, scale).eval(), sides) for scale in (1.0, 8.0))
    torch.testing.assert_close(scaled.effect, plain.effect, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(scaled.p, plain.p)
    # The derivative along the unit vector, which the classical scores use, shrinks with the rescaling.
    lengths = [
        (
            store().activations(net, ["features"], TensorExamples(sides[0].float()))["features"].mean(0)
            - store().activations(net, ["features"], TensorExamples(sides[1].float()))["features"].mean(0)
        ).norm()
        for net in (Quadratic(v).eval(), Quadratic(v, 8.0).eval())
    ]
    derivatives = [plain.effect / lengths[0], scaled.effect / lengths[1]]
    torch.testing.assert_close(derivatives[1] * 8, derivatives[0], atol=1e-5, rtol=1e-5)


def test_tc_18_the_pooled_effect_is_that_of_adding_delta_at_every_position() -> None:
    net = nets.seeded(nets.ConvNet())
    positive, negative, inputs = (
        nets.images(5) + 0.5,
        nets.images(6, seed=1),
        nets.images(4, seed=2),
    )
    found = run(net, (positive, negative, inputs), layer="features.0")
    net = net.double()
    means = [net.features[0](side.double()).mean((0, 2, 3)) for side in (positive, negative)]
    delta = (means[0] - means[1])[:, None, None]
    outputs = []
    for step in (1e-6, -1e-6):
        with edit(net, {"features.0": lambda m, x, y, step=step: y + step * delta}):
            outputs.append(net(inputs.double()).mean(0))
    torch.testing.assert_close(found.effect[0], (outputs[0] - outputs[1]) / 2e-6, atol=1e-6, rtol=1e-5)


def test_each_input_meets_a_delta_from_other_clusters_only() -> None:
    names = (["a", "a", "b", "c"], ["a", "b", "b", "c", "c"], ["a", "b", "c", "c", "other"])
    positive, negative, gradients = normal(4, 6), normal(5, 6, seed=1), normal(2, 5, 6, seed=2)
    design = Design.of(Clusters(*names), draws=9, bootstraps=20, seed=0)
    found = layer_effect(gradients @ torch.cat([positive, negative]).T, design)
    expected = [oracles.logit_effect(positive, negative, g, names) for g in gradients]
    assert found.effect.tolist() == pytest.approx(expected)
    original = (design.relabelled.labels == design.positive.long()).all(1)
    torch.testing.assert_close(found.null[original][0], found.effect)


def test_an_inputs_own_cluster_would_leak_into_the_effect() -> None:
    # Gradients follow each cluster's own shift, which is 0 on average: the concept has no effect.
    naive, honest = [], []
    for seed in range(60):
        shift, base = normal(12, 6, seed=seed), normal(12, 6, seed=seed + 1000)
        features = torch.cat([base + shift, base])
        names = [f"role {i}" for i in range(12)]
        for found, inputs in ((honest, names), (naive, [f"other {i}" for i in range(12)])):
            design = Design.of(Clusters(names, names, inputs), draws=2, bootstraps=2, seed=0)
            found.append(layer_effect(shift[None] @ features.T, design).effect)
    assert torch.cat(naive).mean() > 0.4
    assert torch.cat(honest).mean().abs() < 0.1


def test_the_interval_holds_the_true_effect_when_matched_clusters_are_few() -> None:
    held, trials = 0, 300
    direction, gradient = normal(6), normal(6, seed=1)
    for seed in range(trials):
        base, shift = normal(8, 1, 6, seed=seed), direction + normal(8, 1, 6, seed=seed + 1000)
        noise = 0.3 * normal(2, 8, 3, 6, seed=seed + 2000)
        features = torch.cat([(base + shift + noise[0]).flatten(0, 1), (base + noise[1]).flatten(0, 1)])
        names = [f"role {i // 3}" for i in range(24)]
        gradients = gradient + 0.5 * normal(24, 6, seed=seed + 3000)
        design = Design.of(Clusters(names, names, names), draws=2, bootstraps=200, seed=seed)
        found = layer_effect(gradients[None] @ features.T, design)
        low, high = found.interval(design.groups, 0.95)
        held += bool(low <= gradient @ direction <= high)
    assert held / trials >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / trials)


def test_the_measured_swap_is_the_mean_difference_of_pairs_with_a_t_interval_over_clusters() -> None:
    positive, clusters = torch.arange(12) < 6, torch.tensor([0, 0, 1, 1, 2, 2] * 2)
    scores = normal(12, 2)
    found = measured_swap(scores, positive, clusters, 0.95)
    differences = scores[:6] - scores[6:]
    torch.testing.assert_close(found.mean, differences.mean(0))
    by_cluster = stats.ttest_1samp(differences.reshape(3, 2, 2).mean(1).numpy(), 0)
    assert found.p.tolist() == pytest.approx(by_cluster.pvalue.tolist())
    with pytest.raises(ValueError, match="every cluster must hold positives and negatives"):
        measured_swap(scores, positive, torch.arange(12), 0.95)


def test_a_swap_measured_on_other_examples_takes_the_place_of_the_own_one() -> None:
    net = Quadratic(normal(3, 4)).eval()
    fitted = (normal(6, 4) + 1, normal(6, 4, seed=1), normal(3, 4, seed=2))
    targets = {f"class {k}": Score(net, k) for k in range(3)}
    judged = [TensorExamples(normal(8, 4, seed=s).float() + s) for s in (3, 4)]
    names = [f"role {i // 2}" for i in range(8)]
    swap = measure_swap(store(), targets, *judged, names, names, 0.95)
    examples = [TensorExamples(side.float()) for side in fitted]
    found = QUICK(store(), targets, ["features"], *examples, Clusters.pairs(6, 3), swap)
    assert torch.equal(found.swap, swap.mean)
    assert swap.clusters == 4
    own = QUICK(store(), targets, ["features"], *examples, Clusters.pairs(6, 3))
    assert torch.equal(own.effect, found.effect)
    assert not torch.equal(own.swap, found.swap)


def test_a_net_that_uses_one_concept_and_ignores_another_is_told_apart() -> None:
    net = nets.HandNet().eval()
    with torch.no_grad():
        net.head.weight[1] = torch.tensor([-2.0, 0, 2, 0])  # both classes ignore channel 1 now
    noise = torch.randn(3, 16, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    used, ignored = (
        run(
            net,
            (noise[0] + torch.eye(2)[channel, :, None, None], noise[1], noise[2]),
            Clusters.pairs(16, 16),
            layer="features",
        )
        for channel in (0, 1)
    )
    assert (used.p <= 0.05).all()
    assert (used.swap_p <= 0.05).all()
    assert used.effect[0].sign().tolist() == used.swap.sign().tolist() == [1, -1]
    assert (ignored.p > 0.05).all()
    assert (ignored.swap_p > 0.05).all()
    assert ((ignored.low <= 0) & (ignored.high >= 0)).all()


def test_an_effect_that_cancels_to_rounding_is_none_and_never_significant() -> None:
    """The gradient is orthogonal to every difference of pairs, in a basis in which that takes a sum of rounded products."""
    turn = torch.linalg.qr(normal(6, 6)).Q
    net = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Linear(6, 1, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.copy_(turn)
        net[1].weight.copy_(turn[:, 3][None])
    negative = normal(16, 6, seed=1)
    positive = negative.clone()
    positive[:, 0] += 2
    targets, pairs = {"score": Score(net, 0)}, Clusters.pairs(16, 16)
    found = QUICK(store(), targets, ["0"], positive, negative, negative, pairs)
    assert found.effect.item() == 0
    assert found.p.item() == found.p_max_t.item() == 1
    positive[:, 3] += 1e-6  # small is not rounding
    assert QUICK(store(), targets, ["0"], positive, negative, negative, pairs).effect.item() == pytest.approx(1e-6)


def test_few_pairs_are_swapped_in_all_ways() -> None:
    v = normal(2, 4)
    sides = (normal(5, 4) + 1, normal(5, 4, seed=1), normal(3, 4, seed=2))
    found = run(Quadratic(v).eval(), sides, Clusters.pairs(5, 3))
    assert found.exact
    assert found.relabellings == 32
    assert found.p.min() >= 2 / 32


def test_every_hyperparameter_changes_the_result_and_equal_ones_repeat_it_exactly() -> None:
    net = nets.seeded(nets.ConvNet())
    sides = (nets.images(12) + 0.2, nets.images(14, seed=1), nets.images(6, seed=2))

    def tensors(method: LogitEffect) -> list[Tensor]:
        result = run(net, sides, None, method, "features.0")
        return [result.effect, result.low, result.p]

    plain = tensors(QUICK)
    assert all(torch.equal(a, b) for a, b in zip(plain, tensors(QUICK), strict=True))
    for change in (
        {"pool": "none"},
        {"relabellings": 50},
        {"bootstraps": 51},
        {"level": 0.5},
        {"seed": 1},
    ):
        changed = tensors(replace(QUICK, **change))
        assert not all(torch.equal(a, b) for a, b in zip(plain, changed, strict=True)), change


def test_a_result_is_saved_loaded_tabled_and_drawn(tmp_path: Path) -> None:
    v = normal(3, 4)
    sides = (normal(6, 4) + 1, normal(6, 4, seed=1), normal(3, 4, seed=2))
    found = run(Quadratic(v).eval(), sides, Clusters.pairs(6, 3))
    again = EffectResult.load(found.save(tmp_path))
    assert torch.equal(again.effect, found.effect)
    assert again.layers == ("features",)
    assert rebuild(again.provenance.method) == QUICK
    assert rebuild(describe(QUICK)) == QUICK
    table = found.to_pandas()
    assert list(table["target"]) == ["class 0", "class 1", "class 2"]
    assert table["swap"].tolist() == pytest.approx(found.swap.tolist())
    assert "class 2" in found._repr_html_()
    (axes,) = found.plot().axes
    assert "r = " in axes.get_title("left")


def test_without_matched_clusters_nothing_is_claimed_about_a_swap() -> None:
    sides = (normal(6, 4) + 1, normal(9, 4, seed=1), normal(3, 4, seed=2))
    found = run(Quadratic(normal(3, 4)).eval(), sides)
    assert found.swap.isnan().all()
    assert math.isnan(found.correlation("features").r)
    assert found.signs_right.tolist() == [0]
    assert len(found.plot().axes) == 1


def test_clusters_that_do_not_fit_the_examples_are_refused() -> None:
    sides = (normal(4, 4), normal(4, 4, seed=1), normal(3, 4, seed=2))
    net = Quadratic(normal(2, 4)).eval()
    with pytest.raises(ValueError, match=r"clusters\.positive names 3 examples, but there are 4"):
        run(net, sides, Clusters.pairs(3, 3))
    with pytest.raises(TooFewError, match="delta needs another cluster"):
        run(net, sides, Clusters(["a"] * 4, ["b"] * 4, ["a", "x", "y"]))


def test_clusters_are_split_by_name_with_a_seed() -> None:
    names = [f"role {i // 3}" for i in range(30)]
    first, second = split_clusters(names, 0.4, 0)
    assert len(first) == 4
    assert first | second == set(names)
    assert not first & second
    assert split_clusters(names, 0.4, 0) == (first, second)
    assert split_clusters(names, 0.4, 1) != (first, second)
    with pytest.raises(TooFewError, match="1 clusters can't be split"):
        split_clusters(["a"], 0.5, 0)


def test_sums_over_clusters_before_the_product_are_those_after_it() -> None:
    from concepts.effects.logit_effect import effect_of
    from probing.statistics.row_products import SharedRows, grouped_products

    clusters = Clusters(tuple("aabbccdd"), tuple("abcdabcd"), tuple("abcdabcdee"))
    design = Design.of(clusters, draws=99, bootstraps=20, seed=0)
    rows, slopes = normal(16, 5), normal(30, 5, seed=1).reshape(3, 10, 5)
    whole = layer_effect(slopes @ (rows - rows.mean(0)).T, design)
    summed = grouped_products(SharedRows(rows), list(slopes), design.unit_of, design.input_unit_of)
    parts = effect_of(summed, design)
    for name in ("effect", "null", "draws"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name))
