import math

import nets
import pytest
import torch
from attribution_nets import ByHand, Formula, Homogeneous, Smooth, lin
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution import METHODS
from probing.attribution.gradient import (
    Deconvolution,
    GradientTimesInput,
    GuidedBackprop,
    Saliency,
    SmoothGrad,
)
from probing.attribution.lrp.composites import Uniform
from probing.attribution.lrp.lrp import LRP
from probing.attribution.lrp.rules import Epsilon
from probing.attribution.path import IntegratedGradients
from probing.core.inputs import InputError
from probing.models.geometry import RefusedError
from probing.models.precision import Precision
from probing.models.scores import Score

ONES = torch.ones(1, 2, dtype=torch.float64)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_sal_1_a_linear_score_has_its_weights_as_map() -> None:
    found = Saliency()(Score(lin(), 0), row(0.3, -1, 2, 5))
    torch.testing.assert_close(found.values, row(4, 3, 2, 1), rtol=0, atol=0)


def test_sal_2_the_gradient_of_the_hand_net() -> None:
    found = Saliency()(Score(ByHand(), 0), ONES)
    assert found.values.tolist() == [[-1, 0]]
    assert found.score.tolist() == [-1]


def test_sal_3_central_differences_agree() -> None:
    net = nets.seeded(Smooth()).double()
    x = nets.images(1).double()
    found = Saliency()(Score(net, 1), x).values.flatten()
    steps = 1e-5 * torch.eye(x.numel(), dtype=torch.float64).reshape(-1, *x.shape[1:])
    with torch.no_grad():
        expected = (net(x + steps) - net(x - steps))[:, 1] / 2e-5
    assert float((found - expected).norm() / expected.norm()) < 1e-6


def test_sal_4_a_saturated_score_has_no_gradient() -> None:
    saturated = Formula(lambda x: 1 - functional.relu(1 - x))
    assert Saliency()(Score(saturated, 0), row(2)).values.tolist() == [[0]]


def test_sal_5_a_batch_equals_single_calls() -> None:
    net, x = nets.seeded(nets.ConvNet()).double(), nets.images(4).double()
    target = torch.tensor([0, 2, 1, 2])
    batch = Saliency()(Score(net, target), x)
    for i in range(4):
        single = Saliency()(Score(net, int(target[i])), x[i : i + 1])
        torch.testing.assert_close(batch.values[i : i + 1], single.values, rtol=1e-12, atol=0)
        torch.testing.assert_close(batch.score[i : i + 1], single.score, rtol=1e-12, atol=0)


def test_gbp_1_guided_and_deconvolution_signals_of_the_hand_net() -> None:
    score = Score(ByHand(), 0)
    assert GuidedBackprop()(score, ONES).values.tolist() == [[2, -1]]
    assert Deconvolution()(score, ONES).values.tolist() == [[1, -2]]


def test_gbp_2_the_signal_that_leaves_the_first_layer_is_not_rectified() -> None:
    assert GuidedBackprop()(Score(ByHand(), 0), ONES).values.tolist() != [[2, 0]]


def test_gbp_3_two_forms_of_one_function_get_different_maps() -> None:
    pair, plain = Formula(lambda x: functional.relu(x) - functional.relu(-x)), Formula(lambda x: x)
    with pytest.raises(RefusedError, match=r"none is met .* plain gradient, which Saliency\(\)"):
        GuidedBackprop()(Score(plain, 0), row(-2))
    assert Saliency()(Score(plain, 0), row(-2)).values.tolist() == [[1]]
    assert GuidedBackprop()(Score(pair, 0), row(-2)).values.tolist() == [[0]]
    assert Saliency()(Score(pair, 0), row(-2)).values.tolist() == [[1]]


def test_gbp_4_where_all_signals_are_positive_guided_is_the_gradient() -> None:
    net = nets.seeded(nets.ConvNet()).double()
    with torch.no_grad():
        net.features[2].weight.abs_()  # type: ignore[index, operator]
        net.head.weight.abs_()  # type: ignore[union-attr, operator]
    score, x = Score(net, 0), nets.images().double()
    torch.testing.assert_close(GuidedBackprop()(score, x).values, Saliency()(score, x).values)
    assert not torch.equal(Deconvolution()(score, x).values, Saliency()(score, x).values)


def test_gbp_5_twice_the_logit_has_twice_the_map() -> None:
    once = nets.seeded(nets.ConvNet()).double()
    twice = nets.seeded(nets.ConvNet()).double()
    with torch.no_grad():
        twice.head.weight.mul_(2)  # type: ignore[union-attr, operator]
    x = nets.images().double()
    a, b = (GuidedBackprop()(Score(net, 1), x).values for net in (once, twice))
    torch.testing.assert_close(2 * a, b)


