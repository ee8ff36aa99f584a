"""Streaming statistics equal those of the whole, for every chunking and order of merging."""

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Protocol, TypeVar

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from probing.statistics.streaming import (
    CountedQuantile,
    Moments,
    PairwiseIou,
    StreamError,
    TopK,
    UpperQuantile,
    values_above,
)


class Mergeable(Protocol):
    def merge(self, other, /) -> None: ...


A = TypeVar("A", bound=Mergeable)

rows, units, workers = st.integers(1, 40), st.integers(1, 4), st.integers(1, 5)
seeds = st.integers(0, 2**16)


def streamed(make: Callable[[], A], feed: Callable[[A, Tensor], None], n: int, parts: int, seed: int) -> A:
    """Deal rows to workers in random chunks, some empty; then merge the workers in random order."""
    chance = random.Random(seed)
    order = list(range(n))
    chance.shuffle(order)
    accumulators = [make() for _ in range(parts)]
    while order:
        size = chance.randint(0, len(order))
        chunk, order = order[:size], order[size:]
        feed(chance.choice(accumulators), torch.tensor(chunk, dtype=torch.int64))
    chance.shuffle(accumulators)
    while len(accumulators) > 1:
        into = chance.randrange(len(accumulators) - 1)
        accumulators[into].merge(accumulators.pop())
    return accumulators[0]


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def with_ties(*shape: int, seed: int) -> Tensor:
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float() / 2


# Moments


@given(rows, units, workers, seeds)
def test_streamed_moments_equal_those_of_the_whole(n: int, k: int, parts: int, seed: int) -> None:
    values = normal(n, k, 3, seed=seed) * 3 + 100
    value = streamed(Moments, lambda m, i: m.add(values[i]), n, parts, seed).value()
    assert value.count == n
    torch.testing.assert_close(value.mean, values.double().mean(0), rtol=1e-12, atol=1e-12)
    whole = values.double().var(0, correction=0)
    torch.testing.assert_close(value.variance, whole, rtol=1e-10, atol=1e-10)


