"""Where maps point, how steady they are, how much of them there is: closed forms."""

import math

import attribution_nets
import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution.gradient import GradientTimesInput, Saliency, SmoothGrad
from probing.attribution.path import IntegratedGradients
from probing.attribution.perturbation.lime import LIME
from probing.attribution.perturbation.superpixels import Grid
from probing.evaluation.base import EvaluationError, Measurement, Metric
from probing.evaluation.complexity import EffectivePlaces, ExplanationLength, Gini, PictureBytes
from probing.evaluation.localisation import (
    EnergyShare,
    InsideAuroc,
    MaskIou,
    PointingGame,
    RelevanceRank,
    WeakLocalisation,
)
from probing.evaluation.robustness import Infidelity, MaxSensitivity, SeedStability, SensitivityN
from probing.models.scores import Score

LOCAL = (PointingGame(0.0), EnergyShare(), RelevanceRank(), MaskIou(), InsideAuroc(), WeakLocalisation())
OTHERS = (
    MaxSensitivity(),
    Infidelity(),
    SensitivityN(),
    SeedStability(),
    EffectivePlaces(),
    ExplanationLength(),
    Gini(),
    PictureBytes(),
)


def scene() -> tuple[Score, Tensor, Tensor]:
    """Return a score, inputs of 20 pixels and masks of 5 × 6 of them."""
    masks = torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[:, 4:9, 7:13] = True
    return Score(nets.seeded(nets.ConvNet()).double(), 1), nets.images(2, size=20).double(), masks


@pytest.mark.parametrize("metric", LOCAL)
def test_lo_1_a_map_that_is_the_mask_gets_everything(metric: PointingGame) -> None:
    score, x, masks = scene()
    found = metric(masks[:, None].double(), score, x, masks)
    assert found.values.tolist() == [1, 1]
    assert found.mean == 1
    assert found.better == "higher"


def test_lo_2_a_uniform_map_gets_what_chance_gives() -> None:
    score, x, masks = scene()
    flat, area = torch.ones(2, 1, 20, 20, dtype=torch.float64), 30 / 400
    for metric in (EnergyShare(), PointingGame(0.0)):
        found = metric(flat, score, x, masks)
        assert found.values.tolist() == pytest.approx([area] * 2)
        assert found.chance is not None
        assert found.chance.tolist() == pytest.approx([area] * 2)
    wide = PointingGame(0.05)(flat, score, x, masks)  # one pixel more on every side
    assert wide.values.tolist() == pytest.approx([7 * 8 / 400] * 2)
    assert InsideAuroc()(flat, score, x, masks).values.tolist() == [0.5, 0.5]
    assert RelevanceRank()(flat, score, x, masks).excluded == 2


def test_lo_3_the_tolerance_ends_where_it_should() -> None:
    score, x, masks = scene()
    for beside, hit in ((1, 1.0), (2, 1.0), (3, 0.0)):
        maps = torch.zeros(2, 1, 20, 20, dtype=torch.float64)
        maps[:, :, 6, 12 + beside] = 1
        found = PointingGame(2 / 20)(maps, score, x, masks)
        assert found.values.tolist() == [hit, hit]


def test_lo_4_a_map_of_the_wrong_sign_has_no_energy_and_is_counted() -> None:
    score, x, masks = scene()
    maps = -masks[:, None].double()
    energy = EnergyShare()(maps, score, x, masks)
    assert energy.excluded == 2
    assert math.isnan(energy.mean)
    assert "2 without a value left out" in str(energy)
    assert PointingGame()(maps, score, x, masks).values.tolist() == [0, 0]  # a miss
    assert WeakLocalisation()(maps, score, x, masks).values.tolist() == [0, 0]
    assert InsideAuroc()(maps, score, x, masks).values.tolist() == [0, 0]


