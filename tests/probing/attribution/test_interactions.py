"""What two parts do together, against closed forms of polynomials."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from probing.attribution.baselines import Constant
from probing.attribution.perturbation.interactions import InteractionResult, PairInteractions
from probing.attribution.perturbation.shapley import Shapley
from probing.attribution.perturbation.superpixels import Each, Grid
from probing.core.inputs import InputError
from probing.models.precision import Precision
from probing.models.scores import Score

DOUBLE, ZERO = Precision("float64"), Constant()
X = torch.tensor([[1.0, 2.0, 3.0, 0.5]]).double()


class Polynomial(nn.Module):
    """`x0 + 2 x0 x1 + x1 x2 x3` and `x0 - x1 + x3`."""

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = x.T
        return torch.stack([a + 2 * a * b + b * c * d, a - b + d], 1)


def test_a_product_of_two_is_theirs_and_one_of_three_counts_in_full_by_removal_and_half_by_shapley() -> None:
    score = Score(Polynomial().eval(), 0)
    pair, triple = 2 * 1 * 2, 2 * 3 * 0.5
    for by, share in (("removal", 1.0), ("shapley", 0.5)):
        found = PairInteractions(by, Each(), ZERO, precision=DOUBLE)(score, X).values[0]  # type: ignore[arg-type]
        expected = torch.zeros(4, 4).double()
        expected[0, 1] = pair
        expected[1, 2] = expected[1, 3] = expected[2, 3] = share * triple
        torch.testing.assert_close(found.triu(1), expected)
        assert torch.equal(found, found.mT)
    shapley = Shapley(Each(), ZERO, precision=DOUBLE)(score, X).values[0]
    torch.testing.assert_close(found.diagonal(), shapley)  # of the latter
    fall = PairInteractions("removal", Each(), ZERO, precision=DOUBLE)(score, X).values[0].diagonal()
    torch.testing.assert_close(fall, torch.tensor([1 + pair, pair + triple, triple, triple]).double())


def test_where_contributions_add_up_no_pair_does_anything(generator: torch.Generator) -> None:
    found = PairInteractions(parts=Each(), hidden=Constant((0.3,)), precision=DOUBLE)(Score(Polynomial().eval(), 1), X)
    off = found.values[0] - found.values[0].diagonal().diag()
    assert float(off.abs().max()) < 1e-12


def test_the_index_is_the_mean_over_all_orders_in_which_a_pair_stands_side_by_side(generator: torch.Generator) -> None:
    net = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2)).double().eval()
    x = torch.randn(1, 5, generator=generator, dtype=torch.float64)

    def value(kept: set[int]) -> Tensor:
        with torch.no_grad():
            return net(x * torch.tensor([i in kept for i in range(5)]))[0, 1]

    gains = []
    for order in itertools.permutations(range(4)):  # the pair 1, 3 as one player, the others as themselves
        players = [{1, 3}, {0}, {2}, {4}]
        before = set().union(*(players[i] for i in order[: order.index(0)]), set())
        gains.append(value(before | {1, 3}) - value(before | {1}) - value(before | {3}) + value(before))
    found = PairInteractions("shapley", Each(), ZERO, precision=DOUBLE)(Score(net, 1), x)
    assert len(gains) == math.factorial(4)
    torch.testing.assert_close(found.values[0, 1, 3], torch.stack(gains).mean())
    assert found.n_forward == 2**5


def test_the_result_tells_the_strongest_pairs_and_can_be_saved(
    conv_net: nn.Module, image_batch: Tensor, tmp_path: Path
) -> None:
    found = PairInteractions(parts=Grid(2, 3))(Score(conv_net, 1), image_batch)
    assert found.n_forward == len(image_batch) * (1 + 6 + 15)
    assert len(found.to_pandas()) == len(image_batch) * 15
    first, second, most = found.strongest(1, 1)[0]
    off = found.values[1] - found.values[1].diagonal().diag()
    assert abs(most) == float(off.abs().max())
    assert float(found.values[1, first, second]) == most
    back = InteractionResult.load(found.save(tmp_path / "kept"))
    assert torch.equal(back.values, found.values)
    assert back.counts == (6,) * len(image_batch)
    assert len(found.plot().axes) == 2  # the matrix and its scale


def test_too_many_parts_for_all_coalitions_are_refused(conv_net: nn.Module, image_batch: Tensor) -> None:
    with pytest.raises(InputError, match=r"at most 12 parts, got 16.*Grid\(3, 4\)"):
        PairInteractions("shapley", Grid(4, 4))(Score(conv_net, 1), image_batch)
    with pytest.raises(InputError, match="one single part"):
        PairInteractions(parts=Grid(1, 1))(Score(conv_net, 1), image_batch)
