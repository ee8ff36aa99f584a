"""One batch gives every layer's pooled outputs and gradients, or names what is wrong with them."""

import inspect
import math
from collections.abc import Callable

import pytest
import torch
from nets import AsksForTensors, BatchNormNet, ConvNet, SharedReluNet, TupleNet, images, seeded
from torch import Tensor, nn

from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.path import LayerIntegratedGradients
from probing.maximization import Channel, Space, maximize
from probing.models.gradients import ZeroPathError, layer_gradients
from probing.models.hooks import LayerCallError
from probing.models.precision import Precision
from probing.models.runner import NonFiniteError, PoolError, Runner, pooled
from probing.models.scores import Score

CPU = torch.device("cpu")


def runner(net: nn.Module, layers: list[str], kind: str = "reference", example: Tensor | None = None) -> Runner:
    return Runner.of(net, layers, Precision(kind), CPU, images() if example is None else example)


class Head(nn.Module):
    """`body`, then a sum of squares that weighs every position by another number."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        weights = torch.linspace(-1, 2, y[0].numel(), dtype=y.dtype).reshape(y[0].shape)
        value = (weights * y**2 + y).flatten(1).sum(1)
        return torch.stack([value, -value], 1)


class Last(nn.Module):
    """Moves channels last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)


BODIES: dict[str, tuple[nn.Module, str, tuple[int, ...]]] = {
    "maps": (nn.Conv2d(1, 3, 3), "mean", (2, 3)),
    "volumes": (nn.Sequential(nn.Unflatten(2, (2, 3)), nn.Conv3d(1, 3, 2)), "mean", (2, 3, 4)),
    "tokens": (nn.Sequential(nn.Flatten(1, 2), nn.Linear(6, 3)), "mean", (1,)),
    "tokens, last": (nn.Sequential(nn.Flatten(1, 2), nn.Linear(6, 3)), "mean_last", (1,)),
    "maps with channels last": (nn.Sequential(nn.Conv2d(1, 3, 3), Last()), "mean_last", (1, 2)),
}


@pytest.mark.parametrize(("body", "pool", "axes"), BODIES.values(), ids=BODIES)
def test_the_pooled_gradient_is_the_derivative_by_the_mean_when_all_positions_move_alike(
    body: nn.Module, pool: str, axes: tuple[int, ...]
) -> None:
    net, x = seeded(Head(body).double()), images(n=3).double()
    outputs, slopes = runner(net, ["body"]).run(x, ["body"], pool, [Score(net, 0)])
    with torch.no_grad():
        torch.testing.assert_close(outputs["body"], net.body(x).mean(axes))
    assert slopes["body"].shape == (3, 3)
    for unit in range(3):
        values = []
        for step in (1e-5, -1e-5):

            def shift(_: nn.Module, args: object, out: Tensor, step: float = step) -> Tensor:
                moved = out.clone()
                channel = 1 if axes[0] == 2 else out.ndim - 1
                moved.select(channel, unit).add_(step)  # noqa: B023  # called in this round
                return moved

            handle = net.body.register_forward_hook(shift)
            values.append(net(x)[:, 0].detach())
            handle.remove()
        torch.testing.assert_close(slopes["body"][:, unit], (values[0] - values[1]) / 2e-5, rtol=1e-6, atol=1e-6)


def test_an_unpooled_pass_equals_the_model_bit_for_bit() -> None:
    net, layers = seeded(ConvNet(inplace=False)), ["features.0", "features.3", "head", ""]
    [outputs] = runner(net, layers).run(images(), layers, "none")
    with torch.no_grad():
        assert torch.equal(outputs["features.0"], net.features[0](images()))
        assert torch.equal(outputs["features.3"], net.features(images()))
        assert torch.equal(outputs["head"], net(images()))
    assert torch.equal(outputs[""], outputs["head"])
    assert all(value.is_contiguous() and not value.requires_grad for value in outputs.values())


