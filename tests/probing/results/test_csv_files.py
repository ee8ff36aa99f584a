"""Tables as CSV: text never becomes a formula, numbers stay numbers, wherever a table is written."""

import csv
import re
from pathlib import Path

import hostile
import pytest
from hypothesis import given, strategies as st

from probing.results.csv_files import cell, write_csv


@pytest.mark.parametrize(
    "text", ["=1+1", "+A1", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "\uff1d1", "-x", "--1", "=", "+ 1"]
)
def test_text_that_begins_like_a_formula_is_shown_as_it_is(text: str) -> None:
    assert cell(text) == (text if text == "=" else f"'{text}")


@pytest.mark.parametrize("value", [-1, -1.5, 0.0, "-1", "+2.5e-3", "-.5", "-", "+", "toaster", "a=b", "", None, True])
def test_numbers_signs_and_plain_text_stay_as_they_are(value: object) -> None:
    assert cell(value) is value


@given(
    st.lists(
        st.one_of(st.floats(allow_nan=False), st.integers(), st.text(), st.sampled_from(hostile.EVIL)),
        min_size=1,
    )
)
def test_no_cell_can_begin_a_formula_and_numbers_come_back(values: list[object]) -> None:
    written = [cell(v) for v in values]
    for before, after in zip(values, written, strict=True):
        if isinstance(before, str):
            assert str(after).removeprefix("'") == before.replace("\0", "\ufffd").removeprefix("'")
            number = re.fullmatch(r"[-+]?[\d.]+([eE][-+]?\d+)?", str(after))
            assert number or len(before) < 2 or str(after)[0] not in "=+-@\t\r"
        else:
            assert after == before


def test_a_table_comes_back_from_disk(tmp_path: Path) -> None:
    rows = [[name, -0.5, None] for name in hostile.EVIL]
    path = write_csv(tmp_path / "t.csv", ["=name", "value", "none"], rows)
    with path.open(encoding="utf-8", newline="") as file:
        header, *lines = csv.reader(file)
    assert header == ["'=name", "value", "none"]
    assert {line[1] for line in lines} == {"-0.5"}
    assert not [line[0] for line in lines if line[0][:1] in {"=", "+", "-", "@", "\t", "\r"} and len(line[0]) > 1]
    assert len(lines) == len(hostile.EVIL)


def test_every_table_is_written_by_the_one_guard(repository: Path) -> None:
    sources = [p for package in ("probing", "concepts") for p in (repository / package).rglob("*.py")]
    writers = [p.name for p in sources if re.search(r"csv\.(Dict)?[wW]riter|\.to_csv\(", p.read_text(encoding="utf-8"))]
    assert writers == ["csv_files.py"]
