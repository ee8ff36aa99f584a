"""The figure of a first screen: what is drawn is what was measured, and no more than fits."""

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from probing.core.errors import ArgumentError
from probing.results.effect_panels import MOST_ROWS, Effect, EffectPanel, draw_effects, shown_rows
from probing.results.figures import FAINT, PALETTE

UP, DOWN, WEAK = Effect(0.6, 0.4, 0.8, True), Effect(-0.5, -0.7, -0.3, True), Effect(0.1, -0.1, 0.3, False)
PANEL = EffectPanel("man \N{RIGHTWARDS ARROW} woman", {"weak": WEAK, "down": DOWN, "up": UP}, band=(-0.2, 0.25))


def rows(figure: Figure) -> list[tuple[float, float, bool, str]]:
    """Return height, value, whether it is filled, and colour of each dot of the first panel."""
    dots = [line for line in figure.axes[1].lines if line.get_marker() == "o"]
    return [
        (float(d.get_ydata()[0]), float(d.get_xdata()[0]), d.get_markerfacecolor() == d.get_color(), to_hex(d.get_color()))
        for d in dots
    ]


def test_effects_stand_from_the_largest_rise_to_the_largest_fall_and_only_sure_ones_are_filled() -> None:
    figure = draw_effects([PANEL], "logits")
    assert [t.get_text() for t in figure.axes[1].get_yticklabels()] == ["up", "weak", "down"]
    assert rows(figure) == [(0, 0.6, True, PALETTE[1]), (1, 0.1, False, FAINT), (2, -0.5, True, PALETTE[0])]
    bars = [
        line.get_xdata() for line in figure.axes[1].lines if line.get_marker() != "o" and len(set(line.get_xdata())) == 2
    ]
    assert [list(bar) for bar in bars if list(bar) != [0, 1]] == [[0.4, 0.8], [-0.1, 0.3], [-0.7, -0.3]]
    [band] = figure.axes[1].patches
    assert band.get_extents().transformed(figure.axes[1].transData.inverted()).intervalx.tolist() == pytest.approx(
        [-0.2, 0.25]
    )


def test_an_effect_without_an_interval_has_no_bar() -> None:
    bare = EffectPanel("a", {"b": Effect(0.3, None, None, False)})
    assert len(draw_effects([bare], "logits").axes[1].lines) == 2  # the middle and the dot


def test_of_many_the_largest_of_any_panel_are_drawn() -> None:
    many = {f"class {i}": Effect(i / 100, None, None, False) for i in range(MOST_ROWS + 5)}
    other = {name: Effect(9.0 if name == "class 0" else 0.0, None, None, False) for name in many}
    assert len(shown_rows([EffectPanel("a", many)])) == MOST_ROWS
    assert "class 0" not in shown_rows([EffectPanel("a", many)])
    assert "class 0" in shown_rows([EffectPanel("a", many), EffectPanel("b", other)])


def test_long_names_sentences_and_pictures_leave_room_for_the_effects() -> None:
    long = "x" * 300
    panel = EffectPanel(f"{long} \N{RIGHTWARDS ARROW} {long}", {long: UP}, (Image.new("RGB", (9, 20)),) * 2)
    figure = draw_effects([panel, panel], "logits", [long, "a short one"])
    figure.draw_without_rendering()  # a warning that axes collapsed is an error here
    assert all(axes.get_position().width > 0.15 for axes in figure.axes[2:])


def test_panels_of_different_names_are_refused() -> None:
    with pytest.raises(ArgumentError, match="panels must be of the same names"):
        draw_effects([PANEL, EffectPanel("b", {"up": UP})], "logits")
    with pytest.raises(ArgumentError, match="panels must be of the same names, got"):
        draw_effects([], "logits")
