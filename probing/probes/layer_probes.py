"""Linear classifier probes at every layer of a network (Alain & Bengio 2016)."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probing.core.content_ids import content_id
from probing.core.errors import ArgumentError, Mend
from probing.core.progress import Progress
from probing.data.examples import Examples, ExampleSet, as_examples, labels_of
from probing.models.copies import SharedWeightsError
from probing.models.loading import Model, module_of
from probing.probes.description_length import CodeBlocks, uniform_length
from probing.probes.features import LayerShape, Reader
from probing.probes.fitting import LayerReading, Tasks, majority_error, measure_layer, stacked
from probing.probes.parallel import side_by_side
from probing.probes.probes import Probe, SoftmaxProbe
from probing.probes.reduction import GlobalAverage, Reduction
from probing.probes.result import ProbeResult
from probing.probes.split import Split, control_labels, draw_split, encode, group_numbers
from probing.probes.untrained_copy import untrained_copy
from probing.results.result import Provenance
from probing.statistics.clustered import clustered_mean, clustered_share, holm
from probing.store.requests import Request
from probing.store.store import ActivationStore


@dataclass(frozen=True)
class LayerProbes:
    """Linear probes at every layer, with the controls that say what their accuracy means.

    At each layer the features are reduced, standardised by the training examples, and a linear classifier is fitted for
    every penalty; the penalty is chosen on the validation side and the error read once on the test side. Nothing
    reaches the model. Beside the error stand: a control task of random labels (Hewitt & Liang 2019), the same
    architecture at random weights, the majority class, the description length of the labels by an online code (Voita &
    Titov 2020), and a paired test of each layer against the one before it.

    Attributes:
        layers: dotted paths or globs, as `probing.models.layers` says; None: all that can be read and have no layers inside.
        probe: what is fitted.
        reduction: from a layer's output to features.
        oversized: what stands in for it where it leaves more than `max_features`; None: such a layer is refused.
        inputs: also probe the examples themselves, reduced alike.
        validation: share of examples that the penalty is chosen on (0-1).
        test: share of examples that are judged (0-1).
        controls: control tasks drawn; 0: none.
        untrained: also read the architecture at random weights.
        description_length: also fit the online code.
        memory_bytes: rows are kept in memory up to this size; a layer with more is streamed for every product.
        level: of intervals (0-1).

    Example:
        >>> result = LayerProbes("layer?")(ActivationStore(), net, images, labels, groups=people)
        >>> result.to_pandas()
    """

    layers: str | tuple[str, ...] | None = None
    probe: Probe = field(default_factory=SoftmaxProbe)
    reduction: Reduction = field(default_factory=GlobalAverage)
    oversized: Reduction | None = None
    max_features: int = 4096
    inputs: bool = True
    validation: float = 0.2
    test: float = 0.3
    controls: int = 1
    untrained: bool = True
    description_length: bool = True
    memory_bytes: int = 4 << 30
    level: float = 0.95
    seed: int = 0

    def __call__(
        self,
        store: ActivationStore,
        model: Model,
        examples: Examples,
        labels: Sequence[object] | Int[Tensor, " n"] | None = None,
        *,
        groups: Sequence[str] | None = None,
        types: Sequence[str] | None = None,
        split: Split | None = None,
    ) -> ProbeResult:
        """Return what probes find at each layer; all layers come from one sweep over the examples.

        Args:
            store: reads activations and keeps them.
            model: in evaluation mode, a module or what `load` returns.
            examples: with a label each.
            labels: classes, of any kind that can be sorted; by default those that came with the examples.
            groups: what each example belongs to (a person, a role); a group is never on two sides of the split, and
                intervals treat groups as independent.
            types: of input, for the control task; random labels are drawn for types and can be learnt where a type's
                examples are on both sides.
            split: which examples to fit, choose and judge on; drawn by default.

        Raises:
            SplitError: if labels or groups allow no split, or are not as many as the examples.
            FeatureSizeError: for a layer with too many features.
            DegenerateRowsError: for a layer whose features are all constant, or not finite.
            SharedWeightsError: if the untrained control would compute by the model's own weights.
            LayerNotFoundError, ProbeLayerError: for layers that can't be probed.
        """
        model, examples = module_of(model), as_examples(examples)
        known, names = encode(labels_of(examples) if labels is None else labels, len(examples))
        if split is None:
            split = draw_split(known, groups, validation=self.validation, test=self.test, seed=self.seed, names=names)
        tasks = self._tasks(known, names, groups, types, split)
        shapes = self._reader.layers(model, self._patterns, examples, inputs=self.inputs)
        readings = self._read(store, model, shapes, examples, tasks)
        random: list[LayerReading] = []
        if self.untrained:
            bare = Tasks(tasks.labels[:1], names, split, tasks.groups)
            random = self._read(store, self._control(model, examples), shapes, examples, bare)
        ids = [
            list(examples.ids),
            known.tolist(),
            list(groups or ()),
            list(types or ()),
            *(side.tolist() for side in (split.train, split.validation, split.test)),
        ]
        provenance = Provenance.collect(model=model, examples=content_id(ids), method=self)
        return self._result(provenance, shapes, readings, random, tasks, groups is not None, types is not None)

    def requests(self, model: Model, examples: Examples) -> tuple[Request, ...]:
        """Return what a call asks of the store, in its order, so that engines can fill it before."""
        model, examples = module_of(model), as_examples(examples)
        shapes = self._reader.layers(model, self._patterns, examples, inputs=self.inputs)
        models = [model, *([self._control(model, examples)] if self.untrained else [])]
        return tuple(r for m in models for r in self._reader.requests(m, shapes, examples))

    def _control(self, model: nn.Module, examples: ExampleSet) -> nn.Module:
        try:
            return untrained_copy(model, self.seed, example=examples.load([0]))
        except SharedWeightsError as error:
            problem = str(error).removesuffix(".")
            mends = [Mend("leave that control out", "untrained=False")]
            raise SharedWeightsError(problem, mends=mends) from None

    @property
    def _patterns(self) -> tuple[str, ...] | None:
        return (self.layers,) if isinstance(self.layers, str) else self.layers

    @property
    def _reader(self) -> Reader:
        return Reader(self.reduction, self.oversized, self.max_features, self.memory_bytes)

    def _tasks(
        self,
        labels: Tensor,
        names: tuple[str, ...],
        groups: Sequence[str] | None,
        types: Sequence[str] | None,
        split: Split,
    ) -> Tasks:
        if types is not None and len(types) != len(labels):
            raise ArgumentError(f"there are {len(types)} types for {len(labels)} examples: give one to each.")
        of_group = group_numbers(groups, len(labels))
        drawn = [control_labels(labels, types, self.seed + c) for c in range(self.controls)]
        blocks = None
        if self.description_length and self.probe.probabilistic:
            blocks = CodeBlocks.draw(labels[split.train], of_group[split.train], len(names), self.seed)
        return Tasks(torch.stack([labels, *drawn]), names, split, of_group, blocks)

    def _read(
        self,
        store: ActivationStore,
        model: nn.Module,
        shapes: Sequence[LayerShape],
        examples: ExampleSet,
        tasks: Tasks,
    ) -> list[LayerReading]:
        found: dict[str, LayerReading] = {}
        with Progress(len(shapes), "probes", store.progress, unit="layers") as meter:
            for tables in self._reader.tables(store, model, shapes, examples):
                paths = list(tables)
                made = side_by_side(
                    lambda p, t=tables: measure_layer(t[p], tasks, self.probe),  # type: ignore[misc]
                    paths,
                )
                found |= dict(zip(paths, made, strict=True))
                meter.advance(len(paths))
        return [found[shape.path] for shape in shapes]

    def _result(
        self,
        provenance: Provenance,
        shapes: Sequence[LayerShape],
        readings: list[LayerReading],
        random: list[LayerReading],
        tasks: Tasks,
        grouped: bool,
        typed: bool,
    ) -> ProbeResult:
        wrong = torch.stack([r.wrong for r in readings], 1).double()
        split = tasks.split
        clusters = torch.unique(tasks.groups[split.test], return_inverse=True)[1]
        share = clustered_share(wrong, clusters, self.level)
        if random:
            untrained = clustered_share(torch.stack([r.wrong for r in random], 1).double(), clusters, self.level)
            other = (untrained.share, untrained.low, untrained.high)
        else:
            other = (torch.full_like(share.share, torch.nan),) * 3
        steps = clustered_mean(wrong[:, 1:] - wrong[:, :-1], clusters, self.level)
        known: dict[str, Float[Tensor, " layers"]] = {
            name: stacked(readings, name)
            for name in (
                "features",
                "train_error",
                "cross_entropy",
                "train_cross_entropy",
                "penalty",
                "certificate",
                "control_error",
                "control_train_error",
                "bits",
            )
        }
        return ProbeResult(
            provenance,
            layers=tuple(shape.path for shape in shapes),
            reductions=tuple(str(shape.reduction) for shape in shapes),
            classes=tasks.names,
            examples=(len(split.train), len(split.validation), len(split.test)),
            groups=share.clusters,
            grouped=grouped,
            typed=typed,
            level=self.level,
            tolerance=self.probe.tolerance,
            error=share.share,
            low=share.low,
            high=share.high,
            untrained_error=other[0],
            untrained_low=other[1],
            untrained_high=other[2],
            uniform_bits=uniform_length(len(split.train), tasks.classes),
            majority_error=majority_error(tasks.labels[0], split),
            step=steps.mean,
            step_p=steps.p,
            step_p_holm=holm(steps.p),
            **known,
        )
