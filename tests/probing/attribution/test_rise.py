"""RISE against its definition, the closed form of linear scores, and its own promises."""

import nets
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution.baselines import Constant
from probing.attribution.perturbation.rise import RISE, Masks
from probing.core.inputs import InputError, Inputs
from probing.models.precision import Precision
from probing.models.scores import Score

DOUBLE = Precision("float64")
CPU = torch.device("cpu")


@pytest.mark.parametrize(("size", "cells"), [((12,), 3), ((10, 7), 3), ((6, 6), 7), ((4, 5, 6), 2)])
def test_masks_are_grids_made_larger_and_cut_out_at_their_shifts(size: tuple[int, ...], cells: int) -> None:
    drawn = Masks.drawn(20, size, cells, 0.4, seed=1)
    sides = [-(-length // cells) for length in size]
    for i, mask in enumerate(drawn.at(slice(None), CPU)):
        grid = drawn.grids[i].double()[None, None]
        large = functional.interpolate(
            grid,
            [side * (cells + 1) for side in sides],
            mode={1: "linear", 2: "bilinear", 3: "trilinear"}[len(size)],
            align_corners=False,
        )[0, 0]
        shift = drawn.shifts[i].tolist()
        assert all(0 <= s < side for s, side in zip(shift, sides, strict=True))
        cut = large[tuple(slice(s, s + length) for s, length in zip(shift, size, strict=True))]
        torch.testing.assert_close(mask, cut, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 9, "auto"])
def test_rise_is_the_mean_of_scores_times_masks(batch_size: int | str, generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 6, 8, generator=generator, dtype=torch.float64)
    net = nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(144, 6), nn.Tanh(), nn.Linear(6, 2))).double().eval()
    method = RISE(30, 3, 0.3, Constant((0.5,)), 4, batch_size, DOUBLE)  # type: ignore[arg-type]
    found = method(Score(net, 1), x)
    for i, one in enumerate(x):
        terms = []
        for mask in Masks.drawn(30, (6, 8), 3, 0.3, seed=4).at(slice(None), CPU):
            seen = mask * one + (1 - mask) * 0.5
            terms.append(net(seen[None])[0, 1].detach() * mask / 0.3)
        expected = torch.stack(terms)
        torch.testing.assert_close(found.values[i], expected.mean(0).expand(3, 6, 8), rtol=1e-9, atol=1e-12)
        error = (expected.std(0) / 30**0.5).expand(3, 6, 8)
        torch.testing.assert_close(found.diagnostics["standard_error"][i], error, rtol=1e-9, atol=1e-12)
    assert found.n_forward == 2 * (1 + 30)
    assert found.signed is False


def in_closed_form(weights: Tensor, way: Tensor, empty: float, cells: int, shown: float) -> Tensor:
    """The mean over all masks, for a linear score of one channel: see `RISE`; the kernel by looking at each cell alone."""
    size = tuple(way.shape)
    kernels = []
    for length in size:
        side = -(-length // cells)
        kernel = torch.zeros(length, length, dtype=torch.float64)
        for shift in range(side):
            for cell in torch.eye(cells + 1, dtype=torch.float64):
                bump = functional.interpolate(cell[None, None], side * (cells + 1), mode="linear")[
                    0, 0, shift : shift + length
                ]
                kernel += bump[:, None] * bump / side
        kernels.append(kernel)
    both = torch.einsum("uv,xy->uxvy", *kernels)
    joint = shown**2 + shown * (1 - shown) * both
    return empty + torch.einsum("ux,uxvy->vy", weights * way, joint) / shown


def test_of_a_linear_score_rise_estimates_its_closed_form_as_closely_as_it_says(generator: torch.Generator) -> None:
    x = torch.randn(1, 1, 6, 9, generator=generator, dtype=torch.float64)
    net = nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(54, 1))).double().eval()
    weights, bias = net[1].weight.detach().view(6, 9), float(net[1].bias.detach())
    truth = in_closed_form(weights, x[0, 0] - 0.2, bias + float(weights.sum()) * 0.2, 3, 0.4)
    runs = [RISE(400, 3, 0.4, Constant((0.2,)), seed, precision=DOUBLE)(Score(net, 0), x) for seed in range(60)]
    means = torch.stack([run.values[0, 0] for run in runs])
    errors = torch.stack([run.diagnostics["standard_error"][0, 0] for run in runs])
    z = (means.mean(0) - truth) / (means.std(0) / 60**0.5)
    assert z.abs().max() < 4.5  # one of 54 places is beyond with a chance of 4e-4
    # Errors are the spread over draws: of 60 runs it is known to 9 %, and 54 places are several independent ones.
    ratio = float((errors.square().mean() / means.var(0).mean()).sqrt())
    assert 0.8 < ratio < 1.25
    wrong = in_closed_form(weights, x[0, 0] - 0.2, bias, 3, 0.4)  # the control: without what the hidden input scores
    assert ((means.mean(0) - wrong) / (means.std(0) / 60**0.5)).abs().max() > 10


class Reads(nn.Module):
    """The mean over the upper left quarter, or for a control of all but that."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        quarter = torch.zeros(x.shape[-2:], dtype=torch.bool)
        quarter[:4, :4] = True
        return x[:, :, quarter if self.inside else ~quarter].mean((1, 2))[:, None]


def test_what_is_read_stands_out_and_what_is_not_gets_the_mean_score() -> None:
    x = torch.ones(1, 1, 16, 16)
    found = RISE(2000, 4)(Score(Reads(True).eval(), 0), x)
    values, errors = found.values[0, 0], found.diagnostics["standard_error"][0, 0]
    assert values[:4, :4].min() > 0.6
    far = (values[10:, 10:] - 0.5) / errors[10:, 10:]
    assert far.abs().max() < 4.5
    other = RISE(2000, 4)(Score(Reads(False).eval(), 0), x).values[0, 0]
    assert other[:3, :3].max() < other[10:, 10:].min()


@pytest.mark.parametrize(
    ("method", "x", "message"),
    [
        (RISE(1), torch.ones(1, 1, 6, 6), "two masks or more"),
        (RISE(10, 0), torch.ones(1, 1, 6, 6), "a cell or more"),
        (RISE(10, shown=1.0), torch.ones(1, 1, 6, 6), "a probability between 0 and 1, got 10, 7 and 1.0"),
        (RISE(10), torch.ones(2, 36), r"RISE needs images \[n, c, h, w\].*got shape \(2, 36\)"),
    ],
)
def test_what_it_cannot_mask_is_refused(method: RISE, x: Tensor, message: str) -> None:
    net = nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(36, 2))).eval()
    with pytest.raises(InputError, match=message):
        method(Score(net, 0), x)


class Looks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Embedding(10, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.look(ids).sum(1)


def test_tokens_are_no_series() -> None:
    with pytest.raises(InputError, match=r"RISE masks the places of one image.*FeatureAblation\(\) for tokens"):
        RISE(10)(Score(nets.seeded(Looks()).eval(), 0), Inputs({"ids": torch.tensor([[1, 2, 3]])}))
