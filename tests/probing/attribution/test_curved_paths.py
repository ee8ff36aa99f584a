"""Guided and blur integrated gradients against closed forms, plain loops and the straight path."""

import math
from dataclasses import replace
from itertools import pairwise

import nets
import pytest
import torch
from attribution_nets import Formula, Smooth, TokenNet
from torch import Tensor, nn

from probing.attribution.baselines import Samples
from probing.attribution.curved_paths import BlurIG, GuidedIG
from probing.attribution.path import IntegratedGradients
from probing.core.inputs import InputError, Inputs
from probing.models.gradients import ZeroPathError
from probing.models.scores import Score

EITHER = pytest.mark.parametrize("kind", [GuidedIG, BlurIG])


def smooth() -> Smooth:
    return nets.seeded(Smooth()).double()  # type: ignore[return-value]


def batch(n: int = 3) -> Tensor:
    return nets.images(n).double()


def slope_of(net: nn.Module, point: Tensor, target: int) -> Tensor:
    at = point.detach().requires_grad_()
    return torch.autograd.grad(net(at[None])[0, target], at)[0]


def spread(size: int, sigma: float) -> Tensor:
    """Heat that spreads along a row of places, edges shut, for a time of half of sigma squared."""
    flow = torch.zeros(size, size, dtype=torch.float64)
    for i in range(size - 1):
        flow[i, i + 1] = flow[i + 1, i] = 1
    return torch.matrix_exp((flow - torch.diag(flow.sum(1))) * sigma**2 / 2)


def blurred(x: Tensor, sigma: float) -> Tensor:
    return spread(x.shape[-2], sigma) @ x @ spread(x.shape[-1], sigma)


# Guided


def led(net: nn.Module, x: Tensor, start: Tensor, target: int, method: GuidedIG) -> tuple[Tensor, list[Tensor]]:
    """The map and the points of the path, feature by feature; what is alike up to 1e-4 of the largest goes together."""
    way = (x - start).flatten().tolist()
    length = sum(abs(w) for w in way)
    moving = [f for f, w in enumerate(way) if w]
    at_a_time = math.floor(method.fraction * (len(moving) - 1)) + 1
    gone, points, slopes = [0.0] * len(way), [start], [slope_of(net, start, target)]
    for step in range(1, method.steps + 1):
        share = step / method.steps
        low, high = max(0.0, share - method.max_dist), min(1.0, share + method.max_dist)
        gone = [max(g, low) for g in gone]
        steep = slopes[-1].flatten().abs().tolist()
        left = sorted((f for f in moving if gone[f] < high), key=steep.__getitem__)
        while left:
            limit = steep[left[:at_a_time][-1]] + 1e-4 * max(steep[f] for f in moving)
            some, left = ([f for f in left if (steep[f] <= limit) is goes] for goes in (True, False))
            wanted = share * length - sum(abs(way[f]) * gone[f] for f in moving)
            room = sum(abs(way[f]) * (high - gone[f]) for f in some)
            for f in some:
                gone[f] += min(1.0, max(0.0, wanted / room)) * (high - gone[f])
        points.append(start + torch.tensor(gone, dtype=torch.float64).reshape(x.shape) * (x - start))
        slopes.append(slope_of(net, points[-1], target))
    total = torch.zeros_like(x)
    for k, (a, b) in enumerate(pairwise(points)):
        one, two = slopes[k], slopes[k + 1]
        total += (b - a) * {"left": one, "right": two, "trapezoid": (one + two) / 2}[method.rule]
    return total, points


@pytest.mark.parametrize(
    "method",
    [
        GuidedIG(0.3, steps=7),
        GuidedIG(0.3, steps=11, fraction=0.1, max_dist=1.0),
        GuidedIG(0.3, steps=5, fraction=0.6, max_dist=0.3, rule="left"),
        GuidedIG(0.3, steps=4, fraction=0.001, max_dist=0.5, rule="right"),
    ],
)
def test_guided_ig_is_a_plain_loop_over_features(method: GuidedIG) -> None:
    net, x = smooth(), batch()
    x[:, :, 2, 3] = 0.3  # what equals the baseline
    start, targets = torch.full_like(x, 0.3), [0, 1, 2]
    for size in ("auto", 1, 2):
        found = replace(method, batch_size=size)(Score(net, torch.tensor(targets)), x)  # type: ignore[arg-type]
        for row, target in enumerate(targets):
            expected, _ = led(net, x[row], start[row], target, method)
            torch.testing.assert_close(found.values[row], expected)
        torch.testing.assert_close(found.diagnostics["unmoved"], torch.full((3,), 1 / 36, dtype=torch.float64))
        assert (found.n_forward, found.n_backward) == (3 * (method.steps + 1),) * 2


