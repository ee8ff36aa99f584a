"""An audit's measurements as the rows that are saved, with p-values corrected over all tests of their kind."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.auditing.measurement.measure import Measured
from concepts.auditing.measurement.results import (
    Backdrop,
    CellRow,
    ClusterRow,
    ConceptInfo,
    LayerRow,
    PickedRow,
    SwapRow,
)
from concepts.auditing.measurement.setup import Material, class_name
from concepts.tcav.result import TcavResult
from probing.results.tables import known
from probing.statistics.hypothesis_tests import holm

_TAIL = 0.025  # the backdrop is the middle 95 % of all classes


def concept_infos(material: Material, measured: Sequence[Measured], single: TcavResult | None) -> Iterator[ConceptInfo]:
    """Yield what each concept was fitted and judged on, contrasts first."""
    for one in measured:
        spec, every = one.sets.spec, one.sets.every
        yield ConceptInfo(
            name=one.name,
            positive=spec.positive,
            negative=spec.negative,
            matched=True,
            positives=len(every.first),
            negatives=len(every.second),
            clusters=len(set(every.cluster)),
            fitted=len(one.sets.fit.first),
            judged=len(one.sets.judge.first),
            relabellings=one.predicted.relabellings,
            exact=one.predicted.exact,
        )
    against = material.file.random.about if material.file.random else "the other concepts"
    for name in single.concepts if single else ():
        rows = material.concepts[name]
        judged = round(len(rows) / 3)
        yield ConceptInfo(
            name=name,
            positive=name,
            negative=against,
            matched=False,
            positives=len(rows),
            negatives=len(material.others(name)),
            clusters=len(set(material.clusters_of(rows))),
            fitted=len(rows) - judged,
            judged=judged,
            relabellings=0,
            exact=False,
        )


def layer_rows(material: Material, measured: Sequence[Measured], single: TcavResult | None) -> Iterator[LayerRow]:
    """Yield what is known of each concept at each layer, contrasts first."""
    for one in measured:
        for i, layer in enumerate(material.layers):
            found = one.accuracy[layer]
            agreement = one.agreement[layer]
            yield LayerRow(
                concept=one.name,
                layer=layer,
                accuracy=0.5 + float(found.mean),
                accuracy_low=_share(found.low),
                accuracy_high=_share(found.high),
                accuracy_p=_one_sided(found.mean, found.p),
                cosine=known(one.sign.cosine[i]),
                linear_tail=one.sign.linear_tail[i],
                r=agreement.r,
                r_low=agreement.low,
                r_high=agreement.high,
                r_least=agreement.least,
                r_most=agreement.most,
                slope=known(one.predicted.slope[i]),
                signs_right=int(one.predicted.signs_right[i]),
                trusted=agreement.low is not None and agreement.low >= material.file.statistics.trust,
            )
    for c, name in enumerate(single.concepts if single else ()):
        assert single is not None
        for i, layer in enumerate(material.layers):
            yield LayerRow(
                concept=name,
                layer=layer,
                accuracy=float(single.accuracy[i, c].mean()),
                accuracy_low=None,
                accuracy_high=None,
                accuracy_p=known(single.accuracy_p[i, c]),
                cosine=known(single.stability[i, c]),
                linear_tail=bool(single.linear_tail[i].any()),
            )


def _share(excess: Tensor) -> float | None:
    value = known(excess)
    return None if value is None else min(1.0, max(0.0, 0.5 + value))


def _one_sided(mean: Tensor, p: Tensor) -> float | None:
    value = known(p)
    return None if value is None else value / 2 if mean > 0 else 1 - value / 2


def cell_rows(measured: Sequence[Measured], single: TcavResult | None) -> Iterator[CellRow]:
    """Yield every concept at every layer for every target; contrasts are corrected together, as are the others."""
    for one in measured:
        found, sign = one.predicted, one.sign
        corrected = [(p * len(measured)).clamp(max=1) for p in (sign.p_max_t, found.p_max_t)]
        parts = (
            sign.score,
            sign.low,
            sign.high,
            sign.p,
            sign.ties,
            corrected[0],
            found.effect,
            found.low,
            found.high,
            found.p,
            corrected[1],
        )
        yield from _cells(one.name, found.layers, found.targets, parts)
    for c, name in enumerate(single.concepts if single else ()):
        assert single is not None
        parts = (
            single.mean,
            single.low,
            single.high,
            single.p,
            single.ties,
            single.p_max_t,
            single.effect,
            single.effect_low,
            single.effect_high,
            single.effect_p,
            single.effect_p_max_t,
        )
        of_one = tuple(part[:, c] for part in parts)
        yield from _cells(name, single.layers, single.targets, of_one)


def _cells(
    concept: str,
    layers: Sequence[str],
    targets: Sequence[str],
    parts: Sequence[Float[Tensor, "layers targets"]],
) -> Iterator[CellRow]:
    for i, layer in enumerate(layers):
        for t, target in enumerate(targets):
            score, low, high, p, ties, p_corrected, effect, *rest = (part[i, t] for part in parts)
            effect_low, effect_high, effect_p, effect_p_corrected = map(known, rest)
            yield CellRow(
                concept=concept,
                layer=layer,
                target=target,
                tcav=float(score),
                tcav_low=known(low),
                tcav_high=known(high),
                tcav_p=known(p),
                tcav_p_corrected=known(p_corrected),
                ties=float(ties),
                effect=float(effect),
                effect_low=effect_low,
                effect_high=effect_high,
                effect_p=effect_p,
                effect_p_corrected=effect_p_corrected,
            )


def swap_rows(material: Material, measured: Sequence[Measured]) -> Iterator[SwapRow]:
    """Yield what each contrast's swap did to each target, corrected over both."""
    if not measured:
        return
    index = list(material.targets.values())
    corrected = holm(torch.stack([one.swap.p[index] for one in measured]))
    for k, one in enumerate(measured):
        sizes = one.swap.mean.abs()
        for t, (name, i) in enumerate(material.targets.items()):
            yield SwapRow(
                concept=one.name,
                target=name,
                swap=float(one.swap.mean[i]),
                low=known(one.swap.low[i]),
                high=known(one.swap.high[i]),
                p=known(one.swap.p[i]),
                p_corrected=known(corrected[k, t]),
                larger=float((sizes > sizes[i]).double().mean()),
            )


