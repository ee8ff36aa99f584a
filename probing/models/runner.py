"""One batch through a prepared model: layers' outputs and several scores' gradients in one pass."""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.core.inputs import Batch
from probing.models.calling import run
from probing.models.consistency import refuse_inconsistent
from probing.models.gradients import score_gradients
from probing.models.hooks import TokenMasks, capture, takes_masks, token_masks
from probing.models.precision import Precision, Prepared
from probing.models.scores import Score

Pool = Literal["none", "mean", "mean_last", "mean_first"]
"""What is kept of a layer's output: all of it; its mean over positions, of maps `[n, c, h, w]`, series, volumes and tokens
`[n, tokens, features]`; or, where a layer's own axes don't tell which of them are positions, the mean over all axes but the
first and last, or but the first two. Of texts the mean is one over tokens, where modules of the model are told by a mask of
padding.

The pooled *gradient* is the sum over positions: the change of the score when every position moves
alike, which is its derivative with respect to the mean."""


Land = Callable[[int, str, Tensor], Tensor]
"""Of a part (0: outputs, 1, 2, …: the scores' gradients), a layer and its rows: a copy of these where they are to stay."""


def _copied(part: int, layer: str, rows: Tensor) -> Tensor:
    return rows.contiguous()


class NonFiniteError(ProbingError, ValueError):
    """A layer's output or gradient holds NaN or infinity."""


class PoolError(ProbingError, ValueError):
    """A pooling that the layer's output has no axes for."""


