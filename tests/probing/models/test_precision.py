"""A prepared copy computes what the model does at every layer read, and leaves the model alone."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import AsksForTensors, BatchNormNet, ConvNet, images, seeded
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from probing.core.content_ids import model_id
from probing.core.errors import ArgumentError
from probing.models.gradients import layer_gradients
from probing.models.hooks import capture
from probing.models.layers import LayerNotFoundError
from probing.models.precision import Precision, agree, device_of, fold_batchnorm, frozen_copy
from probing.models.scores import Score

CPU = torch.device("cpu")
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def shaken(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give BatchNorm layers statistics and weights that matter, and set evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for norm in net.modules():
        if isinstance(norm, NORMS) and norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)
            if norm.affine:
                norm.weight.data.uniform_(0.5, 1.5, generator=generator)
                norm.bias.data.normal_(0, 0.3, generator=generator)
    return net.eval()


def gap(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def outputs(net: nn.Module, x: Tensor, layers: list[str]) -> dict[str, Tensor]:
    with torch.no_grad(), capture(net, layers) as kept:
        net(x)
    return dict(kept)


# Real models

MODELS = {
    "resnet18": 20,
    "mobilenet_v3_small": 34,
    "densenet121": 59,  # the other 62 norms follow a concatenation, or are read by several layers
    "efficientnet_b0": 49,
    "tf_efficientnet_lite0": 49,
}
"""Pairs of convolution and norm that can be folded, by model."""

_MADE: dict[str, nn.Module] = {}


def real(name: str) -> nn.Module:
    if name not in _MADE:
        import timm
        import torchvision

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            made = timm.create_model(name) if name[:3] == "tf_" else torchvision.models.get_model(name, weights=None)
        _MADE[name] = shaken(made)
    return _MADE[name]


@pytest.mark.kernels
@pytest.mark.parametrize("name", MODELS)
def test_the_default_equals_the_model_as_given_up_to_rounding(name: str) -> None:
    net, x = real(name), images(n=2, channels=3, size=64)
    before = model_id(net)
    prepared = Precision().prepare(net, [""], CPU, x)
    with torch.no_grad():
        expected = net(x)
        assert gap(prepared.output(x), expected) < 1e-5
        assert torch.equal(Precision("reference").prepare(net, [""], CPU, x).output(x), expected)
    assert prepared.how == f"channels_last, {MODELS[name]} BatchNorm folded"
    assert fold_batchnorm(frozen_copy(net)) == MODELS[name]
    assert model_id(net) == before


def addresses(net: nn.Module, x: Tensor) -> list[str]:
    """Return the address of the first call of every layer that returns a tensor."""
    found: list[str] = []
    handles = [
        module.register_forward_hook(lambda _, a, out, n=name: found.append(f"{n}:0") if isinstance(out, Tensor) else None)
        for name, module in net.named_modules()
        if name
    ]
    net(x)
    for handle in handles:
        handle.remove()
    return list(dict.fromkeys(found))


@pytest.mark.kernels
@pytest.mark.parametrize("name", MODELS)
def test_every_layer_that_is_read_returns_what_it_returned(name: str) -> None:
    """Whole networks in double precision, where only a wrong fold and no rounding can show."""
    net, x = real(name), images(n=1, channels=3, size=32).double()
    wide = frozen_copy(net).double()
    layers = addresses(wide, x)
    expected, folded = outputs(wide, x, layers), []
    generator = torch.Generator().manual_seed(0)
    for share in (0.02, 0.3):
        chosen = [layer for layer in layers if torch.rand((), generator=generator) < share]
        found = frozen_copy(wide)
        folded.append(fold_batchnorm(found, {layer.rpartition(":")[0] for layer in chosen}))
        for layer, value in outputs(found, x, chosen).items():
            assert gap(value, expected[layer]) < 1e-12, layer
    assert MODELS[name] >= folded[0] > folded[1] > 0


@pytest.mark.parametrize("layer", ["conv1", "bn1", "layer1.0", "layer2.0.downsample", "layer2.0.downsample.0", "layer3"])
def test_one_layer_read_of_a_residual_network_costs_at_most_its_own_fold(layer: str) -> None:
    net = frozen_copy(real("resnet18"))
    reads_convolution = isinstance(net.get_submodule(layer), nn.Conv2d)
    assert fold_batchnorm(net, [layer]) == MODELS["resnet18"] - reads_convolution
    x = images(n=1, channels=3, size=32)
    expected = outputs(real("resnet18"), x, [layer])[layer]
    assert gap(outputs(net, x, [layer])[layer], expected) < 1e-5


@pytest.mark.kernels
@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_gradients_of_the_prepared_copy_equal_the_models(name: str) -> None:
    net, x, layers = real(name), images(n=1, channels=3, size=64), ["layer3", "layer4"]
    if name != "resnet18":
        layers = ["blocks.2", "blocks.5"]
    prepared = Precision().prepare(net, layers, CPU, x)
    expected = layer_gradients(Score(net, 5), x, layers)
    found = layer_gradients(Score(prepared.model, 5), prepared.inputs(x), layers)
    for layer in layers:
        assert gap(found[layer][1], expected[layer][1]) < 1e-3


# Which pairs are folded


class Pair(nn.Module):
    """conv → norm inside parts of several depths; what is read decides whether they fold."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(OrderedDict(conv=nn.Conv2d(1, 3, 3)))
        self.tail = nn.Sequential(nn.Sequential(OrderedDict(norm=nn.BatchNorm2d(3))), nn.ReLU())
        self.alias = self.stem

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.stem(x))


