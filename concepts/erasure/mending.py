"""Mending: a network is corrected on some clusters, and what was measured before is measured again on others.

A correction that is judged on what it was fitted on shows what it was fitted to. So groups, accuracy and swaps are all of
clusters that took no part, changes are paired, and the group that counts as worst is named before these are looked at
(arXiv:2604.04518 finds such choices to be where studies go wrong). A network that leans on nothing is best left alone: then
the verdict is `do not mend`.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from concepts.effects.logit_effect import split_clusters
from concepts.erasure.corrections import Correction, Head, Seen
from concepts.erasure.eraser import ErasureError
from concepts.erasure.erasure import slopes
from concepts.erasure.mending_result import MendingResult, paired
from concepts.erasure.passes import ROWS
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.core.content_ids import content_id, model_id
from probing.data.examples import Examples, ExampleSet, Subset, as_examples
from probing.models.calling import run
from probing.models.copies import own_copy
from probing.models.gradients import frozen_parameters
from probing.models.hooks import record_calls
from probing.models.layers import resolve
from probing.models.loading import Model, module_of
from probing.models.precision import device_of
from probing.results.result import Provenance
from probing.statistics.clustered import ClusteredMean, clustered_mean
from probing.statistics.hypothesis_tests import codes

_FIVE = ("before", "after", "change", "low", "high")


@dataclass(frozen=True, eq=False)
class Mended:
    """A corrected network, and what the correction did.

    Attributes:
        model: a copy with another last layer.
        result: of held-out clusters.
        tensors: those of its state that differ from the network's, by name.
    """

    model: nn.Module
    result: MendingResult
    tensors: Mapping[str, Tensor]

    def save(self, folder: str | Path) -> Path:
        """Write `weights.safetensors`, the tensors that changed, with what made them, and the result beside.

        `model.load_state_dict(safetensors.torch.load_file(path), strict=False)` mends the network again.
        """
        from safetensors.torch import save_file

        folder = self.result.save(folder)
        made = self.result.provenance
        said = {
            "by": json.dumps(made.method),
            "of": made.model,
            "gives": model_id(self.model),
            "fitted on": made.examples,
            "made": json.dumps({k: v for k, v in asdict(made).items() if k in {"created", "command", "versions"}}),
            "verdict": self.result.verdict,
        }
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / "weights.safetensors", metadata={k: str(v) for k, v in said.items()})
        return folder


@dataclass(frozen=True)
class Mending:
    """Corrects a classifier's last layer so that it leans less on an attribute, and measures what that does.

    Attributes:
        by: the correction, such as `Projection()` or `LastLayer()`.
        layer: the path of the network's last linear layer; by default it is looked for.
        share: of the clusters, that the correction is fitted on (0-1).
        level: of the intervals.
        seed: of the division and the correction's draws.

    Raises:
        ErasureError: for a network without such a layer, an attribute of one value, labels that a correction needs and has
            not, or classes without examples.

    Example:
        >>> mended = Mending(Projection())(net, images, dotted, classes)
        >>> mended.result.verdict, mended.result.sentences()
    """

    by: Correction
    layer: str = ""
    share: float = 0.5
    level: float = 0.95
    seed: int = 0

    def __call__(
        self,
        model: Model,
        examples: Examples,
        attribute: Sequence[object],
        labels: Sequence[int] | Int[Tensor, " n"] | None = None,
        *,
        clusters: Sequence[str] = (),
        matched: Sequence[MatchedConcept] = (),
        targets: Mapping[str, int] | None = None,
        name: str = "attribute",
        fitted_on: Collection[str] | None = None,
    ) -> Mended:
        """Return the corrected network and what the correction did.

        Args:
            model: a classifier; it is left as it is.
            examples: to fit and judge on.
            attribute: of each a value, which the classifier is to lean less on.
            labels: the class of each, as the model numbers them; without them accuracy is not known.
            clusters: which examples belong together; by default each is its own.
            matched: inputs to swap, of the attribute and of others; pairs of clusters that were fitted on are left out.
            targets: classes whose scores are looked at under swaps; by default all, by number.
            name: what the attribute is called.
            fitted_on: the clusters that are fitted on; by default `share` of them, drawn at random.
        """
        module, examples = module_of(model), as_examples(examples)
        path = self.layer or last_linear(module, examples)
        names = tuple(clusters) or tuple(f"example {i}" for i in range(len(examples)))
        chosen = split_clusters(names, self.share, self.seed)[0] if fitted_on is None else frozenset(fitted_on)
        before = _head(module, path)
        every = self._seen(module, path, examples, attribute, labels, names)
        fit, judge = (torch.tensor([i for i, n in enumerate(names) if (n in chosen) == side]) for side in (True, False))
        if not len(fit) or not len(judge):
            raise ErasureError(f"{len(fit)} examples are of clusters to fit on, and {len(judge)} of others: give both.")
        self._refuse(every.part(fit), len(before.bias))
        after = self.by(before, every.part(fit), self.seed)
        copy, tensors = _with_head(module, path, after)
        judged = every.part(judge)
        groups = _Groups.of(every, attribute, fit, before)
        said = [head(judged.rows) for head in (before, after)]
        spread = [s.std(0).clamp_min(torch.finfo(torch.float64).tiny) for s in said]
        kept = [_held_out(concept, chosen) for concept in matched]
        swaps = [self._swap(module, path, concept, (before, after), spread, targets) for concept in kept]
        ids = content_id([list(examples.ids), list(names), list(map(str, attribute)), sorted(chosen)])
        result = MendingResult(
            provenance=Provenance.collect(model=module, examples=ids, method=self),
            by=type(self.by).__name__,
            layer=path,
            attribute=name,
            **groups.change(judged, judge, said, self.level),
            kept=float((said[0].argmax(1) == said[1].argmax(1)).double().mean()),
            attributes=tuple(concept.name for concept in kept),
            targets=tuple(targets or map(str, range(len(before.bias)))),
            **_stacked(swaps, len(targets or before.bias)),
            fitted=len(torch.unique(every.clusters[fit])),
            judged=len(torch.unique(judged.clusters)),
            level=self.level,
        )
        return Mended(copy, result, tensors)

    def _seen(
        self,
        model: nn.Module,
        path: str,
        examples: ExampleSet,
        attribute: Sequence[object],
        labels: Sequence[int] | Tensor | None,
        names: Sequence[str],
    ) -> Seen:
        known = None if labels is None else torch.as_tensor(labels).long()
        counts = {"values of the attribute": len(attribute), "clusters": len(names)}
        for what, count in (counts | ({} if known is None else {"labels": len(known)})).items():
            if count != len(examples):
                raise ErasureError(f"{len(examples)} examples need as many {what}, got {count}.")
        kinds = sorted(set(attribute), key=str)
        if len(kinds) < 2:
            raise ErasureError(f"the attribute has the value {kinds[0]!r} alone: give examples with another, too.")
        values = torch.tensor([kinds.index(value) for value in attribute])
        return Seen(given_to(model, path, examples), values, known, codes(names))

    def _refuse(self, seen: Seen, classes: int) -> None:
        if len(torch.unique(seen.attribute)) < 2:
            raise ErasureError("the clusters to fit on hold one value of the attribute alone: fit on others.")
        if not self.by.needs_labels:
            return
        if seen.labels is None:
            raise ErasureError(f"{type(self.by).__name__} fits the last layer to labels: give them, or take Projection().")
        if missing := sorted(set(range(classes)) - set(seen.labels.tolist())):
            raise ErasureError(
                f"class {missing[0]} has no examples to fit on ({len(missing)} such): give some of each, or take "
                "Projection()."
            )

    def _swap(
        self,
        model: nn.Module,
        path: str,
        concept: MatchedConcept,
        heads: tuple[Head, Head],
        spread: Sequence[Float[Tensor, " classes"]],
        targets: Mapping[str, int] | None,
    ) -> tuple[Float[Tensor, "5 targets"], Float[Tensor, " 5"]]:
        """Return before, after, change, low and high of swaps of scores, and of pairs whose top class changes."""
        sides = [given_to(model, path, side) for side in (concept.positive, concept.negative)]
        scores = [[head(side) for side in sides] for head in heads]
        picked = list((targets or {str(i): i for i in range(len(heads[0].bias))}).values())
        moved = [((a - b) / s)[:, picked] for (a, b), s in zip(scores, spread, strict=True)]
        flips = [(a.argmax(1) != b.argmax(1)).double()[:, None] for a, b in scores]
        clusters = codes(concept.names)
        first = clustered_mean(paired(*moved), clusters, self.level)
        second = clustered_mean(flips[1] - flips[0], clusters, self.level)
        return _five(moved[0], moved[1], first), _five(flips[0], flips[1], second)[:, 0]


@dataclass(frozen=True, eq=False)
class _Groups:
    """Labels with values of the attribute, and which of these was worst where the correction was fitted."""

    names: tuple[str, ...]
    each: Int[Tensor, " n"] | None
    worst: int

    @classmethod
    def of(cls, every: Seen, attribute: Sequence[object], fit: Int[Tensor, " k"], head: Head) -> "_Groups":
        if every.labels is None:
            return cls((), None, -1)
        groups = every.groups
        first = [int((groups == g).nonzero()[0]) for g in range(int(groups.max()) + 1)]
        names = tuple(f"class {int(every.labels[i])}, {attribute[i]}" for i in first)
        right = (head(every.rows[fit]).argmax(1) == every.labels[fit]).double()
        shares = [right[groups[fit] == g].mean().nan_to_num(2.0) for g in range(len(names))]
        return cls(names, groups, int(torch.stack(shares).argmin()))

    def change(
        self, judged: Seen, judge: Int[Tensor, " k"], said: Sequence[Float[Tensor, "k classes"]], level: float
    ) -> dict[str, Any]:
        """Return accuracy of groups and of all before and after, as fields of the result."""
        unknown = float("nan")
        names = ("before", "after", "change", "change_low", "change_high")
        if self.each is None or judged.labels is None:
            empty = dict.fromkeys(names, torch.zeros(0, dtype=torch.float64))
            overall = dict.fromkeys((f"overall_{n}" for n in _FIVE), unknown)
            return {"groups": (), "count": torch.zeros(0, dtype=torch.long), "worst": -1, **empty, **overall}
        right = [(s.argmax(1) == judged.labels).double() for s in said]
        groups = self.each[judge]
        columns = []
        for g in range(len(self.names)):
            inside = groups == g
            columns.append(_changed([r[inside] for r in right], judged.clusters[inside], level))
        table = torch.stack(columns, 1)
        every = _changed(right, judged.clusters, level)
        overall = {f"overall_{n}": float(v) for n, v in zip(_FIVE, every, strict=True)}
        return {
            "groups": self.names,
            "count": torch.bincount(groups, minlength=len(self.names)),
            "worst": self.worst,
            **_gap(right[0], groups == self.worst, judged, level),
            **dict(zip(names, table, strict=True)),
            **overall,
        }


def _gap(right: Float[Tensor, " n"], worst: Bool[Tensor, " n"], judged: Seen, level: float) -> dict[str, float]:
    """Return by how much better the others of the worst group's class are classified."""
    assert judged.labels is not None
    own = judged.labels == judged.labels[worst][0] if bool(worst.any()) else worst
    if not bool((own & ~worst).any()):
        return {}
    clusters = torch.unique(judged.clusters[own], return_inverse=True)[1]
    found = slopes(right[own][:, None], (~worst[own]).double()[:, None], clusters, level)
    return {"gap": float(found.mean), "gap_low": float(found.low), "gap_high": float(found.high)}


