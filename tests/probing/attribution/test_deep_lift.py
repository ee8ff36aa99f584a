"""DeepLIFT against hand-computed multipliers, closed forms, captum, and its law of summation; DeepSHAP as its mean."""

import warnings
from collections.abc import Callable

import nets
import pytest
import torch
from attribution_nets import Formula, lin
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution.baselines import Samples
from probing.attribution.deep_lift import DeepLIFT, DeepSHAP
from probing.attribution.gradient import GradientTimesInput
from probing.core.inputs import InputError
from probing.models.geometry import RefusedError
from probing.models.readings import Regression
from probing.models.scores import Score


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def of(formula: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor | float = 0.0) -> Tensor:
    return DeepLIFT(baseline)(Score(Formula(formula), 0), x).values


def test_deep_lift_of_a_linear_net_is_weights_times_difference() -> None:
    x, b = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), row(1.0, -1.0, 0.5, 2.0)
    found = DeepLIFT(b)(Score(lin(), 0), x)
    torch.testing.assert_close(found.values, row(4.0, 3.0, 2.0, 1.0) * (x - b))


def test_deep_lift_sees_what_saturated() -> None:
    """Shrikumar et al. 2017, fig. 1: y = 1 - ReLU(1 - x1 - x2) is flat at (1, 1), where each gave half of it."""
    y = lambda x: 1 - functional.relu(1 - x.sum(1))  # noqa: E731 (the paper's formula)
    assert not GradientTimesInput()(Score(Formula(y), 0), row(1.0, 1.0)).values.any()
    torch.testing.assert_close(of(y, row(1.0, 1.0)), row(0.5, 0.5))


def test_deep_lift_has_no_jump_where_a_bias_is_passed() -> None:
    """Fig. 2 there: y = ReLU(x - 10) at 10 + ε is ε, where gradient times input jumps to 10."""
    for x in (10.0 - 1e-6, 10.0 + 1e-6):
        expected = max(x - 10, 0.0)
        torch.testing.assert_close(of(lambda v: functional.relu(v - 10), row(x)), row(expected), rtol=1e-6, atol=1e-12)


def test_products_and_quotients_count_each_factor_at_its_mean() -> None:
    """Of two factors that is the Shapley value: half of its gain beside the other's reference, half beside its value."""
    x, b = row(3.0, 5.0), row(1.0, 2.0)
    torch.testing.assert_close(of(lambda v: v[:, 0] * v[:, 1], x, b), row(2 * 3.5, 3 * 2.0))
    torch.testing.assert_close(of(lambda v: v[:, 0] * v[:, 0], x, b), row(8.0, 0.0))
    quotient = of(lambda v: v[:, 0] / v[:, 1], x, b)
    torch.testing.assert_close(quotient, row(2 * (1 / 5 + 1 / 2) / 2, 2.0 * (1 / 5 - 1 / 2)))
    torch.testing.assert_close(of(lambda v: v[:, 0] / v[:, 0], x, b), row(0.0, 0.0))
    torch.testing.assert_close(of(lambda v: 6 / v[:, 0], x, b), row(2.0 - 6.0, 0.0))


def test_a_maximum_s_rise_goes_to_who_has_it_and_its_fall_to_who_had_it() -> None:
    largest = lambda v: functional.max_pool2d(v.view(-1, 1, 1, 2), (1, 2))  # noqa: E731 (one line)
    torch.testing.assert_close(of(largest, row(3.0, 1.0), row(0.0, 2.0)), row(1.0, 0.0))
    torch.testing.assert_close(of(largest, row(0.0, 1.0), row(3.0, 2.0)), row(-2.0, 0.0))
    torch.testing.assert_close(of(largest, row(0.0, 2.0), row(2.0, 0.0)), row(0.0, 0.0))


