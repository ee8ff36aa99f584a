"""What may be hidden of an example: its parts, and what the example looks like when only some of them are kept."""

from dataclasses import dataclass
from typing import Protocol, TypeVar, cast, runtime_checkable
from unicodedata import normalize

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.attribution.baselines import Baseline
from probing.core.doubles import near
from probing.core.errors import Mend
from probing.core.inputs import InputError
from probing.data.texts import Span, Tokeniser, TokeniserError, matches, same_word, words

Variants_co = TypeVar("Variants_co", covariant=True)


@runtime_checkable
class Parts(Protocol[Variants_co]):
    """An example cut into parts numbered from 0 to `count - 1`, each of which can be hidden."""

    @property
    def count(self) -> int:
        """How many parts there are."""
        ...

    @property
    def labels(self) -> Int[Tensor, "*places"]:
        """Which part each place of the example belongs to: a pixel of an image, a word of a text."""
        ...

    def render(self, kept: Bool[Tensor, "k parts"]) -> Variants_co:
        """Return the example k times, each with the parts hidden that are not kept."""
        ...


@dataclass(frozen=True, eq=False)
class TensorParts:
    """Parts of a tensor; hidden ones show another tensor instead. Make them with `TensorParts.of`.

    Attributes:
        example: what is cut.
        hidden: what shows where a part is hidden.
        labels: the part of each value, -1 for what is always shown; an axis of size one stands for all of that axis,
            such as channels.
        count: number of parts.
        flat: parts whose own mean hides nothing, since they have one colour: something else stands there.
        unhidden: parts that look the same when hidden.
    """

    example: Float[Tensor, "*shape"]
    hidden: Float[Tensor, "*shape"]
    labels: Int[Tensor, "*places"]
    count: int
    flat: int = 0
    unhidden: int = 0

    @classmethod
    def of(
        cls,
        example: Float[Tensor, "*shape"],
        labels: Int[Tensor, "*places"],
        hidden: "PartMean | Float[Tensor, '*shape']",
        whole: Bool[Tensor, "*places"] | None = None,
    ) -> "TensorParts":
        """Cut an example by a map of labels, which may be any whole numbers: they are renumbered.

        Args:
            example: what is cut.
            labels: the part of each value.
            hidden: what shows where a part is hidden.
            whole: places that no part holds, such as padding: they always show the example.

        Raises:
            InputError: for labels of another size, or if hiding any part would change nothing.
        """
        if _does_not_fit(labels, example):
            raise InputError(
                f"labels of shape {tuple(labels.shape)} don't fit an input of shape "
                f"{tuple(example.shape)}: give one label for each pixel, or each value."
            )
        if whole is not None:
            return cls._beside(example, labels, hidden, whole)
        labels = contiguous(labels).to(example.device)
        flat = 0
        if isinstance(hidden, PartMean):
            own = hidden.means(example, labels)
            same = _unchanged(example, own, labels)
            flat, filling = int(same.sum()), _elsewhere(example, own, same[labels])
        else:
            filling = hidden
        count = int(labels.max()) + 1
        unhidden = int(_unchanged(example, filling, labels).sum())
        if unhidden == count:
            raise InputError(
                "every part looks the same when it is hidden, so hiding changes nothing:",
                mends=[Mend("give a colour that the input has not", "hidden=…")],
            )
        return cls(example, filling, labels, count, flat, unhidden)

    @classmethod
    def _beside(cls, example: Tensor, labels: Tensor, hidden: "PartMean | Tensor", whole: Tensor) -> "TensorParts":
        """Cut what stands beside places that are always shown, all along their first axis."""
        rows = ~whole.reshape(len(example), -1).all(1)
        if labels.shape != example.shape or not bool((whole.reshape(len(example), -1).any(1) == ~rows).all()):
            raise InputError("padding can be left out only where each token is a part as a whole: give parts=EachToken().")
        inner = cls.of(example[rows], labels[rows], hidden if isinstance(hidden, PartMean) else hidden[rows])
        filling, numbers = example.clone(), torch.full_like(labels, -1)
        filling[rows], numbers[rows] = inner.hidden, inner.labels
        return cls(example, filling, numbers, inner.count, inner.flat, inner.unhidden)

    def render(self, kept: Bool[Tensor, "k parts"]) -> Float[Tensor, "k *shape"]:
        """Return k variants, gathered on the example's device: kept values are exactly the example's."""
        places = self.labels.flatten().expand(len(kept), -1)
        shown = kept.to(places.device).gather(1, places.clamp(min=0))  # four times as fast as indexing
        shown |= places < 0
        return torch.where(shown.reshape(len(kept), *self.labels.shape), self.example, self.hidden)

    def blend(self, shares: Float[Tensor, "k parts"]) -> Float[Tensor, "k *shape"]:
        """Return k variants in which each part shows so much of the example (1: all), and of what hides it the rest."""
        places = self.labels.flatten().expand(len(shares), -1)
        shown = shares.to(self.example).gather(1, places.clamp(min=0)).masked_fill(places < 0, 1)
        return torch.lerp(self.hidden, self.example, shown.reshape(len(shares), *self.labels.shape))

    def spread(self, values: Float[Tensor, " parts"]) -> Float[Tensor, "*shape"]:
        """Return a tensor of the example's shape that holds each part's value all over the part."""
        place = near(self.labels.device)  # values are float64
        labels = self.labels.to(place)
        return torch.where(labels < 0, 0, values.to(place)[labels.clamp(min=0)]).expand(self.example.shape)


