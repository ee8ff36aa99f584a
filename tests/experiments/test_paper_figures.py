"""Figures for print: as wide as a column, fonts embedded, no titles, and colours that everyone can tell apart."""

import importlib
import re
import shutil
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType

import audits
import numpy as np
import numpy.typing as npt
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from where import ROOT

from probing.results.figures import (
    COLUMN_WIDTH,
    DIVERGING,
    FULL_WIDTH,
    PALETTE,
    Strip as Row,
    for_print,
    montage,
    new_figure,
    save_figure,
    style,
)

SMALLEST = 4.5
"""Points, of anything said in a figure."""
FOLDER = ROOT / "experiments" / "figures"


@pytest.fixture(scope="module")
def paper() -> ModuleType:
    sys.path.append(str(FOLDER))
    return importlib.import_module("paper")


@pytest.fixture(scope="module")
def drawn(paper: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the PDFs of small results, and of an audit that never ran."""
    out = tmp_path_factory.mktemp("paper")
    audits.results().save(out / "audit")
    audits.save_pictures(out / "audit" / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper, "save_figure", _saved_whole)
        written: list[Path] = paper.main(["--tiny", "--from", str(out / "audit"), "--out", str(out)])
    return written


def _saved_whole(figure: Figure, stem: Path) -> tuple[Path, Path]:
    """Save a figure none of whose words is cut off, and none of which is too small to read."""
    paths = save_figure(figure, stem)
    page = figure.bbox.padded(0.02 * figure.dpi)
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip() and text.axes is not None:
            box = text.get_window_extent()
            assert page.containsx(box.x0), (stem.name, text)
            assert page.containsx(box.x1), (stem.name, text)
            assert page.containsy(box.y1), (stem.name, text)
            assert text.get_fontsize() >= SMALLEST, (stem.name, text)
    return paths


@pytest.mark.slow
def test_every_saved_result_becomes_a_figure(drawn: list[Path]) -> None:
    names = {path.stem for path in drawn}
    assert names >= {
        "attribution",
        "curves",
        "randomisation",
        "axioms",
        "scorecard",
        "scorecard_evidence",
        "probes",
        "atlas",
        "tcav",
        "maximization",
        "audit_changes",
        "audit_tcav",
        "audit_accuracy",
        "audit_agreement_1",
        "audit_likeness_2",
        "audit_positions_1",
    }


@pytest.mark.slow
def test_a_figure_is_as_wide_as_one_column_or_both(drawn: list[Path]) -> None:
    for path in drawn:
        [box] = set(re.findall(rb"/MediaBox \[ ([\d. ]+) \]", path.read_bytes()))
        left, _, right, _ = map(float, box.split())
        assert (right - left) / 72 in (pytest.approx(COLUMN_WIDTH), pytest.approx(FULL_WIDTH)), path


@pytest.mark.slow
def test_fonts_are_embedded_as_truetype(drawn: list[Path]) -> None:
    for path in drawn:
        data = path.read_bytes()
        fonts = data.count(b"/Type /FontDescriptor")
        assert fonts, path
        assert data.count(b"/FontFile2") == fonts, path
        assert b"/Type3" not in data, path


def test_the_title_of_a_whole_figure_goes_and_those_of_panels_stay() -> None:
    with style():
        one, two = new_figure(4.0, 2.0), new_figure(4.0, 2.0)
        one.add_subplot().set_title("what it shows", loc="left")
        one.suptitle("more")
        for axes, name in zip(two.subplots(1, 2), ("a", "b"), strict=True):
            axes.set_title(name, loc="left")
    for_print(one, COLUMN_WIDTH)
    for_print(two, FULL_WIDTH)
    assert one.axes[0].get_title("left") == ""
    assert one.get_suptitle() == ""
    assert one.get_figwidth() == COLUMN_WIDTH
    assert [axes.get_title("left") for axes in two.axes] == ["a", "b"]


def test_what_is_put_in_inches_keeps_its_size_and_other_widths_are_refused() -> None:
    from PIL import Image

    with pytest.raises(ValueError, match=r"3\.3 or 6\.9 inches wide, got 5"):
        for_print(new_figure(5.0, 2.0), 5.0)
    own = montage([Row("", [Image.new("RGB", (4, 4))], ["a"])], width=5.0)
    assert for_print(own, FULL_WIDTH).axes[0].get_xlim() == pytest.approx((0, FULL_WIDTH))
    with pytest.raises(ValueError, match=r"6\.90 inches wide and can't be laid out anew"):
        for_print(own, COLUMN_WIDTH)


def test_without_results_there_is_an_error_that_says_so(
    paper: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        paper.main(["--from", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "there are no saved results in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        paper.main(["--out", str(tmp_path)])
    assert "--from DIR, or --tiny" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_the_picture_of_a_report_is_a_small_png(paper: ModuleType, tmp_path: Path) -> None:
    from PIL import Image

    page = tmp_path / "report.html"
    page.write_text("<h1>Report</h1>")
    [shown] = paper.readme([tmp_path], tmp_path / "out")
    with Image.open(shown) as image:
        assert image.size == (1100, 900)
        assert image.mode == "P"


# Colours

# Machado, Oliveira & Fernandes 2009, table 1, at full severity: linear RGB as seen without one kind of cone.
DEFICIENT = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
Array = npt.NDArray[np.float64]


def linear(srgb: Array) -> Array:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: Array) -> Array:
    """Return CIELAB (D65) of linear RGB."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    t = rgb.clip(0, 1) @ np.array(to_xyz).T / [0.95047, 1.0, 1.08883]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


def seen(colours: list[str], kind: str) -> Array:
    rgb = linear(np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in colours]))
    return lab(rgb @ np.array(DEFICIENT[kind]).T if kind in DEFICIENT else rgb)


def nearest(colours: list[str], kind: str) -> float:
    """Return the smallest distance of two colours (CIE 1976; 2.3 is just noticeable)."""
    return min(float(np.linalg.norm(a - b)) for a, b in combinations(seen(colours, kind), 2))


@pytest.mark.parametrize("kind", ["normal", *DEFICIENT])
def test_colours_are_told_apart_with_every_colour_vision(kind: str) -> None:
    assert nearest(list(PALETTE), kind) > 4 * 2.3
    assert nearest(["#ffffff", *PALETTE], kind) > 4 * 2.3


def test_a_palette_of_red_and_green_would_not_pass() -> None:
    assert nearest(["#d62728", "#8c6d31", "#2ca02c"], "deuteranopia") < 4 * 2.3 < nearest(["#d62728", "#2ca02c"], "normal")


@pytest.mark.parametrize("kind", ["normal", *DEFICIENT])
def test_the_two_ends_and_the_middle_of_the_heat_map_are_told_apart(kind: str) -> None:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    ends = [to_hex(colormaps[DIVERGING](x)) for x in (0.1, 0.5, 0.9)]
    assert nearest(ends, kind) > 10 * 2.3