def test_a_variance_a_million_times_smaller_than_the_squared_mean_is_kept() -> None:
    values = (1e6 + torch.arange(8.0, dtype=torch.float64))[:, None]
    moments = Moments()
    for row in values:
        moments.add(row[None])
    assert moments.value().variance.item() == pytest.approx(5.25, rel=1e-9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_moments_refuse_what_is_not_finite(bad: float) -> None:
    with pytest.raises(StreamError, match="1 values that are not finite"):
        Moments().add(torch.tensor([[0.0, bad]]))


def test_moments_refuse_rows_of_another_shape() -> None:
    moments = Moments()
    moments.add(torch.zeros(2, 3))
    with pytest.raises(StreamError, match=r"features must stay the same, got \(1,\) after \(3,\)"):
        moments.add(torch.zeros(2, 1))


def test_the_value_of_moments_does_not_change_when_they_go_on() -> None:
    moments = Moments()
    moments.add(torch.ones(1, 2))
    before = moments.value()
    moments.add(torch.zeros(1, 2))
    assert before.mean.tolist() == [1, 1]


# Quantiles


def whole_quantile(values: Tensor, q: Fraction) -> tuple[Tensor, Tensor]:
    """The ⌈(1−q)N⌉-th smallest value per column by sorting, and how many lie above it."""
    n = len(values)
    place = -((-(1 - q) * n) // 1)
    threshold = values.sort(0).values[int(place) - 1]
    return threshold, (values > threshold).sum(0)


@given(rows, units, workers, seeds, st.sampled_from(["0.005", "0.1", "0.29", "0.5", "0.9"]))
def test_nd_3_a_streamed_quantile_equals_the_sorted_one(n: int, k: int, parts: int, seed: int, q: str) -> None:
    values = with_ties(n, k, 2, 2, seed=seed)
    flat = values.transpose(0, 1).flatten(1).T
    threshold, above = whole_quantile(flat, Fraction(q))
    value = streamed(lambda: UpperQuantile(float(q), total=n * 4), lambda u, i: u.add(values[i]), n, parts, seed).value()
    assert torch.equal(value.threshold, threshold)
    assert torch.equal(value.above, above)
    assert (value.above <= values_above(float(q), n * 4)).all()


@given(
    rows,
    units,
    workers,
    seeds,
    st.sampled_from(["0.005", "0.1", "0.29", "0.5", "0.9"]),
    st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_nd_3_a_counted_quantile_equals_the_sorted_one(
    n: int, k: int, parts: int, seed: int, q: str, dtype: torch.dtype
) -> None:
    values = normal(n, k, 2, 2, seed=seed, dtype=dtype)
    flat = values.transpose(0, 1).flatten(1).T
    threshold, above = whole_quantile(flat, Fraction(q))
    value = streamed(lambda: CountedQuantile(float(q), dtype), lambda u, i: u.add(values[i]), n, parts, seed).value()
    assert value.total == n * 4
    assert value.threshold.dtype == dtype
    assert torch.equal(value.threshold, threshold)
    assert torch.equal(value.above, above)


@pytest.mark.parametrize("chunk", [1, 7, 200, 1000])
def test_nd_3_a_permutation_of_1000_has_threshold_994_and_5_values_above(chunk: int, generator: torch.Generator) -> None:
    values = torch.randperm(1000, generator=generator).float()[:, None]
    known, counted = UpperQuantile(0.005, total=1000), CountedQuantile(0.005, torch.float16)
    for part in values.split(chunk):
        known.add(part)
        counted.add(part)
    for value in (known.value(), counted.value()):
        assert value.threshold.tolist() == [994]
        assert value.above.tolist() == [5]


def test_every_16_bit_value_has_its_place() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = every[~every.isnan()]
    for place in (0, 1, len(every) // 2, len(every) - 2):
        quantile = CountedQuantile(Fraction(2 * place + 1, 2 * len(every)))
        quantile.add(every[:, None])
        expected = every.float().sort(descending=True).values[place]
        assert quantile.value().threshold.item() == expected


def test_the_share_is_read_as_the_decimal_that_was_written() -> None:
    assert int(0.29 * 100) == 28
    assert values_above(0.29, 100) == 29
    assert values_above(Fraction(1, 3), 9) == 3


@pytest.mark.parametrize("q", [0.0, 1.0, -0.1, float("nan")])
def test_a_share_outside_0_to_1_is_refused(q: float) -> None:
    with pytest.raises(StreamError, match=f"q must lie strictly between 0 and 1, got {q}"):
        UpperQuantile(q, total=10)


def test_a_quantile_of_fewer_or_more_values_than_announced_is_refused() -> None:
    quantile = UpperQuantile(0.1, total=10)
    quantile.add(torch.zeros(9, 2))
    with pytest.raises(StreamError, match="9 of 10 values per unit seen"):
        quantile.value()
    with pytest.raises(StreamError, match="more than total=10 values per unit: got 11"):
        quantile.add(torch.zeros(2, 2))


def test_values_of_more_than_16_bits_are_refused_until_rounded() -> None:
    values = torch.tensor([[1.0001]])
    with pytest.raises(StreamError, match=r"round them with \.to\(torch\.bfloat16\)"):
        CountedQuantile(0.5).add(values)
    quantile = CountedQuantile(0.5)
    quantile.add(values.to(torch.bfloat16))
    assert quantile.value().threshold.item() == 1


def test_a_counted_quantile_refuses_other_dtypes() -> None:
    with pytest.raises(StreamError, match=r"got torch\.float32"):
        CountedQuantile(0.5, torch.float32)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (UpperQuantile(0.1, 10), UpperQuantile(0.2, 10)),
        (UpperQuantile(0.1, 10), UpperQuantile(0.1, 20)),
        (CountedQuantile(0.1), CountedQuantile(0.2)),
        (CountedQuantile(0.1), CountedQuantile(0.1, torch.float16)),
        (TopK(1), TopK(2)),
    ],
)
def test_accumulators_of_different_settings_do_not_merge(one: Mergeable, other: Mergeable) -> None:
    with pytest.raises(StreamError, match="must stay the same"):
        one.merge(other)


def test_counts_past_31_bits_go_on_in_64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probing.statistics.streaming._INT32_MAX", 5)
    quantile = CountedQuantile(0.5)
    for _ in range(3):
        quantile.add(torch.tensor([[1.0], [2.0], [3.0]]))
    assert quantile._counts.dtype == torch.int64
    assert quantile.value().threshold.item() == 2


def test_quantiles_keep_no_more_than_they_need(generator: torch.Generator) -> None:
    known, counted = UpperQuantile(0.005, total=40_000), CountedQuantile(0.005)
    for _ in range(40):
        values = torch.randn(1000, 2, generator=generator).bfloat16()
        known.add(values)
        counted.add(values)
        assert known._top.untyped_storage().nbytes() <= 201 * 2 * 2
        assert counted._counts.untyped_storage().nbytes() == 65_536 * 2 * 4
    assert torch.equal(known.value().threshold, counted.value().threshold)


# Top examples


def whole_top(values: Tensor, k: int) -> tuple[list[list[float]], list[list[int]]]:
    columns = [sorted(((-v, i) for i, v in enumerate(column)))[:k] for column in values.T.tolist()]
    return [[-v for v, _ in c] for c in columns], [[i for _, i in c] for c in columns]


@given(rows, units, workers, seeds, st.integers(1, 6))
def test_streamed_top_examples_equal_the_sorted_ones_ties_included(n: int, m: int, parts: int, seed: int, k: int) -> None:
    values = with_ties(n, m, seed=seed)
    top = streamed(lambda: TopK(k), lambda t, i: t.add(values[i], i), n, parts, seed).value()
    expected_values, expected_indices = whole_top(values, k)
    assert top.values.T.tolist() == expected_values
    assert top.indices.T.tolist() == expected_indices


def test_of_many_equal_values_the_first_examples_stay(generator: torch.Generator) -> None:
    top = TopK(100)
    for chunk in torch.randperm(400, generator=generator).split(50):
        top.add(torch.ones(50, 1), chunk)
    assert top.value().indices[:, 0].tolist() == list(range(100))


def test_top_examples_keep_k_rows_only(generator: torch.Generator) -> None:
    top = TopK(3)
    for start in range(0, 1000, 100):
        top.add(torch.randn(100, 5, generator=generator), torch.arange(start, start + 100))
        assert top._values.untyped_storage().nbytes() == 3 * 5 * 4


def test_an_example_given_twice_is_refused() -> None:
    with pytest.raises(StreamError, match="a batch names an example twice"):
        TopK(2).add(torch.zeros(2, 1), torch.tensor([4, 4]))
    top = TopK(2)
    top.add(torch.zeros(1, 1), torch.tensor([4]))
    with pytest.raises(StreamError, match="example 4 was added twice"):
        top.add(torch.zeros(1, 1), torch.tensor([4]))


def test_k_of_zero_is_refused() -> None:
    with pytest.raises(StreamError, match="k must be at least 1, got 0"):
        TopK(0)


# Intersection over union


def masks(n: int, k: int, seed: int) -> Tensor:
    return torch.rand(n, k, 3, 3, generator=torch.Generator().manual_seed(seed)) < 0.4


def whole_iou(a: Tensor, b: Tensor, counted: Tensor) -> list[list[float]]:
    def pair(u: int, c: int) -> float:
        images = counted[:, c]
        both = (a[images, u] & b[images, c]).sum().item()
        either = (a[images, u] | b[images, c]).sum().item()
        return both / either if either else 0.0

    return [[pair(u, c) for c in range(b.shape[1])] for u in range(a.shape[1])]


@given(rows, units, workers, seeds)
def test_nd_8_streamed_iou_equals_that_of_the_whole_exactly(n: int, k: int, parts: int, seed: int) -> None:
    a, b = masks(n, k, seed), masks(n, 3, seed + 1)
    counted = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed)) < 0.7
    pairs = streamed(PairwiseIou, lambda p, i: p.add(a[i], b[i], counted[i]), n, parts, seed).value()
    assert pairs.iou.tolist() == whole_iou(a, b, counted)


