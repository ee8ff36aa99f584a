"""Texts whose words are coloured: cut exactly, escaped, told apart without colour, broken into lines."""

import re
import unicodedata
from typing import Literal

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from probing.attribution.perturbation.lime import TextLIME
from probing.attribution.perturbation.surrogate import Local
from probing.data.texts import words
from probing.results import figures
from probing.results.text_highlight import (
    LOWERS,
    RAISES,
    HighlightError,
    Piece,
    highlight_figure,
    highlight_html,
    in_sight,
    pieces,
    tone,
)

TEXT = "good, bad good"
SPANS = (((0, 4), (10, 14)), ((6, 9),))


def test_a_text_is_cut_where_parts_begin_and_end() -> None:
    found = pieces(TEXT, SPANS, [2.0, -1.0])
    assert found == [Piece("good", 2.0), Piece(", "), Piece("bad", -1.0), Piece(" "), Piece("good", 2.0)]
    assert "".join(p.text for p in found) == TEXT
    assert pieces("ab cd", [[(0, 2)]], [1.0])[-1] == Piece(" cd")


@pytest.mark.parametrize(
    ("spans", "values", "said"),
    [
        ([[(0, 2)], [(1, 3)]], [1.0, 1.0], "span 1 to 3 overlaps"),
        ([[(0, 9)]], [1.0], "leaves the text of 3 characters"),
        ([[(0, 2)]], [1.0, 2.0], "1 parts and 2 values"),
    ],
)
def test_parts_that_do_not_lie_in_the_text_are_refused(
    spans: list[list[tuple[int, int]]], values: list[float], said: str
) -> None:
    with pytest.raises(HighlightError, match=said):
        pieces("abc", spans, values)


def test_zero_is_white_and_the_scale_full_colour() -> None:
    assert tone(0.0, 1.0) == "#ffffff"
    assert tone(2.0, 2.0) == tone(9.0, 2.0) == RAISES
    assert tone(-2.0, 2.0) == LOWERS
    assert tone(1.0, 2.0) == "#eab0a6"  # half way from white to #d6604d
    assert tone(0.0, 0.0) == "#ffffff"


def test_words_can_be_read_on_their_colours() -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for ground in (RAISES, LOWERS):
        assert (luminance(ground) + 0.05) / (luminance("#1a1a1a") + 0.05) >= 4.5


def test_html_is_escaped_and_fetches_nothing() -> None:
    text = '<script>alert("x")</script> & more'
    page = highlight_html(text, [[(1, 7)]], [1.0], caption="<b>")
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;" in page
    assert "&amp; more" in page
    assert not re.findall(r"https?://|src=|href=|url\(", page)


def test_html_holds_the_whole_text_and_each_value() -> None:
    page = highlight_html(TEXT, SPANS, [2.0, -1.0])
    inner = re.sub(r"<[^>]*>", "", page)
    assert inner.startswith(TEXT)
    assert page.count('title="+2"') == 2
    assert page.count('title="-1"') == 1
    assert "underline solid" in page
    assert "underline dotted" in page
    assert "Full colour: 2;" in page


def test_words_without_a_value_are_left_plain() -> None:
    page = highlight_html(TEXT, SPANS, [0.0, 0.0])
    assert "<span" not in page
    assert "No word contributes." in page


def test_words_that_hardly_contribute_are_left_plain() -> None:
    page = highlight_html("ab cd ef", [[(0, 2)], [(3, 5)], [(6, 8)]], [1.0, -0.02, 0.005])
    assert re.findall(r">(\w\w)</span>", page) == ["ab", "cd"]
    figure = highlight_figure("ab cd ef", [[(0, 2)], [(3, 5)], [(6, 8)]], [1.0, -0.02, 0.005])
    assert len(figure.axes[0].patches) == 2


def test_a_figure_holds_every_word_within_its_width() -> None:
    text = "one two three, four five six seven eight nine ten eleven twelve"
    spans = [[m.span()] for m in re.finditer(r"\w+", text)]
    figure = highlight_figure(text, spans, [1.0, -1.0] * 6, width=2.0)
    axes = figure.axes[0]
    assert [t.get_text() for t in axes.texts][:4] == ["one", "two", "three", ","]
    assert len({t.get_position()[1] for t in axes.texts}) >= 4  # lines
    assert len(axes.patches) == 12
    assert {line.get_linestyle() for line in axes.lines} == {"-", "--"}
    renderer = figure.canvas.get_renderer() if hasattr(figure.canvas, "get_renderer") else None
    right = max(t.get_window_extent(renderer).x1 for t in axes.texts)
    assert right <= figure.get_figwidth() * figure.dpi


def test_lines_break_where_the_text_does_and_never_before_a_comma() -> None:
    figure = highlight_figure("ab, c\nd", [[(0, 2)]], [1.0])
    heights = {t.get_text(): t.get_position()[1] for t in figure.axes[0].texts[:4]}
    assert heights["ab"] == heights[","] == heights["c"] > heights["d"]


def test_an_explained_text_shows_itself() -> None:
    def predict(texts: list[str]) -> torch.Tensor:
        odds = torch.tensor([float(t.count("good") - 2 * t.count("bad")) for t in texts])
        return torch.stack([-odds, odds], 1)

    found = TextLIME(surrogate=Local(samples=60))(predict, "a good day, not bad at all", 1)
    page = found._repr_html_()
    assert page == found.html()
    given = f"{found.diagnostics['prediction']:.3g}"
    assert f"Class 1, score -1; the linear model gives {given}, R\N{SUPERSCRIPT TWO}" in page
    raised = re.search(r'title="\+[^"]*" style="[^"]*solid[^"]*">good<', page)
    lowered = re.search(r'title="-[^"]*" style="[^"]*dotted[^"]*">bad<', page)
    assert raised
    assert lowered
    assert found.plot(width=4.0).get_figwidth() == 4.0


