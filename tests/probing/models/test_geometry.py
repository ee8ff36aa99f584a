"""Which axes of a layer's output are channels and which are places is told from the network, its shapes, or measured."""

from collections.abc import Callable

import nets
import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional

from concepts.data.segmentation.labels import Scenes, TensorLabels, Vocabulary
from concepts.dissection.ablation import Ablation
from concepts.dissection.dissection import Dissection
from concepts.effects.concept_attribution import ConceptGradients
from concepts.local_vs_global.matched_pairs import silenced
from concepts.tcav.editing import edit_along
from probing.atlas import Atlas, Pca
from probing.attribution.cam.grad_cam import AblationCAM, GradCAM, HiResCAM
from probing.attribution.cam_layer import cam_layer
from probing.data.examples import TensorExamples
from probing.maximization import Channel, Maximize, Neuron
from probing.maximization.objective_reader import Reader
from probing.maximization.pixel_space import Space
from probing.models.geometry import Layout, RefusedError, channel_axis
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.probes import GlobalAverage, Grid as ProbeGrid
from probing.probes.features import Reader as ProbeReader
from probing.store.store import ActivationStore


class Turn(nn.Module):
    """Brings channels to the end."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Turned(nn.Module):
    """A convolution's maps, `first`, and the same with channels last, `last`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Tanh())
        self.last = Turn()
        self.head = nn.Linear(channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.last(self.first(x)).square().mean((1, 2)))


# By their sides, or measured where there are as many channels as rows and columns.
WIDTHS = pytest.mark.parametrize("channels", [5, 8], ids=["sides tell", "measured"])


def turned(channels: int) -> tuple[nn.Module, Tensor]:
    return nets.seeded(Turned(channels)).double(), nets.images(4, 3, 8).double()


@WIDTHS
def test_the_axis_of_channels_is_found(channels: int) -> None:
    net, x = turned(channels)
    assert channel_axis(net, x, "first") == 1
    assert channel_axis(net, x, "last") == -1
    assert channel_axis(net, torch.zeros_like(x), "last") == -1  # also where an image is flat
    assert channel_axis(net, x[..., :6], "last") == -1
    assert channel_axis(net, x, "head") is None