def test_nd_4_iou_over_images_is_not_the_mean_of_each_image() -> None:
    units, labels = torch.zeros(2, 1, 9).bool(), torch.zeros(2, 1, 9).bool()
    units[0, 0, 0] = labels[0, 0, 0] = True
    labels[1] = True
    pairs = PairwiseIou()
    pairs.add(units, labels)
    assert pairs.value().iou.item() == 0.1


def test_nd_5_images_that_do_not_count_change_nothing() -> None:
    a, b = masks(4, 2, 0), masks(4, 2, 1)
    pairs = PairwiseIou()
    pairs.add(a, b)
    before = pairs.value()
    pairs.add(masks(4, 2, 2), masks(4, 2, 3), torch.zeros(4, 2).bool())
    assert torch.equal(pairs.value().iou, before.iou)


def test_nd_10_the_worked_example_by_the_images_that_count() -> None:
    activations = torch.tensor([[[9.0, 1], [2, 3]], [[4, 5], [6, 8]], [[0, 0], [0, 7]]], dtype=torch.float64)[:, None]
    quantile = UpperQuantile(0.25, total=12)
    quantile.add(activations)
    assert quantile.value().threshold.tolist() == [6]
    concept = torch.zeros(3, 1, 2, 2, dtype=torch.bool)
    concept[0, 0, 0] = concept[1, 0, 0, 0] = True
    for counted, expected in (([1, 1, 0], 1 / 4), ([1, 1, 1], 1 / 5)):
        pairs = PairwiseIou()
        pairs.add(activations > 6, concept, torch.tensor(counted).bool()[:, None])
        assert pairs.value().iou.item() == expected


