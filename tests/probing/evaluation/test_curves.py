"""Removal curves against closed forms of a linear score, and what they promise of any."""

import itertools
from dataclasses import replace

import nets
import pytest
import torch
from torch import Tensor, nn

from probing.attribution.baselines import ZERO, Blurred, Constant, Samples, Uniform
from probing.attribution.gradient import GradientTimesInput, Saliency
from probing.evaluation.base import EvaluationError, keys_of
from probing.evaluation.curves import (
    Curves,
    Deletion,
    Insertion,
    PixelFlipping,
    Road,
    own_effects,
)
from probing.evaluation.removal import Imputed, Units, cuts_of
from probing.models.scores import Score

WEIGHTS = torch.tensor([[4.0, 3.0, 2.0, 1.0]], dtype=torch.float64)


def linear(weights: Tensor = WEIGHTS, bias: float = 0.0) -> nn.Module:
    net = nn.Linear(weights.shape[1], 1).double().eval()
    with torch.no_grad():
        net.weight.copy_(weights)
        net.bias.fill_(bias)
    return net


ONES = torch.ones(1, 4, dtype=torch.float64)
FLIP = PixelFlipping(baselines=(ZERO,), patch=1, orders=("most", "least"))


def test_rm_1_a_linear_score_falls_as_worked_out_by_hand() -> None:
    score = Score(linear(), 0)
    found = Deletion(orders=("most", "least"))(WEIGHTS, score, ONES)
    assert found.values[0, 0, 0].tolist() == [10, 6, 3, 1, 0]
    assert found.areas[0, :, 0].tolist() == [3.75, 6.25]
    assert found.normalised[0, 0, 0] == pytest.approx(0.375)
    orders = [torch.tensor([o], dtype=torch.float64) for o in itertools.permutations(range(4))]
    areas = [float(Deletion()(o, score, ONES).areas[0, 0, 0]) for o in orders]
    assert sum(areas) / 24 == pytest.approx(5.0)
    rise = Insertion(baselines=(ZERO,))(WEIGHTS, score, ONES)
    assert rise.values[0, 0, 0].tolist() == [0, 4, 7, 9, 10]
    assert float(rise.areas[0, 0, 0]) == 6.25
    assert float(rise.normalised[0, 0, 0]) == pytest.approx(0.625)
    flipped = FLIP(WEIGHTS, score, ONES)
    assert flipped.aopc[0, :, 0].tolist() == pytest.approx([6.0, 4.0])
    assert float(flipped.abpc[0, 0]) == pytest.approx(2.0)


def test_rm_2_deletion_and_insertion_of_one_order_add_up_to_both_ends() -> None:
    x = nets.images(3, size=2, seed=4).double().flatten(1)
    base = Samples.of(nets.images(3, size=2, seed=5).double().flatten(1), paired=True)
    score = Score(linear(bias=0.5), 0)
    maps = nets.images(3, size=2, seed=6).double().flatten(1)
    down = Deletion(baselines=(base,))(maps, score, x).areas[0, 0]
    up = Insertion(baselines=(base,))(maps, score, x).areas[0, 0]
    torch.testing.assert_close(down + up, (score(x) + score(base.tensor)).detach())


def test_rm_3_the_order_of_the_weights_is_the_best_there_is() -> None:
    weights = torch.tensor([[0.5, -2.0, 3.0, 1.0, 0.1]], dtype=torch.float64)
    score, x = Score(linear(weights), 0), torch.ones(1, 5, dtype=torch.float64)
    best = float(Deletion()(weights, score, x).areas[0, 0, 0])
    orders = torch.tensor(list(itertools.permutations(range(5))), dtype=torch.float64)
    every = Deletion()(orders, score, x.expand(len(orders), -1)).areas[0, 0]
    assert best == pytest.approx(float(every.min()))
    ideal = own_effects(score, x)
    torch.testing.assert_close(ideal, weights)


def test_rm_4_a_constant_map_is_no_better_than_chance() -> None:
    model = nets.seeded(nets.ConvNet()).double()
    x = nets.images(16).double()
    metric = Deletion(orders=("most", "random"), steps=12, random_orders=8)
    found = metric(torch.zeros_like(x), Score(model, 1), x)
    assert found.tied.tolist() == [1.0] * 16
    difference = found.measured(found.areas[0, 0] - found.areas[0, 1], "difference")
    assert difference.interval[0] < 0 < difference.interval[1]


