"""LIME against its closed forms, the reference implementation, and its own promises."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from unicodedata import normalize

import numpy as np
import pytest
import torch
from attribution_nets import Formula
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from probing.attribution.base import Attribution
from probing.attribution.baselines import Blurred, Constant, Samples, Uniform
from probing.attribution.perturbation.lime import LIME, TextAttribution, TextLIME
from probing.attribution.perturbation.parts import Occurrences, PartMean, TensorParts, Words
from probing.attribution.perturbation.regression import Lasso, LeastSquares, Ridge, select
from probing.attribution.perturbation.superpixels import Blocks, Each, Given, Grid
from probing.attribution.perturbation.surrogate import (
    Contributions,
    ExactShapley,
    KernelShap,
    Local,
    every_coalition,
)
from probing.core.inputs import InputError, Inputs
from probing.models.explained import split_points
from probing.models.precision import Precision
from probing.models.readings import OutputError
from probing.models.scores import Score, TargetError
from probing.results.result import SavedResultError, describe, rebuild

DOUBLE = Precision("float64")


def linear(coefficients: Tensor, intercept: float = 0.0) -> Callable[[Tensor], Tensor]:
    return lambda masks: intercept + masks.double() @ coefficients


def both(masks: Tensor) -> Tensor:
    return masks.all(1).double()


def image(generator: torch.Generator, size: int = 12, n: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, generator=generator)


class PartMeans(nn.Module):
    """Weighs the mean of the first channel over each of nine squares, by 1 to 9."""

    def forward(self, x: Tensor) -> Tensor:
        means = nn.functional.adaptive_avg_pool2d(x[:, :1], 3).flatten(1)
        return (means @ torch.arange(1.0, 10.0).to(means))[:, None]


NINE = Grid(3, 3)
EXACT = Local(samples=2, coalitions="all", regression=Ridge(alpha=0.0))


# --- the surrogate, by closed forms ---


@pytest.mark.parametrize("coalitions", ["half", "size", "all"])
@pytest.mark.parametrize("width", [0.25, 1.0, math.inf])
def test_lime_1_a_linear_score_is_recovered_whatever_the_weights(
    coalitions: str, width: float, generator: torch.Generator
) -> None:
    c = torch.randn(6, generator=generator, dtype=torch.float64)
    found = Local(200, coalitions, width, regression=Ridge(1e-12))(linear(c, 0.7), 6)
    torch.testing.assert_close(found.coefficients, c, rtol=0, atol=1e-9)
    assert found.intercept == pytest.approx(0.7, abs=1e-9)
    assert found.r2 == pytest.approx(1.0)
    assert found.prediction == pytest.approx(found.score)


def test_lime_2_ridge_shrinks_by_two_thirds_on_all_masks_of_three_parts() -> None:
    c = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    found = Local(coalitions="all", width=math.inf)(linear(c, 5.0), 3)
    torch.testing.assert_close(found.coefficients, c * 2 / 3)


@pytest.mark.parametrize(("alpha", "coefficient", "intercept"), [(0.0, 0.9990, -0.9983), (1.0, 0.2006, 0.1977)])
def test_lime_3_a_conjunction_of_two_parts(alpha: float, coefficient: float, intercept: float) -> None:
    found = Local(coalitions="all", regression=Ridge(alpha))(both, 2)
    assert found.coefficients.tolist() == pytest.approx([coefficient] * 2, abs=5e-5)
    assert found.intercept == pytest.approx(intercept, abs=5e-5)


def test_lime_4_a_part_without_effect_stays_within_four_standard_errors() -> None:
    def value(masks: Tensor) -> Tensor:  # part 4 plays no role
        z = masks.double()
        return z[:, 0] * z[:, 1] + 2 * z[:, 2] - z[:, 3] * z[:, 0]

    for seed in range(20):
        found = Local(seed=seed)(value, 5)
        assert found.standard_error[4] > 0
        assert found.coefficients[4].abs() < 4 * found.standard_error[4]
        assert (found.coefficients[2] / found.standard_error[2]).abs() > 20


def test_standard_errors_match_the_spread_over_seeds() -> None:
    for surrogate in (Local, KernelShap):
        runs = [surrogate(samples=200, seed=s) for s in range(150)]
        found = [run(game, 10) for run in runs]
        spread = torch.stack([f.coefficients for f in found]).std(0)
        errors = torch.stack([f.standard_error for f in found]).mean(0)
        noisy = spread > 1e-6
        assert noisy[:3].all()
        ratio = errors[noisy] / spread[noisy]
        assert ratio.min() > 0.75, ratio
        assert ratio.max() < 1.35, ratio


def test_lime_5_the_whole_input_is_among_the_samples_and_scored_as_it_is(conv_net: nn.Module, image_batch: Tensor) -> None:
    x = image_batch[:2]
    found = LIME(Grid(2, 2), surrogate=Local(50))(Score(conv_net, 1, "probability"), x)
    torch.testing.assert_close(found.score, Score(conv_net, 1, "probability")(x).detach())


def test_lime_6_equal_weights_without_penalty_give_the_mean_effect_of_a_part() -> None:
    def value(masks: Tensor) -> Tensor:
        z = masks.double()
        return z[:, 0] * z[:, 1] + z[:, 2] * (1 - z[:, 0])

    masks = every_coalition(3)
    truth = [float(value(masks[masks[:, j]]).mean() - value(masks[~masks[:, j]]).mean()) for j in range(3)]
    found = Local(20000, width=math.inf, regression=Ridge(0.0))(value, 3)
    miss = (found.coefficients - torch.tensor(truth, dtype=torch.float64)).abs()
    assert (miss < 4 * found.standard_error).all()
    exact = Local(coalitions="all", width=math.inf, regression=Ridge(0.0))(value, 3)
    assert exact.coefficients.tolist() == pytest.approx(truth)
    assert exact.standard_error.tolist() == [0, 0, 0]


def test_lime_7_relabelled_segments_permute_the_coefficients(generator: torch.Generator) -> None:
    x, labels = image(generator).double(), NINE(image(generator))[:, 0]
    order = torch.randperm(9, generator=generator)
    score = Score(Formula(lambda x: x.sin().flatten(1).sum(1)), 0)
    method = LIME(Given.of(labels), surrogate=EXACT, precision=DOUBLE)
    shuffled = LIME(Given.of(order[labels] * 3 + 5), surrogate=EXACT, precision=DOUBLE)
    first, second = method(score, x), shuffled(score, x)
    torch.testing.assert_close(first.values, second.values)
    assert not torch.equal(first.diagnostics["parts"], second.diagnostics["parts"])


def test_weights_are_those_of_the_paper() -> None:
    masks = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]).bool()
    weights = Local()._weights(masks)
    assert weights.tolist() == pytest.approx([1.0, 0.503, 0.135, 3.4e-4], abs=5e-4)


def test_ridge_agrees_with_scikit_learn(generator: torch.Generator) -> None:
    from sklearn import linear_model

    for rows, parts in ((60, 7), (20, 33)):  # the second has more parts than rows
        z = torch.randint(0, 2, (rows, parts), generator=generator).double()
        y = torch.randn(rows, generator=generator, dtype=torch.float64)
        w = torch.rand(rows, generator=generator, dtype=torch.float64)
        for ours, theirs in ((Ridge(1.0), "Ridge"), (Lasso(0.05), "Lasso")):
            peer = getattr(linear_model, theirs)(alpha=ours.alpha)
            peer.fit(z.numpy(), y.numpy(), sample_weight=w.numpy())
            fit = ours(z, y, w)
            np.testing.assert_allclose(fit.coefficients.numpy(), peer.coef_, atol=1e-9)
            assert fit.intercept == pytest.approx(peer.intercept_)
            r2 = peer.score(z.numpy(), y.numpy(), sample_weight=w.numpy())
            assert fit.r2 == pytest.approx(r2)


def test_too_few_rows_leave_the_standard_error_unknown() -> None:
    found = Local(4, regression=Ridge(0.0))(linear(torch.ones(8).double()), 8)
    assert found.standard_error.isinf().all()
    assert math.isinf(found.condition)


def test_forward_selection_is_the_greedy_search_written_out(generator: torch.Generator) -> None:
    z = torch.randint(0, 2, (80, 9), generator=generator).double()
    y = (z @ torch.randn(9, generator=generator).double()) + z[:, 0] * z[:, 1] * 2
    w = torch.rand(80, generator=generator, dtype=torch.float64)

    chosen: list[int] = []
    for _ in range(4):
        tries = {j: Ridge(1e-10)(z[:, [*chosen, j]], y, w).r2 for j in range(9) if j not in chosen}
        chosen.append(max(tries, key=lambda j: tries[j]))
    assert select(z, y, w, 4, "forward").tolist() == sorted(chosen)


@pytest.mark.parametrize("how", ["auto", "forward", "highest", "lasso_path"])
@pytest.mark.parametrize("features", [2, 7])
def test_selection_finds_the_parts_that_matter(how: str, features: int) -> None:
    c = torch.zeros(12, dtype=torch.float64)
    c[torch.tensor([1, 4, 5, 6, 8, 9, 11])[:features]] = torch.arange(features, 0, -1).double()
    found = Local(400, features=features, selection=how)(linear(c), 12)
    assert found.coefficients.nonzero().tolist() == c.nonzero().tolist()
    assert (found.standard_error[c == 0] == 0).all()


def test_lasso_leaves_parts_without_effect_at_zero() -> None:
    c = torch.tensor([2.0, 0, 0, -1, 0], dtype=torch.float64)
    found = Local(300, regression=Lasso(0.01))(linear(c), 5)
    assert found.coefficients.nonzero().flatten().tolist() == [0, 3]


# --- Shapley values ---


def shapley_by_orders(value: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """The mean change over all orders in which parts are added, one by one."""
    total = torch.zeros(count, dtype=torch.float64)
    for order in itertools.permutations(range(count)):
        mask = torch.zeros(1, count, dtype=torch.bool)
        before = value(mask)
        for part in order:
            mask[0, part] = True
            after = value(mask)
            total[part] += (after - before)[0]
            before = after
    return total / math.factorial(count)


def game(masks: Tensor) -> Tensor:
    z = masks.double()
    return 1 + z[:, 0] * z[:, 1] * z[:, 2] + 2 * z[:, 3] - z[:, 1] * z[:, 3] * 0.5


@pytest.mark.parametrize("surrogate", [ExactShapley(), KernelShap(100)])
def test_shapley_values_are_the_mean_over_all_orders(
    surrogate: ExactShapley | KernelShap,
) -> None:
    found = surrogate(game, 5)
    torch.testing.assert_close(found.coefficients, shapley_by_orders(game, 5))
    assert found.intercept == pytest.approx(1.0)
    assert found.r2 == pytest.approx(ExactShapley()(game, 5).r2)
    assert found.samples == 32


def test_drawn_shapley_values_add_up_exactly_and_come_near() -> None:
    exact, found = ExactShapley()(game, 10), KernelShap(400, seed=3)(game, 10)
    assert found.coefficients.sum().item() == pytest.approx(found.score - found.intercept)
    miss = (found.coefficients - exact.coefficients).abs()
    assert (miss <= 5 * found.standard_error + 1e-12).all()
    assert found.standard_error[0] > 0


def test_exact_shapley_values_need_few_parts() -> None:
    with pytest.raises(InputError, match="at most 12 parts, got 13"):
        ExactShapley()(game, 13)
    with pytest.raises(InputError, match="17 parts have 2\\^17 coalitions"):
        Local(coalitions="all")(game, 17)
    with pytest.raises(InputError, match="twice as many samples as parts, 60, got 40"):
        KernelShap(40)(game, 30)


def test_one_part_is_worth_what_hiding_it_changes() -> None:
    found = ExactShapley()(lambda masks: 2 + 3 * masks[:, 0].double(), 1)
    assert found.coefficients.tolist() == [3]


# --- images ---


def test_a_linear_model_on_part_means_is_recovered_exactly(generator: torch.Generator) -> None:
    x = image(generator, 9, n=2).double()
    method = LIME(NINE, Constant(), Local(200, regression=Ridge(1e-12)), precision=DOUBLE)
    found = method(Score(PartMeans().eval(), 0), x)
    means = nn.functional.adaptive_avg_pool2d(x[:, :1], 3)
    truth = means * torch.arange(1.0, 10.0).double().reshape(3, 3)
    truth = truth.repeat_interleave(3, 2).repeat_interleave(3, 3).expand_as(x)
    torch.testing.assert_close(found.values, truth, rtol=0, atol=1e-8)
    assert found.diagnostics["r2"].tolist() == pytest.approx([1, 1])
    assert found.values.shape == x.shape == found.diagnostics["standard_error"].shape


@pytest.mark.parametrize("first", [0, 1, 7])
def test_fault_10_every_superpixel_is_perturbed_the_last_one_too(first: int, generator: torch.Generator) -> None:
    x = image(generator, 9).double() + 3
    labels = NINE(x)[:, 0] + first  # from one, as some segmentations count
    seen: list[Tensor] = []
    model = Formula(lambda x: seen.append(x.detach().clone()) or x[:, :, 6:, 6:].sum((1, 2, 3)))
    method = LIME(Given.of(labels), Constant(), Local(100), precision=DOUBLE)
    found = method(Score(model, 0), x)
    hidden = torch.cat(seen)[:, 0] == 0
    assert hidden.any(0).all()
    strongest = found.values.abs().flatten().argmax()
    assert found.diagnostics["parts"].flatten()[strongest] == 8
    assert found.diagnostics["parts"].unique().tolist() == list(range(9))


def test_seeds_repeat_bit_for_bit_and_differ(conv_net: nn.Module, image_batch: Tensor) -> None:
    score, x = Score(conv_net, 0), image_batch[:1]

    def run(seed: int) -> Attribution:
        return LIME(Grid(4, 4), surrogate=Local(60, seed=seed))(score, x)

    before = torch.random.get_rng_state()
    first, again, other = run(0), run(0), run(1)
    assert torch.equal(first.values, again.values)
    assert not torch.equal(first.values, other.values)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("surrogate", [Local(60), Local(200, stable=0.8), KernelShap(60)])
def test_batch_size_and_neighbours_do_not_change_the_result(
    surrogate: Local | KernelShap, conv_net: nn.Module, image_batch: Tensor
) -> None:
    x, targets = image_batch[:3], torch.tensor([0, 1, 2])
    whole = LIME(Grid(4, 4), surrogate=surrogate)(Score(conv_net, targets), x)
    small = LIME(Grid(4, 4), surrogate=surrogate, batch_size=7)(Score(conv_net, targets), x)
    torch.testing.assert_close(whole.values, small.values, rtol=1e-4, atol=1e-6)
    for i in range(3):
        alone = LIME(Grid(4, 4), surrogate=surrogate)(Score(conv_net, i), x[i : i + 1])
        torch.testing.assert_close(alone.values[0], whole.values[i], rtol=1e-4, atol=1e-6)


def test_coalitions_that_repeat_are_scored_once(generator: torch.Generator) -> None:
    score = Score(PartMeans().eval(), 0)
    found = LIME(Grid(1, 3), surrogate=Local(1000))(score, image(generator))
    assert found.n_forward == 8
    assert found.diagnostics["coalitions"].tolist() == [1000]


def test_sampling_stops_early_once_the_ranking_is_stable(generator: torch.Generator) -> None:
    c = torch.arange(1.0, 9.0).double()
    noise = torch.randn(256, generator=generator, dtype=torch.float64)

    def noisy(masks: Tensor) -> Tensor:
        return noise[(masks.long() << torch.arange(8)).sum(1)]

    easy = Local(1000, stable=0.95)(linear(c), 8)
    hard = Local(1000, stable=0.999)(noisy, 8)
    assert easy.samples == 100
    assert hard.samples == 1000
    assert easy.reliability > 0.95 > hard.reliability
    assert easy.coefficients.argsort().tolist() == list(range(8))
    prefix = Local(1000, stable=0.95)(noisy, 8).coefficients
    assert torch.equal(prefix, Local(1000, stable=2.0)(noisy, 8).coefficients)


@pytest.mark.parametrize("hidden", [Constant((0.5, 0.1, -1.0)), Blurred(2.0), Samples.of(torch.ones(1, 3, 9, 9) * 2)])
def test_hidden_parts_show_what_was_asked_for(hidden: Constant | Blurred | Samples, generator: torch.Generator) -> None:
    x, seen = image(generator, 9), list[Tensor]()
    model = Formula(lambda x: seen.append(x.clone()) or x.sum((1, 2, 3)))
    LIME(NINE, hidden, ExactShapley(), precision=Precision("reference"))(Score(model, 0), x)
    variants = torch.cat(seen)[3:]  # after the model's first check
    torch.testing.assert_close(variants[0], hidden(x)[0, 0])
    assert torch.equal(variants[-1], x[0])
    mixed = (variants == x[0]) | torch.isclose(variants, hidden(x)[0, 0])
    assert mixed.all()


def test_bfloat16_forwards_come_near(conv_net: nn.Module, image_batch: Tensor) -> None:
    surrogate, score = Local(100), Score(conv_net, 0)
    full = LIME(Grid(4, 4), surrogate=surrogate)(score, image_batch[:1])
    fast = LIME(Grid(4, 4), surrogate=surrogate, precision=Precision("fast"))(score, image_batch[:1])
    assert torch.cosine_similarity(full.values.flatten(), fast.values.flatten(), 0) > 0.97
    assert not torch.equal(full.values, fast.values)


def test_features_can_be_parts_of_their_own() -> None:
    x = torch.tensor([[2.0, 3.0]], dtype=torch.float64)
    method = LIME(Each(), Constant(), ExactShapley(), precision=DOUBLE)
    found = method(Score(Formula(lambda x: x[:, 0] * x[:, 1]), 0), x)
    torch.testing.assert_close(found.values, torch.full_like(x, 3.0))


def test_a_result_is_saved_and_its_method_rebuilt(conv_net: nn.Module, image_batch: Tensor, tmp_path: Path) -> None:
    methods = [
        LIME(),
        LIME(Grid(2, 3), Blurred(), KernelShap(50), 4),
        LIME(surrogate=Local(width=math.inf, regression=Lasso())),
    ]
    for i, method in enumerate(methods):
        found = method(Score(conv_net, 0), image_batch[:1])
        loaded = Attribution.load(found.save(tmp_path / str(i)))
        assert torch.equal(loaded.values, found.values)
        assert rebuild(loaded.provenance.method) == method


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (LIME(Grid(1, 1)), "single part"),
        (LIME(Grid(1, 1), surrogate=KernelShap()), "single part"),
        (LIME(Grid(20, 2)), "does not fit 12 by 12"),
        (LIME(Given.of(torch.zeros(1, 4, 4, dtype=torch.long))), r"labels have size \(4, 4\)"),
        (
            LIME(Given.of(torch.zeros(3, 12, 12, dtype=torch.long))),
            "3 maps of labels can't serve 1",
        ),
        (LIME(Each()), "give another `hidden`"),
        (LIME(hidden=Uniform()), "Uniform gives 10"),
        (LIME(surrogate=Local(1)), "at least 2 samples"),
        (LIME(surrogate=Local(width=0.0)), "kernel width above 0"),
        (LIME(surrogate=Local(features=0)), "features must be None or at least 1, got 0"),
        (LIME(batch_size=0), "batch_size"),
    ],
)
def test_what_cannot_be_explained_is_refused(method: LIME, message: str, generator: torch.Generator) -> None:
    with pytest.raises(InputError, match=message):
        method(Score(PartMeans().eval(), 0), image(generator))


def test_inputs_that_are_no_images_are_refused_by_image_segmentations() -> None:
    with pytest.raises(InputError, match="for features use Each"):
        LIME(parts=NINE)(Score(nn.Linear(4, 2).eval(), 0), torch.ones(1, 4))


def test_features_are_parts_of_their_own_if_nothing_is_said(generator: torch.Generator) -> None:
    net, x = nn.Linear(4, 2).double().eval(), torch.randn(3, 4, generator=generator, dtype=torch.double)
    found = LIME(surrogate=KernelShap())(Score(net, 1), x)
    torch.testing.assert_close(found.values, (net.weight[1] * x).detach())


@pytest.mark.parametrize("size", [(20,), (4, 6, 8)], ids=["series", "volume"])
def test_series_and_volumes_are_cut_into_blocks(size: tuple[int, ...], generator: torch.Generator) -> None:
    """Of a linear score each block contributes what its weights make of its difference from what hides it."""

    class Weighed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * weights).flatten(1).sum(1, keepdim=True)

    weights = torch.randn(2, *size, generator=generator, dtype=torch.double)
    x = torch.randn(1, 2, *size, generator=generator, dtype=torch.double)
    labels = Blocks(8)(x)
    assert labels.shape == (1, 1, *size)
    sizes = torch.bincount(labels.flatten())
    assert len(sizes) == 8
    assert sizes.max() - sizes.min() <= math.prod(size) // 8
    method = LIME(parts=Blocks(8), hidden=Constant((0.5,)), surrogate=KernelShap(), precision=DOUBLE)
    found = method(Score(Weighed().eval(), 0), x)
    own = torch.stack([((x - 0.5) * weights * (labels == b)).sum() for b in range(8)])
    torch.testing.assert_close(found.values[:, 0], own[labels[:, 0]])
    usual = LIME(surrogate=Local(100))(Score(Weighed().eval(), 0), x)
    assert torch.equal(usual.diagnostics["parts"].expand(x.shape), Blocks()(x).expand(x.shape))


def test_several_inputs_are_cut_each_by_itself(generator: torch.Generator) -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.dense = nn.Embedding(9, 5), nn.Linear(3, 1, bias=False)

        def forward(self, image: Tensor, measured: Tensor, input_ids: Tensor) -> Tensor:
            seen = image[:, :, :8].sum((1, 2, 3)) - 2 * image[:, :, 8:].sum((1, 2, 3))
            return seen[:, None] + self.dense(measured) + self.table(input_ids).sum((1, 2))[:, None]

    net = Views().double().eval()
    ids = torch.tensor([[1, 4, 2], [5, 6, 7]])
    measured = torch.randn(2, 3, generator=generator, dtype=torch.double)
    pixels = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.double)
    given = Inputs({"image": pixels, "measured": measured, "input_ids": ids})
    found = LIME(surrogate=KernelShap(), precision=DOUBLE)(Score(net, 0), given)
    parts = found.parts()
    labels = split_points(found.diagnostics["parts"], found.input_names, found.input_shapes)
    of = [set(labels[n][0].flatten().tolist()) for n in found.input_names]
    assert not set.intersection(*of)
    assert sum(map(len, of)) == len(set.union(*of))
    torch.testing.assert_close(parts["measured"], measured * net.dense.weight.detach())
    looked_up = net.table(ids).detach().sum(2, keepdim=True)
    torch.testing.assert_close(parts["input_ids"], looked_up.expand(-1, -1, 5))
    superpixel = labels["image"][0] == labels["image"][0, 0, 0, 0]
    signs = torch.where(torch.arange(16) < 8, 1.0, -2.0).double()[:, None]
    torch.testing.assert_close(parts["image"][0, 0, 0, 0], (pixels[0] * signs)[superpixel].sum())


# --- texts ---

WEIGHTS = {"good": 2.0, "bad": -3.0, "film": 0.5, "very": 0.25, "not": -1.0}


def bag(texts: list[str]) -> Tensor:
    """A linear logit of word counts."""
    counts = [[t.lower().split().count(w) for w in WEIGHTS] for t in texts]
    logit = torch.tensor(counts, dtype=torch.float64) @ torch.tensor(list(WEIGHTS.values())).double()
    return torch.stack([-logit, logit], 1)


TEXT = "A very very good film , not bad"


def test_lt_1_a_linear_bag_of_words_is_recovered_word_by_word_times_its_count() -> None:
    surrogate = Local(500, "size", regression=Ridge(1e-12))
    found = TextLIME(surrogate=surrogate)(bag, TEXT, 1)
    truth = {"A": 0.0, "very": 0.5, "good": 2.0, "film": 0.5, "not": -1.0, "bad": -3.0}
    assert dict(zip(found.parts, found.values.tolist(), strict=True)) == pytest.approx(truth, abs=1e-8)
    default = TextLIME()(bag, TEXT, 1)
    assert default.values.argsort().tolist()[:2] == [5, 4]
    assert default.values.argmax() == 2
    assert default.score == pytest.approx(-1.0)
    assert default.spans[1] == ((2, 6), (7, 11))


def test_lt_2_weights_of_texts_are_those_of_images() -> None:
    image_weights, text_weights = LIME().surrogate, TextLIME().surrogate
    assert isinstance(image_weights, Local)
    assert isinstance(text_weights, Local)
    masks = every_coalition(6)
    assert torch.equal(image_weights._weights(masks), text_weights._weights(masks))
    scaled = 100 * (1 - masks.double().mean(1).sqrt())  # the reference's distance and width
    torch.testing.assert_close(text_weights._weights(masks), (-(scaled**2) / (2 * 25.0**2)).exp())


def test_lt_3_a_repeated_word_is_one_part() -> None:
    surrogate = Local(200, "size")
    assert TextLIME(surrogate=surrogate)(bag, "good film good GOOD").parts == ("good", "film")
    cased = TextLIME(Words(ignore_case=False), surrogate)(bag, "good film good GOOD")
    assert cased.parts == ("good", "film", "GOOD")
    each = TextLIME(Occurrences(), Local(200, "size", regression=Ridge(1e-12)))(bag, "good film good", 1)
    assert each.parts == ("good", "film", "good")
    assert each.values.tolist() == pytest.approx([2.0, 0.5, 2.0])


def test_the_number_of_hidden_words_is_uniform() -> None:
    masks = Local(20000, "size")._draw(5)
    hidden = (~masks[1:]).sum(1)
    share = hidden.bincount(minlength=6) / len(hidden)
    assert share[0] == 0
    assert share[1:].tolist() == pytest.approx([0.2] * 5, abs=0.015)
    assert masks[0].all()


@pytest.mark.parametrize("convert", [torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.float])
def test_text_functions_may_return_tensors_arrays_or_lists(
    convert: Callable[[Tensor], object],
) -> None:
    method = TextLIME(surrogate=Local(50, "size"))
    found = method(lambda texts: convert(bag(texts).softmax(1)), TEXT)
    assert found.target == 0
    torch.testing.assert_close(found.values, method(lambda t: bag(t).softmax(1), TEXT).values, rtol=1e-4, atol=1e-6)


def test_batches_of_texts_do_not_change_the_result() -> None:
    sizes = list[int]()

    def watched(texts: list[str]) -> Tensor:
        sizes.append(len(texts))
        return bag(texts)

    small = TextLIME(batch_size=7)(watched, TEXT)
    assert torch.equal(small.values, TextLIME()(bag, TEXT).values)
    assert max(sizes) == 7
    assert sum(sizes) == small.n_forward == 64 + 1


def test_a_text_result_is_saved_and_its_method_rebuilt(tmp_path: Path) -> None:
    method = TextLIME(Occurrences(mask="…"), KernelShap(100))
    found = method(bag, TEXT, 1)
    loaded = TextAttribution.load(found.save(tmp_path))
    assert torch.equal(loaded.values, found.values)
    assert (loaded.parts, loaded.spans, loaded.text) == (found.parts, found.spans, TEXT)
    assert rebuild(loaded.provenance.method) == method


def test_a_tokeniser_of_the_users_is_named_in_the_result_and_not_rebuilt(tmp_path: Path) -> None:
    found = TextLIME(Words(tokeniser=lambda text: text.split()), KernelShap(100))(bag, TEXT, 1)
    loaded = TextAttribution.load(found.save(tmp_path))
    assert f"{__name__}:" in str(loaded.provenance.method)
    with pytest.raises(SavedResultError, match="names the function"):
        rebuild(loaded.provenance.method)
    with pytest.raises(TypeError, match="a function at"):
        describe(Words(tokeniser=bag_of_blanks))  # as a name of what was computed


def bag_of_blanks(text: str) -> list[str]:
    return text.split()


def digit() -> Tensor:
    """A white stroke on black: almost every superpixel has one colour."""
    found = torch.zeros(1, 1, 28, 28)
    found[0, 0, 6:22, 12:16] = 1
    return found


class Ink(nn.Module):
    """How much ink lies in the stroke of `digit`, as one of two classes."""

    def forward(self, x: Tensor) -> Tensor:
        ink = x[:, 0, 6:22, 12:16].mean((1, 2))
        return torch.stack([-ink, ink], 1)


def test_parts_of_one_colour_are_hidden_by_another() -> None:
    found = LIME(Grid(14, 14))(Score(Ink().eval(), 1), digit())
    assert found.diagnostics["flat_parts"].item() == 14 * 14  # cells of 2 by 2 pixels end where the stroke does
    assert found.diagnostics["unhidden_parts"].item() == 0
    ink = digit()[0, 0] > 0
    assert found.values[0, 0][ink].min() > 0
    assert found.values[0, 0][ink].mean() > 20 * found.values[0, 0][~ink].abs().mean()
    assert found.diagnostics["r2"].item() > 0.9


def test_a_part_of_the_mean_colour_is_hidden_by_the_farthest() -> None:
    image = torch.tensor([0.0, 2.0, 4.0]).repeat_interleave(3).expand(1, 1, 3, 9).clone()
    parts = TensorParts.of(image[0], Grid(1, 3)(image)[0], PartMean())
    assert (parts.flat, parts.unhidden) == (3, 0)
    assert parts.hidden[0, 0].tolist() == [2.0] * 3 + [0.0] * 3 + [2.0] * 3  # of two as far, the lowest
    noise = torch.arange(27.0).reshape(1, 3, 9)  # the control: no part has one colour
    assert TensorParts.of(noise, Grid(1, 3)(image)[0], PartMean()).flat == 0


def test_hiding_that_changes_nothing_is_refused_or_counted() -> None:
    score = Score(Ink().eval(), 1)
    with pytest.raises(InputError, match="every part looks the same when it is hidden"):
        LIME(Grid(4, 4))(score, torch.full((1, 1, 28, 28), 0.3))
    with pytest.raises(InputError, match="every part looks the same"):
        LIME(Grid(4, 4), hidden=Constant((0.0,)))(score, torch.zeros(1, 1, 28, 28))
    found = LIME(Grid(14, 14), hidden=Constant((0.0,)))(score, digit())
    assert found.diagnostics["unhidden_parts"].item() == 14 * 14 - 8 * 2  # black is hidden by black
    assert "180 parts look the same hidden" in found.checks()[0]


@pytest.mark.parametrize("surrogate", [Local(64), Local(coalitions="all"), KernelShap(), KernelShap(20)])
def test_an_r2_of_nothing_is_none(surrogate: Local | KernelShap) -> None:
    found = surrogate(lambda masks: torch.full((len(masks),), 0.7), 6)
    assert math.isnan(found.r2)
    assert found.coefficients.abs().max() < 1e-12
    varied = surrogate(linear(torch.arange(6.0).double()), 6)  # the control
    assert varied.r2 > 0.9
    assert varied.reliability > 0.5


def test_a_score_that_hiding_does_not_change_has_no_r2_and_says_so() -> None:
    blind = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 2)).eval()
    nn.init.zeros_(blind[1].weight)
    found = LIME(Grid(2, 2))(Score(blind, 1), digit())
    assert found.diagnostics["r2"].isnan().all()
    assert found.diagnostics["reliability"].isnan().all()
    assert "no R\N{SUPERSCRIPT TWO}" in found.checks()[0]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_how_letters_are_composed_changes_no_attribution(form: Literal["NFC", "NFD"]) -> None:
    def normalising(texts: list[str]) -> Tensor:
        counts = [normalize("NFC", t).count("caf\u00e9") - t.count("\u0939") for t in texts]
        return torch.tensor([[0.0, float(c)] for c in counts])

    text = normalize(form, "un caf\u00e9 et un caf\u00e9, \u0939\u093f\u0928\u094d\u0926\u0940")
    found = TextLIME(surrogate=ExactShapley())(normalising, text, 1)
    assert found.values.tolist() == pytest.approx([0, 2, 0, -1], abs=1e-12)
    assert normalize("NFC", found.parts[1]) == "caf\u00e9"
    assert [[text[a:b] for a, b in part] for part in found.spans][3] == [found.parts[3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "'' holds no word"),
        (" … !", "holds no word"),
        ("good good", "single part"),
        ("quux zork blip", "does the model know any of its words"),
    ],
)
def test_texts_without_anything_to_explain_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextLIME(surrogate=Local(50, "size"))(bag, text)


def test_functions_that_give_no_class_scores_are_refused() -> None:
    for function, message in (
        (lambda texts: [0.5] * len(texts), r"got shape \(1,\)"),
        (lambda texts: bag(texts)[:0], r"got shape \(0, 2\) for 1"),
        (lambda texts: "good", "got a str"),
        (lambda texts: bag(texts) * math.nan, "NaN"),
    ):
        with pytest.raises(OutputError, match=message):
            TextLIME()(function, TEXT)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (2, "class 2 is out of range: the function gives 2 classes, 0 to 1"),
        (-1, "class -1 is out of range"),
        (1.0, "must be the number of a class.* got 1.0"),
        (True, "must be the number of a class.* got True"),
        ([0], r"must be a class index, got \[0\]"),
    ],
)
def test_targets_that_are_no_class_of_a_text_function_are_refused(target: object, message: str) -> None:
    call = getattr(TextLIME.__call__, "__wrapped__", TextLIME.__call__)  # as where types are not checked
    with pytest.raises(TargetError, match=message):
        call(TextLIME(), bag, TEXT, target)


# --- the reference implementation ---


def test_coefficients_agree_with_the_reference_implementation(
    generator: torch.Generator,
) -> None:
    lime_base = pytest.importorskip("lime.lime_base")
    masks, count = Local(300, seed=1)._draw(8), 8
    noise = torch.randn(256, generator=generator, dtype=torch.float64)

    def value(masks: Tensor) -> Tensor:
        return noise[(masks.long() << torch.arange(count)).sum(1)] + masks[:, 3].double()

    scores, distance = value(masks), 1 - masks.double().mean(1).sqrt()
    base = lime_base.LimeBase(lambda d: np.sqrt(np.exp(-(d**2) / 0.25**2)), random_state=0)
    for features in (3, 7, 8):
        labels = torch.stack([scores, scores], 1).numpy()
        theirs = base.explain_instance_with_data(masks.double().numpy(), labels, distance.numpy(), 0, features, "auto")
        found: Contributions = Local(300, features=features, seed=1)(value, count)
        assert dict(theirs[1]) == pytest.approx({j: float(c) for j, c in enumerate(found.coefficients) if c != 0})
        assert found.intercept == pytest.approx(theirs[0])
        assert found.r2 == pytest.approx(theirs[2])
        assert found.prediction == pytest.approx(float(theirs[3][0]))


def test_a_whole_explanation_agrees_with_the_reference_implementation() -> None:
    """The same segments and the same filling; each draws its own coalitions, so errors are those of sampling."""
    lime_image = pytest.importorskip("lime.lime_image")
    x = torch.rand(1, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    segments = NINE(x)[0, 0].numpy()
    net = Formula(lambda x: (x[:, 0] * x[:, 1]).sin().flatten(1).sum(1) + 3 * x[:, 2, :4].sum((1, 2)))

    def predict(pictures: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        logit = net(torch.from_numpy(pictures).permute(0, 3, 1, 2))
        return torch.cat([logit, -logit], 1).numpy()

    theirs = lime_image.LimeImageExplainer(random_state=0).explain_instance(
        x[0].permute(1, 2, 0).numpy(),
        predict,
        labels=(0,),
        top_labels=None,
        num_samples=1000,
        segmentation_fn=lambda _: segments,
    )
    found = LIME(NINE, precision=DOUBLE)(Score(net, 0), x)
    ours, error = (v[0, 0, ::4, ::4].flatten() for v in (found.values, found.diagnostics["standard_error"]))
    expected = torch.tensor([dict(theirs.local_exp[0])[i] for i in range(9)], dtype=torch.float64)
    assert bool(((ours - expected).abs() < 4 * 2**0.5 * error).all())
    assert float((ours.abs() / error).max()) > 20
    assert float(found.diagnostics["r2"]) == pytest.approx(theirs.score, abs=0.02)


def test_a_text_s_explanation_agrees_with_the_reference_implementation() -> None:
    lime_text = pytest.importorskip("lime.lime_text")
    text = "a very very good film , not bad"

    def predict(texts: list[str]) -> np.ndarray:  # type: ignore[type-arg]
        return bag(texts).softmax(1).numpy()

    explainer = lime_text.LimeTextExplainer(random_state=0)
    theirs = explainer.explain_instance(text, predict, labels=(1,), num_features=10)
    found = TextLIME()(predict, text, 1)
    expected = dict(theirs.as_list(1))
    assert expected.keys() == set(found.parts)
    for part, value, error in zip(found.parts, found.values, found.standard_error, strict=True):
        assert abs(float(value) - expected[part]) < 4 * 2**0.5 * float(error), part
    assert found.diagnostics["r2"] == pytest.approx(theirs.score, abs=0.02)


class Free(nn.Module):
    """Two classes at no cost: one value of the image."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0, 0, :2]


class Operations(TorchDispatchMode):
    """Counts operations on tensors."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_fault_11_variants_are_made_many_at_a_time(generator: torch.Generator) -> None:
    x, counts = image(generator, 32), list[int]()
    for samples in (100, 600):
        method = LIME(Grid(), surrogate=Local(samples), batch_size=100)
        with Operations() as seen:
            method(Score(Free().eval(), 0), x)
        counts.append(seen.count)
    assert counts[1] - counts[0] < 200  # for 500 variants more: no image is copied one by one


def test_solutions_do_not_depend_on_which_gram_matrix_is_used(generator: torch.Generator) -> None:
    wide = torch.randn(5, 9, generator=generator, dtype=torch.float64)
    by_rows = LeastSquares.of(wide, 0.5).operator
    by_parts = torch.linalg.solve(wide.T @ wide + 0.5 * torch.eye(9).double(), wide.T)
    torch.testing.assert_close(by_rows, by_parts)
    assert LeastSquares.of(wide.T, 0.5).condition == pytest.approx(
        float(torch.linalg.cond(wide @ wide.T + 0.5 * torch.eye(5).double()))
    )
