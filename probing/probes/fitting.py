"""One layer's probe: fitted, its penalty chosen, judged once on examples that took no part in either."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probing.probes.description_length import CodeBlocks, code_length
from probing.probes.feature_tables import Rows, Table
from probing.probes.probes import PathFits, Probe, SoftmaxProbe
from probing.probes.solvers import cross_entropy
from probing.probes.split import Split

_CODE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Tasks:
    """What is predicted: the true labels first, then those of control tasks.

    Attributes:
        labels: of all examples.
        names: of the classes.
        blocks: of the training examples, for the online code; None: no description length.
    """

    labels: Int[Tensor, "labellings n"]
    names: tuple[str, ...]
    split: Split
    groups: Int[Tensor, " n"]
    blocks: CodeBlocks | None = None

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.names)


@dataclass(frozen=True)
class LayerReading:
    """What one layer's probe found."""

    features: int
    penalty: float
    certificate: float
    wrong: Bool[Tensor, " test"]
    """Whether each test example is misclassified."""
    train_error: float
    cross_entropy: float
    train_cross_entropy: float
    control_error: float
    control_train_error: float
    bits: float
    """Of the online code of the training labels; NaN if it was not asked for."""


def measure_layer(table: Table, tasks: Tasks, probe: Probe) -> LayerReading:
    """Fit a layer's probe for all tasks at all penalties, choose on the validation side, judge on the test side."""
    split = tasks.split
    scaler = table.scaler(split.train)
    rows = table.rows(split.train, scaler)
    fits = probe.fit(rows, tasks.labels[:, split.train], tasks.classes)
    choice = _choose(fits, table.rows(split.validation, scaler), tasks, probe)
    best = fits.at(choice)
    wrong, loss = _judge(best, table.rows(split.test, scaler), tasks.labels[:, split.test])
    train_wrong, train_loss = _judge(best, rows, tasks.labels[:, split.train])
    penalty = probe.penalties[int(choice[0])]
    bits = float("nan")
    if tasks.blocks is not None and isinstance(probe, SoftmaxProbe):
        # Whatever the receiver can fit too is a code: these fits need not be at their optimum.
        chosen = replace(probe, penalties=(penalty,), tolerance=max(probe.tolerance, _CODE_TOLERANCE))
        known = tasks.labels[0, split.train]
        bits = code_length(table, split.train, known, tasks.classes, chosen, tasks.blocks)
    unknown = torch.full_like(loss, torch.nan)
    loss, train_loss = (loss, train_loss) if probe.probabilistic else (unknown, unknown)
    return LayerReading(
        features=rows.features,
        penalty=penalty,
        certificate=float(best.certificate[0, 0]),
        wrong=wrong[0],
        train_error=float(train_wrong[0].double().mean()),
        cross_entropy=float(loss[0]),
        train_cross_entropy=float(train_loss[0]),
        control_error=_mean(wrong[1:]),
        control_train_error=_mean(train_wrong[1:]),
        bits=bits,
    )


def majority_error(labels: Int[Tensor, " n"], split: Split) -> float:
    """Return the share of test examples outside the class most frequent in training."""
    common = labels[split.train].bincount().argmax()
    return float((labels[split.test] != common).double().mean())


def _choose(fits: PathFits, rows: Rows, tasks: Tasks, probe: Probe) -> Int[Tensor, " labellings"]:
    """Return the index of each task's best penalty on the validation side, of equals the strongest."""
    labels = tasks.labels[:, tasks.split.validation].to(rows.zeros(1).device)
    outputs = fits.outputs(rows)
    if probe.probabilistic:
        repeated = labels.unsqueeze(1).expand(-1, outputs.shape[1], -1).flatten(0, 1)
        cost = cross_entropy(outputs.flatten(0, 1), repeated).view(outputs.shape[:2])
    else:
        cost = (outputs.argmax(2) != labels.unsqueeze(1)).double().mean(2)
    order = torch.tensor(sorted(range(len(probe.penalties)), key=lambda i: -probe.penalties[i]))
    return order[cost.cpu()[:, order].argmin(1)]


def _judge(
    fits: PathFits, rows: Rows, labels: Int[Tensor, "labellings k"]
) -> tuple[Bool[Tensor, "labellings k"], Float[Tensor, " labellings"]]:
    outputs = fits.outputs(rows).squeeze(1).cpu()
    return outputs.argmax(1) != labels, cross_entropy(outputs, labels)


def _mean(wrong: Bool[Tensor, "controls k"]) -> float:
    return float(wrong.double().mean()) if len(wrong) else float("nan")


def stacked(readings: Sequence[LayerReading], name: str) -> Float[Tensor, " layers"]:
    """Return one number of every layer."""
    return torch.tensor([float(getattr(r, name)) for r in readings], dtype=torch.float64)