@pytest.mark.parametrize(
    ("read", "folded"),
    [
        ([], 1),
        ([""], 1),
        (["tail.0.norm"], 1),
        (["tail.0", "tail", "tail.1", ""], 1),
        (["stem.conv"], 0),
        (["stem"], 0),
        (["alias"], 0),
        (["alias.conv"], 0),
        (["tail", "stem"], 0),
    ],
)
def test_a_pair_is_folded_unless_something_that_ends_between_is_read(read: list[str], folded: int) -> None:
    net = shaken(seeded(Pair()).double())
    expected = outputs(net, images().double(), read)
    copy = frozen_copy(net)
    assert fold_batchnorm(copy, read) == folded
    torch.testing.assert_close(outputs(copy, images().double(), read), expected)
    torch.testing.assert_close(copy(images().double()), net(images().double()))


def test_a_block_that_holds_the_pair_may_be_read() -> None:
    net = shaken(seeded(nn.Sequential(Pair(), nn.Flatten())).double())
    copy = frozen_copy(net)
    assert fold_batchnorm(copy, ["0"]) == 1
    torch.testing.assert_close(outputs(copy, images().double(), ["0"]), outputs(net, images().double(), ["0"]))


def test_an_unknown_layer_is_refused() -> None:
    with pytest.raises(LayerNotFoundError, match=r"'stem\.covn'"):
        Precision().prepare(shaken(Pair()), ["stem.covn"], CPU, images())