def _changed(right: Sequence[Float[Tensor, " n"]], clusters: Int[Tensor, " n"], level: float) -> Float[Tensor, " 5"]:
    """Return before, after, change, low and high; NaN of none."""
    if not len(clusters):
        return torch.full((5,), torch.nan, dtype=torch.float64)
    own = torch.unique(clusters, return_inverse=True)[1]
    first, second = (r[:, None] for r in right)
    return _five(first, second, clustered_mean(second - first, own, level))[:, 0]


def _five(before: Float[Tensor, "n k"], after: Float[Tensor, "n k"], change: ClusteredMean) -> Float[Tensor, "5 k"]:
    return torch.stack([before.mean(0), after.mean(0), change.mean, change.low, change.high])


def _stacked(swaps: Sequence[tuple[Float[Tensor, "5 targets"], Float[Tensor, " 5"]]], targets: int) -> dict[str, Any]:
    moved = torch.stack([s for s, _ in swaps], 1) if swaps else torch.zeros(5, 0, targets, dtype=torch.float64)
    flips = torch.stack([f for _, f in swaps], 1) if swaps else torch.zeros(5, 0, dtype=torch.float64)
    pairs = zip(_FIVE, moved, flips, strict=True)
    return {key: value for n, m, f in pairs for key, value in ((f"swap_{n}", m), (f"flips_{n}", f))}