class Halves(nn.Module):
    """Returns maps with channels first that no convolution tells of, as many as rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(len(x), 3, 4, 2, 4, 2).mean((3, 5)).mean(1)[:, None].expand(-1, 4, -1, -1)


def test_channels_that_come_first_are_measured_too() -> None:
    net = nn.Sequential(Halves(), nn.Flatten(), nn.Linear(64, 2)).eval()
    assert channel_axis(net, nets.images(1, 3, 8), "0") == 1


class Heads(nn.Module):
    """Returns no map but a table of each example."""

    def __init__(self, *, shape: tuple[int, int, int], mixed: bool) -> None:
        super().__init__()
        self.shape, self.mixed = shape, mixed

    def forward(self, x: Tensor) -> Tensor:
        values = x.flatten(1).mean(1, keepdim=True) if self.mixed else x.flatten(1)[:, :1]
        return values[:, :, None, None].expand(-1, *self.shape).contiguous()


@pytest.mark.parametrize(("shape", "mixed"), [((3, 5, 7), True), ((4, 4, 4), True)])
def test_what_is_no_map_is_refused_or_read_as_is_said(shape: tuple[int, int, int], *, mixed: bool) -> None:
    net = nn.Sequential(Heads(shape=shape, mixed=mixed), nn.Flatten(), nn.LazyLinear(2)).eval()
    x = nets.images(2, 3, 8)
    net(x)
    assert channel_axis(net, x, "0") is None
    with pytest.raises(RefusedError, match=r"can't be told whether channels come first or last"):
        Layout.of(net, x, "0")
    assert Layout.of(net, x, "0", channels_last=True).axis == -1
    assert Layout.of(net, x, "0", channels_last=False).axis == 1


@WIDTHS
def test_every_analysis_reads_units_where_they_are(channels: int) -> None:
    net, x = turned(channels)
    score, examples = Score(net, 1), TensorExamples(x)
    for method in (GradCAM, HiResCAM, AblationCAM):
        first, last = method("first")(score, x), method("last")(score, x)
        torch.testing.assert_close(first.values, last.values)
    assert first.layout == "8 x 8 cells, maps [n, c, h, w]"
    assert last.layout == "8 x 8 cells, maps with channels last [n, h, w, c]"

    store = ActivationStore(precision=Precision("float64"))
    rows = store.activations(net, ["first", "last"], examples, pool="mean")
    assert rows["last"].shape == (4, channels)
    torch.testing.assert_close(rows["last"], rows["first"])
    slopes = store.gradients(score, ["first", "last"], examples, pool="mean")
    torch.testing.assert_close(slopes["last"], slopes["first"])
    for position in (False, True):
        atlas = [Atlas(n, Pca(), least=1, position=position)(store, net, examples) for n in ("first", "last")]
        torch.testing.assert_close(atlas[0].means, atlas[1].means, equal_nan=True)

    for reduction in (GlobalAverage(), ProbeGrid(2)):
        reader = ProbeReader(reduction, None, 999, 1 << 20)
        shapes = reader.layers(net, ("first", "last"), examples, inputs=False)
        assert [s.features for s in shapes] == [reduction.size((channels, 8, 8))] * 2
        [table] = reader.tables(store, net, shapes, examples)
        torch.testing.assert_close(table["last"].features, table["first"].features)

    labels = torch.zeros(4, 1, 8, 8, dtype=torch.long)
    labels[:, :, :4] = 1
    scenes = Scenes(examples, TensorLabels(labels, Vocabulary(("a",), ("object",))), size=(8, 8), frame="input")
    found = Dissection(("first", "last"), draws=0)(store, net, scenes)
    assert len(found.unit) == 2 * channels
    torch.testing.assert_close(*(found.iou[found.rows_of(n)] for n in ("first", "last")))

    order = torch.arange(channels)
    ablated = [Ablation(n, counts=(1,))(net, examples, torch.zeros(4).long(), order) for n in ("first", "last")]
    torch.testing.assert_close(ablated[0].score_without, ablated[1].score_without)
    torch.testing.assert_close(silenced(score, "first", x, [1]), silenced(score, "last", x, [1]))
    way = torch.arange(channels).double()
    moved = [edit_along(score, n, way, x, torch.ones(1)) for n in ("first", "last")]
    torch.testing.assert_close(*moved)
    parts = [ConceptGradients(n)(score, x, torch.eye(channels)[:2], ("a", "b")).values for n in ("first", "last")]
    torch.testing.assert_close(*parts)


@WIDTHS
def test_units_of_synthetic_images_are_read_where_they_are(channels: int) -> None:
    net, x = turned(channels)
    values = [
        Reader.of(net, [kind(n) for kind in (_channel, _neuron)], Precision("float64"), torch.device("cpu")).values(x[:2])
        for n in ("first", "last")
    ]
    torch.testing.assert_close(*values)
    found = Maximize(steps=2, size=8, transforms=())(
        net.float(),
        Channel("last", 1),
        space=Space.plain(),
        store=ActivationStore(),
        examples=TensorExamples(x.float()),
    )
    assert found.beside is not None
    means = net.first(x.float()).mean((2, 3))[:, 1]  # type: ignore[operator]
    torch.testing.assert_close(found.beside.highest[0], means.sort(descending=True).values)


def _channel(layer: str) -> Channel:
    return Channel(layer, 1)


def _neuron(layer: str) -> Neuron:
    return Neuron(layer, 1, (2, 5))


class Mixer(nn.Module):
    """An MLP-Mixer without convolutions whose maps have their channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(12, 6)
        self.rows, self.columns = nn.Linear(4, 4), nn.Linear(4, 4)
        self.mix = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(len(x), 3, 4, 2, 4, 2).permute(0, 2, 4, 1, 3, 5).flatten(3)
        x = self.patches(x)
        x = x + self.columns(self.rows(x.permute(0, 3, 1, 2)).mT).mT.permute(0, 2, 3, 1)
        return self.head(self.norm(x + functional.gelu(self.mix(x))).mean((1, 2)))


