import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nets
import oracles
import pytest
import torch
from torch import Tensor, nn

from concepts.data.concept_sets import Concept, OverlapError
from concepts.effects.logit_effect import Clusters, LogitEffect
from concepts.tcav.associations import associate
from concepts.tcav.editing import edit_along
from concepts.tcav.result import TcavResult
from concepts.tcav.sampling import LeaveOneOut, Relabelled, Sets
from concepts.tcav.tcav import Tcav
from probing.data.examples import TensorExamples
from probing.models.precision import Precision
from probing.models.readings import Custom, Regression
from probing.models.scores import Score
from probing.results.result import Provenance, describe, rebuild
from probing.statistics.estimators import Logistic, Pattern, Ridge
from probing.statistics.hypothesis_tests import TooFewError, code_t_test, paper_t_test
from probing.statistics.linear_classifiers import SharedRows, fit_pairs
from probing.store.store import ActivationStore

QUICK = Tcav(null=Relabelled(39), runs=4, bootstraps=20, relabellings=99)
LEVEL_ONLY = Tcav(Pattern(), null=Relabelled(39), runs=3, bootstraps=0, relabellings=39)

PROVENANCE = Provenance.collect()  # once: it looks up the versions of packages


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def measure(
    method: Tcav,
    concepts: dict[str, Tensor],
    gradients: Sequence[Tensor],
    pool: Tensor | None = None,
    controls: dict[str, Tensor] | None = None,
    clusters: Sequence[str] | None = None,
) -> TcavResult:
    """Run TCAV on activations and gradients that are made up; `clusters` names those of all rows."""
    parts = [*concepts.values(), *(controls or {}).values(), *([] if pool is None else [pool])]
    ends = [0]
    for part in parts:
        ends.append(ends[-1] + len(part))
    rows = [range(a, b) for a, b in pairwise(ends)]
    sets = Sets(
        concepts=dict(zip(concepts, rows, strict=False)),
        controls=dict(zip(controls or {}, rows[len(concepts) :], strict=False)),
        pool=() if pool is None else rows[-1],
        clusters=clusters
        or [
            f"{name} {i}"
            for name, part in zip([*concepts, *(controls or {}), "pool"], parts, strict=False)
            for i in range(len(part))
        ],
        inputs={f"class {k}": [str(i) for i in range(len(g))] for k, g in enumerate(gradients)},
    )
    provenance = replace(PROVENANCE, method=describe(method))
    return method.measure({"layer": torch.cat(parts)}, {"layer": gradients}, sets, provenance)


def line(count: int, side: float, seed: int = 0) -> Tensor:
    """Return points that vary along the first of two axes only, around `side`."""
    return torch.stack([side + 0.1 * normal(count, seed=seed), torch.zeros(count)], 1).double()


def test_tc_1_a_logit_along_against_or_across_the_cav_scores_one_zero_or_ties() -> None:
    gradients = [torch.tensor([g], dtype=torch.float64).expand(5, 2) for g in ([2.0, 0], [-1, 0], [0, 3])]
    for estimator in (Ridge(), Logistic(), Pattern()):
        method = replace(QUICK, estimator=estimator)
        found = measure(method, {"c": line(12, 1)}, gradients, line(60, -1, seed=1))
        assert found.mean.flatten().tolist() == [1, 0, 0]
        assert found.ties.flatten().tolist() == [0, 0, 1]
        assert found.magnitude.flatten().tolist() == pytest.approx([2, -1, 0], abs=1e-9)
        assert found.positive_share.flatten()[:2].tolist() == [1, 0]
        assert found.positive_share.flatten()[2].isnan()
        # A score of 0 that is all ties is no evidence, unlike one of negative sensitivities.
        assert found.p.flatten()[2] == 1


def test_tc_2_a_quadratic_logit_at_shifted_normal_inputs_scores_phi_of_one() -> None:
    f = torch.stack([1 + normal(40_000), normal(40_000, seed=1)], 1)
    gradient = f[:, :1] * torch.tensor([1.0, 0.0], dtype=torch.float64)
    method = replace(QUICK, null=None, bootstraps=0, runs=2)
    found = measure(method, {"c": line(12, 1)}, [gradient], line(30, -1, seed=1))
    assert found.mean.item() == pytest.approx(0.8413, abs=0.006)


