"""Formulas of the papers written slowly, in float64, to check the fast code against."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def step_down_max_t(observed: Sequence[float], null: Sequence[Sequence[float]], *, exact: bool = False) -> list[float]:
    """Westfall & Young 1993, algorithm 4.1, with each cell divided by its root mean square over the draws."""
    pool = [*null] if exact else [*null, observed]
    scale = [math.sqrt(sum(row[c] ** 2 for row in pool) / len(pool)) for c in range(len(observed))]
    order = sorted(range(len(observed)), key=lambda c: -observed[c] / scale[c])
    corrected, floor = [0.0] * len(observed), 0.0
    for rank, cell in enumerate(order):
        hits = sum(max(row[c] / scale[c] for c in order[rank:]) >= observed[cell] / scale[cell] for row in null)
        floor = max(floor, hits / len(null) if exact else (1 + hits) / (1 + len(null)))
        corrected[cell] = floor
    return corrected


def logit_effect(positive: Tensor, negative: Tensor, gradients: Tensor, names: tuple[Sequence[str], ...]) -> float:
    """Mean over inputs of gradient · (mean positive - mean negative), each from other clusters than the input's.

    `positive`, `negative`, `gradients`: [n, m]; `names`: the clusters of each.
    """
    total = 0.0
    for gradient, own in zip(gradients.double(), names[2], strict=True):
        means = [
            torch.stack([f for f, name in zip(side.double(), clusters, strict=True) if name != own]).mean(0)
            for side, clusters in ((positive, names[0]), (negative, names[1]))
        ]
        total += float(gradient @ (means[0] - means[1]))
    return total / len(gradients)


def standardized(rows: Tensor, smallest: float) -> tuple[Tensor, Tensor]:
    """Rows less their mean over their deviation, no deviation below a share of the root mean square; and that scale."""
    rows = rows.double()
    scale = rows.std(0, correction=0)
    scale = scale.clamp(min=smallest * math.sqrt(float(scale.square().mean())))
    return (rows - rows.mean(0)) / scale, scale


def logistic_regression(rows: Tensor, signs: Tensor, penalty: float) -> tuple[Tensor, float]:
    """Minimum of mean log(1 + exp(-sign (w·row + b))) + penalty/2 |w|², by Newton steps on autograd's derivatives."""

    def objective(parameters: Tensor) -> Tensor:
        output = rows @ parameters[:-1] + parameters[-1]
        loss = torch.log(1 + torch.exp(-signs * output)).mean()
        return loss + penalty / 2 * (parameters[:-1] ** 2).sum()

    parameters = torch.zeros(rows.shape[1] + 1, dtype=torch.float64)
    for _ in range(40):
        point = parameters.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(objective(point), point)
        hessian = torch.autograd.functional.hessian(objective, parameters)
        parameters = parameters - torch.linalg.solve(hessian, gradient)
    return parameters[:-1], float(parameters[-1])


def ledoit_wolf(rows: Tensor) -> Tensor:
    """Ledoit & Wolf 2004, lemma 3.2 and sec. 3.3: the shrunk covariance of rows whose mean is 0."""
    n, m = rows.shape
    sample = sum((torch.outer(x, x) for x in rows), torch.zeros(m, m, dtype=rows.dtype)) / n
    mean = sample.trace() / m
    target = mean * torch.eye(m, dtype=rows.dtype)
    distance = ((sample - target) ** 2).sum() / m
    noise = sum(float(((torch.outer(x, x) - sample) ** 2).sum()) / m for x in rows) / n**2
    shrinkage = min(noise / float(distance), 1.0)
    return shrinkage * target + (1 - shrinkage) * sample


def discriminant(rows: Tensor, signs: Tensor) -> Tensor:
    """Fisher's direction: the inverse of the shrunk covariance within classes times the difference of means."""
    means = {sign: rows[signs == sign].mean(0) for sign in (1, -1)}
    within = torch.stack([x - means[int(s)] for x, s in zip(rows, signs, strict=True)])
    return torch.linalg.solve(ledoit_wolf(within), means[1] - means[-1])


def concordance(rankings: Sequence[Sequence[float]]) -> float:
    """Kendall's W without ties: 12 S / (m² (n³ - n)), S the spread of the sums of ranks."""
    raters, items = len(rankings), len(rankings[0])
    sums = [sum(ranking[i] for ranking in rankings) for i in range(items)]
    spread = sum((total - sum(sums) / items) ** 2 for total in sums)
    return 12 * spread / (raters**2 * (items**3 - items))


def directional_derivatives(model: torch.nn.Module, layer: str, direction: Tensor, images: Tensor, target: int) -> Tensor:
    """Kim et al. 2018, eq. 1: the derivative of each image's logit as its layer output moves along a direction."""
    found = []
    for image in images:
        step = torch.zeros((), dtype=image.dtype, requires_grad=True)
        handle = model.get_submodule(layer).register_forward_hook(
            lambda module, args, output, step=step: output + step * direction.reshape(output.shape)
        )
        logit = model(image[None])[0, target]
        handle.remove()
        found.append(torch.autograd.grad(logit, step)[0])
    return torch.stack(found)