def test_ties_are_broken_by_a_key_not_by_position() -> None:
    x = nets.images(400).double()
    keys = keys_of(x, 36, 0)
    assert torch.equal(keys, keys_of(x, 36, 0))
    assert not torch.equal(keys[0], keys[1])
    assert not torch.equal(keys, keys_of(x, 36, 1))
    first = keys.argsort(1)[:, 0].double()  # uniform on 0 … 35: mean 17.5, deviation 10.4
    assert abs(float(first.mean()) - 17.5) < 4 * 10.4 / 20
    half = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    half[0, 0, 0] = 1
    metric, score = Deletion(steps=36), Score(nets.seeded(nets.ConvNet()).double(), 1)
    assert float(metric(half, score, x[:1]).tied[0]) == 1
    other = replace(metric, seed=1)(half, score, x[:1])
    assert not torch.equal(other.values, metric(half, score, x[:1]).values)
    assert other.values[0, 0, 0, 6] == pytest.approx(float(metric(half, score, x[:1]).values[0, 0, 0, 6]))


def test_rm_5_the_last_point_is_the_score_of_the_substrate() -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), nets.images().double()
    score, given = Score(model, 2, "probability"), (ZERO, Constant((0.5,)), Blurred(2.0))
    found = Deletion(baselines=given, steps=5)(Saliency(), score, x)
    assert found.substrates == ("constant 1", "constant 2", "blurred")
    for i, baseline in enumerate(given):
        torch.testing.assert_close(found.values[i, 0, :, -1], score(baseline(x)[0]).detach())
    torch.testing.assert_close(found.values[0, 0, :, 0], score(x).detach())
    rise = Insertion(steps=5)(Saliency(), score, x)
    torch.testing.assert_close(rise.values[0, 0, :, -1], score(x).detach())


def test_rm_6_only_the_order_of_values_counts() -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), nets.images().double()
    maps, score = nets.images(4, seed=3).double(), Score(model, 1)
    same = [Deletion(steps=9)(m, score, x).values for m in (maps, maps**3, maps.exp(), 5 * maps - 2)]
    assert all(torch.equal(same[0], other) for other in same[1:])


@pytest.mark.parametrize(
    "metric", [Deletion(steps=7), Insertion(steps=7), Road(steps=3), PixelFlipping(patch=2, random_orders=2)]
)
def test_rm_7_a_batch_equals_one_at_a_time_and_chunks_do_not_matter(metric: Deletion) -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), nets.images().double()
    targets = torch.tensor([0, 1, 2, 1])
    maps = nets.images(4, seed=3).double().round()  # with ties
    whole = metric(maps, Score(model, targets), x)
    small = replace(metric, batch_size=3)(maps, Score(model, targets), x)
    torch.testing.assert_close(small.values, whole.values)
    for i in range(4):
        one = metric(maps[i : i + 1], Score(model, int(targets[i])), x[i : i + 1])
        torch.testing.assert_close(one.values[:, :, 0], whole.values[:, :, i])


