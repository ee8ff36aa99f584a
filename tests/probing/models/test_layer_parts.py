"""What returns several tensors is addressed by part, in everything that takes layers."""

from collections.abc import Callable
from typing import NamedTuple

import nets
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

import probing as pb
from concepts.cli import app
from probing.models.geometry import Layout
from probing.models.gradients import layer_gradients
from probing.models.hooks import LayerCallError
from probing.models.layers import is_glob, resolve, split_call, split_parts
from probing.models.precision import Precision
from probing.probes import LayerProbes, RidgeProbe

X = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.double)


class Recurrent(nn.Module):
    """An LSTM, whose outputs are averaged over time, and a block that returns a pair, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.block, self.head = nn.LSTM(4, 3, batch_first=True), Pair(3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        found, (last, _) = self.lstm(x)
        first, _ = self.block(found)
        second, _ = self.block(first)
        return self.head(second.mean(1) + last[0])


class Pair(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.mix(x).relu(), None


class Named(NamedTuple):
    hidden: Tensor
    extra: tuple[Tensor, Tensor]


class Kind(nn.Module):
    """Returns twice its input, in one container or another."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.wrap = wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(2 * x)


class Around(nn.Module):
    def __init__(self, wrap: Callable[[Tensor], object], take: Callable[[object], Tensor]) -> None:
        super().__init__()
        self.inner, self.take, self.head = Kind(wrap), take, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.take(self.inner(x)).relu().mean(1))


CONTAINERS: dict[str, tuple[Callable[[Tensor], object], Callable[..., Tensor], str]] = {
    "tuple": (lambda y: (y, None), lambda out: out[0], "inner[0]"),
    "list": (lambda y: [y.detach(), y], lambda out: out[1], "inner[1]"),
    "nested": (lambda y: (None, (y, y)), lambda out: out[1][1], "inner[1][1]"),
    "named tuple": (lambda y: Named(y, (y, y)), lambda out: out.hidden, "inner[0]"),
    "mapping": (lambda y: {"hidden": y, "n": 3}, lambda out: out["hidden"], "inner[hidden]"),
}


@pytest.fixture(scope="module")
def recurrent() -> Recurrent:
    net = nets.seeded(Recurrent()).double()
    assert isinstance(net, Recurrent)
    return net


def test_addresses_are_taken_apart(recurrent: Recurrent) -> None:
    assert split_call("block:1[0]") == ("block[0]", 1)
    assert split_call("lstm[1][0]") == ("lstm[1][0]", None)
    assert split_parts("a.b[x][0]") == ("a.b", ("x", "0"))
    assert resolve(recurrent, "lstm[1][0]") is recurrent.lstm
    assert not is_glob(recurrent, "lstm[0]")
    assert is_glob(recurrent, "block[s]") is False
    assert is_glob(nets.seeded(nn.Sequential(nn.Linear(2, 2))), "[01]")  # no module is named by what stands before


@pytest.mark.parametrize("kind", CONTAINERS)
def test_parts_are_read_differentiated_and_edited(kind: str) -> None:
    wrap, take, address = CONTAINERS[kind]
    net = nets.seeded(Around(wrap, take)).double()
    at = (2 * X).requires_grad_()
    slope = torch.autograd.grad(net.head(at.relu().mean(1))[:, 1].sum(), at)[0]
    with pb.capture(net, [address]) as kept:
        net(X)
    torch.testing.assert_close(kept[address], 2 * X)
    value, gradient = layer_gradients(pb.Score(net, 1), X, address)[address]
    torch.testing.assert_close(value, 2 * X)
    torch.testing.assert_close(gradient, slope)
    with pb.edit(net, {address: lambda module, before, output: output + before}):
        edited = net(X)
    torch.testing.assert_close(edited, net.head((3 * X).relu().mean(1)))


