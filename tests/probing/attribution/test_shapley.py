"""Shapley values against their definition, captum, closed forms, and the error that they state."""

import itertools
import math
from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution.base import Attribution
from probing.attribution.baselines import Constant
from probing.attribution.perturbation.lime import LIME
from probing.attribution.perturbation.shapley import Shapley
from probing.attribution.perturbation.superpixels import Each, Given, Grid
from probing.attribution.perturbation.surrogate import ExactShapley, KernelShap, ShapleySampling
from probing.core.inputs import InputError
from probing.models.precision import Precision
from probing.models.scores import Score

DOUBLE, ZERO = Precision("float64"), Constant()
Game = Callable[[Tensor], Tensor]


def by_all_orders(value: Game, count: int) -> Tensor:
    """The mean gain of each part over all orders in which parts are added."""
    total = torch.zeros(count, dtype=torch.float64)
    for order in itertools.permutations(range(count)):
        kept = torch.zeros(1, count, dtype=torch.bool)
        for part in order:
            before = value(kept)[0]
            kept[0, part] = True
            total[part] += value(kept)[0] - before
    return total / math.factorial(count)


def cubic(masks: Tensor) -> Tensor:
    """Six parts, of which three act together, in two ways; others alone or in pairs."""
    z = masks.double()
    together = 3 * z[:, 0] * z[:, 1] * z[:, 2] - 2 * z[:, 2] * z[:, 3] * z[:, 4]
    return 1 + together + z[:, 4] * z[:, 5] + z @ torch.tensor([0.5, -1, 0, 2, 0.3, 0]).double()


def quadratic(masks: Tensor) -> Tensor:
    z = masks.double()
    weights = torch.arange(225.0, dtype=torch.float64).reshape(15, 15).sin()
    return 0.3 + z @ weights[0] + ((z @ weights) * z).sum(1)


def test_shapley_values_are_the_mean_gain_over_all_orders() -> None:
    expected = by_all_orders(cubic, 6)
    for by in (ExactShapley(), ShapleySampling(), KernelShap()):
        found = by(cubic, 6)
        torch.testing.assert_close(found.coefficients, expected, rtol=1e-9, atol=1e-12)
        assert not found.standard_error.any()
        assert found.score - found.intercept == pytest.approx(float(expected.sum()))


def test_captums_net_of_several_layers_gets_what_its_own_tests_say() -> None:
    models = pytest.importorskip("captum.testing.helpers.basic_models")
    x = torch.tensor([[20.0, 50.0, 30.0]])
    found = Shapley(Each(), ZERO)(Score(models.BasicModel_MultiLayer().eval(), 0), x)
    torch.testing.assert_close(found.values, torch.tensor([[230.0, 590.0, 350.0]]) / 3)
    assert found.n_forward == 8