@dataclass(frozen=True)
class PartMean:
    """A hidden part shows its mean, of each channel by itself.

    A part of one colour equals its own mean, up to rounding: it shows the example's mean instead, or, where it equals
    that too, the example's lowest or highest value of each channel, whichever is farther.
    """

    def means(self, example: Float[Tensor, "*shape"], labels: Int[Tensor, "*places"]) -> Float[Tensor, "*shape"]:
        """Return the example with each part replaced by its own mean, which for a part of one colour is itself.

        Raises:
            InputError: if each value is a part of its own, and so its own mean.
        """
        flat, places = labels.flatten().cpu(), example.numel() // labels.numel()
        sizes = torch.bincount(flat)
        if len(sizes) == len(flat):
            raise InputError(
                "every part is a single place, which equals its mean, so hiding it changes nothing: "
                "give another `hidden`, such as Constant()."
            )
        # On the CPU, where the order of additions is always the same.
        values = example.cpu().double().reshape(places, -1)
        means = torch.zeros(places, len(sizes), dtype=torch.float64)
        means = means.index_add_(1, flat, values) / sizes
        return means[:, flat].reshape(example.shape).to(example)

    def fill(self, example: Float[Tensor, "*shape"], labels: Int[Tensor, "*places"]) -> Float[Tensor, "*shape"]:
        """Return what shows where parts are hidden.

        Raises:
            InputError: if each value is a part of its own, and so its own mean.
        """
        own = self.means(example, labels)
        return _elsewhere(example, own, _unchanged(example, own, labels)[labels])


Hidden = PartMean | Baseline
"""What shows where a part is hidden; baselines of one draw only."""


def fillings(hidden: Hidden, inputs: Float[Tensor, "n *shape"]) -> list[PartMean] | Float[Tensor, "n *shape"]:
    """Return what shows where parts of each input are hidden.

    Raises:
        InputError: for a baseline of several draws.
    """
    if isinstance(hidden, PartMean):
        return [hidden] * len(inputs)
    draws = hidden(inputs)
    if len(draws) != 1:
        raise InputError(
            f"hidden parts can show one thing only, and {type(hidden).__name__} gives {len(draws)}: ask it for one draw."
        )
    return draws[0].contiguous()


@dataclass(frozen=True, eq=False)
class TextParts:
    """Parts of a text; a hidden word is replaced, and what stands between words always stays.

    Attributes:
        text: what is cut.
        names: each part's word.
        labels: the part of each word, in the order of the text.
        between: the text before the first word, between words, and after the last.
        words: the words in the order of the text.
        mask: stands for a hidden word.
    """

    text: str
    names: tuple[str, ...]
    labels: Int[Tensor, " words"]
    between: tuple[str, ...]
    words: tuple[str, ...]
    mask: str

    @property
    def count(self) -> int:
        """Number of parts."""
        return len(self.names)

    @property
    def spans(self) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Where each part's words begin and end in the text."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.names]
        start = 0
        for gap, word, label in zip(self.between[:-1], self.words, self.labels, strict=True):
            start += len(gap)
            found[int(label)].append((start, start + len(word)))
            start += len(word)
        return tuple(tuple(part) for part in found)

    def render(self, kept: Bool[Tensor, "k parts"]) -> list[str]:
        """Return k variants of the text."""
        shown = kept.cpu()[:, self.labels].tolist()
        return [self._join(row) for row in shown]

    def _join(self, shown: list[bool]) -> str:
        words = (w if keep else self.mask for w, keep in zip(self.words, shown, strict=True))
        pairs = zip(self.between[:-1], words, strict=True)
        return "".join(piece for pair in pairs for piece in pair) + self.between[-1]


@runtime_checkable
class Tokens(Protocol):
    """A frozen dataclass that cuts a text into parts."""

    def __call__(self, text: str) -> TextParts:
        """Return the parts of a text."""
        ...


