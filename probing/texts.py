"""Texts as word-level models take them: the numbers of their words, and a classifier with its vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.errors import ArgumentError

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