def maximum_with_zero(x: Tensor) -> Tensor:
    return torch.maximum(x, torch.zeros_like(x))


FORMS = {
    "functional.relu": functional.relu,
    "functional.relu in place": lambda x: functional.relu(x, inplace=True),
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "Tensor.relu_": lambda x: x.relu_(),
    "clamp": lambda x: x.clamp(min=0),
    "clamp_": lambda x: x.clamp_(0),
    "torch.clamp_min": lambda x: torch.clamp_min(x, 0.0),
    "threshold": lambda x: functional.threshold(x, 0.0, 0.0),
    "nn.ReLU": nn.ReLU(),
    "nn.Threshold": nn.Threshold(0, 0),
    "maximum": maximum_with_zero,
    "where": lambda x: torch.where(x > 0, x, 0.0),
}


@pytest.mark.parametrize("form", FORMS)
def test_gbp_6_functions_equal_their_module_twin_or_are_refused_by_name(form: str) -> None:
    net = ByHand(FORMS[form])
    for method, expected in ((GuidedBackprop(), [[2, -1]]), (Deconvolution(), [[1, -2]])):
        if form in {"maximum", "where"}:
            with pytest.raises(RefusedError, match=f"put on 0 rectifiers.*also has {form}"):
                method(Score(net, 0), ONES)
        else:
            found = method(Score(net, 0), ONES)
            assert found.values.tolist() == expected
            assert found.diagnostics["gates"].tolist() == [1]


