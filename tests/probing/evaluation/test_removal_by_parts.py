"""Rationales of texts, segments of images and monotonicity: the papers' formulas in plain loops, and what they promise."""

import math
from dataclasses import replace
from itertools import pairwise, permutations

import nets
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from probing.attribution.baselines import ZERO, Constant, Samples, Uniform
from probing.attribution.gradient import GradientTimesInput
from probing.attribution.perturbation.superpixels import Each, Given, Grid
from probing.core.inputs import Inputs
from probing.evaluation.base import EvaluationError, Measurement
from probing.evaluation.irof import Irof
from probing.evaluation.monotonicity import Monotonicity, MonotonicityCorrelation
from probing.evaluation.rationales import Comprehensiveness, RationaleMetric, Sufficiency
from probing.models.scores import Score


class Bag(nn.Module):
    """Class 1's logit is the sum of its words' own values, of those that are read; class 0's is zero."""

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding(len(values), 2).double()
        with torch.no_grad():
            self.table.weight.copy_(torch.stack([values, torch.zeros_like(values)], 1))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        words = self.table(input_ids).sum(2)
        mask = torch.ones_like(words) if attention_mask is None else attention_mask.to(words)
        total = (words * mask).sum(1)
        return torch.stack([torch.zeros_like(total), total], 1)


VALUES = torch.tensor([7.0, 4.0, -1.0, 2.0, 0.5, -3.0, 1.0, 0.25, -0.5, 0.125, 3.0], dtype=torch.float64)
TEXTS = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], [3, 10, 5, 1, 0, 0, 0, 0, 0, 0], [6, 6, 2, 4, 9, 1, 3, 0, 0, 0]])
LENGTHS = (10, 4, 7)
MASK = (torch.arange(10) < torch.tensor(LENGTHS)[:, None]).long()
PADDED = Inputs({"input_ids": TEXTS, "attention_mask": MASK})
BOTH = [Comprehensiveness(), Sufficiency()]


def by_hand(metric: RationaleMetric, order: list[int], words: list[float]) -> float:
    """Return the mean fall of the class's probability over shares, for words that are taken out in an order."""
    falls = []
    for share in metric.shares:
        chosen = order[: math.ceil(share * len(order) - 1e-9)]
        left = chosen if metric.keeps else [i for i in range(len(words)) if i not in chosen]
        whole, rest = sum(words), sum(words[i] for i in left)
        falls.append(1 / (1 + math.exp(-whole)) - 1 / (1 + math.exp(-rest)))
    return sum(falls) / len(falls)


