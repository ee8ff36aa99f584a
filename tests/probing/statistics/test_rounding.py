"""Differences that rounding explains are none, and those beyond it stay as they are."""

import pytest
import torch
from torch import nn

from probing.statistics.clustered import clustered_mean
from probing.statistics.rounding import beyond_rounding, of_weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_difference_of_the_last_digits_is_none(dtype: torch.dtype) -> None:
    scores = torch.tensor([[100.0, 1.0], [50.0, 0.5]], dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    change = torch.tensor([[10 * eps, 10 * eps], [1e5 * eps, -1e5 * eps]], dtype=torch.float64)
    found = beyond_rounding(change * torch.tensor([100.0, 1.0]), scores, dtype)
    assert found.tolist() == [[0.0, 0.0], (change[1] * torch.tensor([100.0, 1.0])).tolist()]


def test_rounding_to_one_side_would_be_significant_and_is_not() -> None:
    """A sum in another order is off by the same digit in every pair."""
    scores, clusters = torch.linspace(1, 2, 40, dtype=torch.float64)[:, None], torch.arange(40)
    change = torch.full_like(scores, 3e-8) + 1e-9 * torch.sin(torch.arange(40.0))[:, None]
    assert float(clustered_mean(change, clusters, 0.95).p) < 1e-6, "the control"
    found = clustered_mean(beyond_rounding(change, scores, torch.float32), clusters, 0.95)
    assert float(found.mean) == 0
    assert not float(found.p) < 0.05


def test_the_coarsest_format_of_the_weights_counts() -> None:
    assert of_weights(nn.Linear(2, 2)) == torch.float32
    assert of_weights(nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2).bfloat16())) == torch.bfloat16
    assert of_weights(nn.ReLU()) == torch.float32
