"""Occlusion and feature ablation against plain loops, captum, and their own promises."""

import itertools
from typing import Any

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution.base import AttributionMethod
from probing.attribution.baselines import Constant, Samples, Uniform
from probing.attribution.perturbation.occlusion import FeatureAblation, Occlusion
from probing.attribution.perturbation.parts import PartMean
from probing.attribution.perturbation.superpixels import Each, Given, Grid
from probing.core.inputs import InputError, Inputs
from probing.models.precision import Precision
from probing.models.scores import Score

DOUBLE = Precision("float64")


def net_of(shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    size = int(torch.tensor(shape).prod())
    return nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(size, 8), nn.Tanh(), nn.Linear(8, 3)), seed).double().eval()


def by_a_loop(net: nn.Module, x: Tensor, sets: list[Any], hidden: float, target: int) -> Tensor:
    """Mean fall of the score over the sets of places, given as indices of one example, that hold a value."""
    total, held = torch.zeros_like(x), torch.zeros_like(x)
    with torch.no_grad():
        for i, one in enumerate(x):
            for places in sets:
                covered = one.clone()
                covered[places] = hidden
                fall = net(one[None])[0, target] - net(covered[None])[0, target]
                total[i][places] += fall
                held[i][places] += 1
    return total / held.clamp(min=1)


def windows(sizes: list[int], window: list[int], stride: list[int]) -> list[tuple[slice, ...]]:
    starts = []
    for size, w, s in zip(sizes, window, stride, strict=True):
        along = [0]
        while along[-1] + w < size:
            along.append(along[-1] + s)
        starts.append(along)
    each = itertools.product(*starts)
    return [tuple(slice(a, a + w) for a, w in zip(at, window, strict=True)) for at in each]


@pytest.mark.parametrize("batch_size", [1, 7, "auto"])
@pytest.mark.parametrize(
    ("shape", "window", "stride"),
    [
        ((2, 5, 7), (2, 3), (1, 2)),
        ((2, 5, 7), 3, 3),
        ((1, 4, 4), 4, 1),
        ((2, 9), 4, 3),
        ((1, 3, 4, 5), 2, (1, 2, 2)),
        ((6,), 3, 2),
    ],
)
def test_occlusion_is_the_mean_fall_over_the_windows_that_cover_a_value(
    shape: tuple[int, ...], window: Any, stride: Any, batch_size: Any, generator: torch.Generator
) -> None:
    net, x = net_of(shape), torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    sizes = list(shape) if len(shape) == 1 else list(shape[1:])
    both = [[v] * len(sizes) if isinstance(v, int) else list(v) for v in (window, stride)]
    places: list[Any] = [w if len(shape) == 1 else (slice(None), *w) for w in windows(sizes, *both)]
    found = Occlusion(window, stride, Constant((0.3,)), batch_size, DOUBLE)(Score(net, 1), x)
    torch.testing.assert_close(found.values, by_a_loop(net, x, places, 0.3, 1), rtol=1e-9, atol=1e-12)
    assert found.n_forward == len(x) * (1 + len(places))  # not one pass more than is needed
    assert found.n_backward == 0


HALF = Constant((0.5,))


