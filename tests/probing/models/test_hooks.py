"""`capture` tells what layers return, `edit` changes outputs only, and both leave no trace."""

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from nets import ConvNet, SharedReluNet, TupleNet, TwoHeadNet, images, seeded
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from probing.core.foreign import ForeignHookError
from probing.data.examples import TensorExamples
from probing.models.hooks import Edit, LayerCallError, capture, edit
from probing.models.layers import LayerNotFoundError
from probing.models.summary import calls, summarize
from probing.store.store import ActivationStore


def refused(message: str) -> AbstractContextManager[object]:
    return pytest.raises(LayerCallError, match=message)


def hooks_of(net: nn.Module) -> int:
    """Count all hooks on a model, those with options too."""
    return sum(
        len(registered)
        for module in net.modules()
        for kind, registered in vars(module).items()
        if "hooks" in kind and "state_dict" not in kind
    )


@contextmanager
def left_as_found(net: nn.Module) -> Iterator[None]:
    """Fail unless a block leaves the model's hooks, mode, weights and gradients as they were."""

    def look() -> dict[str, object]:
        tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        return {
            "modes": [m.training for m in net.modules()],
            "wanted": [t.requires_grad for t in tensors.values()],
            "gradients": [t.grad for t in tensors.values()],
            "values": [t.detach().clone().tolist() for t in tensors.values()],
            "random": torch.get_rng_state().tolist(),
        }

    before = look()
    yield
    assert hooks_of(net) == 0
    assert look() == before


class Pointwise(nn.Module):
    """conv → what `act` does, in place or not → conv → mean."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.act = act
        self.last = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.act(self.conv(x))).mean((2, 3))


def _add_in_place(x: Tensor) -> Tensor:
    x += 1
    return x


def _zero_a_view(x: Tensor) -> Tensor:
    x[:, 0] = 0
    return x


def _without_a_channel(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, 1:]], 1)


IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "module": (nn.ReLU(inplace=True), nn.ReLU()),
    "functional": (lambda x: functional.relu(x, inplace=True), functional.relu),
    "method": (lambda x: x.clamp_(-0.1, 0.1), lambda x: x.clamp(-0.1, 0.1)),
    "augmented assignment": (_add_in_place, lambda x: x + 1),
    "through a view": (_zero_a_view, _without_a_channel),
}


@pytest.mark.parametrize(("inplace", "apart"), IN_PLACE.values(), ids=IN_PLACE)
@pytest.mark.parametrize("graph", [False, True])
def test_an_in_place_operation_behind_a_layer_changes_neither_record_nor_gradient(
    inplace: Callable[[Tensor], Tensor], apart: Callable[[Tensor], Tensor], *, graph: bool
) -> None:
    found = []
    for act in (inplace, apart):
        net = seeded(Pointwise(act))
        with capture(net, ["conv", "last"], graph=graph) as kept:
            output = net(images())
        record = {name: value.detach().clone() for name, value in kept.items()}
        slopes = torch.autograd.grad(output[:, 1].sum(), [kept["conv"]])[0] if graph else output
        found.append((record, slopes, output.detach()))
    (record, slopes, output), (expected, expected_slopes, expected_output) = found
    assert (expected["conv"] < 0).any()
    torch.testing.assert_close(record, expected, rtol=0, atol=0)
    torch.testing.assert_close(slopes, expected_slopes, rtol=0, atol=0)
    torch.testing.assert_close(output, expected_output, rtol=0, atol=0)
    assert hooks_of(net) == 0


def test_an_in_place_layer_records_its_own_output() -> None:
    net = seeded(ConvNet(inplace=True))
    with torch.no_grad(), capture(net, ["features.0", "features.1", "features"]) as kept:
        net(images())
    torch.testing.assert_close(kept["features.1"], kept["features.0"].relu())
    apart = seeded(ConvNet(inplace=False))
    with torch.no_grad():
        torch.testing.assert_close(kept["features"], apart.features(images()))


def test_a_graph_leads_from_each_layer_to_the_score_in_one_pass() -> None:
    net, layers = (
        seeded(ConvNet()),
        ["features.0", "features.1", "features", "features.3", "head", ""],
    )
    with capture(net, layers, graph=True) as kept:
        output = net(images())
    slopes = dict(zip(layers, torch.autograd.grad(output[:, 2].sum(), [kept[n] for n in layers]), strict=True))
    assert torch.equal(slopes["head"], slopes[""])
    assert slopes[""].tolist() == [[0, 0, 1]] * 4
    row = net.head.weight[2][None, :, None, None] / 36
    torch.testing.assert_close(slopes["features.3"], row.expand(4, 5, 6, 6).detach())
    assert torch.equal(slopes["features"], slopes["features.3"])
    masked = slopes["features.1"] * (kept["features.0"] > 0)
    torch.testing.assert_close(slopes["features.0"], masked.detach())


class First(nn.Module):
    """Returns the first of several inputs."""

    def forward(self, inputs: list[Tensor]) -> Tensor:
        return inputs[0]


class Skip(nn.Module):
    """2 · identity(x) + 3 · x: the gradient at `identity` is 2, at the input 5."""

    def __init__(self, identity: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(2, 2)
        self.identity = identity

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if isinstance(self.identity, First):
            return 2 * self.identity(inputs=[x, x]) + 3 * x
        return 2 * self.identity(x) + 3 * x


@pytest.mark.parametrize("identity", [nn.Identity(), nn.Dropout(), nn.Flatten(), nn.Sequential(), First()])
@pytest.mark.parametrize("frozen", [False, True])
def test_the_gradient_at_a_layer_that_hands_on_its_input_is_along_its_own_path(identity: nn.Module, *, frozen: bool) -> None:
    net = seeded(Skip(identity)).requires_grad_(not frozen)
    with capture(net, ["identity", "first"], graph=True) as kept:
        output = net(torch.ones(1, 2))
    at_identity, at_first = torch.autograd.grad(output.sum(), [kept["identity"], kept["first"]])
    assert at_identity.tolist() == [[2, 2]]
    assert at_first.tolist() == [[5, 5]]


class Scribbler(nn.Module):
    """Hands its input to `layer`, then overwrites that input."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        x.mul_(0)
        return y + x


