import nets
import pytest
import torch
from attribution_nets import TWO_MAPS, Homogeneous, TokenNet, TwoMaps
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution.base import Attribution
from probing.attribution.cam.cam import CAM
from probing.attribution.cam.eigen_cam import EigenCAM
from probing.attribution.cam.finer_cam import FinerCAM
from probing.attribution.cam.grad_cam import (
    AblationCAM,
    GradCAM,
    GradCAMPlusPlus,
    GuidedGradCAM,
    HiResCAM,
    LayerCAM,
    XGradCAM,
)
from probing.attribution.cam.score_cam import ScoreCAM
from probing.attribution.cam_layer import cam_layer
from probing.attribution.gradient import GuidedBackprop
from probing.attribution.path import LayerIntegratedGradients
from probing.core.inputs import InputError
from probing.models.geometry import Geometry, RefusedError, layers_run
from probing.models.hooks import LayerCallError, edit
from probing.models.layers import LayerNotFoundError
from probing.models.scores import Score

LAYER_METHODS = (GradCAM, GradCAMPlusPlus, LayerCAM, HiResCAM, XGradCAM, AblationCAM, ScoreCAM, EigenCAM, FinerCAM)


def values(found: Attribution) -> list[list[float]]:
    return found.values[0, 0].tolist()  # type: ignore[no-any-return]


def conv_net() -> nn.Module:
    return nets.seeded(nets.ConvNet()).double()


def test_cam_1_the_fixture() -> None:
    found = CAM()(Score(TwoMaps(), 0), TWO_MAPS)
    assert values(found) == [[-3, -1], [1, 3]]
    assert found.score.tolist() == [0]
    assert found.values.mean().item() == 0
    assert found.n_backward == 0


class SumPooled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 5, 3)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(functional.relu(self.body(x)).sum((2, 3)))


def test_cam_2_the_map_adds_up_to_the_logit_without_its_bias() -> None:
    x, target = nets.images().double(), torch.tensor([0, 1, 2, 1])
    net = conv_net()
    found = CAM()(Score(net, target), x)
    bias = net.head.bias[target].detach()  # type: ignore[union-attr, index]
    torch.testing.assert_close(found.values.mean((1, 2, 3)), found.score - bias)
    assert float(found.diagnostics["completeness_gap"].abs().max()) < 1e-12
    assert found.layer == "features"
    pooled = nets.seeded(SumPooled()).double()
    found = CAM()(Score(pooled, target), x)
    torch.testing.assert_close(found.values.sum((1, 2, 3)), found.score - pooled.head.bias[target].detach())  # type: ignore[index]


class Headed(nn.Module):
    """A convolution, a mean over places, and what else is given before and after the linear layer."""

    def __init__(self, before: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.body = nn.Conv2d(1, 5, 3)
        self.before, self.after = before, after
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.head(self.before(self.body(x).mean((2, 3)))))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (Headed(nn.ReLU(), nn.Identity()), "other operations stand between them"),
        (Headed(nn.Identity(), nn.Softmax(1)), "other operations stand between them or after"),
        (Homogeneous(), "no map of its width is averaged"),
        (
            nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            "it has no linear layer",
        ),
    ],
)
def test_cam_is_refused_for_another_head(net: nn.Module, reason: str) -> None:
    with pytest.raises(RefusedError, match=f"CAM needs a global average.*{reason}.*use GradCAM"):
        CAM()(Score(nets.seeded(net), 0), nets.images())


def test_cam_is_refused_for_what_is_no_logit() -> None:
    with pytest.raises(RefusedError, match="logits apart, not probability"):
        CAM()(Score(conv_net(), 0, "probability"), nets.images().double())


def test_gc_1_the_fixture_with_its_options() -> None:
    score = Score(TwoMaps(), 0)
    assert values(GradCAM()(score, TWO_MAPS)) == [[0, 0], [0.25, 0.75]]
    assert values(GradCAM(relu=False)(score, TWO_MAPS)) == [[-0.75, -0.25], [0.25, 0.75]]
    slides = GradCAM(relu=False, reduce="mean")(score, TWO_MAPS)
    assert values(slides) == [[-0.375, -0.125], [0.125, 0.375]]


def test_gc_2_it_is_the_positive_part_of_cam_over_the_places() -> None:
    score, x = Score(conv_net(), torch.tensor([0, 1, 2, 0])), nets.images().double()
    torch.testing.assert_close(GradCAM()(score, x).values, CAM()(score, x).values.relu() / 36)
    torch.testing.assert_close(GradCAM(relu=False)(score, x).values, CAM()(score, x).values / 36)


