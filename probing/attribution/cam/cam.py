"""The class activation map of a network that ends in a global average and a linear layer: a logit's exact parts."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from probing.attribution.base import (
    Attribution,
    Demand,
    Family,
    LocalMethod,
    in_chunks,
    with_places,
)
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.models.geometry import Ran, RefusedError, layers_run
from probing.models.layers import resolve
from probing.models.model_cache import unchanged
from probing.models.precision import Precision, agree
from probing.models.readings import Reading
from probing.models.scores import Score


@dataclass(frozen=True)
class CAM(LocalMethod):
    """A logit's own parts: the weights of the last layer applied at each place (Zhou et al. 2016, eq. 2).

    Exact, and so refused unless a global average (or sum) of a map feeds the linear layer that gives the logits. The
    map has no ReLU; its mean (or sum) is the logit minus its bias, `diagnostics["completeness_gap"]` aside. Of scores it
    takes what one output of that layer is: a class's or a label's logit, a column of a regression.

    Attributes:
        batch_size: examples of a pass.
        precision: how passes run.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1, 2)
    demands: ClassVar[tuple[Demand, ...]] = ("layer", "head")

    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Float[Tensor, "n *shape"]) -> Attribution:
        """Return maps `[n, 1, h, w]` of the last map's resolution, `[n, 1, t]` of series, `[n, 1, d, h, w]` of volumes.

        Raises:
            RefusedError: for another head, or a score that is no logit.
        """
        inputs = with_places(inputs)
        if score.column is None:
            what = score.unit if not isinstance(score.target, Reading) else f"a {type(score.target).__name__}"
            raise RefusedError(f"CAM takes logits apart, not {what}: use GradCAM.")
        with unchanged(score.model):
            ran = layers_run(score.model, score.given(inputs))
            name = _head(score.model, ran)
            passes = Passes.of(score, inputs, self.batch_size, self.precision, [name])
            head = resolve(passes.score.model, name)
            assert isinstance(head, nn.Linear)
            rows = torch.arange(len(inputs))
            parts = in_chunks(len(inputs), passes.chunk, lambda part: _pooled(passes, inputs[part], rows[part], head))
            maps, scores = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            value = replace(passes.score, output=None).read(scores)
            values, gap = _weighed(score, head, maps, value)
            layer = next((r for r in reversed(ran) if r.shape[1:] == maps.shape[1:]), None)
            return passes.attribution(
                self,
                inputs,
                values[:, None].contiguous(),
                value,
                layer="" if layer is None else layer.layer,
                geometry=None if layer is None else layer.geometry(tuple(inputs.shape[2:])),
                diagnostics={"completeness_gap": gap},
            )


def _weighed(
    score: Score, head: nn.Linear, maps: Float[Tensor, "n c *places"], value: Float[Tensor, " n"]
) -> tuple[Float[Tensor, "n *places"], Float[Tensor, " n"]]:
    """Return maps weighed by the head, and what their mean or sum, with the bias, misses of the logit."""
    column = torch.as_tensor(score.column, device=maps.device).expand(len(maps))
    values = torch.einsum("nk,nk...->n...", head.weight.detach().to(maps)[column], maps)
    bias = 0.0 if head.bias is None else head.bias.detach().to(value)[column]
    by_mean, by_sum = (side + bias - value for side in (values.flatten(1).mean(1), values.flatten(1).sum(1)))
    return values, torch.where(by_mean.abs().max() <= by_sum.abs().max(), by_mean, by_sum)


def _head(model: nn.Module, ran: tuple[Ran, ...]) -> str:
    linear = [r for r in ran if r.layer and isinstance(resolve(model, r.layer), nn.Linear)]
    if not linear:
        raise RefusedError(_no_cam(model, "it has no linear layer"))
    return linear[-1].layer


def _no_cam(model: nn.Module, reason: str) -> str:
    return (
        f"CAM needs a global average of a map that feeds the last linear layer of {type(model).__name__}, "
        f"but {reason}: use GradCAM or HiResCAM."
    )


class _Pools(TorchFunctionMode):
    """Keeps the maps of some width that are pooled over all places."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self._width = width
        self.maps: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Pass a call on and keep the map if it is a pooling that leaves one value per channel."""
        named = kwargs or {}
        given = args[0] if args else named.get("input")
        pools = getattr(func, "__name__", "") in _POOLS
        if pools and isinstance(given, Tensor) and given.ndim in {3, 4, 5} and given.shape[1] == self._width:
            kept = given.clone()
            out = func(*args, **named)
            if isinstance(out, Tensor) and out.numel() == given.shape[0] * given.shape[1]:
                self.maps.append(kept)
            return out
        return func(*args, **named)


_POOLS = {"mean", "sum", *(f"{kind}avg_pool{axes}d" for kind in ("", "adaptive_") for axes in (1, 2, 3))}


def _pooled(passes: Passes, inputs: Tensor, rows: Tensor, head: nn.Linear) -> tuple[Tensor, Tensor]:
    """Return the maps that are averaged, and the class scores, proved to be the head's of their means or sums."""
    pools = _Pools(head.in_features)
    with torch.no_grad():
        with pools:
            scores = passes.score.whole(passes.output(inputs, rows))
            scores = scores[:, None] if scores.ndim == 1 else scores
        for maps in reversed(pools.maps):
            if any(agree(head(total), scores) for total in (maps.flatten(2).mean(2), maps.flatten(2).sum(2))):
                return maps.to(inputs), scores.to(inputs)
    reason = "other operations stand between them or after"
    raise RefusedError(_no_cam(passes.origin.model, reason if pools.maps else "no map of its width is averaged"))