class Buffered(nn.Module):
    """Returns its own buffer, which the surrounding net overwrites."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("state", torch.ones(2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.state


@pytest.mark.parametrize("layer", [nn.Identity(), nn.Flatten(), nn.Dropout().eval()])
@pytest.mark.parametrize("graph", [False, True])
def test_what_is_overwritten_upstream_stays_in_the_record(layer: nn.Module, *, graph: bool) -> None:
    net = Scribbler(layer)
    with capture(net, ["layer"], graph=graph) as kept:
        net(torch.ones(2, 2))
    assert kept["layer"].tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("graph", [False, True])
def test_a_buffer_that_a_layer_returns_is_copied(*, graph: bool) -> None:
    net = Buffered()
    with capture(net, [""], graph=graph) as kept:
        net(torch.ones(2, 2))
    net.state.zero_()
    assert kept[""].tolist() == [[1, 1], [1, 1]]


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "all": lambda out: out,
    "a slice": lambda out: out[:, :1],
    "a transposed view": lambda out: out.transpose(0, 1),
    "a diagonal": lambda out: out.diagonal(dim1=2, dim2=3),
}


@pytest.mark.parametrize("reduce", VIEWS.values(), ids=VIEWS)
def test_a_reduction_that_returns_a_view_is_copied(reduce: Callable[[Tensor], Tensor]) -> None:
    net, apart = seeded(ConvNet(inplace=True)), seeded(ConvNet(inplace=False))
    with torch.no_grad(), capture(net, ["features.0"], reduce=lambda _, out: reduce(out)) as kept:
        net(images())
        expected = reduce(apart.features[0](images()))
    assert torch.equal(kept["features.0"], expected)


def test_a_reduction_that_makes_a_new_tensor_is_kept_without_another_copy() -> None:
    made: list[int] = []

    def mean(layer: str, out: Tensor) -> Tensor:
        value = out.mean((2, 3))
        made.append(value.data_ptr())
        return value

    net = seeded(ConvNet())
    with capture(net, ["features.0"], reduce=mean) as kept:
        net(images())
    assert [kept["features.0"].data_ptr()] == made
    assert not kept["features.0"].requires_grad


def test_a_reduction_of_what_a_graph_is_kept_of_is_refused() -> None:
    net = seeded(ConvNet())
    with (
        pytest.raises(ValueError, match="drop `reduce`"),
        capture(net, ["head"], graph=True, reduce=lambda _, out: out),
    ):
        pass
    assert hooks_of(net) == 0


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_what_is_recorded_can_enter_autograd_whatever_mode_it_was_recorded_in(
    mode: Callable[[], torch.no_grad],
) -> None:
    net = seeded(ConvNet())
    reduces: list[Callable[[str, Tensor], Tensor] | None] = [None, lambda _, out: out.mean((2, 3))]
    for reduce in reduces:
        with mode(), capture(net, ["features.2"], reduce=reduce) as kept:
            net(images())
        weight = torch.ones((), requires_grad=True)
        (kept["features.2"] * weight).sum().backward()
        torch.testing.assert_close(weight.grad, kept["features.2"].sum())


def test_the_first_layer_may_be_fed_by_inference_tensors() -> None:
    with torch.inference_mode():
        x = images()
    net = nn.Sequential(nn.Identity(), nn.Flatten(), seeded(nn.Linear(36, 2)).requires_grad_(False))
    with capture(net, ["0"], graph=True) as kept:
        output = net(x)
    (slope,) = torch.autograd.grad(output[:, 0].sum(), kept["0"])
    torch.testing.assert_close(slope.flatten(1), net[2].weight[:1].expand(4, 36))


# Which calls


def test_all_layers_come_from_one_pass_in_any_order_asked_for() -> None:
    net, calls = seeded(ConvNet()), []
    net.head.register_forward_pre_hook(lambda *_: calls.append(1))
    with capture(net, ["", "head", "features.3", "features.0", "head"]) as kept:
        output = net(images())
    assert calls == [1]
    assert set(kept) == {"", "head", "features.3", "features.0"}
    assert torch.equal(kept[""], output)
    assert torch.equal(kept["head"], output)


def test_a_wrong_second_name_sets_no_hook() -> None:
    net = seeded(ConvNet())
    with (
        pytest.raises(LayerNotFoundError, match=r"'features\.9'"),
        capture(net, ["head", "features.9"]),
    ):
        pass
    edits: dict[str, Edit] = {"head": _keep, "features.9": _keep}
    with pytest.raises(LayerNotFoundError, match=r"'features\.9'"), edit(net, edits):
        pass
    assert hooks_of(net) == 0


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("stop", [False, True])
def test_an_error_inside_the_block_passes_through_and_leaves_no_hook(error: type[BaseException], *, stop: bool) -> None:
    net = seeded(ConvNet())
    with (
        left_as_found(net),
        pytest.raises(error),
        capture(net, ["head"], stop=stop),
        edit(net, {"head": _keep}),
    ):
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("graph", [False, True])
def test_an_error_inside_the_model_passes_through_and_leaves_no_hook(error: type[BaseException], *, graph: bool) -> None:
    def fail(module: nn.Module, before: Tensor, output: Tensor) -> Tensor:
        raise error

    net = seeded(ConvNet())
    with (
        left_as_found(net),
        pytest.raises(error),
        edit(net, {"features.2": fail}),
        capture(net, ["features.0", "head"], graph=graph),
    ):
        net(images())


def test_a_failed_pass_may_be_followed_by_another_in_the_block() -> None:
    net = seeded(ConvNet())
    with torch.no_grad(), capture(net, ["features.0", "head"]) as kept, edit(net, {"head": _keep}):
        with pytest.raises(RuntimeError):
            net(torch.ones(1, 2, 6, 6))
        output = net(images())
    assert torch.equal(kept["head"], output)


@pytest.mark.parametrize("stop", [False, True])
@pytest.mark.parametrize("graph", [False, True])
def test_a_layer_that_runs_twice_is_refused_by_its_plain_name_every_time(*, stop: bool, graph: bool) -> None:
    net = seeded(SharedReluNet())
    for _ in range(3):
        with (
            refused(r"'relu' runs more than once.*'relu:0', 'relu:1'"),
            capture(net, ["relu"], stop=stop, graph=graph),
        ):
            net(torch.ones(2, 4))
        assert hooks_of(net) == 0


@pytest.mark.parametrize("stop", [False, True])
def test_a_layer_that_runs_twice_is_addressed_by_call(*, stop: bool) -> None:
    net, x = seeded(SharedReluNet()), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        first = net.first(x).relu()
        second = net.second(first).relu()
        for _ in range(3):
            with capture(net, ["relu:1", "relu:0"], stop=stop) as kept:
                net(x)
            torch.testing.assert_close(dict(kept), {"relu:0": first, "relu:1": second})


def test_calls_of_one_layer_have_gradients_of_their_own() -> None:
    net, x = seeded(SharedReluNet()), torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    with capture(net, ["relu:0", "relu:1", "second"], graph=True) as kept:
        output = net(x)
    slopes = torch.autograd.grad(output.sum(), list(kept.values()))
    by_name = dict(zip(kept, slopes, strict=True))
    assert torch.equal(by_name["relu:1"], torch.ones(2, 3))
    torch.testing.assert_close(by_name["relu:0"], (by_name["second"] @ net.second.weight).detach())


def test_a_call_beyond_the_last_is_an_error() -> None:
    net = seeded(SharedReluNet())
    for stop in (False, True):
        with (
            refused("'relu:2' did not run.*'relu' has 2 calls"),
            capture(net, ["relu:0", "relu:2"], stop=stop),
        ):
            net(torch.ones(2, 4))


class Loop(nn.Module):
    """Runs `cell` once per time step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, x: Tensor, *, steps: int | None = None) -> Tensor:
        state = torch.zeros(len(x), 2)
        for t in range(steps or x.shape[1]):
            state = self.cell(state + x[:, t])
        return self.head(state)