class TwoLogits(nn.Module):
    """Logits (h, 2h), h being the only output of `layer`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * torch.tensor([1.0, 2.0])


def test_tc_5_logits_are_differentiated_not_a_loss() -> None:
    net = TwoLogits().eval()
    concept = Concept("c", TensorExamples(torch.linspace(0.5, 1.5, 12)[:, None]))
    pool = TensorExamples(torch.linspace(-1.5, -0.5, 40)[:, None])
    inputs = TensorExamples(torch.tensor([[0.9], [1.0], [200.0]]))
    targets = {"logit": Score(net, 0)}
    found = QUICK(ActivationStore(), targets, ["layer"], [concept], inputs, pool)
    assert found.mean.item() == 1
    h = torch.tensor([1.0, 200.0], dtype=torch.float64, requires_grad=True)
    loss = nn.functional.cross_entropy(net(h[:, None]).double(), torch.zeros(2, dtype=torch.long), reduction="sum")
    (slope,) = torch.autograd.grad(-loss, h)
    assert slope[0].item() == pytest.approx(-0.731, abs=1e-3)  # the opposite sign: TCAV 0
    saturated = h.detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(net(saturated[:, None]).softmax(1)[:, 0].sum(), saturated)
    assert slope[1] == 0  # of the probability: a saturated example would not count


class InParts(nn.Module):
    """The same network, whose class scores are one part of what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = TwoLogits()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"predicted": self.inner(x), "other": x}


def test_concepts_of_what_is_no_class_are_those_of_the_same_number_in_its_own_unit() -> None:
    concept = Concept("c", TensorExamples(torch.linspace(0.5, 1.5, 12)[:, None]))
    pool = TensorExamples(torch.linspace(-1.5, -0.5, 40)[:, None])
    inputs = TensorExamples(torch.tensor([[0.9], [1.0], [200.0]]))
    plain, parts = TwoLogits().eval(), InParts().eval()
    classes = {"a": Score(plain, 0), "b": Score(plain, 1)}
    numbers = {
        "a": Score(parts, Regression(0, unit="kg"), output="predicted"),
        "b": Score(parts, Custom(lambda y: y[:, 1], unit="kPa"), output="predicted"),
    }
    one, other = (
        QUICK(ActivationStore(), targets, [layer], [concept], inputs, pool)
        for targets, layer in ((classes, "layer"), (numbers, "inner.layer"))
    )
    assert one.units == ("logit", "logit")
    assert other.units == ("kg", "kPa")
    assert other.to_pandas()["unit"].tolist() == ["kg", "kPa"]
    for name in ("mean", "effect", "p", "effect_p"):
        assert torch.equal(getattr(one, name), getattr(other, name))
    effects = [
        LogitEffect(relabellings=99, bootstraps=20)(
            ActivationStore(), targets, [layer], concept.examples, pool.load(range(12)), inputs, Clusters.pairs(12, 3)
        )
        for targets, layer in ((classes, "layer"), (numbers, "inner.layer"))
    ]
    assert torch.equal(effects[0].effect, effects[1].effect)
    assert torch.equal(effects[0].swap, effects[1].swap)
    assert effects[1].units == ("kg", "kPa")
    axes = effects[1].plot()
    assert axes.get_supxlabel() == "predicted effect (kPa, kg)"
    assert effects[0].plot().get_supxlabel() == "predicted effect (logits)"


def cloud(count: int = 16, shift: float = 1.0, features: int = 8, seed: int = 0) -> Tensor:
    points = normal(count, features, seed=seed)
    points[:, 0] += shift
    return points


def slopes(count: int = 25, features: int = 8, seed: int = 5, along: float = 1.0) -> Tensor:
    gradients = normal(count, features, seed=seed)
    gradients[:, 0] += along
    return gradients


@pytest.mark.parametrize("estimator", [Ridge(), Logistic(), Pattern()])
def test_tc_6_scores_do_not_change_with_units_or_a_rotation_of_the_layer(estimator: Ridge) -> None:
    method = replace(QUICK, estimator=estimator, scaling="layer")
    concept, pool, gradient = cloud(), normal(80, 8, seed=1), slopes()
    plain = measure(method, {"c": concept}, [gradient], pool)
    rotation = torch.linalg.qr(normal(8, 8, seed=2)).Q
    changed = [
        measure(method, {"c": concept}, [7 * gradient], pool),
        measure(method, {"c": 3 * concept}, [gradient / 3], 3 * pool),
        measure(method, {"c": concept @ rotation}, [gradient @ rotation], pool @ rotation),
    ]
    for other in changed:
        for name in ("scores", "p", "low", "high", "accuracy"):
            torch.testing.assert_close(getattr(other, name), getattr(plain, name))
        torch.testing.assert_close(other.smooth, plain.smooth)
    torch.testing.assert_close(changed[0].effect, 7 * plain.effect)
    torch.testing.assert_close(changed[1].effect, plain.effect)
    torch.testing.assert_close(changed[2].effect, plain.effect)


