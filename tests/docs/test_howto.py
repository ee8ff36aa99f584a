"""Every block of code in the how-to pages runs, in the order in which a reader meets it."""

import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image
from where import ROOT

from concepts.auditing import run
from concepts.auditing.measurement.results import AuditResults
from concepts.cli import app

PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))
_BLOCK = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    return [Block(*match) for match in _BLOCK.findall(page.read_text(encoding="utf-8"))]


def take_photos(folder: Path) -> None:
    """Write pictures of three places, as small as they may be."""
    rng = np.random.default_rng(0)
    for place, colour in (
        ("beach", (200, 180, 120)),
        ("forest", (40, 120, 50)),
        ("street", (120,) * 3),
    ):
        (folder / place).mkdir(parents=True)
        for i in range(12):
            pixels = (np.array(colour) + rng.normal(0, 25, (40, 48, 3))).clip(0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / place / f"IMG_{i}.jpg")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder to be in, with photos, whose modules can be imported."""
    take_photos(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "write_report", lambda out, _: AuditResults.load(out))  # slow to draw
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def run_line(line: str) -> None:
    words = shlex.split(line.removeprefix("$ ").removeprefix("PYTHONPATH=. "))
    assert words[0] == "probing", f"a reader can't run {line!r}"
    assert app.main(words[1:]) == 0, line


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_a_page_runs(page: Path, place: Path) -> None:
    names: dict[str, object] = {"__name__": page.stem}
    found = blocks(page)
    assert len(found) >= 2
    for block in found:
        if block.title:
            (place / block.title).write_text(block.text, encoding="utf-8")
        elif block.language == "python":
            with warnings.catch_warnings():
                if re.search(r"^from (captum|lime|sklearn)\b", block.text, re.MULTILINE):
                    warnings.simplefilter("ignore")  # a peer's, which are none of ours
                exec(compile(block.text, f"{page.name}", "exec"), names)
        elif block.language == "console":
            for line in block.text.splitlines():
                run_line(line)
        else:
            assert not block.language, f"{page.name} has a block of {block.language!r} that no test runs"


def test_pages_are_found() -> None:
    assert {"own_model", "own_concepts", "text", "new_method"} <= {page.stem for page in PAGES}


def test_each_of_the_ten_tasks_takes_six_lines_of_which_two_are_imports() -> None:
    page = next(page for page in PAGES if page.stem == "ten_tasks")
    tasks = re.split(r"^## \d+\. .*$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    assert len(tasks) == 10
    for task in tasks:
        ours = next(Block(*found) for found in _BLOCK.findall(task) if found[0] == "python")
        lines = [line for line in ours.text.splitlines() if line.strip()]
        imports = [line for line in lines if re.match(r"(import|from) ", line)]
        assert len(lines) <= 6, ours.text
        assert len(imports) <= 2, ours.text
        assert any("probing" in line or "concepts" in line for line in imports)