def test_a_layer_that_ran_once_for_a_short_input_is_refused_for_a_long_one() -> None:
    net = seeded(Loop())
    for _ in range(2):
        with capture(net, ["cell"], stop=True):
            net(torch.ones(1, 1, 2))
    with (
        refused("'cell' runs more than once"),
        capture(net, ["cell"], stop=True),
    ):
        net(torch.ones(1, 3, 2))
    for _ in range(2):
        with capture(net, ["cell"], stop=True):
            net(torch.ones(1, 3, 2), steps=1)
    with (
        refused("'cell' runs more than once"),
        capture(net, ["cell"], stop=True),
    ):
        net(torch.ones(1, 3, 2), steps=2)


def test_a_layer_that_runs_once_in_a_part_is_refused_where_it_runs_twice_in_the_whole() -> None:
    part = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    whole = nn.Sequential(part, part)
    for _ in range(2):
        with capture(part, ["1"], stop=True):
            part(torch.ones(1, 2))
    with (
        refused(r"'0\.1' runs more than once"),
        capture(whole, ["0.1"], stop=True),
    ):
        whole(torch.ones(1, 2))


@pytest.mark.parametrize("path", ["a", "b"])
def test_one_module_under_two_names_counts_its_calls_together(path: str) -> None:
    net = nn.Module()
    net.a = net.b = nn.ReLU()
    net.forward = lambda x: net.b(net.a(x) - 1)
    with refused(f"'{path}' runs more than once"), capture(net, [path]):
        net(torch.ones(1))
    with capture(net, ["a:0", "b:1"]) as kept:
        net(torch.ones(1))
    assert (kept["a:0"].item(), kept["b:1"].item()) == (1, 0)


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(2, 2)
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


