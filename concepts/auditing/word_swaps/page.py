"""The report of an audit of words, made of its saved results alone."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from concepts.auditing.analyses.read_used_moved import use_findings, use_numbers, use_section
from concepts.auditing.word_swaps.result import (
    AGREE,
    ALONE,
    MISSES,
    OPPOSITE,
    QUIET,
    SWAP,
    WordResult,
    middle,
    ranked,
)
from concepts.auditing.word_swaps.summary import followers, word_summary
from concepts.auditing.word_swaps.templates import Called, Expectation, WordingFile
from concepts.erasure.table import ReadUsedMovedResult
from concepts.tcav.result import TcavResult
from probing.probes import ProbeResult
from probing.results.figures import figure_of, style
from probing.results.html_report import (
    Block,
    Finding,
    Paragraph,
    Plate,
    Points,
    Report,
    Section,
    Table,
    interval,
    linked,
    number,
    p_value,
)
from probing.results.tables import DataTable
from probing.statistics.hypothesis_tests import Correlation, spearman

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_NAMED = 8
_SWAPS = "What a word does to the score"
_PARTED = "Where explanations part from the measured change"
_LAYERS = "Directions in hidden layers"


def write_page(folder: Path, file: WordingFile, model: str) -> Report:
    """Write tables, figures and `report.html` of the results saved in a folder; no model is run.

    Args:
        folder: with results under `words`, `tcav` and `probes`.
        file: what was asked.
        model: the classifier, in words.
    """
    words = WordResult.load(folder / "words")
    used = ReadUsedMovedResult.load(folder / "used") if (folder / "used").exists() else None
    tcav, probes = TcavResult.load(folder / "tcav"), ProbeResult.load(folder / "probes")
    page = word_page(words, tcav, probes, file, model, used)
    page.save(folder / "report.html")
    return page


def word_page(
    words: WordResult,
    tcav: TcavResult,
    probes: ProbeResult,
    file: WordingFile,
    model: str,
    used: ReadUsedMovedResult | None = None,
) -> Report:
    """Return the page on an audit of words, its figures yet to be drawn.

    Args:
        words: what each word changes.
        tcav: of each word, in the hidden layers.
        probes: of the hidden layers.
        file: what was asked.
        model: the classifier, in words.
        used: what of words for groups is read, used and moves the logit, where that was measured.
    """
    data = (
        DataTable.of_frame("words", "each word's change, measured and predicted", words.to_pandas()),
        DataTable.of_frame("tcav", "TCAV of each word at each layer", tcav.to_pandas(), 3),
        DataTable.of_frame("probes", "probes of each layer", probes.to_pandas()),
    )
    return Report(
        title=file.title,
        subject=f"Audit “{file.name}” of {model.partition(',')[0]}",  # all of it stands at the page's end
        question=file.question,
        findings=(
            *_swap_findings(words, file.called),
            *_expected_findings(words, file),
            _methods_finding(words, tcav),
            *(use_findings(used, "templates") if used else ()),
        ),
        summary=word_summary(words, file.called, _rank_of_expected(words, file.expected)),
        limits=(*file.limits, *_limits(words)),
        sections=(
            Section(_SWAPS, tuple(_swap_blocks(words, data[0], file.called))),
            Section(_PARTED, tuple(_relation_blocks(words, data[0], file.called))),
            Section(_LAYERS, tuple(_layer_blocks(tcav, probes, data[1], file.called))),
            *([use_section(used, "templates")] if used else []),
            Section("Words and templates", tuple(_material_blocks(words, file.called))),
        ),
        data=(*data, *([use_numbers(used)] if used else [])),
        colophon=(
            ("Model", model),
            ("Made", f"{words.provenance.created} by {' '.join(words.provenance.command)}"),
            ("Versions", ", ".join(f"{k} {v}" for k, v in words.provenance.versions.items())),
            ("Content of model and sentences", f"{words.provenance.model}, {words.provenance.examples}"),
        ),
    )


def _swap_findings(words: WordResult, called: Called) -> list[Finding]:
    moved, out = words.moves()[0], words.stands_out()
    swap, label = words.value[0], words.label
    up = [w for w in ranked(swap) if out[w] and swap[w] > 0]
    down = [w for w in ranked(-swap) if out[w] and swap[w] < 0]
    low, high = middle(words.ordinary[0])
    claim = (
        f"Put in place of an ordinary {called.other}, {int(moved.sum())} of {len(words.words)} {called.terms} move "
        f"the logit of “{label}” for sure, {int((moved & (swap > 0)).sum())} of them up; {len(up)} raise it and "
        f"{len(down)} lower it further than all but 5% of ordinary {called.other}s do."
    )
    test = words.against_ordinary
    evidence = (
        f"Up: {_named(words, up)}. " * bool(up)
        + f"Down: {_named(words, down)}. " * bool(down)
        + f"Mean over {len(words.templates)} templates, {words.level:.0%} intervals over templates, Holm-corrected p below "
        f"{words.alpha:g}. For scale: the middle 95% of {len(words.ordinary_words)} ordinary {called.other}s lie between "
        f"{number(low, sign=True)} and {number(high, sign=True)}; a {called.term} raises the logit more than one of them "
        f"with probability {number(test.superiority)} (p {p_value(test.p)}, words taken as independent)."
    )
    return [Finding(claim, evidence, see=_SWAPS), *(_flagged_finding(words, w, called) for w in up[:1])]


def _expected_findings(words: WordResult, file: WordingFile) -> list[Finding]:
    found = _rank_of_expected(words, file.expected)
    if file.expected is None or found is None:
        return []
    rises = "rises" if found.low > 0 else "falls" if found.high < 0 else "is not shown to rise or fall"
    shown = Plate(
        partial(words.plot_against, _expected_values(words, file.expected), file.expected.of),
        "Measured change against what was named beforehand",
        f"Measured change of the logit of “{words.label}” against {file.expected.of} ({file.expected.source}). Bars: "
        f"{words.level:.0%} intervals over templates.",
        "figures/expected",
        "words",
    )
    return [
        Finding(
            f"Across {file.called.terms}, the measured change {rises} with {file.expected.of}, as named beforehand: "
            f"{str(found).replace('r = ', 'rho = ')}.",
            f"Spearman's rank correlation over {len(words.words)} words, taken as independent; source: "
            f"{file.expected.source}. It does not tell whether the model follows the world or the texts it learnt from.",
            see=_SWAPS,
            picture=shown,
        )
    ]


def _rank_of_expected(words: WordResult, expected: Expectation | None) -> Correlation | None:
    return spearman(words.value[0], _expected_values(words, expected), words.level) if expected else None


def _expected_values(words: WordResult, expected: Expectation) -> Tensor:
    return torch.tensor([expected.values[w] for w in words.words], dtype=torch.float64)


def _flagged_finding(words: WordResult, word: int, called: Called) -> Finding:
    shares = [
        f"{kind} {float(words.flagged[word, own].double().mean()):.0%} against"
        f" {float(words.reference_flagged[own].mean()):.0%}"
        for kind in dict.fromkeys(words.template_kinds)
        if (own := words.of_kind(kind))
    ]
    return Finding(
        f"With “{words.words[word]}” the probability of “{words.label}” exceeds one half in "
        f"{float(words.flagged[word].double().mean()):.0%} of the sentences, with the reference {called.other}s in "
        f"{float(words.reference_flagged.mean()):.0%}.",
        f"By kind of sentence: {', '.join(shares)}. Mean probability {number(float(words.probability[word].mean()))} "
        f"against {number(float(words.reference_probability.mean()))}.",
        see=_SWAPS,
    )


def _methods_finding(words: WordResult, tcav: TcavResult) -> Finding:
    """Sum up how far each method follows the measured change, and what TCAV's sign score says."""
    parts = (*(_method_finding(words, m) for m in words.listed[1:]), _tcav_finding(words, tcav))
    follow = followers(words)
    claim = (
        f"Of {len(words.listed) - 1} ways to explain the model, {len(follow) or 'none'} "
        f"{'ranks' if len(follow) == 1 else 'rank'} the words as the measured change does, beyond chance"
    )
    return Finding(f"{claim}: {', '.join(follow)}." if follow else f"{claim}.", parts=parts)


