"""DeepLIFT's reveal-cancel rule against shares by hand, the plain rule of one layer, rescale, and summation."""

from collections.abc import Callable

import nets
import pytest
import torch
from attribution_nets import Formula
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution.deep_lift import DeepLIFT
from probing.core.errors import ArgumentError
from probing.models.geometry import RefusedError
from probing.models.scores import Score

REVEAL = DeepLIFT(rule="reveal_cancel")


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_each_of_a_minimum_gets_half_where_rescale_gives_all_to_one() -> None:
    """min(a, b) = a - ReLU(a - b), the example of the paper (Shrikumar et al. 2017)."""
    net = Formula(lambda x: x[:, 0] - functional.relu(x[:, 0] - x[:, 1]))
    for x, least, alone in ((row(3.0, 1.0), 1.0, row(0.0, 1.0)), (row(2.0, 5.0), 2.0, row(2.0, 0.0))):
        torch.testing.assert_close(REVEAL(Score(net, 0), x).values, row(least / 2, least / 2))
        torch.testing.assert_close(DeepLIFT()(Score(net, 0), x).values, alone)


def test_a_rectifier_after_a_dense_layer_is_the_mean_over_both_orders() -> None:
    """By hand: what raises the unit alone and beside what lowers it, and shares of both by weight times change."""
    generator = torch.Generator().manual_seed(0)
    x, b = (torch.randn(3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    net = nets.seeded(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))).double()
    weight, bias, out = net[0].weight.detach(), net[0].bias.detach(), net[2].weight.detach()[1]  # type: ignore[index, union-attr, operator]
    terms = weight * (x - b)[:, None]
    up, down = terms.clamp(min=0), terms.clamp(max=0)
    f, before, p, n = torch.relu, b @ weight.T + bias, up.sum(2), down.sum(2)
    raised = (f(before + p) - f(before) + f(before + p + n) - f(before + n)) / 2
    lowered = (f(before + n) - f(before) + f(before + p + n) - f(before + p)) / 2
    shares = [(part / whole).nan_to_num(0)[..., None] for part, whole in ((raised, p), (lowered, n))]  # 0 / 0: no term
    expected = torch.einsum("u,nuf->nf", out, up * shares[0] + down * shares[1])
    found = DeepLIFT(b, rule="reveal_cancel")(Score(net, 1), x)
    torch.testing.assert_close(found.values, expected)
    assert float((found.values - DeepLIFT(b)(Score(net, 1), x).values).abs().max()) > 1e-3


class Mixed(nn.Module):
    """A residual sum, an activation used twice and in place, BatchNorm, constants of both signs, pooling and padding."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3)
        self.norm, self.act, self.head = nn.BatchNorm2d(4), act, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(x - functional.pad(self.norm(self.second(x)), (1, 1, 1, 1), value=0.5))
        x = functional.avg_pool2d(1.5 - 2 * x / -3, 2)
        pooled = torch.cat([x.mean((2, 3)), -x.flatten(2).sum(2)], 1)
        return self.head(pooled + torch.tanh(pooled))


@pytest.mark.parametrize("act", [nn.ReLU(inplace=True), nn.Softplus(), nn.LeakyReLU(), nn.ELU(), nn.Hardtanh(-0.5, 0.5)])
@pytest.mark.parametrize("size", ["auto", 1])
def test_the_map_adds_up_to_the_change_of_the_score(act: nn.Module, size: int) -> None:
    score = Score(nets.seeded(Mixed(act)).double(), torch.tensor([0, 1, 2, 1]))
    x, start = nets.images().double(), nets.images(seed=3).double()
    found = DeepLIFT(start, batch_size=size, rule="reveal_cancel")(score, x)  # type: ignore[arg-type]
    change = (score(x) - score(start)).detach()
    torch.testing.assert_close(found.values.sum((1, 2, 3)), change, rtol=1e-9, atol=1e-9)
    assert float((found.values - DeepLIFT(start)(score, x).values).abs().max()) > 1e-6


def test_where_all_differences_have_one_sign_it_is_the_rescale_rule() -> None:
    """No weight and no difference is below zero, so nothing can hide; with one below, they part."""
    net = nets.seeded(nets.ConvNet()).double()
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("weight"):
                parameter.abs_()
    x = nets.images().double().abs()
    found, expected = (method(Score(net, 1), x).values for method in (REVEAL, DeepLIFT()))
    torch.testing.assert_close(found, expected)
    x[:, :, 2] *= -1
    found, expected = (method(Score(net, 1), x).values for method in (REVEAL, DeepLIFT()))
    assert float((found - expected).abs().max()) > 1e-3


def test_a_linear_net_is_weights_times_difference() -> None:
    net = nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Linear(5, 2))).double()
    x = nets.images().double()
    torch.testing.assert_close(REVEAL(Score(net, 1), x).values, DeepLIFT()(Score(net, 1), x).values)


@pytest.mark.parametrize(
    ("formula", "said"),
    [
        (lambda x: functional.gelu(x)[:, 0], "'gelu', has no reveal-cancel rule"),
        (lambda x: x[:, 0] * x[:, 1], "'mul', has no reveal-cancel rule"),
        (lambda x: x[:, 0] / x[:, 1], "'div', has no reveal-cancel rule"),
        (lambda x: functional.max_pool2d(x.view(-1, 1, 2, 2), 2), "'max_pool2d_with_indices', has no reveal-cancel rule"),
        (lambda x: x.softmax(1)[:, 0] * 3, "'_softmax', has no reveal-cancel rule"),
        (lambda x: torch.where(x > 0.5, x, 0 * x).sum(1), "goes by a mask or positions that hang on activations"),
    ],
)
def test_what_has_no_rule_is_refused_by_name(formula: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(RefusedError, match=said):
        DeepLIFT(0.1, rule="reveal_cancel")(Score(Formula(formula), 0), row(1.0, 2.0, -3.0, 4.0))


@pytest.mark.usefixtures("unchecked")
def test_a_rule_that_is_none_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"rule must be one of \('rescale', 'reveal_cancel'\), got 'linear'"):
        DeepLIFT(rule="linear")  # type: ignore[arg-type]


def test_an_input_that_is_its_reference_has_an_empty_map() -> None:
    x = nets.images().double()
    found = DeepLIFT(x.clone(), rule="reveal_cancel")(Score(nets.seeded(nets.ConvNet()).double(), 1), x)
    assert not found.values.any()
    assert found.checks() == ("empty: the input is its own baseline",) * 4
