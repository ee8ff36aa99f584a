"""Minimum description length of labels given features, by an online code (Voita & Titov 2020, sec. 2.2.2)."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from probing.probes.feature_tables import Table
from probing.probes.probes import SoftmaxProbe
from probing.statistics.row_products import DegenerateRowsError

PORTIONS = (0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.0625, 0.125, 0.25, 0.5, 1.0)
"""Shares of the data after which the probe is fitted anew, as in the paper."""


@dataclass(frozen=True)
class CodeBlocks:
    """In which order labels are sent, and where the receiver fits the probe anew."""

    order: Int[Tensor, " n"]
    ends: tuple[int, ...]

    @classmethod
    def draw(cls, labels: Int[Tensor, " n"], groups: Int[Tensor, " n"], classes: int, seed: int) -> "CodeBlocks":
        """Order whole groups at random; the first block goes on until every class has been sent.

        Both sides know when that is, since it follows from the labels sent. A block never ends inside a group.
        """
        rng = np.random.default_rng([seed, 2])
        numbers, places = torch.unique(groups, return_inverse=True)
        rank = torch.from_numpy(rng.permutation(len(numbers)))[places]
        order = rank.argsort(stable=True)
        sent, n = labels[order], len(labels)
        first = max(int((sent == k).nonzero()[0]) for k in range(classes)) + 1
        last_of_group = torch.ones(n, dtype=torch.bool)
        last_of_group[:-1] = rank[order][1:] != rank[order][:-1]
        stops = last_of_group.nonzero().squeeze(1) + 1
        wanted = [max(first, round(p * n)) for p in PORTIONS]
        ends = {int(stops[torch.searchsorted(stops, w)]) for w in wanted}
        return cls(order, tuple(sorted(ends)))


def code_length(
    table: Table,
    positions: Int[Tensor, " n"],
    labels: Int[Tensor, " n"],
    classes: int,
    probe: SoftmaxProbe,
    blocks: CodeBlocks,
) -> float:
    """Return the bits it takes to send labels to one who knows the features.

    The first block is sent by a uniform code; each later one by the probe fitted on all blocks before it, with the
    penalty as strong beside the sum of losses as it is on all examples: the prior does not change as they come in.

    Args:
        table: all examples' features.
        positions: of the examples whose labels are sent.
        labels: theirs.
        classes: how many there are.
        probe: with one penalty.
        blocks: order and blocks of the positions.
    """
    bits = blocks.ends[0] * math.log2(classes)
    ordered, sent = positions[blocks.order], labels[blocks.order]
    for start, end in zip(blocks.ends[:-1], blocks.ends[1:], strict=True):
        try:
            scaler = table.scaler(ordered[:start])
        except DegenerateRowsError:  # so few examples may all look the same
            bits += (end - start) * math.log2(classes)
            continue
        known = table.rows(ordered[:start], scaler)
        fits = _stronger(probe, len(sent) / start).fit(known, sent[None, :start], classes)
        outputs = fits.outputs(table.rows(ordered[start:end], scaler))[0, 0]
        chosen = outputs.gather(0, sent[None, start:end]).squeeze(0)
        bits += float((outputs.logsumexp(0) - chosen).double().sum()) / math.log(2)
    return bits


def _stronger(probe: SoftmaxProbe, factor: float) -> SoftmaxProbe:
    """Return a probe with its penalties multiplied."""
    return replace(probe, penalties=tuple(factor * penalty for penalty in probe.penalties))


def uniform_length(count: int, classes: int) -> float:
    """Return the bits of a code that knows nothing."""
    return count * math.log2(classes)
