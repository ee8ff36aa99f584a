"""Linear probes of 10,000 rows with 512 features: this suite against scikit-learn, fits one thread each.

    python experiments/benchmarks/probes.py --out probes.json [--tiny]

Features are correlated and rectified, as a network's are; labels are drawn from a softmax, for 10 and 100 classes. Both
get the same standardised float32 rows. scikit-learn runs to a gradient of 1e-6, as this suite does; its default of 1e-4
stops up to 1 % short of the objective at weak penalties. `agrees` compares objectives (relative) and held-out
accuracies. Each contender has one thread, so that seconds are seconds of one core; the case of four layers is also run
as `LayerProbes` runs it, layers side by side on `--threads` threads, each with one.

`floor` is one pass over the rows: outputs of a weight matrix, and the sum of rows weighted by errors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from harness import Row, arguments, race, report
from sklearn.linear_model import LogisticRegression, Ridge as SkRidge
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from probing.probes.feature_tables import TableRows
from probing.probes.parallel import side_by_side
from probing.probes.ridge import RidgeStatistics
from probing.probes.solvers import fit_softmax

PATH = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5)
RIDGE_PATH = tuple(10 ** (p / 10) for p in range(-60, 40))
PENALTY = 1e-3
Weights = tuple[Tensor, Tensor]
Case = tuple[str, Mapping[str, Callable[[], object]], Callable[[object, object], str]]


@dataclass(frozen=True)
class Layer:
    """Standardised rows, their labels, and as many to judge on."""

    rows: TableRows
    labels: Tensor
    others: Tensor
    their_labels: Tensor

    @classmethod
    def draw(cls, n: int, features: int, classes: int, seed: int) -> "Layer":
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator)

        mixing = torch.logspace(0, -1.5, features)[:, None] * normal(features, features)
        table = TableRows.of((normal(2 * n, features) @ mixing).relu()).table
        logits = table @ normal(features, classes) * (4.5 / features**0.5)
        noise = -torch.rand(logits.shape, generator=generator).log()  # the least of these over odds
        labels = (noise.log() - logits).argmin(1)
        return cls(TableRows(table[:n].clone()), labels[:n], table[n:].clone(), labels[n:])

    def objective(self, fit: Weights, penalty: float) -> float:
        weights, intercepts = (t.double() for t in fit)
        outputs = self.rows.table.double() @ weights.mT + intercepts
        return float(cross_entropy(outputs, self.labels) + penalty / 2 * weights.square().sum())

    def accuracy(self, fit: Weights) -> float:
        outputs = self.others @ fit[0].float().mT + fit[1].float()
        return float((outputs.argmax(1) == self.their_labels).float().mean())


def _floor(layer: Layer, classes: int) -> Tensor:
    weights = layer.rows.zeros(1, classes, layer.rows.features)
    return layer.rows.pull(layer.rows.outputs(weights))


def _ours(layer: Layer, classes: int, path: Sequence[float]) -> list[Weights]:
    fits = fit_softmax(layer.rows, layer.labels[None], classes, path)
    return list(zip(fits.weights[0], fits.intercepts[0], strict=True))


def _theirs(layer: Layer, path: Sequence[float], *, warm: bool = False) -> list[Weights]:
    n = layer.rows.count
    model = LogisticRegression(tol=1e-6, max_iter=10_000, warm_start=warm)
    found = []
    for penalty in path:
        model.set_params(C=1 / (penalty * n)).fit(layer.rows.table.numpy(), layer.labels.numpy())
        found.append((torch.from_numpy(model.coef_.copy()), torch.from_numpy(model.intercept_.copy())))
    return found


def _compare(layers: Sequence[Layer], path: Sequence[float], mine: object, other: object) -> str:
    assert isinstance(mine, list)
    assert isinstance(other, list)
    gaps, accuracies = [], []
    for layer, first, second in zip(layers, mine, other, strict=True):
        for penalty, a, b in zip(path, first, second, strict=True):
            wanted = layer.objective(b, penalty)
            gaps.append((layer.objective(a, penalty) - wanted) / wanted)
            accuracies.append(abs(layer.accuracy(a) - layer.accuracy(b)))
    worst = max(gaps, key=abs)
    return f"objective {worst:+.0e} relative, accuracy within {max(accuracies):.4f}"


def _ridge(layer: Layer, classes: int) -> Tensor:
    statistics = RidgeStatistics(classes)
    statistics.add(layer.rows.table, layer.labels[None])
    return statistics.fit(RIDGE_PATH).weights[0]


def _sk_ridge(layer: Layer, classes: int) -> Tensor:
    target = (2 * one_hot(layer.labels, classes).double() - 1).numpy()
    rows = layer.rows.table.double().numpy()
    return torch.stack([torch.from_numpy(SkRidge(alpha=p * len(rows)).fit(rows, target).coef_) for p in RIDGE_PATH])


def _same(mine: object, other: object) -> str:
    assert isinstance(mine, Tensor)
    assert isinstance(other, Tensor)
    return f"weights within {float((mine - other).abs().max()):.0e}"


def cases(classes: int, n: int, features: int, threads: int) -> Iterator[Case]:
    """Yield name, contenders and how to compare them with ours."""
    layers = [Layer.draw(n, features, classes, seed) for seed in range(4)]
    one = layers[0]
    yield (
        f"one fit, {classes} classes",
        {
            "floor": lambda: _floor(one, classes),
            "ours": lambda: [_ours(one, classes, [PENALTY])],
            "scikit-learn": lambda: [_theirs(one, [PENALTY])],
        },
        lambda a, b: _compare([one], [PENALTY], a, b),
    )

    def together() -> list[list[Weights]]:
        torch.set_num_threads(threads)
        try:
            return side_by_side(lambda layer: _ours(layer, classes, PATH), layers)
        finally:
            torch.set_num_threads(1)

    yield (
        f"4 layers x {len(PATH)} penalties, {classes} classes",
        {
            "ours": lambda: [_ours(x, classes, PATH) for x in layers],
            "ours, side by side": together,
            "scikit-learn": lambda: [_theirs(x, PATH) for x in layers],
            "scikit-learn, warm starts": lambda: [_theirs(x, PATH, warm=True) for x in layers],
        },
        lambda a, b: _compare(layers, PATH, a, b),
    )
    yield (
        f"ridge, {len(RIDGE_PATH)} penalties, {classes} classes",
        {"ours": lambda: _ridge(one, classes), "scikit-learn": lambda: _sk_ridge(one, classes)},
        _same,
    )


def main() -> list[Row]:
    """Run the benchmark."""
    args = arguments("Linear probes against scikit-learn.", on_device=False)
    torch.set_num_threads(1)
    n, features, sizes = (300, 16, (3,)) if args.tiny else (10_000, 512, (10, 100))
    rows: list[Row] = []
    for classes in sizes:
        for case, contenders, compare in cases(classes, n, features, args.threads):
            if args.only in case:
                peers = [who for who in contenders if who.startswith("scikit-learn")]
                rows += race(case, contenders, args.rounds, dict.fromkeys(peers, compare))
    report(rows, args.out)
    return rows


if __name__ == "__main__":
    main()
