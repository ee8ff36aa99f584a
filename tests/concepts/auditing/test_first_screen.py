"""The first screen of an audit: its sentence is as strong as its numbers, and one screen holds what people decide by."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import audits
import browser
import pytest

from concepts.auditing.measurement.results import AuditResults, SwapRow
from concepts.auditing.report import figures
from concepts.auditing.report.page import audit_page
from concepts.auditing.report.summary import audit_summary
from probing.results.html_report import Section, Standing, Summary, plain

TITLE = "Does drawn gender or skin tone move what an ImageNet model sees in a figure at work?"


def summary(results: AuditResults) -> Summary:
    return audit_summary(results, lambda _: pytest.fail("no picture is read before the figure is drawn"))


def changed(results: AuditResults, **to: object) -> AuditResults:
    return replace(results, swaps=tuple(replace(r, **to) for r in results.swaps))  # type: ignore[arg-type]


def unmatched(results: AuditResults) -> AuditResults:
    """Return the results as if its concepts had been folders of pictures."""
    concepts = tuple(replace(c, matched=False) for c in results.concepts)
    return replace(results, concepts=concepts, swaps=(), backdrops=(), picked=(), pairs=(), positions=())


def strongest(rows: list[SwapRow]) -> str:
    best = rows[0]
    for row in rows:
        if abs(row.swap) > abs(best.swap):
            best = row
    return f"most {best.target} ({'up' if best.swap > 0 else 'down'})"


@pytest.mark.parametrize("seed", range(5))
def test_the_answer_counts_what_is_significant_after_correction_and_names_the_largest(seed: int) -> None:
    made_up = audits.results(seed=seed)
    said = summary(made_up).answer
    first, second = said.split(";")
    for part, concept in ((first, "woman against man"), (second, "dark against light")):
        rows = [r for r in made_up.swaps if r.concept == concept and (r.p_corrected or 0) < made_up.alpha]
        assert f"changes {len(rows)}" in part
        assert strongest(rows) in part
    assert "of 8 class scores beyond chance" in first
    assert "yes" not in said.lower(), "the question is the audit file's: what answers it is for people to say"


def test_before_correction_nothing_counts() -> None:
    made_up = changed(audits.results(), p=0.001, p_corrected=0.2)
    found = summary(made_up)
    assert found.answer == (
        "Showing “woman” instead of “man” or “dark” instead of “light” is not shown to change any of 8 class scores; that "
        "does not prove that none changes."
    )
    assert found.marks[0].standing is Standing.NO
    assert found.marks[0].says == "none of 16 after correction."


def test_what_was_not_tested_is_said_to_be_so() -> None:
    found = summary(changed(audits.results(), p=None, p_corrected=None, low=None, high=None))
    assert found.answer == "Whether any class score changes when matched images are swapped was not tested."
    assert [mark.standing for mark in found.marks] == [Standing.UNTESTED, Standing.PARTLY, Standing.UNTESTED]
    few = summary(audits.results(targets=("toaster",)))
    assert few.marks[1].standing is Standing.UNTESTED


def test_marks_stand_as_high_as_their_numbers_and_no_higher() -> None:
    made_up = audits.results()
    sure = [r for r in made_up.swaps if (r.p_corrected or 0) < made_up.alpha]
    far = [r for r in sure if abs(r.swap) > 0.5]  # as the made-up bands are
    chance, agree, again = summary(made_up).marks
    assert chance.says == f"{len(sure)} of 16; {len(far)} outside the grey band."
    assert chance.standing is Standing.PARTLY
    trusted = [r for r in made_up.layer_rows if r.trusted]
    assert agree.says == f"at {len(trusted)} of 8 layers."
    assert again.standing is Standing.UNTESTED
    assert summary(changed(made_up, p_corrected=0.001)).marks[0].standing is Standing.YES
    wary = replace(made_up, layer_rows=tuple(replace(r, trusted=False) for r in made_up.layer_rows))
    assert summary(wary).marks[1].standing is Standing.NO


def test_that_expected_classes_change_more_is_disclaimed_unless_it_is_shown() -> None:
    made_up = audits.results()
    disclaimed = "or that expected classes change more."
    assert disclaimed in summary(made_up).caveat  # one class alone was expected to move
    expected = tuple(
        replace(t, expected={"woman against man": "up"} if k < 4 else {}) for k, t in enumerate(made_up.targets)
    )
    large = {t.name for t in expected[:4]}
    shown = tuple(replace(r, swap=(2.0 if r.target in large else 0.1) + 0.01 * k) for k, r in enumerate(made_up.swaps))
    assert disclaimed not in summary(replace(made_up, targets=expected, swaps=shown)).caveat
    reversed_ = tuple(replace(r, swap=(0.1 if r.target in large else 2.0) + 0.01 * k) for k, r in enumerate(made_up.swaps))
    assert disclaimed in summary(replace(made_up, targets=expected, swaps=reversed_)).caveat


def test_without_matched_images_the_answer_says_that_nothing_was_changed() -> None:
    made_up = unmatched(audits.results())
    cells = tuple(
        replace(
            c,
            tcav_p_corrected=1.0,
            effect_p_corrected=0.01 if (c.concept, c.target) in {("red", "suit"), ("red", "purse")} else 1.0,
        )
        for c in made_up.cells
    )
    found = summary(replace(made_up, cells=cells))
    assert found.answer == (
        "To first order, 2 of 8 class scores depend on the direction of “red”, none on 2 others; nothing was swapped."
    )
    none = replace(made_up, cells=tuple(replace(c, tcav_p_corrected=1.0, effect_p_corrected=1.0) for c in made_up.cells))
    assert summary(none).answer == (
        "No class score is shown to depend on any of 3 concepts; that does not show that none does."
    )
    assert summary(none).marks[0].standing is Standing.NO


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return reports of made-up audits with matched images and without, titled as the default audit is."""
    many = tuple(f"class {i}" for i in range(18))
    matched = replace(audits.results(targets=many), title=TITLE, question=f"{TITLE} " * 3)
    found = {}
    for name, results in {"matched": matched, "unmatched": unmatched(matched)}.items():
        folder = tmp_path_factory.mktemp(name)
        audits.save_pictures(folder / "images")
        results.save(folder)
        whole = audit_page(results, folder, {"created": "today"})
        # What stands below takes most of the time to draw.
        page = replace(whole, sections=tuple(replace(section, blocks=()) for section in whole.sections))
        found[name] = page.save(folder / "report.html", alone=True)
    return found


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.mark.parametrize("kind", ["matched", "unmatched"])
def test_one_screen_holds_answer_picture_marks_and_caveat_in_few_words(
    chromium: browser.Browser, pages: dict[str, Path], kind: str
) -> None:
    assert chromium.first_screen_faults(pages[kind]) == []