def test_gc_3_moving_scale_from_weights_to_maps_changes_nothing() -> None:
    one, other = conv_net(), conv_net()
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(other.features[2], name)[1] *= 7  # type: ignore[index]
        other.head.weight[:, 1] /= 7  # type: ignore[union-attr, index, operator]
    x = nets.images().double()
    torch.testing.assert_close(GradCAM()(Score(one, 1), x).values, GradCAM()(Score(other, 1), x).values)


@pytest.mark.parametrize("method", LAYER_METHODS)
@pytest.mark.parametrize("layer", ["features.2", None])
def test_gc_4_a_relu_in_place_after_the_layer_changes_nothing(method: type, layer: str | None) -> None:
    a, b = (nets.seeded(nets.ConvNet(inplace=inplace)).double() for inplace in (True, False))
    x = nets.images().double()
    found = [method(layer=layer)(Score(net, 2), x) for net in (a, b)]
    torch.testing.assert_close(found[0].values, found[1].values)
    if layer:
        assert found[0].layer == layer


def test_fault_5_negative_activations_survive_the_relu_that_overwrites_them() -> None:
    net, x = conv_net(), nets.images().double()  # its ReLU overwrites what `features.2` returns
    with torch.no_grad():
        maps = net.features[2](functional.relu(net.features[0](x)))  # type: ignore[index]
    assert float(maps.min()) < -0.1
    at = maps.clone().requires_grad_()
    logit = net.head(functional.relu(at).mean((2, 3)))[:, 1]  # type: ignore[operator]
    (slope,) = torch.autograd.grad(logit.sum(), at)
    expected = (slope.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True)
    found = GradCAM("features.2", relu=False)(Score(net, 1), x)
    torch.testing.assert_close(found.values, expected)


def test_gc_5_guided_grad_cam_is_nothing_where_the_map_is() -> None:
    score, x = Score(conv_net(), torch.tensor([0, 1, 2, 0])), nets.images().double()
    where = GradCAM()(score, x).upsampled()
    found = GuidedGradCAM()(score, x)
    assert found.values.shape == x.shape
    assert bool((where == 0).any())
    assert not found.values[where == 0].any()
    torch.testing.assert_close(found.values, GuidedBackprop()(score, x).values * where)


def test_gc_6_the_counterfactual_explains_the_negative_score() -> None:
    net, negative = conv_net(), conv_net()
    with torch.no_grad():
        negative.head.weight.neg_()  # type: ignore[union-attr, operator]
    x = nets.images().double()
    found = GradCAM(counterfactual=True)(Score(net, 1), x)
    torch.testing.assert_close(found.values, GradCAM()(Score(negative, 1), x).values)
    assert not torch.equal(found.values, GradCAM()(Score(net, 1), x).values)


def test_maps_without_anything_positive_are_zero_and_flagged() -> None:
    net = TwoMaps()
    with torch.no_grad():
        net.head.weight.copy_(torch.tensor([[-1.0, -1.0]]))
    found = GradCAM()(Score(net, 0), TWO_MAPS)
    assert not found.values.any()
    assert found.diagnostics["nothing_positive"].tolist() == [True]


def slow_maps(net: nn.Module, x: Tensor, target: int) -> tuple[Tensor, Tensor]:
    """Return the last maps and the logit's gradient there, by the plain graph."""
    maps = net.features(x).detach().requires_grad_()  # type: ignore[operator]
    logit = net.head(net.pool(maps).flatten(1))[:, target]  # type: ignore[operator]
    return maps.detach(), torch.autograd.grad(logit.sum(), maps)[0]


