"""Maps as pictures: every step against numbers worked out by hand, and the figures made of them."""

import re
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from probing.attribution import METHODS
from probing.attribution.base import Attribution
from probing.attribution.lrp.lrp import LRP
from probing.attribution.perturbation.lime import LIME
from probing.attribution.perturbation.superpixels import Grid
from probing.attribution.perturbation.surrogate import Local
from probing.models.scores import Score
from probing.results.figures import save_figure
from probing.results.heatmaps import (
    Channels,
    Column,
    RenderError,
    colours,
    edge_control,
    edges,
    grey,
    overlay,
    pictures,
    reduce_channels,
    scale_of,
    side_by_side,
    tones,
)

PIXEL = torch.tensor([3.0, -4.0, 0.0]).view(1, 3, 1, 1)
BLUE, WHITE, RED = (torch.tensor([int(c[i : i + 2], 16) for i in (0, 2, 4)]) / 255 for c in ("053061", "ffffff", "67001f"))


def explained(name: str = "saliency", **settings: object) -> Attribution:
    net = nets.seeded(nets.ConvNet())
    return METHODS[name](**settings)(Score(net, torch.tensor([0, 1, 2, 1])), nets.images())


# Channels


@pytest.mark.parametrize(("how", "value"), [("sum", -1.0), ("maxabs", 4.0), ("sumabs", 7.0), ("l2", 5.0)])
def test_three_channels_become_one_value(how: Channels, value: float) -> None:
    assert reduce_channels(PIXEL, how).flatten().tolist() == pytest.approx([value])


# Scale


def test_the_scale_is_a_percentile_of_sizes_for_each_image() -> None:
    maps = torch.stack([torch.arange(101.0), -2 * torch.arange(101.0)]).view(2, 1, 101)
    assert scale_of(maps, 99.0).tolist() == [99.0, 198.0]
    assert scale_of(maps, 50.0).tolist() == [50.0, 100.0]


def test_a_map_of_few_pixels_is_shown_by_its_largest_instead_of_divided_by_zero() -> None:
    sparse, zero = torch.zeros(1, 100, 100), torch.zeros(1, 100, 100)
    sparse[0, 3, 4] = -2.0
    scale = scale_of(torch.cat([sparse, zero]))
    assert scale.tolist() == [2.0, 0.0]
    shown = tones(torch.cat([sparse, zero]), scale)
    assert float(shown[0, 3, 4]) == -1
    assert not shown[1].any()
    assert torch.isfinite(shown).all()


def test_a_constant_map_is_in_full_colour_with_its_sign() -> None:
    maps = torch.full((1, 4, 4), -0.3)
    assert tones(maps, scale_of(maps)).unique().tolist() == [-1.0]


def test_outliers_are_clipped_and_zero_stays_zero() -> None:
    maps = torch.tensor([[-8.0, -1.0, 0.0, 1.0, 9.0]])[None]
    assert tones(maps, torch.tensor([2.0])).flatten().tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]


@pytest.mark.parametrize("percentile", [0.0, -1.0, 100.5])
def test_a_percentile_that_is_none_is_refused(percentile: float) -> None:
    with pytest.raises(RenderError, match=f"above 0 and at most 100, got {percentile}"):
        scale_of(torch.ones(1, 2, 2), percentile)


def test_nan_has_no_colour() -> None:
    maps = torch.ones(3, 2, 2)
    maps[2, 0, 1] = torch.nan
    with pytest.raises(RenderError, match="map 2 holds NaN"):
        scale_of(maps)


def test_maps_of_millions_of_pixels_have_a_scale_too() -> None:
    maps = torch.ones(1, 4100, 4100, dtype=torch.float16)  # more than torch.quantile takes
    assert scale_of(maps).tolist() == [1.0]


# Colours


def test_zero_is_white_and_the_ends_are_blue_and_red() -> None:
    shown = colours(torch.tensor([[[-1.0, 0.0, 1.0]]]))
    assert shown.shape == (1, 3, 1, 3)
    for i, colour in enumerate((BLUE, WHITE, RED)):
        torch.testing.assert_close(shown[0, :, 0, i], colour)


