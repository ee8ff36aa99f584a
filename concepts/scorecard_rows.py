"""Rows of a scorecard for what reads whole networks: TCAV with drawn or given concepts, and dissection of drawn scenes.

Not every column applies to them. Where one does, it is the same quantity as for maps, or its counterpart: a concept's
predicted effect against the true one, concepts to read in place of pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.data.concept_sets import Concept
from concepts.data.segmentation import EmojiScenes
from concepts.data.synthetic import SyntheticImages
from concepts.dissection.dissection import Dissection
from concepts.dissection.protocols import DissectionError
from concepts.tcav.cav import mean_difference
from concepts.tcav.editing import edit_along
from concepts.tcav.result import TcavResult
from concepts.tcav.tcav import Tcav
from probing.attribution.base import in_chunks
from probing.attribution.cam_layer import cam_layer
from probing.core.content_ids import content_id, tensor_id
from probing.core.packages import PackageMissingError
from probing.data.examples import ExampleSet, TensorExamples, Transform
from probing.evaluation.scorecard.cost import Cost, PeakMemory, Stopwatch, hyperparameters
from probing.evaluation.scorecard.measure import effective_number, kept_row, row_key, stated
from probing.evaluation.scorecard.scorecard import Row
from probing.evaluation.similarity import correlation
from probing.models.geometry import RefusedError, layers_run, map_size
from probing.models.precision import device_of
from probing.models.scores import Score
from probing.results.result import Provenance
from probing.store.store import ActivationStore

PATTERNS = ("stripes", "dots", "zigzags", "checks", "red", "yellow", "green", "blue")
_CHUNK = 16
R = TypeVar("R")
_Done = Callable[[str, bool], None]


@dataclass(frozen=True)
class Material:
    """What TCAV is told about concepts.

    Attributes:
        concepts: examples of each; three or more, since effects are correlated over them.
        pool: what they are compared with.
    """

    concepts: tuple[Concept, ...]
    pool: ExampleSet

    @classmethod
    def drawn(cls, preprocess: Transform, count: int = 30, seed: int = 0) -> "Material":
        """Return textures and colours drawn by the suite, compared with backgrounds without any."""
        concepts = tuple(Concept(name, SyntheticImages(name, count, seed=seed).examples(preprocess)) for name in PATTERNS)
        return cls(concepts, SyntheticImages("plain", 2 * count, seed=seed).examples(preprocess))

    @property
    def ids(self) -> str:
        """The content id of all examples."""
        named = [[c.name, *c.examples.ids] for c in self.concepts]
        return content_id([*named, list(self.pool.ids)])

    @property
    def labels(self) -> int:
        """How many examples must be named."""
        return sum(map(len, self.concepts))


@dataclass(frozen=True)
class NetworkRows:
    """How methods that read whole networks are measured for a scorecard.

    Attributes:
        layer: that is read; by default the last, least nested one of a finer map than the last map's: what follows the
            last map is often linear, and there first-order predictions are true by construction.
        scenes: drawn for dissection.
        draws: shuffles of its test.
        seed: of all draws.
    """

    layer: str | None = None
    scenes: int = 150
    draws: int = 99
    seed: int = 0

    def __call__(
        self,
        score: Score,
        inputs: Float[Tensor, "n c h w"],
        preprocess: Transform,
        material: Material,
        *,
        folder: Path | None = None,
        done: _Done = lambda name, computed: None,
    ) -> tuple[Row, ...]:
        """Return a row for TCAV and one for dissection.

        Args:
            score: of one class per input, as for maps.
            inputs: at which TCAV differentiates the score, and the layer is moved.
            preprocess: the model's, for scenes.
            material: concepts for TCAV.
            folder: rows are kept in it, and reused if nothing that they depend on has changed.
            done: is told each method's name, and whether it was computed or found.
        """
        score = score.named(inputs)
        layer = self.layer or map_layer(score, inputs)
        tcav = Tcav(seed=self.seed)
        dissection = Dissection((layer,), draws=self.draws, seed=self.seed)
        found = []
        for name, method, make in (
            ("tcav", tcav, partial(self._tcav, tcav, layer, score, inputs, material)),
            ("dissection", dissection, partial(self._dissection, dissection, score, inputs, preprocess)),
        ):
            key = row_key(self, method, score, inputs, layer, material.ids)
            row, computed = kept_row(folder, name, key, partial(make, key))
            done(name, computed)
            found.append(row)
        return tuple(found)

    def _tcav(self, method: Tcav, layer: str, score: Score, inputs: Tensor, material: Material, key: str) -> Row:
        examples, store = TensorExamples(inputs), ActivationStore(progress=False)
        first = score.of(0)

        def explain() -> TcavResult:
            return method(store, {"first": first}, [layer], material.concepts, examples, material.pool)

        result, cost = _measured(explain, store, score, inputs)
        images = material.labels + len(material.pool)
        cost = replace(cost, hyperparameters=hyperparameters(method) + 1, images=images, labels=material.labels)
        predicted, true = self._effects(store, layer, score, inputs, material)
        values = {"effects": correlation(predicted, true), "parts": effective_number(predicted)}
        facts = Provenance.collect(model=score.model, examples=tensor_id(inputs), method=method)
        values |= stated(Tcav.answers, Tcav.demands, cost)
        return Row(
            facts,
            "tcav",
            "Tcav",
            "network",
            key,
            values,
            cost,
            notes=_said(result, layer),
            answers=Tcav.answers,
        )

    def _effects(
        self, store: ActivationStore, layer: str, score: Score, inputs: Tensor, material: Material
    ) -> tuple[Float[Tensor, "n concepts"], Float[Tensor, "n concepts"]]:
        """Return each input's predicted and true change of the score as the layer moves by each concept's difference."""
        examples = TensorExamples(inputs)
        slopes = store.gradients(score, [layer], examples, pool="mean")[layer].cpu().double()
        parts = [*(c.examples for c in material.concepts), material.pool]
        rows = [store.activations(score.model, [layer], p, pool="mean")[layer].cpu() for p in parts]
        ends = torch.tensor([0, *map(len, rows)]).cumsum(0).tolist()
        features, pool = torch.cat(rows), torch.arange(ends[-2], ends[-1])
        directions = [
            mean_difference(features, torch.arange(ends[i], ends[i + 1]), pool) for i in range(len(material.concepts))
        ]

        def moved(part: slice) -> Tensor:
            of, some = score.of(part), inputs[part].to(device_of(score.model))
            return torch.cat([edit_along(of, layer, d, some, torch.ones(1)) for d in directions]).T

        true = torch.cat(in_chunks(len(inputs), _CHUNK, moved))
        return slopes @ torch.stack(directions).double().T, true.cpu().double()

    def _dissection(self, method: Dissection, score: Score, inputs: Tensor, preprocess: Transform, key: str) -> Row:
        facts = Provenance.collect(model=score.model, examples=tensor_id(inputs), method=method)
        settings = hyperparameters(method)
        store = ActivationStore(progress=False)
        try:
            scenes = EmojiScenes(self.scenes, seed=self.seed).scenes(preprocess)
            found, cost = _measured(lambda: method(store, score.model, scenes), store, score, inputs)
        except (DissectionError, PackageMissingError, RefusedError) as error:
            unknown = float("nan")
            none = Cost(0, 0, unknown, unknown, unknown, settings, 0)
            return Row(
                facts,
                "dissection",
                "Dissection",
                "network",
                key,
                {},
                none,
                str(error),
                answers=Dissection.answers,
            )
        cost = replace(cost, hyperparameters=settings, images=self.scenes, labels=self.scenes)
        named = found.best[found.detector]
        concepts = torch.bincount(named, minlength=len(found.concepts)).double()
        values = {"parts": effective_number(concepts[None])} | stated(Dissection.answers, Dissection.demands, cost)
        note = (
            f"{len(named)} of {len(found.unit)} units of {found.layers[0]} single out one of {int((concepts > 0).sum())} "
            f"concepts in {found.images} drawn scenes; it says nothing of a class, so it has no fidelity here."
        )
        return Row(
            facts,
            "dissection",
            "Dissection",
            "network",
            key,
            values,
            cost,
            notes=(note,),
            answers=Dissection.answers,
        )


def map_layer(score: Score, inputs: Float[Tensor, "n c h w"]) -> str:
    """Return the last, least nested layer of a finer map than the last map's; the last map's if all are as coarse.

    Raises:
        RefusedError: if no layer returns a map.
    """
    model, size = score.model, (inputs.shape[2], inputs.shape[3])
    last = cam_layer(score, inputs)
    sizes = {
        r.layer: found for r in layers_run(model, inputs[:1]) if r.layer and r.call == 0 and (found := map_size(r, size))
    }
    finer = [layer for layer, found in sizes.items() if last in sizes and found[0] > sizes[last][0]]
    if not finer:
        return last
    alike = [layer for layer in finer if sizes[layer] == sizes[finer[-1]]]
    least = min(layer.count(".") for layer in alike)
    return [layer for layer in alike if layer.count(".") == least][-1]


def _measured(work: Callable[[], R], store: ActivationStore, score: Score, inputs: Tensor) -> tuple[R, Cost]:
    """Return what some work gives, and its cost but for settings and data."""
    accelerator = device_of(score.model).type != "cpu"
    watch = Stopwatch(accelerator)
    forward = watch.forward(score, inputs)
    found: list[R] = []
    with PeakMemory(accelerator=accelerator) as memory:
        seconds = watch(lambda: found.append(work()))
    stats = store.stats
    passes = stats.forward_rows, stats.backward_rows
    return found[0], Cost(*passes, seconds, seconds / forward, memory.peak_mb, 0, 0)


def _said(result: TcavResult, layer: str) -> tuple[str, ...]:
    accuracy = result.accuracy.mean(2)[0]
    used = [c for c, yes in zip(result.concepts, result.effect_significant[0, :, 0], strict=True) if yes]
    return (
        f"at {layer}, CAVs tell concepts from the pool with {float(accuracy.mean()):.0%} accuracy on held-out examples, "
        f"the worst with {float(accuracy.min()):.0%}; effects on the first input's class are significant by relabelling "
        f"for {', '.join(used) or 'none'} of {len(result.concepts)} concepts.",
    )
