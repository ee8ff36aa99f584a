"""Corrections of a network's last linear layer, by which a classifier stops leaning on an attribute.

All of them leave the layers before as they are, so that the weights hold them. `Projection` takes the attribute's directions
from what the layer sees (Belrose et al. 2023; as P-ClArC, Anders et al. 2022, arXiv:1912.11425); `LastLayer` fits it anew on
groups of equal size (deep feature reweighting, Kirichenko et al. 2022, arXiv:2204.02937); `GroupDro` fits it to the group
that it fits worst (Sagawa et al. 2020, arXiv:1911.08731), a plain baseline.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from concepts.erasure.eraser import CrossMoments, ErasureError, Kind, eraser_of
from probing.probes.feature_tables import MemoryTable, Scaler, TableRows
from probing.probes.probes import PENALTIES, SoftmaxProbe


@dataclass(frozen=True, eq=False)
class Head:
    """A linear layer: class scores are `weight x + bias`."""

    weight: Float[Tensor, "classes m"]
    bias: Float[Tensor, " classes"]

    def __call__(self, rows: Float[Tensor, "n m"]) -> Float[Tensor, "n classes"]:
        return torch.nn.functional.linear(rows.double(), self.weight, self.bias)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a correction is fitted on: rows that the layer is given, and what is known of each."""

    rows: Float[Tensor, "n m"]
    attribute: Int[Tensor, " n"]
    labels: Int[Tensor, " n"] | None
    clusters: Int[Tensor, " n"]

    def part(self, where: Int[Tensor, " k"]) -> "Seen":
        """Return some of the rows."""
        labels = None if self.labels is None else self.labels[where]
        return Seen(self.rows[where], self.attribute[where], labels, self.clusters[where])

    @property
    def groups(self) -> Int[Tensor, " n"]:
        """The group of each row: its label and attribute, numbered among those that occur."""
        assert self.labels is not None
        together = self.labels * (int(self.attribute.max()) + 1) + self.attribute
        found: Tensor = torch.unique(together, return_inverse=True)[1]
        return found


@runtime_checkable
class Correction(Protocol):
    """A way to fit a last layer that leans less on an attribute."""

    needs_labels: ClassVar[bool]

    def __call__(self, head: Head, seen: Seen, seed: int) -> Head:
        """Return the layer corrected."""


@dataclass(frozen=True)
class Projection:
    """Erases the attribute's directions from what the layer is given: exact in its weights.

    Where labels are known, the directions are those of the attribute among examples of one class: where attribute and class
    go together, erasing what tells the attribute of all examples would take the class along. Without labels it does.

    Attributes:
        kind: of the eraser, as `Erasure` takes it.
    """

    needs_labels: ClassVar[bool] = False
    kind: Kind = "leace"

    def __call__(self, head: Head, seen: Seen, seed: int) -> Head:
        kinds = torch.nn.functional.one_hot(seen.attribute).double()
        rows, values = seen.rows, kinds[:, 1:] if kinds.shape[1] == 2 else kinds
        if seen.labels is not None:
            rows, values = (part - _class_means(part, seen.labels) for part in (rows, values))
        moments = CrossMoments()
        moments.add(rows, values)
        eraser = eraser_of(moments.value(), self.kind)
        taken = head.weight @ eraser.left @ eraser.right
        return Head(head.weight - taken, head.bias + taken @ seen.rows.mean(0))