def null_case(method: Tcav, seed: int, pool: int, inputs: int = 40) -> TcavResult:
    """Run a method where the concept is itself a random set, and gradients differ between inputs."""
    gradient = normal(10, seed=seed) / 2 + normal(inputs, 10, seed=seed + 100_000)
    return measure(
        replace(method, seed=seed),
        {"c": normal(12, 10, seed=seed + 200_000)},
        [gradient],
        normal(pool, 10, seed=seed + 300_000),
    )


def uniform_distance(p: Tensor, draws: int) -> float:
    """Return the Kolmogorov-Smirnov distance of p-values from the uniform on 1/(draws+1), …, 1."""
    grid = torch.arange(1, draws + 2, dtype=torch.float64) / (draws + 1)
    return float(((p[:, None] <= grid + 1e-9).double().mean(0) - grid).abs().max())


@pytest.mark.slow
@pytest.mark.parametrize(("null", "runs", "pool"), [(Relabelled(39), 12, 60), (LeaveOneOut(), 19, 240)])
def test_tc_8_the_permutation_test_keeps_its_level_and_the_t_tests_do_not(
    null: Relabelled | LeaveOneOut, runs: int, pool: int
) -> None:
    trials = 250
    method = replace(LEVEL_ONLY, null=null, runs=runs)
    found = [null_case(method, seed, pool) for seed in range(trials)]
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    p = torch.stack([f.p.flatten() for f in found]).squeeze(1)
    assert 0.01 < (p <= 0.05).double().mean() <= limit
    assert uniform_distance(p, found[0].pseudo_concepts) < 1.36 / math.sqrt(trials)
    assert torch.stack([f.accuracy_p <= 0.05 for f in found]).double().mean() <= limit
    for name in ("p_paper", "p_code"):
        assert torch.stack([getattr(f, name) <= 0.05 for f in found]).double().mean() > 0.25


@pytest.mark.parametrize("estimator", [Ridge(penalty=1.0), Pattern()])
def test_tc_9_a_planted_direction_at_cosine_one_half_is_found(estimator: Ridge | Pattern) -> None:
    trials, hits, effects = 40, 0, 0
    direction = torch.zeros(60, dtype=torch.float64)
    direction[0], direction[1] = 0.5, math.sqrt(0.75)
    for seed in range(trials):
        concept = cloud(60, shift=4, features=60, seed=seed)
        gradient = direction + 0.3 * normal(40, 60, seed=seed + 1000)
        method = replace(LEVEL_ONLY, estimator=estimator, runs=8, seed=seed)
        found = measure(method, {"c": concept}, [gradient], normal(600, 60, seed=seed + 2000))
        hits += bool(found.p <= 0.05 and found.exists)
        effects += bool(found.effect_p <= 0.05)
    assert hits / trials > 0.95
    assert effects / trials > 0.95


def test_tc_10_editing_along_a_cav_moves_the_logit_by_its_sensitivity() -> None:
    net = nets.seeded(nets.ConvNet()).double()
    images = [TensorExamples(nets.images(12, seed=s).double()) for s in range(3)]
    store, layer = ActivationStore(precision=Precision("float64")), "features.0"
    steps = torch.tensor([-1e-5, 1e-5], dtype=torch.float64)
    for pool in ("mean", "none"):
        sides = [store.activations(net, [layer], x, pool=pool)[layer].flatten(1) for x in images[:2]]
        fits = fit_pairs(torch.cat(sides), torch.arange(12)[None], torch.arange(12, 24)[None], Ridge())
        gradient = store.gradients(Score(net, 1), [layer], images[2], pool=pool)[layer]
        sensitivity = fits.project(gradient.flatten(1))[0]
        changes = edit_along(Score(net, 1), layer, fits.normals()[0], images[2].load(range(12)), steps)
        torch.testing.assert_close((changes[1] - changes[0]) / 2e-5, sensitivity, atol=1e-7, rtol=1e-5)
        assert sensitivity.abs().max() > 1e-3
    x, far = images[2].load(range(12)), torch.tensor([-9.0, 9.0], dtype=torch.float64)
    tops = net(x).argmax(1)
    found, expected = (edit_along(s, layer, fits.normals()[0], x, far) for s in (Score(net), Score(net, tops)))
    assert torch.equal(found, expected)  # of the class before the edit
    with pytest.raises(ValueError, match=r"shape \(3,\) does not fit layer 'features.0'"):
        edit_along(Score(net, 1), layer, torch.ones(3), images[2].load([0]), steps)