def test_no_feature_moves_away_from_the_input_or_strays_further_than_it_may() -> None:
    net, x = smooth(), batch(1)
    seen: list[Tensor] = []
    GuidedIG(steps=20, max_dist=0.1)(Score(Watching(net, seen), 1), x)
    gone = torch.cat(seen) / x
    assert bool((gone.diff(dim=0) > -1e-12).all())
    share = torch.arange(21, dtype=torch.float64).view(-1, 1, 1, 1) / 20
    assert float((gone - share).abs().max()) < 0.1 + 1e-12
    assert float((gone - share).abs().max()) > 0.09  # and it does stray
    length = (gone * x.abs()).flatten(1).sum(1) / x.abs().sum()
    torch.testing.assert_close(length, share.flatten())


class Watching(nn.Module):
    """A network that keeps where its gradient is asked for."""

    def __init__(self, net: nn.Module, seen: list[Tensor]) -> None:
        super().__init__()
        self.net = net
        self.keep = seen.append
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.keep(x.detach().clone())
        return self.net(x)


def linear() -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 2)).double()
    return nets.seeded(net)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_linear_score_is_shared_out_exactly(steps: int) -> None:
    net, x = linear(), batch()
    weights = net[1].weight[1].detach().view(1, 6, 6)  # type: ignore[index, union-attr, operator]
    found = GuidedIG(0.5, steps=steps)(Score(net, 1), x)
    torch.testing.assert_close(found.values, weights * (x - 0.5))
    assert float(found.diagnostics["relative_gap"].max()) < 1e-12
    found = BlurIG(3.0, steps=steps)(Score(net, 1), x)
    torch.testing.assert_close(found.values, weights * (x - blurred(x, 3.0)))
    assert float(found.diagnostics["relative_gap"].max()) < 1e-12


@pytest.mark.parametrize("settings", [{"fraction": 1.0, "max_dist": 1.0}, {"max_dist": 0.0}])
@pytest.mark.parametrize("rule", ["left", "right"])
def test_without_a_choice_the_path_is_straight(settings: dict[str, float], rule: str) -> None:
    score, x = Score(smooth(), 1), batch()
    found = GuidedIG(steps=9, rule=rule, **settings)(score, x)  # type: ignore[arg-type]
    expected = IntegratedGradients(steps=9, rule=rule)(score, x)  # type: ignore[arg-type]
    torch.testing.assert_close(found.values, expected.values)
    torch.testing.assert_close(found.diagnostics["completeness_gap"], expected.diagnostics["completeness_gap"])
    led_on = GuidedIG(steps=9, rule=rule)(score, x)  # type: ignore[arg-type]
    assert float((led_on.values - expected.values).abs().max()) > 1e-4  # with one it is not


def test_the_flat_way_is_gone_first() -> None:
    """s = a b with b flat at the start: along b nothing is gathered, and a gets all; the straight path halves it."""
    net = Formula(lambda x: x[:, 0] * (x[:, 1] + 1))
    x = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    found = GuidedIG(steps=10, fraction=0.1, max_dist=1.0)(Score(net, 0), x)
    torch.testing.assert_close(found.values, torch.tensor([[2.0, 0.0]], dtype=torch.float64))
    straight = IntegratedGradients()(Score(net, 0), x)
    torch.testing.assert_close(straight.values, torch.tensor([[1.5, 0.5]], dtype=torch.float64))


def test_what_is_equally_steep_moves_together() -> None:
    """Two features that the score can't tell apart get the same, though only one may be the least steep."""
    net = Formula(lambda x: (x[:, 0] + x[:, 1]).square() + 3 * x[:, 2] * x[:, 0] + 3 * x[:, 2] * x[:, 1])
    x = torch.tensor([[1.0, 1.0, 2.0]], dtype=torch.float64)
    for fraction in (0.1, 0.5):
        found = GuidedIG(steps=8, fraction=fraction, max_dist=1.0)(Score(net, 0), x)
        torch.testing.assert_close(found.values[0, 0], found.values[0, 1])


def test_the_gap_of_a_smooth_score_closes_with_steps() -> None:
    score, x = Score(smooth(), 1), batch()
    for method in (GuidedIG(), GuidedIG(max_dist=1.0), BlurIG(4.0)):
        gaps = [float(replace(method, steps=s)(score, x).diagnostics["relative_gap"].max()) for s in (10, 100, 1000)]
        assert gaps[0] > 10 * gaps[1]
        assert gaps[1] > 10 * gaps[2]  # by a hundred in the limit: the mean of both ends is exact to second order


def test_of_several_baselines_the_mean_is_taken_and_the_spread_told() -> None:
    score, x, pool = Score(smooth(), 1), batch(), Samples.of(nets.images(2, seed=5).double())
    found = GuidedIG(pool, steps=6)(score, x)
    parts = [GuidedIG(b[None].expand_as(x), steps=6)(score, x) for b in pool.tensor]
    values = torch.stack([p.values for p in parts])
    torch.testing.assert_close(found.values, values.mean(0))
    torch.testing.assert_close(found.diagnostics["baseline_spread"], values.std(0))
    total = found.values.flatten(1).sum(1) - found.diagnostics["completeness_gap"]
    torch.testing.assert_close(total, found.score - found.baseline_score)


