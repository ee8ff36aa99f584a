"""A copy that serves as a control computes by its own weights, or is refused by the name of what it shares."""

import copy
import functools
from collections.abc import Callable
from dataclasses import replace

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution.gradient import Saliency
from probing.data.examples import TensorExamples
from probing.evaluation.randomisation import CascadingRandomisation, IndependentRandomisation
from probing.models.copies import SharedWeightsError, prove_own_weights
from probing.models.scores import Score
from probing.probes import LayerProbes, untrained_copy
from probing.store.store import ActivationStore


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class LambdaOverSelf(Body):
    def __init__(self) -> None:
        super().__init__()
        self.post = lambda x: self.net(x)  # noqa: PLW0108 (the very case)

    def forward(self, x: Tensor) -> Tensor:
        return self.post(x)


class OnlyItsHead(Body):
    """The copy's body is its own, and its outputs are others than the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        self.steps = {"head": [lambda x: self.head(x)]}  # noqa: PLW0108 (the very case)

    def forward(self, x: Tensor) -> Tensor:
        return self.steps["head"][0](self.net(x))


class LayersInAClosure(Body):
    def __init__(self) -> None:
        super().__init__()
        layers = [nn.Linear(3, 3), nn.Linear(3, 3)]

        def run(x: Tensor) -> Tensor:
            for layer in layers:
                x = layer(x)
            return x

        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.net(x))


class PartialOfALambda(Body):
    def __init__(self) -> None:
        super().__init__()
        self.post = functools.partial(lambda x, scale: scale * self.net(x), scale=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.post(x)


class DefaultArgument(Body):
    def __init__(self) -> None:
        super().__init__()
        self.post = lambda x, net=self.net: net(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.post(x)


MIXING, HEAD = nn.Parameter(torch.eye(3)), nn.Linear(3, 3)


class WeightInAGlobal(Body):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) @ MIXING


class LayerInAGlobal(Body):
    def forward(self, x: Tensor) -> Tensor:
        return HEAD(self.net(x))


class WeightNoParameter(Body):
    def __init__(self) -> None:
        super().__init__()
        self.mixing = torch.eye(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) @ self.mixing


class FirstAnswer(Body):
    answer: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.answer is None:
            self.answer = self.net(x).detach()
        return self.answer[: len(x)]


class BoundMethod(Body):
    def __init__(self) -> None:
        super().__init__()
        self.post = self.inner

    def inner(self, x: Tensor) -> Tensor:
        return self.net(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.post(x)


class PartialOfAMethod(BoundMethod):
    def __init__(self) -> None:
        super().__init__()
        self.post = functools.partial(self.inner)


SHIFT = torch.tensor([0.5])


class Constants(Body):
    """Constants that are no weights: in a global, a closure, a buffer, an attribute and made on the way."""

    def __init__(self) -> None:
        super().__init__()
        mean = torch.full((1, 1, 1), 0.2)
        self.normalise = lambda x: (x - mean) * torch.tensor(2.0)
        self.register_buffer("basis", torch.eye(3))
        self.scale, self.m = torch.tensor([1.0, 2.0, 3.0]), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.m(self.net(self.normalise(x) + SHIFT) @ self.basis * self.scale) @ torch.eye(3)


OF_THE_MODEL = "of the model itself"
SHARED: dict[type[Body], str] = {
    LambdaOverSelf: OF_THE_MODEL,
    OnlyItsHead: OF_THE_MODEL,
    PartialOfALambda: OF_THE_MODEL,
    DefaultArgument: OF_THE_MODEL,
    LayersInAClosure: r"weight of shape \(3, 3\) that is no parameter",
    WeightInAGlobal: r"weight of shape \(3, 3\) that is no parameter",
    LayerInAGlobal: r"weight of shape \(3, 3\) that is no parameter",
    WeightNoParameter: r"weight of shape \(3, 3\) that is no parameter",
    FirstAnswer: "without reading any of its weights",
}
"""Of what copies share, how it is said."""
# What can't be seen without a pass: a plain attribute may hold anything.
ONLY_IN_A_PASS = {WeightNoParameter, FirstAnswer}
X = nets.images(4)


def made(kind: Callable[[], Body]) -> nn.Module:
    model = nets.seeded(kind()).eval()
    with torch.no_grad():
        model(X)
    return model


@pytest.mark.parametrize("kind", SHARED)
def test_a_copy_that_shares_weights_is_no_control(kind: type[Body]) -> None:
    model = made(kind)
    with pytest.raises(SharedWeightsError, match=SHARED[kind]):
        untrained_copy(model, example=X[:1])
    if kind not in ONLY_IN_A_PASS:
        with pytest.raises(SharedWeightsError, match="that copies of the model share"):
            untrained_copy(model)
    for metric in (CascadingRandomisation(seeds=1), IndependentRandomisation(seeds=1)):
        with pytest.raises(SharedWeightsError, match=SHARED[kind]):
            metric(Saliency(), Score(model, 1), X)


@pytest.mark.parametrize("kind", [Body, BoundMethod, PartialOfAMethod, Constants])
def test_a_copy_of_its_own_is_really_untrained(kind: type[Body]) -> None:
    model = made(kind)
    with torch.no_grad():  # what it says of any input, if it is the trained one
        model.net[4].weight.zero_()
        model.net[4].bias.fill_(7.0)
        for bare in (untrained_copy(model), untrained_copy(model, example=X[:1])):
            assert (bare(X) - model(X)).abs().min() > 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_examples_are_cast_to_what_the_control_takes(dtype: torch.dtype) -> None:
    model, examples = made(Body).to(dtype), TensorExamples(nets.images(24))
    probes = LayerProbes(("net.4",), controls=0, description_length=False)
    found = probes(ActivationStore(), model, examples, [0, 1] * 12)
    assert found.untrained_error.isfinite().all()
    with pytest.raises(SharedWeightsError, match=OF_THE_MODEL):
        untrained_copy(made(OnlyItsHead).to(dtype), example=X[:1])


def test_what_is_shared_is_named_with_the_way_out() -> None:
    model = made(OnlyItsHead)
    with pytest.raises(SharedWeightsError, match=r"'head\.weight' of the model itself.*make that a method"):
        prove_own_weights(copy.deepcopy(model), model, X[:1])
    with pytest.raises(SharedWeightsError, match=r"'steps' of OnlyItsHead holds on to a OnlyItsHead"):
        untrained_copy(model)


def test_probes_of_a_model_whose_copies_share_weights_can_do_without_the_control() -> None:
    model, examples = made(OnlyItsHead), TensorExamples(nets.images(24))
    probes, labels = LayerProbes(("net.4",), controls=0, description_length=False), [0, 1] * 12
    with pytest.raises(SharedWeightsError, match=r", or leave that control out by untrained=False"):
        probes(ActivationStore(), model, examples, labels)
    found = replace(probes, untrained=False)(ActivationStore(), model, examples, labels)
    assert found.untrained_error.isnan().all()
