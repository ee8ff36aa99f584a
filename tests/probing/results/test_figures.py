"""The look of figures, montages, saving and inlining, and the figures of an audit."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import audits
import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from concepts.auditing.measurement.results import AuditResults, saved_picture
from concepts.auditing.report import figures
from probing.results.figures import (
    Strip,
    inline_svg,
    look,
    montage,
    new_figure,
    save_figure,
    spread,
    style,
)


def small_figure(text: str = "a") -> Figure:
    with style():
        figure = new_figure(2.0, 1.0)
        figure.add_subplot().plot([0, 1], [0, 1], label=text)
        figure.axes[0].set_title(text)
    return figure


def test_labels_are_spread_in_their_order_with_room_between_them() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        wanted = rng.normal(0, 0.3, 9).tolist()
        placed = spread(wanted, 0.2, -1.0, 1.0)
        assert np.argsort(placed, kind="stable").tolist() == np.argsort(wanted, kind="stable").tolist()
        assert np.diff(sorted(placed)).min() >= 0.2 - 1e-9
        assert -1 <= min(placed) <= max(placed) <= 1


def test_more_groups_than_colours_still_look_different() -> None:
    looks = [look(number) for number in range(30)]
    assert len(set(looks)) == 30
    assert len({colour for colour, _ in looks[:6]}) == len({marker for _, marker in looks[:6]}) == 6


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([0.5, -0.5, 0.0], 0.2, -1.0, 1.0) == pytest.approx([0.5, -0.5, 0.0])


def test_labels_without_room_share_what_there_is() -> None:
    assert sorted(spread([0.0] * 5, 1.0, -1.0, 1.0)) == pytest.approx([-1, -0.5, 0, 0.5, 1])


def test_drawing_leaves_the_settings_of_the_user_as_found() -> None:
    before = dict(mpl.rcParams)
    inline_svg(small_figure(), "a figure")
    assert dict(mpl.rcParams) == before


def test_equal_figures_are_equal_bytes_and_their_pdf_embeds_truetype(tmp_path: Path) -> None:
    first = [path.read_bytes() for path in save_figure(small_figure(), tmp_path / "one")]
    second = [path.read_bytes() for path in save_figure(small_figure(), tmp_path / "two")]
    assert first == second
    assert b"/FontFile2" in first[1]
    assert b"/Type3" not in first[1]


def test_a_saved_picture_is_on_white(tmp_path: Path) -> None:
    png, _ = save_figure(small_figure(), tmp_path / "one")
    assert Image.open(png).convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_an_inline_figure_fetches_nothing_and_follows_the_page() -> None:
    svg = inline_svg(small_figure(), "a figure")
    assert not re.findall(r'(?:href|src)="(?!#|data:)|url\((?!#)|https?://|<script|<style|<!', svg)
    assert "currentColor" in svg
    assert "#1a1a1a" not in svg


def test_names_in_a_figure_are_text_and_nothing_else() -> None:
    svg = inline_svg(small_figure("</svg><script>x</script> $a_1$"), '"><script>')
    assert "<script" not in svg
    assert "&lt;script" in svg
    assert "$a_1$" in svg
    assert svg.count("</svg>") == 1


def test_a_montage_breaks_long_strips_into_lines() -> None:
    images = [Image.new("RGB", (4, 6), (10 * i, 0, 0)) for i in range(5)]
    strips = [
        Strip("one", images, [str(i) for i in range(5)]),
        Strip("two", images[:2], ["a", "b"]),
    ]
    figure = montage(strips, columns=3)
    assert len(figure.axes[0].images) == 7
    heights = {round(float(image.get_extent()[3]), 3) for image in figure.axes[0].images}
    assert len(heights) == 3


def test_a_montage_keeps_the_shape_of_its_images() -> None:
    figure = montage([Strip("", [Image.new("RGB", (4, 8))], ["a"])])
    left, right, bottom, top = figure.axes[0].images[0].get_extent()
    assert (top - bottom) / (right - left) == pytest.approx(2)


def test_a_montage_without_images_or_with_too_few_captions_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        montage([Strip("one", [], [])])
    with pytest.raises(ValueError, match="'one' has 1 images and 0 captions"):
        montage([Strip("one", [Image.new("RGB", (2, 2))], [])])


DRAW: dict[str, Callable[[AuditResults, Path], Figure]] = {
    "agreement": lambda r, _: figures.agreement(r, r.contrasts[0].name),
    "changes": lambda r, _: figures.changes(r),
    "scores": lambda r, _: figures.scores(r),
    "accuracy": lambda r, _: figures.accuracy(r),
    "positions": lambda r, _: figures.positions(r, r.contrasts[0].name),
    "likeness": lambda r, folder: figures.likeness(r, r.contrasts[0].name, partial(saved_picture, folder)),
    "controls": lambda r, folder: figures.controls(r, partial(saved_picture, folder)),
}


@pytest.mark.parametrize("name", DRAW)
def test_a_figure_of_an_audit_draws_many_targets_and_one(name: str, tmp_path: Path) -> None:
    audits.save_pictures(tmp_path / "images")
    for results in (audits.results(), audits.results(targets=("bikini",))):
        DRAW[name](results, tmp_path).draw_without_rendering()


def test_the_first_figure_shows_each_target_once_in_every_panel_at_its_swap() -> None:
    results = audits.results()
    name = results.contrasts[0].name
    drawn = figures.agreement(results, name)
    panels = drawn.axes
    assert [axes.get_title("left") for axes in panels] == list(results.layers)
    for axes, layer in zip(panels, results.layers, strict=True):
        points = {(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines if line.get_marker() in {"o", "s"}}
        expected = {
            (cell.effect, results.swap(name, cell.target).swap)
            for cell in results.cells
            if (cell.concept, cell.layer) == (name, layer)
        }
        assert points == expected


def test_predictions_are_drawn_for_trusted_layers_alone() -> None:
    results = audits.results()
    trusting = replace(results, layer_rows=tuple(replace(r, trusted=False) for r in results.layer_rows))
    marks = [line.get_marker() for line in figures.changes(results).axes[0].lines]
    none = [line.get_marker() for line in figures.changes(trusting).axes[0].lines]
    assert "x" in marks
    assert not {"x", "|", "+"} & set(none)