@pytest.mark.parametrize("kind", ["reference", "float32", "float64"])
def test_several_scores_share_a_pass_and_equal_their_own(kind: str) -> None:
    net, layers = seeded(BatchNormNet()), ["conv1", "bn1", "head"]
    scores = [Score(net, 0), Score(net, 2, unit="probability"), Score(net, 1, unit="margin")]
    outputs, *slopes = runner(net, layers, kind).run(images(), layers, "none", scores)
    assert len(slopes) == 3
    for score, found in zip(scores, slopes, strict=True):
        for layer, (activation, slope) in layer_gradients(score, images(), layers).items():
            torch.testing.assert_close(found[layer], slope, check_dtype=False, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(outputs[layer], activation, check_dtype=False, rtol=1e-4, atol=1e-6)
            assert found[layer].dtype == (torch.float64 if kind == "float64" else torch.float32)


def test_scores_share_one_forward_pass_and_outputs_stop_at_the_deepest_layer() -> None:
    calls: list[str] = []

    class Noted(nn.Identity):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: Tensor) -> Tensor:
            calls.append(self.name)
            return x + 1

    net = nn.Sequential(Noted("a"), Noted("b"), nn.Flatten(), Noted("c")).eval()
    made = runner(net, ["1"])
    calls.clear()
    made.run(images(), ["1"], "none", [Score(net, 0), Score(net, 1)])
    assert calls == ["a", "b", "c"]
    calls.clear()
    made.run(images(), ["1"], "none")
    assert calls == ["a", "b"]


def test_rows_are_the_models_own_where_tracing_takes_another_path() -> None:
    net, x = seeded(AsksForTensors()), images()
    score = Score(net, 1)
    outputs, gradients = runner(net, ["relu"], "float32").run(x, ["relu"], "none", [score])
    expected = layer_gradients(score, x, ["relu"])["relu"]
    torch.testing.assert_close(outputs["relu"], expected[0])
    torch.testing.assert_close(gradients["relu"], expected[1])


def test_a_runner_reads_fewer_layers_than_it_was_prepared_for() -> None:
    made = runner(seeded(ConvNet()), ["features.0", "head"], "float32")
    assert set(made.run(images(), ["head"], "none")[0]) == {"head"}
    assert set(made.run(images(), ["features.0"], "mean")[0]) == {"features.0"}


def test_the_inputs_are_left_as_they_are_by_a_model_that_overwrites_them() -> None:
    net = seeded(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 2)))
    x = images()
    for kind in ("reference", "float32", "fast", "float64"):
        made = runner(net, ["2"], kind)
        made.run(x, ["2"], "none")
        made.run(x, ["2"], "none", [Score(net, 0)])
    assert torch.equal(x, images())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_rows_do_not_depend_on_the_mode_of_the_caller(mode: Callable[[], torch.no_grad]) -> None:
    net, layers = seeded(ConvNet()), ["features.0", "features"]
    expected = runner(net, layers).run(images(), layers, "mean", [Score(net, 0)])
    with mode():
        found = runner(net, layers).run(images(), layers, "mean", [Score(net, 0)])
        [alone] = runner(net, layers).run(images(), layers, "mean")
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(alone, expected[0], rtol=0, atol=0)
    assert not any(v.is_inference() or v.requires_grad for rows in (*found, alone) for v in rows.values())


def test_fast_rows_are_pooled_in_float32_and_gradients_are_exact() -> None:
    net = seeded(ConvNet())
    fast, exact = runner(net, ["features"], "fast"), runner(net, ["features"])
    [whole] = fast.run(images(), ["features"], "none")
    assert whole["features"].dtype == torch.bfloat16
    [mean] = fast.run(images(), ["features"], "mean")
    assert mean["features"].dtype == torch.float32
    torch.testing.assert_close(mean["features"], whole["features"].float().mean((2, 3)))
    [expected] = exact.run(images(), ["features"], "mean")
    torch.testing.assert_close(mean, expected, rtol=0.05, atol=0.01)


# Pooling


def test_pooling_leaves_features_without_positions_as_they_are() -> None:
    values = torch.arange(6.0).reshape(2, 3)
    for pool in ("none", "mean", "mean_last"):
        assert torch.equal(pooled(values, pool), values)
        assert torch.equal(pooled(values, pool, total=True), values)
    assert pooled(values.bfloat16(), "mean").dtype == torch.float32
    assert pooled(values.bfloat16(), "none").dtype == torch.bfloat16
    assert pooled(values.double(), "mean").dtype == torch.float64


