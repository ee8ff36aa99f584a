import importlib.util
import math
import sys

import nets
import pytest
import torch
from attribution_nets import Formula, Smooth, TokenNet, lin
from torch import Tensor, nn
from torch.nn import functional
from where import ROOT

from probing.attribution.baselines import (
    Blurred,
    Constant,
    Mean,
    Samples,
    SamplesError,
    Uniform,
)
from probing.attribution.gradient import GradientTimesInput, Saliency
from probing.attribution.path import (
    ExpectedGradients,
    IntegratedGradients,
    LayerIntegratedGradients,
)
from probing.attribution.priors import (
    attribution_prior,
    gini,
    masked_energy,
    sparsity,
    total_variation,
)
from probing.attribution.quadrature import Quadrature, nodes
from probing.core.inputs import InputError
from probing.models.scores import Score
from probing.results.result import describe, rebuild

RULES: tuple[Quadrature, ...] = ("left", "right", "midpoint", "trapezoid", "gauss_legendre", "mc")


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


PROD = Formula(lambda x: x[:, 0] * x[:, 1])
CUBE = Formula(lambda x: x**3)
SAT = Formula(lambda x: 1 - functional.relu(1 - x))


def smooth() -> Score:
    return Score(nets.seeded(Smooth()).double(), torch.tensor([0, 1, 2, 0]))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("steps", [2, 5])
def test_ig_1_a_linear_score_is_exact_by_every_rule(rule: Quadrature, steps: int) -> None:
    x, start = row(1, -2, 0.5, 3), row(0.5, 0.5, 0.5, 0.5)
    method = IntegratedGradients(Constant((0.5,)), rule=rule, steps=steps)
    found = method(Score(lin(), 0), x)
    torch.testing.assert_close(found.values, row(4, 3, 2, 1) * (x - start))
    assert float(found.diagnostics["completeness_gap"].abs().max()) < 1e-12


@pytest.mark.parametrize(
    ("rule", "steps", "expected"),
    [
        ("left", 4, 5.25),
        ("right", 4, 11.25),
        ("midpoint", 4, 7.875),
        ("trapezoid", 4, 8.4444),
        ("gauss_legendre", 2, 8.0),
    ],
)
def test_ig_2_the_rules_on_a_cube(rule: Quadrature, steps: int, expected: float) -> None:
    found = IntegratedGradients(rule=rule, steps=steps)(Score(CUBE, 0), row(2))
    assert found.values.item() == pytest.approx(expected, abs=1e-4)
    assert found.diagnostics["completeness_gap"].item() == pytest.approx(expected - 8, abs=1e-4)
    assert found.diagnostics["relative_gap"].item() == pytest.approx(abs(expected - 8) / 8, abs=1e-4)
    assert found.diagnostics["steps"].tolist() == [steps]


@pytest.mark.parametrize("rule", RULES)
def test_weights_add_up_to_one(rule: Quadrature) -> None:
    points, weights = nodes(rule, 7)
    assert float(weights.sum()) == pytest.approx(1, abs=1e-14)
    assert bool(((points >= 0) & (points <= 1)).all())


def test_ig_3_a_product_is_shared_equally() -> None:
    found = IntegratedGradients(steps=1)(Score(PROD, 0), row(2, 3))
    torch.testing.assert_close(found.values, row(3, 3))


def test_ig_4_a_minimum_belongs_to_the_smaller_input() -> None:
    net = Formula(lambda x: torch.minimum(x[:, 0], x[:, 1]))
    torch.testing.assert_close(IntegratedGradients()(Score(net, 0), row(1, 3)).values, row(1, 0))


@pytest.mark.parametrize(("steps", "expected"), [(2, 1.0), (50, 1.0), (5, 0.8), (51, 0.98039)])
def test_ig_5_a_saturated_score_is_explained_up_to_the_step(steps: int, expected: float) -> None:
    found = IntegratedGradients(steps=steps)(Score(SAT, 0), row(2))
    assert found.values.item() == pytest.approx(expected, abs=1e-5)