def test_colours_are_continuous_and_darken_away_from_zero() -> None:
    light = grey(colours(torch.linspace(-1, 1, 2001)[None, None]))[0, 0]
    assert (light.diff()[:1000] > 0).all()
    assert (light.diff()[1000:] < 0).all()
    assert light.diff().abs().max() < 0.005
    size = grey(colours(torch.linspace(0, 1, 1001)[None, None], signed=False))[0, 0]
    assert float(size[0]) == pytest.approx(1.0)
    assert (size.diff() < 0).all()


def test_red_and_blue_differ_for_a_reader_who_sees_no_red() -> None:
    # Protanopia (Viénot et al. 1999, linear RGB): red and green cones become one.
    see = torch.tensor([[0.1124, 0.8876, 0.0], [0.1124, 0.8876, 0.0], [0.004, -0.004, 1.0]])
    both = colours(torch.tensor([[[-0.6, 0.6]]]))[0, :, 0] ** 2.2
    blue, red = (see @ both).clamp(0, 1).T ** (1 / 2.2)
    assert float((blue - red).abs().max()) > 0.25


# Pictures


def test_inputs_between_zero_and_one_are_shown_as_they_are_and_others_stretched() -> None:
    inside, outside = torch.rand(3, 4, 4) * 0.5, torch.linspace(-2, 2, 48).view(3, 4, 4)
    shown = pictures(torch.stack([inside, outside]))
    torch.testing.assert_close(shown[0], inside)
    torch.testing.assert_close(shown[1], (outside + 2) / 4)


def test_a_constant_input_outside_of_the_range_is_shown_black() -> None:
    assert not pictures(torch.full((1, 1, 2, 2), 7.0)).any()


def test_inputs_of_other_channels_are_no_pictures() -> None:
    with pytest.raises(RenderError, match="one or three channels, got 4"):
        pictures(torch.zeros(1, 4, 2, 2))


def test_an_overlay_is_a_share_of_heat_and_the_rest_of_grey() -> None:
    images = torch.tensor([1.0, 0.0, 0.0]).view(1, 3, 1, 1)
    heat = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    assert overlay(images, heat, 0.75).flatten().tolist() == pytest.approx([0.25 * 0.299, 0.25 * 0.299, 0.75 + 0.25 * 0.299])
    torch.testing.assert_close(overlay(images, heat, 1.0), heat)
    torch.testing.assert_close(overlay(images, heat, 0.0), torch.full((1, 3, 1, 1), 0.299))


def test_an_overlay_repeats_the_pixels_of_a_coarser_map() -> None:
    heat = torch.rand(1, 3, 2, 2)
    shown = overlay(torch.zeros(1, 3, 4, 4), heat, 1.0)
    torch.testing.assert_close(shown, heat.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_an_overlay_of_more_than_everything_is_refused() -> None:
    with pytest.raises(RenderError, match=r"between 0 and 1, got 1\.5"):
        overlay(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2), 1.5)


def test_edges_are_the_slope_of_the_grey_values() -> None:
    ramp = (0.1 * torch.arange(8.0)).expand(1, 3, 6, 8)
    found = edges(ramp)
    torch.testing.assert_close(found[:, :, 1:-1], torch.full((1, 6, 6), 0.1))
    torch.testing.assert_close(found[:, :, 0], torch.full((1, 6), 0.05))  # the border repeats
    assert not edges(torch.full((1, 3, 4, 4), 0.7)).any()
    torch.testing.assert_close(edges(ramp.transpose(2, 3)), found.transpose(1, 2))


# Figures


def test_a_figure_holds_every_picture_with_its_scale_and_notes() -> None:
    images = torch.rand(2, 3, 8, 8)
    maps = torch.stack([torch.full((8, 8), 0.25), torch.zeros(8, 8)])
    figure = side_by_side([Column("ours", maps, ("first", "second")), edge_control(images)], images, names=("a", "b"))
    axes = figure.axes[0]
    assert len(axes.images) == 2 * 3 + 2  # the maps, and two colour scales
    said = [t.get_text() for t in axes.texts]
    assert {"input", "ours", "edges"} <= set(said)
    assert "\N{PLUS-MINUS SIGN}0.25\nfirst" in said
    assert "zero everywhere\nsecond" in said


