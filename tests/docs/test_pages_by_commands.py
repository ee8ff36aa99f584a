"""Pages whose tables commands make: benchmarks from saved runs, and what other libraries have."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from where import ROOT

BENCHMARKS = ROOT / "experiments" / "benchmarks"


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"command_{path.parent.name}", path)
    assert spec
    assert spec.loader
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return module(BENCHMARKS / "__main__.py")


def test_a_page_of_benchmarks_holds_what_ran_and_every_row(
    benchmarks: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    row = {
        "case": "4 layers",
        "who": "ours",
        "seconds": 1.5,
        "cpu_seconds": 2.0,
        "floor_ratio": 1.25,
        "floor_cpu_ratio": 1.0,
        "peer_ratio": None,
        "peak_mb": 3.0,
        "agrees": "",
    }
    saved = {"machine": {"cpu": "a CPU", "torch": "2.14"}, "rows": [row, row | {"who": "captum"}]}
    (tmp_path / "extraction.json").write_text(json.dumps(saved), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--page", str(tmp_path / "extraction.json")])
    benchmarks.main()
    page = capsys.readouterr().out
    assert page.startswith("# Benchmarks\n\n## Extraction\n\nFour layers of a ResNet-18")
    assert "\n    python experiments/benchmarks/extraction.py" in page
    assert "Measured with cpu: a CPU; torch: 2.14." in page
    assert "| 4 layers | ours | 1.5 | 1.25 |  |  |" in page
    assert "| 4 layers | captum |" in page


def test_a_file_that_no_benchmark_wrote_is_refused(
    benchmarks: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--page", str(tmp_path / "other.json")])
    with pytest.raises(SystemExit):
        benchmarks.main()


def test_the_page_of_benchmarks_names_commands_that_are_there() -> None:
    text = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    named = {word.strip("`:|(),") for word in text.split() if word.startswith("experiments/benchmarks/")}
    assert len(named) > 8
    assert all((ROOT / name).is_file() for name in named)


def columns(rows: list[list[str]]) -> dict[str, list[str]]:
    return {head: cells for head, *cells in zip(*rows, strict=True) if head}


def test_the_page_of_peers_says_what_the_libraries_here_have() -> None:
    peers = module(ROOT / "docs" / "peers.py")
    text = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    lines = text[text.index("## By name") :].splitlines()
    held = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    del held[1]
    stated = columns(held)
    assert next(iter(stated)) == peers.OWN
    assert [row[0] for row in held[1:]] == list(peers.ABILITIES)
    found = columns(peers.table(peers.installed()))
    assert peers.OWN in found
    for library, cells in found.items():
        if library in stated:  # another release may have other names
            assert stated[library] == cells, f"make the table anew: python docs/peers.py ({library})"


def test_every_name_looked_for_is_somebodys() -> None:
    peers = module(ROOT / "docs" / "peers.py")
    text = (ROOT / "docs" / "peers.md").read_text(encoding="utf-8")
    for known in peers.ABILITIES.values():
        for name in known.split():
            assert f"`{name}`" in text