def test_rows_of_parts_are_stored_probed_and_explained(recurrent: Recurrent) -> None:
    store = pb.ActivationStore(precision=Precision("float64"), progress=False)
    layers = ["lstm[0]", "block:0[0]", "block:1[0]"]
    rows = store.activations(recurrent, layers, X)
    found = recurrent.lstm(X)[0].detach()
    torch.testing.assert_close(rows["lstm[0]"], found)
    torch.testing.assert_close(rows["block:0[0]"], recurrent.block(found)[0].detach())
    torch.testing.assert_close(rows["block:1[0]"], recurrent.block(rows["block:0[0]"])[0].detach())
    slopes = store.gradients(pb.Score(recurrent, 1), ["lstm[0]"], X, pool="mean")["lstm[0]"]
    _, by_hand = layer_gradients(pb.Score(recurrent, 1), X, "lstm[0]")["lstm[0]"]
    torch.testing.assert_close(slopes, by_hand.sum(1))
    probes = LayerProbes("lstm[0]", RidgeProbe((1.0,)), inputs=False, untrained=False, controls=0, description_length=False)
    many = torch.randn(30, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    assert probes(store, recurrent, many, [i % 2 for i in range(30)]).layers == ("lstm[0]",)
    integrated = pb.LayerIntegratedGradients("lstm[0]", pb.IntegratedGradients(steps=200))(recurrent, X, target=1)
    assert integrated.values.shape == found.shape
    assert integrated.diagnostics["completeness_gap"].abs().max() < 1e-3


def test_maps_are_read_at_parts() -> None:
    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 2)
            self.stage = Kind(lambda y: (y, y.mean()))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stage(self.conv(x))[0].mean((2, 3)))

    net, images = nets.seeded(Maps()), nets.images()
    assert Layout.of(net, images, "stage[0]").kind == "channels_first"
    found = pb.HiResCAM("stage[0]")(net, images, target=1)
    torch.testing.assert_close(found.values, pb.HiResCAM("conv")(net, images, target=1).values)
    assert found.layer == "stage[0]"


def test_what_stands_at_no_part_is_refused(recurrent: Recurrent) -> None:
    for address, message in (
        ("lstm", r"returns a tuple of 2, expected one tensor; name a part, as in 'lstm\[0\]'"),
        ("lstm[1]", r"returns a tuple of 2, expected one tensor; name a part, as in 'lstm\[1\]\[0\]'"),
        ("lstm[2]", r"nothing stands at '\[2\]': it has \['lstm\[0\]', 'lstm\[1\]\[0\]', 'lstm\[1\]\[1\]'\]"),
        ("head[0]", r"'head' returns a Tensor, in which nothing stands at '\[0\]': it has none"),
    ):
        with pytest.raises(LayerCallError, match=message), pb.capture(recurrent, [address]):
            recurrent(X)
    store = pb.ActivationStore(progress=False)
    with pytest.raises(LayerCallError, match="first axis is not that of the examples"):
        store.activations(recurrent, ["lstm[1][0]"], X)  # layers come first there


def test_probabilities_of_attention_are_read_where_there_are_any() -> None:
    ids = torch.tensor([[3, 5, 7, 1], [4, 4, 2, 6]])

    def model(attention: str) -> nn.Module:
        config = BertConfig(
            vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
        )
        config._attn_implementation = attention
        return nets.seeded(BertForSequenceClassification(config))

    layer = "bert.encoder.layer.0.attention.self[1]"
    eager = model("eager")
    with pb.capture(eager, [layer]) as kept:
        eager(ids)
    assert kept[layer].shape == (2, 2, 4, 4)
    torch.testing.assert_close(kept[layer].sum(-1), torch.ones(2, 2, 4))
    fused = model("sdpa")
    with pytest.raises(LayerCallError, match="attn_implementation='eager'"), pb.capture(fused, [layer]):
        fused(ids)


def of_recurrent() -> nn.Module:
    return nets.seeded(Recurrent())


def test_the_list_of_layers_names_parts(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["layers", f"{__name__}:of_recurrent", "--shape", "5,4"]) == 0
    said = capsys.readouterr().out
    assert "lstm[0]" in said
    assert "block[0]" in said
    assert app.main(["layers", f"{__name__}:of_recurrent", "lstm[0]", "--shape", "5,4"]) == 0
    assert "block" not in capsys.readouterr().out