class Curved(nets.ConvNet):
    """Its maps pass a square before they are averaged, so that gradients differ from place to place."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(Square(), nn.AdaptiveAvgPool2d(1))  # type: ignore[assignment]


class Square(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * x - 0.7 * x


def test_layer_maps_weigh_as_in_their_papers() -> None:
    net, x = nets.seeded(Curved()).double(), nets.images().double()
    a, g = slow_maps(net, x, 1)
    score = Score(net, 1)
    torch.testing.assert_close(HiResCAM("features")(score, x).values[:, 0], (g * a).sum(1))
    torch.testing.assert_close(LayerCAM("features")(score, x).values[:, 0], (g.relu() * a).sum(1).relu())
    expected = torch.zeros(4, 6, 6, dtype=torch.float64)
    for i in range(4):
        for k in range(5):
            weight = 0.0
            for y, z in [(y, z) for y in range(6) for z in range(6)]:
                slope = g[i, k, y, z]
                below = 2 * slope**2 + a[i, k].sum() * slope**3
                weight += float(slope**2 / below * slope.relu()) if below != 0 else 0.0
            expected[i] += weight * a[i, k]
    torch.testing.assert_close(GradCAMPlusPlus("features")(score, x).values[:, 0], expected.relu())


def test_hirescam_adds_up_to_the_logit_without_its_bias() -> None:
    net, x = conv_net(), nets.images().double()
    found = HiResCAM()(Score(net, 1), x)
    bias = net.head.bias[1].detach()  # type: ignore[union-attr, index]
    torch.testing.assert_close(found.values.sum((1, 2, 3)), found.score - bias)


@pytest.mark.parametrize("kind", ["linear tail", "tail", "no tail"])
@pytest.mark.parametrize("size", ["auto", 3])
def test_ablation_weighs_channels_by_the_fall_of_the_score(kind: str, size: str | int) -> None:
    net: nn.Module = {"linear tail": nets.ConvNet, "tail": Curved, "no tail": Branching}[kind]()
    net, x = nets.seeded(net).double(), nets.images(3).double()
    score, target = Score(net, torch.tensor([0, 2, 1])), torch.tensor([0, 2, 1])
    with torch.no_grad():
        whole = net(x)[torch.arange(3), target]
        maps, expected = net.features(x), 0  # type: ignore[operator]
        for k in range(5):

            def without(module: nn.Module, before: Tensor, out: Tensor, k: int = k) -> Tensor:
                return out * (torch.arange(5) != k)[:, None, None]

            with edit(net, {"features": without}):
                fall = whole - net(x)[torch.arange(3), target]
            expected = expected + fall[:, None, None] * maps[:, k]
    found = AblationCAM("features", batch_size=size)(score, x)  # type: ignore[arg-type]
    torch.testing.assert_close(found.values[:, 0], expected.relu())  # type: ignore[attr-defined]
    assert found.n_forward >= 3 if kind == "linear tail" else found.n_forward >= 3 * 6


class Branching(nets.ConvNet):
    """The head reads the input too: what follows `features` can't run alone."""

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.features(x).square()).flatten(1)
        return self.head(pooled) * (1 + x.mean((1, 2, 3), keepdim=False)[:, None].square())


def test_only_the_tail_runs_again_for_an_ablation() -> None:
    net = nets.seeded(Curved()).double()
    net.features.append(Counted().eval())  # type: ignore[operator]
    method, score = AblationCAM("features"), Score(net, 0)
    method(score, nets.images().double())  # prepares and checks
    Counted.calls = 0
    method(score, nets.images().double())
    assert Counted.calls == 1  # with a graph


class Counted(nn.Module):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.calls += 1
        return x


def test_captum_agrees_on_grad_cam() -> None:
    attr = pytest.importorskip("captum.attr")
    net, x = nets.seeded(nets.ConvNet(inplace=False)).double(), nets.images().double()
    theirs = attr.LayerGradCam(net, net.features[2]).attribute(x, target=1)  # type: ignore[index]
    ours = GradCAM("features.2", relu=False)(Score(net, 1), x).values
    torch.testing.assert_close(ours, theirs)


def test_tokens_are_read_as_a_grid_without_the_class_token() -> None:
    net, x = nets.seeded(TokenNet()).double(), nets.images(2, size=8).double()
    found = GradCAM("norm", relu=False)(Score(net, 1), x)
    assert found.values.shape == (2, 1, 4, 4)
    tokens = None

    def keep(module: nn.Module, before: Tensor, out: Tensor) -> Tensor:
        nonlocal tokens
        tokens = out.detach().requires_grad_()
        return tokens

    with edit(net, {"norm": keep}):
        logit = net(x)[:, 1].sum()
    assert tokens is not None
    (g,) = torch.autograd.grad(logit, tokens)
    patches, slopes = tokens.detach()[:, 1:], g[:, 1:]
    expected = (slopes.mean(1, keepdim=True) * patches).sum(2).reshape(2, 4, 4)
    torch.testing.assert_close(found.values[:, 0], expected)
    assert found.geometry == Geometry((8, 8), (0.5, 0.5), (2.0, 2.0))