def test_ig_6_completeness_on_a_smooth_net() -> None:
    method = IntegratedGradients(rule="gauss_legendre", steps=64)
    found = method(smooth(), nets.images().double())
    assert float(found.diagnostics["completeness_gap"].abs().max()) < 1e-6
    assert found.baseline_score is not None
    torch.testing.assert_close(found.values.flatten(1).sum(1), found.score - found.baseline_score, rtol=0, atol=1e-6)


def test_ig_7_an_input_that_is_not_read_gets_exactly_nothing() -> None:
    net = Formula(lambda x: x[:, 0].sin() * x[:, 2].exp())
    found = IntegratedGradients()(Score(net, 0), row(1, 2, 3))
    assert found.values[0, 1].item() == 0
    assert found.values[0, 0].item() != 0


def test_ig_8_symmetric_inputs_swap() -> None:
    net = Formula(lambda x: (x[:, 0] * x[:, 1]).exp() + x.sum(1).sin())
    a, b = IntegratedGradients()(Score(net, 0), torch.cat([row(0.3, 0.9), row(0.9, 0.3)])).values
    torch.testing.assert_close(a, b.flip(0))


def test_ig_9_random_points_are_right_on_average_and_say_how_far_off() -> None:
    for n in (16, 400):
        found = IntegratedGradients(rule="mc", steps=n)(Score(PROD, 0), row(2, 3))
        error = found.diagnostics["standard_error"]
        assert bool(((found.values - row(3, 3)).abs() < 4 * error).all())
        torch.testing.assert_close(error, row(1, 1) * 6 / math.sqrt(12 * n), rtol=0.25, atol=0)
    a, b = (IntegratedGradients(rule="mc", seed=s)(Score(PROD, 0), row(2, 3)).values for s in (0, 1))
    assert not torch.equal(a, b)


def test_ig_10_it_is_linear_in_the_score() -> None:
    net = nets.seeded(Smooth()).double()
    x, method = nets.images(1).double(), IntegratedGradients(steps=7)
    mix = Formula(lambda x: 2 * net(x)[:, 0] - 3 * net(x)[:, 1])
    expected = 2 * method(Score(net, 0), x).values - 3 * method(Score(net, 1), x).values
    torch.testing.assert_close(method(Score(mix, 0), x).values, expected)


def test_ig_11_two_forms_of_one_function_get_one_map() -> None:
    pair, plain = Formula(lambda x: functional.relu(x) - functional.relu(-x)), Formula(lambda x: x)
    maps = [IntegratedGradients(steps=9)(Score(net, 0), row(-2)).values.item() for net in (pair, plain)]
    assert maps == pytest.approx([-2, -2])


def test_ig_12_swapping_input_and_baseline_negates() -> None:
    x, y = nets.images(3).double(), nets.images(3, seed=5).double()
    score = Score(nets.seeded(Smooth()).double(), torch.tensor([0, 1, 2]))
    there = IntegratedGradients(Samples.of(y, paired=True), steps=8)(score, x)
    back = IntegratedGradients(Samples.of(x, paired=True), steps=8)(score, y)
    torch.testing.assert_close(there.values, -back.values)


def test_random_weights_change_signed_integrated_gradients() -> None:
    x = nets.images(1).double()
    a, b = (IntegratedGradients()(Score(nets.seeded(Smooth(), s).double(), 0), x).values for s in (0, 1))
    assert not torch.allclose(a, b, rtol=0.1)


def sharp(x: Tensor) -> Tensor:
    return torch.tanh(40 * (x.sum(1) - 0.13)) + x[:, 0] ** 2


