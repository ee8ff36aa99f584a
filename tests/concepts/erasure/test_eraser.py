"""Erasers against closed forms: what no linear reader finds, the least change, streams and refusals."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from concepts.erasure.eraser import (
    CrossCovariance,
    CrossMoments,
    Eraser,
    ErasureError,
    leace,
    mean_projection,
    random_eraser,
)


def rows_and_kinds(n: int = 240, m: int = 9, kinds: int = 3) -> tuple[Tensor, Tensor]:
    """Return correlated rows, and the one-hot kind of each, which hangs on some of them."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(n, m, generator=generator, dtype=torch.float64)
    kind = (rows[:, 0] + rows[:, 1] > 0).long() + (rows[:, 2] > 0.5).long() * (kinds > 2)
    mix = torch.randn(m, m, generator=generator, dtype=torch.float64)
    return rows @ mix + 3, functional.one_hot(kind, kinds).double()


def moments(rows: Tensor, attribute: Tensor) -> CrossCovariance:
    found = CrossMoments()
    found.add(rows, attribute)
    return found.value()


def cross(rows: Tensor, attribute: Tensor) -> Tensor:
    return (rows - rows.mean(0)).mT @ (attribute - attribute.mean(0)) / len(rows)


ERASERS = {
    "leace": leace,
    "leace, not shrunk": lambda found: leace(found, shrink=False),
    "mean": mean_projection,
}


@pytest.mark.parametrize("name", ERASERS)
def test_no_covariance_with_the_attribute_is_left(name: str) -> None:
    rows, attribute = rows_and_kinds()
    eraser = ERASERS[name](moments(rows, attribute))
    erased = eraser(rows)
    assert eraser.rank == 2  # three shares add up to one
    assert float(cross(rows, attribute).abs().max()) > 0.1
    assert float(cross(erased, attribute).abs().max()) < 1e-12
    torch.testing.assert_close(eraser(erased), erased)
    torch.testing.assert_close(erased.mean(0), rows.mean(0))
    one = torch.nn.functional.one_hot(attribute.argmax(1) // 2, 2).double()
    assert ERASERS[name](moments(rows, one)).rank == 1


def test_the_best_linear_classifier_has_the_priors_entropy() -> None:
    rows, attribute = rows_and_kinds(kinds=2)
    labels = attribute.argmax(1)
    share = labels.double().mean()
    prior = float(-(share * share.log() + (1 - share) * (1 - share).log()))
    for eraser in (leace(moments(rows, attribute)), mean_projection(moments(rows, attribute))):
        erased = eraser(rows).numpy()
        read = LogisticRegression(C=1e6, max_iter=5000).fit(erased, labels.numpy())
        odds = torch.from_numpy(read.predict_log_proba(erased))
        entropy = float(-odds.gather(1, labels[:, None]).mean())
        assert entropy == pytest.approx(prior, abs=1e-6)
        read = LogisticRegression(C=1e6, max_iter=5000).fit(rows.numpy(), labels.numpy())
        assert read.score(rows.numpy(), labels.numpy()) > 0.95


def test_white_rows_are_projected_orthogonally() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.linalg.qr(torch.randn(60, 5, generator=generator, dtype=torch.float64) - 0.5).Q
    rows = torch.linalg.qr(rows - rows.mean(0)).Q * 60**0.5  # identity covariance
    attribute = torch.randn(60, 2, generator=generator, dtype=torch.float64)
    found = moments(rows, attribute)
    torch.testing.assert_close(found.rows, torch.eye(5, dtype=torch.float64))
    basis = torch.linalg.qr(found.cross).Q
    expected = rows - (rows - rows.mean(0)) @ basis @ basis.mT
    for eraser in (leace(found), leace(found, shrink=False), mean_projection(found)):
        torch.testing.assert_close(eraser(rows), expected)


def test_no_eraser_that_takes_the_covariance_away_changes_rows_less() -> None:
    rows, attribute = rows_and_kinds()
    found = moments(rows, attribute)
    best = leace(found, shrink=False)
    least = float((best(rows) - rows).square().sum())
    basis = torch.linalg.qr(found.cross).Q[:, : best.rank]
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        drawn = torch.randn(best.right.shape, generator=generator, dtype=torch.float64)
        right = best.right + drawn - drawn @ basis @ basis.mT  # looks at other directions besides those that tell
        other = Eraser(found.mean, best.left @ torch.linalg.inv(right @ best.left), right)
        assert float(cross(other(rows), attribute).abs().max()) < 1e-9
        assert float((other(rows) - rows).square().sum()) > least


def test_what_is_uncorrelated_leaves_nothing_to_erase() -> None:
    rows = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]).double()
    attribute = torch.tensor([[1.0], [-1], [-1], [1]]).double()  # the product: no linear reader finds it
    for eraser in (leace(moments(rows, attribute)), mean_projection(moments(rows, attribute))):
        assert eraser.rank == 0
        torch.testing.assert_close(eraser(rows), rows)


