"""What is read of a text does not depend on its padding, or is refused."""

from collections.abc import Callable

import nets
import pytest
import torch
from torch import Tensor, nn

from concepts.data.concept_sets import Concept
from concepts.tcav.tcav import Tcav
from probing.atlas import Atlas, Pca
from probing.data.examples import TensorExamples
from probing.models.hooks import MaskError
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.probes import LayerProbes, RidgeProbe
from probing.store.store import ActivationStore

DOUBLE = Precision("float64")
IDS = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
LENGTHS = (6, 4, 2, 5)


def texts(width: int, *, left: bool = False) -> Tensor:
    """Return four texts of different lengths, padded by 0 to a width."""
    found = torch.zeros(4, width, dtype=torch.long)
    for i, length in enumerate(LENGTHS):
        where = slice(width - length, width) if left else slice(length)
        found[i, where] = IDS[i, :length]
    return found


class Attention(nn.Module):
    """Lets every token look at those that are read."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        scores = self.masked(x @ x.mT, attention_mask[:, None, :])
        return x + self.mix(scores.softmax(2) @ x).tanh()

    def masked(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores.masked_fill(~mask.bool(), -torch.inf)


class AddedTo(Attention):
    """Adds its mask to the scores."""

    def masked(self, scores: Tensor, mask: Tensor) -> Tensor:
        return scores + mask


class Reader(nn.Module):
    """Reads token ids, with 0 for padding, whose mask it makes itself and hands on to its blocks."""

    def __init__(self, block: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.first, self.second = block(), block()
        self.head = nn.Linear(8, 3)

    def mask(self, ids: Tensor) -> Tensor:
        return (ids != 0).long()

    def call(self, block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return block(x, attention_mask=mask)

    def forward(self, ids: Tensor) -> Tensor:
        mask = self.mask(ids)
        x = self.call(self.second, self.call(self.first, self.embed(ids), mask), mask)
        read = (ids != 0).to(x)[:, :, None]
        return self.head((x * read).sum(1) / read.sum(1))


class ByPosition(Reader):
    """Gives its mask by position, as truth values."""

    def mask(self, ids: Tensor) -> Tensor:
        return ids != 0

    def call(self, block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return block(x, mask)


class Additive(Reader):
    """Gives what is added to attention's scores."""

    def mask(self, ids: Tensor) -> Tensor:
        return torch.zeros(ids.shape, dtype=torch.double).masked_fill(ids == 0, -torch.inf)


class Encoder(Reader):
    """PyTorch's encoder, whose mask is True for padding."""

    def call(self, block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return block(x, src_key_padding_mask=mask == 0)


def encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1, enable_nested_tensor=False)


