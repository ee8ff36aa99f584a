"""The report as people meet it: in a browser with and without scripts, by keyboard, in the dark, on paper."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import audits
import browser
import pytest
import torch

from concepts.auditing.report.page import SCORECARD, _scorecard, write_report
from probing.evaluation.scorecard.cost import Cost
from probing.evaluation.scorecard.scorecard import Row, Scorecard
from probing.results import html_report
from probing.results.html_report import Finding, Paragraph, Report, Section, Table
from probing.results.result import Provenance

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title=1</script>"\'>'


def scorecard(model: str) -> Scorecard:
    facts = replace(Provenance.collect(), model=model)
    cost = Cost(1, 0, 0.1, 1.0, 0.0, 1, 0)
    values = (
        {"abpc": torch.tensor([3.0, 1.0]).double()},
        {"abpc": torch.tensor([2.0, 2.5]).double()},
    )
    rows = [Row(facts, name, "Saliency", "backprop", "", v, cost) for name, v in zip((HOSTILE, "ig"), values, strict=True)]
    return Scorecard.of(rows, facts)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an audit's report in which a class, a concept and an image are called so as to break it."""
    made_up = audits.results(targets=("bikini", HOSTILE, "purse", "toaster"))
    rows = tuple(replace(r, caption=HOSTILE) for r in made_up.likeness)
    folder = tmp_path_factory.mktemp("report") / "<b>&amp;"
    audits.save_pictures(folder / "images")
    replace(made_up, likeness=rows, title=f"Audit of {HOSTILE}").save(folder)
    scorecard("audited").save(folder / SCORECARD)
    about = {
        "created": "today",
        "command": [HOSTILE],
        "audit": {"name": HOSTILE},
        "model": "audited",
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html_report, "save_figure", lambda *_: None)  # the page does not need them
        write_report(folder, about)
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    with browser.chromium(tmp_path_factory.mktemp("profile")) as one:
        yield one


def test_nothing_is_asked_for_and_nothing_complained_of(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    assert chromium.requests == [page.resolve().as_uri()]
    assert chromium.complaints == []
    assert chromium.run("document.title") == f"Audit of {HOSTILE}"
    assert chromium.run("document.querySelectorAll('[onerror], img, script').length") == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1400, 420])
def test_nothing_keeps_people_out(chromium: browser.Browser, page: Path, scheme: str, width: int) -> None:
    chromium.open(page, width=width)
    chromium.media(scheme)
    chromium.run("document.querySelectorAll('details').forEach((fold) => (fold.open = true))")
    assert chromium.faults() == []


def test_a_scorecard_beside_is_shown_if_it_is_of_the_audited_model(
    chromium: browser.Browser, page: Path, tmp_path: Path
) -> None:
    chromium.open(page)
    title = "Which explanations of this model to trust"
    parts = "[...document.querySelectorAll('section section > h3')].map((h) => h.textContent)"
    assert chromium.run("document.body.textContent").count(title) >= 2  # the heading and the contents
    assert "The table, measured" in chromium.run(parts)
    assert _scorecard(tmp_path, {"model": "audited"}) is None
    scorecard("another").save(tmp_path / SCORECARD)
    section = _scorecard(tmp_path, {"model": "audited"})
    assert section is not None
    [block] = section.blocks
    assert isinstance(block, Paragraph)
    assert "of another model than the audited one" in block.text


def test_the_checks_see_what_keeps_people_out(chromium: browser.Browser, tmp_path: Path) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(
        "<!doctype html><title></title><h1>a</h1><main><h3 id=x style='color: #999'>b</h3><img src='data:,'>"
        "<table><tr><td id=x>1</td></tr></table><svg><text>c</text></svg><a href='#y'></a></main><p>outside",
        encoding="utf-8",
    )
    chromium.open(broken)
    chromium.media()
    found = " ".join(chromium.faults())
    for fault in (
        "no language",
        "no title",
        "not one header",
        "level 3 after one of 1",
        "contrast 2.85",
        "without alt",
        "without a caption",
        "x stands 2 times",
        "figure without a name",
        "link to nowhere",
        "nothing to call it by",
        "outside every landmark",
        "row without a header",
    ):
        assert fault in found


def test_without_scripts_everything_is_there_to_read(chromium: browser.Browser, page: Path) -> None:
    text = "document.body.textContent.replace(/\\s+/g, ' ').length"
    chromium.open(page)
    every = chromium.run("document.body.innerText.includes('Enlarge')"), chromium.run(text)
    chromium.open(page, scripts=False)
    assert every[0]
    assert not chromium.run("document.body.innerText.includes('Enlarge')")
    assert chromium.run(text) > 0.95 * every[1]
    assert chromium.run("document.querySelectorAll('button, dialog').length") == 0
    assert chromium.faults() == []
    chromium.run("location.hash = 'classes_by_layer-2'")
    row = "document.getElementById('classes_by_layer-2')"
    assert chromium.until(f"{row}.getBoundingClientRect().height > 0")  # a link into a fold opens it