def test_fault_9_a_token_map_of_17_by_8_is_no_map_of_eight_places_as_it_is_elsewhere() -> None:
    net = nets.seeded(TokenNet())
    for method in LAYER_METHODS:
        found = method("norm")(Score(net, 0), nets.images(2, size=8))
        assert found.values.shape == (2, 1, 4, 4)


def test_grids_that_are_not_square_come_from_the_patches_or_are_given() -> None:
    net, x = nets.seeded(TokenNet()), nets.images(1, size=8)[..., :6]
    assert GradCAM("norm")(Score(net, 0), x).values.shape == (1, 1, 4, 3)
    registers = nets.seeded(TokenNet(prefixes=5))  # 17 tokens are no square of 4 by 4 here
    assert GradCAM("norm")(Score(registers, 0), x).values.shape == (1, 1, 4, 3)
    net, x = nets.seeded(Unfolded()), nets.images()
    with pytest.raises(RefusedError, match=r"layer 'embed' has 12 tokens.*give grid=\(rows, columns\)"):
        GradCAM("embed")(Score(net, 0), x)
    assert GradCAM("embed", grid=(4, 3))(Score(net, 0), x).values.shape == (4, 1, 4, 3)
    with pytest.raises(RefusedError, match="12 tokens, which a grid of 5 by 4 patches"):
        GradCAM("embed", grid=(5, 4))(Score(net, 0), x)


class Unfolded(nn.Module):
    """Its tokens come from no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embed(x.reshape(len(x), 12, 3)).square().mean(1))


@pytest.mark.parametrize(("pooled", "layer"), [(False, "norm"), (True, "last")])
def test_in_a_transformer_the_last_tokens_that_matter_are_chosen(pooled: bool, layer: str) -> None:
    net = nets.seeded(TokenNet(pooled=pooled))
    found = GradCAM(relu=False)(Score(net, 0), nets.images(2, size=8))
    assert found.layer == layer
    assert found.values.any()


class Swapped(nn.Module):
    """A network whose inner maps have their channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 5, 3, padding=1)
        self.last = nn.LayerNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.first(x).permute(0, 2, 3, 1)).square().mean((1, 2)))


def test_maps_with_channels_last_are_read_where_it_is_said() -> None:
    net, x = nets.seeded(Swapped()).double(), nets.images(2).double()
    for method in LAYER_METHODS:
        found = method("last", channels_last=True)(Score(net, 0), x)
        assert found.values.shape == (2, 1, 6, 6)
        assert torch.equal(method("last")(Score(net, 0), x).values, found.values)  # its sides tell
        with pytest.raises(RefusedError, match="channels last, not as channels_last=False says"):
            method("last", channels_last=False)(Score(net, 0), x)


