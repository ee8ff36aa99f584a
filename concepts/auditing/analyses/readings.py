"""Local and network-level readings of an audit's contrasts as tables: all numbers, and those to be read."""

import torch

from concepts.local_vs_global.result import OWN, SWAP, Comparison
from probing.results.html_report import NONE, Cell, Link, Table, interval, linked, number
from probing.results.tables import DataTable, known


def readings(found: Comparison) -> DataTable:
    """Return each reading of each contrast for each class."""
    rows = tuple(
        (
            name,
            concept,
            target,
            *(known(v[i, c, t]) for v in (found.value, found.low, found.high, found.p_corrected)),
            bool(found.significant[i, c, t]),
        )
        for i, name in enumerate(found.measures)
        for c, concept in enumerate(found.concepts)
        for t, target in enumerate(found.targets)
        if not found.value[i, c, t].isnan()
    )
    columns = ("reading", "contrast", "class", "value", "low", "high", "p_corrected", "significant")
    about = "each reading of each contrast for each class, heat maps among them"
    return DataTable("readings", about, columns, rows, 3)


def agreements(found: Comparison) -> DataTable:
    """Return the rank agreement of each reading with the swap."""
    rows = tuple(
        (name, known(r.r), r.low, r.high, r.n)
        for name in found.measures
        if name != SWAP and (r := found.agreement(name, SWAP)).n
    )
    columns = ("reading", "rank_correlation", "low", "high", "cells")
    return DataTable("agreement", "rank agreement of each reading with the swap", columns, rows)


def agreement_table(found: Comparison) -> Table:
    """Return the same to be read."""
    rows, numbers = [], agreements(found)
    for name in found.measures:
        r = found.agreement(name, SWAP)
        if name != SWAP and r.n:
            cells = name, number(known(r.r)), interval(r.low, r.high), str(r.n)
            rows.append(linked(cells, numbers.at(name)))
    header = ("reading", "rank correlation", "interval", "pairs of contrast and class")
    return Table("Agreement of every reading with the measured swap.", header, tuple(rows))


def division_table(found: Comparison) -> Table:
    """Return how the change of the logits divides at the layer, as sizes of means over pairs, averaged over classes."""
    own, swap = (found.by_pair[found.measures.index(name)] for name in (OWN, SWAP))
    change = torch.where(own.isnan(), torch.nan, swap)  # of the pairs that were divided
    parts = (change, own, found.others, found.remainder, found.gap)
    rows = tuple(
        (concept, *(number(float(part[c].nanmean(1).abs().mean())) for part in parts))
        for c, concept in enumerate(found.concepts)
    )
    header = (
        "contrast",
        "change",
        "own direction",
        "other contrasts' directions",
        "remainder",
        "missed by the integral",
    )
    caption = (
        f"How swaps' changes divide at {found.layer}, in logits: the size of the mean over pairs, averaged over classes."
        " For each pair the parts add up to the change."
    )
    return Table(caption, header, rows)


def readings_table(found: Comparison) -> Table:
    """Return every reading to be read."""
    names = [m for m, v in zip(found.measures, found.value, strict=True) if not v.isnan().all()]
    rows, numbers = [], readings(found)
    for c, concept in enumerate(found.concepts):
        for t, target in enumerate(found.targets):
            cells: list[Cell] = []
            for name in names:
                i = found.measures.index(name)
                star = "*" if bool(found.significant[i, c, t]) else ""
                value = known(found.value[i, c, t])
                text = f"{number(value)}{star}"
                cells.append(NONE if value is None else Link(text, numbers.at(name, concept, target)))
            rows.append((concept, target, *cells))
    caption = (
        "Every reading; a star where it is significant after correction. Area of the swapped pixels: "
        f"{', '.join(f'{name} {float(a):.0%}' for name, a in zip(found.concepts, found.area, strict=True))}."
    )
    header = ("contrast", "class", *names)
    return Table(caption, header, tuple(rows), text_columns=2, folded=True)
