"""Sobol indices of parts against closed forms, and the errors that they state."""

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution.baselines import Constant
from probing.attribution.perturbation.parts import TensorParts
from probing.attribution.perturbation.sobol import Sobol
from probing.attribution.perturbation.superpixels import Each, Given
from probing.core.inputs import InputError
from probing.models.precision import Precision
from probing.models.scores import Score

DOUBLE, ZERO = Precision("float64"), Constant()


class Product(nn.Module):
    """The product of the first two features, and nothing of the third."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] * x[:, 1], x[:, 2]], 1)


def test_of_a_linear_score_they_are_the_squares_of_contributions_over_their_sum(generator: torch.Generator) -> None:
    net, x = nn.Linear(6, 3).double().eval(), torch.randn(2, 6, generator=generator, dtype=torch.float64)
    found = Sobol(Each(), Constant((0.5,)), masks=2000, precision=DOUBLE)(Score(net, 1), x)
    part = (net.weight[1].detach() * (x - 0.5)).square()
    expected, error = part / part.sum(1, keepdim=True), found.diagnostics["standard_error"]
    assert ((found.values - expected).abs() <= 4.5 * error).all()  # of twelve normal numbers, once in 10,000
    assert float(error.max()) < 0.05
    # A uniform number has a variance of 1/12.
    torch.testing.assert_close(found.diagnostics["variance"], part.sum(1) / 12, rtol=0.1, atol=0)
    assert not found.signed
    assert found.n_forward == 2 * (2000 * 8 + 1)


def test_parts_that_act_together_each_count_it_and_one_that_plays_no_role_gets_nothing() -> None:
    found = Sobol(Each(), ZERO, masks=4000, precision=DOUBLE)(Score(Product().eval(), 0), torch.ones(1, 3).double())
    pair, none = found.values[0, :2], found.values[0, 2]
    error = found.diagnostics["standard_error"][0, :2]
    assert ((pair - 4 / 7).abs() <= 4 * error).all()  # (1/9 - 1/12) / (1/9 - 1/16)
    assert float(none) == 0


def test_the_sign_of_a_part_plays_no_role_and_groups_are_parts() -> None:
    net = nets.seeded(nn.Linear(4, 1, bias=False)).double().eval()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, -1.0, 2.0, -1.0]]))
    labels = Given.of(torch.tensor([[0, 1, 2, 2]]))
    found = Sobol(labels, ZERO, masks=3000, precision=DOUBLE)(Score(net, 0), torch.ones(1, 4).double())
    expected = torch.tensor([1, 1, 1, 1]).double() / 3
    assert ((found.values[0] - expected).abs() <= 4.5 * found.diagnostics["standard_error"][0]).all()
    assert found.values[0, 2] == found.values[0, 3]


def test_standard_errors_hold_the_truth_as_often_as_they_say() -> None:
    net = nn.Linear(2, 1, bias=False).double().eval()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[2.0, 1.0]]))
    x, expected = torch.ones(1, 2).double(), torch.tensor([0.8, 0.2]).double()
    runs = [Sobol(Each(), ZERO, masks=200, seed=seed, precision=DOUBLE)(Score(net, 0), x) for seed in range(200)]
    z = torch.stack([(r.values[0] - expected) / r.diagnostics["standard_error"][0] for r in runs])
    held = (z.abs() <= 1.96).double()
    assert 0.91 <= float(held.mean()) <= 0.99  # 95 % and four standard errors of 200 draws, whose two parts go together
    assert float((z.abs() <= 0.5).double().mean()) < 0.6  # the control


def test_parts_fade_from_what_hides_them_to_themselves() -> None:
    example, hidden = torch.arange(6.0).reshape(2, 3), torch.full((2, 3), 10.0)
    parts = TensorParts.of(example, torch.tensor([[0, 0, 1]]), hidden)
    shares = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.25, 1.0]])
    found = parts.blend(shares)
    assert torch.equal(found[0], example)
    assert torch.equal(found[1], hidden)
    assert torch.equal(found[2], torch.tensor([[7.5, 7.75, 2.0], [8.25, 8.5, 5.0]]))


def test_of_a_score_that_no_mask_changes_there_is_nothing_to_share() -> None:
    found = Sobol(Each(), ZERO)(Score(Product().eval(), 1), torch.tensor([[3.0, 2.0, 0.0]]))
    assert not found.values.any()
    assert found.checks() == ("empty: no mask changes the score",)
    with pytest.raises(InputError, match="at least 2 pairs of masks, got 1"):
        Sobol(Each(), masks=1)(Score(Product().eval(), 0), torch.ones(1, 3))
