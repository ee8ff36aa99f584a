"""Owen values against their definition, the laws that single them out, and the error that they state."""

import itertools

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution.baselines import Constant
from probing.attribution.perturbation.owen import Owen, OwenSampling
from probing.attribution.perturbation.shapley import Shapley
from probing.attribution.perturbation.superpixels import Each, Given, Grid
from probing.attribution.perturbation.surrogate import ExactShapley
from probing.core.inputs import InputError
from probing.models.precision import Precision
from probing.models.scores import Score

DOUBLE, ZERO = Precision("float64"), Constant()


def cubic(masks: Tensor) -> Tensor:
    """Six parts, of which three act together, in two ways; others alone or in pairs."""
    z = masks.double()
    together = 3 * z[:, 0] * z[:, 1] * z[:, 2] - 2 * z[:, 2] * z[:, 3] * z[:, 4]
    return 1 + together + z[:, 4] * z[:, 5] + z @ torch.tensor([0.5, -1, 0, 2, 0.3, 0]).double()


def together(order: tuple[int, ...], level: Tensor) -> bool:
    """Whether no part stands between two of another group."""
    met = [int(group) for group, _ in itertools.groupby(int(level[part]) for part in order)]
    return len(met) == len(set(met))


def by_all_orders(groups: Tensor) -> Tensor:
    """The mean gain of each part of `cubic` over all orders that keep each group together."""
    gains = []
    for order in itertools.permutations(range(6)):
        if all(together(order, level) for level in groups):
            kept = torch.zeros(7, 6, dtype=torch.bool)
            for i, part in enumerate(order):
                kept[i + 1 :, part] = True
            gain = torch.zeros(6, dtype=torch.float64)
            gain[list(order)] = cubic(kept).diff()
            gains.append(gain)
    return torch.stack(gains).mean(0)


TREES = {
    "two levels": torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 1, 2, 2, 3]]),
    "one level": torch.tensor([[0, 1, 0, 1, 2, 1]]),
    "one group": torch.zeros(1, 6, dtype=torch.long),
    "each its own": torch.arange(6)[None],
}


@pytest.mark.parametrize("tree", TREES)
def test_owen_values_are_the_mean_gain_over_all_orders_that_keep_groups_together(tree: str) -> None:
    groups = TREES[tree]
    found = OwenSampling()(cubic, groups)
    torch.testing.assert_close(found.coefficients, by_all_orders(groups), rtol=1e-9, atol=1e-12)
    assert not found.standard_error.any()
    assert found.score - found.intercept == pytest.approx(float(found.coefficients.sum()))
    shapley = ExactShapley()(cubic, 6).coefficients
    same = torch.allclose(found.coefficients, shapley)
    assert same == (tree in {"one group", "each its own"})  # then no order is left out


def test_a_group_gets_what_it_gets_as_a_single_player() -> None:
    groups = torch.tensor([0, 1, 0, 1, 2, 1])
    values = OwenSampling()(cubic, groups[None]).coefficients
    alone = ExactShapley()(lambda kept: cubic(kept[:, groups]), 3).coefficients
    torch.testing.assert_close(torch.zeros(3).double().index_add(0, groups, values), alone)
    assert not torch.allclose(torch.zeros(3).double().index_add(0, groups, ExactShapley()(cubic, 6).coefficients), alone)


def test_drawn_orders_keep_groups_together_and_intervals_hold_the_truth_as_often_as_they_say() -> None:
    groups, pairs = TREES["two levels"], 30
    asked: list[Tensor] = []

    def game(masks: Tensor) -> Tensor:
        asked.append(masks)
        return cubic(masks)

    runs = [OwenSampling(2 * pairs, exact=False, seed=seed)(game, groups) for seed in range(400)]
    values, errors = (torch.stack(each) for each in ([r.coefficients for r in runs], [r.standard_error for r in runs]))
    truth = by_all_orders(groups)
    drawn = errors.mean(0) > 1e-9  # what an order and its reverse even out is exact
    t = 2.045  # the 97.5 % quantile of Student's t with 29 degrees of freedom
    held = ((values - truth).abs() <= t * errors + 1e-12)[:, drawn].double()
    assert int(drawn.sum()) >= 2
    assert 0.93 <= float(held.mean()) <= 0.97
    torch.testing.assert_close(values[:, ~drawn], truth[~drawn].expand(400, -1))
    torch.testing.assert_close(values.sum(1), truth.sum().expand(400))
    for level in groups:  # a coalition holds at most one group of a level in part: of those within one of the level before
        sizes = torch.stack([(level == g).sum() for g in level.unique()])
        kept = torch.cat(asked).double() @ (level[:, None] == level.unique()).double()
        assert int(((kept > 0) & (kept < sizes)).sum(1).max()) == 1


def test_a_linear_net_gives_weight_times_way(generator: torch.Generator) -> None:
    net, x = nn.Linear(20, 3).double().eval(), torch.randn(2, 20, generator=generator, dtype=torch.float64)
    groups = (Given.of((torch.arange(20) // 10)[None]), Given.of((torch.arange(20) // 4)[None]))
    found = Owen(Each(), groups, Constant((0.5,)), precision=DOUBLE)(Score(net, 1), x)
    torch.testing.assert_close(found.values, net.weight[1].detach() * (x - 0.5), rtol=1e-9, atol=1e-12)
    assert found.diagnostics["standard_error"].max() < 1e-12


def test_of_images_groups_are_those_that_hold_most_of_a_part(conv_net: nn.Module, image_batch: Tensor) -> None:
    score = Score(conv_net, 1)
    found = Owen(Grid(4, 4), (Grid(2, 2),), ZERO, precision=DOUBLE)(score, image_batch.double())
    coarse = Shapley(Grid(2, 2), ZERO, precision=DOUBLE)(score, image_batch.double())
    parts, groups = found.diagnostics["parts"][:, 0], found.diagnostics["groups"][:, 0]
    assert torch.equal(groups, coarse.diagnostics["parts"][:, 0])
    for row in range(len(image_batch)):
        firsts = [int((parts[row].flatten() == part).nonzero()[0]) for part in range(16)]
        value, group = (t.flatten()[firsts] for t in (found.values[row, 0], groups[row]))
        whole = torch.zeros(4).double().index_add(0, group, value.double())
        firsts = [int((groups[row].flatten() == g).nonzero()[0]) for g in range(4)]
        torch.testing.assert_close(whole, coarse.values[row, 0].flatten()[firsts].double())
    assert found.n_forward <= len(image_batch) * 16 * 2 * 2**6
    default = Owen()(score, image_batch)  # eight superpixels hold the others
    assert int(default.diagnostics["groups"].max()) < int(default.diagnostics["parts"].max())


def test_what_has_no_groups_is_told_to_say_which() -> None:
    with pytest.raises(InputError, match="have no usual groups") as caught:
        Owen()(Score(nets.seeded(nn.Linear(4, 2)).eval(), 0), torch.ones(1, 4))
    assert "groups=" in str(caught.value)
    with pytest.raises(InputError, match="an even number of permutations from 4, got 5"):
        OwenSampling(5)(cubic, TREES["one level"])
    with pytest.raises(InputError, match="groups of level 1 lie in several groups of level 0: nest them"):
        OwenSampling()(cubic, torch.tensor([[0, 0, 0, 1, 1, 1], [0, 1, 1, 1, 2, 2]]))