class Attended(Reader):
    """PyTorch's attention, whose mask is True for padding, and given by position."""

    def call(self, block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return x + block(x, x, x, mask == 0)[0]


class Added(nn.Module):
    """Gives a residual sum a name."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor, y: Tensor, z: Tensor, key_padding_mask: Tensor) -> tuple[Tensor]:
        return (self.inner(x, y, z, key_padding_mask)[0],)


KINDS: dict[str, Callable[[], Reader]] = {
    "ones for tokens": lambda: Reader(Attention),
    "by position": lambda: ByPosition(Attention),
    "additive": lambda: Additive(AddedTo),
    "PyTorch's encoder": lambda: Encoder(encoder),
    "PyTorch's attention": lambda: Attended(Added),
}


def rows(net: nn.Module, ids: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Return the means over tokens of a layer and of a score's gradient there."""
    store, examples = ActivationStore(precision=DOUBLE), TensorExamples(ids)
    means = store.activations(net, [layer], examples, pool="mean")[layer]
    return means, store.gradients(Score(net, 1), [layer], examples, pool="mean")[layer]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("left", [False, True], ids=["right", "left"])
def test_means_over_tokens_do_not_depend_on_padding(kind: str, *, left: bool) -> None:
    net = nets.seeded(KINDS[kind]()).double()
    layer = "embed" if kind == "PyTorch's attention" else "first"
    torch.testing.assert_close(net(texts(6, left=left)), net(texts(9, left=left)))  # as the model
    found, slopes = rows(net, texts(6, left=left), layer)
    for width in (7, 12):
        wider, their_slopes = rows(net, texts(width, left=left), layer)
        torch.testing.assert_close(wider, found)
        torch.testing.assert_close(their_slopes, slopes)
    for i, length in enumerate(LENGTHS):  # alone, without any padding
        alone, slope = rows(net, IDS[i : i + 1, :length], layer)
        torch.testing.assert_close(alone[0], found[i])
        torch.testing.assert_close(slope[0], slopes[i])


def test_rows_of_single_tokens_stay_as_they_are() -> None:
    net = nets.seeded(Reader(Attention)).double()
    store = ActivationStore(precision=DOUBLE)
    found = store.activations(net, ["first"], TensorExamples(texts(9)))["first"]
    assert found.shape == (4, 9, 8)
    means = torch.stack([found[i, :length].mean(0) for i, length in enumerate(LENGTHS)])
    torch.testing.assert_close(rows(net, texts(9), "first")[0], means)


def test_analyses_of_texts_do_not_depend_on_padding() -> None:
    net = nets.seeded(Reader(Attention)).double()
    ids = torch.randint(1, 20, (30, 5), generator=torch.Generator().manual_seed(1))
    ids[::2, 3:] = 0
    labels = [i % 3 % 2 for i in range(30)]

    def measured(width: int) -> list[Tensor]:
        store = ActivationStore(precision=DOUBLE)
        wide = torch.nn.functional.pad(ids, (0, width - 5))
        examples = TensorExamples(wide)
        probes = LayerProbes(
            "first", RidgeProbe((1.0,)), inputs=False, untrained=False, controls=0, description_length=False
        )
        atlas = Atlas("first", Pca(), least=1)(store, net, examples)
        tcav = Tcav(null=None, runs=2, relabellings=9)(
            store,
            {"one": Score(net, 1)},
            ["first"],
            [Concept("c", TensorExamples(wide[:10]))],
            TensorExamples(wide[10:20]),
            TensorExamples(wide[20:]),
        )
        return [probes(store, net, examples, labels).error, atlas.means, tcav.accuracy, tcav.effect]

    torch.testing.assert_close(measured(5), measured(9), equal_nan=True)


class Unnamed(nn.Module):
    """Takes a mask of which it is not known what it marks."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor, token_mask: Tensor) -> Tensor:
        return self.mix(x) * token_mask[:, :, None]


class UnnamedReader(Reader):
    def call(self, block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return block(x, mask)


class Prefixed(Reader):
    """Sets two tokens before the text inside its blocks."""

    def call(self, block: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        before = x.new_ones(len(x), 2, 8)
        wide = torch.nn.functional.pad(mask, (2, 0), value=1)
        return self.widened(torch.cat([before, x], 1), block, wide)

    def widened(self, x: Tensor, block: nn.Module, mask: Tensor) -> Tensor:
        return block(x, attention_mask=mask)[:, 2:]


class Differing(Reader):
    """Gives its second block another mask than its first."""

    def forward(self, ids: Tensor) -> Tensor:
        x = self.first(self.embed(ids), attention_mask=(ids != 0).long())
        return self.head(self.second(x, attention_mask=(ids > 3).long()).mean(1))


@pytest.mark.parametrize(
    ("make", "layer", "reason"),
    [
        (lambda: UnnamedReader(Unnamed), "first", "named 'token_mask', which does not tell"),
        (lambda: Prefixed(Attention), "embed", r"'attention_mask' of shape \(4, 9\).*tokens are 7"),
        (lambda: Differing(Attention), "second", "several masks of that shape differ"),
    ],
    ids=["no known name", "another number of tokens", "two masks"],
)
def test_padding_that_cannot_be_told_is_refused(make: Callable[[], Reader], layer: str, reason: str) -> None:
    net, examples = nets.seeded(make()).double(), TensorExamples(texts(7))
    store = ActivationStore(precision=DOUBLE)
    with pytest.raises(MaskError, match=reason):
        store.activations(net, [layer], examples, pool="mean")
    assert store.activations(net, [layer], examples)[layer].shape[:2] in {(4, 7), (4, 9)}
    whole = TensorExamples(IDS.clamp(min=4))  # texts without padding are as ever
    assert store.activations(net, [layer], whole, pool="mean")[layer].shape == (4, 8)


def test_where_a_model_is_told_of_no_padding_all_positions_count() -> None:
    net = nets.seeded(nn.Sequential(nn.Embedding(20, 8), nn.Linear(8, 3))).double()
    store = ActivationStore(precision=DOUBLE)
    found = store.activations(net, ["0"], TensorExamples(texts(9)), pool="mean")["0"]
    torch.testing.assert_close(found, net[0](texts(9)).mean(1))
