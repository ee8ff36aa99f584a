"""Gradients are those of the closed form, and neither model nor input is touched on the way."""

from collections.abc import Callable

import pytest
import torch
from nets import BatchNormNet, ConvNet, HandNet, LinearTailNet, SharedReluNet, images, seeded
from test_hooks import left_as_found
from torch import Tensor, nn

from probing.models.gradients import (
    ZeroPathError,
    frozen_parameters,
    input_gradient,
    layer_gradients,
    score_gradients,
)
from probing.models.hooks import LayerCallError, capture
from probing.models.layers import LayerNotFoundError
from probing.models.scores import ModelModeError, Score, TargetError


def hand_images() -> Tensor:
    return images(n=3, channels=2, size=2).double()


def hand_net() -> nn.Module:
    return HandNet().double().eval()


def test_the_input_gradient_of_a_hand_made_net_is_its_closed_form() -> None:
    """Class 0 scores the mean of relu(x0) − relu(−x0) = x0; class 1 twice that of x1."""
    x = hand_images()
    value, slope = input_gradient(Score(hand_net(), 0), x)
    torch.testing.assert_close(value, x[:, 0].mean((1, 2)))
    torch.testing.assert_close(slope[:, 0], torch.full((3, 2, 2), 0.25, dtype=torch.float64))
    assert not slope[:, 1].any()
    value, slope = input_gradient(Score(hand_net(), 1), x)
    torch.testing.assert_close(value, 2 * x[:, 1].mean((1, 2)))
    torch.testing.assert_close(slope[:, 1], torch.full((3, 2, 2), 0.5, dtype=torch.float64))


def test_no_target_is_the_top_class_of_each_input() -> None:
    net, x = hand_net(), hand_images()
    x[0] += torch.tensor([9.0, 0.0]).view(2, 1, 1)
    x[1] += torch.tensor([0.0, 9.0]).view(2, 1, 1)
    tops = net(x).argmax(1)
    assert tops[:2].tolist() == [0, 1]
    for found, expected in zip(input_gradient(Score(net), x), input_gradient(Score(net, tops), x), strict=True):
        assert torch.equal(found, expected)
    weights = torch.tensor([[1.0, 0, -1, 0], [0, 2, 0, -2]], dtype=torch.float64)[tops]
    found = layer_gradients(Score(net), x, ["pool"])["pool"][1]
    torch.testing.assert_close(found[:, :, 0, 0], weights)


def test_layer_gradients_of_a_hand_made_net_are_their_closed_form() -> None:
    x, layers = hand_images(), ["features", "relu", "pool", "head"]
    found = layer_gradients(Score(hand_net(), 1), x, layers)
    row = torch.tensor([0.0, 2.0, 0.0, -2.0], dtype=torch.float64)
    copies = torch.cat([x, -x], 1)
    everywhere = (row / 4)[None, :, None, None].expand(3, 4, 2, 2)
    expected = {
        "features": (copies, everywhere * (copies > 0)),
        "relu": (copies.relu(), everywhere),
        "pool": (
            copies.relu().mean((2, 3), keepdim=True),
            row[None, :, None, None].expand(3, 4, 1, 1),
        ),
        "head": (
            torch.stack([x[:, 0].mean((1, 2)), 2 * x[:, 1].mean((1, 2))], 1),
            torch.tensor([[0.0, 1.0]] * 3, dtype=torch.float64),
        ),
    }
    assert list(found) == layers
    for layer in layers:
        torch.testing.assert_close(found[layer], expected[layer])