@pytest.mark.parametrize(
    "method", [Occlusion(1, hidden=HALF, precision=DOUBLE), FeatureAblation(Each(), HALF, precision=DOUBLE)]
)
def test_values_alone_get_weight_times_what_they_are_beyond_the_baseline_of_a_linear_net(
    method: AttributionMethod, generator: torch.Generator
) -> None:
    net, x = nn.Linear(7, 3).double().eval(), torch.randn(4, 7, generator=generator, dtype=torch.float64)
    found = method(Score(net, 2), x)
    torch.testing.assert_close(found.values, net.weight[2].detach() * (x - 0.5), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("hidden", [Constant((0.25,)), PartMean()])
def test_feature_ablation_is_the_fall_without_each_part(hidden: Any, generator: torch.Generator) -> None:
    shape = (2, 6, 6)
    net, x = net_of(shape), torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    labels = torch.randint(3, 8, (2, 6, 6), generator=generator)  # of each image its own, not from 0 on
    found = FeatureAblation(Given.of(labels), hidden, precision=DOUBLE)(Score(net, 0), x)
    expected = torch.zeros_like(x)
    for i in range(2):
        for label in labels[i].unique():
            part = (labels[i] == label).expand(shape)
            covered = x[i].clone()
            mean = x[i][:, labels[i] == label].mean(1)[:, None, None].expand(shape)
            covered[part] = mean[part] if isinstance(hidden, PartMean) else 0.25
            expected[i][part] = (net(x[i : i + 1]) - net(covered[None])).detach()[0, 0]
    torch.testing.assert_close(found.values, expected, rtol=1e-9, atol=1e-12)
    assert found.n_forward == 2 + sum(len(one.unique()) for one in labels)
    assert (found.diagnostics["parts"][:, 0] == labels - 3).all()


def captums(name: str, net: nn.Module, x: Tensor) -> Tensor:
    attr = pytest.importorskip("captum.attr")
    if name == "feature ablation":
        mask = torch.arange(36).view(1, 1, 6, 6) // 5
        return attr.FeatureAblation(net).attribute(x, target=1, baselines=0.1, feature_mask=mask.expand(1, 2, 6, 6))
    window, stride = {"stride 1": (3, 1), "gaps at the edge": (4, 3), "tiles": (2, 2)}[name]
    return attr.Occlusion(net).attribute(x, (2, window, window), (2, stride, stride), target=1, baselines=0.1)


OURS: dict[str, AttributionMethod] = {
    "feature ablation": FeatureAblation(Given.of(torch.arange(36).view(1, 6, 6) // 5), Constant((0.1,)), precision=DOUBLE),
    "stride 1": Occlusion(3, 1, Constant((0.1,)), precision=DOUBLE),
    "gaps at the edge": Occlusion(4, 3, Constant((0.1,)), precision=DOUBLE),
    "tiles": Occlusion(2, 2, Constant((0.1,)), precision=DOUBLE),
}


@pytest.mark.parametrize("name", OURS)
def test_maps_are_captums(name: str, generator: torch.Generator) -> None:
    net, x = net_of((2, 6, 6)), torch.randn(3, 2, 6, 6, generator=generator, dtype=torch.float64)
    theirs = captums(name, net, x).detach()  # which of occlusion are rounded to float32
    torch.testing.assert_close(OURS[name](Score(net, 1), x).values.to(theirs), theirs)


class Reads(nn.Module):
    """Reads the upper left quarter of an image, or for a control all of it."""

    def __init__(self, part: int) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : self.part, : self.part].square().sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("method", [Occlusion(2, 2), FeatureAblation(Grid(4, 4))])
def test_only_what_is_read_gets_something(method: AttributionMethod, generator: torch.Generator) -> None:
    x = torch.randn(2, 1, 8, 8, generator=generator)
    for part in (4, 8):
        values = method(Score(Reads(part).eval(), 0), x).values
        assert (values[:, :, :part, :part] > 0).all()
        assert not values[:, :, part:].any()
        assert not values[:, :, :, part:].any()


class Words(nn.Module):
    """Adds the first number looked up for each token that is read, and all of another input."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Embedding(10, 3)

    def forward(self, ids: Tensor, attention_mask: Tensor, more: Tensor) -> Tensor:
        words = (self.look(ids)[..., 0] * attention_mask).sum(1)
        return (words + more.sum((1, 2)))[:, None]


@pytest.mark.parametrize("explain", [("ids",), ("ids", "more")])
def test_windows_slide_over_tokens_and_over_one_input_after_the_other(
    explain: tuple[str, ...], generator: torch.Generator
) -> None:
    net = nets.seeded(Words()).eval()
    ids, mask = torch.tensor([[1, 2, 3, 4], [5, 6, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    more = torch.randn(2, 2, 3, generator=generator)
    score, given = Score(net, 0), Inputs({"ids": ids, "attention_mask": mask, "more": more}, explain)
    looked_up = (net.look(ids)[..., 0] * mask).detach()
    for method in (Occlusion(1), FeatureAblation()):
        found = method(score, given).parts()
        torch.testing.assert_close(found["ids"], looked_up[..., None].expand(2, 4, 3))
    if len(explain) > 1:  # a series: its two channels go together
        slid = Occlusion(1)(score, given).parts()["more"]
        torch.testing.assert_close(slid, more.sum(1, keepdim=True).expand(2, 2, 3))
    read, of_the_other = 6, 3 * 2 * (len(explain) - 1)
    assert Occlusion(1)(score, given).n_forward == 2 + read + of_the_other  # none for padding


def test_what_hides_nothing_is_told(generator: torch.Generator) -> None:
    x = torch.rand(2, 1, 4, 4, generator=generator) + 0.1
    x[0, :, :2] = 0
    x[1] = 0
    found = Occlusion(2)(Score(Reads(4).eval(), 0), x)
    assert found.diagnostics["unmoved"].tolist() == [0.5, 1.0]
    assert found.checks() == ("50% looks the same hidden", "empty: the input is what hides it")
    assert not found.values[1].any()
    ablated = FeatureAblation(Grid(2, 2))(Score(Reads(4).eval(), 0), x[:1])
    assert ablated.checks() == ("2 parts look the same hidden",)
    with pytest.raises(InputError, match="hiding changes nothing"):
        FeatureAblation(Grid(2, 2))(Score(Reads(4).eval(), 0), x)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Occlusion(9), r"a window of \(9, 9\) does not fit places of \(6, 6\)"),
        (Occlusion(0), r"a window of \(0, 0\) does not fit"),
        (Occlusion((2, 2, 2)), "the window has 3 axes, the input 2 along which it slides"),
        (Occlusion(2, 3), r"a stride of \(3, 3\) leaves gaps between windows of \(2, 2\)"),
        (Occlusion(2, 0), r"a stride of \(0, 0\) leaves gaps"),
        (Occlusion(hidden=Uniform()), "hidden parts can show one thing only, and Uniform gives 10"),
        (Occlusion(hidden=Samples.of(torch.zeros(2, 1, 6, 6))), "Samples gives 2"),
    ],
)
def test_what_does_not_fit_is_refused(method: AttributionMethod, message: str, conv_net: nn.Module) -> None:
    with pytest.raises(InputError, match=message):
        method(Score(conv_net, 0), torch.ones(1, 1, 6, 6))


def test_windows_have_an_eighth_of_each_axis_and_move_by_half_of_it() -> None:
    x, score = torch.rand(1, 1, 32, 16), Score(net_of((1, 32, 16)), 0)
    found, given = Occlusion()(score, x), Occlusion((4, 2), (2, 1))(score, x)
    assert torch.equal(found.values, given.values)
    assert found.n_forward == 1 + 15 * 15
