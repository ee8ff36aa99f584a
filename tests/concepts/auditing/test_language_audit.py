"""Words in openings that a language model goes on from: a model in which each piece's weight is planted, and its audit."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from concepts.auditing.word_swaps.language import LanguageModel, LanguageReader, PaddedTokens, token_places
from concepts.auditing.word_swaps.page import write_page
from concepts.auditing.word_swaps.result import WordResult
from concepts.auditing.word_swaps.templates import Wording, WordingError, WordingFile
from probing.attribution.gradient import GradientTimesInput
from probing.attribution.lrp.composites import EpsilonPlus
from probing.attribution.lrp.lrp import LRP
from probing.core.errors import ArgumentError
from probing.core.inputs import Inputs
from probing.data.examples import TextExamples
from probing.store.store import ActivationStore

TERMS = {"carpenter": -2.0, "nurse": 1.5, "person of all": 0.25}
REFERENCE = {"guest": 0.0, "one": 0.5}
ORDINARY = {"voter": 0.3, "walker": 0.1, "twin": -0.2, "owner": 0.6}
VERBS = ("said", "saw", "knew", "felt", "wrote", "hoped", "thought", "read", "found", "meant")
WHO = ("we", "they", "you", "all", "some", "few", "many", "most", "none", "each")
OPENINGS = {"plain": [f"the {{}} {verb} that" for verb in VERBS], "late": [f"{who} met a {{}} and then" for who in WHO]}
SHARES = {"carpenter": 1.0, "nurse": 80.0, "person of all": 50.0}
PIECE = 4


@dataclass(frozen=True)
class Pieces:
    """Cuts each word into pieces of at most four letters, each a token with the gap before it."""

    vocabulary: tuple[str, ...]
    pad_token_id: int = 0

    def __call__(self, text: str) -> Inputs:
        tokens = _pieces(text)
        ids = torch.tensor([[1 + self.vocabulary.index(t) for t in tokens]])
        return Inputs({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, tokens=(tuple(tokens),))


def _pieces(text: str) -> list[str]:
    found = []
    for place, word in enumerate(text.split(" ")):
        whole = word if place == 0 else f" {word}"
        found += [whole[i : i + PIECE] for i in range(0, len(whole), PIECE)]
    return found


class AddsUp(nn.Module):
    """The logits after each token are sums of what the tokens so far weigh; those of two vocabulary entries differ by it."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(len(weights), 4)
        self.so_far = SoFar()
        self.output = nn.Linear(4, 3, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(0.05 * torch.randn(len(weights), 4, generator=generator))
            self.embedding.weight[:, 0] = torch.tensor(weights)
            self.output.weight.copy_(torch.tensor([[0.5, 0, 0, 0], [-0.5, 0, 0, 0], [0, 1.0, 0, 0]]))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.output(self.so_far(self.embedding(input_ids) * attention_mask[:, :, None]))


class SoFar(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


def _file(**changes: object) -> WordingFile:
    parts: dict[str, object] = {
        "name": "planted",
        "title": "Planted",
        "question": "Found?",
        "label": "first rather than second",
        "embedding": "embedding",
        "layers": ["so_far"],
        "read_at": "so_far",
        "called": {"term": "word for a trade", "terms": "words for trades", "other": "noun"},
        "terms": {"trades": list(TERMS)},
        "reference": list(REFERENCE),
        "ordinary": list(ORDINARY),
        "templates": OPENINGS,
        "statistics": {"steps": 2, "explained": 3, "pseudo_concepts": 19, "runs": 2, "relabellings": 399},
        "expected": {"of": "the share", "source": "nobody", "values": SHARES},
    }
    return WordingFile.model_validate(parts | changes)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    """Return a model in which a word weighs what is planted, on the first of its pieces."""
    words = [*TERMS, *REFERENCE, *ORDINARY]
    texts = [t.replace("{}", w) for each in OPENINGS.values() for t in each for w in words]
    vocabulary = tuple(dict.fromkeys(piece for text in texts for piece in _pieces(text)))
    weights = dict.fromkeys(vocabulary, 0.0) | {" and": 0.1, " met": 0.3}
    weights |= {_pieces(f"a {word}")[1]: weight for word, weight in (TERMS | REFERENCE | ORDINARY).items()}
    tokens = PaddedTokens.of(Pieces(vocabulary), texts)
    return LanguageModel(AddsUp([0.0, *weights.values()]).eval(), tokens, 0, 1, "first rather than second", batch_size=7)


@pytest.fixture(scope="module")
def reader(model: LanguageModel) -> LanguageReader:
    file = _file()
    return LanguageReader(file, Wording.of(file, model), model)


def planted(words: dict[str, float]) -> Tensor:
    return torch.tensor(list(words.values()), dtype=torch.float64)


@pytest.mark.parametrize("method", [GradientTimesInput(), LRP(EpsilonPlus())], ids=["gradient", "lrp"])
def test_what_a_method_says_of_all_of_a_word_s_pieces_is_its_weight(
    reader: LanguageReader, method: GradientTimesInput | LRP
) -> None:
    found, _ = reader.local(method)
    assert found.shape == (len(TERMS | REFERENCE | ORDINARY), 2 * 3)  # three openings of each kind are explained
    in_place = list(TERMS | ORDINARY | REFERENCE)
    assert list(reader.wording.words) == in_place
    wanted = planted({w: (TERMS | ORDINARY | REFERENCE)[w] for w in in_place})
    torch.testing.assert_close(found, wanted[:, None].expand_as(found), atol=1e-4, rtol=0)


def test_the_page_says_what_swaps_do_and_whether_it_was_expected(reader: LanguageReader, tmp_path: Path) -> None:
    store = ActivationStore(tmp_path / "rows", progress=False)
    logits = reader.logits()
    local, gap = reader.local(GradientTimesInput())
    tcav, probes = reader.tcav(store), reader.probes(store)
    words, openings = len(reader.wording.words), len(reader.wording.templates)
    # Sentences of several sets share rows: each passes once, once through the untrained twin, some once for gradients.
    assert store.stats.forward_rows == 2 * words * openings + len(REFERENCE) * openings // 2
    result = reader.result(logits, {"gradient times input": local}, tcav, gap)
    torch.testing.assert_close(result.value[0], planted(TERMS) - planted(REFERENCE).mean(), atol=1e-5, rtol=0)
    torch.testing.assert_close(result.value[1], result.value[0], atol=1e-5, rtol=0)
    assert result.relation("gradient times input", "nurse") == "same sign"
    for name, found in {"words": result, "tcav": tcav, "probes": probes}.items():
        found.save(tmp_path / name)
    page = write_page(tmp_path, reader.file, "a planted model")
    said = " ".join(f"{f.claim} {f.evidence}" for f in page.findings)
    assert "2 of 3 words for trades move the logit of “first rather than second” for sure, 1 of them up" in said
    assert "the measured change is not shown to rise or fall with the share, as named beforehand: rho = 1.00" in said
    assert "adjective" not in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert list((tmp_path / "figures").glob("expected*"))
    assert WordResult.load(tmp_path / "words").words == tuple(TERMS)


def test_a_text_s_rows_are_the_same_beside_a_longer_one(model: LanguageModel) -> None:
    short, long = "the nurse said that", "the person of all said that"
    assert TextExamples([short], model.words).ids[0] == TextExamples([long, short], model.words).ids[1]
    inner = model.words.tokenize  # type: ignore[attr-defined]
    assert TextExamples([short], inner).ids[0] != TextExamples([long, short], inner).ids[1], "the control"


def test_pieces_are_found_by_the_text_they_stand_for() -> None:
    tokens = ["the", " car", "pent", "er", " sat", "", ""]
    assert token_places(tokens, "the carpenter sat", (4, 13)) == [1, 2, 3]
    assert token_places(tokens, "the carpenter sat", (0, 3)) == [0]
    with pytest.raises(WordingError, match="do not make up the text"):
        token_places(["<s>", *tokens], "the carpenter sat", (4, 13))


def test_what_is_not_asked_rightly_is_refused(reader: LanguageReader, model: LanguageModel) -> None:
    with pytest.raises(ArgumentError, match="read as to 'first rather than second', not 'toxic'"):
        replace(reader, file=_file(label="toxic")).logits()
    with pytest.raises(WordingError, match="does not look up whole words: use `LanguageReader`"):
        reader.integrated()
    lacking = {"of": "the share", "source": "nobody", "values": {"carpenter": 1.0}}
    with pytest.raises(WordingError, match="nothing is expected of 'nurse': give the share of each term"):
        Wording.of(_file(expected=lacking), model)
