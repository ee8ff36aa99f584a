"""Fits without each example, from one fit: equal to fitting again, and what is mislabelled comes first."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from probing.core.errors import ArgumentError
from probing.probes.feature_tables import TableRows
from probing.probes.leave_one_out import LeaveOneOutProbes, LeaveOneOutResult, leave_out, leave_out_of_cav
from probing.probes.probes import RidgeProbe
from probing.statistics.estimators import Ridge
from probing.statistics.linear_classifiers import SharedRows, fit_pairs
from probing.store.store import ActivationStore


def features(n: int = 30, m: int = 8, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    rows = torch.randn(n, m, generator=generator, dtype=torch.float64)
    return rows + 1.5 * torch.nn.functional.one_hot(labels, m).double(), labels


def indicators(labels: Tensor) -> Tensor:
    return 2 * torch.nn.functional.one_hot(labels).double() - 1


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("m", [8, 60])
def test_outputs_and_turns_are_those_of_probes_fitted_again(penalty: float, m: int) -> None:
    rows, labels = features(m=m)
    table = TableRows.of(rows).table
    found = leave_out(table, indicators(labels), penalty)
    probe = RidgeProbe((penalty,))
    whole = probe.fit(TableRows(table), labels[None], 3).weights[0, 0]
    for i in range(len(rows)):
        kept = torch.arange(len(rows)) != i
        again = probe.fit(TableRows(table[kept]), labels[None, kept], 3)
        said = again.weights[0, 0] @ table[i] + again.intercepts[0, 0]
        torch.testing.assert_close(found.outputs[i], said, atol=1e-8, rtol=0)
        cosine = torch.nn.functional.cosine_similarity(whole, again.weights[0, 0])
        torch.testing.assert_close(found.turn[i], 1 - cosine, atol=1e-8, rtol=0)


def test_groups_of_any_size_are_left_out_together() -> None:
    rows, labels = features()
    table, penalty = TableRows.of(rows).table, 1e-2
    groups = torch.cat([torch.arange(5).repeat_interleave(4), torch.arange(5, 10).repeat_interleave(2)])
    found = leave_out(table, indicators(labels), penalty, groups)
    probe = RidgeProbe((penalty,))
    for i in range(len(rows)):
        kept = groups != groups[i]
        again = probe.fit(TableRows(table[kept]), labels[None, kept], 3)
        said = again.weights[0, 0] @ table[i] + again.intercepts[0, 0]
        torch.testing.assert_close(found.outputs[i], said, atol=1e-8, rtol=0)


@pytest.mark.parametrize("m", [8, 60])
def test_cavs_without_each_row_are_those_fitted_again(m: int) -> None:
    rows, labels = features(40, m, 2)
    shared = SharedRows(rows * torch.linspace(0.1, 3, m))
    positive, negative = (labels == 1).nonzero().flatten()[:14], (labels == 0).nonzero().flatten()
    found = leave_out_of_cav(shared, positive, negative, 1e-2)
    assert found.outputs.shape == (34, 1)
    whole = fit_pairs(shared, positive[None], negative[None], Ridge(1e-2))
    for i in range(34):
        sides = [positive[torch.arange(14) != i], negative[torch.arange(20) != i - 14]]
        again = fit_pairs(shared, sides[0][None], sides[1][None], Ridge(1e-2))
        at = torch.cat([positive, negative])[i]
        said = again.decision_at(at[None, None])[0, 0]
        assert found.outputs[i, 0].item() == pytest.approx(said.item(), abs=1e-8)
        # Cosines are of weights on scaled features, which are normals in the features' own space over the scale.
        first, second = (fits.normals()[0] * shared.scale for fits in (whole, again))
        cosine = torch.nn.functional.cosine_similarity(first, second, dim=0)
        assert found.turn[i, 0].item() == pytest.approx(1 - cosine.item(), abs=1e-8)


def net() -> nn.Module:
    made = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).double().eval()
    with torch.no_grad():
        made[0].weight.copy_(torch.eye(8) * 2)
        made[0].bias.zero_()
    return made


def test_mislabelled_examples_come_first() -> None:
    """Six of 120 labels are wrong; where there are none, few margins are below zero."""
    rows, labels = features(120)
    rows += 2.5 * torch.nn.functional.one_hot(labels, 8).double()
    wrong = labels.clone()
    planted = [3, 20, 41, 66, 90, 119]
    wrong[planted] = (labels[planted] + 1) % 3
    found = LeaveOneOutProbes("0")(ActivationStore(), net(), rows, wrong)
    assert set(found.doubtful("0", 6)) == set(planted)
    assert (found.margin[0, planted] < 0).all()
    assert found.error.item() == pytest.approx(float((found.margin[0] < 0).double().mean()))
    assert found.low.item() < found.error.item() < found.high.item()
    right = LeaveOneOutProbes("0")(ActivationStore(), net(), rows, labels)
    assert right.error.item() <= found.error.item() - 6 / 120
    # One mislabelled example turns its direction further than one that is labelled right does.
    assert found.turn[0, planted].mean() > 3 * right.turn[0].mean()


def test_margins_are_of_the_own_class_and_groups_count_once() -> None:
    rows, labels = features(24)
    groups = [f"group {i // 4}" for i in range(24)]
    found = LeaveOneOutProbes("0", penalty=0.1)(ActivationStore(), net(), rows, labels, groups=groups)
    table = TableRows.of(2 * rows).table
    said = leave_out(table, indicators(labels), 0.1, torch.arange(24) // 4).outputs
    own = said.gather(1, labels[:, None])[:, 0]
    others = torch.stack([row[torch.arange(3) != k].max() for row, k in zip(said, labels, strict=True)])
    torch.testing.assert_close(found.margin[0], own - others, atol=1e-6, rtol=0)
    alone = LeaveOneOutProbes("0", penalty=0.1)(ActivationStore(), net(), rows, labels)
    assert not torch.allclose(alone.margin, found.margin)
    other = LeaveOneOutProbes("0", penalty=1.0)(ActivationStore(), net(), rows, labels)
    assert not torch.allclose(alone.margin, other.margin)


def test_a_result_is_a_table_a_figure_and_a_folder(tmp_path: Path) -> None:
    rows, labels = features(24)
    found = LeaveOneOutProbes(("0", "1"))(ActivationStore(), net(), rows, [f"kind {i}" for i in labels.tolist()])
    again = LeaveOneOutResult.load(found.save(tmp_path / "left out"))
    assert again.to_pandas().equals(found.to_pandas())
    assert len(found.to_pandas()) == 48
    assert found.classes == ("kind 0", "kind 1", "kind 2")
    assert len(found.plot().lines) == 3
    assert len(repr(found).splitlines()) <= 10
    assert "mislabelled, or a rare kind" in found.sentences()[0]
    assert replace(found, margin=-found.margin).doubtful("1", 1) == (int(found.margin[1].argmax()),)


def test_what_can_leave_nothing_out_is_refused() -> None:
    rows, labels = features()
    with pytest.raises(ArgumentError, match="penalty must be above 0, got 0"):
        leave_out(rows, indicators(labels), 0.0)
    with pytest.raises(ArgumentError, match="a group of 29 of 30 rows leaves too few"):
        leave_out(rows, indicators(labels), 1.0, (torch.arange(30) == 0).long())