@pytest.mark.parametrize(
    ("rule", "tolerance", "most"),
    [
        ("left", 0.02, 600),  # rules of first order miss to one side
        ("right", 0.02, 600),
        ("midpoint", 0.005, 150),
        ("trapezoid", 0.005, 400),
        ("gauss_legendre", 0.005, 150),
    ],
)
def test_steps_are_added_where_the_score_changes_until_it_is_explained(
    rule: Quadrature, tolerance: float, most: int
) -> None:
    x = torch.tensor([[1.0, 2.0], [0.01, 0.02]], dtype=torch.float64)
    score = Score(Formula(sharp), 0)
    coarse = IntegratedGradients(rule=rule, steps=25)(score, x)
    found = IntegratedGradients(rule=rule, steps="auto", tolerance=tolerance)(score, x)
    assert coarse.diagnostics["relative_gap"][0] > tolerance
    assert bool((found.diagnostics["relative_gap"] <= tolerance).all())
    assert found.diagnostics["converged"].tolist() == [True, True]
    assert found.diagnostics["steps"][1] < found.diagnostics["steps"][0] < most
    exact = IntegratedGradients(steps=20000, batch_size=20000)(score, x)
    torch.testing.assert_close(found.values, exact.values, rtol=2 * tolerance, atol=1e-3)
    loose = IntegratedGradients(rule=rule, steps="auto", tolerance=0.2)(score, x)
    assert loose.diagnostics["steps"][0] < found.diagnostics["steps"][0]


def test_kinks_that_cancel_do_not_ask_for_ever_more_steps() -> None:
    layers = nn.Linear(6, 300), nn.ReLU(), nn.Linear(300, 30), nn.ReLU(), nn.Linear(30, 1)
    score = Score(nets.seeded(nn.Sequential(*layers)).double(), 0)
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = IntegratedGradients(steps="auto")(score, x)
    assert found.diagnostics["converged"].all()
    assert int(found.diagnostics["steps"].sum()) < 600
    exact = IntegratedGradients(steps=10000, batch_size=10000)(score, x).values
    assert float(((found.values - exact).norm(dim=1) / exact.norm(dim=1)).max()) < 0.01


def test_what_no_number_of_steps_explains_is_reported() -> None:
    jump = Formula(lambda x: (x.sum(1) > 0.137).to(x) + 0 * x.sum(1))
    found = IntegratedGradients(steps="auto")(Score(jump, 0), row(1, 1))
    assert found.diagnostics["converged"].tolist() == [False]
    assert found.diagnostics["relative_gap"].item() == pytest.approx(1)
    assert found.diagnostics["steps"].item() <= 1600


def test_black_white_and_grey_pixels_in_model_space() -> None:
    mean, std = (0.5, 0.2), (0.25, 0.1)
    x = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    assert Constant.black(mean, std)(x)[0, 0, :, 0, 0].tolist() == [-2, -2]
    assert Constant.white(mean, std)(x)[0, 1, :, 2, 2].tolist() == pytest.approx([2, 8])
    assert not Constant()(x).any()


def test_a_pixel_like_the_baseline_is_invisible() -> None:
    x = nets.images(1).double()
    method = IntegratedGradients(Constant((float(x[0, 0, 2, 3]),)))
    assert method(Score(nets.seeded(Smooth()).double(), 0), x).values[0, 0, 2, 3] == 0


def test_the_blurred_baseline_keeps_constants_and_smooths_noise() -> None:
    flat = torch.full((1, 1, 8, 8), 3.0, dtype=torch.float64)
    torch.testing.assert_close(Blurred(2.0)(flat)[0], flat)
    noise = nets.images(1, size=16).double()
    assert Blurred(2.0)(noise).var() < 0.1 * noise.var()
    assert Blurred(4.0)(noise).var() < Blurred(1.0)(noise).var()
    point = torch.zeros(1, 1, 21, 21, dtype=torch.float64)
    point[..., 10, 10] = 1
    blurred = Blurred(1.5)(point)[0, 0, 0]
    assert float(blurred[10, 12] / blurred[10, 10]) == pytest.approx(math.exp(-0.5 * (2 / 1.5) ** 2))


def test_uniform_baselines_fill_their_range_and_are_averaged() -> None:
    x = nets.images(2).double()
    noise = Uniform((-1.0,), (3.0,), draws=40, seed=1)(x)
    assert noise.shape == (40, 2, 1, 6, 6)
    assert float(noise.min()) > -1
    assert float(noise.max()) < 3
    assert float(noise.mean()) == pytest.approx(1, abs=0.1)
    assert torch.equal(noise[:, 0], noise[:, 1])  # an input's map does not depend on the batch
    score = Score(nets.seeded(Smooth()).double(), 0)
    found = IntegratedGradients(Uniform(draws=3), steps=5)(score, x)
    parts = [IntegratedGradients(Samples.of(draw, paired=True), steps=5)(score, x) for draw in Uniform(draws=3)(x)]
    stacked = torch.stack([p.values for p in parts])
    torch.testing.assert_close(found.values, stacked.mean(0))
    torch.testing.assert_close(found.diagnostics["baseline_spread"], stacked.std(0))
    assert float(found.diagnostics["completeness_gap"].abs().max()) < 0.05


