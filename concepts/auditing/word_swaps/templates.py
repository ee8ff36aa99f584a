"""Matched sentences: the same templates with the words asked about and with ordinary words in their place."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

from jaxtyping import Float
from pydantic import Field
from torch import Tensor, nn

from concepts.auditing.measurement.spec import Share
from concepts.data.yaml_schema import Schema, read
from concepts.effects.logit_effect import split_clusters
from probing.core.errors import ProbingError
from probing.data.examples import Prepare, TextExamples
from probing.data.texts import WordIds

SLOT = "{}"
Words = Annotated[list[str], Field(min_length=1)]


class WordingError(ProbingError, ValueError):
    """Words and templates that do not make matched sentences, or that the model does not see."""


@runtime_checkable
class TextModel(Protocol):
    """What an audit of words asks of a model of texts; `probing.data.texts.TextClassifier` is one."""

    @property
    def model(self) -> nn.Module:
        """What is read."""

    @property
    def words(self) -> WordIds | Prepare:
        """From a text to what the model takes."""

    @property
    def reference(self) -> str:
        """Where it comes from, in words."""

    def logits(self, texts: Sequence[str]) -> Float[Tensor, "n labels"]:
        """Return the logits of texts."""

    def label_index(self, label: str) -> int:
        """Return the place of a label among the logits."""


class Called(Schema):
    """What the page calls the words.

    Attributes:
        term: one that is asked about.
        terms: several.
        other: the part of speech, or sort, of the ordinary words; the plural gets an s.
    """

    term: str = "word for a group of people"
    terms: str = "words for groups of people"
    other: str = "adjective"


class Expectation(Schema):
    """What was expected before anything was measured: that changes rise with a number of each term.

    Attributes:
        of: what the numbers are.
        source: where they are from.
        values: of each term.
    """

    of: str
    source: str
    values: dict[str, float]


class WordingStatistics(Schema):
    """How much is drawn, and how sure is sure.

    Attributes:
        level: of intervals.
        alpha: a corrected p below this is called evidence.
        lime_samples: coalitions of a sentence's words.
        steps: of integrated gradients.
        explained: templates of each kind that local methods explain; None for all.
        fit_share: share of the templates that directions are fitted on; scores are read at the others.
        pseudo_concepts: of the test of the TCAV score; where none are named, more than 199 are drawn for so many
            concepts given as one set that no corrected p could be small otherwise.
        runs: CAVs of a word.
        relabellings: of the test of the effect.
    """

    level: Share = 0.95
    alpha: Share = 0.05
    lime_samples: Annotated[int, Field(ge=2)] = 1000
    steps: Annotated[int, Field(ge=1)] = 32
    explained: Annotated[int, Field(ge=1)] | None = None
    fit_share: Share = 0.5
    pseudo_concepts: Annotated[int, Field(ge=19)] = 199
    runs: Annotated[int, Field(ge=2)] = 3
    relabellings: Annotated[int, Field(ge=99)] = 9999
    seed: int = 0


class WordingFile(Schema):
    """An audit of words; the schema of the YAML file.

    Attributes:
        label: whose logit is explained.
        embedding: the layer that turns numbers of words into features.
        called: what the page calls the words.
        expected: what was expected of the terms beforehand, if anything.
        layers: where concepts are read.
        read_at: the one of them that words are listed at, named beforehand.
        terms: the words asked about, such as those for groups of people, by kind.
        reference: ordinary words, whose mean all other words are compared with.
        ordinary: other ordinary words, which show how far a word moves a score that is of no group.
        templates: sentences by kind, with `{}` where the word stands.
    """

    name: str
    title: str
    question: str
    limits: list[str] = Field(default_factory=list)
    label: str
    embedding: str
    layers: Words
    read_at: str
    terms: Annotated[dict[str, Words], Field(min_length=1)]
    reference: Words
    ordinary: Words
    templates: Annotated[dict[str, Words], Field(min_length=1)]
    called: Called = Field(default_factory=Called)
    expected: Expectation | None = None
    statistics: WordingStatistics = Field(default_factory=WordingStatistics)


@dataclass(frozen=True)
class Wording:
    """Sentences made of each word and each template.

    Attributes:
        words: terms, then ordinary words, then reference words.
        kinds: of each word: the kind of term, `ordinary` or `reference`.
        templates: with `{}` where the word stands.
        template_kinds: of each template.
    """

    words: tuple[str, ...]
    kinds: tuple[str, ...]
    templates: tuple[str, ...]
    template_kinds: tuple[str, ...]

    @classmethod
    def of(cls, file: WordingFile, classifier: TextModel) -> "Wording":
        """Make the sentences and check that the model sees every word of them, where it looks up whole words.

        Raises:
            WordingError: if words repeat, a template has not one place for a word, or a word is unknown.
        """
        kinds = {w: kind for kind, words in file.terms.items() for w in words}
        kinds |= dict.fromkeys(file.ordinary, "ordinary") | dict.fromkeys(file.reference, "reference")
        listed = [*(w for words in file.terms.values() for w in words), *file.ordinary]
        _refuse_repeats("word", listed := [*listed, *file.reference])
        templates = [t for each in file.templates.values() for t in each]
        _refuse_repeats("template", templates)
        vocabulary = classifier.words if isinstance(classifier.words, WordIds) else None
        _check_templates(templates, vocabulary)
        if vocabulary and (unseen := [w for w in listed if vocabulary.split(w) != [w] or vocabulary.unknown(w)]):
            raise WordingError(f"the classifier does not see {unseen[0]!r} as one word: leave it out ({len(unseen)} such).")
        if file.expected and (lacking := [w for w in listed if kinds[w] in file.terms and w not in file.expected.values]):
            raise WordingError(f"nothing is expected of {lacking[0]!r}: give {file.expected.of} of each term.")
        by_kind = tuple(kind for kind, each in file.templates.items() for _ in each)
        return cls(tuple(listed), tuple(kinds[w] for w in listed), tuple(templates), by_kind)

    @cached_property
    def terms(self) -> tuple[int, ...]:
        """Places of the words asked about."""
        return tuple(i for i, k in enumerate(self.kinds) if k not in {"ordinary", "reference"})

    @cached_property
    def ordinary(self) -> tuple[int, ...]:
        """Places of the ordinary words."""
        return tuple(i for i, k in enumerate(self.kinds) if k == "ordinary")

    @cached_property
    def reference(self) -> tuple[int, ...]:
        """Places of the reference words."""
        return tuple(i for i, k in enumerate(self.kinds) if k == "reference")

    def text(self, word: int, template: int) -> str:
        """Return one sentence."""
        return self.templates[template].replace(SLOT, self.words[word])

    def texts(self, words: Sequence[int], templates: Sequence[int] | None = None) -> list[str]:
        """Return sentences, word by word and in each by template."""
        places = range(len(self.templates)) if templates is None else templates
        return [self.text(w, t) for w in words for t in places]

    def examples(self, classifier: TextModel, words: Sequence[int], templates: Sequence[int]) -> TextExamples:
        """Return sentences as the model takes them."""
        return TextExamples(self.texts(words, templates), classifier.words)

    def explained(self, count: int | None) -> tuple[int, ...]:
        """Return the first templates of each kind, so many; all for None."""
        kinds = list(self.template_kinds)
        return tuple(i for i, kind in enumerate(kinds) if count is None or kinds[:i].count(kind) < count)

    def divided(self, share: float, seed: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return training and held-out templates, of each kind about the same share."""
        fit: set[str] = set()
        for kind in dict.fromkeys(self.template_kinds):
            own = [t for t, k in zip(self.templates, self.template_kinds, strict=True) if k == kind]
            fit |= split_clusters(own, share, seed)[0]
        places = range(len(self.templates))
        first = tuple(i for i in places if self.templates[i] in fit)
        return first, tuple(i for i in places if i not in first)


def read_wording(path: Path) -> WordingFile:
    """Return what an audit file of words says.

    Raises:
        concepts.data.yaml_schema.SchemaError: if it is no plain YAML, or breaks the schema.
        WordingError: if the layer that words are listed at is none of the layers.
    """
    file = read(path, WordingFile)
    if file.read_at not in file.layers:
        raise WordingError(f"read_at is {file.read_at!r}, which is none of {file.layers}.")
    return file


def _refuse_repeats(what: str, names: Collection[str]) -> None:
    if repeats := [name for name, n in Counter(names).items() if n > 1]:
        raise WordingError(f"the {what} {repeats[0]!r} stands twice: name each once.")


def _check_templates(templates: Sequence[str], vocabulary: WordIds | None) -> None:
    for template in templates:
        if template.count(SLOT) != 1:
            raise WordingError(
                f"the template {template!r} has {template.count(SLOT)} places {SLOT} for a word: one is needed."
            )
        if vocabulary and (unseen := vocabulary.unknown(template.replace(SLOT, " "))):
            raise WordingError(
                f"the classifier does not see {unseen[0]!r} of the template {template!r}: use words it knows."
            )
