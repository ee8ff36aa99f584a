"""The activation store: rows named by content, computed once, kept in memory and on disk.

A row is one layer's output (or a score's gradient there) for one example. Its name is made of what it depends on —
weights, layer, quantity, pooling, precision, example — so a changed weight or a changed byte of an image means
other rows, and sets that share images share rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from probing.core.storage import Place, located
from probing.data.examples import Examples, ExampleSet, Subset, as_examples
from probing.models.loading import Model
from probing.models.precision import Precision
from probing.models.readings import Reading, joined
from probing.models.runner import Pool
from probing.models.scores import Score, class_scores
from probing.store.extraction import Engine
from probing.store.memory import MemoryTier
from probing.store.requests import Estimate, Job, Request, RequestError, Rows, StoreStats, model_of
from probing.store.shards import Disk
from probing.store.shares import Share

_AT_ONCE = 32  # examples whose top class is found together


@dataclass
class ActivationStore:
    """Computes, keeps and returns rows of activations and gradients.

    Several processes may use one root at once: each takes chunks that no other is at work on and reads the others'.

    Attributes:
        root: folder of the disk tier, or an address such as `s3://bucket/cache`; None keeps rows in memory only.
        device: where passes run and rows are returned; None: passes run where the model is, rows come to the CPU.
        precision: of activations; gradients are computed at `precision.gradients`.
        batch_size: examples per pass; `auto` suits the machine. Results depend on it only by rounding.
        budget_bytes: memory for rows on the host, and as much again on an accelerator.
        disk_budget_bytes: of all rows under the root; a job that would exceed it is refused before it writes. None: what
            the disk has free.
        progress: a bar on stderr while rows are computed; None shows it on a terminal.
    """

    root: Place | str | None = None
    device: torch.device | str | None = None
    precision: Precision = field(default_factory=Precision)
    batch_size: int | Literal["auto"] = "auto"
    budget_bytes: int = 2 << 30
    disk_budget_bytes: int | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        home, host = torch.device(self.device or "cpu"), torch.device("cpu")
        tiers = [MemoryTier(self.budget_bytes, host)]
        if home != host:
            tiers.insert(0, MemoryTier(self.budget_bytes, home, below=tiers[0]))
        self._engine = Engine(
            disk=None if self.root is None else Disk(located(self.root), self.disk_budget_bytes),
            tiers=tiers,
            device=None if self.device is None else home,
            precision=self.precision,
            batch_size=self.batch_size,
            show_progress=self.progress,
        )

    @property
    def stats(self) -> StoreStats:
        """What this store has done so far."""
        return self._engine.stats

    def activations(
        self, model: Model, layers: Sequence[str], examples: Examples, *, pool: Pool = "none"
    ) -> dict[str, Float[Tensor, "n ..."]]:
        """Return what layers return for each example, in the order of the examples; all layers from one pass.

        Layers are dotted paths or globs; `""` is the model's output.

        Raises:
            LayerNotFoundError, LayerCallError: for a layer that can't be read.
            ModelModeError, ForeignHookError: for a model whose rows would not be repeatable.
            NonFiniteError: if an output holds NaN or infinity.
            StaleRowsError: if stored rows are not what the model computes now.
            StoreWriteError: if the cache folder can't be written.
        """
        return self._engine.collect(self._job(model, layers, examples, pool)).activations

    def gradients(
        self, score: Score, layers: Sequence[str], examples: Examples, *, pool: Pool = "none"
    ) -> dict[str, Float[Tensor, "n ..."]]:
        """Return the gradient of a score at layers' outputs for each example, in score units per unit of activation.

        With pooling it is summed over positions: the derivative with respect to the mean. Raises as `activations`.
        """
        examples = as_examples(examples)
        if score.is_open:
            score = self._named(score, examples)
        if score.count is None:
            return self.gradients_of([score], layers, examples, pool=pool)[0]
        if score.count != len(examples):
            raise RequestError(f"score.target has {score.count} classes for {len(examples)} examples: give one each.")
        found: dict[str, Tensor] = {}
        targets = score.keys(score.count)
        for target in dict.fromkeys(targets):
            where = [i for i, t in enumerate(targets) if t == target]
            part = self.gradients(score.of(where[0]), layers, Subset(examples, where), pool=pool)
            for layer, rows in part.items():
                found.setdefault(layer, rows.new_empty((len(targets), *rows.shape[1:])))[where] = rows
        return found

    def _named(self, score: Score, examples: ExampleSet) -> Score:
        """Return a score with the top class of each example as its targets, or with what its reading leaves open."""
        if score.target is None and score.output is None:
            outputs = class_scores(self.activations(score.model, [""], examples)[""])
            return replace(score, target=outputs.argmax(1))
        # An output of several parts is no row that is kept.
        n = len(examples)
        parts = [range(i, min(i + _AT_ONCE, n)) for i in range(0, n, _AT_ONCE)]
        named = [score.of(slice(p.start, p.stop)).named(examples.load(p)).target for p in parts]
        if isinstance(score.target, Reading):
            return replace(score, target=joined([r for r in named if isinstance(r, Reading)]))
        return replace(score, target=torch.cat([t for t in named if isinstance(t, Tensor)]))

    def gradients_of(
        self,
        scores: Sequence[Score],
        layers: Sequence[str],
        examples: Examples,
        *,
        pool: Pool = "none",
    ) -> list[dict[str, Float[Tensor, "n ..."]]]:
        """Return `gradients` for several scores of one model, from one forward pass.

        Example:
            >>> by_class = store.gradients_of([Score(net, k) for k in classes], ["layer4"], images, pool="mean")
        """
        job = self._job(model_of(scores), layers, examples, pool, scores)
        return self._engine.collect(replace(job, outputs={})).gradients

    def read(
        self,
        scores: Sequence[Score],
        layers: Sequence[str],
        examples: Examples,
        *,
        pool: Pool = "none",
    ) -> Rows:
        """Return activations and the gradients of several scores of one model.

        Both come from one pass where they have the same precision. Raises as `activations`.
        """
        return self._engine.collect(self._job(model_of(scores), layers, examples, pool, scores))

    def batches(
        self, model: Model, layers: Sequence[str], examples: Examples, *, pool: Pool = "none"
    ) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
        """Yield positions in the example set with their rows, batch by batch, in bounded memory.

        Every position comes once; while other processes fill the same store the order may differ. Raises as
        `activations`.
        """
        for rows in self._engine.stream(self._job(model, layers, examples, pool)):
            yield (
                rows.positions,
                {layer: values.clone() for layer, values in rows.activations.items()},
            )

    def estimate(
        self,
        model: Model,
        layers: Sequence[str],
        examples: Examples,
        *,
        pool: Pool = "none",
        scores: Sequence[Score] = (),
    ) -> Estimate:
        """Return what a request would cost; passes one example forward if anything is missing."""
        return self._engine.estimate(self._job(model, layers, examples, pool, scores))

    def fill(self, requests: Sequence[Request], share: Share) -> None:
        """Compute and store what is missing of a share of some requests' rows; nothing is kept in memory.

        When all shares are filled, by any number of processes in any order, the store holds the bytes that one process
        writes which asks for the same rows in the same order. Raises as `activations`.

        Raises:
            RequestError: for a store without a root.
            StoreFullError: before anything is computed, if all shares' rows would exceed the disk or the budget.

        Example:
            >>> store.fill([Request(net, ("layer4",), images, "mean")], Share(0, 8))
        """
        jobs = [self._job(r.model, r.layers, r.examples, r.pool, r.scores) for r in requests]
        self._engine.fill([replace(job, outputs={}) if job.scores else job for job in jobs], share)

    def _job(
        self,
        model: Model,
        layers: Sequence[str],
        examples: Examples,
        pool: Pool,
        scores: Sequence[Score] = (),
    ) -> Job:
        return Job.of(model, layers, examples, pool, self.precision, scores)
