"""What a model returns for an example must hang on that example alone: planted misbehaviours, and models that behave."""

from collections.abc import Callable

import pytest
import torch
from nets import BatchNormNet, images, seeded
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution.gradient import Saliency
from probing.core.content_ids import model_id
from probing.data.examples import TensorExamples
from probing.maximization import Channel, Space, maximize
from probing.models.consistency import InconsistentModelError, refuse_inconsistent
from probing.models.scores import Score
from probing.store.store import ActivationStore

CPU = torch.device("cpu")


class Planted(nn.Module):
    """A small CNN whose features go through something that misbehaves."""

    def __init__(self, odd: nn.Module) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()
        self.odd, self.head = odd, nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.odd(self.relu(self.conv(x))).mean((2, 3)))


class Does(nn.Module):
    """Applies a function to its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Caches(nn.Module):
    """Returns its first answer for ever."""

    answer: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.answer is None:
            self.answer = x + 1
        return self.answer.expand_as(x) if len(self.answer) == 1 else self.answer


class MovingAverage(nn.Module):
    """Centres by a mean that it updates in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(0.1 * x.mean())
        return x - self.mean


class RandomCrop(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        row, column = torch.randint(0, 97, (2,)).tolist()
        return functional.interpolate(x, size=102, mode="bilinear")[:, :, row : row + 3, column : column + 3]


def swaps_in_place(x: Tensor) -> Tensor:
    """Adds the first example of a batch to the others, in the input itself."""
    if len(x) > 1:
        x[1:] += x[:1]
    return x


PLANTED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "batch mean": (lambda: Does(lambda x: x - x.mean(0)), "influence each other"),
    "batch norm without statistics": (
        lambda: nn.BatchNorm2d(4, track_running_stats=False),
        "influence each other",
    ),
    "attention over the batch": (
        lambda: Does(lambda x: functional.softmax(0.01 * x.flatten(1) @ x.flatten(1).T, 1)[:, :1, None, None] * x),
        "influence each other",
    ),
    "the largest of the batch": (lambda: Does(lambda x: x / x.amax()), "influence each other"),
    "rows in another order": (lambda: Does(lambda x: x.flip(0)), "influence each other"),
    "a mutation of the input": (lambda: Does(swaps_in_place), "influence each other"),
    "dropout left on": (lambda: Does(functional.dropout), "hangs on chance"),
    "a dropout layer in training mode by hand": (
        lambda: Does(lambda x: functional.dropout2d(x, 0.5, training=True)),
        "hangs on chance",
    ),
    "noise": (lambda: Does(lambda x: x + 0.1 * torch.randn_like(x)), "hangs on chance"),
    "a random crop": (RandomCrop, "hangs on chance"),
    "a stochastic rectifier": (lambda: Does(lambda x: functional.rrelu(x - 1, training=True)), "hangs on chance"),
    "a counter kept on the module": (Counts, "hangs on earlier calls"),
    "a cache that returns the first answer": (Caches, "hangs on earlier calls"),
    "statistics updated in evaluation mode": (MovingAverage, "hangs on earlier calls"),
}


@pytest.mark.parametrize(("make", "what"), PLANTED.values(), ids=PLANTED)
def test_a_planted_misbehaviour_is_refused_by_name_by_all_that_read_a_model(
    make: Callable[[], nn.Module], what: str
) -> None:
    net, x = seeded(Planted(make())), images(n=3, channels=3, size=6)
    kind = type(net.odd).__name__
    message = rf"(?s)Planted in evaluation mode returns something else.*'odd' \({kind}\).*({what})"
    if what == "influence each other":
        message = rf"(?s)Planted in evaluation mode returns.*'odd' \({kind}\) examples influence"
    before, state = model_id(net), torch.get_rng_state()
    readers: list[Callable[[], object]] = [
        lambda: Saliency()(Score(net, 1), x),
        lambda: ActivationStore().activations(net, ["relu"], TensorExamples(x)),
        lambda: ActivationStore().gradients(Score(net, 1), ["relu"], TensorExamples(x)),
        lambda: maximize(net, Channel("relu", 0), size=6, steps=1, transforms=(), space=Space.plain()),
    ]
    for read in readers:
        with pytest.raises(InconsistentModelError, match=message):
            read()
    assert model_id(net) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_inputs_are_left_as_they_are_by_a_model_that_overwrites_them() -> None:
    net, x = seeded(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(36, 2))), images(size=6)
    before = x.clone()
    refuse_inconsistent(net, x, CPU)
    assert torch.equal(x, before)