def test_samples_and_their_mean_are_baselines() -> None:
    x, others = nets.images(2).double(), nets.images(3, seed=3).double()
    score = Score(nets.seeded(Smooth()).double(), 1)
    samples = Samples.of(others)
    found = IntegratedGradients(samples, steps=4)(score, x).values
    each = [IntegratedGradients(Samples.of(o[None]), steps=4)(score, x).values for o in others]
    torch.testing.assert_close(found, torch.stack(each).mean(0))
    mean = IntegratedGradients(Mean(samples), steps=4)(score, x).values
    torch.testing.assert_close(mean, IntegratedGradients(Samples.of(others.mean(0)[None]), steps=4)(score, x).values)
    assert not torch.allclose(mean, found)


def test_samples_are_named_by_content_and_found_again() -> None:
    samples = Samples.of(nets.images(2))
    method = IntegratedGradients(samples)
    again = rebuild(describe(method))
    assert again == method
    assert torch.equal(again.baseline.tensor, nets.images(2))  # type: ignore[attr-defined]
    with pytest.raises(SamplesError, match=r"no samples with content 'ab'.*Samples\.of"):
        _ = Samples("ab").tensor


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_path_maps_do_not_depend_on_the_chunk(size: int) -> None:
    x, score = nets.images().double(), smooth()
    for make in (
        lambda b: IntegratedGradients(steps=6, batch_size=b),
        lambda b: IntegratedGradients(steps="auto", batch_size=b),
        lambda b: IntegratedGradients(rule="mc", steps=6, batch_size=b),
        lambda b: ExpectedGradients(Samples.of(nets.images(5, seed=2).double()), 9, batch_size=b),
    ):
        a, b = make("auto")(score, x), make(size)(score, x)
        torch.testing.assert_close(a.values, b.values, rtol=1e-9, atol=1e-12)
        assert (a.n_forward, a.n_backward) == (b.n_forward, b.n_backward)


class Largest(nn.Module):
    """Remembers the largest batch that it saw."""

    seen: list[int] = []  # noqa: RUF012  shared with the copies that methods run

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        return x.flatten(1).square()


def test_the_number_of_points_in_a_pass_is_bounded_by_the_chunk() -> None:
    Largest.seen.clear()
    IntegratedGradients(steps=100, batch_size=8)(Score(Largest().eval(), 0), torch.ones(3, 2))
    assert max(Largest.seen) == 8
    assert sum(Largest.seen) >= 300


def test_captum_agrees_on_integrated_gradients() -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = nets.seeded(Smooth()).double(), nets.images(2).double()
    for rule, name, tolerance in (
        ("midpoint", "riemann_middle", 1e-6),
        ("gauss_legendre", "gausslegendre", 1e-6),
        ("left", "riemann_left", 1e-6),
        ("right", "riemann_right", 1e-6),
    ):
        theirs = attr.IntegratedGradients(net).attribute(x, target=1, n_steps=20, method=name)
        ours = IntegratedGradients(rule=rule, steps=20)(Score(net, 1), x).values  # type: ignore[arg-type]
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_trapezoid_weights_are_not_short_of_one_as_they_are_elsewhere() -> None:
    attr = pytest.importorskip("captum.attr")
    x = torch.ones(1, 1, dtype=torch.float64) * 6
    net = Formula(lambda x: x)
    theirs = attr.IntegratedGradients(net).attribute(x, target=0, n_steps=4, method="riemann_trapezoid")
    assert theirs.item() == pytest.approx(4.5)
    assert IntegratedGradients(rule="trapezoid", steps=4)(Score(net, 0), x).values.item() == pytest.approx(6)