class Mixed(nn.Module):
    """Functions, a residual connection, an activation used twice, in place, a gate, BatchNorm and overlapping windows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.act = nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.gate, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.gelu(self.first(x))
        x = self.act(x + self.norm(self.second(self.act(x.clone()))))
        x = functional.max_pool2d(x, 3, 2, 1)
        pooled = x.mean((2, 3))
        x = x * torch.sigmoid(self.gate(pooled))[:, :, None, None]
        x = torch.cat([x.flatten(2).mean(2), functional.softplus(pooled)], 1)
        return self.head(x[:, :6] / (1 + x[:, 6:]))


NETS: dict[str, Callable[[], nn.Module]] = {
    "functions": Mixed,
    "in place": nets.ConvNet,
    "transposed": lambda: nn.Sequential(
        nn.ConvTranspose2d(1, 3, 2, 2),
        nn.Hardswish(),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.AvgPool2d(3, 2),
        nn.Mish(),
        nn.Flatten(),
        nn.LazyLinear(3),
    ),
    "adaptive": lambda: nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Hardtanh(-0.5, 0.5), nn.AdaptiveMaxPool2d(2), nn.PReLU(4), nn.Flatten(), nn.Linear(16, 3)
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("size", ["auto", 1, 3])
def test_the_map_adds_up_to_the_change_of_the_score(name: str, size: int) -> None:
    net, x = NETS[name]().double(), nets.images().double()
    net.eval()(x)  # so that lazy layers know their size
    score = Score(nets.seeded(net), torch.tensor([0, 1, 2, 1]))
    start = nets.images(seed=3).double()
    found = DeepLIFT(start, batch_size=size)(score, x)  # type: ignore[arg-type]
    change = score(x) - score(start)
    torch.testing.assert_close(found.values.sum((1, 2, 3)), change.detach(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.score - found.baseline_score, change.detach())
    assert float(found.values.abs().max()) > 1e-3
    assert (found.n_forward, found.n_backward) == (8, 4)


def captum_s(net: nn.Module, x: Tensor, start: Tensor, target: int) -> Tensor:
    attr = pytest.importorskip("captum.attr")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its hooks announce themselves
        return attr.DeepLift(net).attribute(x, start, target=target).detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize("act", [nn.ReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.ELU, nn.LeakyReLU])
def test_captum_gives_the_same_where_activations_are_modules_used_once(act: Callable[[], nn.Module]) -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), act(), nn.Conv2d(4, 5, 3), act(), nn.AvgPool2d(2), nn.Flatten())
    net = nets.seeded(nn.Sequential(net, nn.Linear(20, 6), act(), nn.Linear(6, 3))).double()
    x, start = nets.images().double(), nets.images(seed=5).double()
    torch.testing.assert_close(DeepLIFT(start)(Score(net, 1), x).values, captum_s(net, x, start, 1))


class Twice(nn.Module):
    """Two dense layers with an activation each, of the same module or of their own."""

    def __init__(self, *, reused: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)])
        self.acts = nn.ModuleList([nn.Tanh(), nn.Tanh()])
        self.reused = reused

    def forward(self, x: Tensor) -> Tensor:
        x = self.acts[0](self.layers[0](x))
        return self.layers[2](self.acts[0 if self.reused else 1](self.layers[1](x)))


def test_an_activation_that_runs_twice_is_as_two_that_run_once() -> None:
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one, two = (nets.seeded(Twice(reused=reused)).double() for reused in (True, False))
    found, expected = (DeepLIFT(0.2)(Score(net, 1), x).values for net in (one, two))
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found, captum_s(two, x, torch.full_like(x, 0.2), 1))


def test_of_several_baselines_the_mean_is_taken_and_deep_shap_is_that_mean() -> None:
    net, x, pool = nets.seeded(Mixed()).double(), nets.images(3).double(), nets.images(5, seed=9).double()
    score = Score(net, 1)
    parts = torch.stack([DeepLIFT(b[None].expand_as(x))(score, x).values for b in pool])
    lift, shap = DeepLIFT(Samples.of(pool))(score, x), DeepSHAP(pool)(score, x)
    torch.testing.assert_close(shap.values, parts.mean(0))
    torch.testing.assert_close(lift.values, shap.values)
    torch.testing.assert_close(lift.diagnostics["baseline_spread"], parts.std(0))
    torch.testing.assert_close(shap.diagnostics["standard_error"], parts.std(0) / 5**0.5)
    torch.testing.assert_close(shap.baseline_score, score(pool).mean().detach().expand(3))
    assert (shap.n_forward, shap.n_backward) == (18, 15)


def test_deep_shap_of_a_linear_net_is_its_shapley_value() -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pool = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = DeepSHAP(pool)(Score(lin(), 0), x)
    torch.testing.assert_close(found.values, row(4.0, 3.0, 2.0, 1.0) * (x - pool.mean(0)))
    with pytest.raises(InputError, match="must be the same"):
        DeepSHAP(pool[:, :3])(Score(lin(), 0), x)


def masked(x: Tensor) -> Tensor:
    return torch.where(x > 0.5, x, 0 * x).sum(1)


def branches(x: Tensor) -> Tensor:
    return (x * 2 if float(x.sum()) > 100 else x).sum(1)


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        (masked, "'where', goes by a mask or positions that hang on activations"),
        (branches, "turns an activation into a Python number"),
        (lambda x: x.softmax(1)[:, 0] * 3, "operation '_softmax', has no rule of DeepLIFT"),
        (lambda x: functional.layer_norm(x, x.shape[1:])[:, 0], "'native_layer_norm', has no rule of DeepLIFT"),
        (lambda x: x.amax(1), "'amax', has no rule of DeepLIFT"),
        (lambda x: functional.glu(x)[:, 0], "'glu', has no rule of DeepLIFT"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(formula: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        of(formula, row(1.0, 2.0, -3.0, 4.0))


def test_scores_that_are_no_sum_of_outputs_are_refused() -> None:
    net, x = nets.seeded(nets.ConvNet()).double(), nets.images().double()
    for score in (Score(net, 0, "probability"), Score(net, 0, "logprob")):
        with pytest.raises(RefusedError, match="explain the logit"):
            DeepLIFT()(score, x)
    column = DeepLIFT()(Score(net, Regression(2)), x)
    torch.testing.assert_close(column.values, DeepLIFT()(Score(net, 2), x).values)


def test_an_input_that_is_its_reference_has_an_empty_map() -> None:
    net, x = nets.seeded(Mixed()).double(), nets.images().double()
    found = DeepLIFT(x.clone())(Score(net, 1), x)
    assert not found.values.any()
    assert bool(found.diagnostics["relative_gap"].isnan().all())
    assert found.checks() == ("empty: the input is its own baseline",) * 4