@pytest.mark.parametrize("shape", [(4,), (2, 1, 1, 1, 1, 1)])
def test_an_output_without_positions_to_pool_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(PoolError, match=r"pool='mean' needs an output with positions.*use pool='none'"):
        pooled(torch.ones(shape), "mean")
    assert pooled(torch.ones(shape), "none").shape == shape


def test_an_unknown_pooling_is_refused_with_those_there_are() -> None:
    with pytest.raises(PoolError, match=r"one of \('none', 'mean', 'mean_last', 'mean_first'\), got 'max'"):
        inspect.unwrap(pooled)(torch.ones(2, 3, 4, 4), "max")  # as without checked annotations


def test_pooled_sums_keep_float32_where_the_model_computes_in_half() -> None:
    values = torch.full((1, 1, 300, 300), 1.0).half()
    assert pooled(values, "mean", total=True).item() == 90_000  # beyond the largest float16


# What can't be served


class Spoiled(nn.Module):
    """Returns infinity or NaN in one row of one layer, or only in its gradient."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.first = nn.Flatten()
        self.second = nn.Identity()
        self.head = nn.Linear(36, 2)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.kind == "gradient":  # sqrt at 0: finite output, infinite slope
            y = torch.cat([y[:2], (y[2:] * 0).sqrt()])
        else:
            y = torch.cat([y[:2], y[2:] * float(self.kind)])
        return self.head(self.second(y))


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("pool", ["none", "mean"])
def test_an_output_that_is_not_finite_is_named_with_its_layer_and_row(kind: str, pool: str) -> None:
    net = seeded(Spoiled(kind))
    with pytest.raises(NonFiniteError, match=r"output of layer 'second' is not finite .* row 2 of the batch"):
        runner(net, ["first", "second"]).run(images(), ["first", "second"], pool)
    runner(net, ["first"]).run(images(), ["first"], pool)


def test_infinities_of_both_signs_do_not_cancel() -> None:
    x = images(n=2)
    x[1, 0, 0, :2] = torch.tensor([math.inf, -math.inf])
    with pytest.raises(NonFiniteError, match="row 1"):
        runner(nn.Sequential(nn.Flatten()).eval(), ["0"]).run(x, ["0"], "none")


def test_a_gradient_that_is_not_finite_is_named() -> None:
    net = seeded(Spoiled("gradient"))
    with pytest.raises(NonFiniteError, match=r"gradient of layer 'first' is not finite .* row 2"):
        runner(net, ["first"]).run(images(), ["first"], "none", [Score(net, 0)])


def test_a_layer_with_one_number_per_example_is_checked_too() -> None:
    class Sum(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1)

    x = images(n=3)
    x[1, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteError, match="row 1"):
        runner(nn.Sequential(Sum()).eval(), ["0"]).run(x, ["0"], "none")


def test_huge_but_finite_outputs_are_served() -> None:
    class Huge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full((len(x), 9), 3e38)  # whose sum is no float32

    [outputs] = runner(nn.Sequential(Huge()).eval(), ["0"]).run(images(), ["0"], "none")
    assert outputs["0"].shape == (4, 9)


def test_layers_that_can_not_be_read_are_refused_as_in_capture() -> None:
    with pytest.raises(LayerCallError, match="'split' returns a tuple"):
        runner(seeded(TupleNet()), ["split"], example=torch.ones(1, 4)).run(torch.ones(1, 4), ["split"], "none")
    for _ in range(2):
        with pytest.raises(LayerCallError, match="'relu' runs more than once"):
            runner(seeded(SharedReluNet()), ["relu"], example=torch.ones(1, 4)).run(torch.ones(1, 4), ["relu"], "none")
    [outputs] = runner(seeded(SharedReluNet()), ["relu:1"], example=torch.ones(1, 4)).run(
        torch.ones(1, 4), ["relu:1"], "none"
    )
    assert outputs["relu:1"].shape == (1, 3)


class Windows(nn.Module):
    """Cuts maps into quarters, which stand in place of the examples for `inside`."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        quarters = x.unfold(2, 3, 3).unfold(3, 3, 3).permute(0, 2, 3, 1, 4, 5).reshape(-1, 1, 3, 3)
        return self.inside(quarters).reshape(len(x), -1)[:, :3]