def test_layer_integrated_gradients_at_an_embedding_add_up_over_tokens() -> None:
    net = nets.seeded(nn.Sequential(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 2)))
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    path = IntegratedGradients(rule="gauss_legendre", steps=32)
    method = LayerIntegratedGradients("0", path)
    found = method(Score(net.double(), 1), ids)
    assert found.values.shape == (2, 3, 4)
    assert found.layer == "0"
    assert float(found.diagnostics["completeness_gap"].abs().max()) < 1e-8
    zero = net[1:](torch.zeros(1, 3, 4, dtype=torch.float64))[0, 1]  # type: ignore[index]
    assert found.baseline_score is not None
    torch.testing.assert_close(found.baseline_score, zero.detach().expand(2))
    padded = LayerIntegratedGradients("0", path, space="input")(Score(net, 1), ids)
    torch.testing.assert_close(padded.baseline_score, net(torch.zeros_like(ids))[:, 1].detach())
    assert not torch.allclose(padded.values, found.values)


def test_layer_integrated_gradients_agree_with_captum_and_run_without_a_separate_tail() -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = nets.seeded(nets.ConvNet(inplace=False)).double(), nets.images(3).double()
    start = nets.images(1, seed=4).double()
    theirs = attr.LayerIntegratedGradients(net, net.features[0]).attribute(  # type: ignore[index]
        x, start.expand_as(x), target=1, n_steps=12, method="riemann_middle"
    )
    path = IntegratedGradients(Samples.of(start), steps=12)
    ours = LayerIntegratedGradients("features.0", path, space="input")
    torch.testing.assert_close(ours(Score(net, 1), x).values, theirs)
    tokens = nets.seeded(TokenNet()).double()  # its class token is of the batch's size: no tail alone
    found = LayerIntegratedGradients("patches", IntegratedGradients(steps="auto"))(Score(tokens, 1), x)
    assert found.diagnostics["converged"].all()


def test_eg_1_a_linear_score_with_every_reference_equally_often() -> None:
    background = torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = row(1, 2, 3, 4)
    expected = row(4, 3, 2, 1) * (x - background.mean(0))
    method = ExpectedGradients(Samples.of(background), samples=20, stratified=True)
    torch.testing.assert_close(method(Score(lin(), 0), x).values, expected)
    found = ExpectedGradients(Samples.of(background), samples=400)(Score(lin(), 0), x)
    assert bool(((found.values - expected).abs() < 4 * found.diagnostics["standard_error"]).all())


def test_eg_2_it_is_not_the_path_from_the_mean() -> None:
    samples = Samples.of(torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64))
    found = ExpectedGradients(samples, samples=4000)(Score(PROD, 0), row(2, 3))
    error = found.diagnostics["standard_error"]
    assert bool(((found.values - row(2.5, 3.0)).abs() < 4 * error).all())
    assert float(error.max()) < 0.05
    assert found.baseline_score is not None
    assert found.baseline_score.item() == 0.5
    gap, chance = (found.diagnostics[k].item() for k in ("completeness_gap", "gap_standard_error"))
    assert abs(gap) < 4 * chance
    mean = IntegratedGradients(Mean(samples))(Score(PROD, 0), row(2, 3))
    torch.testing.assert_close(mean.values, row(2.625, 3.125))


def test_eg_3_with_one_sample_it_is_the_path_from_there() -> None:
    start, x = nets.images(1, seed=6).double(), nets.images(2).double()
    score = Score(nets.seeded(Smooth()).double(), 1)
    expected = IntegratedGradients(Samples.of(start), rule="gauss_legendre", steps=40)(score, x).values
    found = ExpectedGradients(Samples.of(start), samples=200, stratified=True)(score, x)
    torch.testing.assert_close(found.values, expected, rtol=0.02, atol=2e-3)