def test_fault_14_an_order_of_an_image_takes_one_pass_more_than_steps_whatever_the_channels() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double().eval()
    x = nets.images(2, channels=3, size=32).double()
    maps = nets.images(2, channels=3, size=32, seed=1).double()
    found = Deletion(steps=100)(maps, Score(model, 0), x)
    assert found.n_forward == 2 * 101
    flipped = PixelFlipping(baselines=(ZERO,), patch=8, orders=("most", "least"))
    assert flipped(maps, Score(model, 0), x).n_forward == 2 * 2 * 17
    # All channels of a pixel go together: after one of 1024 steps, one pixel is zero and no other has changed.
    fine = Deletion(steps=1024)(maps, Score(model, 0), x)
    place = int(maps[0].sum(0).flatten().argmax())
    changed = x[:1].clone()
    changed[0, :, place // 32, place % 32] = 0
    assert float(fine.values[0, 0, 0, 1]) == pytest.approx(float(model(changed).detach()[0, 0]))


def test_patches_are_ordered_by_their_mean_and_cover_the_border() -> None:
    x = torch.zeros(1, 1, 5, 7, dtype=torch.float64)
    units = Units.of(x, 3)
    assert units.count == 6
    assert units.labels[4, 6] == 5
    maps = torch.zeros(1, 5, 7, dtype=torch.float64)
    maps[0, :3, :3] = 1
    maps[0, 4, 6] = 6  # a patch of two pixels
    assert units.values(maps)[0].tolist() == [1, 0, 0, 0, 0, 3]
    with pytest.raises(EvaluationError, match="patches of 2 pixels need images"):
        Units.of(torch.zeros(1, 4), 2)


def test_draws_of_noise_and_random_orders_are_averaged() -> None:
    score, x = Score(linear(), 0), ONES
    noise = Uniform((-1.0,), (1.0,), draws=3)
    found = Deletion(baselines=(noise,))(WEIGHTS, score, x)
    draws = noise(x)
    assert float(found.values[0, 0, 0, -1]) == pytest.approx(float(score(draws[:, 0]).detach().mean()))
    random = Deletion(orders=("random",), random_orders=400)(WEIGHTS, score, x)
    assert float(random.areas[0, 0, 0]) == pytest.approx(5.0, abs=0.15)
    assert random.values[0, 0, 0, 2] == pytest.approx(5.0, abs=0.35)


def test_a_curve_that_leads_nowhere_is_counted_not_normalised() -> None:
    score = Score(linear(torch.tensor([[1.0, -1.0]], dtype=torch.float64)), 0)
    x = torch.tensor([[1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
    found = Deletion()(torch.tensor([[2.0, 1.0]] * 2).double(), score, x)
    assert found.normalised[0, 0].isnan().tolist() == [True, False]
    table = found.to_pandas()
    assert table["excluded"].tolist() == [1]


def test_imputed_places_solve_their_equations() -> None:
    image = nets.images(1, channels=2, size=7)[0].double()
    removed = torch.zeros(1, 7, 7, dtype=torch.bool)
    removed[0, 2:5, 1:6] = True
    removed[0, 0, 0] = True
    filled = Imputed(noise=0.0)(image, removed)[0]
    assert torch.equal(filled[:, ~removed[0]], image[:, ~removed[0]])
    for r, c in removed[0].nonzero().tolist():
        total, weights = torch.zeros(2).double(), 0.0
        for dr, dc in itertools.product((-1, 0, 1), repeat=2):
            if (dr or dc) and 0 <= r + dr < 7 and 0 <= c + dc < 7:
                weight = 1 / 12 if dr and dc else 1 / 6
                total += weight * filled[:, r + dr, c + dc]
                weights += weight
        torch.testing.assert_close(filled[:, r, c], total / weights)
    flat = torch.full((1, 7, 7), 3.0, dtype=torch.float64)
    torch.testing.assert_close(Imputed(noise=0.0)(flat, removed)[0], flat)
    whole = Imputed(noise=0.0)(image, torch.ones(1, 7, 7, dtype=torch.bool))[0]
    torch.testing.assert_close(whole, image.mean((1, 2), keepdim=True).expand(2, 7, 7))
    noisy = Imputed(noise=0.5)(image, removed)[0]
    assert not torch.equal(noisy[:, removed[0]], filled[:, removed[0]])
    assert torch.equal(noisy, Imputed(noise=0.5)(image, removed)[0])
    assert not torch.equal(noisy, Imputed(noise=0.5, seed=1)(image, removed)[0])


def test_imputation_is_the_papers_linear_system_solved_at_once_with_noise_of_the_size_asked_for() -> None:
    """Rong et al. 2022, sec. 4.3: the whole system as a dense matrix, solved by another solver, over many masks."""
    generator = torch.Generator().manual_seed(0)
    side, channels = 8, 3
    places = [(r, c) for r in range(side) for c in range(side)]
    for share in (0.1, 0.5, 0.9, 0.98):
        image = torch.randn(channels, side, side, generator=generator, dtype=torch.float64)
        removed = torch.rand(side, side, generator=generator) < share
        removed[0, 0], removed[-1, 3], removed[4, 4] = True, True, False
        matrix = torch.eye(side * side, dtype=torch.float64)
        known = image.flatten(1).T.clone()
        for i, (r, c) in enumerate(places):
            if removed[r, c]:
                weights = {
                    (r + dr) * side + c + dc: 1 / 12 if dr and dc else 1 / 6
                    for dr, dc in itertools.product((-1, 0, 1), repeat=2)
                    if (dr or dc) and 0 <= r + dr < side and 0 <= c + dc < side
                }
                known[i] = 0
                for j, weight in weights.items():
                    matrix[i, j] = -weight / sum(weights.values())
        expected = torch.linalg.solve(matrix, known).T.view_as(image)
        filled = Imputed(noise=0.0)(image, removed[None])[0]
        torch.testing.assert_close(filled, expected)
        for values, seen in zip(filled, image, strict=True):  # no removed place is brighter or darker than all that is seen
            left = seen[~removed]
            assert float(left.min()) - 1e-9 <= float(values.min())
            assert float(values.max()) <= float(left.max()) + 1e-9
    large = torch.randn(3, 60, 60, generator=generator, dtype=torch.float64)
    half = torch.rand(1, 60, 60, generator=generator) < 0.5
    added = Imputed(noise=0.25)(large, half) - Imputed(noise=0.0)(large, half)
    drawn = (added[0][:, half[0]] / (0.25 * large.std())).flatten()
    assert abs(float(drawn.mean())) < 4 / len(drawn) ** 0.5
    assert abs(float(drawn.square().mean()) - 1) < 4 * (2 / len(drawn)) ** 0.5
    assert not added[0][:, ~half[0]].any()


def test_the_precision_and_channels_are_followed() -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), nets.images().double()
    signed = GradientTimesInput()(Score(model, 1), x)
    one = Deletion(steps=6)(signed, Score(model, 1), x)
    sizes = Deletion(steps=6, channels="sumabs")(signed, Score(model, 1), x)
    assert not torch.equal(one.values, sizes.values)
    method = Deletion(steps=6)(GradientTimesInput(), Score(model, 1), x)
    torch.testing.assert_close(one.values, method.values)
    assert method.n_forward == one.n_forward + 4
    assert method.n_backward == 4


@pytest.mark.parametrize(
    ("metric", "maps", "message"),
    [
        (
            Deletion(),
            torch.zeros(1, 1, 3, 3),
            r"maps of shape \(1, 1, 3, 3\) don't lie over inputs",
        ),
        (Deletion(), torch.full((4, 1, 6, 6), torch.nan), "map 0 holds NaN"),
        (Deletion(steps=0), torch.zeros(4, 1, 6, 6), "steps must be at least 1"),
        (Deletion(orders=()), torch.zeros(4, 1, 6, 6), "orders must name at least one"),
        (Road(most=1.5), torch.zeros(4, 1, 6, 6), "the share within 0 to 1, got 9 and 1.5"),
    ],
)
def test_what_cannot_be_measured_is_refused(metric: Deletion, maps: Tensor, message: str) -> None:
    model = nets.seeded(nets.ConvNet()).double()
    with pytest.raises(EvaluationError, match=message):
        metric(maps.double(), Score(model, 1), nets.images().double())


def test_roads_of_vectors_and_areas_without_both_orders_are_refused() -> None:
    with pytest.raises(EvaluationError, match="ROAD needs images"):
        Road()(WEIGHTS, Score(linear(), 0), ONES)
    with pytest.raises(EvaluationError, match="ABPC needs the order 'least'"):
        _ = Deletion()(WEIGHTS, Score(linear(), 0), ONES).abpc


def test_equal_portions_never_repeat_a_number_of_units() -> None:
    assert cuts_of(4, 100) == (0, 1, 2, 3, 4)
    assert cuts_of(10, 2, 0.9) == (0, 4, 9)


def test_curves_are_saved_tabulated_and_drawn(tmp_path: object) -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), nets.images().double()
    found = Deletion(steps=6, orders=("most", "random"))(Saliency(), Score(model, 1), x)
    loaded = Curves.load(found.save(str(tmp_path)))
    torch.testing.assert_close(loaded.areas, found.areas)
    area = loaded.area()
    assert area.interval[0] < area.mean < area.interval[1]
    assert "deletion (constant, most)" in str(area)
    assert "lower is better" in str(area)
    assert len(found.to_pandas()) == 2
    assert len(found.plot().axes) == 1
