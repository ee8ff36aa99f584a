"""Which layer a class activation map is read at."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probing.attribution.score_passes import FLOAT32, Passes
from probing.core.inputs import Batch, kind_of
from probing.models.geometry import Layout, Ran, RefusedError, layers_run, map_size, text_tokens
from probing.models.hooks import capture
from probing.models.layers import resolve
from probing.models.model_cache import remembered, unchanged
from probing.models.readings import Pixel, Reading, Region
from probing.models.scores import Score


@dataclass(frozen=True)
class _Map:
    """A layer that runs once and returns a map, or tokens of one."""

    layer: str
    module: nn.Module
    layout: Layout
    width: int

    @property
    def size(self) -> tuple[int, ...]:
        return self.layout.cells


def cam_layer(score: Score, inputs: Float[Tensor, "n c *size"]) -> str:
    """Return the layer that a class activation map is read at by default: the end of the last stage of maps.

    Of the layers with the resolution of the last convolution, or dense layer at each place, that is the last one, its
    non-linearity and residual sum included; a norm of each place after the stage is the head's. Of tokens it is the last
    layer, norms included, whose patches the score depends on: a last block may read its class token only. A stage is
    named rather than the whole backbone that returns the same.

    Args:
        score: of a model in evaluation mode.
        inputs: one image or more.

    Raises:
        RefusedError: if no layer with a matrix of weights returns a map of more than one place and runs once.
    """
    kind, target = kind_of(score.given(inputs)), score.target
    key = ("cam layer", score.output, target.key if isinstance(target, Reading) else "", kind)
    with unchanged(score.model):
        return remembered(score.model, key, lambda: _cam_layer(score.of(slice(0, 1)), inputs[:1]))


def _cam_layer(score: Score, points: Tensor) -> str:
    model, one = score.model, score.given(points)
    runs = layers_run(model, one)
    calls = Counter(r.layer for r in runs)
    once = [r for r in runs if r.layer and calls[r.layer] == 1]
    if isinstance(score.target, Pixel | Region):
        raise RefusedError(
            f"a {type(score.target).__name__} is read from a map, whose own layer would show but that: name the layer to "
            "look at, such as the encoder's last."
        )
    if score.output is not None or isinstance(score.target, Reading):  # other heads may come last
        once = _on_the_way(score, points, once)
    start, last = _last_matrix(model, one, once)
    near = [m for r in once[start:] if (m := _map(model, one, r)) and m.size == last.size]
    if near[-1].layout.kind != "tokens":
        maps = [m for m in near if m.layout.kind != "tokens"]
        return _stage(_without_head(maps), once, one)
    widths = {near[-1].width, points.shape[-1] if text_tokens(one) is not None else 0}  # a language model's head is wider
    tokens = [r for r in once if len(r.shape) == 3 and r.shape[2] in widths]
    found = [m for r in reversed(tokens) if (m := _map(model, one, r)) and m.size == last.size]
    return _that_matters(score, points, found) or near[-1].layer


def _last_matrix(model: nn.Module, one: Batch, once: Sequence[Ran]) -> tuple[int, _Map]:
    """Return the last convolution or dense layer that returns a map, and where it stands among the layers."""
    for i in reversed(range(len(once))):
        module = resolve(model, once[i].layer)
        if any(True for _ in module.children()) or all(p.ndim < 2 for p in module.parameters()):
            continue
        found = _map(model, one, once[i])
        if found is not None:
            return i, found
    raise RefusedError(
        f"{type(model).__name__} has no convolution or dense layer that returns a map and runs once: name a layer."
    )


def _map(model: nn.Module, one: Batch, ran: Ran) -> _Map | None:
    """Return how a layer's output is read as a map of several places, if it is one for sure."""
    if len(ran.shape) not in {3, one.ndim} or ran.shape[0] != 1:  # windows stand in the place of examples
        return None
    try:
        layout = Layout.of(model, one, ran.layer)
    except RefusedError:
        return None
    width = ran.shape[layout.axis]
    several = math.prod(layout.cells) > 1
    return _Map(ran.layer, resolve(model, ran.layer), layout, width) if several else None


def _that_matters(score: Score, one: Tensor, tokens: Sequence[_Map]) -> str | None:
    """Return the first of some layers whose patch tokens the score depends on."""
    layers = [m.layer for m in tokens]
    with torch.inference_mode(False), torch.enable_grad():
        passes = Passes.of(score, one, "auto", FLOAT32, layers)
        with capture(passes.score.model, layers, graph=True) as kept:
            value = passes.value(one, None)
        slopes = torch.autograd.grad(value.sum(), [kept[t] for t in layers], allow_unused=True)
    for found, slope in zip(tokens, slopes, strict=True):
        # Of a text the last layer's may be one token alone, the one that is read.
        least = 2 if len(found.size) == 1 and found.size[0] > 1 else 1
        if slope is not None and int(found.layout.maps(slope).any(1).sum()) >= least:
            return found.layer
    return None


def _on_the_way(score: Score, one: Tensor, once: Sequence[Ran]) -> list[Ran]:
    """Return the layers with places whose outputs the score depends on."""
    ranks = {3, score.given(one).ndim}
    once = [r for r in once if len(r.shape) in ranks and r.shape[0] == 1]
    layers = [r.layer for r in once]
    with torch.inference_mode(False), torch.enable_grad():
        passes = Passes.of(score.of(slice(0, 1)), one, "auto", FLOAT32, layers)
        at = one.detach().clone()
        with capture(passes.score.model, layers, graph=True) as kept:
            value = passes.value(at.requires_grad_(at.is_floating_point()), None)
        reached = [r for r in once if kept[r.layer].requires_grad]
        slopes = torch.autograd.grad(value.sum(), [kept[r.layer] for r in reached], allow_unused=True)
    return [r for r, slope in zip(reached, slopes, strict=True) if slope is not None]


def _without_head(maps: list[_Map]) -> list[_Map]:
    """Leave out a norm of each place that stands outside every layer after it, and what follows."""
    for i, found in enumerate(maps):
        inside = any(found.layer.startswith(f"{m.layer}.") for m in maps[i + 1 :])
        if i and isinstance(found.module, nn.LayerNorm | nn.RMSNorm) and not inside:
            return maps[:i]
    return maps


def _stage(maps: list[_Map], once: Sequence[Ran], one: Batch) -> str:
    """Return the last map's layer; in place of a sequence of several stages the last of these, which returns the same."""
    best, size = maps[-1], tuple(one.shape[2:])
    for found in reversed(maps[:-1]):
        inside = {map_size(r, size) for r in once if r.layer.startswith(f"{best.layer}.")}
        if not isinstance(best.module, nn.Sequential) or len(inside - {None}) < 3:
            break
        if found.layer.startswith(f"{best.layer}."):
            best = found
    return best.layer