def test_tc_12_products_of_gradients_and_cavs_are_the_directional_derivatives() -> None:
    net = nets.seeded(nets.ConvNet()).double()
    images = nets.images(6).double()
    store = ActivationStore(precision=Precision("float64"))
    gradient = store.gradients(Score(net, 2), ["features.0"], TensorExamples(images))["features.0"]
    rows = normal(30, gradient[0].numel())
    fits = fit_pairs(SharedRows(rows), torch.arange(10)[None], torch.arange(10, 30)[None], Logistic())
    expected = oracles.directional_derivatives(net, "features.0", fits.normals()[0], images, 2)
    torch.testing.assert_close(fits.project(gradient.flatten(1))[0], expected)


def test_the_smooth_score_settles_with_more_examples_and_the_sign_does_not() -> None:
    # The concept's own examples have no part along the gradient: what remains is the randoms' noise.
    concept = cloud(20, shift=3)
    gradient = normal(8)
    gradient -= (gradient @ concept.mean(0)) / concept.mean(0).square().sum() * concept.mean(0)
    spread = {}
    for size in (60, 960):
        for temperature in (1.0, 1e-9):
            method = Tcav(
                Pattern(),
                Relabelled(9),
                runs=2,
                bootstraps=0,
                relabellings=1,
                temperature=temperature,
            )
            scores = [
                measure(method, {"c": concept}, [gradient.expand(2, 8)], normal(size, 8, seed=s)).smooth for s in range(30)
            ]
            spread[size, temperature] = float(torch.cat(scores).var())
    assert spread[960, 1.0] < spread[60, 1.0] / 8
    assert spread[960, 1e-9] > 0.15


def test_a_linear_tail_is_flagged_said_and_left_to_the_effect() -> None:
    net = nets.seeded(nets.LinearTailNet())
    pool, inputs = TensorExamples(nets.images(60)), TensorExamples(nets.images(6, seed=1))
    concept = Concept("bright", TensorExamples(nets.images(15, seed=2) + 1))
    targets = {f"class {k}": Score(net, k) for k in range(3)}
    found = QUICK(ActivationStore(), targets, ["body.0", "body"], [concept], inputs, pool)
    assert found.linear_tail.tolist() == [[False] * 3, [True] * 3]
    assert set(found.scores[1].unique().tolist()) <= {0.0, 1.0}
    said = [s for s in found.sentences() if "same gradient for every input" in s]
    assert len(said) == 3
    assert "'body'" in said[0]
    assert (found.p[1] > 0.05).all()
    weights = net.head.weight.detach().double()
    sides = [ActivationStore().activations(net, ["body"], x)["body"].mean((2, 3)) for x in (concept.examples, pool)]
    expected = weights @ (sides[0].mean(0) - sides[1].mean(0)).double()
    torch.testing.assert_close(found.effect[1, 0], expected, atol=1e-5, rtol=1e-4)
    assert (found.effect_p[1] <= 0.05).any()