@pytest.mark.parametrize("stop", [False, True])
def test_a_layer_that_never_runs_is_an_error(*, stop: bool) -> None:
    net, never = Unused(), r"layers \['unused'\] did not run"
    for _ in range(2):
        with refused(never), capture(net, ["used", "unused"], stop=stop):
            net(torch.ones(1, 2))
    with refused(never), edit(net, {"unused": _keep}):
        net(torch.ones(1, 2))
    assert hooks_of(net) == 0


def test_a_layer_that_ran_in_an_earlier_pass_of_the_block_only_is_an_error() -> None:
    class Sometimes(Unused):
        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) if len(x) > 1 else x

    net = Sometimes()
    with refused(r"\['used'\] did not run"), capture(net, ["used"]) as kept:
        net(torch.ones(2, 2))
        assert set(kept) == {"used"}
        net(torch.ones(1, 2))


def test_a_block_without_a_pass_is_an_error() -> None:
    with (
        refused(r"\['used'\] did not run: no forward pass of this model ran"),
        capture(Unused(), ["used"]),
    ):
        pass


@pytest.mark.parametrize("stop", [False, True])
def test_a_layer_that_returns_no_tensor_is_an_error(*, stop: bool) -> None:
    net = seeded(TupleNet())
    with refused("'split' returns a tuple of 2, expected one"), capture(net, ["split"], stop=stop):
        net(torch.ones(1, 4))
    assert hooks_of(net) == 0