@pytest.mark.parametrize("parts", ["each", "groups"])
def test_values_are_captums(parts: str, generator: torch.Generator) -> None:
    attr = pytest.importorskip("captum.attr")
    net = nets.seeded(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))).double().eval()
    x = torch.randn(3, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(6) // (1 if parts == "each" else 2)
    theirs = attr.ShapleyValues(net).attribute(x, target=2, baselines=0.3, feature_mask=mask[None])
    ours = Shapley(Given.of(mask[None]), Constant((0.3,)), precision=DOUBLE)(Score(net, 2), x)
    torch.testing.assert_close(ours.values.to(theirs), theirs.detach())
    assert ours.n_forward == 3 * 2 ** len(mask.unique())


def test_a_linear_net_gives_weight_times_way_and_sampling_draws_nothing_from_it(generator: torch.Generator) -> None:
    net, x = nn.Linear(20, 3).double().eval(), torch.randn(2, 20, generator=generator, dtype=torch.float64)
    found = Shapley(Each(), Constant((0.5,)), precision=DOUBLE)(Score(net, 1), x)
    torch.testing.assert_close(found.values, net.weight[1].detach() * (x - 0.5), rtol=1e-9, atol=1e-12)
    assert found.diagnostics["standard_error"].max() < 1e-12
    assert found.n_forward <= 2 * (20 * 19 + 2)  # permutations times parts but one, none and all
    assert found.diagnostics["r2"].tolist() == pytest.approx([1, 1])


def test_where_no_three_parts_interact_an_order_and_its_reverse_are_exact() -> None:
    weights = torch.arange(225.0, dtype=torch.float64).reshape(15, 15).sin()
    both = weights + weights.T
    expected = weights[0] + weights.diagonal() + (both.sum(1) - both.diagonal()) / 2
    found = ShapleySampling(permutations=4)(quadratic, 15)
    torch.testing.assert_close(found.coefficients, expected, rtol=1e-9, atol=1e-9)
    assert found.standard_error.max() < 1e-9
    assert ShapleySampling(4, exact=0)(cubic, 6).standard_error.max() > 0.05  # the control


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    truth, pairs = by_all_orders(cubic, 6), 30
    runs = [ShapleySampling(2 * pairs, exact=0, seed=seed)(cubic, 6) for seed in range(400)]
    values, errors = (torch.stack(each) for each in ([r.coefficients for r in runs], [r.standard_error for r in runs]))
    three = torch.tensor([0, 1, 2, 3, 4])  # part 5 is in pairs only, and exact
    t = 2.045  # the 97.5 % quantile of Student's t with 29 degrees of freedom
    held = ((values - truth).abs() <= t * errors)[:, three].double()
    assert 0.93 <= float(held.mean()) <= 0.97
    assert (values - truth)[:, 5].abs().max() < 1e-12
    assert not 0.93 <= float(((values - truth).abs() <= errors)[:, three].double().mean()) <= 0.97  # the control
    torch.testing.assert_close(values.sum(1), truth.sum().expand(400))  # they add up in every draw


def test_r2_of_orders_estimates_that_of_all_coalitions() -> None:
    exact = ExactShapley()(cubic, 6).r2
    found = [ShapleySampling(40, exact=0, seed=seed)(cubic, 6).r2 for seed in range(40)]
    mean, spread = torch.tensor(found).mean(), torch.tensor(found).std()
    assert exact < 0.95
    assert abs(float(mean) - exact) < 4 * float(spread) / 40**0.5 + 0.03  # a ratio's bias, of the order of 1/40


def test_the_default_is_exact_up_to_twelve_parts_and_drawn_above() -> None:
    calls: list[int] = []

    def game(masks: Tensor) -> Tensor:
        calls.append(len(masks))
        z = masks.double()
        return z[:, 0] * z[:, 1] * z[:, 2] + z.sum(1)

    assert ShapleySampling()(game, 12).samples == 2**12
    assert not ShapleySampling()(game, 12).standard_error.any()
    drawn = ShapleySampling()(game, 13)
    assert drawn.samples == 20 * 12 + 2
    assert drawn.standard_error[:3].min() > 0
    assert calls[-1] <= drawn.samples  # coalitions that repeat are asked for once


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (ShapleySampling(5), "an even number of permutations from 4, and exact from 0 to 12, got 5 and 12"),
        (ShapleySampling(2), "got 2 and 12"),
        (ShapleySampling(exact=13), "got 20 and 13"),
    ],
)
def test_settings_that_say_nothing_are_refused(by: ShapleySampling, message: str) -> None:
    with pytest.raises(InputError, match=message):
        by(cubic, 6)


def test_parts_of_images_get_what_lime_by_the_same_estimator_gives(conv_net: nn.Module, image_batch: Tensor) -> None:
    found = Shapley(Grid(3, 3))(Score(conv_net, 1), image_batch)
    other = LIME(Grid(3, 3), surrogate=ExactShapley())(Score(conv_net, 1), image_batch)
    assert torch.equal(found.values, other.values)
    assert isinstance(found, Attribution)
    first = found.values[0, 0][::2, ::2]  # one place of each of nine parts
    torch.testing.assert_close(first.sum(), found.score[0] - found.diagnostics["intercept"][0].to(found.score))
