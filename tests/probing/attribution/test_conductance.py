"""Conductance of a layer and internal influence against closed forms, dense integrals and captum."""

import nets
import pytest
import torch
from attribution_nets import Smooth
from torch import Tensor, nn

from probing.attribution.base import Attribution
from probing.attribution.baselines import Samples
from probing.attribution.conductance import InternalInfluence, LayerConductance
from probing.core.inputs import InputError
from probing.models.gradients import ZeroPathError
from probing.models.hooks import LayerCallError
from probing.models.layers import LayerNotFoundError
from probing.models.scores import Score


def smooth() -> Smooth:
    return nets.seeded(Smooth()).double()  # type: ignore[return-value]


def batch() -> Tensor:
    return nets.images(3).double()


def along(net: Smooth, x: Tensor, start: Tensor, target: int, points: Tensor) -> Tensor:
    """The gradient of the score at the first Softplus, and its derivative along the path, at each point: `[2, k, *map]`."""
    first, rest = net.body[:2], net.body[2:]
    found = []
    for a in points:
        y, moved = torch.autograd.functional.jvp(lambda b: first((start + b * (x - start))[None]), a, torch.ones_like(a))
        at = y.detach().requires_grad_()
        (slope,) = torch.autograd.grad(net.head(rest(at).flatten(1))[0, target], at)
        found.append(torch.stack([slope[0], moved[0].detach()]))
    return torch.stack(found, 1)


def gauss(k: int) -> tuple[Tensor, Tensor]:
    import numpy as np

    at, weights = np.polynomial.legendre.leggauss(k)
    return torch.from_numpy((at + 1) / 2), torch.from_numpy(weights / 2)


def test_conductance_is_the_integral_of_the_gradient_over_the_change_of_each_unit() -> None:
    """Dhamdhere et al. 2019, by forward-mode derivatives of the units at 60 Gauss points."""
    net, x = smooth(), batch()
    start, (points, weights) = torch.full_like(x[0], 0.3), gauss(60)
    expected = []
    for one in x:
        slopes, moved = along(net, one, start, 1, points)
        expected.append(torch.einsum("k,k...->...", weights, slopes * moved))
    found = LayerConductance("body.1", baseline=0.3, steps=1000)(Score(net, 1), x)
    torch.testing.assert_close(found.values, torch.stack(expected), rtol=1e-5, atol=1e-7)


def test_conductance_s_error_falls_with_the_square_of_the_steps() -> None:
    net, x = smooth(), batch()
    gaps = [
        float(LayerConductance("body.1", steps=s)(Score(net, 1), x).diagnostics["completeness_gap"].abs().sum())
        for s in (20, 40)
    ]
    assert 3.5 < gaps[0] / gaps[1] < 4.5


def test_conductance_of_a_linear_tail_is_weights_times_change() -> None:
    """Whatever stands before the layer and however few steps, and in any chunks."""
    net, x = nets.seeded(nets.ConvNet()).double(), nets.images().double()
    with torch.no_grad():
        change = net.features(x) - net.features(torch.zeros_like(x))  # type: ignore[operator]
    expected = change * net.head.weight.detach()[2][:, None, None] / 36  # type: ignore[union-attr, index, operator]
    for size in ("auto", 1, 4, 5):
        found = LayerConductance("features", steps=3, batch_size=size)(Score(net, 2), x)  # type: ignore[arg-type]
        torch.testing.assert_close(found.values, expected)
        torch.testing.assert_close(found.values.sum((1, 2, 3)), found.score - found.baseline_score)
        assert (found.n_forward, found.n_backward) == (16, 16)  # one pass for each of four points


def test_layers_that_nothing_passes_by_all_conduct_the_whole_change() -> None:
    net, x = smooth(), batch()
    for layer in ("body.0", "body.1", "body.2", "body"):
        found = LayerConductance(layer, steps=400)(Score(net, 1), x)
        assert float(found.diagnostics["relative_gap"].max()) < 1e-4
        torch.testing.assert_close(found.values.flatten(1).sum(1), found.score - found.baseline_score, rtol=1e-3, atol=1e-4)