def test_ties_at_the_threshold_count_in_part() -> None:
    score, x, masks = scene()
    maps = torch.zeros(2, 1, 20, 20, dtype=torch.float64)
    maps[:, :, 4:6, 7:13] = 2  # 12 inside
    maps[:, :, 6:7] = 1  # a line of 20, of which 6 are inside, with room for 18
    rank = RelevanceRank()(maps, score, x, masks).values
    assert rank.tolist() == pytest.approx([(12 + 18 / 20 * 6) / 30] * 2)
    iou = MaskIou()(maps, score, x, masks)
    assert iou.values.tolist() == pytest.approx((rank / (2 - rank)).tolist())
    assert iou.chance is not None
    assert float(iou.chance[0]) == pytest.approx(0.075 / 1.925)


def test_the_largest_piece_makes_the_box() -> None:
    score, x, masks = scene()
    maps = masks[:, None].double()
    maps[:, :, 0, 0] = 5  # a higher but smaller piece; at 0.2 of it the object still counts
    assert WeakLocalisation(0.2)(maps, score, x, masks).values.tolist() == [1, 1]
    assert WeakLocalisation(0.5)(maps, score, x, masks).values.tolist() == [0, 0]


class Confounded(nn.Module):
    """Scores a class by a patch in the corner, or by the object's place."""

    def __init__(self, *, biased: bool) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(1, 12, 12, dtype=torch.float64))
        with torch.no_grad():
            self.weights[0, :3, :3] = 1.0 * biased
            self.weights[0, 5:9, 5:9] = 1.0 - 0.9 * biased
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x * self.weights).sum((2, 3))


def test_lo_5_maps_of_a_biased_net_point_beside_the_object_and_of_a_fair_one_at_it() -> None:
    x = nets.images(6, size=12).double().abs()
    masks = torch.zeros(6, 12, 12, dtype=torch.bool)
    masks[:, 3:11, 3:11] = True
    found = {
        biased: EnergyShare()(GradientTimesInput(), Score(Confounded(biased=biased), 0), x, masks)
        for biased in (True, False)
    }
    chance = 64 / 144
    assert found[True].interval[1] < chance < found[False].interval[0]


def test_masks_that_cover_nothing_or_do_not_fit_are_refused() -> None:
    score, x, masks = scene()
    with pytest.raises(EvaluationError, match="covering 0 to 0"):
        EnergyShare()(x, score, x, torch.zeros_like(masks))
    with pytest.raises(EvaluationError, match=r"got \(2, 10, 20\)"):
        EnergyShare()(x, score, x, masks[:, :10])


# Robustness


def linear() -> tuple[Score, Tensor]:
    return Score(attribution_nets.lin(), 0), nets.images(3, size=2, seed=2).double().flatten(1)


def test_gradients_of_a_linear_score_neither_move_nor_mislead() -> None:
    score, x = linear()
    assert MaxSensitivity()(Saliency(), score, x).values.tolist() == [0, 0, 0]
    for scaled in (True, False):
        found = Infidelity(scaled=scaled)(Saliency(), score, x)
        torch.testing.assert_close(found.values, torch.zeros(3).double(), rtol=0, atol=1e-20)
    half = Infidelity(scaled=False)(0.5 * Saliency()(score, x).values, score, x)
    assert (half.values > 0.01).all()
    assert Infidelity()(-3 * Saliency()(score, x).values, score, x).mean < 1e-12
    for method in (GradientTimesInput(), IntegratedGradients(steps=2)):
        torch.testing.assert_close(SensitivityN()(method, score, x).values, torch.ones(3).double())


def test_metrics_of_perturbation_tell_good_maps_from_bad_ones() -> None:
    score, x, _ = scene()
    bad = nets.images(2, size=20, seed=8).double()
    ig = IntegratedGradients(steps=8)
    for metric, method, better in (
        (Infidelity(noise=0.01), Saliency(), -1),
        (SensitivityN(), ig, 1),
    ):
        good = metric(method, score, x).mean
        assert better * (good - metric(bad, score, x).mean) > 0.2
    small, large = (MaxSensitivity(r)(Saliency(), score, x).mean for r in (0.001, 0.1))
    assert small < large