@pytest.mark.parametrize("stop", [False, True])
def test_a_model_that_returns_no_tensor_has_layers_but_no_output(*, stop: bool) -> None:
    net = seeded(TwoHeadNet())
    with capture(net, ["head"], stop=stop) as kept:
        net(torch.ones(1, 4))
    assert kept["head"].shape == (1, 3)
    with refused("layer '' returns a tuple of 2"), capture(net, [""], stop=stop):
        net(torch.ones(1, 4))
    assert hooks_of(net) == 0


def test_a_layer_of_whole_numbers_is_recorded_but_has_no_graph() -> None:
    class Argmax(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.argmax(1)

    net = nn.Sequential(Argmax(), nn.Embedding(3, 2))
    with capture(net, ["0"]) as kept:
        net(torch.eye(3))
    assert kept["0"].tolist() == [0, 1, 2]
    with (
        refused(r"'0' returns torch\.int64, which has no gradient"),
        capture(net, ["0"], graph=True),
    ):
        net(torch.eye(3))


# Stopping


class Counting(nn.Module):
    """Five layers that count their calls."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))
        self.calls = [0] * 5

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            self.calls[i] += 1
            x = layer(x)
        return x


@pytest.mark.parametrize("graph", [False, True])
def test_stop_ends_the_pass_after_the_deepest_layer_asked_for(*, graph: bool) -> None:
    net = seeded(Counting())
    for _ in range(3):
        with capture(net, ["layers.2", "layers.0"], stop=True, graph=graph) as kept:
            net(torch.ones(1, 2))
        assert set(kept) == {"layers.0", "layers.2"}
    assert net.calls == [3, 3, 3, 1, 1]  # the first pass runs to its end, to count calls


def test_stop_ends_the_block_at_the_first_call_in_the_first_pass_and_later() -> None:
    net, reached = seeded(Counting()), []
    for i in range(3):
        with capture(net, ["layers.1"], stop=True):
            net(torch.ones(1, 2))
            reached.append(i)
        reached.append("after")
    assert reached == ["after"] * 3
    assert net.calls == [3, 3, 1, 1, 1]


def test_what_stop_records_is_what_a_whole_pass_records() -> None:
    net = seeded(ConvNet())
    layers = ["features.0", "features.2"]
    with torch.no_grad(), capture(net, layers) as whole:
        net(images())
    for _ in range(2):
        with torch.no_grad(), capture(net, layers, stop=True) as kept:
            net(images())
        torch.testing.assert_close(dict(kept), dict(whole), rtol=0, atol=0)


def test_stop_with_the_models_own_output_runs_everything() -> None:
    net = seeded(Counting())
    for _ in range(2):
        with capture(net, ["layers.0", ""], stop=True) as kept:
            net(torch.ones(1, 2))
        assert set(kept) == {"layers.0", ""}
    assert net.calls == [2] * 5


def test_a_block_holds_its_last_pass() -> None:
    net = seeded(ConvNet())
    batches = [images(seed=1), images(n=2, seed=2), images(n=3, seed=3)]
    with torch.no_grad(), capture(net, ["head"]) as kept:
        for batch in batches:
            output = net(batch)
            assert torch.equal(kept["head"], output)
    assert torch.equal(kept["head"], output)


def test_a_capture_inside_a_capture_stops_only_its_own_block() -> None:
    net = seeded(Counting())
    for _ in range(2):
        with capture(net, ["layers.0"]) as outer:
            with capture(net, ["layers.1"], stop=True) as inner:
                net(torch.ones(1, 2))
            assert set(inner) == {"layers.1"}
            again = net(torch.ones(1, 2))
        assert torch.equal(outer["layers.0"], net.layers[0](torch.ones(1, 2)).detach())
        assert again.shape == (1, 2)
    assert hooks_of(net) == 0


def test_an_outer_block_that_stops_ends_inner_blocks_too() -> None:
    net, reached = seeded(Counting()), []
    for _ in range(2):
        with capture(net, ["layers.0"], stop=True) as outer:
            with capture(net, ["layers.0"]) as inner:
                net(torch.ones(1, 2))
            reached.append("inside the outer block")
        assert set(outer) == {"layers.0"}
        assert set(inner) <= {"layers.0"}
    assert not reached
    assert hooks_of(net) == 0


def test_captures_of_two_models_are_apart() -> None:
    inner, outer = seeded(Counting()), seeded(Counting(), seed=1)
    with capture(outer, ["layers.0"]) as first, capture(inner, ["layers.0"]) as second:
        outer(inner(torch.ones(1, 2)))
    torch.testing.assert_close(second["layers.0"], inner.layers[0](torch.ones(1, 2)).detach())
    torch.testing.assert_close(first["layers.0"], outer.layers[0](inner(torch.ones(1, 2))).detach())


def test_the_model_is_left_as_found() -> None:
    net = seeded(ConvNet())
    net.features.train()
    net.head.weight.requires_grad_(False)
    with left_as_found(net):
        for graph, stop in [(False, False), (False, True), (True, False), (True, True)]:
            with capture(net, ["features.0", "features"], graph=graph, stop=stop):
                net(images())
        with edit(net, {"features.0": _keep}):
            net(images())


def test_hooks_that_were_there_before_stay_and_see_their_calls() -> None:
    net, seen = seeded(ConvNet()), []
    net.head.register_forward_hook(lambda *_: seen.append("head"))
    with capture(net, ["head"]), edit(net, {"head": _keep}):
        net(images())
    assert seen == ["head"]
    assert hooks_of(net) == 1


def test_no_memory_of_a_model_keeps_it_alive() -> None:
    net = seeded(ConvNet())
    with capture(net, ["features.0"], stop=True):
        net(images())
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


# Editing


def _keep(module: nn.Module, before: Tensor, output: Tensor) -> Tensor:
    return output


def test_an_edit_is_what_the_rest_of_the_network_sees() -> None:
    net = seeded(ConvNet(inplace=False))
    with torch.no_grad():
        hidden = net.features[:3](images())
        expected = net.head(net.pool(torch.full_like(hidden, 2.0)).flatten(1))
        with edit(net, {"features.3": lambda m, x, y: torch.full_like(y, 2.0)}):
            output = net(images())
    torch.testing.assert_close(output, expected)


def test_an_edit_gets_the_layer_its_input_and_its_output_also_of_an_in_place_layer() -> None:
    records = []
    for inplace in (True, False):
        net = seeded(ConvNet(inplace=inplace))
        seen: list[tuple[nn.Module, Tensor, Tensor]] = []

        def look(
            module: nn.Module,
            before: Tensor,
            output: Tensor,
            seen: list[tuple[nn.Module, Tensor, Tensor]] = seen,
        ) -> Tensor:
            seen.append((module, before.detach().clone(), output.detach().clone()))
            return output

        with edit(net, {"features.1": look}):
            output = net(images())
        assert seen[0][0] is net.features[1]
        records.append((*seen[0][1:], output.detach()))
    assert (records[0][0] < 0).any()
    torch.testing.assert_close(records[0], records[1], rtol=0, atol=0)


def test_an_edit_of_equal_value_and_other_gradient_changes_the_backward_pass_only() -> None:
    def doubled_gradient(module: nn.Module, before: Tensor, output: Tensor) -> Tensor:
        return 2 * output - output.detach()

    net = seeded(ConvNet()).double()
    x = images().double().requires_grad_()
    plain = net(x)
    (slope,) = torch.autograd.grad(plain.sum(), x)
    with edit(net, {"features.2": doubled_gradient}):
        edited = net(x)
    (edited_slope,) = torch.autograd.grad(edited.sum(), x)
    torch.testing.assert_close(edited, plain)
    torch.testing.assert_close(edited_slope, 2 * slope)


def test_guided_backpropagation_is_an_edit_that_in_place_layers_do_not_disturb() -> None:
    def guided(module: nn.Module, before: Tensor, output: Tensor) -> Tensor:
        passed = before.relu()
        if passed.requires_grad:
            passed.register_hook(lambda gradient: gradient.clamp(min=0))
        return passed

    slopes = []
    for inplace in (True, False):
        net = seeded(ConvNet(inplace=inplace))
        x = images().requires_grad_()
        with edit(net, {"features.1": guided, "features.3": guided}):
            output = net(x)
        slopes.append(torch.autograd.grad(output[:, 0].sum(), x)[0])
    assert torch.equal(slopes[0], slopes[1])
    plain = torch.autograd.grad(net(x)[:, 0].sum(), x)[0]
    assert not torch.allclose(slopes[0], plain)


def test_a_layer_that_runs_twice_is_edited_twice() -> None:
    net, calls = seeded(SharedReluNet()), []

    def note(module: nn.Module, before: Tensor, output: Tensor) -> Tensor:
        calls.append(tuple(output.shape))
        return output

    with edit(net, {"relu": note}):
        net(torch.ones(2, 4))
    assert calls == [(2, 6), (2, 3)]


def test_blocks_run_in_the_order_in_which_they_were_entered() -> None:
    net = seeded(ConvNet())
    zero: Mapping[str, Edit] = {"head": lambda m, x, y: torch.zeros_like(y)}
    with torch.no_grad():
        with edit(net, zero), capture(net, ["head"]) as after:
            assert not net(images()).any()
        with capture(net, ["head"]) as before, edit(net, zero):
            assert not net(images()).any()
    assert not after["head"].any()
    assert before["head"].all()


def test_edits_of_a_layer_are_applied_one_after_the_other() -> None:
    net = nn.Sequential(nn.Identity())
    with edit(net, {"0": lambda m, x, y: y + 1}), edit(net, {"0": lambda m, x, y: y * 10}):
        assert net(torch.ones(1)).item() == 20


@pytest.mark.parametrize("returned", [None, (torch.ones(1),), 3])
def test_an_edit_that_returns_no_tensor_is_an_error(returned: object) -> None:
    net = seeded(ConvNet())
    edits: dict[str, Edit] = {"head": lambda m, x, y: returned}
    with (
        refused(r"the edit of layer 'head' returned (nothing|a tuple of 1|a int)"),
        edit(net, edits),
    ):
        net(images())
    assert hooks_of(net) == 0


def test_an_edit_of_a_layer_that_maps_no_tensor_to_a_tensor_is_an_error() -> None:
    net = seeded(TupleNet())
    with refused("'split' maps a Tensor to a tuple of 2"), edit(net, {"split": _keep}):
        net(torch.ones(1, 4))
    assert hooks_of(net) == 0


def test_a_layer_fed_by_keyword_is_recorded_and_edited() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(input=x)

    net = Keyword()
    with capture(net, ["linear"]) as kept:
        output = net(x=torch.ones(1, 2))
    assert torch.equal(kept["linear"], output.detach())
    with edit(net, {"linear": lambda module, x, y: y + 2 * x}):
        edited = net(torch.ones(1, 2))
    assert torch.equal(edited, output + 2)


def test_an_edit_of_a_layer_that_is_given_no_tensor_is_an_error() -> None:
    class Given(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.table(3)

    net = Given()
    with refused("'table' maps a int to a int.*a tensor given first"), edit(net, {"table": _keep}):
        net(torch.ones(1, 2))


# Compiled models


def test_a_model_compiled_before_is_read_rightly_or_refused() -> None:
    net = seeded(ConvNet(inplace=False))
    expected = net.features[0](images()).detach()
    compiled = torch.compile(net, backend="eager")
    compiled(images())
    for _ in range(2):
        try:
            with capture(compiled, ["_orig_mod.features.0"]) as kept:
                compiled(images())
        except LayerCallError as error:
            assert "compiled" in str(error)  # noqa: PT017  # both outcomes are right
        else:
            torch.testing.assert_close(kept["_orig_mod.features.0"], expected)
        assert hooks_of(net) == 0


def test_the_model_that_was_compiled_is_still_read() -> None:
    net = seeded(ConvNet(inplace=False))
    torch.compile(net, backend="eager")(images())
    with capture(net, ["features.0"]) as kept:
        net(images())
    torch.testing.assert_close(kept["features.0"], net.features[0](images()).detach())


class Encoded(nn.Module):
    """A transformer's encoder, which PyTorch computes by one kernel where it can."""

    def __init__(self, *, batch_first: bool = True) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=batch_first)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        padding = (x == 0).all(2)
        return self.head(self.encoder(x, src_key_padding_mask=padding).mean(1))