def test_a_net_that_uses_one_concept_and_ignores_another_is_told_apart() -> None:
    # Class 0 scores half the square of what channel 0 is, so its gradient differs between inputs; nothing reads channel 1.
    class OneChannel(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Conv2d(2, 2, 1)
            with torch.no_grad():
                self.features.weight.copy_(torch.eye(2)[:, :, None, None])
                self.features.bias.zero_()

        def forward(self, x: Tensor) -> Tensor:
            mean = self.features(x).mean((2, 3))
            return torch.stack([mean[:, 0].square() / 2, mean[:, 0]], 1)

    net = OneChannel().eval()

    def images(count: int, seed: int, channel: int | None = None) -> Tensor:
        x = 0.3 * torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(seed)).expand(-1, -1, 2, 2)
        return x if channel is None else x + torch.eye(2)[channel, :, None, None]

    concepts = [Concept(name, TensorExamples(images(30, i, i))) for i, name in enumerate(("used", "ignored"))]
    inputs, pool = TensorExamples(images(40, 3, 0)), TensorExamples(images(150, 4))
    method = Tcav(Pattern(), Relabelled(199), runs=5, bootstraps=20, relabellings=999)
    found = method(ActivationStore(), {"class 0": Score(net, 0)}, ["features"], concepts, inputs, pool)
    assert found.exists.all()
    assert found.effect_significant.flatten().tolist() == [True, False]
    assert found.effect[0, 0, 0] > 0.5
    assert (found.effect_low[0, 1, 0] <= 0) & (found.effect_high[0, 1, 0] >= 0)
    assert found.mean[0, 0, 0] > 0.95
    # Random directions score 0 or 1 here as well: the sign score has no power, and is not called significant.
    assert found.null_low[0, 0, 0] < 0.1
    assert not found.significant.any()


def test_a_concept_whose_cavs_are_not_above_chance_is_never_called_significant() -> None:
    found = measure(QUICK, {"noise": normal(15, 8)}, [slopes()], normal(80, 8, seed=1))
    assert not found.exists.any()
    assert not replace(found, p_max_t=torch.zeros_like(found.p_max_t)).significant.any()
    assert any("no evidence of a direction of 'noise'" in s for s in found.sentences())
    real = measure(QUICK, {"c": cloud(shift=4)}, [slopes()], normal(80, 8, seed=1))
    assert real.exists.all()
    assert replace(real, p_max_t=torch.zeros_like(real.p_max_t)).significant.all()
    assert not any("no evidence" in s for s in real.sentences())


def test_an_unstable_direction_is_said_to_be_unidentified() -> None:
    found = measure(QUICK, {"c": cloud(shift=4)}, [slopes()], normal(80, 8, seed=1))
    unstable = replace(found, stability=torch.full_like(found.stability, 0.1))
    assert any("not identified at this sample size" in s for s in unstable.sentences())


def test_a_p_that_can_never_be_significant_is_said_beforehand() -> None:
    concepts, pool = {name: cloud(seed=i) for i, name in enumerate("abc")}, normal(80, 8, seed=9)
    found = measure(QUICK, concepts, [slopes()], pool)
    assert found.p.min() >= 1 / 40
    said = [s for s in found.sentences() if "none can be significant at 95%. 60 pseudo-concepts" in s]
    assert len(said) == 1
    enough = measure(replace(QUICK, null=Relabelled(59)), concepts, [slopes()], pool)
    assert not any("can be significant" in s for s in enough.sentences())


def test_scores_of_many_targets_are_corrected_together_with_few_pseudo_concepts() -> None:
    gradients = [slopes(40, along=2.0, seed=k) for k in range(12)]
    method = Tcav(Pattern(), Relabelled(79), runs=8, bootstraps=0, relabellings=99)
    found = measure(method, {"c": cloud(30, shift=3)}, gradients, normal(200, 8, seed=1))
    assert found.significant.all()
    assert (found.p_holm > 0.05).all()
    assert (found.p_max_t >= found.p).all()


@pytest.mark.parametrize("mode", ["ovr", "pairwise"])
def test_relative_tcav_keeps_its_level_when_concepts_are_alike(mode: str) -> None:
    trials, p = 100, []
    for seed in range(trials):
        method = replace(LEVEL_ONLY, mode=mode, seed=seed)
        concepts = {name: normal(12, 6, seed=10 * seed + i) for i, name in enumerate("abc")}
        found = measure(method, concepts, [normal(6, seed=seed) / 2 + normal(30, 6, seed=seed + 5000)])
        p.append(found.p[0, 0, 0])
    assert 0.005 < (torch.stack(p) <= 0.05).double().mean() <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)


def test_relative_tcav_of_two_opposed_concepts_is_mirrored() -> None:
    concepts = {"up": cloud(20, 3), "down": cloud(20, -3, seed=1)}
    method = replace(QUICK, estimator=Pattern())
    for mode in ("ovr", "pairwise"):
        found = measure(replace(method, mode=mode), concepts, [slopes(along=2.0)])
        assert found.mean[0, 0, 0] > 0.9
        assert found.mean[0, 1, 0] < 0.1
        torch.testing.assert_close(found.effect[0, 0], -found.effect[0, 1])
        assert (found.effect_p < 0.05).all()