@dataclass(frozen=True)
class Words:
    """Each distinct word is a part: all of its occurrences are hidden together (a bag of words).

    Words are those of `probing.data.texts.words`, in any script, unless something else is given. How letters are composed
    (NFC or NFD) makes no difference.

    Attributes:
        pattern: a regular expression for words.
        ignore_case: whether `The` and `the` are one word.
        mask: stands for a hidden word; nothing, unless given.
        tokeniser: from a text to its words, as strings or spans, in order.
    """

    pattern: str | None = None
    ignore_case: bool = True
    mask: str = ""
    tokeniser: Tokeniser | None = None

    def __call__(self, text: str) -> TextParts:
        """Return the parts of a text.

        Raises:
            InputError: for a text without words, or one whose words the mask equals.
        """
        words, between = _cut(text, self.pattern, self.tokeniser, self.mask)
        keys = [same_word(w) if self.ignore_case else normalize("NFC", w) for w in words]
        numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        names = tuple(words[keys.index(key)] for key in numbers)
        labels = torch.tensor([numbers[key] for key in keys])
        return TextParts(text, names, labels, between, words, self.mask)


@dataclass(frozen=True)
class Occurrences:
    """Each occurrence of a word is a part of its own; words are found as by `Words`.

    Attributes:
        pattern: a regular expression for words.
        mask: stands for a hidden word, so that the others keep their positions.
        tokeniser: from a text to its words, as strings or spans, in order.
    """

    pattern: str | None = None
    mask: str = "UNKWORDZ"
    tokeniser: Tokeniser | None = None

    def __call__(self, text: str) -> TextParts:
        """Return the parts of a text.

        Raises:
            InputError: for a text without words, or one whose words the mask equals.
        """
        words, between = _cut(text, self.pattern, self.tokeniser, self.mask)
        return TextParts(text, words, torch.arange(len(words)), between, words, self.mask)


def contiguous(labels: Int[Tensor, "*places"]) -> Int[Tensor, "*places"]:
    """Renumber labels 0, 1, 2 … in their order, whatever numbers they begin with or leave out."""
    _, numbers = torch.unique(labels, return_inverse=True)
    return cast("Tensor", numbers)


_ROUNDING = 1e-6
"""Of the largest value: what differs by less is the same."""


def _unchanged(example: Tensor, other: Tensor, labels: Tensor) -> Bool[Tensor, " parts"]:
    """Return which parts look the same in another tensor."""
    differs = (example - other).abs() > _ROUNDING * example.abs().amax()
    # Where an axis of the labels has size one, any place along it counts.
    axes = [i for i, size in enumerate(labels.shape) if size == 1 != example.shape[i]]
    differs = differs.any(axes[0], keepdim=True) if axes else differs
    found = torch.zeros(int(labels.max()) + 1, dtype=torch.long, device=labels.device)
    return found.index_add_(0, labels.flatten(), differs.flatten().long()) == 0


def _elsewhere(example: Tensor, filling: Tensor, same: Bool[Tensor, "*places"]) -> Tensor:
    """Return the filling, with something else where it is the same as the example."""
    if not bool(same.any()):
        return filling
    # On the CPU, where the order of additions is always the same.
    axes = tuple(range(1, example.ndim)) if example.ndim > 1 else (0,)
    values = example.cpu().double()
    mean, low, high = (
        values.mean(axes, keepdim=True),
        values.amin(axes, keepdim=True),
        values.amax(axes, keepdim=True),
    )
    far = torch.where((values - low).abs() >= (values - high).abs(), low, high)
    like_mean = (values - mean).abs() <= _ROUNDING * values.abs().amax()
    if example.ndim > 1:
        like_mean = like_mean.all(0, keepdim=True)
    other = torch.where(like_mean, far, mean).to(example)
    return torch.where(same, other, filling)


def _does_not_fit(labels: Tensor, example: Tensor) -> bool:
    if labels.ndim != example.ndim or labels.shape[1:] != example.shape[1:]:
        return True
    return labels.shape[0] not in {1, example.shape[0]}


def _cut(text: str, pattern: str | None, tokeniser: Tokeniser | None, mask: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words of a text and what stands around them."""
    found = _spans(text, pattern, tokeniser)
    if not found:
        looked = "" if pattern is None else f" that matches {pattern!r}"
        raise InputError(
            f"the text {text[:40]!r} holds no word{looked}: give a text with words, or another pattern or tokeniser."
        )
    starts, ends = zip(*found, strict=True)
    cut = tuple(text[start:end] for start, end in found)
    if mask in cut:
        raise InputError(
            f"the text holds the word {mask!r}, which stands for hidden words, so hiding it changes nothing: "
            "give another mask."
        )
    gaps = zip((0, *ends), (*starts, len(text)), strict=True)
    return cut, tuple(text[end:start] for end, start in gaps)


def _spans(text: str, pattern: str | None, tokeniser: Tokeniser | None) -> tuple[Span, ...]:
    if pattern is not None and tokeniser is not None:
        raise InputError("give a pattern for words or a tokeniser, not both.")
    if pattern is not None:
        return matches(text, pattern)
    try:
        return words(text, tokeniser)
    except TokeniserError as error:
        raise InputError(str(error)) from None