@pytest.mark.parametrize("metric", BOTH)
def test_rationales_are_the_formula_over_each_texts_own_tokens(metric: RationaleMetric) -> None:
    maps = torch.randn(3, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    maps[MASK == 0] = 99  # what padding is worth does not count
    metric = replace(metric, shares=(0.1, 0.3, 0.5, 1.0))
    found = metric(maps, Score(Bag(VALUES).eval(), 1, "probability"), PADDED)
    for row, length in enumerate(LENGTHS):
        order = maps[row, :length].argsort(descending=True).tolist()
        assert float(found.values[row]) == pytest.approx(by_hand(metric, order, VALUES[TEXTS[row, :length]].tolist()))


@pytest.mark.parametrize("metric", BOTH)
def test_padding_changes_no_value_nor_its_chance_and_rows_are_alone(metric: RationaleMetric) -> None:
    score = Score(Bag(VALUES).eval(), 1, "probability")
    maps = torch.randint(0, 3, (3, 10), generator=torch.Generator().manual_seed(1)).double()  # ties
    whole = metric(maps, score, PADDED)
    assert whole.chance is not None
    for row, length in enumerate(LENGTHS):
        alone = metric(maps[row : row + 1, :length], score, TEXTS[row : row + 1, :length])
        assert alone.chance is not None
        torch.testing.assert_close(alone.values[0], whole.values[row])
        torch.testing.assert_close(alone.chance[0], whole.chance[row])


def test_the_true_order_is_the_best_rationale_and_the_opposite_the_worst() -> None:
    """Planted truth: a logit that adds up; the best of all orders, and chance between."""
    score, ids = Score(Bag(VALUES).eval(), 1), TEXTS[1:2, :4]
    orders = torch.tensor(list(permutations(range(4))), dtype=torch.float64)
    many = ids.expand(len(orders), -1)
    true = VALUES[ids]
    for metric, better in ((Comprehensiveness(), max), (Sufficiency(), min)):
        every = metric(orders, score, many).values.tolist()
        best, worst = float(metric(true, score, ids).values[0]), float(metric(-true, score, ids).values[0])
        assert best == pytest.approx(better(every))
        assert worst == pytest.approx((min if better is max else max)(every))
        of_random = replace(metric, random_orders=400)(true, score, ids)
        assert of_random.chance is not None
        spread = torch.tensor(every).double().std(correction=0) / math.sqrt(400)
        assert abs(float(of_random.chance[0]) - sum(every) / len(every)) < 4 * float(spread)


def test_a_method_explains_texts_and_its_passes_are_counted() -> None:
    score = Score(Bag(VALUES).eval(), 1)
    found = Comprehensiveness(random_orders=0)(GradientTimesInput(), score, PADDED)
    given = Comprehensiveness(random_orders=0)(VALUES[TEXTS], score, PADDED)
    torch.testing.assert_close(found.values, given.values)  # gradient times input of a sum is the summands
    assert found.n_forward == given.n_forward + 3
    assert found.chance is None
    shares = Comprehensiveness().shares
    assert given.n_forward == 3 * (len(shares) + 1)
    with_chance = Comprehensiveness(random_orders=2)(VALUES[TEXTS], score, PADDED)
    assert with_chance.n_forward == 3 * given.n_forward
    other = Comprehensiveness(baseline=Constant((1.0,)), random_orders=0)(VALUES[TEXTS], score, PADDED)
    assert not torch.equal(other.values, given.values)
    empty = Inputs({"input_ids": TEXTS[:2], "attention_mask": torch.stack([MASK[0], torch.zeros_like(MASK[0])])})
    assert Comprehensiveness()(VALUES[TEXTS[:2]], score, empty).values.isnan().tolist() == [False, True]


@pytest.mark.parametrize(
    ("metric", "maps", "inputs", "message"),
    [
        (Sufficiency(), torch.zeros(2, 1, 6, 6), nets.images(2), "rationales are made of a text's tokens"),
        (Sufficiency(shares=()), torch.zeros(3, 10), PADDED, "shares must lie between 0 and 1"),
        (Sufficiency(shares=(1.5,)), torch.zeros(3, 10), PADDED, "shares must lie between 0 and 1"),
        (Sufficiency(), torch.zeros(3, 9), PADDED, r"a value for each of \[n, tokens\] \(3, 10\), got \(3, 9\)"),
        (Sufficiency(), torch.full((3, 10), torch.inf), PADDED, "holds NaN or infinity"),
    ],
)
def test_what_is_no_rationale_is_refused(metric: Sufficiency, maps: Tensor, inputs: Inputs | Tensor, message: str) -> None:
    model = nets.seeded(nets.ConvNet()) if isinstance(inputs, Tensor) else Bag(VALUES).eval()
    with pytest.raises(EvaluationError, match=message):
        metric(maps.double(), Score(model, 1), inputs)


def softmax_net(places: int = 6) -> tuple[nn.Linear, Tensor]:
    net = nn.Linear(places, 3)
    nets.seeded(net, 1)
    return net.double(), torch.randn(3, places, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def test_irof_is_the_area_over_the_relative_curve_of_segments_by_their_means() -> None:
    model = nets.seeded(nets.ConvNet()).double()
    x = nets.images(3, size=6).double()
    labels = torch.stack(
        [torch.arange(36).view(6, 6) // 9, torch.arange(36).view(6, 6) % 5, torch.arange(36).view(6, 6) // 5]
    )
    maps = nets.images(3, size=6, seed=7).double()
    score = Score(model, torch.tensor([0, 1, 2]), "probability")
    found = Irof(Given.of(labels), random_orders=0)(maps, score, x)
    for row in range(3):
        parts = torch.unique(labels[row]).tolist()
        worth = [float(maps[row, 0][labels[row] == part].mean()) for part in parts]
        order = sorted(range(len(parts)), key=lambda i: -worth[i])
        image, curve = x[row : row + 1].clone(), []
        for step in range(len(parts) + 1):
            curve.append(float(score.of(row)(image).detach()))
            if step < len(parts):
                image[:, :, labels[row] == parts[order[step]]] = 0
        share = [c / curve[0] for c in curve]
        area = sum((a + b) / 2 for a, b in pairwise(share)) / len(parts)
        assert float(found.values[row]) == pytest.approx(1 - area)


def test_irof_ranks_the_true_order_above_chance_and_its_opposite_below() -> None:
    model, x = softmax_net()
    score = Score(model, 0, "probability")
    true = (model.weight[0] - model.weight[1:].mean(0)).detach() * x
    best, worst = (Irof(Each(), random_orders=20)(s * true, score, x) for s in (1, -1))
    assert best.chance is not None
    assert (best.values > best.chance).all()
    assert (worst.values < best.chance).all()
    torch.testing.assert_close(best.chance, worst.chance)
    one = Irof(Each(), random_orders=20)(true[1:2], score, x[1:2])
    torch.testing.assert_close(one.values[0], best.values[1])


def test_irof_refuses_what_has_no_ratio_and_counts_what_has_no_segments() -> None:
    model = nets.seeded(nets.ConvNet()).double()
    x, maps = nets.images().double(), nets.images(seed=1).double()
    with pytest.raises(EvaluationError, match="unit='probability', got 'logit'"):
        Irof(Grid(2, 2))(maps, Score(model, 1), x)
    with pytest.raises(EvaluationError, match="hold all channels of a pixel"):
        Irof(Each())(
            maps.expand(-1, 2, -1, -1), Score(nets.HandNet().double().eval(), 1, "probability"), x.repeat(1, 2, 1, 1)
        )
    single = Irof(Given.of(torch.zeros(1, 6, 6, dtype=torch.long)))(maps, Score(model, 1, "probability"), x)
    assert single.excluded == len(x)


def linear(weights: list[float]) -> nn.Module:
    net = nn.Linear(len(weights), 1, bias=False).double().eval()
    with torch.no_grad():
        net.weight.copy_(torch.tensor([weights], dtype=torch.float64))
    return net


def test_monotonicity_is_the_share_of_steps_that_do_not_lower_the_score() -> None:
    score, x = Score(linear([4.0, -3.0, 2.0, -1.0]), 0), torch.ones(1, 4, dtype=torch.float64)
    maps = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    assert float(Monotonicity()(maps, score, x).values[0]) == 0.5
    rising = Monotonicity()(maps, Score(linear([1.0, 2.0, 0.0, 3.0]), 0), x)
    assert float(rising.values[0]) == 1  # a place without an effect lowers nothing
    # By sign -3, -1, 2, 4 go in, in this order: half of the steps.
    assert float(Monotonicity()(torch.tensor([[4.0, -3.0, 2.0, -1.0]]).double(), score, x).values[0]) == 0.5
    assert Monotonicity()(maps, Score(linear([0.0] * 4), 0), x).excluded == 1
    halves = Samples.of(torch.tensor([[0.0] * 4, [2.0] * 4]).double())  # from above all is turned round: the mean is half
    assert float(Monotonicity(baseline=halves)(maps, Score(linear([1.0] * 4), 0), x).values[0]) == 0.5


class Product(nn.Module):
    """Any order of a sum is as monotone as another; of a product of a sign and a size it is not."""

    def forward(self, x: Tensor) -> Tensor:
        return ((x[:, :1] - 0.5) * x[:, 1:].sum(1, keepdim=True)).expand(-1, 2)


def test_monotonicity_tells_orders_apart_where_places_interact() -> None:
    x = torch.ones(1, 4, dtype=torch.float64)
    gate_first = torch.tensor([[0.0, 1, 2, 3]]).double()
    assert float(Monotonicity()(gate_first, Score(Product().eval(), 0), x).values[0]) == 1
    assert float(Monotonicity()(-gate_first, Score(Product().eval(), 0), x).values[0]) == 0.25


def test_monotonicity_correlation_is_that_of_sizes_with_the_mean_squared_change() -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), nets.images().double()
    maps, score = nets.images(seed=5).double(), Score(model, 1)
    noise = Uniform((-1.0,), (1.0,), draws=3)
    found = MonotonicityCorrelation(noise, patch=2)(maps, score, x)
    draws, whole = noise(x), score(x).detach()
    for row in range(len(x)):
        effects, sizes = [], []
        for r in range(0, 6, 2):
            for c in range(0, 6, 2):
                changes = []
                for draw in draws:
                    changed = x[row : row + 1].clone()
                    changed[:, :, r : r + 2, c : c + 2] = draw[row, :, r : r + 2, c : c + 2]
                    changes.append(float(whole[row] - score(changed).detach()) ** 2)
                effects.append(sum(changes) / len(changes))
                sizes.append(abs(float(maps[row, 0, r : r + 2, c : c + 2].sum())))
        assert float(found.values[row]) == pytest.approx(stats.spearmanr(sizes, effects).statistic)


def test_monotonicity_correlation_of_the_true_sizes_is_one_and_of_nothing_is_none() -> None:
    weights = [4.0, -3.0, 2.0, -1.0]
    x = torch.ones(2, 4, dtype=torch.float64)
    maps = torch.tensor([weights, [1.0] * 4], dtype=torch.float64)
    found = MonotonicityCorrelation(ZERO)(maps, Score(linear(weights), 0), x)
    assert float(found.values[0]) == pytest.approx(1)
    assert bool(found.values[1].isnan())
    assert found.n_forward == 2 * 5
    with pytest.raises(EvaluationError, match="a correlation over places needs two or more"):
        MonotonicityCorrelation(patch=6)(torch.zeros(4, 1, 6, 6), Score(nets.seeded(nets.ConvNet()), 1), nets.images())


@pytest.mark.parametrize("metric", [Monotonicity(steps=9), MonotonicityCorrelation(), Irof(Grid(3, 3))])
def test_a_batch_is_each_alone_whatever_the_chunks(metric: Irof | Monotonicity) -> None:
    model, x = nets.seeded(nets.ConvNet()).double(), nets.images().double()
    maps, targets = nets.images(seed=5).double().round(), torch.tensor([0, 1, 2, 1])
    whole = metric(maps, Score(model, targets, "probability"), x)
    small = replace(metric, batch_size=3)(maps, Score(model, targets, "probability"), x)
    torch.testing.assert_close(small.values, whole.values, equal_nan=True)
    for i in range(4):
        alone: Measurement = metric(maps[i : i + 1], Score(model, int(targets[i]), "probability"), x[i : i + 1])
        torch.testing.assert_close(alone.values[0], whole.values[i], equal_nan=True)
