"""One batch through a prepared model: layers' outputs and several scores' gradients in one pass."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from probing.errors import ProbingError
from probing.gradients import score_gradients
from probing.hooks import capture
from probing.model_check import refuse_inconsistent
from probing.precision import Precision, Prepared
from probing.scores import Score

Pool = Literal["none", "mean", "mean_last"]
"""What is kept of a layer's output: all of it; its mean over positions, for maps `[n, c, h, w]` and
tokens `[n, tokens, features]`; or the mean over all axes but the first and last, for maps with
channels last.

The pooled *gradient* is the sum over positions: the change of the score when every position moves
alike, which is its derivative with respect to the mean."""


class NonFiniteError(ProbingError, ValueError):
    """A layer's output or gradient holds NaN or infinity."""


class PoolError(ProbingError, ValueError):
    """A pooling that the layer's output has no axes for."""


@dataclass
class Runner:
    """A prepared copy of a model that reads layers batch by batch."""

    prepared: Prepared

    @classmethod
    def of(
        cls,
        model: nn.Module,
        layers: Sequence[str],
        precision: Precision,
        device: torch.device,
        example: Tensor,
    ) -> "Runner":
        """Prepare a model for reading some of its layers; at most two examples `[n, …]` are passed for it.

        Raises:
            InconsistentModelError: if what the model returns for an example hangs on anything else.
        """
        refuse_inconsistent(model, example, device)
        return cls(precision.prepare(model, layers, device, example))

    def run(
        self,
        inputs: Tensor,
        layers: Sequence[str],
        pool: Pool | Mapping[str, Pool],
        scores: Sequence[Score] = (),
    ) -> list[dict[str, Tensor]]:
        """Return layers' pooled outputs, then per score its pooled gradients there.

        Without scores the pass ends after the deepest layer. A batch that an accelerator has no
        memory for is halved.

        Args:
            inputs: in model space; left as they are, also by models that overwrite their input.
            layers: as the runner was prepared for, or fewer.
            pool: what is kept of each output and gradient, for all layers or for each.
            scores: of the model the runner was made of, with one class each.

        Raises:
            LayerCallError, PoolError, ZeroPathError: for a layer that can't be read so.
            NonFiniteError: if an output or gradient holds NaN or infinity.
        """
        with torch.inference_mode(False):  # else rows of a caller in that mode never enter autograd
            pools = pool if isinstance(pool, Mapping) else dict.fromkeys(layers, pool)
            return self._run(inputs, layers, pools, scores)

    def _run(
        self,
        inputs: Tensor,
        layers: Sequence[str],
        pools: Mapping[str, Pool],
        scores: Sequence[Score],
    ) -> list[dict[str, Tensor]]:
        try:
            if scores:
                return self._gradients(inputs, layers, pools, scores)
            return [self._outputs(inputs, layers, pools)]
        except torch.OutOfMemoryError:
            if len(inputs) == 1:
                raise
        halves = [self._run(half, layers, pools, scores) for half in inputs.tensor_split(2)]
        return [{n: torch.cat([a[n], b[n]]) for n in a} for a, b in zip(*halves, strict=True)]

    def _outputs(
        self, inputs: Tensor, layers: Sequence[str], pools: Mapping[str, Pool]
    ) -> dict[str, Tensor]:
        def reduce(layer: str, output: Tensor) -> Tensor:
            return pooled(output, pools[layer]).contiguous()

        with (
            torch.no_grad(),
            self.prepared.arithmetic(),
            capture(self.prepared.model, layers, stop=True, reduce=reduce) as kept,
        ):
            self.prepared.model(self.prepared.inputs(inputs))
        return {layer: _checked(layer, "output", kept[layer]) for layer in layers}

    def _gradients(
        self,
        inputs: Tensor,
        layers: Sequence[str],
        pools: Mapping[str, Pool],
        scores: Sequence[Score],
    ) -> list[dict[str, Tensor]]:
        with torch.enable_grad(), self.prepared.arithmetic():
            with capture(self.prepared.model, layers, graph=True) as kept:
                output = self.prepared.model(self.prepared.inputs(inputs))
            slopes = score_gradients(scores, output, [kept[layer] for layer in layers], layers)
        outputs = {n: pooled(kept[n].detach(), pools[n]).contiguous() for n in layers}
        found = [{n: _checked(n, "output", values) for n, values in outputs.items()}]
        for gradients in slopes:
            rows = {
                n: pooled(g, pools[n], total=True) for n, g in zip(layers, gradients, strict=True)
            }
            found.append({n: _checked(n, "gradient", g.contiguous()) for n, g in rows.items()})
        return found


def pooled(values: Tensor, pool: Pool, *, total: bool = False) -> Tensor:
    """Return what `pool` keeps of an output, or (`total`) of a gradient, in float32 or better.

    Raises:
        PoolError: for a name that is no pooling, or an output without positions to pool.
    """
    if pool not in get_args(Pool):
        raise PoolError(f"pool must be one of {get_args(Pool)}, got {pool!r}.")
    if pool == "none":
        return values
    if values.ndim not in {2, 3, 4, 5}:
        raise PoolError(
            f"pool={pool!r} needs an output with positions, got shape {tuple(values.shape)}; "
            "use pool='none'."
        )
    if values.dtype != torch.float64:
        values = values.float()
    if values.ndim == 2:  # features without positions
        return values
    tokens = pool == "mean_last" or values.ndim == 3
    axes = tuple(range(1, values.ndim - 1)) if tokens else tuple(range(2, values.ndim))
    return values.sum(axes) if total else values.mean(axes)


def _checked(layer: str, what: str, values: Tensor) -> Tensor:
    # NaN and infinity survive summation: a finite sum proves finite terms, others are looked into.
    if not torch.isfinite(values.sum()) and not torch.isfinite(values).all():
        rows = torch.isfinite(values.reshape(len(values), -1)).all(1)
        raise NonFiniteError(
            f"the {what} of layer {layer!r} is not finite (NaN or infinity) "
            f"for row {int((~rows).nonzero()[0])} of the batch."
        )
    return values