def _method_finding(words: WordResult, method: str) -> Finding:
    groups = words.relations(method)
    slope = float(words.slope[words.methods.index(method)])
    parts = [
        f"{what}: {len(groups[name])} ({_some(groups[name])})."
        for name, what in (
            (OPPOSITE, "Opposite sign"),
            (MISSES, "Only the measured change is significant"),
            (ALONE, "Only the predicted change is"),
        )
        if name in groups
    ]
    agreed = (
        f"For {len(groups.get(AGREE, ()))} words both are significant and have one sign, for "
        f"{len(groups.get(QUIET, ()))} neither is."
    )
    return Finding(
        f"By {method} words rank as by the measured change, {_rank(words, method)}; {_amount(slope)}.",
        " ".join([agreed, *parts]),
        see=_PARTED,
    )


def _amount(slope: float) -> str:
    if slope <= 0:
        return "its amounts do not follow the measured ones"
    share = 1 / slope
    if 0.9 <= share <= 1.1:
        return "its amounts are right within a tenth"
    return f"its amounts are {share:.0%} of the measured ones" if share < 10 else "its amounts are far too large"


def _tcav_finding(words: WordResult, tcav: TcavResult) -> Finding:
    swap, sentences = words.value[0], []
    for i, layer in enumerate(tcav.layers):
        slope = float(words.slope[words.methods.index(f"TCAV {layer}")])
        sentences.append(
            f"{layer}: effect {_rank(words, f'TCAV {layer}')}, {_amount(slope)}; sign score rho = "
            f"{number(spearman(tcav.mean[i, :, 0], swap).r)}."
        )
    cells = tcav.mean.numel()
    return Finding(
        f"By TCAV's sign score {int(tcav.significant.sum())} of {cells} words by layer differ from pseudo-concepts after "
        f"correction; the t-test of the TCAV paper would call {int((tcav.p_paper < words.alpha).sum())} significant.",
        " ".join(["By layer, against the measured change:", *sentences]),
        see=_LAYERS,
    )