@dataclass(frozen=True)
class LastLayer:
    """Fits the layer anew on groups of equal size, by multinomial logistic regression in the mean over draws of these.

    The penalty is the one of which the worst group, of clusters that it was not fitted on, errs least.

    Attributes:
        penalties: that are tried.
        draws: of groups of equal size.
    """

    needs_labels: ClassVar[bool] = True
    penalties: tuple[float, ...] = PENALTIES
    draws: int = 10

    def __call__(self, head: Head, seen: Seen, seed: int) -> Head:
        assert seen.labels is not None
        rng = np.random.default_rng([seed, 11])
        halves = torch.from_numpy(rng.permutation(int(seen.clusters.max()) + 1) % 2)[seen.clusters]
        first, second = ((halves == side).nonzero()[:, 0] for side in (0, 1))
        inner, outer = seen.part(first), seen.part(second)
        if len(torch.unique(inner.groups)) < len(torch.unique(seen.groups)):
            best = max(self.penalties)  # too few for a choice
        else:
            fits = [self._fitted(inner, len(head.bias), penalty, rng) for penalty in self.penalties]
            best = max(self.penalties, key=lambda p: (worst_accuracy(fits[self.penalties.index(p)], outer), p))
        return self._fitted(seen, len(head.bias), best, rng)

    def _fitted(self, seen: Seen, classes: int, penalty: float, rng: np.random.Generator) -> Head:
        scaler = MemoryTable(seen.rows).scaler(torch.arange(len(seen.rows)))
        weights, biases = [], []
        for _ in range(self.draws):
            chosen = _balanced(seen.groups, rng)
            assert seen.labels is not None
            fits = SoftmaxProbe((penalty,)).fit(TableRows(scaler(seen.rows[chosen])), seen.labels[None, chosen], classes)
            weight, bias = scaler.unscaled(fits.weights[0, 0], fits.intercepts[0, 0])
            weights.append(weight)
            biases.append(bias)
        return Head(torch.stack(weights).mean(0), torch.stack(biases).mean(0))


@dataclass(frozen=True)
class GroupDro:
    """Fits the layer anew to the mean loss of groups, each weighted the more the larger its loss (algorithm 1).

    Attributes:
        penalty: on the squared weights.
        rate: by which weights of groups follow their losses.
        steps: of gradient descent on all rows.
    """

    needs_labels: ClassVar[bool] = True
    penalty: float = 1e-3
    rate: float = 0.1
    steps: int = 400

    def __call__(self, head: Head, seen: Seen, seed: int) -> Head:
        assert seen.labels is not None
        scaler: Scaler = MemoryTable(seen.rows).scaler(torch.arange(len(seen.rows)))
        rows, groups = scaler(seen.rows), seen.groups
        member = torch.nn.functional.one_hot(groups).double()
        member = member / member.sum(0)
        weight = torch.zeros(len(head.bias), rows.shape[1], dtype=torch.float64, requires_grad=True)
        bias = torch.zeros(len(head.bias), dtype=torch.float64, requires_grad=True)
        share = torch.full((member.shape[1],), 1 / member.shape[1], dtype=torch.float64)
        optimizer = torch.optim.Adam([weight, bias], lr=0.05)
        with torch.enable_grad():
            for _ in range(self.steps):
                losses = torch.nn.functional.cross_entropy(rows @ weight.mT + bias, seen.labels, reduction="none")
                of_group = losses @ member
                share = share * (self.rate * of_group.detach()).exp()
                share = share / share.sum()
                optimizer.zero_grad()
                (share @ of_group + self.penalty / 2 * weight.square().sum()).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return Head(*scaler.unscaled(weight.detach(), bias.detach()))


def worst_accuracy(head: Head, seen: Seen) -> float:
    """Return the accuracy of the group that is classified worst (0-1).

    Raises:
        ErasureError: for rows without labels.
    """
    if seen.labels is None:
        raise ErasureError("accuracy of groups needs labels.")
    right = (head(seen.rows).argmax(1) == seen.labels).double()
    return min(float(right[seen.groups == g].mean()) for g in torch.unique(seen.groups).tolist())


def _class_means(values: Float[Tensor, "n m"], labels: Int[Tensor, " n"]) -> Float[Tensor, "n m"]:
    """Return of each row the mean of the rows of its class."""
    _, own = torch.unique(labels, return_inverse=True)
    total = values.new_zeros(int(own.max()) + 1, values.shape[1]).index_add_(0, own, values)
    return (total / torch.bincount(own)[:, None])[own]


def _balanced(groups: Int[Tensor, " n"], rng: np.random.Generator) -> Int[Tensor, " k"]:
    """Return places of as many rows of each group as the smallest has, drawn at random."""
    size = int(torch.bincount(groups).min())
    members = [(groups == g).nonzero()[:, 0].numpy() for g in torch.unique(groups).tolist()]
    return torch.from_numpy(np.sort(np.concatenate([rng.permutation(part)[:size] for part in members])))
