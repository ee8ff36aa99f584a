import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import nets
import oracles
import pytest
import torch
from torch import Tensor, nn

from concepts.bias import associate
from concepts.draws import LeaveOneOut, Relabelled, Sets
from concepts.editing import edit_along
from concepts.sets import Concept, OverlapError
from concepts.statistics import TooFewError, code_t_test, paper_t_test
from concepts.tcav import Tcav
from concepts.tcav_result import TcavResult
from probing.estimators import Logistic, Pattern, Ridge
from probing.examples import TensorExamples
from probing.linear import SharedRows, fit_pairs
from probing.precision import Precision
from probing.provenance import rebuild
from probing.scores import Score
from probing.store import ActivationStore

QUICK = Tcav(null=Relabelled(39), runs=4, bootstraps=20, relabellings=99)
LEVEL_ONLY = Tcav(Pattern(), null=Relabelled(99), runs=20, bootstraps=0, relabellings=1)


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
    rows = [range(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
    sets = Sets(
        concepts=dict(zip(concepts, rows, strict=False)),
        controls=dict(zip(controls or {}, rows[len(concepts) :], strict=False)),
        pool=() if pool is None else rows[-1],
        clusters=clusters or [str(i) for i in range(ends[-1])],
        inputs={f"class {k}": [str(i) for i in range(len(g))] for k, g in enumerate(gradients)},
    )
    return method.measure({"layer": torch.cat(parts)}, {"layer": gradients}, sets)


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
    (slope,) = torch.autograd.grad(net(h[:, None]).softmax(1)[:, 0].sum(), h)
    assert slope[1] == 0  # a saturated example would not count


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
@pytest.mark.parametrize(("null", "pool"), [(Relabelled(99), 60), (LeaveOneOut(), 240)])
def test_tc_8_the_permutation_test_keeps_its_level_and_the_t_tests_do_not(
    null: Relabelled | LeaveOneOut, pool: int
) -> None:
    trials = 250
    found = [null_case(replace(LEVEL_ONLY, null=null), seed, pool) for seed in range(trials)]
    limit = 0.05 + 3 * math.sqrt(0.05 * 0.95 / trials)
    p = torch.stack([f.p.flatten() for f in found]).squeeze(1)
    assert 0.01 < (p <= 0.05).double().mean() <= limit
    assert uniform_distance(p, found[0].pseudo_concepts) < 1.36 / math.sqrt(trials)
    assert torch.stack([f.accuracy_p <= 0.05 for f in found]).double().mean() <= limit
    for name in ("p_paper", "p_code"):
        assert torch.stack([getattr(f, name) <= 0.05 for f in found]).double().mean() > 0.25


def test_tc_9_a_planted_direction_at_cosine_one_half_is_found() -> None:
    trials, hits, effects = 60, 0, 0
    for seed in range(trials):
        concept = cloud(30, shift=4, features=60, seed=seed)
        direction = torch.zeros(60, dtype=torch.float64)
        direction[0], direction[1] = 0.5, math.sqrt(0.75)
        gradient = direction + 0.3 * normal(40, 60, seed=seed + 1000)
        method = replace(LEVEL_ONLY, estimator=Ridge(), runs=6, relabellings=199, seed=seed)
        found = measure(method, {"c": concept}, [gradient], normal(180, 60, seed=seed + 2000))
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