def make(forward: Callable[[nn.Module, Tensor], Tensor], **parts: nn.Module) -> nn.Module:
    """Return a module with parts and a forward pass."""

    class Made(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    net = Made()
    for name, part in parts.items():
        net.add_module(name, part)
    return shaken(seeded(net).double())


class Shifted(nn.Conv2d):
    """A convolution that is none."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.weight.mean()


def conv(**options: object) -> nn.Module:
    return nn.Conv2d(1, 4, 3, padding=1, **options)


def plain(net: nn.Module, x: Tensor) -> Tensor:
    return net.norm(net.conv(x))


def _tied() -> nn.Module:
    net = make(
        lambda net, x: net.norm(net.conv(x)) + net.other(x),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
        other=conv(),
    )
    net.other.weight = net.conv.weight
    return net


FOLDED: dict[str, Callable[[], nn.Module]] = {
    "with a bias": lambda: make(plain, conv=conv(), norm=nn.BatchNorm2d(4)),
    "without a bias": lambda: make(plain, conv=conv(bias=False), norm=nn.BatchNorm2d(4)),
    "norm without weights": lambda: make(plain, conv=conv(), norm=nn.BatchNorm2d(4, affine=False)),
    "padded in a circle": lambda: make(plain, conv=conv(padding_mode="circular"), norm=nn.BatchNorm2d(4)),
    "large epsilon": lambda: make(plain, conv=conv(), norm=nn.BatchNorm2d(4, eps=0.5)),
    "in groups": lambda: make(
        lambda net, x: net.norm(net.conv(x.repeat(1, 2, 1, 1))),
        conv=nn.Conv2d(2, 4, 3, groups=2, dilation=2),
        norm=nn.BatchNorm2d(4),
    ),
    "along one axis": lambda: make(
        lambda net, x: net.norm(net.conv(x.flatten(2))),
        conv=nn.Conv1d(1, 4, 3),
        norm=nn.BatchNorm1d(4),
    ),
    "along three axes": lambda: make(
        lambda net, x: net.norm(net.conv(x[:, :, None])),
        conv=nn.Conv3d(1, 4, 1),
        norm=nn.BatchNorm3d(4),
    ),
    "given by keyword": lambda: make(lambda net, x: net.norm(net.conv(input=x)), conv=conv(), norm=nn.BatchNorm2d(4)),
    "the norm read by several": lambda: make(
        lambda net, x: (y := net.norm(net.conv(x))) + y.relu(), conv=conv(), norm=nn.BatchNorm2d(4)
    ),
    "its weights tied to another convolution's": _tied,
}


def _shared_norm() -> nn.Module:
    net = make(lambda net, x: net.second(net.conv(x)), conv=conv(), first=nn.BatchNorm2d(4))
    net.second = net.first  # tracing calls it by its first name, the forward pass by its second
    return net


def _in_training() -> nn.Module:
    net = make(plain, conv=conv(), norm=nn.BatchNorm2d(4, momentum=0.0))
    net.norm.train()
    return net


KEPT: dict[str, Callable[[], nn.Module]] = {
    "the convolution is read elsewhere": lambda: make(
        lambda net, x: net.norm(y := net.conv(x)) + y, conv=conv(), norm=nn.BatchNorm2d(4)
    ),
    "the convolution runs twice": lambda: make(
        lambda net, x: net.norm(net.conv(x)) + net.conv(-x), conv=conv(), norm=nn.BatchNorm2d(4)
    ),
    "the norm runs twice": lambda: make(
        lambda net, x: net.norm(net.conv(x)) + net.norm(x.expand(-1, 4, -1, -1)),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
    ),
    "something lies between": lambda: make(lambda net, x: net.norm(net.conv(x).relu()), conv=conv(), norm=nn.BatchNorm2d(4)),
    "the norm comes first": lambda: make(lambda net, x: net.conv(net.norm(x)), conv=conv(), norm=nn.BatchNorm2d(1)),
    "its weight is used elsewhere": lambda: make(
        lambda net, x: net.norm(net.conv(x)) + functional.conv2d(x, net.conv.weight, padding=1),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
    ),
    "the norm's statistics are used elsewhere": lambda: make(
        lambda net, x: net.norm(net.conv(x)) + net.norm.running_mean.sum(),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
    ),
    "the norm has two names": _shared_norm,
    "no running statistics": lambda: make(plain, conv=conv(), norm=nn.BatchNorm2d(4, track_running_stats=False)),
    "the norm is in training mode": _in_training,
    "another norm": lambda: make(plain, conv=conv(), norm=nn.GroupNorm(2, 4)),
    "another convolution": lambda: make(plain, conv=Shifted(1, 4, 3), norm=nn.BatchNorm2d(4)),
    "a transposed convolution": lambda: make(plain, conv=nn.ConvTranspose2d(1, 4, 3), norm=nn.BatchNorm2d(4)),
    "a parametrized convolution": lambda: make(plain, conv=parametrizations.weight_norm(conv()), norm=nn.BatchNorm2d(4)),
    "a branch on values": lambda: make(
        lambda net, x: net.norm(net.conv(x)) if x.sum() > 0 else net.conv(x),
        conv=conv(),
        norm=nn.BatchNorm2d(4),
    ),
    "a branch on shapes": lambda: make(
        lambda net, x: net.norm(net.conv(x)) if len(x) > 1 else x,
        conv=conv(),
        norm=nn.BatchNorm2d(4),
    ),
}


@pytest.mark.kernels
@pytest.mark.parametrize("build", FOLDED.values(), ids=FOLDED)
def test_a_convolution_and_its_norm_become_one(build: Callable[[], nn.Module]) -> None:
    net = build()
    copy = frozen_copy(net)
    assert fold_batchnorm(copy) == 1
    assert not any(isinstance(m, NORMS) for m in copy.modules())
    torch.testing.assert_close(copy(images().double()), net(images().double()))
    assert not any(p.requires_grad for p in copy.parameters())


@pytest.mark.parametrize("build", KEPT.values(), ids=KEPT)
def test_what_can_not_be_proved_to_be_a_pair_is_kept(build: Callable[[], nn.Module]) -> None:
    net = build()
    copy = frozen_copy(net)
    assert fold_batchnorm(copy) == 0
    for x in (images().double(), -images().double(), images(n=1).double()):
        torch.testing.assert_close(copy(x), net(x), rtol=0, atol=0)


def test_a_copy_that_tracing_led_astray_is_replaced_by_one_with_nothing_folded() -> None:
    net, x = seeded(AsksForTensors()), images()
    copy = frozen_copy(net)
    assert fold_batchnorm(copy) == 1
    assert not torch.allclose(copy(x), net(x), rtol=0.01)
    prepared = Precision().prepare(net, [], CPU, x)
    torch.testing.assert_close(prepared.output(x), net(x))
    assert any(isinstance(m, NORMS) for m in prepared.model.modules())
    assert prepared.how == "as given"


def test_a_proof_draws_no_random_numbers_and_where_there_is_nothing_to_prove_no_pass_is_run() -> None:
    net, state = shaken(seeded(Pair())), torch.get_rng_state()
    assert Precision().prepare(net, [], CPU, images()).how == "channels_last, 1 BatchNorm folded"
    assert torch.equal(torch.get_rng_state(), state)
    asks = seeded(AsksForTensors())
    AsksForTensors.passes = 0
    assert Precision("reference").prepare(asks, [], CPU, images()).how == "as given"
    assert AsksForTensors.passes == 0


def test_inputs_that_the_model_refuses_get_its_own_error() -> None:
    with pytest.raises(RuntimeError, match="to have 1 channels, but got 2 channels"):
        Precision().prepare(shaken(seeded(Pair())), [], CPU, images(channels=2))


# Layouts that a model can't run in, or reads otherwise


class Flattens(nn.Module):
    """A small CNN whose maps become features in one of the ways that people write."""

    def __init__(self, flatten: Callable[[Tensor], Tensor], *, norm: bool = True) -> None:
        super().__init__()
        self.conv, self.flatten = nn.Conv2d(3, 4, 3, padding=1), flatten
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        self.head = nn.Linear(4 * 6 * 6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(torch.relu(self.norm(self.conv(x)))))


FLATTENED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "view to rows": (lambda y: y.view(y.size(0), -1), "1 BatchNorm folded"),
    "view of the batch and channels merged, which one row alone allows": (
        lambda y: y.view(-1, 6, 6).reshape(-1, 144),
        "1 BatchNorm folded",
    ),
    "view as": (lambda y: y.view_as(torch.empty(len(y), 144)), "as given"),
    "strides": (lambda y: y.as_strided((len(y), 144), (144, 1)), "as given"),
    "the layout is asked for": (
        lambda y: y.flatten(1) * (1 if y.is_contiguous() else 2),
        "as given",
    ),
    "flatten": (lambda y: y.flatten(1), "channels_last, 1 BatchNorm folded"),
    "reshape": (lambda y: y.reshape(y.size(0), -1), "channels_last, 1 BatchNorm folded"),
}


@pytest.mark.parametrize(("flatten", "how"), FLATTENED.values(), ids=FLATTENED)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_layout_is_one_that_the_model_runs_in_with_its_own_output(
    flatten: Callable[[Tensor], Tensor], how: str, count: int
) -> None:
    net, x = shaken(seeded(Flattens(flatten))), images(n=count, channels=3, size=6)
    prepared = Precision().prepare(net, [], CPU, x)
    torch.testing.assert_close(prepared.output(x), net(x))
    assert prepared.how == how
    strided = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    torch.testing.assert_close(prepared.output(strided), net(x))
    plain = shaken(seeded(Flattens(flatten, norm=False)))
    assert Precision().prepare(plain, [], CPU, x).how == ("channels_last" if "channels_last" in how else "as given")


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(108, 2)),
        nn.Sequential(nn.Flatten(), nn.LayerNorm(108), nn.Linear(108, 2)),
        nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.Flatten(), nn.Linear(108, 2)),
    ],
    ids=["convolution", "linear", "layer norm", "instance norm"],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", ["float32", "fast", "reference"])
def test_examples_are_brought_to_the_number_format_of_the_model_where_it_takes_no_other(
    net: nn.Module, dtype: torch.dtype, kind: str
) -> None:
    given, x = frozen_copy(seeded(net)).to(dtype), images(n=3, channels=3, size=6)
    prepared = Precision(kind).prepare(given, [], CPU, x)
    expected = given(x.to(dtype)).double()
    found = prepared.output(x)
    assert float((found.double() - expected).abs().max()) <= 8 * torch.finfo(dtype).eps * float(expected.abs().max())
    assert f"examples cast to {str(dtype)[6:]}" in prepared.how
    assert "cast" not in Precision(kind).prepare(given, [], CPU, x.to(dtype)).how


def test_outputs_agree_up_to_rounding_of_their_own_kind() -> None:
    a = torch.tensor([1.0, -200.0])
    assert agree(a, a + 1e-3)
    assert not agree(a, a + 1)
    assert agree(a.half(), a.half() + 1)
    assert agree({"a": (a, [a])}, {"a": (a, [a + 1e-3])})
    assert not agree({"a": (a, [a])}, {"a": (a, [a + 1])})
    assert not agree(a, a[:1])
    assert not agree(a * torch.nan, a)
    assert not agree(a, torch.tensor([1.0, torch.inf]))
    hole = torch.tensor([torch.nan, -200.0])
    assert agree(hole, hole + 1e-3)
    assert not agree(hole, hole + 1)


def test_tracing_leaves_nothing_in_the_model() -> None:
    class Remembers(Pair):
        seen: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.seen is None:
                self.seen = x
            return super().forward(x)

    net = shaken(seeded(Remembers()))
    prepared = Precision().prepare(net, [], CPU, images())
    prepared.output(images())
    assert isinstance(prepared.model.seen, Tensor)
    assert net.seen is None


# Copies


def test_a_prepared_copy_shares_the_weights_it_need_not_change() -> None:
    net = shaken(seeded(BatchNormNet()))
    copy = Precision().prepare(net, [], CPU, images()).model
    assert copy.head.weight.data_ptr() == net.head.weight.data_ptr()
    assert copy.conv1.weight.data_ptr() != net.conv1.weight.data_ptr()
    reference = Precision("reference").prepare(net, [], CPU, images()).model
    for mine, theirs in zip(reference.parameters(), net.parameters(), strict=True):
        assert mine.data_ptr() == theirs.data_ptr()
    for mine, theirs in zip(reference.buffers(), net.buffers(), strict=True):
        assert mine.data_ptr() != theirs.data_ptr()  # a pass may write them


@pytest.mark.parametrize("kind", ["float32", "fast", "reference", "float64"])
def test_the_model_is_untouched_bit_for_bit(kind: str) -> None:
    net = shaken(seeded(BatchNormNet()))
    net.head.weight.grad = torch.ones_like(net.head.weight)
    before, weights = (
        model_id(net),
        {n: (p, p.data_ptr(), p.stride()) for n, p in net.named_parameters()},
    )
    prepared = Precision(kind).prepare(net, ["conv1"], CPU, images())
    prepared.output(images())
    copy = prepared.model
    assert model_id(net) == before
    for name, parameter in net.named_parameters():
        assert (parameter, parameter.data_ptr(), parameter.stride()) == weights[name]
        assert parameter.requires_grad
    assert net.head.weight.grad.eq(1).all()
    assert all(p.grad is None and not p.requires_grad for p in copy.parameters())


def test_moving_or_widening_a_copy_does_not_move_or_widen_the_model() -> None:
    net = shaken(seeded(BatchNormNet()))
    copy = frozen_copy(net).double()
    copy.bn1.running_mean.zero_()
    copy.head.weight.data.zero_()
    assert net.head.weight.dtype == torch.float32
    assert net.head.weight.any()
    assert net.bn1.running_mean.any()


def test_a_copy_keeps_ties_and_modes_and_needs_no_leaves() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)).eval()
    net[1].weight = net[0].weight
    net[0].train()
    net.attention = net[0].weight * 2  # has a graph, as where models remember their attention
    copy = frozen_copy(net)
    assert copy[0].weight is copy[1].weight
    assert [m.training for m in copy.modules()] == [False, True, False]
    assert not copy.attention.requires_grad
    assert torch.equal(copy.attention, net.attention)


def test_a_recurrent_network_is_copied_with_its_flat_weights() -> None:
    net = seeded(nn.LSTM(3, 4, batch_first=True))
    x = images(n=2, size=3).squeeze(1)
    expected = frozen_copy(net).double()(x.double())[0]
    prepared = Precision("float64").prepare(net, [], CPU, x)
    torch.testing.assert_close(prepared.output(x)[0], expected)
    torch.testing.assert_close(expected.float(), net(x)[0])
    copy = frozen_copy(net)
    copy.weight_ih_l0.data = copy.weight_ih_l0 * 2
    assert not torch.equal(copy(x)[0], net(x)[0])


def test_a_model_compiled_in_place_is_copied_uncompiled() -> None:
    net = seeded(ConvNet())
    net.compile(backend="eager")
    copy = Precision("reference").prepare(net, [], CPU, images()).model
    assert copy._compiled_call_impl is None
    with capture(copy, ["features.0"]) as kept:
        copy(images())
    assert kept["features.0"].shape == (4, 4, 6, 6)


def test_a_copy_prepared_in_inference_mode_has_gradients() -> None:
    pairs = (nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    net = shaken(seeded(nn.Sequential(*pairs, nn.Flatten())))
    with torch.inference_mode():
        copy = Precision().prepare(net, ["1"], CPU, images()).model
    found = layer_gradients(Score(copy, 0), images(), ["1"])
    torch.testing.assert_close(found, layer_gradients(Score(net, 0), images(), ["1"]))


# Kinds


def test_an_unknown_kind_is_refused_with_those_there_are() -> None:
    precision = Precision()
    object.__setattr__(precision, "kind", "half")  # as without checked annotations
    with pytest.raises(ValueError, match=r"one of \('float32', .*, got 'half'"):
        precision.__post_init__()


def test_gradients_are_never_computed_in_bfloat16() -> None:
    assert Precision("fast").gradients == Precision("float32")
    for kind in ("float32", "reference", "float64"):
        assert Precision(kind).gradients == Precision(kind)


@pytest.mark.kernels
def test_fast_runs_in_bfloat16_and_is_near_float32() -> None:
    net, fast = shaken(seeded(BatchNormNet())), Precision("fast")
    ready = fast.prepare(net, ["relu"], CPU, images())
    with ready.arithmetic(), torch.no_grad(), capture(ready.model, ["relu"]) as kept:
        ready.model(ready.inputs(images()))
    assert kept["relu"].dtype == torch.bfloat16
    expected = outputs(net, images(), ["relu"])["relu"]
    assert 0 < gap(kept["relu"].float(), expected) < fast.tolerance
    with Precision().arithmetic(CPU):
        assert net(images()).dtype == torch.float32


def test_float32_on_an_accelerator_is_not_rounded_to_tf32_and_switches_are_left_as_found() -> None:
    def switches() -> list[str]:
        cudnn: Any = torch.backends.cudnn
        return [cudnn.conv.fp32_precision, torch.backends.cuda.matmul.fp32_precision]

    cuda, before = torch.device("cuda"), switches()
    assert before[0] == "tf32"  # as torch has it
    with Precision().arithmetic(cuda):
        assert switches() == ["ieee", "ieee"]
    with Precision("tf32").arithmetic(cuda), Precision("tf32").gradients.arithmetic(cuda):
        assert switches() == ["ieee", "ieee"]  # of gradients
    with Precision().arithmetic(cuda), Precision("tf32").arithmetic(cuda):
        assert switches() == ["tf32", "tf32"]
    assert switches() == before
    for precision, device in ((Precision("reference"), cuda), (Precision(), CPU)):
        with precision.arithmetic(device):
            assert switches() == before


def test_tf32_is_refused_where_there_is_none() -> None:
    with pytest.raises(ArgumentError, match=r"tf32 is a format of CUDA devices, which cpu has not: compute in float32\."):
        Precision("tf32").prepare(seeded(BatchNormNet()), [], CPU, images())


def test_float64_computes_in_double_precision_and_folds_nothing() -> None:
    net, wide = shaken(seeded(BatchNormNet())), Precision("float64")
    prepared = wide.prepare(net, [], CPU, images())
    assert isinstance(prepared.model.bn1, nn.BatchNorm2d)
    found = prepared.output(images())
    torch.testing.assert_close(found, frozen_copy(net).double()(images().double()), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["float32", "fast", "reference", "float64"])
def test_inputs_are_copies_in_the_form_that_the_kind_takes(kind: str) -> None:
    net = nn.Conv2d(3, 2, 1)
    prepared = Precision(kind).prepare(net, [], CPU, images(channels=3))
    for batch in (
        images(channels=3),
        images(channels=3).to(memory_format=torch.channels_last),
        images(channels=3, size=1),
    ):
        found = prepared.inputs(batch)
        assert found.data_ptr() != batch.data_ptr()
        assert found.dtype == (torch.float64 if kind == "float64" else torch.float32)
        assert torch.equal(found.float(), batch)
        layout = torch.channels_last if kind in {"float32", "fast"} else torch.contiguous_format
        assert found.is_contiguous(memory_format=layout)
    tokens = torch.arange(6).reshape(2, 3)
    assert prepared.inputs(tokens).dtype == torch.int64
    assert prepared.inputs(tokens).data_ptr() != tokens.data_ptr()


def test_a_three_dimensional_network_is_prepared() -> None:
    net = shaken(seeded(nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2), nn.ReLU())))
    x = images(n=2, size=4)[:, :, None].expand(-1, -1, 3, -1, -1)
    prepared = Precision().prepare(net, [], CPU, x)
    assert isinstance(prepared.model[1], nn.Identity)
    torch.testing.assert_close(prepared.output(x), net(x))


def test_the_device_of_a_model_is_that_of_its_tensors() -> None:
    assert device_of(ConvNet()) == CPU
    assert device_of(nn.Linear(2, 2, device="meta")) == torch.device("meta")
    assert device_of(nn.ReLU()) == CPU
