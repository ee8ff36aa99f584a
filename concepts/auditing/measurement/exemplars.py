"""Which images show an audit: those like a concept, neutral ones between two sides, and a pair that a swap is typical of."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.auditing.measurement.measure import Measured, Meter
from concepts.auditing.measurement.results import LikenessRow, PairRow, PositionRow
from probing.statistics.hypothesis_tests import codes
from probing.statistics.linear_classifiers import PairFits

SHOWN = 8
"""Images in a row of a montage."""


def likeness_rows(meter: Meter, measured: Sequence[Measured], layers: Mapping[str, str]) -> Iterator[LikenessRow]:
    """Yield the images most and least like each concept at one layer, none of which its direction was fitted on.

    Args:
        meter: of the audit.
        measured: its contrasts.
        layers: at which layer each concept is shown.
    """
    m = meter.material
    for one in measured:
        layer = layers[one.name]
        fits = meter.direction(layer, one.sets.fit.first, one.sets.fit.second)
        yield from _ranked(meter, fits, one.name, layer, m.file.inputs.about, m.judged_inputs)
        if m.file.random:
            yield from _ranked(meter, fits, one.name, layer, m.file.random.about, m.pool)
    half = len(m.pool) // 2  # drawn in random order
    for name, rows in m.concepts.items():
        layer, compared_with = layers[name], m.pool[:half] or m.others(name)
        fits = meter.direction(layer, rows, compared_with)
        among, left = m.file.inputs.about, m.judged_inputs
        if m.file.random:
            among, left = m.file.random.about, m.pool[half:]
        yield from _ranked(meter, fits, name, layer, among, left)


def _ranked(
    meter: Meter, fits: PairFits, concept: str, layer: str, among: str, rows: Sequence[int]
) -> Iterator[LikenessRow]:
    cosine = _cosines(fits, meter.features[layer][list(rows)])
    order = cosine.argsort(descending=True, stable=True).tolist()
    count = min(SHOWN, len(order) // 2)
    for side, chosen in (("most", order[:count]), ("least", order[::-1][:count])):
        for i in chosen:
            yield LikenessRow(
                concept=concept,
                layer=layer,
                among=among,
                side="most" if side == "most" else "least",
                image=picture_name(meter, rows[i]),
                caption=meter.material.captions[rows[i]],
                cosine=float(cosine[i]),
            )


def _cosines(fits: PairFits, features: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
    """Return the cosine of each activation, less the mean of what was fitted on, with the direction."""
    centred = features.double() - fits.rows.center
    length = torch.linalg.vector_norm(centred, dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    cosine: Tensor = centred @ fits.normals()[0].double() / length
    return cosine


def picture_name(meter: Meter, row: int) -> str:
    """Return the file name of an image, which its content decides."""
    return f"{meter.material.examples.ids[row]}.png"


def position_rows(meter: Meter, measured: Sequence[Measured], layers: Mapping[str, str]) -> Iterator[PositionRow]:
    """Yield where inputs that are on neither side lie between their cluster's two sides, per contrast that asks for it.

    -1 and +1 are half a typical distance of the two sides from the middle of the cluster's own.
    """
    m = meter.material
    for one in measured:
        if not one.sets.spec.place:
            continue
        layer, judge = layers[one.name], one.sets.judge
        normal = meter.direction(layer, one.sets.fit.first, one.sets.fit.second).normals()[0]
        along = meter.features[layer].double() @ normal.double()
        names = list(dict.fromkeys(judge.cluster))
        sides = torch.stack([_means(along, side, judge.cluster) for side in (judge.first, judge.second)])
        reach = (sides[0] - sides[1]).mean() / 2
        for row in sorted(set(m.judged_inputs) - set(judge.first) - set(judge.second)):
            middle = sides[:, names.index(m.clusters[row])].mean()
            place = float((along[row] - middle) / reach)
            yield PositionRow(one.name, layer, m.clusters[row], m.captions[row], place)


def _means(values: Float[Tensor, " rows"], rows: Sequence[int], clusters: Sequence[str]) -> Float[Tensor, " clusters"]:
    index = codes(clusters)
    total = torch.zeros(int(index.max()) + 1, dtype=values.dtype).index_add_(0, index, values[list(rows)])
    return total / torch.bincount(index)


def pair_rows(meter: Meter, measured: Sequence[Measured]) -> Iterator[PairRow]:
    """Yield for each contrast the pair whose changes of the targets' logits lie nearest their mean over all pairs."""
    logits = meter.logits[:, list(meter.material.targets.values())].double()
    for one in measured:
        pairs = one.sets.every
        change = logits[list(pairs.first)] - logits[list(pairs.second)]
        nearest = int(torch.linalg.vector_norm(change - change.mean(0), dim=1).argmin())
        names = (picture_name(meter, rows[nearest]) for rows in (pairs.second, pairs.first))
        yield PairRow(one.name, pairs.cluster[nearest], *names)