def _held_out(concept: MatchedConcept, fitted_on: Collection[str]) -> MatchedConcept:
    kept = [i for i, n in enumerate(concept.names) if n not in fitted_on]
    if not kept:
        raise ErasureError(f"all pairs of {concept.name!r} are of clusters that were fitted on: none is left to judge on.")
    names = tuple(concept.names[i] for i in kept)
    return replace(
        concept, positive=Subset(concept.positive, kept), negative=Subset(concept.negative, kept), clusters=names, masks=None
    )


def last_linear(model: nn.Module, examples: ExampleSet) -> str:
    """Return the path of the linear layer whose output is the network's.

    Raises:
        ErasureError: if there is none.
    """
    with torch.no_grad(), frozen_parameters(model), record_calls(model) as calls:
        output = run(model, examples.load([0]).to(device_of(model)))
    leaves = [call for call in calls if not list(resolve(model, call.path).children())]
    last = leaves[-1] if leaves else None
    if last is not None and isinstance(resolve(model, last.path), nn.Linear) and isinstance(output, Tensor):
        assert isinstance(last.output, Tensor)
        if torch.equal(output, last.output):
            return last.path
    raise ErasureError(
        f"no linear layer of {type(model).__name__} returns its output: name the last one, or wrap the model."
    )


def given_to(model: nn.Module, path: str, examples: ExampleSet) -> Float[Tensor, "n m"]:
    """Return what a linear layer is given, in float64 on the CPU.

    Raises:
        ErasureError: if it runs more than once, or on more than one row of features for an example.
    """
    found = []
    for start in range(0, len(examples), ROWS):
        batch = examples.load(range(start, min(start + ROWS, len(examples)))).to(device_of(model))
        with torch.no_grad(), frozen_parameters(model), record_calls(model, only=path) as calls:
            run(model, batch)
        inputs = calls[0].inputs[0] if len(calls) == 1 else None  # type: ignore[index]
        if not isinstance(inputs, Tensor) or inputs.ndim != 2:
            raise ErasureError(f"layer {path!r} must run once, on a row of features for each example, to be corrected.")
        found.append(inputs.cpu().double())
    return torch.cat(found)


def _head(model: nn.Module, path: str) -> Head:
    layer = resolve(model, path)
    if not isinstance(layer, nn.Linear):
        raise ErasureError(f"layer {path!r} is a {type(layer).__name__}, and corrections are of an nn.Linear.")
    weight = layer.weight.detach().cpu().double()
    bias = torch.zeros(len(weight)).double() if layer.bias is None else layer.bias.detach().cpu().double()
    return Head(weight, bias)


def _with_head(model: nn.Module, path: str, head: Head) -> tuple[nn.Module, dict[str, Tensor]]:
    copy = own_copy(model)
    layer = resolve(copy, path)
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        layer.weight = nn.Parameter(head.weight.to(layer.weight), requires_grad=layer.weight.requires_grad)
        layer.bias = nn.Parameter(head.bias.to(layer.weight), requires_grad=layer.weight.requires_grad)
    return copy, {f"{path}.weight": layer.weight.detach(), f"{path}.bias": layer.bias.detach()}