def test_an_input_that_is_its_baseline_gets_nothing_and_says_so() -> None:
    flat = torch.full((2, 1, 6, 6), 0.7, dtype=torch.float64)
    for method in (GuidedIG(0.7, steps=3), BlurIG(steps=3)):
        found = method(Score(smooth(), 1), flat)
        assert not found.values.any()
        assert found.checks() == ("empty: the input is its own baseline",) * 2
        assert bool(found.diagnostics["relative_gap"].isnan().all())


# Blur


@pytest.mark.parametrize("rule", ["trapezoid", "left", "right"])
def test_blur_ig_is_a_plain_loop_over_widths(rule: str) -> None:
    net, x = smooth(), batch()
    points = [blurred(x, 2.5 * (1 - k / 6)) for k in range(7)]
    slopes = [torch.stack([slope_of(net, one, 1) for one in at]) for at in points]
    expected = torch.zeros_like(x)
    for k in range(6):
        mean = {"left": slopes[k], "right": slopes[k + 1], "trapezoid": (slopes[k] + slopes[k + 1]) / 2}[rule]
        expected += mean * (points[k + 1] - points[k])
    for size in ("auto", 1, 4, 5):
        found = BlurIG(2.5, steps=6, rule=rule, batch_size=size)(Score(net, 1), x)  # type: ignore[arg-type]
        torch.testing.assert_close(found.values, expected)
        assert found.baseline_score is not None
        torch.testing.assert_close(found.baseline_score, net(points[0])[:, 1].detach())
        assert (found.n_forward, found.n_backward) == (21, 21)


@pytest.mark.parametrize("places", [(16,), (9, 16), (4, 5, 16)])
def test_the_blur_keeps_means_and_has_its_width_along_every_axis(places: tuple[int, ...]) -> None:
    """A point in the middle spreads to a variance of sigma squared; what is far wider than the input leaves its mean."""
    x = torch.zeros(1, 2, *places, dtype=torch.float64)
    x[(0, 0, *[size // 2 for size in places])] = 1.0
    seen: list[Tensor] = []
    score = Score(Watching(Formula(lambda v: v.flatten(1).square().sum(1)), seen), 0)
    BlurIG(1.0, steps=1)(score, x)
    narrow = seen[0][0, 0]
    line = narrow.reshape(-1, 16).sum(0)
    at = torch.arange(16, dtype=torch.float64)
    assert float(line.sum()) == pytest.approx(1, abs=1e-12)
    assert float((line * (at - 8) ** 2).sum()) == pytest.approx(1, abs=1e-4)  # but for what edges turn back
    seen.clear()
    BlurIG(300.0, steps=1)(score, x)
    wide = seen[0]
    torch.testing.assert_close(wide[0, 0], torch.full_like(wide[0, 0], 1 / math.prod(places)))
    assert not wide[0, 1].any()


# Refused


def test_what_makes_no_path_is_refused() -> None:
    for wrong in ({"steps": 0}, {"fraction": 0.0}, {"fraction": 1.1}, {"max_dist": -0.1}, {"max_dist": 1.1}):
        with pytest.raises(InputError, match="GuidedIG needs at least one step, a fraction above 0"):
            GuidedIG(**wrong)  # type: ignore[arg-type]
    for wrong in ({"steps": 0}, {"max_sigma": 0.0}, {"max_sigma": math.inf}):
        with pytest.raises(InputError, match="BlurIG needs at least one step and a max_sigma above 0"):
            BlurIG(**wrong)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="they must be the same"):
        GuidedIG(torch.zeros(3, 1, 5, 5, dtype=torch.float64))(Score(smooth(), 1), batch())


def test_a_blur_needs_places() -> None:
    net = nn.Linear(4, 2).double().eval()
    with pytest.raises(InputError, match=r"BlurIG needs images .* got shape \(2, 4\)"):
        BlurIG()(Score(net, 0), torch.zeros(2, 4, dtype=torch.float64))

    class Both(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return torch.stack([a.sum((1, 2, 3)), b.sum((1, 2, 3))], 1)

    two = Inputs({"a": batch(), "b": batch()}, ("a", "b"))
    with pytest.raises(InputError, match=r"BlurIG (needs images|blurs one image)"):
        BlurIG()(Score(Both().eval(), 0), two)


@EITHER
def test_a_score_that_no_path_leads_to_is_refused(kind: type[GuidedIG] | type[BlurIG]) -> None:
    class Idle(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.zeros(len(x), 2, dtype=x.dtype)

    with pytest.raises(ZeroPathError):
        kind(steps=2)(Score(Idle().eval(), 0), batch())


def test_tokens_of_a_vision_transformer_are_pixels_here() -> None:
    net = nets.seeded(TokenNet()).double()
    for method in (GuidedIG(steps=400), BlurIG(3.0, steps=400)):
        found = method(Score(net, 1), batch())
        assert float(found.diagnostics["relative_gap"].max()) < 1e-2