@pytest.mark.parametrize("metric", [MaxSensitivity(draws=2), Infidelity(draws=3), SensitivityN(draws=4)])
def test_a_batch_equals_one_at_a_time(metric: MaxSensitivity) -> None:
    score, x, _ = scene()
    whole = metric(GradientTimesInput(), score, x).values
    for i in range(2):
        one = metric(GradientTimesInput(), score, x[i : i + 1]).values
        torch.testing.assert_close(one[0], whole[i])


def test_passes_are_counted() -> None:
    score, x, _ = scene()
    assert Infidelity(draws=5)(Saliency(), score, x).n_forward == 2 + 2 * 6
    found = MaxSensitivity(draws=5)(Saliency(), score, x)
    assert (found.n_forward, found.n_backward) == (12, 12)


def test_methods_without_a_seed_are_stable_and_others_are_measured() -> None:
    score, x, _ = scene()
    assert SeedStability()(Saliency(), score, x).values.tolist() == [1, 1]
    noisy = SeedStability()(SmoothGrad(samples=2, noise=1.0), score, x)
    assert 0 < noisy.mean < 0.999
    lime = SeedStability(reruns=2)(LIME(Grid(4, 4)), score, x)
    assert 0.5 < lime.mean < 1


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (MaxSensitivity(draws=0), "draws must be at least 1 and radius above 0, got 0"),
        (SensitivityN(share=1.0), "share within 0 to 1, got 100 and 1.0"),
        (SeedStability(1), "reruns must be at least 2, got 1"),
        (ExplanationLength(0.0), "share must lie between 0 and 1, got 0.0"),
    ],
)
def test_settings_are_refused_with_their_value(metric: MaxSensitivity, message: str) -> None:
    score, x, _ = scene()
    with pytest.raises(EvaluationError, match=message):
        metric(Saliency(), score, x)


# Complexity


def test_the_number_of_places_is_that_of_the_entropy() -> None:
    score = Score(attribution_nets.lin(), 0)
    maps = torch.tensor([[0.5, -0.25, 0.125, 0.125], [0, 0, 7, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).double()
    x = torch.ones(4, 4).double()
    found = EffectivePlaces()(maps, score, x)
    assert found.values[:3].tolist() == pytest.approx([3.3636, 1, 4], abs=1e-4)
    assert found.excluded == 1
    assert EffectivePlaces(share=True)(maps, score, x).values[2] == pytest.approx(1)
    length = ExplanationLength()(maps, score, x)
    assert length.values[:3].tolist() == [3, 1, 4]
    assert length.excluded == 1
    gini = Gini()(maps, score, x).values
    assert gini[:3].tolist() == pytest.approx([0.3125, 0.75, 0.0])


def test_a_noisy_map_is_a_larger_picture() -> None:
    score, x, masks = scene()
    noisy = nets.images(2, size=20, seed=1).double()
    sizes = [PictureBytes()(m, score, x).mean for m in (masks[:, None].double(), noisy)]
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("metric", [*LOCAL, *OTHERS], ids=lambda m: type(m).__name__)
def test_a_metric_says_which_way_it_counts_what_it_ranges_over_and_what_it_costs(metric: Metric, tmp_path: object) -> None:
    assert isinstance(metric, Metric)
    assert metric.better in {"higher", "lower"}
    assert metric.cost
    score, x, masks = scene()
    extra = (masks,) if metric in LOCAL else ()
    found = metric(GradientTimesInput(), score, x, *extra)  # type: ignore[operator]
    known = found.values[~found.values.isnan()]
    assert len(found.values) == 2
    assert (known >= metric.range[0] - 1e-9).all()
    assert (known <= metric.range[1] + 1e-9).all()
    assert found.metric == type(metric).__name__
    loaded = Measurement.load(found.save(str(tmp_path)))
    assert loaded.mean == pytest.approx(found.mean, nan_ok=True)
    assert len(found.to_pandas()) == 2