def test_one_against_the_rest_differs_from_each_in_turn() -> None:
    concepts = {"c": cloud(20, 3), "near": cloud(20, 2, seed=1), "far": cloud(20, -9, seed=2)}
    ovr, pairs = (measure(replace(QUICK, mode=mode, runs=6), concepts, [slopes()]) for mode in ("ovr", "pairwise"))
    # Against `near` alone, the first axis hardly tells: every second run does worse.
    assert pairs.accuracy[0, 0, ::2].mean() < pairs.accuracy[0, 0, 1::2].mean()
    assert pairs.accuracy[0, 0].std() > ovr.accuracy[0, 0].std()


def test_pseudo_concepts_are_drawn_by_cluster_where_examples_come_in_clusters() -> None:
    trials, honest, naive = 60, 0, 0
    for seed in range(trials):
        concept, pool = (
            normal(count, 1, 6, seed=seed + s) + 0.2 * normal(count, 4, 6, seed=seed + s + 1)
            for count, s in ((6, 0), (30, 10_000))
        )
        gradient = [normal(6, seed=seed) / 2 + normal(30, 6, seed=seed + 20_000)]
        method = replace(LEVEL_ONLY, runs=2, seed=seed)
        names = [f"figure {i // 4}" for i in range(144)]
        rows = {"c": concept.flatten(0, 1)}, gradient, pool.flatten(0, 1)
        by_cluster = measure(method, *rows, clusters=names)
        by_row = measure(method, *rows)
        honest += int(by_cluster.effect_p <= 0.05) + int(by_cluster.p <= 0.05)
        naive += int(by_row.effect_p <= 0.05) + int(by_row.p <= 0.05)
    assert honest / (2 * trials) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    assert naive > 2 * honest


def test_irrelevant_coherent_concepts_make_the_second_null() -> None:
    controls = {f"colour {i}": normal(20, 8, seed=10 + i) + 2 * normal(8, seed=30 + i) for i in range(9)}
    pool, gradient = normal(80, 8, seed=1), [slopes(along=4.0)]
    found = measure(QUICK, {"c": cloud(16, 9)}, gradient, pool, controls)
    assert found.controls == tuple(controls)
    assert found.effect_p_controls.item() == pytest.approx(0.1)
    weak = measure(QUICK, {"c": normal(16, 8)}, gradient, pool, controls)
    assert weak.effect_p_controls.item() > 0.5
    assert weak.p_controls.item() > 0.2
    with pytest.raises(TooFewError, match="control 'few' has 9 examples, fewer than the 16"):
        measure(QUICK, {"c": cloud()}, gradient, pool, {"few": normal(9, 8)})


def test_the_papers_and_the_codes_tests_are_computed_from_the_runs() -> None:
    found = measure(QUICK, {"c": cloud()}, [slopes()], normal(80, 8, seed=1))
    assert found.p_paper.flatten() == paper_t_test(found.scores[0, 0])
    assert not torch.equal(found.p_paper, found.p_code)
    certain = torch.ones(1, 4, dtype=torch.float64)
    assert code_t_test(certain, 1 - certain) == 0


def test_targets_may_have_inputs_of_their_own() -> None:
    few, many = slopes(7, seed=1), slopes(31, seed=2)
    concept, pool = {"c": cloud()}, normal(80, 8, seed=3)
    both = measure(QUICK, concept, [few, many], pool)
    for k, alone in enumerate([few, many]):
        single = measure(QUICK, concept, [alone], pool)
        for name in ("mean", "low", "p", "effect", "effect_low", "effect_p", "smooth", "ties"):
            torch.testing.assert_close(getattr(both, name)[..., k], getattr(single, name)[..., 0])