def _swap_blocks(words: WordResult, data: DataTable, called: Called) -> list[Block]:
    order = ranked(words.value[0])
    rows = tuple(
        linked(
            (
                words.words[w],
                words.kinds[w],
                number(float(words.value[0, w]), sign=True),
                interval(float(words.low[0, w]), float(words.high[0, w])),
                p_value(float(words.p[0, w])),
                f"{float(words.beyond[0, w]):.0%}",
                number(float(words.probability[w].mean())),
                f"{float(words.flagged[w].double().mean()):.0%}",
            ),
            data.at(words.words[w]),
            2,
        )
        for w in order
    )
    kinds = ", ".join(f"{kind} {number(size)}" for kind, size in words.by_kind().items())
    return [
        Plate(
            words.plot,
            "Changes of the logit by word",
            f"Change of the logit against the reference {called.other}s, measured (left) and as each method predicts it; "
            "grey squares repeat the measured change. Bars: intervals. The band holds the middle 95% of ordinary "
            f"{called.other}s. Filled: significant after correction.",
            "figures/words",
            data.name,
        ),
        Table(
            "Measured change of the logit by word",
            ("word", "kind", "change", "interval", "p", "ordinary words as far", "probability", "above one half"),
            rows,
            text_columns=2,
        ),
        Paragraph(f"Mean size of the change by kind of template: {kinds}."),
    ]


def _relation_blocks(words: WordResult, data: DataTable, called: Called) -> list[Block]:
    rows = []
    for m, method in enumerate(words.methods):
        if method == SWAP:
            continue
        counts = {name: len(each) for name, each in words.relations(method).items()}
        r, low, high = words.agreement[m].tolist()
        rows.append(
            (
                method,
                number(r),
                interval(low, high),
                number(float(words.slope[m])),
                *(str(counts.get(name, 0)) for name in (AGREE, QUIET, OPPOSITE, MISSES, ALONE)),
            )
        )
    listed = [m for m in words.listed if m != SWAP]
    parted = [w for w in words.words if {words.relation(m, w) for m in listed} - {AGREE, QUIET}]
    table = tuple(
        linked(
            (w, number(float(words.value[0, words.words.index(w)]), sign=True), *(_said(words, m, w) for m in listed)),
            data.at(w),
        )
        for w in parted
    )
    return [
        Paragraph(
            f"Every method predicts the same number: the change of the logit when a reference {called.other} is swapped for "
            "the word, as the difference of what it says of the two in the same template. Slope: measured change per "
            "predicted change."
        ),
        Plate(
            words.plot_agreement,
            "Predicted and measured changes",
            "Predicted against measured change, a point a word; on the line the two are equal.",
            "figures/agreement",
            data.name,
        ),
        Table(
            "How far methods follow the measured change",
            ("method", "rank correlation", "interval", "slope", AGREE, QUIET, OPPOSITE, MISSES, ALONE),
            tuple(rows),
        ),
        Table(
            "Words on which a method parts from the measured change", ("word", "measured", *listed), table, text_columns=1
        ),
    ]