class Residual(nn.Module):
    """As the end of a residual network: the last convolution is not what the head reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.block = self.Block()
        self.head = nn.Linear(4, 3)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.bn = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return functional.relu(self.bn(self.conv(x)) + x)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.stem(x)).mean((2, 3)))


def test_the_layer_is_the_last_one_at_the_last_convolutions_resolution() -> None:
    for net, layer in (
        (Residual(), "block"),
        (nets.ConvNet(), "features"),
        (nets.BatchNormNet(), "relu"),
    ):
        nets.seeded(net)
        assert GradCAM()(Score(net, 0), nets.images()).layer == layer
        assert cam_layer(Score(net, 0), nets.images()) == layer


@pytest.mark.parametrize("method", [*LAYER_METHODS, GuidedGradCAM, LayerIntegratedGradients])
def test_a_network_without_convolutions_needs_a_layer(method: type) -> None:
    net = nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    with pytest.raises(RefusedError, match=r"Sequential has no convolution.*name a layer"):
        method()(Score(net, 0), nets.images())


def test_a_layer_that_returns_no_map_is_refused() -> None:
    net = nets.seeded(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)))
    with pytest.raises(RefusedError, match=r"layer '0' returns shape \(1, 36\), no map"):
        GradCAM("0")(Score(net, 0), nets.images())


def test_layers_that_can_not_be_read_are_refused_by_name() -> None:
    with pytest.raises(LayerNotFoundError, match="no layer 'feature'"):
        GradCAM("feature")(Score(conv_net(), 0), nets.images().double())
    with pytest.raises(InputError, match=r"need images \[n, c, h, w\], .* got shape \(4, 36\)"):
        GradCAM()(Score(conv_net(), 0), nets.images().double().flatten(1))

    class Twice(nets.ConvNet):
        def forward(self, x: Tensor) -> Tensor:
            again = self.features[3](self.features[2](self.features(x)[:, :4]))
            return self.head(self.pool(again).flatten(1))

    net = nets.seeded(Twice())
    with pytest.raises(LayerCallError, match=r"'features\.2' runs more than once"):
        GradCAM("features.2")(Score(net, 0), nets.images())
    assert GradCAM("features.2:1")(Score(net, 0), nets.images()).values.any()


def test_a_batch_size_and_the_chunk_do_not_change_maps() -> None:
    score, x = Score(conv_net(), torch.tensor([0, 1, 2, 0])), nets.images().double()
    for method in (*LAYER_METHODS, CAM):
        whole = method()(score, x).values
        torch.testing.assert_close(method(batch_size=3)(score, x).values, whole, rtol=1e-9, atol=1e-12)


def ramp(cells: int, size: int, start: float, stride: float) -> Attribution:
    maps = torch.arange(cells, dtype=torch.float64).expand(1, 1, cells, cells)
    geometry = Geometry((size, size), (start, start), (stride, stride))
    found = GradCAM()(Score(TwoMaps(), 0), TWO_MAPS)
    return Attribution(found.provenance, maps, found.score, (0,), "logit", 0, 0, geometry=geometry)


def test_upsampling_is_bilinear_between_the_centres_of_receptive_fields() -> None:
    up = ramp(3, 9, 0.0, 4.0).upsampled()[0, 0]
    assert up.shape == (9, 9)
    assert up[0].tolist() == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2]
    assert up[:, 3].tolist() == [0.75] * 9
    shifted = ramp(3, 9, 2.0, 3.0).upsampled()[0, 0, 0]
    assert shifted.tolist() == pytest.approx([0, 0, 0, 1 / 3, 2 / 3, 1, 4 / 3, 5 / 3, 2])


def test_where_cells_tile_the_input_upsampling_is_the_usual_one() -> None:
    maps = nets.images(1, size=3).double()
    found = ramp(3, 12, 1.5, 4.0)
    found = Attribution(found.provenance, maps, found.score, (0,), "logit", 0, 0, geometry=found.geometry)
    usual = functional.interpolate(maps, (12, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found.upsampled(), usual)


def measured_centres(net: nn.Module, layer: str, size: int, cell: int) -> float:
    """Return the middle of the pixels that a cell reads, in a network of positive weights and no kinks."""
    x = torch.ones(1, 3, size, size, dtype=torch.float64, requires_grad=True)
    kept: list[Tensor] = []
    with edit(net, {layer: lambda m, i, o: kept.append(o) or o}):  # type: ignore[func-returns-value]
        net(x)
    (g,) = torch.autograd.grad(kept[0][0, :, cell, cell].sum(), x)
    read = g[0].abs().sum(0).sum(0).nonzero()
    return float(read.min() + read.max()) / 2


class Strided(nn.Module):
    """Kernels, strides, paddings, dilation and pooling of many kinds, with a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 7, stride=2, padding=3)
        self.even = nn.Conv2d(4, 4, 2, stride=1)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.wide = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
        self.same = nn.Conv2d(4, 4, 3, padding="same")
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.even(functional.pad(self.stem(x), (1, 0, 1, 0))))
        x = x + self.wide(x)
        return self.head(self.same(x).mean((2, 3)))


def test_centres_of_receptive_fields_are_where_cells_read() -> None:
    net = nets.seeded(Strided()).double()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_()
    ran = {r.layer: r for r in layers_run(net, torch.ones(1, 3, 96, 96, dtype=torch.float64))}
    for layer in ("stem", "even", "pool", "wide", "same"):
        grid = ran[layer].grid
        assert grid is not None
        cell = ran[layer].shape[2] // 2
        centre = grid.start[0] + cell * grid.stride[0]
        assert centre == measured_centres(net, layer, 96, cell), layer


def test_a_residual_networks_map_is_not_shifted_by_half_a_stride() -> None:
    models = pytest.importorskip("torchvision.models")
    net = models.resnet18(weights=None).eval()
    found = GradCAM()(Score(net, 3), torch.ones(1, 3, 64, 64))
    assert found.layer == "layer4"
    assert found.geometry == Geometry((64, 64), (0.0, 0.0), (32.0, 32.0))