class Overwriting(nn.Module):
    """Its ReLU works in place and its result is not used; the tensor is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ByHand()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner.first(x)
        functional.relu_(hidden)
        return self.inner.second(hidden)


def test_rectifiers_that_overwrite_their_input_are_followed() -> None:
    net = Overwriting().eval()
    assert GuidedBackprop()(Score(net, 0), ONES).values.tolist() == [[2, -1]]
    assert Deconvolution()(Score(net, 0), ONES).values.tolist() == [[1, -2]]


def test_a_rectifier_with_a_ceiling_passes_nothing_above_it() -> None:
    net = Formula(lambda x: functional.relu6(x).sum(1) - functional.hardtanh(x, 0, 2).sum(1))
    x = row(-1, 1, 3, 7)
    assert GuidedBackprop()(Score(net, 0), x).values.tolist() == [[0, 1, 1, 0]]
    assert Saliency()(Score(net, 0), x).values.tolist() == [[0, 0, 1, 0]]


@pytest.mark.parametrize("gate", [nn.GELU(), nn.SiLU(), nn.LeakyReLU(0.1), nn.ELU(), nn.Softplus()])
def test_other_gates_are_refused_by_name_unless_asked_for(gate: nn.Module) -> None:
    net, name = ByHand(gate), type(gate).__name__
    for method in (GuidedBackprop, Deconvolution):
        with pytest.raises(RefusedError, match=f"also has {name}.*gates='all'"):
            method()(Score(net, 0), ONES)
    pre = net.first(ONES).detach().requires_grad_()
    (slope,) = torch.autograd.grad(gate(pre).sum(), pre)
    arriving = row(1, 0, 1)  # the positive part of the readout
    expected = (slope * arriving) @ net.first.weight
    torch.testing.assert_close(GuidedBackprop(gates="all")(Score(net, 0), ONES).values, expected)
    expected = arriving @ net.first.weight
    torch.testing.assert_close(Deconvolution(gates="all")(Score(net, 0), ONES).values, expected)


def test_a_clamp_away_from_zero_is_no_rectifier() -> None:
    net = Formula(lambda x: x.clamp(min=0.5).sum(1) - functional.relu(x).sum(1))
    assert GuidedBackprop()(Score(net, 0), row(2)).values.tolist() == [[1]]


def test_gxi_1_gradient_times_input_is_complete_on_a_homogeneous_net() -> None:
    net, x = nets.seeded(Homogeneous()).double(), nets.images(3).double()
    found = GradientTimesInput()(Score(net, 1), x)
    assert float((found.values.flatten(1).sum(1) - found.score).abs().max()) < 1e-9
    assert float(found.diagnostics["completeness_gap"].abs().max()) < 1e-9
    assert float(found.score.abs().min()) > 1e-3


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_gxi_2_three_methods_are_one_on_a_homogeneous_net(steps: int) -> None:
    """Gradient × input, integrated gradients from zero with any number of steps, and LRP-0."""
    net, x = nets.seeded(Homogeneous()).double(), nets.images(3).double()
    score = Score(net, torch.tensor([0, 1, 0]))
    expected = GradientTimesInput()(score, x).values
    torch.testing.assert_close(IntegratedGradients(steps=steps)(score, x).values, expected)
    torch.testing.assert_close(LRP(Uniform(Epsilon(0.0)))(score, x).values, expected)


def test_sg_1_noise_does_not_move_the_map_of_a_linear_score() -> None:
    found = SmoothGrad(samples=7)(Score(lin(), 0), row(1, 2, 3, 4))
    torch.testing.assert_close(found.values, row(4, 3, 2, 1))
    assert not found.diagnostics["standard_error"].any()
    variance = SmoothGrad(samples=7, statistic="variance")(Score(lin(), 0), row(1, 2, 3, 4))
    torch.testing.assert_close(variance.values, torch.zeros(1, 4, dtype=torch.float64))


QUADRATIC = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)


def quadratic(x: Tensor) -> Tensor:
    return (x @ QUADRATIC * x).sum(1) / 2


def test_sg_2_mean_and_variance_on_a_quadratic_score() -> None:
    score, n = Score(Formula(quadratic), 0), 5000
    smooth = SmoothGrad(samples=n, noise=0.3, unit="absolute", batch_size=n)
    found = smooth(score, row(1, 2))
    error = found.diagnostics["standard_error"]
    assert bool(((found.values - row(4, 7)).abs() < 4 * error).all())
    torch.testing.assert_close(error * math.sqrt(n), row(0.45, 0.9).sqrt(), rtol=0.05, atol=0)
    spread = SmoothGrad(samples=n, noise=0.3, unit="absolute", statistic="variance", batch_size=n)
    found = spread(score, row(1, 2))
    error = found.diagnostics["standard_error"]
    assert bool(((found.values - row(0.45, 0.9)).abs() < 4 * error).all())


@pytest.mark.parametrize(("x", "share"), [(0.0, 0.5), (0.5, 0.8413)])
def test_sg_3_a_kink_is_smoothed_to_the_normal_distribution(x: float, share: float) -> None:
    score, n = Score(Formula(functional.relu), 0), 5000
    found = {
        s: SmoothGrad(samples=n, noise=0.5, unit="absolute", statistic=s)(score, row(x)).values.item()  # type: ignore[arg-type]
        for s in ("mean", "square", "variance")
    }
    error = math.sqrt(share * (1 - share) / n)
    assert found["mean"] == pytest.approx(share, abs=4 * error)
    assert found["square"] == found["mean"]
    assert found["variance"] == pytest.approx(share * (1 - share), abs=4 * error)


def test_sg_4_the_error_falls_with_the_root_of_the_samples() -> None:
    # The gradient of x² / 2 at noisy points is the noise plus x: the error of its mean is known to be noise / √n.
    score, counts = Score(Formula(lambda x: (x**2).sum(1) / 2), 0), (25, 400)
    x = torch.zeros(1, 200, dtype=torch.float64)  # 200 independent repetitions
    errors = []
    for n in counts:
        found = SmoothGrad(samples=n, noise=0.5, unit="absolute")(score, x)
        errors.append(math.log(found.values.square().mean().sqrt()))
    slope = (errors[1] - errors[0]) / math.log(counts[1] / counts[0])
    assert slope == pytest.approx(-0.5, abs=0.1)


def test_sg_5_without_noise_it_is_the_method_itself() -> None:
    score, x = Score(nets.seeded(nets.ConvNet()).double(), 0), nets.images().double()
    torch.testing.assert_close(SmoothGrad(noise=0.0, samples=3)(score, x).values, Saliency()(score, x).values)


def test_sg_6_it_is_the_gradient_of_the_blurred_score() -> None:
    import numpy as np

    sigma, x = 0.4, 0.3
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    blurred = sum(w * math.cos(x + sigma * p) for p, w in zip(points, weights, strict=True)) / math.sqrt(2 * math.pi)
    found = SmoothGrad(samples=5000, noise=sigma, unit="absolute", batch_size=5000)(Score(Formula(torch.sin), 0), row(x))
    assert found.values.item() == pytest.approx(blurred, abs=4 * found.diagnostics["standard_error"].item())


def test_noise_is_a_share_of_each_inputs_range() -> None:
    net = Formula(lambda x: (x**2).sum(1) / 2)  # whose gradient is the noisy input itself
    x = torch.tensor([[0.0, 1.0], [0.0, 10.0]], dtype=torch.float64)
    found = SmoothGrad(samples=400, noise=0.2, statistic="variance")(Score(net, 0), x).values
    torch.testing.assert_close(found[1], 100 * found[0])
    torch.testing.assert_close(found[0], row(0.04, 0.04)[0], rtol=0.3, atol=0)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "expected_gradients"])
def test_smoothgrad_wraps_any_method(name: str) -> None:
    score, x = Score(nets.seeded(nets.ConvNet()).double(), 1), nets.images(2).double()
    method = METHODS[name]()
    found, alone = SmoothGrad(method, samples=3, noise=1e-9)(score, x), method(score, x)
    torch.testing.assert_close(found.values, alone.values, rtol=1e-4, atol=1e-6)
    assert found.layer == alone.layer
    assert found.geometry == alone.geometry
    assert found.n_forward > alone.n_forward


def test_the_seed_decides_the_noise() -> None:
    score, x = Score(nets.seeded(nets.ConvNet()).double(), 1), nets.images().double()
    a, b, c = (SmoothGrad(samples=3, seed=s)(score, x).values for s in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.allclose(a, c)


@pytest.mark.parametrize("method", [Saliency, GuidedBackprop, SmoothGrad])
def test_maps_do_not_depend_on_the_chunk(method: type) -> None:
    score, x = (
        Score(nets.seeded(nets.ConvNet()).double(), torch.tensor([0, 1, 2, 0])),
        nets.images().double(),
    )
    whole = method()(score, x).values
    for size in (1, 3, 7):
        torch.testing.assert_close(method(batch_size=size)(score, x).values, whole, rtol=1e-9, atol=1e-12)


def test_the_spread_over_samples_does_not_depend_on_the_chunk() -> None:
    score, x = Score(nets.seeded(nets.ConvNet()).double(), 1), nets.images(1).double()
    whole, parts = (SmoothGrad(samples=9, statistic="variance", batch_size=b)(score, x).values for b in (9, 2))
    torch.testing.assert_close(whole, parts, rtol=1e-9, atol=1e-12)
    assert whole.any()


def test_a_weight_that_was_folded_before_is_read_again_when_it_changes() -> None:
    net, x = nets.seeded(nets.BatchNormNet()).double(), nets.images().double()
    before = Saliency()(Score(net, 1), x).values
    with torch.no_grad():
        net.conv1.weight.mul_(-2)  # type: ignore[union-attr, operator]
    after = Saliency()(Score(net, 1), x).values
    assert not torch.allclose(before, after)
    exact = Saliency(precision=Precision("reference"))(Score(net, 1), x).values
    torch.testing.assert_close(after, exact)


def test_maps_are_the_models_own_where_tracing_takes_another_path() -> None:
    net, x = nets.seeded(nets.AsksForTensors()), nets.images()
    exact = Saliency(precision=Precision("reference"))(Score(net, 1), x)
    found = Saliency()(Score(net, 1), x)
    torch.testing.assert_close(found.values, exact.values, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.score, net(x)[:, 1].detach())


def test_precision_chooses_how_passes_run() -> None:
    score, x = Score(nets.seeded(nets.BatchNormNet()), 1), nets.images()
    exact = Saliency(precision=Precision("reference"))(score, x).values
    torch.testing.assert_close(Saliency()(score, x).values, exact, rtol=1e-4, atol=1e-6)
    coarse = Saliency(precision=Precision("fast"))(score, x).values
    assert not torch.allclose(coarse, exact, rtol=1e-5)
    assert coarse.dtype == torch.float32


def test_captum_agrees_on_saliency_and_guided_backprop() -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = nets.seeded(nets.ConvNet(inplace=False)).double(), nets.images().double()
    theirs = attr.Saliency(net).attribute(x.clone().requires_grad_(), target=1, abs=False)
    torch.testing.assert_close(Saliency()(Score(net, 1), x).values, theirs)
    with pytest.warns(UserWarning, match="hook"):
        theirs = attr.GuidedBackprop(net).attribute(x.clone().requires_grad_(), target=1)
    torch.testing.assert_close(GuidedBackprop()(Score(net, 1), x).values, theirs)
    with pytest.warns(UserWarning, match="hook"):
        theirs = attr.Deconvolution(net).attribute(x.clone().requires_grad_(), target=1)
    torch.testing.assert_close(Deconvolution()(Score(net, 1), x).values, theirs)


class Functional(nn.Module):
    """A convolutional net that calls its rectifier as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nets.ConvNet()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.net.features[0](x))
        return self.net.head(functional.relu(self.net.features[2](x)).mean((2, 3)))


def test_fault_8_functional_rectifiers_are_no_plain_gradients_as_they_are_elsewhere() -> None:
    net = nets.seeded(Functional()).double()
    score, x = Score(net, 1), nets.images().double()
    guided = GuidedBackprop()(score, x)
    twin = GuidedBackprop()(Score(nets.seeded(nets.ConvNet()).double(), 1), x)
    torch.testing.assert_close(guided.values, twin.values)
    assert guided.diagnostics["gates"].tolist() == [2] * 4
    assert not torch.allclose(guided.values, Saliency()(score, x).values)


def test_smoothgrad_refuses_a_single_sample() -> None:
    with pytest.raises(InputError, match=r"at least 2 samples.*samples=1"):
        SmoothGrad(samples=1)(Score(lin(), 0), row(1, 2, 3, 4))
