"""Audits of words in a language model: what words do to how much likelier one token is than another after a text."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from concepts.auditing.word_swaps.readings import Grid, WordReader
from concepts.auditing.word_swaps.templates import SLOT, WordingError
from probing.attribution.base import LocalMethod
from probing.core.errors import ArgumentError
from probing.core.inputs import Inputs, padded
from probing.core.progress import Progress
from probing.data.examples import Prepare, TextExamples
from probing.models.readings import NextToken
from probing.models.scores import Score


@dataclass(frozen=True)
class PaddedTokens:
    """A tokeniser whose texts are all of one length, so that a text's rows are the same whatever it stands beside.

    Attributes:
        tokenize: from a text to its token ids and their mask.
        length: tokens of each text, padding included.
    """

    tokenize: Prepare
    length: int

    @classmethod
    def of(cls, tokenize: Prepare, texts: Sequence[str]) -> "PaddedTokens":
        """Return a tokeniser that pads to the longest of some texts."""
        return cls(tokenize, TextExamples(texts, tokenize).tokens or 0)

    def __call__(self, text: str) -> Inputs:
        """Return the token ids of a text, padded behind."""
        row = self.tokenize(text)
        assert isinstance(row, Inputs)
        return padded(row, self.length, int(getattr(self.tokenize, "pad_token_id", 0)))


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A causal language model, read as a classifier of texts by which of two tokens follows.

    Its one logit is that of a token minus that of another, the log of how many times likelier the first is.

    Attributes:
        model: returns `logits` `[n, tokens, vocabulary]`, in evaluation mode.
        words: from a text to its token ids and their mask, as `LoadedModel.preprocess` does.
        token: the id of the token.
        instead_of: the id of the token that it is compared with.
        label: what the logit is of, in words.
        reference: where the model comes from, in words.
        batch_size: texts of a pass.
    """

    model: nn.Module
    words: Prepare
    token: int
    instead_of: int
    label: str
    reference: str = ""
    batch_size: int = 64

    @property
    def score(self) -> Score:
        """The difference of the two logits after a text's last token."""
        return Score(self.model, NextToken(self.token, instead_of=self.instead_of))

    def logits(self, texts: Sequence[str]) -> Float[Tensor, "n 1"]:
        """Return the difference of the two logits after each text."""
        examples, found = TextExamples(texts, self.words), []
        with Progress(len(texts), "passes", unit="texts") as meter, torch.no_grad():
            for start in range(0, len(texts), self.batch_size):
                rows = range(start, min(start + self.batch_size, len(texts)))
                found.append(self.score(examples.load(rows)))
                meter.advance(len(rows))
        return torch.cat(found)[:, None]

    def label_index(self, label: str) -> int:
        """Return 0, the place of its one label.

        Raises:
            ArgumentError: for another label.
        """
        if label != self.label:
            raise ArgumentError(f"the model is read as to {self.label!r}, not {label!r}.")
        return 0


@dataclass(frozen=True, eq=False)
class LanguageReader(WordReader):
    """Reads a language model by the sentences of an audit of words, which end where one of two tokens follows."""

    classifier: LanguageModel

    @property
    def score(self) -> Score:
        """The difference of the two logits after a sentence."""
        return self.classifier.score

    def local(self, method: LocalMethod) -> tuple[Grid, float]:
        """Return what a method says of the word's tokens, added up, in every explained sentence, and the largest gap.

        Raises:
            WordingError: if a sentence's tokens do not make up its text.
        """
        wording, found, gap = self.wording, [], 0.0
        places = [(w, t) for w in range(len(wording.words)) for t in self.explained]
        examples = TextExamples([wording.text(w, t) for w, t in places], self.classifier.words)
        with Progress(len(places), type(method).__name__, unit="texts") as meter:
            for start in range(0, len(places), self.classifier.batch_size):
                rows = range(start, min(start + self.classifier.batch_size, len(places)))
                batch = examples.load(rows)
                tokens = batch.tokens if isinstance(batch, Inputs) else ()
                said = method(self.score, batch)
                gaps = said.diagnostics.get("completeness_gap", said.diagnostics.get("conservation_gap"))
                gap = gap if gaps is None else max(gap, float(gaps.abs().max()))
                for row, shown, values in zip(rows, tokens, said.token_values().double(), strict=True):
                    word, template = places[row]
                    span = _span(wording.templates[template], wording.words[word])
                    found.append(values[token_places(shown, examples.texts[row], span)].sum())
                meter.advance(len(rows))
        return self._grid(torch.stack(found)), gap


def _span(template: str, word: str) -> tuple[int, int]:
    start = template.index(SLOT)
    return start, start + len(word)


def token_places(tokens: Sequence[str], text: str, span: tuple[int, int]) -> list[int]:
    """Return which tokens stand for a stretch of a text, in whole or in part.

    Args:
        tokens: as they stand in the text, each with the gap before it; empty ones are padding.
        text: what they are of.
        span: where the stretch begins and ends, in characters.

    Raises:
        WordingError: if the tokens do not make up the text.
    """
    ends, end = list[tuple[int, int]](), 0
    for token in tokens:
        ends.append((end, end := end + len(token)))
    if "".join(tokens) != text:
        raise WordingError(f"the tokens {list(tokens)} do not make up the text {text!r}, so its words can't be found.")
    return [i for i, (first, last) in enumerate(ends) if first < span[1] and last > span[0] and first < last]