def test_the_reader_sees_what_a_screen_lacks(chromium: browser.Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<!doctype html><html lang=en><title>a</title><header><h1>a</h1></header><main><section class=summary>"
        f"<p class=answer>{'9 ' * 100}</p><figure><svg style='height: 900px; width: 600px'></svg></figure>"
        "<div class=sure><ul class=marks></ul><p></p></div><div class=read><p></p></div></section>"
        "<section class=verdict></section></main><script>console.error('no')</script>",
        encoding="utf-8",
    )
    found = " ".join(chromium.first_screen_faults(broken))
    for fault in (
        "figure svg from",
        ".marks from",
        "101 words",
        "100 numbers",
        "no picture",
        "'no'",
        "wide on a phone",
        "dark: ",
        "dots high in print",
        "findings begin on",
    ):
        assert fault in found


def test_numbers_are_folded_under_each_finding_and_lead_to_their_rows(
    chromium: browser.Browser, pages: dict[str, Path]
) -> None:
    chromium.open(pages["matched"])
    chromium.media()
    folds = chromium.run("document.querySelectorAll('.verdict > ol > li > details:not([open])').length")
    assert folds == chromium.run("document.querySelectorAll('.verdict > ol > li').length")
    chromium.run("document.querySelector('.known').open = true")
    chromium.run("document.querySelector('.known a[href^=\"#swaps-\"]').click()")
    assert chromium.until("!!document.querySelector('#data-swaps[open]')")


def test_results_of_older_audits_have_no_pair_and_are_drawn_without(tmp_path: Path) -> None:
    older = replace(audits.results(), pairs=())
    figure = audit_summary(older, lambda name: pytest.fail(f"asked for {name}")).plate.draw()
    assert not any(axes.images for axes in figure.axes)
    assert plain(summary(older).answer) == summary(audits.results()).answer


def test_classes_beyond_chance_are_counted_layer_by_layer() -> None:
    made_up = audits.results()
    left, right = figures.told(made_up).axes
    for axes, which in ((left, "tcav_p_corrected"), (right, "effect_p_corrected")):
        for concept, line in zip(made_up.concepts, axes.lines, strict=True):
            counted = [
                sum(
                    (getattr(c, which) if getattr(c, which) is not None else 1.0) < made_up.alpha
                    for c in made_up.cells
                    if (c.concept, c.layer) == (concept.name, layer)
                )
                for layer in made_up.layers
            ]
            assert list(line.get_ydata()) == counted
    assert max(max(line.get_ydata()) for line in right.lines) > 0, "the control"


def test_only_trusted_layers_are_filled() -> None:
    made_up = audits.results()
    [axes] = figures.trust(made_up).axes
    dots = [line for line in axes.lines if len(line.get_xdata()) == 1]
    rows = [r for c in made_up.contrasts for r in made_up.layer_rows if r.concept == c.name]
    assert [float(dot.get_ydata()[0]) for dot in dots] == [r.r for r in rows]
    assert [dot.get_markerfacecolor() != "white" for dot in dots] == [r.trusted for r in rows]
    assert {r.trusted for r in rows} == {True, False}, "the control"


def test_what_found_nothing_is_folded_away(tmp_path: Path) -> None:
    made_up = audits.results()
    made_up.save(tmp_path)
    titles = [s.title for s in audit_page(made_up, tmp_path, {}).sections]
    assert "Which classes move most" in titles
    lost = replace(made_up, picked=tuple(replace(r, p_corrected=0.5) for r in made_up.picked))
    [gathered] = [s for s in audit_page(lost, tmp_path, {}).sections if s.title == "Looked for and not found"]
    assert gathered.folded
    assert [s.title for s in gathered.blocks if isinstance(s, Section)] == ["Which classes move most"]