def test_results_repeat_bit_for_bit_and_do_not_depend_on_the_order_of_concepts() -> None:
    concepts = {"a": cloud(), "b": cloud(20, -1, seed=1)}
    pool, gradient = normal(80, 8, seed=3), [slopes()]
    first, again = (measure(QUICK, concepts, gradient, pool) for _ in range(2))
    for name in ("scores", "low", "p", "smooth", "effect", "effect_p", "effect_low", "accuracy"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    turned = measure(QUICK, dict(reversed(concepts.items())), gradient, pool)
    torch.testing.assert_close(turned.scores.flip(1), first.scores)
    torch.testing.assert_close(turned.p.flip(1), first.p)


def test_every_hyperparameter_changes_the_result() -> None:
    net = nets.seeded(nets.ConvNet())
    concepts = [Concept(n, TensorExamples(nets.images(14, seed=i) + i)) for i, n in enumerate("ab")]
    inputs, pool = TensorExamples(nets.images(9, seed=5)), TensorExamples(nets.images(70, seed=6))
    store, targets = ActivationStore(), {"class 0": Score(net, 0)}

    def tensors(method: Tcav) -> list[Tensor]:
        found = method(store, targets, ["features.0"], concepts, inputs, pool)
        names = ("scores", "p", "low", "effect_low", "effect_p", "smooth", "accuracy", "magnitude")
        return [getattr(found, name) for name in names]

    plain = tensors(QUICK)
    assert all(torch.equal(a, b) for a, b in zip(plain, tensors(QUICK), strict=True))
    for change in (
        {"estimator": Pattern()},
        {"null": Relabelled(40)},
        {"null": LeaveOneOut()},
        {"runs": 3},
        {"mode": "ovr"},
        {"pool": "none"},
        {"holdout": 0.5},
        {"scaling": "layer"},
        {"bootstraps": 21},
        {"relabellings": 98},
        {"temperature": 2.0},
        {"level": 0.5},
        {"seed": 1},
    ):
        changed = tensors(replace(QUICK, **change))
        assert not all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(plain, changed, strict=True)), change


def test_what_is_not_asked_for_is_nan_and_claims_nothing() -> None:
    bare = measure(
        Tcav(null=None, runs=2, bootstraps=0, relabellings=9),
        {"c": cloud()},
        [slopes()],
        normal(40, 8),
    )
    for name in (
        "low",
        "high",
        "p",
        "p_holm",
        "p_controls",
        "p_code",
        "smooth",
        "null_low",
        "effect_p_controls",
    ):
        assert getattr(bare, name).isnan().all(), name
    assert bare.pseudo_concepts == 0
    assert not bare.significant.any()
    assert not any("pseudo-concepts" in sentence for sentence in bare.sentences())


def test_fault_1_rows_are_computed_once_for_all_sets_layers_and_targets() -> None:
    net = nets.seeded(nets.ConvNet())
    store = ActivationStore()
    concepts = [Concept(n, TensorExamples(nets.images(12, seed=i))) for i, n in enumerate("ab")]
    inputs, pool = TensorExamples(nets.images(9, seed=5)), TensorExamples(nets.images(60, seed=6))
    targets = {f"class {k}": Score(net, k) for k in range(3)}
    QUICK(store, targets, ["features.*"], concepts, inputs, pool)
    assert store.stats.forward_rows == 12 + 12 + 60 + 9
    assert store.stats.backward_rows == 9 * 3


def test_a_result_is_saved_loaded_tabled_and_drawn(tmp_path: Path) -> None:
    concepts = {"a": cloud(shift=4), "noise": normal(16, 8)}
    found = measure(QUICK, concepts, [slopes(), slopes(seed=9)], normal(80, 8, seed=3))
    again = TcavResult.load(found.save(tmp_path))
    assert torch.equal(again.scores, found.scores)
    assert again.sentences() == found.sentences()
    assert rebuild(again.provenance.method) == QUICK
    table = found.to_pandas()
    assert len(table) == 4
    assert table["mean"].tolist() == pytest.approx(found.mean.flatten().tolist())
    assert "scores" not in table
    html = found._repr_html_()
    assert "no evidence of a direction of &#39;noise&#39;" in html
    axes = replace(found, p_max_t=torch.zeros_like(found.p_max_t)).plot("class 1")
    assert axes.get_title("left") == "class 1"
    assert [t.get_text() for t in axes.texts] == ["*"]  # not over the direction that does not exist
    assert found.plot().get_title("left") == "class 0"