@dataclass
class Runner:
    """A prepared copy of a model that reads layers batch by batch."""

    prepared: Prepared
    early: dict[str, bool] = field(default_factory=dict)
    """Which layers end before the model is told of padding, as far as is known."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        layers: Sequence[str],
        precision: Precision,
        device: torch.device,
        example: Batch,
    ) -> "Runner":
        """Prepare a model for reading some of its layers; at most two examples `[n, …]` are passed for it.

        Raises:
            InconsistentModelError: if what the model returns for an example hangs on anything else.
        """
        refuse_inconsistent(model, example, device)
        made = cls(precision.prepare(model, layers, device, example))
        # Alone: an axis that is no batch axis may be as long as a batch by chance.
        ready = made.prepared
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            ready.arithmetic(),
            capture(ready.model, layers, stop=True, rows=1),
        ):
            run(ready.model, ready.inputs(example[:1]))
        return made

    def run(
        self,
        inputs: Batch,
        layers: Sequence[str],
        pool: Pool | Mapping[str, Pool],
        scores: Sequence[Score] = (),
        *,
        land: Land = _copied,
    ) -> list[dict[str, Tensor]]:
        """Return layers' pooled outputs, then per score its pooled gradients there.

        Without scores the pass ends after the deepest layer. A batch that an accelerator has no
        memory for is halved.

        Args:
            inputs: in model space; left as they are, also by models that overwrite their input.
            layers: as the runner was prepared for, or fewer.
            pool: what is kept of each output and gradient, for all layers or for each.
            scores: of the model the runner was made of, with one class each.
            land: puts rows where they are to stay, as soon as they are there; whole batches, or halves of them.

        Raises:
            LayerCallError, PoolError, ZeroPathError: for a layer that can't be read so.
            NonFiniteError: if an output or gradient holds NaN or infinity.
        """
        with torch.inference_mode(False):  # else rows of a caller in that mode never enter autograd
            pools = pool if isinstance(pool, Mapping) else dict.fromkeys(layers, pool)
            found = self._run(inputs, layers, pools, scores, land)
        _refuse_not_finite(found)
        return found

    def _run(
        self,
        inputs: Batch,
        layers: Sequence[str],
        pools: Mapping[str, Pool],
        scores: Sequence[Score],
        land: Land,
    ) -> list[dict[str, Tensor]]:
        try:
            if scores:
                return self._gradients(inputs, layers, pools, scores, land)
            return [self._outputs(inputs, layers, pools, land)]
        except torch.OutOfMemoryError:
            if len(inputs) == 1:
                raise
        halves = [self._run(half, layers, pools, scores, land) for half in inputs.tensor_split(2)]
        return [{n: torch.cat([a[n], b[n]]) for n in a} for a, b in zip(*halves, strict=True)]

    def _outputs(self, inputs: Batch, layers: Sequence[str], pools: Mapping[str, Pool], land: Land) -> dict[str, Tensor]:
        early = self._early_layers(inputs, layers, pools)

        def pool(layer: str, output: Tensor) -> Tensor:
            read = _read(masks, layer, output, pools[layer])
            return land(0, layer, pooled(output, pools[layer], read=read))

        def reduce(layer: str, output: Tensor) -> Tensor:
            return output if layer in early else pool(layer, output)

        model = self.prepared.model
        with (
            torch.no_grad(),
            self.prepared.arithmetic(),
            self._masks(pools) as masks,
            capture(model, layers, stop=not early, reduce=reduce, rows=len(inputs)) as kept,
        ):
            run(model, self.prepared.inputs(inputs))
        return {n: pool(n, kept[n]) if n in early else kept[n] for n in layers}

    def _masks(self, pools: Mapping[str, Pool]) -> AbstractContextManager[TokenMasks]:
        """Return what notes masks of padding, where a mean over tokens needs them."""
        return token_masks(self.prepared.model) if "mean" in pools.values() else nullcontext(TokenMasks())

    def _early_layers(self, inputs: Batch, layers: Sequence[str], pools: Mapping[str, Pool]) -> set[str]:
        """Return layers that end before the model is told of padding, as embeddings do; found by a pass, once."""
        model = self.prepared.model
        if inputs.ndim == 4 or "mean" not in pools.values() or not takes_masks(model):
            return set()
        unknown = [n for n in layers if n not in self.early]
        if unknown:
            told: dict[str, bool] = {}

            def note(layer: str, output: Tensor) -> Tensor:
                told[layer] = masks.told
                return output.new_empty(0)

            with (
                torch.no_grad(),
                self.prepared.arithmetic(),
                token_masks(model) as masks,
                capture(model, unknown, reduce=note),
            ):
                run(model, self.prepared.inputs(inputs))
            self.early |= {n: masks.told and not told[n] for n in unknown}
        return {n for n in layers if self.early[n]}

    def _gradients(
        self,
        inputs: Batch,
        layers: Sequence[str],
        pools: Mapping[str, Pool],
        scores: Sequence[Score],
        land: Land,
    ) -> list[dict[str, Tensor]]:
        with torch.enable_grad(), self.prepared.arithmetic():
            with (
                self._masks(pools) as masks,
                capture(self.prepared.model, layers, graph=True, rows=len(inputs)) as kept,
            ):
                output = run(self.prepared.model, self.prepared.inputs(inputs))
            each = [score.of_texts(inputs) for score in scores]  # the last token is another's place in a longer text
            slopes = score_gradients(each, output, [kept[layer] for layer in layers], layers)
        read = {n: _read(masks, n, kept[n], pools[n]) for n in layers}
        found = [{n: land(0, n, pooled(kept[n].detach(), pools[n], read=read[n])) for n in layers}]
        for part, gradients in enumerate(slopes, 1):
            rows = {n: pooled(g, pools[n], read=read[n], total=True) for n, g in zip(layers, gradients, strict=True)}
            found.append({n: land(part, n, g) for n, g in rows.items()})
        return found


def _read(masks: TokenMasks, layer: str, output: Tensor, pool: Pool) -> Tensor | None:
    return masks.read(layer, output.shape) if pool == "mean" and output.ndim == 3 else None


def pooled(values: Tensor, pool: Pool, *, read: Tensor | None = None, total: bool = False) -> Tensor:
    """Return what `pool` keeps of an output, or (`total`) of a gradient, in float32 or better.

    Args:
        values: `[n, …]`.
        pool: what is kept.
        read: `[n, tokens]`, False for padding, which takes no part.
        total: whether positions are summed.

    Raises:
        PoolError: for a name that is no pooling, or an output without positions to pool.
    """
    if pool not in get_args(Pool):
        raise PoolError(f"pool must be one of {get_args(Pool)}, got {pool!r}.")
    if pool == "none":
        return values
    if values.ndim not in {2, 3, 4, 5}:
        raise PoolError(f"pool={pool!r} needs an output with positions, got shape {tuple(values.shape)}; use pool='none'.")
    if values.dtype != torch.float64:
        values = values.float()
    if values.ndim == 2:  # features without positions
        return values
    tokens = pool == "mean_last" or (values.ndim == 3 and pool != "mean_first")
    axes = tuple(range(1, values.ndim - 1)) if tokens else tuple(range(2, values.ndim))
    if read is not None:
        whole = values.masked_fill(~read.to(values.device)[:, :, None], 0).sum(1)
        return whole if total else whole / read.to(whole).sum(1, keepdim=True)
    return values.sum(axes) if total else values.mean(axes)


def _refuse_not_finite(found: Sequence[Mapping[str, Tensor]]) -> None:
    """Raise where outputs, or the gradients after them, hold NaN or infinity; the host reads one number for all."""
    # Both survive summation: a finite sum proves finite terms, others are looked into.
    sums = [values.sum().to(torch.float32) for rows in found for values in rows.values()]
    if math.isfinite(float(torch.stack(sums).sum())):
        return
    for part, rows in enumerate(found):
        for layer, values in rows.items():
            if not torch.isfinite(values).all():
                finite = torch.isfinite(values.reshape(len(values), -1)).all(1)
                raise NonFiniteError(
                    f"the {'gradient' if part else 'output'} of layer {layer!r} is not finite (NaN or infinity) "
                    f"for row {int((~finite).nonzero()[0])} of the batch."
                )
