"""Texts: their words in any script, the numbers of their words as models take them, and a classifier."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import regex
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.core.errors import ArgumentError, ProbingError

Span = tuple[int, int]
"""Where a word begins and ends in a text, in characters."""
Tokeniser = Callable[[str], Iterable[object]]
"""From a text to its words, in order: each a span, or the string that stands in the text."""

# Unicode's default word boundaries (UAX #29); `\X` is a user-perceived character.
_BOUNDARY = regex.compile(r"(?V1w)\b")
_CLUSTER = regex.compile(r"(?V1)\X")
# What makes a stretch between boundaries a word: letters, numbers, emoji, flags and keycaps.
# (U+0338 strikes an arrow out: ↔ is an emoji, ↮ is none.)
_WORD = regex.compile(r"(?V1)[\p{L}\p{N}\p{Pc}\p{Alphabetic}\p{RI}\u20e3]|\p{Extended_Pictographic}(?!\u0338)")
_UNSPACED = regex.compile(r"(?V1)[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")


class TokeniserError(ProbingError, ValueError):
    """A tokeniser's words are not in the text, or not in its order."""


def words(text: str, tokeniser: Tokeniser | None = None) -> tuple[Span, ...]:
    """Return where a text's words begin and end, in any script.

    Unicode's default word boundaries (UAX #29): vowel signs and other marks stay with their letter, `don't` and `3.14`
    are one word, each emoji is one, however many code points it is made of, and so is each character of a script
    without spaces (Han, Hiragana, Thai, Lao, Khmer, Burmese; only a dictionary finds more, give one as `tokeniser`).
    A user-perceived character is never cut. A text that is one word of Katakana is cut into its characters. A text in
    NFC has the same words as in NFD.

    Args:
        text: any text.
        tokeniser: from the text to its words instead; empty words are left out.

    Raises:
        TokeniserError: if the tokeniser's words are not in the text one after the other.
    """
    if tokeniser is not None:
        return _given(text, tokeniser)
    whole = {0, *(match.end() for match in _CLUSTER.finditer(text))}
    ends = sorted(whole & {0, len(text), *(match.start() for match in _BOUNDARY.finditer(text))})
    found = tuple((start, end) for start, end in pairwise(ends) if _WORD.search(text, start, end))
    if len(found) != 1 or not _UNSPACED.search(text, *found[0]):
        return found
    return tuple(match.span() for match in _CLUSTER.finditer(text, *found[0]))


def matches(text: str, pattern: str) -> tuple[Span, ...]:
    """Return where a regular expression finds words in a text; empty ones are left out."""
    return tuple(match.span() for match in re.finditer(pattern, text) if match.group())


def same_word(word: str) -> str:
    """Return what two ways to write one word have in common: neither case nor how letters are composed matter."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", word).casefold())


def _given(text: str, tokeniser: Tokeniser) -> tuple[Span, ...]:
    found, end = list[Span](), 0
    for token in tokeniser(text):
        start, stop = _span(text, token, end)
        if start < end or stop < start or stop > len(text):
            raise TokeniserError(
                f"the tokeniser's span ({start}, {stop}) overlaps the word before, which ends at {end}, or leaves the "
                f"text of {len(text)} characters: give words in the order of the text."
            )
        if stop > start:
            found.append((start, stop))
            end = stop
    return tuple(found)


def _span(text: str, token: object, end: int) -> Span:
    """Return where a token stands, at or after a place."""
    if isinstance(token, str):
        if (start := text.find(token, end)) < 0:
            raise TokeniserError(
                f"the tokeniser's word {token!r} is not in {text[end : end + 40]!r}: give words as they stand in the "
                "text, in its order, or where each begins and ends."
            )
        return start, start + len(token)
    match token:
        case (int(start), int(stop)) if not isinstance(start, bool):
            # An empty span, as tokenisers give for their own signs, is left out wherever it lies.
            return (start, stop) if start != stop else (end, end)
    raise TokeniserError(f"a tokeniser gives words as strings or as (begin, end) in characters, got {token!r}.")


PUNCTUATION = '!"#$%&()*+,-./:;<=>?@[\\]^_`{|}~\t\n'


@dataclass(frozen=True)
class WordIds:
    """Numbers of a text's known words: unknown ones are left out, the rest stands at the end of a fixed length.

    The rule of the Keras `Tokenizer` and `pad_sequences` with their defaults: lower case, punctuation is a gap, 0 before
    the first word, and of a text that is too long the last words. An unknown word leaves no trace, so `unknown` should be
    asked before a text is judged by its words.

    Attributes:
        words: the vocabulary; the first has number 1.
        length: numbers of a text.
        gaps: characters that part words, besides the blank.
    """

    words: tuple[str, ...]
    length: int
    gaps: str = PUNCTUATION
    _numbers: dict[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_numbers", {word: i for i, word in enumerate(self.words, 1)})

    def __call__(self, text: str) -> Int[Tensor, " length"]:
        """Return the numbers of a text's words."""
        known = [self._numbers[word] for word in self.split(text) if word in self._numbers]
        kept = known[-self.length :]
        return torch.tensor([0] * (self.length - len(kept)) + kept)

    def batch(self, texts: Sequence[str]) -> Int[Tensor, "n length"]:
        """Return the numbers of several texts' words."""
        return torch.stack([self(text) for text in texts])

    def split(self, text: str) -> list[str]:
        """Return a text's words as they are looked up."""
        table = str.maketrans(dict.fromkeys(self.gaps, " "))
        return [word for word in text.lower().translate(table).split(" ") if word]

    def unknown(self, text: str) -> tuple[str, ...]:
        """Return those of a text's words that the model does not see."""
        return tuple(word for word in self.split(text) if word not in self._numbers)

    def places(self, text: str, word: str) -> tuple[int, ...]:
        """Return where a word's number stands among those of the text.

        Raises:
            ValueError: if it is not among the words that the model sees.
        """
        kept = [w for w in self.split(text) if w in self._numbers][-self.length :]
        first = self.length - len(kept)
        found = tuple(first + i for i, w in enumerate(kept) if w == word.lower())
        if not found:
            raise ArgumentError(f"the model sees no word {word!r} in {text[:60]!r}.")
        return found


@dataclass(frozen=True, eq=False)
class TextClassifier:
    """A classifier of texts by their words.

    Attributes:
        model: from numbers of words to logits, in evaluation mode.
        words: from a text to those numbers.
        labels: what the logits are of.
        reference: where it comes from, in words.
    """

    model: nn.Module
    words: WordIds
    labels: tuple[str, ...]
    reference: str = ""

    def logits(self, texts: Sequence[str]) -> Float[Tensor, "n labels"]:
        """Return the logits of texts."""
        with torch.no_grad():
            parts = [self.model(ids) for ids in torch.split(self.words.batch(texts), 256)]
        return torch.cat(parts)

    def label_index(self, label: str) -> int:
        """Return the place of a label among the logits.

        Raises:
            ValueError: if there is none of that name.
        """
        if label not in self.labels:
            raise ArgumentError(f"the classifier has no label {label!r}, only {list(self.labels)}.")
        return self.labels.index(label)
