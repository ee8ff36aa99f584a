"""The picture of folders and arrows: what its lines say, and that the one in the repository is of this code."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from where import ROOT


@pytest.fixture(scope="module")
def house() -> ModuleType:
    spec = importlib.util.spec_from_file_location("house", ROOT / "docs" / "house.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_is_of_this_code(house: ModuleType) -> None:
    held = (ROOT / "docs" / "house.svg").read_text(encoding="utf-8")
    assert held == house.svg(), "draw it anew: python docs/house.py"


def test_the_picture_hangs_on_no_order_of_sets() -> None:
    """Sets of names are iterated in an order that each process draws anew; half of them moved boxes once."""
    draw = "import hashlib, house; print(hashlib.sha256(house.svg().encode()).hexdigest())"
    drawn = {
        subprocess.run(
            [sys.executable, "-c", draw],
            env={**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(ROOT / "docs")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(6)
    }
    assert len(drawn) == 1


def test_an_arrow_is_left_out_where_others_lead_there(house: ModuleType) -> None:
    graph = {"a": {"b", "c", "d"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}
    assert house.reduced(graph) == {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": set(), "e": {"d"}}


def test_imports_inside_functions_count_and_those_of_a_folder_s_own_do_not(
    house: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "p" / "a" / "deep").mkdir(parents=True)
    (tmp_path / "p" / "a" / "deep" / "x.py").write_text("def f():\n    from p.b.y import g\n")
    (tmp_path / "p" / "a" / "z.py").write_text("import p.a.deep.x\nimport os\nfrom p import c\n")
    (tmp_path / "p" / "b.py").write_text("")
    (tmp_path / "p" / "c.py").write_text("")
    monkeypatch.setattr(house, "ROOT", tmp_path)
    assert house.imports(["p.a", "p.b", "p.c"]) == {"p.a": {"p.b", "p.c"}, "p.b": set(), "p.c": set()}


def test_an_arrow_that_points_up_is_refused(house: ModuleType) -> None:
    with pytest.raises(ValueError, match=r"b imports a, which is not below it"):
        house.bent({"a": set(), "b": {"a"}}, [["a"], ["b"]])


def test_lines_to_one_folder_share_their_bends(house: ModuleType) -> None:
    lines, rows = house.bent({"a": {"d"}, "b": {"d"}, "c": set(), "d": set()}, [["a", "b"], ["c"], ["d"]])
    [bend] = set(rows[1]) - {"c"}
    assert lines["a"] == lines["b"] == {bend}
    assert lines[bend] == {"d"}