def padded() -> Tensor:
    """Return texts of five positions, of which the last two are padding."""
    x = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(0))
    x[:, 3:] = 0
    return x


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_a_layer_returns_does_not_depend_on_which_others_are_read() -> None:
    net, x = seeded(Encoded()), padded()
    with torch.no_grad():
        with capture(net, ["head"]) as alone:  # without a hook inside the encoder
            net(x)
        with capture(net, ["head", "encoder.layers.0.linear1", "encoder"]) as together:
            net(x)
        with edit(net, {"head": lambda layer, before, after: after}):
            edited = net(x)
        fused = net(x)
    assert bool((fused - together["head"]).abs().max() > 1e-3)  # else nothing is tested here
    torch.testing.assert_close(alone["head"], together["head"])
    torch.testing.assert_close(edited, together["head"])
    with capture(net, ["head"], graph=True) as slopes:  # as where gradients are asked for
        net(x)
    torch.testing.assert_close(slopes["head"].detach(), alone["head"])


def test_all_layers_of_an_encoder_are_found_by_a_glob_and_read() -> None:
    net, x = seeded(Encoded()), padded()
    inside = ("linear1", "dropout", "linear2", "norm1", "norm2", "dropout1", "dropout2")
    wanted = {f"encoder.layers.{i}.{name}" for i in range(2) for name in inside}
    found = set(calls(net, x[:1]))
    assert wanted | {"encoder", "encoder.layers.0", "encoder.layers.1", "head"} == found
    runs = {row.path: row.calls for row in summarize(net, x)}
    assert all(runs[path] == 1 for path in found)
    assert set(ActivationStore().activations(net, ["*"], TensorExamples(x))) == found