def cluster_rows(material: Material, measured: Sequence[Measured]) -> Iterator[ClusterRow]:
    """Yield what each contrast's swap did to each target in each cluster alone."""
    for one in measured:
        pairs = Counter(one.sets.every.cluster)
        for t, target in enumerate(material.targets):
            for (cluster, count), swap in zip(pairs.items(), one.by_cluster[:, t], strict=True):
                yield ClusterRow(one.name, target, cluster, count, float(swap))


def backdrops(measured: Sequence[Measured]) -> Iterator[Backdrop]:
    """Yield the swap over all the model's classes."""
    points = torch.tensor([_TAIL, 0.5, 1 - _TAIL], dtype=torch.float64)
    for one in measured:
        low, median, high = one.swap.mean.quantile(points).tolist()
        yield Backdrop(one.name, len(one.swap.mean), low, median, high)


def picked_rows(material: Material, measured: Sequence[Measured]) -> list[PickedRow]:
    """Return the classes that a swap moves most on the fitted clusters, judged on the others."""
    chosen = [(one, i) for one in measured for i in _picks(material, one.fit_swap.mean)]
    if not chosen:
        return []
    corrected = holm(torch.stack([one.judged_swap.p[i] for one, i in chosen]))
    return [
        PickedRow(
            concept=one.name,
            target=class_name(material.loaded, i),
            index=i,
            picked_by=float(one.fit_swap.mean[i]),
            swap=float(one.judged_swap.mean[i]),
            low=known(one.judged_swap.low[i]),
            high=known(one.judged_swap.high[i]),
            p=known(one.judged_swap.p[i]),
            p_corrected=known(p),
        )
        for (one, i), p in zip(chosen, corrected, strict=True)
    ]


def _picks(material: Material, change: Float[Tensor, " classes"]) -> list[int]:
    """Return the classes with the largest rises, then those with the largest falls, other than the targets."""
    count = material.file.statistics.picked
    order = [i for i in change.argsort(descending=True).tolist() if i not in material.targets.values()]
    count = min(count, len(order) // 2)
    return order[:count] + order[len(order) - count :]