class TimeFirst(nn.Module):
    """Has one step of time for each example of a batch of six."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x[:, 0].transpose(0, 1)).sum(0)


class Expert(nn.Module):
    """Only some of the examples go through `inside`."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(36, 3)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        chosen = flat[:, 0] > 0
        return torch.zeros(len(x), 3).index_add(0, chosen.nonzero()[:, 0], self.inside(flat[chosen]))


class Table(nn.Module):
    """`inside` returns what all examples share."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] + self.inside(torch.ones(4, 2)).sum(0)


class Total(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside = Sum()

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] + 0 * self.inside(x)


class Sum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.detach().sum()


@pytest.mark.parametrize("kind", [Windows, TimeFirst, Table, Total])
@pytest.mark.parametrize("count", [1, 4, 6])
def test_a_layer_without_a_row_for_each_example_is_refused_also_where_numbers_agree(
    kind: type[nn.Module], count: int
) -> None:
    net, x = seeded(kind()), images(n=count)
    message = "layer 'inside' returns shape .* its first axis is not that of the examples"
    with pytest.raises(LayerCallError, match=message):
        runner(net, ["inside"], example=x)
    assert len(runner(net, [""], example=x).run(x, [""], "none")[0][""]) == count
    if kind is not Total:
        with pytest.raises(LayerCallError, match=message):
            LayerIntegratedGradients("inside")(Score(net, 0), x)
    if kind is Windows:
        with pytest.raises(LayerCallError, match=message):
            GradCAM("inside")(Score(net, 0), x)
        with pytest.raises(LayerCallError, match=message):
            maximize(net, Channel("inside", 0), size=6, steps=1, transforms=(), space=Space.plain())


def test_a_layer_that_some_examples_pass_by_is_refused() -> None:
    net, x = seeded(Expert()), images(n=3)
    x[:, 0, 0, 0] = torch.tensor([1.0, -1.0, 1.0])
    made = runner(net, ["inside"], example=x)
    with pytest.raises(LayerCallError, match=r"returns shape \(2, 3\) for 3 examples"):
        made.run(x, ["inside"], "none")


def test_a_score_that_a_layer_does_not_lead_to_is_refused() -> None:
    class Detached(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach()

    net = nn.Sequential(nn.Flatten(), Detached(), seeded(nn.Linear(36, 2)))
    with pytest.raises(ZeroPathError, match=r"\['0'\]"):
        runner(net.eval(), ["0"]).run(images(), ["0"], "none", [Score(net, 0)])


# Memory


class Hungry(nn.Module):
    """Runs out of memory for more than `room` examples, after it has overwritten its input."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        x.relu_()
        if len(x) > self.room:
            raise torch.OutOfMemoryError
        return x


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_batch_that_memory_has_no_room_for_is_halved(count: int, *, gradients: bool) -> None:
    def net(room: int) -> nn.Module:
        return seeded(nn.Sequential(Hungry(room), *ConvNet().features, nn.Flatten(), nn.Linear(180, 3)))

    x, small, large = images(n=count), net(2), net(100)
    scores = [[Score(n, 0), Score(n, 2)] if gradients else [] for n in (small, large)]
    made = runner(small, ["1", "3"])
    sizes = made.prepared.model[0].sizes
    sizes.clear()
    found = made.run(x, ["1", "3"], "none", scores[0])
    expected = runner(large, ["1", "3"]).run(x, ["1", "3"], "none", scores[1])
    torch.testing.assert_close(found, expected)
    assert sizes[0] == count
    assert max(sizes[1:], default=0) <= max(2, (count + 1) // 2)
    assert torch.equal(x, images(n=count))


def test_one_example_that_memory_has_no_room_for_is_an_error() -> None:
    made = runner(nn.Sequential(Hungry(1), nn.Flatten()).eval(), ["1"])
    hungry = made.prepared.model[0]
    hungry.room = 0
    hungry.sizes.clear()
    with pytest.raises(torch.OutOfMemoryError):
        made.run(images(), ["1"], "none")
    assert hungry.sizes == [4, 2, 1]
    assert not made.prepared.model._forward_hooks