def test_sets_that_overlap_are_refused_unless_allowed() -> None:
    net = nets.seeded(nets.ConvNet())
    pool = nets.images(60)
    concept = Concept("c", TensorExamples(torch.cat([nets.images(14, seed=1), pool[:2]])))
    inputs, layers = TensorExamples(nets.images(5, seed=2)), ["features"]
    targets = {"class 0": Score(net, 0)}
    with pytest.raises(OverlapError, match="shares 2 of its 16 examples with 'the random pool'"):
        QUICK(ActivationStore(), targets, layers, [concept], inputs, TensorExamples(pool))
    found = QUICK(
        ActivationStore(),
        targets,
        layers,
        [concept],
        inputs,
        TensorExamples(pool),
        allow_overlap=True,
    )
    assert found.concepts == ("c",)
    own = TensorExamples(nets.images(20, seed=1)[10:])
    alone = Concept("c", TensorExamples(nets.images(14, seed=1)))
    shared = TensorExamples(torch.cat([nets.images(5, seed=2), pool]))
    with pytest.raises(OverlapError, match="random pool shares 5 examples with the inputs of class 0"):
        QUICK(ActivationStore(), targets, layers, [alone], inputs, shared)
    with pytest.raises(OverlapError, match="the inputs of class 0"):
        QUICK(
            ActivationStore(),
            targets,
            layers,
            [concept],
            own,
            TensorExamples(nets.images(60, seed=7)),
        )


def test_sets_that_are_too_small_or_missing_are_refused_by_name() -> None:
    gradient = [slopes()]
    with pytest.raises(TooFewError, match="concept 'c' needs a random pool"):
        measure(QUICK, {"c": cloud()}, gradient)
    with pytest.raises(TooFewError, match="concept 'c' needs another concept"):
        measure(replace(QUICK, mode="ovr"), {"c": cloud()}, gradient)
    with pytest.raises(TooFewError, match="concept 'c' has 2 independent examples"):
        measure(QUICK, {"c": cloud(2)}, gradient, normal(40, 8))
    with pytest.raises(TooFewError, match=r"holds 2 disjoint sets of 16, but 4 runs"):
        measure(replace(QUICK, null=LeaveOneOut()), {"c": cloud()}, gradient, normal(40, 8))
    with pytest.raises(ValueError, match="LeaveOneOut needs random counterparts"):
        measure(replace(QUICK, null=LeaveOneOut(), mode="ovr"), {"a": cloud(), "b": cloud()}, gradient)
    net = nets.seeded(nets.ConvNet())
    concept = Concept("c", TensorExamples(nets.images(14, seed=1)))
    with pytest.raises(ValueError, match="give each target its inputs"):
        QUICK(
            ActivationStore(),
            {"a": Score(net, 0)},
            ["features"],
            [concept],
            {},
            TensorExamples(nets.images(60)),
        )


def test_classes_whose_images_lie_along_a_concept_are_found_in_the_data() -> None:
    features = torch.cat([cloud(40, 1.5), normal(40, 8, seed=1), normal(40, 8, seed=2)])
    classes = [name for name in ("biased", "plain", "other") for _ in range(40)]
    directions = torch.eye(8, dtype=torch.float64)[:2] * 7
    found = associate(features, classes, directions, ["planted", "absent"])
    assert found.p_holm[0, 0] < 0.001
    assert found.superiority[0, 0] > 0.8
    assert found.similarity[0, 0] > 0.2
    assert (found.p_holm[:, 1] > 0.05).all()
    assert len(found.to_pandas()) == 6
    assert len(found.plot().texts) == int((found.p_holm <= 0.05).sum())
    with pytest.raises(ValueError, match="got 119 classes for 120 images"):
        associate(features, classes[1:], directions, ["planted", "absent"])
    with pytest.raises(TooFewError, match="compared with those of others"):
        associate(features, ["one"] * 120, directions, ["planted", "absent"])


def test_a_score_may_name_a_class_of_each_input() -> None:
    net, layer = nets.seeded(nets.ConvNet()), "features.3"
    concept, pool, inputs = (nets.images(12, seed=seed) for seed in (1, 2, 3))
    top = net(inputs).argmax(1)
    assert len(top.unique()) > 1
    method = Tcav(null=None, runs=2, bootstraps=0, relabellings=9)
    found = [
        method(ActivationStore(), {"top": score}, [layer], [Concept("c", TensorExamples(concept))], inputs, pool)
        for score in (Score(net), Score(net, top))
    ]
    kept: list[Tensor] = []
    handle = net.get_submodule(layer).register_forward_hook(lambda module, given, output: kept.append(output))
    means = [net(part) is None or kept.pop().detach().mean((2, 3)).mean(0) for part in (concept, pool)]
    slope = torch.autograd.grad(net(inputs)[torch.arange(12), top].sum(), kept[-1])[0].sum((2, 3))
    handle.remove()
    expected = float((slope @ (means[0] - means[1])).mean())
    for one in found:
        assert float(one.effect) == pytest.approx(expected, rel=1e-4)