def test_iou_is_symmetric_and_one_with_itself() -> None:
    a, b = masks(5, 3, 0), masks(5, 3, 1)
    forth, back, own = PairwiseIou(), PairwiseIou(), PairwiseIou()
    forth.add(a, b)
    back.add(b, a)
    own.add(a, a)
    assert torch.equal(forth.value().iou, back.value().iou.T)
    assert own.value().iou.diagonal().tolist() == [1, 1, 1]


# All of them


def test_nothing_added_is_nothing_to_report() -> None:
    for accumulator in (Moments(), CountedQuantile(0.5), TopK(1), PairwiseIou()):
        with pytest.raises(StreamError, match="nothing was added yet"):
            accumulator.value()


@pytest.mark.parametrize(
    "add",
    [
        lambda batch: UpperQuantile(0.5, 4).add(batch),
        lambda batch: CountedQuantile(0.5).add(batch),
        lambda batch: TopK(1).add(batch, torch.arange(2)),
    ],
    ids=["UpperQuantile", "CountedQuantile", "TopK"],
)
def test_nan_has_no_rank(add: Callable[[Tensor], None]) -> None:
    with pytest.raises(StreamError, match="holds 1 NaN"):
        add(torch.tensor([[0.0, float("nan")], [1.0, 2.0]]))


def test_other_units_than_before_are_refused() -> None:
    quantile, counted, top, pairs = (
        UpperQuantile(0.5, 9),
        CountedQuantile(0.5),
        TopK(1),
        PairwiseIou(),
    )
    quantile.add(torch.zeros(1, 2))
    counted.add(torch.zeros(1, 2))
    top.add(torch.zeros(1, 2), torch.tensor([0]))
    pairs.add(masks(1, 2, 0), masks(1, 2, 0))
    for again in (
        lambda: quantile.add(torch.zeros(1, 3)),
        lambda: counted.add(torch.zeros(1, 3)),
        lambda: top.add(torch.zeros(1, 3), torch.tensor([1])),
        lambda: pairs.add(masks(1, 3, 0), masks(1, 2, 0)),
    ):
        with pytest.raises(StreamError, match="must stay the same"):
            again()


def test_gradients_do_not_keep_the_graph_alive() -> None:
    values = torch.ones(2, 2, requires_grad=True) * 2
    moments, quantile, top = Moments(), UpperQuantile(0.5, 2), TopK(1)
    moments.add(values)
    quantile.add(values)
    top.add(values, torch.arange(2))
    assert not moments.value().mean.requires_grad
    assert not quantile.value().threshold.requires_grad
    assert not top.value().values.requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_large_batches_give_the_thresholds_that_small_ones_give(dtype: torch.dtype) -> None:
    # Large ones are looked through by a compiled loop, small ones by tensor operations.
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(90, 30, 110, generator=generator, dtype=dtype).relu()
    rows[40:, 7] += 3  # one unit of which nearly all later values exceed the earlier ones
    rows[-1, 7, -1] = 99  # and the very last is the highest
    large, small = UpperQuantile(0.01, 90 * 110), UpperQuantile(0.01, 90 * 110)
    for part in (rows[:5], rows[5:]):
        large.add(part)
    for part in rows.split(3):
        small.add(part)
    expected = rows.transpose(0, 1).flatten(1).sort(1, descending=True).values[:, 99]
    assert rows[5:].numel() > 1 << 18
    for quantile in (large, small):
        assert torch.equal(quantile.value().threshold, expected)
        assert quantile.value().above.max() <= 99