class Bypassed(nn.Module):
    """s = Σ 2x + Σ x: a residual connection passes by the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False).double()
        with torch.no_grad():
            self.layer.weight.copy_(2 * torch.eye(3))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return (self.layer(x) + x).sum(1, keepdim=True)


def test_what_passes_by_the_layer_is_the_gap() -> None:
    x = torch.tensor([[1.0, -2.0, 4.0]], dtype=torch.float64)
    found = LayerConductance("layer", steps=5)(Score(Bypassed(), 0), x)
    torch.testing.assert_close(found.values, 2 * x)
    torch.testing.assert_close(found.diagnostics["completeness_gap"], -x.sum(1))


def test_of_several_baselines_the_mean_is_taken_and_the_spread_told() -> None:
    net, x, pool = smooth(), batch(), Samples.of(nets.images(2, seed=5).double())
    score = Score(net, 1)
    for kind in (LayerConductance, InternalInfluence):
        found = kind("body", baseline=pool, steps=6)(score, x)
        parts = torch.stack([kind("body", baseline=b[None].expand_as(x), steps=6)(score, x).values for b in pool.tensor])
        torch.testing.assert_close(found.values, parts.mean(0))
        torch.testing.assert_close(found.diagnostics["baseline_spread"], parts.std(0))


def test_internal_influence_is_the_mean_gradient_on_the_path() -> None:
    net, x = smooth(), batch()
    points = (torch.arange(7, dtype=torch.float64) + 0.5) / 7
    expected = torch.stack([along(net, one, torch.zeros_like(one), 1, points)[0].mean(0) for one in x])
    found = InternalInfluence("body.1", steps=7)(Score(net, 1), x)
    torch.testing.assert_close(found.values, expected)
    assert found.n_backward == 21
    assert found.n_forward == 24  # and the score


def theirs(name: str, net: Smooth, x: Tensor, **settings: object) -> Tensor:
    attr = pytest.importorskip("captum.attr")
    return getattr(attr, name)(net, net.body[1]).attribute(x, target=1, **settings).detach()  # type: ignore[no-any-return]


def test_captum_gives_the_same() -> None:
    net, x = smooth(), batch()

    def ours(method: LayerConductance | InternalInfluence) -> Attribution:
        return method(Score(net, 1), x)

    left = theirs("LayerConductance", net, x, n_steps=9, method="riemann_trapezoid")
    torch.testing.assert_close(ours(LayerConductance("body.1", steps=9, rule="left")).values, left)
    middle = theirs("InternalInfluence", net, x, n_steps=9, method="riemann_middle")
    torch.testing.assert_close(ours(InternalInfluence("body.1", steps=9)).values, middle)


@pytest.mark.parametrize("kind", [LayerConductance, InternalInfluence])
def test_what_cannot_be_read_is_refused(kind: type[LayerConductance] | type[InternalInfluence]) -> None:
    net, x = smooth(), batch()
    with pytest.raises(InputError, match="at least one step, got 0"):
        kind(steps=0)
    with pytest.raises(LayerNotFoundError):
        kind("tail")(Score(net, 1), x)
    with pytest.raises(InputError, match="they must be the same"):
        kind("body", baseline=torch.zeros(3, 1, 5, 5, dtype=torch.float64))(Score(net, 1), x)


class Idle(Smooth):
    def forward(self, x: Tensor) -> Tensor:
        self.body(x)
        return self.head(torch.zeros(len(x), 32, dtype=x.dtype)) + x.sum((1, 2, 3))[:, None]


def test_a_layer_that_the_score_does_not_hang_on_and_one_that_runs_twice_are_refused() -> None:
    with pytest.raises(ZeroPathError, match="does not depend on"):
        LayerConductance("body")(Score(nets.seeded(Idle()).double(), 1), batch())
    act = nn.ReLU()
    twice = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act).double().eval()
    with pytest.raises(LayerCallError):
        LayerConductance("1")(Score(twice, 1), torch.ones(1, 2, dtype=torch.float64))