# Texts that run from the right


SHALOM, SEFER, KITAB = "\u05e9\u05dc\u05d5\u05dd", "\u05e1\u05e4\u05e8", "\u0643\u062a\u0627\u0628"
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"


@pytest.mark.parametrize(
    ("right", "read", "seen"),
    [
        (False, "a b c", "a b c"),
        (True, f"{SHALOM} {SEFER} {KITAB}", f"{KITAB} {SEFER} {SHALOM}"),
        (False, f"the word {SHALOM} {SEFER} ends .", f"the word {SEFER} {SHALOM} ends ."),
        (True, f"{SHALOM} hello world {SEFER}", f"{SEFER} hello world {SHALOM}"),
        (True, f"{SHALOM} 3.14 {SEFER}", f"{SEFER} 3.14 {SHALOM}"),
        (
            True,
            f"{SHALOM} 3 GPT 4 {SEFER}",
            f"{SEFER} GPT 4 3 {SHALOM}",
        ),  # 4 belongs to GPT, 3 does not
        (False, f"{SHALOM} 3 a", f"3 {SHALOM} a"),
        (True, f"{SHALOM} , ( {SEFER} ) !", f"! ( {SEFER} ) , {SHALOM}"),
        (False, f"a ( {SHALOM} ) b", f"a ( {SHALOM} ) b"),
        (True, f"{SHALOM} {FAMILY} .", f". {FAMILY} {SHALOM}"),
        (True, f"{SHALOM} ({FAMILY}", f"{FAMILY}) {SHALOM}"),
    ],
)
def test_pieces_stand_where_a_reader_sees_them(right: bool, read: str, seen: str) -> None:
    """Worked by hand from the rules of UAX #9."""
    cut = [Piece(text) for text in re.findall(r"\s|\S+", read)]
    assert "".join(piece.text for piece in in_sight(cut, right=right)) == seen


def test_each_paragraph_of_a_figure_begins_where_its_own_script_does() -> None:
    text = f"{SHALOM} {SEFER}\n... \u201c{KITAB}\nhello {SHALOM}"
    spans = [[match.span()] for match in re.finditer(r"\w+", text)]
    figure = highlight_figure(text, spans, [1.0, -1.0, 0.5, -0.5, 1.0], width=4.0)
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = {}
    for drawn in figure.axes[0].texts:
        boxes.setdefault(drawn.get_text(), []).append(drawn.get_window_extent(renderer))
    inch = figure.dpi
    first, second = (boxes[word] for word in (SHALOM, SEFER))
    assert first[0].x1 > second[0].x1  # read from the right
    assert first[0].x1 / inch == pytest.approx(4.0 - 0.08, abs=0.05)
    assert boxes[KITAB][0].x0 < boxes["...\u201c"[:3]][0].x0
    assert boxes["hello"][0].x0 / inch == pytest.approx(0.08, abs=0.05)
    assert boxes["hello"][0].x1 < first[1].x0
    grounds = sorted(p.get_x() for p in figure.axes[0].patches)
    shown = sorted(t.get_position()[0] for t in figure.axes[0].texts if t.get_text() in {SHALOM, SEFER, KITAB, "hello"})
    assert grounds == pytest.approx(shown)


def test_html_leaves_directions_to_the_text() -> None:
    page = highlight_html(f"{SHALOM} 1\nhello", [[(0, 4)]], [1.0])
    assert '<div dir="auto" style="unicode-bidi:plaintext;text-align:start">' in page


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_how_letters_are_composed_changes_no_colour(form: Literal["NFC", "NFD"]) -> None:
    text = unicodedata.normalize(form, "d\u00e9j\u00e0 \u00fcber")
    page = highlight_html(text, [[span] for span in words(text)], [1.0, -0.5])
    marked = re.findall(r"<span[^>]*>([^<]*)</span>", page)
    assert [unicodedata.normalize("NFC", word) for word in marked] == [
        "d\u00e9j\u00e0",
        "\u00fcber",
    ]


def test_letters_that_no_font_has_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_installed_fonts", tuple)
    fonts, missing = figures.fonts_of("abc \u0928\u092e \u7535")
    assert (fonts, missing) == (["DejaVu Sans"], {"\u0928", "\u092e", "\u7535"})
    figure = highlight_figure("\u0928\u092e a \u7535", [[(0, 2)]], [1.0])
    below = " ".join(text.get_text() for text in figure.axes[0].texts)
    assert "No installed font has the letters of: CJK, Devanagari." in below
    plain = highlight_figure("abc", [[(0, 3)]], [1.0])
    assert "No installed font" not in " ".join(t.get_text() for t in plain.axes[0].texts)


def test_an_installed_font_draws_what_the_own_one_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    letters = {"dev.ttf": frozenset("\u0928\u092e"), "han.otf": frozenset("\u7535a")}
    own = figures._letters_of
    monkeypatch.setattr(figures, "_installed_fonts", lambda: (("Dev", "dev.ttf"), ("Han", "han.otf")))
    monkeypatch.setattr(figures, "_letters_of", lambda path: letters.get(path) or own(path))
    assert figures.fonts_of("a \u0928") == (["DejaVu Sans", "Dev"], set())
    assert figures.fonts_of("\u7535 \u0928 \u0e2a") == (["DejaVu Sans", "Dev", "Han"], {"\u0e2a"})
    assert figures.fonts_of("abc") == (["DejaVu Sans"], set())
