"""Two audits of the same images: paired differences, what may be said of them, what is refused; and `probing report`."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import audits
import browser
import numpy as np
import pytest
from scipy import stats
from torch import nn

from concepts.auditing.measurement import setup
from concepts.auditing.measurement.results import AuditResults, ClusterRow, ResultsError, SwapRow
from concepts.auditing.model_comparison.compare import SideBySide, SideBySideError, side_by_side
from concepts.auditing.model_comparison.page import side_by_side_page
from concepts.auditing.model_comparison.summary import comparison_summary
from concepts.cli.app import main
from probing.results import html_report
from probing.results.html_report import Standing, plain
from probing.statistics.hypothesis_tests import holm

GENDER, TONE = "woman against man", "dark against light"
CLUSTERS = tuple(f"role {i}" for i in range(12))
Made = dict[str, object]


def made(model: str) -> Made:
    contrasts = [
        {"positive": "woman", "negative": "man", "vary": "gender", "swaps": [["man", "woman"]]},
        {"positive": "dark", "negative": "light", "vary": "tone", "swaps": [["light", "dark"]]},
    ]
    return {
        "created": "today",
        "model": model,
        "manifests": [{"name": "data", "content": "the images"}],
        "audit": {"contrasts": contrasts, "statistics": {"seed": 0}},
        "versions": {"torch": "1"},
    }


def audit(noise: float, shift: float, seed: int) -> AuditResults:
    """Return an audit whose changes are the roles' own, common to all audits, and some of its own."""
    roles = np.random.default_rng(0).normal(0, 0.5, len(CLUSTERS))
    rng = np.random.default_rng(seed)
    base = audits.results()
    rows, swaps = [], []
    for concept in (GENDER, TONE):
        for i, target in enumerate(audits.TARGETS):
            own = roles + shift * (i == 0 and concept == GENDER) + rng.normal(0, noise, len(CLUSTERS))
            rows += [ClusterRow(concept, target, c, 6, float(v)) for c, v in zip(CLUSTERS, own, strict=True)]
            test = stats.ttest_1samp(own, 0)
            ends = test.confidence_interval(0.95)
            swaps.append(SwapRow(concept, target, float(own.mean()), *map(float, (*ends, test.pvalue, test.pvalue)), 0.1))
    return replace(base, swaps=tuple(swaps), by_cluster=tuple(rows))


def saved(folder: Path, results: AuditResults, about: Made) -> Path:
    results.save(folder)
    (folder / "provenance.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return (
        saved(tmp_path / "old", audit(0.05, 0.0, 1), made("m1")),
        saved(tmp_path / "new", audit(0.05, 0.6, 2), made("m2")),
    )


def test_a_comparison_is_a_result_that_is_saved_loaded_tabled_and_drawn(pair: tuple[Path, Path], tmp_path: Path) -> None:
    found = side_by_side(*pair)
    again = SideBySide.load(found.save(tmp_path / "kept"))
    assert replace(again, provenance=found.provenance) == replace(found, first=again.first, second=again.second)
    assert again.first.results == found.first.results
    assert again.labels == found.labels == ("old", "new")
    assert len(found.to_pandas()) == len(found.differences)
    with pytest.raises(ResultsError, match="holds no comparison"):
        SideBySide.load(tmp_path)


def test_differences_are_paired_t_tests_over_clusters_and_corrected_over_all(
    pair: tuple[Path, Path],
) -> None:
    found = side_by_side(*pair)
    assert found.labels == ("old", "new")
    sides = [
        {(r.concept, r.target, r.cluster): r.swap for r in side.results.by_cluster} for side in (found.first, found.second)
    ]
    p = []
    for d in found.differences:
        first, second = ([side[d.contrast, d.target, c] for c in CLUSTERS] for side in sides)
        peer = stats.ttest_rel(second, first)
        assert d.p == pytest.approx(peer.pvalue)
        assert (d.low, d.high) == pytest.approx(tuple(peer.confidence_interval(0.95)))
        assert d.difference == pytest.approx(d.second - d.first)
        p.append(d.p)
    import torch

    assert [d.p_corrected for d in found.differences] == pytest.approx(holm(torch.tensor(p, dtype=torch.float64)).tolist())
    assert [(d.contrast, d.target) for d in found.differences if found.significant(d)] == [(GENDER, "bikini")]
    turned = side_by_side(*reversed(pair))
    assert [-d.difference for d in turned.differences] == pytest.approx([d.difference for d in found.differences])


def test_a_change_told_in_one_audit_only_is_no_difference(tmp_path: Path) -> None:
    results = audit(0.05, 0.0, 1)
    first = tuple(replace(r, p_corrected=0.01) for r in results.swaps)
    second = tuple(replace(r, p_corrected=0.2) for r in results.swaps)
    a = saved(tmp_path / "a", replace(results, swaps=first), made("m1"))
    b = saved(tmp_path / "b", replace(results, swaps=second), made("m2"))
    finding = side_by_side_page(side_by_side(a, b)).findings[0]
    assert finding.claim.startswith("For no class is it shown that the change")
    assert "moved in one of the two only: 8, of which 0 differ for sure" in plain(finding.evidence)


def test_logits_on_other_scales_are_warned_of(pair: tuple[Path, Path]) -> None:
    results = AuditResults.load(pair[1])
    wide = tuple(replace(b, low=3 * b.low, high=3 * b.high) for b in results.backdrops)
    for backdrops, warned in ((results.backdrops, False), (wide, True)):
        replace(results, backdrops=backdrops).save(pair[1])
        said = plain(side_by_side_page(side_by_side(*pair)).findings[0].evidence)
        assert "For scale: the middle 95% of the changes of all classes lie between" in said
        assert ("scales 3.0 times apart, by which alone amounts differ" in said) == warned