def _layer_blocks(tcav: TcavResult, probes: ProbeResult, data: DataTable, called: Called) -> list[Block]:
    rows = tuple(
        linked(
            (
                layer,
                concept,
                number(float(tcav.mean[i, c, 0])),
                p_value(float(tcav.p_max_t[i, c, 0])),
                f"{float(tcav.p_controls[i, c, 0]):.2f}",
                number(float(tcav.effect[i, c, 0]), sign=True),
                interval(float(tcav.effect_low[i, c, 0]), float(tcav.effect_high[i, c, 0])),
                p_value(float(tcav.effect_p_max_t[i, c, 0])),
                number(float(tcav.accuracy[i, c].mean())),
            ),
            data.at(layer, concept, tcav.targets[0]),
            2,
        )
        for i, layer in enumerate(tcav.layers)
        for c, concept in enumerate(tcav.concepts)
    )
    errors = ", ".join(
        f"{layer} {number(e)} ({interval(a, b, sign=False)})"
        for layer, e, a, b in zip(
            probes.layers, probes.error.tolist(), probes.low.tolist(), probes.high.tolist(), strict=True
        )
    )
    said = (
        *_no_direction(tcav),
        *(s for s in tcav.sentences() if "no evidence of a direction" not in s),
    )
    return [
        Paragraph(
            f"Probes tell sentences with a {called.term} from those with an ordinary {called.other}, judged on "
            f"words that no probe was fitted on. Error: {errors}; naming the larger class errs in "
            f"{number(probes.majority_error)}. It says what a layer holds, not what the score uses."
        ),
        Plate(
            partial(_errors, probes),
            "Probe error by layer",
            "Error of the probes by layer, beside random weights and a control task.",
            "figures/probes",
            "probes",
        ),
        *([Points(said)] if said else []),
        Table(
            "TCAV of each word in each layer",
            ("layer", "word", "score", "p", "p among ordinary words", "effect", "interval", "p of effect", "accuracy"),
            rows,
            text_columns=2,
            folded=True,
        ),
    ]


def _no_direction(tcav: TcavResult) -> list[str]:
    """Return by layer the words that no direction tells from ordinary ones, in a line instead of one each."""
    found = []
    for layer, row in zip(tcav.layers, tcav.exists.tolist(), strict=True):
        if lost := [c for c, there in zip(tcav.concepts, row, strict=True) if not there]:
            found.append(
                f"At {layer!r} there is no evidence of a direction for {', '.join(lost)}: scores along theirs are not "
                "called significant."
            )
    return found


def _material_blocks(words: WordResult, called: Called) -> list[Block]:
    kinds = dict.fromkeys(words.template_kinds)
    by_kind = zip(words.templates, words.template_kinds, strict=True)
    templates = tuple((t, k) for t, k in by_kind)
    return [
        Paragraph(
            f"Reference {called.other}s: {', '.join(words.reference_words)}. Ordinary {called.other}s:"
            f" {', '.join(words.ordinary_words)}."
        ),
        Table(f"Templates, of {len(kinds)} kinds", ("template", "kind"), templates, text_columns=2, folded=True),
    ]


def _limits(words: WordResult) -> list[str]:
    hidden = "LIME hides a word and so asks what the sentence is without it; " * ("LIME" in words.methods)
    return [
        (
            f"{hidden}integrated gradients begin at an empty text. What local methods say of two words in one place is "
            "subtracted to be held against their swap. TCAV's effect is to first order, and in layers that keep the text's "
            "positions it moves all of them alike."
        ),
        f"Integrated gradients miss the change they should add up to by {number(words.completeness_gap, 1)} logits at most.",
        "Rank correlations take words as independent; words of one kind are alike, so the intervals are rather too short.",
        (
            "That a change is not significant does not mean that there is none: TCAV's test has half the templates only,"
            " and is corrected for all words and layers."
        ),
    ]


def _said(words: WordResult, method: str, word: str) -> str:
    m, w = words.methods.index(method), words.words.index(word)
    relation = words.relation(method, word)
    note = "" if relation in {AGREE, QUIET} else f" ({relation})"
    return f"{number(float(words.value[m, w]), sign=True)}{note}"


def _rank(words: WordResult, method: str) -> str:
    return str(words.correlation(method)).replace("r = ", "rho = ")


def _named(words: WordResult, places: Sequence[int]) -> str:
    named = [
        f"{words.words[w]} {number(float(words.value[0, w]), sign=True)} "
        f"({interval(float(words.low[0, w]), float(words.high[0, w]))})"
        for w in places[:_NAMED]
    ]
    return ", ".join(named) + (f" and {len(places) - _NAMED} more" if len(places) > _NAMED else "")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def _errors(probes: ProbeResult) -> "Figure":
    with style():
        return figure_of(probes.plot())
