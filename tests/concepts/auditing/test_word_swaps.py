"""Words in templates: a model in which every word's weight is planted, and what the audit must say of it."""

import math
from dataclasses import replace
from pathlib import Path

import browser
import pytest
import torch
import yaml
from torch import Tensor, nn

from concepts.auditing.word_swaps.page import write_page
from concepts.auditing.word_swaps.readings import WordReader
from concepts.auditing.word_swaps.result import AGREE, ALONE, MISSES, OPPOSITE, QUIET, WordResult
from concepts.auditing.word_swaps.summary import answer, beyond_chance, methods_agree, sentences, word_summary
from concepts.auditing.word_swaps.templates import Called, Wording, WordingError, WordingFile, read_wording
from concepts.erasure.table import ReadUsedMovedResult
from probing.attribution.path import LayerIntegratedGradients
from probing.data.texts import TextClassifier, WordIds
from probing.results.html_report import Standing
from probing.statistics.hypothesis_tests import Correlation
from probing.store.store import ActivationStore

TERMS = {"bad": 2.0, "good": -1.0, "plain": 0.25}
REFERENCE = {"one": 0.0, "two": 0.5}
ORDINARY = {"three": 0.3, "four": 0.1, "five": -0.2, "six": 0.6}
TEMPLATES = {
    "kind": [f"{w} is {{}} here" for w in ("he", "she", "it", "who", "man", "cow")]
    + [f"a {{}} {w} sat" for w in ("dog", "cat", "fox", "hen", "ape", "bee")],
    "unkind": [f"you {{}} {w}" for w in ("fool", "oaf", "lout", "cad", "cur", "ass")]
    + [f"hate that {{}} {w}" for w in ("mob", "lot", "gang", "herd", "pack", "crew")],
}