class Aux(nn.Module):
    """A network with a second head, which runs in training only, as Inception has."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.aux = nn.Sequential(nn.Conv2d(4, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.last = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.stem(x)
        out = self.head(self.last(x).mean((2, 3)))
        return (out, self.aux(x)) if self.training else out


def to_one_place() -> nn.Module:
    sizes = [(3, 4), (4, 5), (5, 6), (6, 6)]  # of images of 8 by 8: 4, 2, 1 and 1 places a side
    convs = [nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in sizes]
    return nn.Sequential(*convs, nn.Flatten(), nn.Linear(6, 3))


def stages() -> nn.Module:
    widths = [(3, 4), (4, 5), (5, 6)]
    inner = [nn.Sequential(nn.Conv2d(a, b, 2, stride=2), nn.GELU()) for a, b in widths[:2]]
    backbone = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1)), *inner)
    return nn.Sequential(backbone, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


def densenet() -> nn.Module:
    return torchvision.models.DenseNet(2, (1, 1, 1, 1), 4, num_classes=3)


def vit(**settings: object) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", num_classes=3, img_size=32, depth=2, embed_dim=24, num_heads=2, **settings
    )


def swin() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=5,
        img_size=64,
        window_size=2,
        depths=(1, 1, 1, 1),
        embed_dim=24,
        num_heads=(1, 2, 3, 4),
    )


@pytest.mark.parametrize(
    ("make", "side", "layer", "cells"),
    [
        (swin, 64, "layers.3", "2 x 2 cells, maps with channels last"),
        (Mixer, 8, "mix", "4 x 4 cells, maps with channels last"),
        (Aux, 8, "last", "2 x 2 cells, maps [n, c, h, w]"),
        (to_one_place, 8, "1", "2 x 2 cells, maps [n, c, h, w]"),
        (stages, 8, "0.2", "2 x 2 cells, maps [n, c, h, w]"),
        (densenet, 64, "features.norm5", "2 x 2 cells, maps [n, c, h, w]"),
        (vit, 32, "blocks.1.norm1", "2 x 2 cells, tokens"),
        (lambda: vit(global_pool="avg", class_token=False), 32, "norm", "2 x 2 cells, tokens"),
        (
            lambda: timm.create_model("convnext_atto", num_classes=3, depths=(1, 1, 1, 1), dims=(8, 8, 8, 16)),
            64,
            "norm_pre",
            "2 x 2 cells, maps [n, c, h, w]",
        ),
    ],
    ids=["swin", "mixer", "auxiliary", "one place", "stages", "densenet", "class token", "mean of tokens", "convnext"],
)
def test_a_class_activation_map_is_read_at_the_last_stage(
    make: Callable[[], nn.Module], side: int, layer: str, cells: str
) -> None:
    net, x = nets.seeded(make()), nets.images(2, 3, side)
    assert cam_layer(Score(net, 1), x) == layer
    found = GradCAM(relu=False)(Score(net, 1), x)
    assert found.layer == layer
    assert found.layout.startswith(cells)
    assert found.values.flatten(1).any(1).all()


def test_tokens_in_the_last_axis_are_refused_and_no_default() -> None:
    class Across(nn.Module):
        """Mixes tokens by a dense layer over the last axis, nine channels being a square too."""

        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 9, 2, stride=2)
            self.across = nn.Linear(16, 16)
            self.head = nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.across(self.patches(x).flatten(2)).square().mean(2))

    net, x = nets.seeded(Across()), nets.images(2, 3, 8)
    with pytest.raises(RefusedError, match=r"whose last axis has as many numbers as a map has"):
        GradCAM("across")(Score(net, 1), x)
    assert cam_layer(Score(net, 1), x) == "patches"