@pytest.mark.parametrize("unit", ["logit", "probability", "logprob", "margin"])
@pytest.mark.parametrize("layer", ["features.0", "features.2", "pool", "head", ""])
def test_a_layer_gradient_is_the_finite_difference_of_the_score(unit: str, layer: str) -> None:
    net = seeded(ConvNet(inplace=True)).double()
    score, x = Score(net, 2, unit=unit), images(n=1).double()
    activation, slope = layer_gradients(score, x, [layer])[layer]
    for index in (0, activation.numel() // 2, activation.numel() - 1):
        values = []
        for step in (1e-6, -1e-6):

            def shift(_: nn.Module, args: object, output: Tensor, step: float = step) -> Tensor:
                moved = output.clone()
                moved.view(-1)[index] += step  # noqa: B023  # called before the loop goes on
                return moved

            handle = net.get_submodule(layer).register_forward_hook(shift)
            values.append(score(x).item())
            handle.remove()
        torch.testing.assert_close(slope.view(-1)[index].item(), (values[0] - values[1]) / 2e-6, rtol=1e-6, atol=1e-8)


def test_an_in_place_net_has_the_gradients_of_the_net_that_copies() -> None:
    layers = ["features.0", "features.1", "features.2", "features.3", "pool"]
    inplace, apart = (Score(seeded(ConvNet(inplace=i)), 1) for i in (True, False))
    found, expected = (layer_gradients(score, images(), layers) for score in (inplace, apart))
    assert (expected["features.0"][0] < 0).any()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(input_gradient(inplace, images()), input_gradient(apart, images()), rtol=0, atol=0)


@pytest.mark.parametrize("net", [ConvNet(), LinearTailNet(), BatchNormNet()], ids=lambda n: type(n).__name__)
def test_a_batch_has_the_gradients_of_its_examples_one_at_a_time(net: nn.Module) -> None:
    score, layers = Score(seeded(net).double(), 2), [n for n, _ in net.named_children()]
    whole = layer_gradients(score, images().double(), layers)
    _, slope = input_gradient(score, images().double())
    for i in range(4):
        one = images().double()[i : i + 1]
        torch.testing.assert_close(input_gradient(score, one)[1], slope[i : i + 1])
        for layer, pair in layer_gradients(score, one, layers).items():
            torch.testing.assert_close(pair, tuple(rows[i : i + 1] for rows in whole[layer]))


def test_each_example_may_have_its_own_class() -> None:
    net, targets = seeded(ConvNet()), torch.tensor([2, 0, 1, 1])
    together = layer_gradients(Score(net, targets), images(), ["features.2"])["features.2"][1]
    for i, target in enumerate(targets.tolist()):
        alone = layer_gradients(Score(net, target), images(), ["features.2"])["features.2"][1]
        torch.testing.assert_close(together[i], alone[i])


def test_rows_pick_the_class_of_each_variant() -> None:
    net = seeded(ConvNet())
    score, x = Score(net, torch.tensor([2, 0])), images(n=3)
    value, slope = input_gradient(score, x, torch.tensor([1, 0, 1]))
    expected = input_gradient(Score(net, torch.tensor([0, 2, 0])), x)
    torch.testing.assert_close((value, slope), expected, rtol=0, atol=0)


def test_what_is_returned_holds_no_graph_and_no_alias() -> None:
    x = images()
    value, slope = input_gradient(Score(seeded(ConvNet()), 0), x)
    pairs = layer_gradients(Score(seeded(ConvNet()), 0), x, ["features.0"])
    for tensor in (value, slope, *pairs["features.0"]):
        assert tensor.grad_fn is None
        assert not tensor.requires_grad
        assert tensor.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


# What is left behind

CALLS: dict[str, Callable[[Score, Tensor], object]] = {
    "input": input_gradient,
    "layer": lambda score, x: layer_gradients(score, x, ["features.0"]),
}


class BeginsInPlace(nn.Module):
    """Overwrites its input first."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("wanted", [False, True])
def test_the_input_is_left_untouched_by_a_model_that_begins_in_place(
    call: Callable[[Score, Tensor], object], *, wanted: bool
) -> None:
    net = seeded(BeginsInPlace())
    x = images().requires_grad_(wanted)
    before = x.detach().clone()
    call(Score(net, 0), x)
    assert torch.equal(x, before)
    assert x.grad is None
    assert x.requires_grad is wanted


def test_a_model_that_begins_in_place_has_the_gradient_of_one_that_copies() -> None:
    net = seeded(BeginsInPlace())
    _, slope = input_gradient(Score(net, 0), images())
    row = net.features[2].weight[0].detach().reshape(1, 1, 6, 6)
    torch.testing.assert_close(slope, row * (images() > 0))


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_the_model_is_left_as_found(call: Callable[[Score, Tensor], object]) -> None:
    net = seeded(ConvNet())
    net.head.bias.requires_grad_(False)
    net.head.weight.grad = torch.ones_like(net.head.weight)
    gradient = net.head.weight.grad
    with left_as_found(net):
        call(Score(net, 0), images())
    assert net.head.weight.grad is gradient
    assert gradient.eq(1).all()


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("error", [TargetError, RuntimeError, KeyboardInterrupt])
def test_the_model_is_left_as_found_after_an_error(
    call: Callable[[Score, Tensor], object],
    error: type[BaseException],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(self: nn.Module, x: Tensor) -> Tensor:
        raise error

    net = seeded(ConvNet())
    net.head.bias.requires_grad_(False)
    with left_as_found(net):
        if error is not TargetError:
            monkeypatch.setattr(nn.AdaptiveAvgPool2d, "forward", fail)
        with pytest.raises(error):
            call(Score(net, 9), images())
    assert [p.requires_grad for p in net.parameters()] == [True] * 5 + [False]


def test_weights_are_frozen_inside_the_block_only() -> None:
    net = seeded(ConvNet())
    net.head.bias.requires_grad_(False)
    with frozen_parameters(net):
        assert not any(p.requires_grad for p in net.parameters())
        with frozen_parameters(net):
            pass
        assert not any(p.requires_grad for p in net.parameters())
    assert [p.requires_grad for p in net.parameters()] == [True] * 5 + [False]


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_do_not_depend_on_the_mode_of_the_caller(
    call: Callable[[Score, Tensor], object], mode: Callable[[], torch.no_grad]
) -> None:
    score = Score(seeded(ConvNet()), 0)
    expected = call(score, images())
    with mode():
        found = call(score, images())
        grad_enabled = torch.is_grad_enabled()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not grad_enabled


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_frozen_model_has_the_same_gradients(call: Callable[[Score, Tensor], object]) -> None:
    net = seeded(ConvNet())
    expected = call(Score(net, 0), images())
    found = call(Score(net.requires_grad_(False), 0), images())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_no_graph_is_kept_of_what_lies_before_the_first_layer_read() -> None:
    net, shapes = seeded(ConvNet()), set()

    def pack(tensor: Tensor) -> Tensor:
        shapes.add(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer_gradients(Score(net, 0), images(), ["features.3"])
        assert (4, 4, 6, 6) not in shapes
        layer_gradients(Score(net, 0), images(), ["features.0"])
        assert (4, 4, 6, 6) in shapes


# What has no gradient


class TwoBranches(nn.Module):
    """Class 0 depends on `left` only; `aside` leads nowhere; `cut` is detached."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 1)
        self.right = nn.Linear(4, 1)
        self.aside = nn.Linear(4, 4)
        self.cut = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        return torch.cat([self.left(x), self.right(x), self.cut(x).detach()], 1)


@pytest.mark.parametrize("layers", [["aside"], ["left", "aside"], ["cut"], ["cut", "left"]])
def test_a_layer_that_the_score_does_not_depend_on_is_named(layers: list[str]) -> None:
    net, missing = seeded(TwoBranches()), layers[0] if layers[0] != "left" else layers[1]
    with pytest.raises(ZeroPathError, match=f"does not depend on .*'{missing}'.*no path"):
        layer_gradients(Score(net, 0), torch.ones(1, 4), layers)


def test_a_branch_of_another_class_has_a_zero_gradient_and_no_error() -> None:
    net = seeded(TwoBranches())
    found = layer_gradients(Score(net, 0), torch.ones(1, 4), ["left", "right"])
    assert found["left"][1].item() == 1
    assert found["right"][1].item() == 0


@pytest.mark.parametrize(
    "forward",
    [
        lambda x: torch.ones(len(x), 3),
        lambda x: x.detach().flatten(1),
        lambda x: torch.ones(len(x), 3, requires_grad=True).exp(),
    ],
)
def test_a_score_that_does_not_depend_on_the_input_is_an_error(
    forward: Callable[[Tensor], Tensor],
) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    with pytest.raises(ZeroPathError, match=r"does not depend on \['the input'\]"):
        input_gradient(Score(Constant().eval(), 0), images())


def test_wrong_layers_are_refused_as_in_capture() -> None:
    score = Score(seeded(SharedReluNet()), 0)
    with pytest.raises(LayerNotFoundError, match="'rleu'"):
        layer_gradients(score, torch.ones(1, 4), ["rleu"])
    with pytest.raises(LayerCallError, match="'relu' runs more than once"):
        layer_gradients(score, torch.ones(1, 4), ["relu"])
    assert set(layer_gradients(score, torch.ones(1, 4), ["relu:0", "relu:1"])) == {
        "relu:0",
        "relu:1",
    }


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_training_mode_is_refused(call: Callable[[Score, Tensor], object]) -> None:
    net = seeded(ConvNet())
    net.features[1].train()
    with pytest.raises(ModelModeError, match=r"'features\.1'"):
        call(Score(net, 0), images())


def test_several_scores_share_one_forward_pass() -> None:
    net, calls = seeded(ConvNet()), []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    scores = [Score(net, k, unit=unit) for k in range(3) for unit in ("logit", "probability")]
    with frozen_parameters(net), capture(net, ["features.2", "features"], graph=True) as kept:
        output = net(images())
    found = score_gradients(scores, output, [kept["features.2"], kept["features"]], ["features.2", "features"])
    assert calls == [1]
    for score, (at_conv, at_features) in zip(scores, found, strict=True):
        alone = layer_gradients(score, images(), ["features.2", "features"])
        torch.testing.assert_close(at_conv, alone["features.2"][1])
        torch.testing.assert_close(at_features, alone["features"][1])