def test_eg_4_the_standard_error_falls_with_the_root_of_the_samples() -> None:
    samples = Samples.of(torch.rand(30, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    errors = [
        ExpectedGradients(samples, samples=n)(Score(PROD, 0), row(2, 3)).diagnostics["standard_error"].mean()
        for n in (50, 5000)
    ]
    assert float(errors[0] / errors[1]) == pytest.approx(10, rel=0.2)


def test_strata_lower_the_error() -> None:
    samples = Samples.of(torch.zeros(1, 2, dtype=torch.float64))
    errors = [
        torch.stack(
            [
                ExpectedGradients(samples, 20, stratified=s, seed=seed)(Score(PROD, 0), row(2, 3)).values - row(3, 3)
                for seed in range(10)
            ]
        )
        .square()
        .mean()
        for s in (False, True)
    ]
    assert errors[1] < 0.05 * errors[0]


def test_the_input_itself_is_left_out_of_the_background() -> None:
    x = nets.images(3).double()
    score = Score(nets.seeded(Smooth()).double(), 0)
    alone = ExpectedGradients(Samples.of(x[1:]), samples=300, stratified=True)(score, x[:1])
    within = ExpectedGradients(Samples.of(x), samples=450, stratified=True)(score, x[:1])
    torch.testing.assert_close(within.values, alone.values, rtol=0.1, atol=0.02)
    torch.testing.assert_close(within.baseline_score, alone.baseline_score)
    with pytest.raises(InputError, match="nothing but the input itself"):
        ExpectedGradients(Samples.of(x[:1]))(score, x)


def test_eg_5_the_gini_coefficient_of_one_and_of_equal_features() -> None:
    for p in (2, 5, 40):
        assert gini(torch.eye(p)[0]).item() == pytest.approx(1 - 1 / p)
        assert gini(torch.full((p,), 3.0)).item() == pytest.approx(0, abs=1e-6)
    values = torch.rand(6, generator=torch.Generator().manual_seed(0))
    slow = (values[:, None] - values).abs().sum() / (2 * 6 * values.sum())
    assert gini(values).item() == pytest.approx(slow.item(), rel=1e-5)
    assert sparsity(values[None]).item() == pytest.approx(-slow.item(), rel=1e-5)


@pytest.mark.parametrize("prior", ["total_variation", "gini"])
def test_eg_6_the_prior_is_differentiable_by_the_weights(prior: str) -> None:
    net = nets.seeded(Smooth()).double()
    x = nets.images(2).double()
    weight = net.head.weight

    def loss(w: Tensor) -> Tensor:
        moved = lambda values: torch.func.functional_call(net, {"head.weight": w}, (values,))  # noqa: E731
        return attribution_prior(Score(Formula2(moved), 0), x, x, prior, seed=0)  # type: ignore[arg-type]

    assert torch.autograd.gradcheck(loss, (weight[:, :8].detach().repeat(1, 4).requires_grad_(),), atol=1e-5)


class Formula2(nn.Module):
    """A network that is a function, in training mode or not."""

    def __init__(self, function) -> None:  # type: ignore[no-untyped-def]
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_priors_of_images() -> None:
    phi = torch.tensor([[[[1.0, 3.0], [0.0, 0.0]]]])
    assert total_variation(phi).item() == 1 + 3 + 2 + 0
    assert masked_energy(phi, torch.tensor([[0.0, 1.0], [1.0, 1.0]])).item() == 9


def trained(penalty: float) -> tuple[nn.Module, Tensor, Tensor]:
    """Train on inputs whose features 0 and 1 both tell the class; the prior forbids the use of feature 0."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (200,), generator=generator)
    x = torch.randn(200, 6, generator=generator)
    x[:, 0] = (2.0 * y - 1) * 2
    x[:, 1] += 4.0 * y - 2
    mask = torch.eye(6)[0]
    net = nets.seeded(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))).train()
    optimizer = torch.optim.Adam(net.parameters(), 0.03)
    for step in range(120):
        loss = functional.cross_entropy(net(x), y)
        if penalty:
            prior = lambda phi: masked_energy(phi, mask)  # noqa: E731
            loss = loss + penalty * attribution_prior(Score(net, y), x, x, prior, seed=step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), x, y


@pytest.mark.kernels
def test_eg_7_a_strong_prior_removes_a_confounder_that_training_finds() -> None:
    shares = []
    for penalty in (0.0, 30.0):
        net, x, y = trained(penalty)
        found = GradientTimesInput()(Score(net, y), x).values.abs().mean(0)
        shares.append(float(found[0]))
        accuracy = float((net(x).argmax(1) == y).float().mean())
        # By the other feature, where the first is forbidden: two deviations from the border, 98 % can be told.
        assert accuracy > 0.9
    assert shares[1] < 0.05 * shares[0]  # 0.0005 to 0.018 of it, over eight seeds


@pytest.mark.kernels
def test_a_smoothness_prior_makes_maps_smoother() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(2, (64,), generator=generator)
    x = 2 * Blurred(1.0)(torch.randn(64, 1, 6, 6, generator=generator))[0]
    x = x + (y[:, None, None, None] * 2.0 - 1) * 0.6
    variations = []
    for penalty in (0.0, 0.1):
        net = nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Softplus(), nn.Linear(8, 2))).train()
        optimizer = torch.optim.Adam(net.parameters(), 0.02)
        for step in range(80):
            prior = attribution_prior(Score(net, y), x, x, "total_variation", seed=step)
            loss = functional.cross_entropy(net(x), y) + penalty * prior
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        net.eval()
        assert float((net(x).argmax(1) == y).float().mean()) > 0.85
        maps = Saliency()(Score(net, y), x).values
        variations.append(float(total_variation(maps / maps.abs().mean())))
    assert variations[1] < 0.8 * variations[0]  # 0.24 to 0.66 of it, over eight seeds


def test_the_prior_leaves_the_mode_and_batchnorms_averages_alone() -> None:
    net = nets.seeded(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))).train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    x, state = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)), torch.get_rng_state()
    a, b, c = (attribution_prior(Score(net, 0), x, x, "gini", seed=s) for s in (1, 1, 2))
    assert a == b
    assert a != c
    tops = net.eval()(x).argmax(1)
    net.train()
    named, unnamed = (attribution_prior(s, x, x, "gini", seed=1) for s in (Score(net, tops), Score(net)))
    assert named == unnamed
    assert all(module.training for module in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (IntegratedGradients(steps=0), "midpoint rule needs at least 1 steps, got 0"),
        (IntegratedGradients(rule="trapezoid", steps=1), "trapezoid rule needs at least 2 steps"),
        (IntegratedGradients(rule="mc", steps="auto"), "no steps='auto'"),
        (IntegratedGradients(batch_size=0), "batch_size must be 'auto' or at least 1, got 0"),
        (IntegratedGradients(Constant((1.0, 2.0))), "2 values for 1 channels"),
        (IntegratedGradients(Blurred(0.0)), "sigma above 0"),
    ],
)
def test_bad_settings_are_refused(method: IntegratedGradients, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method(Score(nets.seeded(Smooth()), 0), nets.images())


def test_baselines_of_another_shape_are_refused() -> None:
    score, x = Score(nets.seeded(Smooth()), 0), nets.images()
    with pytest.raises(InputError, match=r"samples have shape \(1, 5, 5\), inputs \(1, 6, 6\)"):
        IntegratedGradients(Samples.of(nets.images(size=5)))(score, x)
    with pytest.raises(InputError, match="3 paired samples can't serve 4 inputs"):
        IntegratedGradients(Samples.of(nets.images(3), paired=True))(score, x)
    with pytest.raises(InputError, match="finite"):
        Samples.of(torch.full((1, 2), torch.nan))
    with pytest.raises(InputError, match="at least 2 samples, got 1"):
        ExpectedGradients(Samples.of(nets.images(2)), samples=1)(score, x)
    with pytest.raises(InputError, match="all axes but the first must be the same"):
        attribution_prior(score, x, nets.images(size=5), "gini", seed=0)


def test_the_example_trains_with_priors_and_prints_what_they_change(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "experiments" / "attribution_prior.py"
    spec = importlib.util.spec_from_file_location("attribution_prior", script)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "attribution_prior", module)
    monkeypatch.setattr(sys, "argv", [str(script), "--tiny"])
    spec.loader.exec_module(module)
    assert module.main() == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert [row[0].strip() for row in rows] == ["0", "0.01", "0", "0.1"]
    assert rows[0][3:] != rows[1][3:]  # the prior changes maps