def test_the_first_screen_of_a_comparison_says_what_its_differences_say(pair: tuple[Path, Path]) -> None:
    found = side_by_side(*pair)
    first = comparison_summary(found)
    assert first.answer == (
        "In new against old, by woman against man 1 of 8 class scores changes otherwise, most bikini (higher in new); by "
        "dark against light none."
    )
    assert first.marks[0].says == "1 of 16 after correction."
    assert first.marks[0].standing is Standing.PARTLY
    assert "most bikini (lower in old)" in comparison_summary(side_by_side(*reversed(pair))).answer
    none = replace(found, differences=tuple(replace(d, p=0.01, p_corrected=0.06) for d in found.differences))
    assert comparison_summary(none).answer.startswith("For none of 8 class scores is it shown that the change by woman")
    assert comparison_summary(none).marks[0].standing is Standing.NO
    untested = replace(found, differences=tuple(replace(d, p=None, p_corrected=None) for d in found.differences))
    assert comparison_summary(untested).marks[0].standing is Standing.UNTESTED


def test_scales_of_two_models_that_lie_apart_are_marked(pair: tuple[Path, Path]) -> None:
    results = AuditResults.load(pair[1])
    for times, standing in ((1, Standing.YES), (3, Standing.NO)):
        wide = tuple(replace(b, low=times * b.low, high=times * b.high) for b in results.backdrops)
        replace(results, backdrops=wide).save(pair[1])
        scales = comparison_summary(side_by_side(*pair)).marks[1]
        assert (scales.standing, scales.says) == (standing, f"{times:.1f} times apart.")


def test_one_screen_holds_a_comparison(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for folder in pair:
        audits.save_pictures(folder / "images")
    whole = side_by_side_page(side_by_side(*pair))
    page = replace(whole, sections=tuple(replace(section, blocks=()) for section in whole.sections))
    with browser.chromium(tmp_path) as chromium:
        assert chromium.first_screen_faults(page.save(tmp_path / "page.html", alone=True)) == []


def _other_contrast(about: Made) -> None:
    about["audit"]["contrasts"][0]["swaps"] = [["person", "woman"]]  # type: ignore[index]


@pytest.mark.parametrize(
    ("results", "about", "match"),
    [
        (None, lambda m: m.update(manifests=[{"name": "data", "content": "others"}]), "their images differ, so that"),
        (None, lambda m: m.update(model="m1"), r"both are of one model on the same images \(content m1\)"),
        (None, lambda m: m.pop("manifests"), "'b' lacks what each cluster did: run that audit again"),
        (None, _other_contrast, "'woman against man' does not swap the same images in both"),
        (lambda r: replace(r, by_cluster=()), None, "'b' lacks what each cluster did"),
        (lambda r: replace(r, by_cluster=(), concepts=r.concepts[2:]), None, "nothing was swapped in 'b'"),
        (lambda r: replace(r, alpha=0.01), None, "intervals and tests are at 0.95 and 0.05, and at 0.95 and 0.01"),
        (lambda r: replace(r, by_cluster=r.by_cluster[1:]), None, "does not swap the same images in both"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_a_sentence(
    results: Callable[[AuditResults], AuditResults] | None,
    about: Callable[[Made], object] | None,
    match: str,
    tmp_path: Path,
) -> None:
    own, said = audit(0.05, 0.0, 1), made("m2")
    a = saved(tmp_path / "a", own, made("m1"))
    if about:
        about(said)
    b = saved(tmp_path / "b", results(own) if results else own, said)
    with pytest.raises(SideBySideError, match=match):
        side_by_side(a, b)
    with pytest.raises(SideBySideError, match="they are one folder"):
        side_by_side(a, a)


def _no_model(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(setup.loading, "load", lambda *_, **__: pytest.fail("a model was loaded"))
    patch.setattr(nn.Module, "__call__", lambda *_, **__: pytest.fail("a model was run"))


def test_the_command_rebuilds_one_report_and_says_what_it_found(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _no_model(monkeypatch)
    monkeypatch.setattr(html_report, "save_figure", lambda *_: None)  # the page does not need them
    audits.save_pictures(pair[0] / "images")
    assert main(["report", str(pair[0])]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Main findings:"
    assert [line[:4] for line in said[1:4]] == ["  1.", "  2.", "  3."]
    assert said[4] == f"Report: {pair[0] / 'report.html'}"
    assert (pair[0] / "tables" / "swaps_by_cluster.csv").exists()
    assert "torch==1" in (pair[0] / "report.html").read_text(encoding="utf-8")


def test_the_command_compares_two_and_refuses_more_or_none(
    pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _no_model(monkeypatch)
    out = tmp_path / "both.html"
    assert main(["report", *map(str, pair), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "The changes by woman against man differ for 1 of 8 classes." in said
    assert f"Comparison: {out}" in said
    with browser.chromium(tmp_path) as chromium:
        chromium.open(out)
        chromium.run("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
        assert (chromium.faults(), chromium.complaints) == ([], [])
        assert chromium.requests == [out.as_uri()]
    for arguments, message in (
        ([*map(str, pair), str(pair[0])], "two are compared, got 3 folders"),
        ([str(pair[0]), "--out", str(out)], "--out is for two folders"),
        ([str(pair[0]), str(pair[0])], "they are one folder"),
        ([str(tmp_path)], "holds no provenance.json"),
    ):
        assert main(["report", *arguments]) == 2
        assert message in capsys.readouterr().err
