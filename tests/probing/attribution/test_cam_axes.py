"""Class activation maps of series and volumes: the formulas of images, with as many axes as there are."""

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution import CAM, METHODS, GradCAM, HiResCAM
from probing.attribution.cam_layer import cam_layer
from probing.core.inputs import InputError
from probing.models.geometry import RefusedError
from probing.models.scores import Score
from probing.results.heatmaps import RenderError

CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
MEANS = {1: nn.AdaptiveAvgPool1d, 2: nn.AdaptiveAvgPool2d, 3: nn.AdaptiveAvgPool3d}
SIZES = {1: (12,), 2: (8, 6), 3: (6, 4, 8)}


class Net(nn.Module):
    """conv → ReLU → pooling by two → conv → ReLU → mean → dense."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        conv = CONVOLUTIONS[axes]
        self.body = nn.Sequential(conv(2, 3, 3, padding=1), nn.ReLU(), POOLS[axes](2), conv(3, 4, 3, padding=1), nn.ReLU())
        self.mean, self.head = MEANS[axes](1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.mean(self.body(x)).flatten(1))


def net(axes: int) -> Net:
    return nets.seeded(Net(axes)).double()  # type: ignore[return-value]


def inputs(axes: int, n: int = 3) -> Tensor:
    return torch.randn(n, 2, *SIZES[axes], generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def expected(name: str, model: Net, x: Tensor, target: int) -> Tensor:
    """The papers' formulas, place by place."""
    maps = model.body(x).detach().flatten(2).requires_grad_()
    score = model.head(maps.mean(2))[:, target]
    slopes = torch.autograd.grad(score.sum(), maps)[0]
    maps = maps.detach()
    found = torch.zeros(len(x), maps.shape[2], dtype=x.dtype)
    for c in range(maps.shape[1]):
        a, g = maps[:, c], slopes[:, c]
        share = torch.where(g == 0, 0 * g, g**2 / (2 * g**2 + a.sum(1, keepdim=True) * g**3))
        less = maps.clone()
        less[:, c] = 0
        fall = (score - model.head(less.mean(2))[:, target]).detach()
        found += {
            "cam": lambda a=a, c=c: model.head.weight[target, c] * a,
            "gradcam": lambda a=a, g=g: g.mean(1, keepdim=True) * a,
            "gradcam++": lambda a=a, g=g, s=share: (s * g.relu()).sum(1, keepdim=True) * a,
            "hirescam": lambda a=a, g=g: g * a,
            "xgradcam": lambda a=a, g=g: (g * a).sum(1, keepdim=True) / a.sum(1, keepdim=True).clamp(min=1e-9) * a,
            "layercam": lambda a=a, g=g: g.relu() * a,
            "ablationcam": lambda a=a, fall=fall: fall[:, None] * a,
        }[name]()
    return (found if name in {"cam", "hirescam"} else found.relu()).detach()


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("name", ["cam", "gradcam", "gradcam++", "hirescam", "layercam", "xgradcam", "ablationcam"])
def test_each_map_is_its_paper_s_formula(name: str, axes: int) -> None:
    model, x = net(axes), inputs(axes)
    assert cam_layer(Score(model, 1), x) == "body"
    found = METHODS[name]()(model, x, 1)
    cells = tuple(side // 2 for side in SIZES[axes])
    assert found.values.shape == (3, 1, *cells)
    torch.testing.assert_close(found.values.flatten(1), expected(name, model, x, 1))
    assert found.upsampled().shape == (3, 1, *SIZES[axes])
    assert found.geometry.start == (0.5,) * axes
    assert found.geometry.stride == (2,) * axes


@pytest.mark.parametrize("axes", [1, 3])
def test_a_planted_place_is_found_where_it_lies(axes: int) -> None:
    """A network that adds up its input shows the one place that is lit, at the input's resolution."""
    conv = CONVOLUTIONS[axes](2, 1, 1, bias=False).double()
    torch.nn.init.ones_(conv.weight)
    pool, mean = {1: nn.AvgPool1d, 3: nn.AvgPool3d}[axes](2), MEANS[axes](1)
    model = nn.Sequential(conv, pool, mean, nn.Flatten(), nn.Linear(1, 2).double()).eval()
    torch.nn.init.ones_(model[4].weight)
    x = torch.zeros_like(inputs(axes, 1))
    place = tuple(side - 3 for side in SIZES[axes])
    x[(0, 0, *place)] = 1
    found = HiResCAM("1")(model, x, 0).upsampled()[0, 0]
    top = torch.unravel_index(found.argmax(), found.shape)
    assert all(abs(int(t) - p) <= 1 for t, p in zip(top, place, strict=True))
    assert float(found.sum()) == pytest.approx(2**axes / x[0, 0].numel())


@pytest.mark.parametrize("axes", [1, 3])
def test_guided_grad_cam_is_the_product_and_pictures_are_refused(axes: int) -> None:
    model, x = net(axes), inputs(axes)
    found = METHODS["guided_gradcam"]()(model, x, 1)
    backprop, cam = METHODS["guided_backprop"]()(model, x, 1), GradCAM()(model, x, 1)
    torch.testing.assert_close(found.values, backprop.values * cam.upsampled())
    with pytest.raises(RenderError, match=r"read `\.values` where inputs are no images, or `\.upsampled\(\)`"):
        cam.plot()
    assert "GradCAM" in cam._repr_html_()
    assert str(tuple(cam.values.shape)) in cam._repr_html_()


class Listens(nn.Module):
    """Convolutions make tokens of a series, which attend to each other after a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv1d(2, 8, 3, 3)
        self.first = nn.Parameter(torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(0)))
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).mT
        return self.head(self.block(torch.cat([self.first.expand(len(x), -1, -1), tokens], 1)).mean(1))


def test_tokens_of_a_series_lie_where_its_patches_do() -> None:
    model, x = nets.seeded(Listens()).double(), inputs(1)
    found = HiResCAM("block")(model, x, 1)
    assert found.values.shape == (3, 1, 4)
    assert found.layout == "4 cells, tokens [n, t, c]"
    assert found.geometry.start == (1,)
    tokens = model.block(torch.cat([model.first.expand(3, -1, -1), model.patches(x).mT], 1)).detach().requires_grad_()
    slope = torch.autograd.grad(model.head(tokens.mean(1))[:, 1].sum(), tokens)[0]
    torch.testing.assert_close(found.values[:, 0], (slope * tokens).sum(2)[:, 1:].detach())


class Turned(nn.Module):
    """A series whose channels come last, which the network turns: where cells lie in the input is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv1d(12, 4, 1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.mT).relu().mean(2))


def test_what_can_t_be_told_is_refused() -> None:
    with pytest.raises(RefusedError, match="give channels_last=True or False"):
        GradCAM("conv")(nets.seeded(Turned()).double(), inputs(1), 1)
    with pytest.raises(RefusedError, match="where its cells lie in inputs \\[n, c, t\\]: name a layer whose places"):
        GradCAM("conv", channels_last=False)(nets.seeded(Turned()).double(), inputs(1), 1)
    flat = nets.seeded(nn.Linear(4, 3)).double()
    for method in (GradCAM(), CAM()):
        with pytest.raises(
            InputError, match=r"need images \[n, c, h, w\], series \[n, c, t\] or volumes .* got shape \(2, 4\)"
        ):
            method(flat, torch.ones(2, 4, dtype=torch.float64), 1)