def test_a_number_leads_to_its_row_and_the_row_is_that_line_of_the_csv(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    chromium.run("document.querySelector('.heat td a').click()")
    to = chromium.run("location.hash.slice(1)")
    cells = "[...document.querySelector(':target').cells].map((cell) => cell.textContent)"
    row = chromium.until(f"document.querySelector(':target') && {cells}")
    table, _, line = to.rpartition("-")
    assert row[0] == line
    csv = (page.parent / "tables" / f"{table}.csv").read_text(encoding="utf-8").splitlines()
    assert csv[int(line) - 1].startswith(",".join(row[1:4]))
    assert chromium.run("document.querySelector(':target').closest('details').open")
    held = chromium.run("atob(document.querySelector('#data-swaps a[download]').href.split(',')[1])")
    swaps = (page.parent / "tables" / "swaps.csv").read_bytes().decode()
    assert held.encode("latin1").decode() == swaps


def test_tables_are_sorted_by_keyboard_and_say_so(chromium: browser.Browser, tmp_path: Path) -> None:
    minus = "\N{MINUS SIGN}"
    rows = (("b", "+0.5", "< 0.001"), ("a", f"{minus}1.5", "0.040"), ("c", "\N{EN DASH}", "1.000"))
    table = Table("numbers", ("name", "value", "p"), rows)
    made = Report("t", "s", "q", (Finding("c"),), ("l",), (Section("one", (Paragraph("p"), table)),))
    chromium.open(made.save(tmp_path / "sorted.html"))
    order = "[...document.querySelectorAll('tbody th')].map((cell) => cell.textContent).join('')"
    said = "[...document.querySelectorAll('thead th')].map((cell) => cell.getAttribute('aria-sort'))"
    for _ in range(30):
        chromium.press("Tab")
        if chromium.run("document.activeElement.textContent") == "value":
            break
    seen = []
    for _ in range(2):
        chromium.press("Enter")
        seen.append((chromium.run(order), chromium.run(said)))
    assert seen == [("abc", [None, "ascending", None]), ("bac", [None, "descending", None])]
    chromium.run("document.querySelectorAll('thead th button')[2].click()")
    assert chromium.run(order) == "bac"


def test_the_keyboard_reaches_the_verdict_first_and_a_figure_opens_and_closes(chromium: browser.Browser, page: Path) -> None:
    chromium.open(page)
    chromium.press("Tab")
    assert chromium.run("document.activeElement.textContent") == "Skip to the verdict"
    assert chromium.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    chromium.press("Enter")
    assert chromium.run("document.activeElement.id") == "verdict"
    drawn = "document.querySelectorAll('figure svg[role=img]').length"
    every = chromium.run(drawn)
    chromium.run("document.querySelector('.enlarge').focus()")
    chromium.press("Enter")
    assert chromium.run("document.querySelector('dialog').open")
    assert chromium.run(drawn) == every - 1
    chromium.press("Escape")
    closed = "new Promise((done) => setTimeout(() => done(document.querySelector('dialog').open), 100))"
    assert not chromium.run(closed)
    assert chromium.run(drawn) == every
    assert chromium.run("document.activeElement.className") == "enlarge"


def test_each_section_is_drawn_and_the_page_prints(chromium: browser.Browser, page: Path, tmp_path: Path) -> None:
    shots = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))
    chromium.open(page)
    chromium.media()
    names = chromium.run("[...document.querySelectorAll('main > section > h2')].map((h) => h.id)")
    assert len(names) >= 12
    for name in names:
        chromium.screenshot(f"section[aria-labelledby='{name}']", shots / f"{name}.png")
        assert (shots / f"{name}.png").stat().st_size > 5_000
    chromium.media(kind="print")
    assert chromium.run("getComputedStyle(document.querySelector('nav')).display") == "none"
    chromium.pdf(shots / "report.pdf")
    assert (shots / "report.pdf").stat().st_size > 50_000


def test_ci_fails_without_a_browser_and_others_skip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(browser.shutil, "which", lambda _: None)
    monkeypatch.setenv("CI", "1")
    with pytest.raises(pytest.fail.Exception, match="CI needs a Chromium"):
        browser.find()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="needs a Chromium"):
        browser.find()
