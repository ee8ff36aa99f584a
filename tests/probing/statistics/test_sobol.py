"""Total Sobol indices against closed forms, and the errors that they state."""

import numpy as np
import torch

from probing.statistics.sobol import ratio, sobol_total


def test_sobol_indices_of_a_sum_are_the_squares_of_its_weights() -> None:
    weights = torch.tensor([3.0, 2.0, 1.0, 0.0]).double()
    found, error = ratio(*sobol_total(lambda masks: masks @ weights, 4, 3000, seed=0))
    want = weights.square() / weights.square().sum()
    assert bool(((found - want).abs() <= 3 * error + 1e-12).all())
    assert float(error.max()) < 0.05
    product, _ = ratio(*sobol_total(lambda masks: masks[:, 0] * masks[:, 1], 2, 6000, seed=0))
    assert torch.allclose(product, torch.full((2,), 4 / 7).double(), atol=0.08)  # (1/9 - 1/12) / (1/9 - 1/16)


def test_standard_errors_of_sobol_indices_are_right() -> None:
    weights = torch.tensor([2.0, 1.0]).double()
    scores = []
    for seed in range(100):
        found, error = ratio(*sobol_total(lambda masks: masks @ weights, 2, 64, seed=seed))
        scores.append(((found - weights.square() / 5) / error).numpy())
    assert 0.7 < float(np.std(scores)) < 1.3  # of 200 standard normal numbers, 1 ± 6 standard errors
