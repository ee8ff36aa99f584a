"""XRAI against a plain search over sets of places, a network that looks at one square, and its law of summation."""

import nets
import pytest
import torch
from attribution_nets import Smooth
from torch import Tensor, nn

from probing.attribution.baselines import Constant, Extremes
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.superpixels import Blocks, Each, Given, Grid
from probing.attribution.xrai import XRAI
from probing.core.inputs import InputError
from probing.models.scores import Score

SIDE = 12


def smooth() -> Smooth:
    return nets.seeded(Smooth()).double()  # type: ignore[return-value]


def searched(gains: Tensor, cuts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The mean of the piece that each place is taken with, and which piece that is, by trying every region each time."""
    regions = [{tuple(p) for p in (labels == one).nonzero().tolist()} for labels in cuts for one in labels.unique()]
    left = {tuple(p) for p in torch.ones_like(gains).nonzero().tolist()}
    means, ranks, rank = torch.zeros_like(gains), torch.zeros_like(gains), 0
    while left:
        pieces = [region & left for region in regions if region & left]
        density = [sum(float(gains[p]) for p in piece) / len(piece) for piece in pieces]
        best = max(range(len(pieces)), key=density.__getitem__)
        for place in pieces[best]:
            means[place], ranks[place] = density[best], rank
        left -= pieces[best]
        rank += 1
    return means, ranks


def test_xrai_is_a_plain_search() -> None:
    net, x = smooth(), nets.images(3).double()
    cuts = (Grid(2, 2), Grid(3, 2), Given.of(torch.arange(36).reshape(1, 6, 6) % 5))
    path = IntegratedGradients(Extremes(), steps=6)
    found, own = XRAI(path, cuts)(Score(net, 1), x), path(Score(net, 1), x)
    for row in range(3):
        means, ranks = searched(own.values[row, 0], [cut(x)[row, 0] for cut in cuts])
        torch.testing.assert_close(found.values[row, 0], means)
        torch.testing.assert_close(found.diagnostics["rank"][row, 0], ranks)
    assert torch.equal(found.diagnostics["ig"], own.values)
    assert found.n_backward == own.n_backward


def test_the_map_adds_up_to_what_integrated_gradients_add_up_to() -> None:
    """Whatever the regions; a piece's mean times its places is the sum over it."""
    net = nets.seeded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 100, 2))).double()
    x = nets.images(2, 3, SIDE).double()
    found = XRAI(IntegratedGradients(Extremes(), steps=300))(Score(net, 1), x)
    torch.testing.assert_close(found.values.sum((1, 2, 3)), found.diagnostics["ig"].sum((1, 2, 3)))
    assert found.baseline_score is not None
    torch.testing.assert_close(found.values.sum((1, 2, 3)), found.score - found.baseline_score, rtol=1e-3, atol=1e-3)
    assert torch.equal(found.values[:, :1].expand_as(x), found.values)


class Square(nn.Module):
    """The mean of a square of the image, and of the one across."""

    def forward(self, x: Tensor) -> Tensor:
        here, there = x[:, :, 2:6, 2:6], x[:, :, 6:10, 6:10]
        return torch.stack([here.mean((1, 2, 3)), there.mean((1, 2, 3))], 1)


def squares() -> Tensor:
    """Two bright squares on a dark ground, with a little noise."""
    x = 0.05 * nets.images(2, 3, SIDE).double()
    for where in (slice(2, 6), slice(6, 10)):
        x[:, :, where, where] += 1.0
    return x


def test_the_first_region_covers_what_the_score_looks_at_and_follows_it_to_another_place() -> None:
    """Planted: class 0 reads one square, class 1 the other one, which is as bright; regions are the same for both."""
    x, cuts = squares(), (Grid(6, 6), Grid(3, 3), Grid(2, 2))
    for target, where in ((0, slice(2, 6)), (1, slice(6, 10))):
        found = XRAI(IntegratedGradients(Constant((0.0,)), steps=1), cuts)(Score(Square().eval(), target), x)
        mask = torch.zeros(SIDE, SIDE, dtype=torch.bool)
        mask[where, where] = True
        for ranks, values in zip(found.diagnostics["rank"][:, 0], found.values.sum(1), strict=True):
            assert bool(mask[ranks == 0].all())
            assert not values[~mask].any() or float(values[~mask].max()) < float(values[mask].min())
            assert float(values[mask].sum()) == pytest.approx(float(values.sum()))


def test_extremes_are_the_darkest_and_the_brightest_of_each_channel() -> None:
    x = nets.images(2, 3).double()
    low, high = Extremes()(x)
    torch.testing.assert_close(low, x.amin((2, 3), keepdim=True).expand_as(x))
    torch.testing.assert_close(high, x.amax((2, 3), keepdim=True).expand_as(x))
    torch.testing.assert_close(Extremes()(x[:1])[0], low[:1])  # of an input by itself
    with pytest.raises(InputError, match=r"have no darkest or brightest place, got shape \(3, 4\)"):
        Extremes()(torch.zeros(3, 4))


def test_series_and_volumes_take_blocks() -> None:
    for shape in ((2, 2, 12), (2, 1, 4, 4, 6)):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        net = nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2))).double()
        found = XRAI(cuts=(Blocks(3), Blocks(8)))(Score(net, 1), x)
        torch.testing.assert_close(found.values.flatten(1).sum(1), found.score - found.baseline_score)


def test_what_can_t_be_cut_is_refused() -> None:
    with pytest.raises(InputError, match="at least one way to cut"):
        XRAI(cuts=())
    net = nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(72, 2))).double()
    with pytest.raises(InputError, match=r"with all channels of a place together, .* labels of shape"):
        XRAI(cuts=(Each(),))(Score(net, 1), nets.images(2, 2).double())
    with pytest.raises(InputError, match="Slic"):
        XRAI()(Score(nn.Linear(4, 2).double().eval(), 0), torch.zeros(2, 4, dtype=torch.float64))