def test_maps_of_a_column_can_share_a_scale() -> None:
    maps = torch.stack([torch.full((4, 4), 1.0), torch.full((4, 4), 4.0)])
    apart = side_by_side([Column("m", maps)]).axes[0].images
    shared = side_by_side([Column("m", maps)], shared=True).axes[0].images
    assert (np.asarray(apart[0].get_array()) == np.asarray(apart[1].get_array())).all()
    assert (np.asarray(shared[0].get_array()) > np.asarray(shared[1].get_array())).any()


def test_more_methods_than_fit_in_a_line_are_broken_into_several() -> None:
    images, maps = torch.rand(2, 3, 8, 8), torch.rand(2, 8, 8)
    columns = [Column(f"method {i}", maps) for i in range(7)]
    one = side_by_side(columns, images, per_line=8)
    two = side_by_side(columns, images, per_line=5)
    assert len(one.axes[0].images) == len(two.axes[0].images)
    titles = [t.get_text() for t in two.axes[0].texts if t.get_text().startswith("method")]
    assert sorted(titles) == sorted(2 * [f"method {i}" for i in range(7)])
    width = two.get_figwidth()
    assert all(0 <= i.get_extent()[0] < i.get_extent()[1] <= width for i in two.axes[0].images)


def test_the_percentile_changes_the_picture_and_is_printed() -> None:
    maps = torch.arange(100.0).view(1, 10, 10)
    half = side_by_side([Column("m", maps)], percentile=50.0).axes[0]
    assert "50th percentile" in half.texts[-1].get_text()
    assert any("50" in t.get_text() for t in half.texts[:-1])
    assert "largest size" in side_by_side([Column("m", maps)], percentile=100.0).axes[0].texts[-1].get_text()


@pytest.mark.parametrize(
    ("columns", "given", "said"),
    [
        ([], {}, "no map to show"),
        ([Column("m", torch.ones(0, 2, 2))], {}, "no map to show"),
        ([Column("m", torch.ones(2, 2, 2)), Column("k", torch.ones(3, 2, 2))], {}, "'m': 2, 'k': 3"),
        ([Column("m", torch.ones(1, 2, 2))], {"names": ["a", "b"]}, "'names': 2"),
        ([Column("m", torch.ones(1, 2, 2), alpha=0.5)], {}, "an overlay needs the images"),
        ([Column("m", torch.ones(1, 2, 2))], {"per_line": 1}, "per_line must be at least 2, got 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(columns: list[Column], given: dict[str, object], said: str) -> None:
    with pytest.raises(RenderError, match=said):
        side_by_side(columns, **given)  # type: ignore[arg-type]


def test_a_column_has_a_note_for_each_map() -> None:
    with pytest.raises(RenderError, match="'m' has 2 maps and 1 notes"):
        Column("m", torch.ones(2, 2, 2), ("one",))


def test_class_names_are_text_whatever_they_hold(tmp_path: Path) -> None:
    figure = side_by_side([Column("$x", torch.ones(1, 4, 4), ("100 % of $y$\\frac",))])
    png, pdf = save_figure(figure, tmp_path / "a map")
    with Image.open(png) as image:
        assert image.size[0] > 100
    assert pdf.read_bytes().startswith(b"%PDF")


# Attributions


def test_an_attribution_plots_itself_at_the_input_s_resolution() -> None:
    found = explained("gradcam")
    figure = found.plot(nets.images(), edges=True)
    axes = figure.axes[0]
    assert [np.asarray(i.get_array()).shape[:2] for i in axes.images[:4]] == [(6, 6)] * 4
    assert len(axes.images) == 4 * 4 + 2
    assert {"input", "GradCAM", "over the input", "edges"} <= {t.get_text() for t in axes.texts}


def test_plotting_needs_no_inputs_and_leaves_overlays_out_where_asked() -> None:
    found = explained()
    assert len(found.plot().axes[0].images) == 4 + 1
    assert len(found.plot(nets.images(), alpha=None).axes[0].images) == 8 + 1
    assert "class 2" in " ".join(t.get_text() for t in found.plot().axes[0].texts)


def test_channels_of_a_plot_are_reduced_as_asked() -> None:
    found = explained()
    wide = Attribution(
        found.provenance,
        found.values * torch.tensor([1.0, -1.0]).view(1, 2, 1, 1),
        found.score,
        found.target,
        found.unit,
        1,
        1,
    )
    assert not wide.column("m", channels="sum").maps.any()
    assert wide.column("m", channels="maxabs").maps.any()
    assert not wide.column("m", channels="l2").signed


def test_channels_that_hold_the_same_are_not_added_up() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 2)).eval()
    found = LIME(Grid(2, 2), surrogate=Local(20))(Score(net, 0), torch.rand(1, 3, 4, 4))
    torch.testing.assert_close(found.column("lime").maps, found.values[:, 0])


def test_what_is_no_image_is_not_drawn_but_still_shown() -> None:
    net = nn.Linear(4, 2).eval()
    found = METHODS["ig"]()(Score(net, 0), torch.rand(2, 4))
    with pytest.raises(RenderError, match=r"heat maps need values \[n, c, h, w\], got shape \(2, 4\)"):
        found.plot()
    page = found._repr_html_()
    assert "<img" not in page
    assert "IntegratedGradients" in page


def test_a_notebook_shows_the_first_inputs_and_fetches_nothing() -> None:
    found = METHODS["saliency"]()(Score(nets.seeded(nets.ConvNet()), 1), nets.images(9))
    page = found._repr_html_()
    assert page.count("<tr>") == 1 + 4
    assert "and 5 more" in page
    assert re.findall(r'src="([^,]*),', page) == ["data:image/png;base64"]
    assert not re.findall(r"https?://|<script|<link", page)


def test_what_a_notebook_shows_is_escaped() -> None:
    found = explained("gradcam")
    odd = Attribution(found.provenance, found.values, found.score, found.target, "<b>&", 1, 1, layer="<script>")
    page = odd._repr_html_()
    assert "<script>" not in page
    assert "&lt;b&gt;&amp;" in page


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("ig", {"steps": 4}, r"^gap [+-][\d.e-]+ \([\d.]+%\)$"),
        ("gradient_times_input", {}, r"^gap [+-]"),
        ("smoothgrad", {"samples": 3}, r"^standard error \d+%$"),
        ("saliency", {}, "^$"),
    ],
)
def test_each_map_comes_with_what_checks_it(name: str, settings: dict[str, object], said: str) -> None:
    found = explained(name, **settings).checks()
    assert len(found) == 4
    assert all(re.match(said, line) for line in found)


