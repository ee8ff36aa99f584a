"""Training with attribution priors: what they change in maps, in accuracy, and what they cost.

    python experiments/attribution_prior.py [--tiny]

Images: scikit-learn's 8 x 8 digits, a small network, and the total variation of expected gradients as a second loss
(Erion et al. 2021, sec. 2.2). Features: 100 normal features of which 5 tell the class, few examples, and the Gini
coefficient (sec. 2.4). Each line is a weight of the prior; its accuracy is a mean over seeds, with the standard error of
the difference from training without a prior, paired by seed. A prior that only shrinks gradients shows in `size`.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Literal

import torch
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from probing.attribution.baselines import Samples
from probing.attribution.path import ExpectedGradients
from probing.attribution.priors import attribution_prior, gini, total_variation
from probing.models.scores import Score

Prior = Literal["total_variation", "gini"]


@dataclass(frozen=True)
class Task:
    """Data, a network, and a prior.

    Attributes:
        rows: of the training set.
        prior: what maps should look like.
        weights: of the prior's loss; the first is zero.
        noise: standard deviation of what is added to test inputs.
        steps: of the optimiser.
    """

    name: str
    data: Callable[[int], tuple[Tensor, Tensor]]
    network: Callable[[], nn.Module]
    rows: int
    prior: Prior
    weights: tuple[float, ...]
    noise: float
    steps: int


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """Return images of digits in an order of their own, from 0 to 1, and their classes."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    images = torch.tensor(found.images).float()[:, None] / 16
    return images[order], torch.tensor(found.target)[order]


def features(seed: int) -> tuple[Tensor, Tensor]:
    """Return 100 normal features, of which five raise the odds of class 1 alike."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(1100, 100, generator=generator)
    odds = 1.5 * rows[:, :5].sum(1)
    return rows, (torch.rand(1100, generator=generator) < odds.sigmoid()).long()


def convolutions() -> nn.Module:
    """Return a network for digits."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def dense() -> nn.Module:
    """Return a network for features."""
    return nn.Sequential(nn.Linear(100, 32), nn.ReLU(), nn.Linear(32, 2))


TASKS = (
    Task(
        "digits, total variation",
        digits,
        convolutions,
        300,
        "total_variation",
        (0.0, 0.01, 0.03, 0.1),
        0.3,
        300,
    ),
    Task("features, Gini", features, dense, 100, "gini", (0.0, 0.1, 0.3, 1.0), 0.5, 200),
)


def trained(task: Task, weight: float, seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a network trained with a prior, and the data."""
    rows, classes = task.data(seed)
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        net = task.network()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(task.steps):
        chosen = torch.randperm(task.rows, generator=generator)[:50]
        x, y = rows[chosen], classes[chosen]
        loss = functional.cross_entropy(net(x), y)
        if weight:
            background = rows[: task.rows]
            loss = loss + weight * attribution_prior(Score(net, y), x, background, task.prior, seed=seed * task.steps + step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval(), rows, classes


def measured(task: Task, weight: float, seed: int) -> dict[str, float]:
    """Return accuracies on rows that training did not see, and what maps look like there."""
    net, rows, classes = trained(task, weight, seed)
    x, y = rows[task.rows :], classes[task.rows :]
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
    explain = ExpectedGradients(Samples.of(rows[: task.rows]), samples=50)
    maps = explain(Score(net, y[:50]), x[:50]).values
    size = float(maps.abs().mean())
    shape = total_variation(maps / size) if task.prior == "total_variation" else gini(maps.abs().mean(0).flatten())
    return {
        "clean": accuracy(net, x, y),
        "noisy": accuracy(net, x + task.noise * noise, y),
        "shape": float(shape),
        "size": size,
    }


def accuracy(net: nn.Module, rows: Tensor, classes: Tensor) -> float:
    """Return the share of rows whose class has the highest score."""
    with torch.no_grad():
        return float((net(rows).argmax(1) == classes).float().mean())


def compared(task: Task, seeds: int) -> Table:
    """Return a table of a task, a line for each weight of the prior."""
    shape = "variation / size" if task.prior == "total_variation" else "Gini"
    table = Table("weight", "accuracy", "with noise", shape, "size", title=task.name)
    plain: list[dict[str, float]] = []
    for weight in task.weights:
        found = [measured(task, weight, seed) for seed in range(seeds)]
        plain = plain or found
        cells = [f"{mean(f[k] for f in found):.3g}" for k in ("shape", "size")]
        table.add_row(f"{weight:g}", *(told(found, plain, k) for k in ("clean", "noisy")), *cells)
    return table


def told(found: list[dict[str, float]], plain: list[dict[str, float]], what: str) -> str:
    """Return a mean over seeds, and the standard error of its difference from training without a prior."""
    said = f"{mean(f[what] for f in found):.1%}"
    if found is plain or len(found) < 2:
        return said
    changes = [f[what] - p[what] for f, p in zip(found, plain, strict=True)]
    return f"{said} ({mean(changes):+.1%} ± {stdev(changes) / math.sqrt(len(changes)):.1%})"


def main() -> int:
    """Print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a seed and few steps, to see it run")
    arguments = parser.parse_args()
    for whole in TASKS:
        short = replace(whole, weights=whole.weights[:2], steps=5)
        task = short if arguments.tiny else whole
        Console(width=100).print(compared(task, 1 if arguments.tiny else 5))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