def test_batches_and_workers_give_what_all_rows_give() -> None:
    rows, attribute = rows_and_kinds()
    first, second = CrossMoments(), CrossMoments()
    first.merge(second)
    for part in (slice(0, 1), slice(1, 70)):
        first.add(rows[part], attribute[part])
    second.add(rows[70:], attribute[70:])
    second.merge(first)
    found, whole = second.value(), moments(rows, attribute)
    assert found.count == len(rows)
    for name in ("mean", "attribute_mean", "rows", "cross"):
        torch.testing.assert_close(getattr(found, name), getattr(whole, name))
    torch.testing.assert_close(whole.rows, torch.cov(rows.mT, correction=0))


@pytest.mark.parametrize("whitened", [True, False])
def test_random_directions_are_as_many_and_the_same_for_a_seed(whitened: bool) -> None:
    rows, attribute = rows_and_kinds()
    found = moments(rows, attribute)
    eraser = random_eraser(found, 2, 5, whitened=whitened)
    torch.testing.assert_close(eraser(rows), random_eraser(found, 2, 5, whitened=whitened)(rows))
    assert not torch.allclose(eraser(rows), random_eraser(found, 2, 6, whitened=whitened)(rows))
    torch.testing.assert_close(eraser(eraser(rows)), eraser(rows))
    assert int(torch.linalg.matrix_rank(rows - eraser(rows))) == 2
    with pytest.raises(ErasureError, match="vary in 2 only"):
        random_eraser(moments(torch.cat([rows[:, :2], rows[:, :2]], 1), attribute), 3, 0, shrink=False)


def test_directions_that_few_rows_leave_open_are_not_changed_at_will() -> None:
    """Hardly more rows than features: whitened without shrinkage, noise is taken for what hardly varies."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(100, 50, generator=generator, dtype=torch.float64)
    rows[:, 0] += (torch.arange(100) % 2) * 3
    attribute = (torch.arange(100) % 2).double()[:, None]
    found = moments(rows[:53], attribute[:53])
    moved = [float((e(rows[53:]) - rows[53:]).square().sum()) for e in (leace(found), leace(found, shrink=False))]
    assert moved[0] < moved[1] / 4


def test_what_can_make_no_covariance_is_refused() -> None:
    rows, attribute = rows_and_kinds()
    found = CrossMoments()
    with pytest.raises(ErasureError, match="2 rows or more, got 0"):
        found.value()
    with pytest.raises(ErasureError, match="NaN or infinity"):
        found.add(rows * torch.nan, attribute)
    with pytest.raises(ErasureError, match="240 rows need as many values"):
        found.add(rows, attribute[:3])
    found.add(rows, attribute)
    with pytest.raises(ErasureError, match="keep to one layer and one attribute"):
        found.add(rows[:, :4], attribute)