def test_the_gap_that_is_printed_is_the_one_of_the_result() -> None:
    found = explained("ig", steps=4)
    assert found.baseline_score is not None
    gap = float(found.diagnostics["completeness_gap"][1])
    share = abs(gap) / abs(float(found.score[1] - found.baseline_score[1]))
    assert found.checks()[1] == f"gap {gap:+.2g} ({share:.1%})"


def test_a_path_on_which_no_number_of_steps_explains_the_score_says_so() -> None:
    explain = METHODS["ig"](steps="auto", tolerance=1e-30)  # type: ignore[call-arg]
    found = explain(Score(nets.seeded(nets.ConvNet()), 1), nets.images(1))
    assert found.checks()[0].endswith("%), not converged")
    assert "not" not in explained("ig", steps="auto").checks()[0]


def test_lrp_prints_its_ledger_and_lime_its_fit() -> None:
    score = Score(nets.seeded(nets.ConvNet()), 1)
    found = LRP()(score, nets.images())
    kept = {k: float(v[0]) for k, v in found.diagnostics.items()}
    assert found.checks()[0] == (
        f"input {kept['input']:+.3g}, bias {kept['absorbed_by_bias']:+.3g} of {float(found.score[0]):+.3g}"
    )
    lime = LIME(Grid(3, 3), surrogate=Local(30))(score, nets.images())
    fit, given = (float(lime.diagnostics[name][0]) for name in ("r2", "prediction"))
    assert lime.checks()[0] == (f"R\N{SUPERSCRIPT TWO} {fit:.2f}, gives {given:+.3g} of {float(lime.score[0]):+.3g}")


def test_a_map_with_nothing_positive_says_so() -> None:
    found = explained("gradcam")
    dark = Attribution(
        found.provenance,
        torch.zeros_like(found.values),
        found.score,
        found.target,
        "logit",
        1,
        1,
        diagnostics={"nothing_positive": torch.ones(4, dtype=torch.bool)},
    )
    assert dark.checks() == ("empty: nothing raises the score",) * 4
    texts = [t.get_text() for t in dark.plot().axes[0].texts]
    assert any(t.startswith("zero everywhere") for t in texts)