class AddsWords(nn.Module):
    """The logit is the sum of the words' weights, and a second label's is minus it."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(len(weights), 4)
        self.total = Total()
        self.output = nn.Linear(4, 2, bias=False)
        with torch.no_grad():
            self.embedding.weight.copy_(0.05 * torch.randn(len(weights), 4, generator=generator))
            self.embedding.weight[:, 0] = torch.tensor(weights)
            self.output.weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))

    def forward(self, ids: Tensor) -> Tensor:
        return self.output(self.total(self.embedding(ids)))


class Total(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


def _classifier() -> TextClassifier:
    others = " ".join(t.replace("{}", "") for each in TEMPLATES.values() for t in each).split()
    weights = dict.fromkeys(others, 0.1) | {"hate": 1.5} | TERMS | REFERENCE | ORDINARY
    return TextClassifier(AddsWords([0.0, *weights.values()]).eval(), WordIds(tuple(weights), 8), ("toxic", "kind"))


def _file(**changes: object) -> WordingFile:
    parts: dict[str, object] = {
        "name": "planted",
        "title": "Planted",
        "question": "Found?",
        "label": "toxic",
        "embedding": "embedding",
        "layers": ["embedding", "total"],
        "read_at": "total",
        "terms": {"group": list(TERMS)},
        "reference": list(REFERENCE),
        "ordinary": list(ORDINARY),
        "templates": TEMPLATES,
        "statistics": {"lime_samples": 200, "steps": 2, "pseudo_concepts": 19, "runs": 2, "relabellings": 4096},
    }
    return WordingFile.model_validate(parts | changes)


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> tuple[WordResult, Path]:
    """Return what the audit finds, and the folder of its results and page."""
    file, classifier, out = _file(), _classifier(), tmp_path_factory.mktemp("audit")
    reader = WordReader(file, Wording.of(file, classifier), classifier)
    store = ActivationStore(out / "rows", progress=False)
    tcav, probes = reader.tcav(store), reader.probes(store)
    integrated, gap = reader.integrated()
    explained = {"LIME": reader.lime(), "integrated gradients": integrated}
    result = reader.result(reader.logits(), explained, tcav, gap)
    for name, found in {"words": result, "tcav": tcav, "probes": probes, "used": reader.used(store)}.items():
        found.save(out / name)
    write_page(out, file, "a planted model")
    return result, out


def test_the_swap_is_the_planted_weight_less_the_reference_words_mean(audited):
    result, _ = audited
    planted = torch.tensor(list(TERMS.values()), dtype=torch.float64) - 0.25
    torch.testing.assert_close(result.value[0], planted, atol=1e-6, rtol=0)
    assert result.moves()[0].tolist() == [True, True, False]  # plain is as the reference words are
    assert result.by_kind() == pytest.approx(dict.fromkeys(TEMPLATES, 3.0 / 3), abs=1e-6)


def test_words_are_held_against_reference_words_in_the_same_sentence_at_every_layer(audited):
    """The planted score is a sum over words: what the swap does is carried by each layer, and what is left is rounding."""
    result, out = audited
    used = ReadUsedMovedResult.load(out / "used")
    assert used.attributes == ("group",)
    assert used.layers == ("embedding", "total")
    assert used.moved.item() == pytest.approx(float(result.value[0].mean()), abs=0.2)
    low, high = used.moved_low.item(), used.moved_high.item()
    assert low <= used.moved.item() <= high
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Five questions on the same held-out templates." in page
    assert "Read, used, moved" in page


def test_a_gap_of_nan_is_not_forgotten_over_those_that_follow(monkeypatch):
    file, classifier = _file(), _classifier()
    explain, calls = LayerIntegratedGradients.__call__, []

    def one_undefined(self, score, inputs):
        found = explain(self, score, inputs)
        calls.append(found)
        gap = found.diagnostics["completeness_gap"] * (torch.nan if len(calls) == 2 else 1)
        return replace(found, diagnostics={"completeness_gap": gap})

    monkeypatch.setattr("concepts.auditing.word_swaps.readings._TEXTS", 12)
    monkeypatch.setattr(LayerIntegratedGradients, "__call__", one_undefined)
    _, gap = WordReader(file, Wording.of(file, classifier), classifier).integrated()
    assert len(calls) > 2
    assert math.isnan(gap)


def test_ordinary_words_say_which_terms_stand_out(audited):
    result, _ = audited
    others = torch.tensor(list(ORDINARY.values()), dtype=torch.float64) - 0.25
    torch.testing.assert_close(result.ordinary[0], others, atol=1e-6, rtol=0)
    assert result.beyond[0].tolist() == [0.0, 0.0, 1.0]
    assert result.stands_out().tolist() == [True, True, False]


@pytest.mark.parametrize("method", ["integrated gradients", "TCAV embedding", "TCAV total"])
def test_where_the_score_is_a_sum_of_words_methods_give_the_swap_itself(audited, method):
    result, _ = audited
    m = result.methods.index(method)
    torch.testing.assert_close(result.value[m], result.value[0], atol=1e-5, rtol=0)
    assert float(result.slope[m]) == pytest.approx(1, abs=1e-4)
    assert result.completeness_gap < 1e-5


def test_lime_has_the_order_and_the_sign(audited):
    result, _ = audited
    assert result.correlation("LIME").r == pytest.approx(1)
    assert [result.relation("LIME", w) for w in ("bad", "good")] == [AGREE, AGREE]


def test_probabilities_are_of_the_sentences(audited):
    result, _ = audited
    hate = result.of_kind("unkind")[6:]
    assert result.flagged[0].all()  # every sentence with bad
    assert not result.flagged[1, result.of_kind("kind")].any()
    assert result.reference_flagged[hate].tolist() == [1.0] * 6


def test_relations_are_told_by_sign_and_evidence(audited):
    result, _ = audited
    value, p = result.value.clone(), result.p.clone()
    value[1] *= -1
    p[2], p[1, 2] = 1.0, 0.001
    changed = replace(result, value=value, p=p)
    assert [changed.relation("LIME", w) for w in TERMS] == [OPPOSITE, OPPOSITE, ALONE]
    assert [changed.relation("integrated gradients", w) for w in TERMS] == [MISSES, MISSES, QUIET]
    assert changed.relations("LIME") == {OPPOSITE: ["bad", "good"], ALONE: ["plain"]}


def test_the_page_is_made_of_the_saved_results_alone(audited):
    _, out = audited
    page = (out / "report.html").read_text(encoding="utf-8")
    first = "2 of 3 words for groups of people move the logit of “toxic” for sure, 1 of them up"
    assert first in page
    names = {f.name for f in (out / "figures").iterdir()}
    assert {
        f"{n}.{k}" for n in ("summary", "words", "agreement", "probes", "read_used_moved") for k in ("png", "pdf")
    } == names
    assert (out / "tables" / "words.csv").read_text().count("\n") == 1 + len(TERMS)
    assert WordResult.load(out / "words").words == tuple(TERMS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ordinary": ["one"]}, "the word 'one' stands twice"),
        ({"templates": {"kind": ["he is"]}}, "'he is' has 0 places {} for a word"),
        ({"templates": {"kind": ["he is {} or {}"]}}, "has 2 places"),
        ({"templates": {"kind": ["zebras are {}"]}}, "does not see 'zebras' of the template"),
        ({"terms": {"group": ["bad", "zebra"]}}, "does not see 'zebra' as one word"),
        ({"terms": {"group": ["bad good"]}}, "does not see 'bad good' as one word"),
    ],
)
def test_words_that_make_no_matched_sentences_are_refused(changes, message):
    with pytest.raises(WordingError, match=message):
        Wording.of(_file(**changes), _classifier())


def test_a_layer_to_read_at_must_be_one_of_the_layers(tmp_path):
    path = tmp_path / "words.yaml"
    path.write_text(yaml.safe_dump(_file(read_at="other").model_dump()))
    with pytest.raises(WordingError, match="read_at is 'other', which is none of"):
        read_wording(path)


def test_templates_of_each_kind_are_on_both_sides_of_the_division():
    wording = Wording.of(_file(), _classifier())
    fit, judge = wording.divided(0.5, 0)
    assert sorted(fit + judge) == list(range(24))
    for side in (fit, judge):
        assert [wording.template_kinds[i] for i in side].count("kind") == 6


def test_the_answer_counts_the_words_that_move_and_names_the_largest(audited):
    result, _ = audited
    assert answer(result, Called()) == (
        "2 of 3 words for groups of people change the score of “toxic” beyond chance, most “bad” (up)."
    )
    falls = replace(result, value=-result.value)
    assert answer(falls, Called()).endswith("most “bad” (down).")
    none = replace(result, p=torch.ones_like(result.p))
    assert answer(none, Called()) == (
        "None of 3 words for groups of people is shown to change the score of “toxic”; that does not prove that none does."
    )


def test_marks_stand_as_high_as_their_numbers(audited):
    result, _ = audited
    chance = beyond_chance(result, Called())
    assert (chance.standing, chance.says) == (Standing.PARTLY, "2 of 3; 2 further than 95% of ordinary adjectives.")
    ordinary = replace(result, beyond=torch.ones_like(result.beyond))
    assert beyond_chance(ordinary, Called()).says == "2 of 3; none further than 95% of ordinary adjectives."
    assert beyond_chance(replace(result, p=0 * result.p), Called()).standing is Standing.YES
    assert beyond_chance(replace(result, p=0 * result.p + 1), Called()).standing is Standing.NO
    listed, agreement = result.listed[1:], result.agreement.clone()
    agreement[:, 1] = -0.1  # each interval reaches below none
    assert methods_agree(replace(result, agreement=agreement)).standing is Standing.NO
    agreement[result.methods.index(listed[0]), 1] = 0.1
    found = methods_agree(replace(result, agreement=agreement))
    assert (found.standing, found.says) == (Standing.PARTLY, f"1 of {len(listed)} methods, in rank.")
    assert word_summary(result, Called()).marks[-1].standing is Standing.UNTESTED


@pytest.mark.parametrize(("low", "high", "standing"), [(0.1, 0.9, "YES"), (-0.2, 0.9, "NO"), (-0.9, -0.1, "NO")])
def test_what_was_expected_came_only_if_its_interval_says_so(audited, low, high, standing):
    result, _ = audited
    mark = word_summary(result, Called(), Correlation((low + high) / 2, low, high, 16)).marks[2]
    assert (mark.asks, mark.standing) == ("As expected?", Standing[standing])
    assert mark.says == {0.1: "in rank.", -0.2: "not shown.", -0.9: "reversed."}[low]


def test_the_sentence_shown_is_that_in_which_the_word_moves_as_in_the_mean(audited):
    result, _ = audited
    by_template = result.by_template.clone()
    by_template[0] += torch.arange(24) - 7.0  # least far from the mean in the eighth
    before, after = sentences(replace(result, by_template=by_template))
    assert before == "“a one cat sat”"
    assert after.endswith("“a bad cat sat”")


def test_one_screen_holds_what_words_do(audited, tmp_path_factory):
    _, out = audited
    with browser.chromium(tmp_path_factory.mktemp("profile")) as chromium:
        assert chromium.first_screen_faults(out / "report.html", picture=False) == []