def test_the_fused_kernels_are_as_before_after_nested_blocks_and_errors() -> None:
    net = seeded(Encoded())
    for before in (True, False):
        torch.backends.mha.set_fastpath_enabled(before)
        try:
            with capture(net, ["head"]):
                with edit(net, {"head": lambda layer, at, after: after}):
                    assert not torch.backends.mha.get_fastpath_enabled()
                    net(padded())
                assert not torch.backends.mha.get_fastpath_enabled()
            assert torch.backends.mha.get_fastpath_enabled() == before
            with pytest.raises(ZeroDivisionError), capture(net, ["head"]):
                1 / 0  # noqa: B018
            assert torch.backends.mha.get_fastpath_enabled() == before
        finally:
            torch.backends.mha.set_fastpath_enabled(True)


class Direct(nn.Module):
    """Calls one layer's forward() itself, computes with another's weights by a function, and calls the last."""

    def __init__(self) -> None:
        super().__init__()
        self.direct, self.function, self.head = (nn.Linear(8, 8) for _ in range(3))
        self.recurrent = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(self.direct.forward(x), self.function.weight)
        return self.head(self.recurrent(x)[0].mean(1))


class Checkpointed(nn.Module):
    """Computes a block's outputs again in the backward pass."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        self.first, self.block = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant).mean(1)


def test_what_hooks_miss_is_named_with_its_reason_and_left_out_of_globs() -> None:
    net, x = seeded(Encoded()), padded()
    attention = "encoder.layers.0.self_attn"
    with refused("out_proj' did not run.*MultiheadAttention never calls it, but computes with its"):
        read(net, f"{attention}.out_proj", x)
    with refused("self_attn' returns a tuple of 2, expected one tensor; name a part, as in '.*self_attn"):
        read(net, attention, x)
    assert not {attention, f"{attention}.out_proj"} & set(calls(net, x[:1]))
    net = seeded(Direct())
    for layer in ("direct", "function"):
        with refused("did not run.*function may compute with their weights.*forward"):
            read(net, layer, x)
    with refused("'recurrent' returns a tuple of 2.*name a part, as in 'recurrent"):
        read(net, "recurrent", x)
    assert list(calls(net, x[:1])) == ["head"]
    assert {row.path: row.calls for row in summarize(net, x)}["direct"] == 0


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpointed_layer_is_read_as_any_other(*, reentrant: bool) -> None:
    net, x = seeded(Checkpointed(reentrant=reentrant)), padded()
    assert list(calls(net, x[:1])) == ["first", "block.0", "block.1", "block"]
    expected = net.block[0](net.first(x))
    torch.testing.assert_close(read(net, "block.0", x), expected.detach())


@pytest.mark.parametrize("layer", ["*", "0"])
def test_a_script_or_a_compiled_module_is_refused_by_name(layer: str) -> None:
    with pytest.warns((DeprecationWarning, FutureWarning), match=r"torch\.jit"):
        script = torch.jit.script(nn.Sequential(nn.Linear(8, 8)))
    for part, reason in ((script, "TorchScript"), (torch.compile(nn.Linear(8, 8)), "compiled")):
        net = nn.Sequential(part, nn.Flatten()).eval()
        with pytest.raises(ForeignHookError, match=reason):
            ActivationStore().activations(net, [layer], TensorExamples(padded()))


def read(net: nn.Module, layer: str, x: Tensor) -> Tensor:
    return ActivationStore().activations(net, [layer], TensorExamples(x))[layer]