class Scores(nn.Module):
    """What a model may return beside a row for each example."""

    def __init__(self, wrap: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.head, self.wrap = nn.Linear(36, 3), wrap

    def forward(self, x: Tensor) -> object:
        return self.wrap(self.head(x.flatten(1)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda y: y,
        lambda y: (y, y.sum()),
        lambda y: {"logits": y, "loss": None, "classes": y.argmax(1)},
        lambda y: [y, torch.ones(1, 4)],
        lambda y: y[None],
        lambda y: (y[:, None].expand(-1, 2, -1).transpose(0, 1), y),
        lambda y: y / 0,
    ],
    ids=[
        "rows",
        "a sum beside",
        "a mapping",
        "a constant beside",
        "another axis",
        "time first",
        "NaN",
    ],
)
def test_a_model_that_behaves_passes_whatever_its_output_looks_like(
    wrap: Callable[[Tensor], object],
) -> None:
    for count in (1, 2, 5):
        refuse_inconsistent(seeded(Scores(wrap)), images(n=count, size=6), CPU)


@pytest.mark.parametrize(
    ("wrap", "x"),
    [
        (lambda y: y.mean(0, keepdim=True), images(size=6)),
        (lambda y: y.flip(0), images(size=6)),
        (lambda y: y - y.mean(), images(n=1, size=6)),
        (lambda y: y[:1].expand_as(y), images(n=1, size=6)),
    ],
    ids=["one row for all", "rows in another order", "one example given", "the first row"],
)
def test_a_batch_that_is_mixed_after_the_last_layer_is_told_of_the_model(
    wrap: Callable[[Tensor], object], x: Tensor
) -> None:
    with pytest.raises(InconsistentModelError, match="the forward of Scores itself examples"):
        refuse_inconsistent(seeded(Scores(wrap)), x, CPU)


def test_a_model_that_takes_no_example_alone_is_refused_and_one_that_takes_only_one_is_not() -> None:
    single = seeded(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(36, track_running_stats=False)))
    with pytest.raises(InconsistentModelError, match=r"takes no example alone .*more than 1 value"):
        refuse_inconsistent(single, images(size=6), CPU)
    fixed = seeded(Does(lambda x: x.view(1, 36).sum(1, keepdim=True)))
    refuse_inconsistent(fixed, images(size=6), CPU)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        refuse_inconsistent(seeded(nn.Linear(5, 2)), images(size=6), CPU)


@pytest.mark.parametrize(
    "part",
    [
        nn.TransformerEncoderLayer(4, 2, 8),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False),
    ],
    ids=["layer", "encoder"],
)
def test_attention_over_the_examples_is_told_how_to_take_them_first(part: nn.Module) -> None:
    net = seeded(nn.Sequential(part, nn.Flatten(), nn.Linear(20, 3)))
    with pytest.raises(InconsistentModelError, match=r"MultiheadAttention.* batch_first=True"):
        refuse_inconsistent(net, torch.randn(2, 5, 4), CPU)


class Last(nn.Module):
    def forward(self, states: tuple[Tensor, object]) -> Tensor:
        return states[0].flatten(1)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_recurrent_layer_over_the_examples_is_told_so_too(kind: type[nn.Module]) -> None:
    x = torch.randn(3, 5, 4)
    refuse_inconsistent(seeded(nn.Sequential(kind(4, 4, batch_first=True), Last())), x, CPU)
    with pytest.raises(InconsistentModelError, match=r"(RNN|LSTM|GRU).* batch_first=True"):
        refuse_inconsistent(seeded(nn.Sequential(kind(4, 4), Last())), x, CPU)


class Tokens(nn.Module):
    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.embedding, self.mix = nn.Embedding(7, 4), mix

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mix(self.embedding(tokens).mean(1))


def test_models_of_tokens_are_checked_too() -> None:
    tokens = torch.tensor([[1, 2, 3]])
    refuse_inconsistent(seeded(Tokens(lambda y: y)), tokens, CPU)
    for same in (tokens, torch.full((2, 3), 4)):
        with pytest.raises(InconsistentModelError, match="examples influence each other"):
            refuse_inconsistent(seeded(Tokens(lambda y: y - y.mean(0))), same, CPU)


PASSED: list[int] = []


class Watched(BatchNormNet):
    """Notes how many examples it is given."""

    def forward(self, x: Tensor) -> Tensor:
        PASSED.append(len(x))
        return super().forward(x)


def test_the_check_costs_three_passes_of_one_example_a_model_and_is_made_once() -> None:
    net, x = seeded(Watched()), images(n=8)
    PASSED.clear()
    refuse_inconsistent(net, x, CPU)
    assert sum(PASSED) == 3
    for _ in range(2):
        refuse_inconsistent(net, x, CPU)
    assert sum(PASSED) == 3
    with torch.no_grad():
        net.head.weight.mul_(2)  # another model
    refuse_inconsistent(net, x, CPU)
    assert sum(PASSED) == 6
