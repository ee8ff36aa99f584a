"""Notebooks are committed without outputs, install what they need, and are run by `make notebooks`."""

import ast
import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest
from where import ROOT

FOLDER = ROOT / "experiments" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.fixture(scope="module")
def strip() -> ModuleType:
    spec = importlib.util.spec_from_file_location("strip", FOLDER / "strip.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def test_there_are_the_four() -> None:
    assert [p.stem for p in NOTEBOOKS] == [
        "1_tour_of_methods",
        "2_tcav_from_scratch",
        "3_probing_and_dissecting",
        "4_evaluating_explanations",
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_output_is_committed(path: Path, strip: ModuleType) -> None:
    text = path.read_text(encoding="utf-8")
    assert text == strip.stripped(text), f"run: python experiments/notebooks/strip.py {path}"


def test_stripping_takes_out_what_a_run_leaves(tmp_path: Path, strip: ModuleType) -> None:
    copy = tmp_path / "book.ipynb"
    book = json.loads(NOTEBOOKS[0].read_text(encoding="utf-8"))
    cell = next(c for c in book["cells"] if c["cell_type"] == "code")
    cell |= {"outputs": [{"output_type": "stream", "name": "stdout", "text": "/home/me"}], "execution_count": 3}
    book["metadata"]["widgets"] = {"state": {}}
    copy.write_text(json.dumps(book))
    assert strip.main([str(copy)]) == 1
    assert copy.read_text(encoding="utf-8") == NOTEBOOKS[0].read_text(encoding="utf-8")
    assert strip.main([str(copy)]) == 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_installs_what_it_needs_fetches_nothing_else_and_checks_its_claims(
    path: Path,
) -> None:
    first, *others = code(path)
    assert 'find_spec("probing") is None' in first
    assert '"probing-concepts[notebooks]"' in first
    assert not any(re.search(r"^\s*[%!]|https?://|urllib|requests", cell, re.MULTILINE) for cell in others)
    asserts = [n for cell in others for n in ast.walk(ast.parse(cell)) if isinstance(n, ast.Assert)]
    assert len(asserts) >= 8


def test_the_tour_shows_every_method_of_the_slides() -> None:
    names = {n.id for cell in code(NOTEBOOKS[0])[1:] for n in ast.walk(ast.parse(cell)) if isinstance(n, ast.Name)}
    assert names >= {
        "Saliency",
        "GuidedBackprop",
        "SmoothGrad",
        "IntegratedGradients",
        "ExpectedGradients",
        "GradCAM",
        "LRP",
        "CAM",
        "LIME",
        "TextLIME",
        "Logit",
        "FOURIER",
        "Dissection",
        "LayerProbes",
        "Tcav",
        "sort_by_concept",
        "axiom_table",
        "CascadingRandomisation",
        "Deletion",
    }
