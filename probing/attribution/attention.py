"""What attention passes on: maps of tokens made of attention weights, with and without their gradients."""

import inspect
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from probing.attribution.base import Attribution, Demand, Family, LocalMethod
from probing.attribution.lrp.tape import place, running_module
from probing.attribution.score_passes import FLOAT32, BatchSize, Passes
from probing.core.errors import Mend
from probing.models.geometry import Layout, RefusedError, layers_run
from probing.models.model_cache import unchanged
from probing.models.precision import Precision, agree
from probing.models.scores import Score


@dataclass(frozen=True)
class _AttentionMap(LocalMethod):
    """What maps made of attention weights have in common.

    Weights are seen as the pass computes them: as a softmax over tokens, in `scaled_dot_product_attention`, or in
    `nn.MultiheadAttention`; where kernels would hide them, separate products stand in, in the pass only. Of images the map
    lies at the patches, and `diagnostics["prefix"]` is what class tokens before them get; of texts it has a value for each
    token. It is no part of the score: signs are positive, and units those of the method.

    Attributes:
        token: the position that the score is read at, whose row is the map; by default all those on which the score
            depends in the last attention (a class token, or every token where they are averaged), as a mean.
        grid: rows and columns of patches, where their number does not tell.
        batch_size: examples of a pass.
        precision: how passes run.
    """

    family: ClassVar[Family] = "backprop"
    answers: ClassVar[tuple[int, ...]] = (1,)
    demands: ClassVar[tuple[Demand, ...]] = ("gradients", "attention")
    takes_integers: ClassVar[bool] = True

    signed: ClassVar[bool] = True

    token: int | None = None
    grid: tuple[int, ...] | None = None
    batch_size: BatchSize = "auto"
    precision: Precision = FLOAT32

    def explain(self, score: Score, inputs: Shaped[Tensor, "n *shape"]) -> Attribution:
        """Return maps `[n, 1, h, w]` of images, at the patches, or `[n, tokens, 1]` of texts.

        Raises:
            RefusedError: if no attention weights are seen, or not all of one pass have a row and a column for each token,
                as where tokens attend within windows; the message names the module.
        """
        with unchanged(score.model):
            passes = Passes.of(score, inputs, self.batch_size, self.precision)
            parts = [self._rows(passes, inputs, part) for part in passes.slices(len(inputs))]
            value, rows, read = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            values, facts = self._placed(score, inputs, rows)
            return passes.attribution(
                self,
                inputs,
                values.contiguous(),
                value,
                diagnostics={"tokens_read": read} | facts.pop("diagnostics"),
                signed=self.signed,
                **facts,
            )

    def _rows(
        self, passes: Passes, inputs: Tensor, part: slice
    ) -> tuple[Float[Tensor, " n"], Float[Tensor, "n tokens"], Tensor]:
        """Return the scores, the map of every token, and how many tokens the score is read at."""
        rows, points = torch.arange(len(inputs))[part], inputs[part]
        with torch.inference_mode(False), torch.enable_grad():
            seen = AttentionWeights(passes.score.model, len(points))
            with seen:
                value = passes.value(points, rows)
            seen.refuse_unfit()
            if not value.requires_grad:
                raise RefusedError(_PASSES_BY)
            with passes.precision.gradients.arithmetic(passes.device):
                slopes = torch.autograd.grad(value.sum(), seen.weights, allow_unused=True)
        passes.n_backward += len(points)
        if part.start == 0:
            with torch.no_grad():
                alone = passes.value(points[:1], rows[:1])
            if not agree(alone, value[:1].detach()):
                raise RefusedError(
                    f"{type(passes.origin.model).__name__} computes another score where its attention is done by separate "
                    "products: its own kernel does more than that."
                )
        weights = [w.detach().to(value.dtype) for w in seen.weights]
        steep = [torch.zeros_like(w) if s is None else s.to(w) for w, s in zip(weights, slopes, strict=True)]
        read = self._read(steep, len(points))
        found = self._mix(weights, steep)
        share = read.to(found) / read.sum(1, keepdim=True).to(found)
        near = inputs if inputs.is_floating_point() else value
        return value.detach().to(near), (share[:, None] @ found)[:, 0].to(near), read.sum(1).to(inputs.device)

    def _read(self, slopes: Sequence[Float[Tensor, "n heads t t"]], n: int) -> Bool[Tensor, "n t"]:
        """Return the tokens whose rows make up the map."""
        tokens = slopes[-1].shape[-1]
        if self.token is None:
            last = next((s for s in reversed(slopes) if bool(s.any())), None)
            if last is None:
                raise RefusedError(_PASSES_BY)
            read = last.ne(0).any(3).any(1)
            if not bool(read.any(1).all()):
                row = int((~read.any(1)).nonzero()[0])
                raise RefusedError(
                    f"the score of input {row} of a batch does not change with any weight of the last attention, so it "
                    "can't be told at which token it is read:",
                    mends=[Mend("name that", "token=…")],
                )
            return read
        if not -tokens <= self.token < tokens:
            raise RefusedError(f"token {self.token} is out of range: attention is among {tokens} tokens.")
        read = torch.zeros(n, tokens, dtype=torch.bool, device=slopes[-1].device)
        read[:, self.token] = True
        return read

    def _placed(self, score: Score, inputs: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the values of tokens where the inputs have their place."""
        tokens = rows.shape[1]
        if inputs.ndim < 4 and inputs.shape[1] == tokens:
            return rows[:, :, None], {"diagnostics": {}, "layout": f"{tokens} tokens"}
        if inputs.ndim < 3:
            raise RefusedError(f"attention is among {tokens} tokens, of which it can't be told where they lie in the input.")
        whole = score.given(inputs)
        ran = layers_run(score.model, whole)
        layer = next((r.layer for r in reversed(ran) if r.layer and r.shape[:2] == (1, tokens) and len(r.shape) == 3), None)
        if layer is None:
            raise RefusedError(
                f"no layer returns the {tokens} tokens that attend to each other: where they lie is not known."
            )
        layout = Layout.of(score.model, whole, layer, self.grid)
        prefix = rows[:, : tokens - math.prod(layout.cells)].sum(1)
        facts = {"diagnostics": {"prefix": prefix}, "layout": str(layout), "layer": layer, "geometry": layout.geometry}
        return layout.maps(rows[:, :, None]), facts

    @abstractmethod
    def _mix(
        self, weights: Sequence[Float[Tensor, "n heads t t"]], slopes: Sequence[Float[Tensor, "n heads t t"]]
    ) -> Float[Tensor, "n t t"]:
        """Return what each token (row) gets of each (column)."""


_PASSES_BY = "the score depends on no attention weight: what it reads passes attention by."


@dataclass(frozen=True)
class AttentionRollout(_AttentionMap):
    """The shares in which attention and residual sums mix the tokens, layer after layer (Abnar & Zuidema 2020, sec. 3).

    Heads are averaged, the residual sum counts as much as attention, and layers are multiplied: `Π (A + I) / 2`. Shares are
    positive and, with those of class tokens, add up to 1. They tell which tokens can be mixed in, not whether they speak for
    the class: of all classes that are read at the same token the map is the same.
    """

    signed: ClassVar[bool] = False

    def _mix(self, weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
        mixed = torch.eye(weights[0].shape[-1]).to(weights[0]).expand(len(weights[0]), -1, -1)
        for layer in weights:
            share = layer.mean(1) + torch.eye(layer.shape[-1]).to(layer)
            mixed = share / share.sum(2, keepdim=True) @ mixed
        return mixed


@dataclass(frozen=True)
class AttentionRelevance(_AttentionMap):
    """Attention weights times their gradients, where positive, from layer to layer (Chefer et al. 2021, eq. 5 and 6).

    `R ← R + E_h[(∇A ⊙ A)⁺] R` from the identity, whose own part (each token's relevance to itself) is left out. The
    gradients are the score's, so maps of two classes differ. Values are in score units, but do not add up to the score.
    """

    def _mix(self, weights: Sequence[Tensor], slopes: Sequence[Tensor]) -> Tensor:
        one = torch.eye(weights[0].shape[-1]).to(weights[0])
        found = one.expand(len(weights[0]), -1, -1)
        for layer, slope in zip(weights, slopes, strict=True):
            found = found + (layer * slope).relu().mean(1) @ found
        return found - one


@dataclass
class AttentionWeights(TorchFunctionMode):
    """Keeps the weights of every attention of a pass, in its graph; done in one step, it is done by separate products.

    Attributes:
        model: that runs.
        rows: examples of the pass.
        weights: `[n, heads, tokens, tokens]` each, in the order of the pass.
        places: the modules that they were seen in.
    """

    model: nn.Module
    rows: int
    weights: list[Tensor] = field(default_factory=list)
    places: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._names = {id(module): name for name, module in self.model.named_modules()}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        """Pass a call on, or do it in steps if it is attention."""
        named, name = kwargs or {}, getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return self._attend(*args, **named)
        if name == "multi_head_attention_forward":
            given = inspect.signature(func).bind(*args, **named)
            given.apply_defaults()
            return self._attend_in_heads(**given.arguments)
        found = func(*args, **named)
        last = name == "softmax" and isinstance(found, Tensor) and found.ndim in {3, 4} and found.shape[-1] > 1
        if last and (named.get("dim", args[1] if len(args) > 1 else None) in {-1, found.ndim - 1}):
            return self._keep(found)
        return found

    def refuse_unfit(self) -> None:
        """Raise `RefusedError` if the weights are not those of one set of tokens in every layer."""
        if not self.weights:
            raise RefusedError(
                f"no attention weights were seen in {type(self.model).__name__}: it has none, or a kernel of its own hides "
                "them; a model of transformers shows them when loaded with attn_implementation='eager'."
            )
        tokens = self.weights[-1].shape[-1]
        for where, weights in zip(self.places, self.weights, strict=True):
            shape = tuple(weights.shape)
            if shape[0] != self.rows or shape[2] != shape[3] or shape[3] != tokens:
                raise RefusedError(
                    f"{where} has attention weights of shape {shape} for {self.rows} examples, and the last attention is "
                    f"among {tokens} tokens: windows, pooled or other tokens have no one map; use GradCAM."
                )

    def _keep(self, weights: Tensor) -> Tensor:
        if not weights.requires_grad:
            weights.requires_grad_()
        module = running_module() or self.model
        self.places.append(place(self._names.get(id(module), ""), type(module).__name__))
        if weights.ndim == 4:
            self.weights.append(weights)
            return weights
        heads = weights.view(self.rows, -1, *weights.shape[1:]) if len(weights) % self.rows == 0 else weights[:, None]
        self.weights.append(heads)  # what goes on is made of it, so that it has a gradient
        return heads.reshape(weights.shape)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Do what `scaled_dot_product_attention` does."""
        if dropout_p:
            raise RefusedError("attention drops weights by chance: its map is no fixed one.")
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[-3] // t.shape[-3], -3) for t in (key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        hidden = None
        if is_causal:
            hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        elif attn_mask is not None and attn_mask.dtype == torch.bool:
            hidden = ~attn_mask
        elif attn_mask is not None:
            scores = scores + attn_mask
        if hidden is not None:
            scores = scores.masked_fill(hidden, -torch.inf)
        nothing = (scores == -torch.inf).all(-1, keepdim=True)  # a row that may see nothing gets nothing
        weights = scores.masked_fill(nothing, 0).softmax(-1) * ~nothing
        weights = self._keep(weights)
        return weights @ value

    def _attend_in_heads(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        num_heads: int,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        **given: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Do what `multi_head_attention_forward` does with `[tokens, n, features]`."""
        if query.ndim != 3 or any(given[k] is not None for k in ("bias_k", "bias_v", "static_k", "static_v")):
            raise RefusedError("nn.MultiheadAttention without a batch, or with keys of its own, has no map of tokens.")
        if given["add_zero_attn"] or (given["training"] and given["dropout_p"]):
            raise RefusedError("nn.MultiheadAttention that adds a token or drops weights has no map of tokens.")
        bias = given["in_proj_bias"]
        biases = (None,) * 3 if bias is None else bias.chunk(3)
        separate = [given[f"{k}_proj_weight"] for k in "qkv"]
        maps = separate if given["use_separate_proj_weight"] else given["in_proj_weight"].chunk(3)
        n = query.shape[1]
        q, k, v = (
            functional.linear(t, w, b).view(len(t), n, num_heads, -1).permute(1, 2, 0, 3)
            for t, w, b in zip((query, key, value), maps, biases, strict=True)
        )
        mask = _additive(attn_mask, q)
        if mask is not None and mask.ndim == 3:
            mask = mask.view(n, num_heads, *mask.shape[1:])
        if key_padding_mask is not None:
            padding = _additive(key_padding_mask, q)
            assert padding is not None
            mask = padding[:, None, None] if mask is None else mask + padding[:, None, None]
        out = self._attend(q, k, v, mask).permute(2, 0, 1, 3).reshape(len(query), n, -1)
        out = functional.linear(out, given["out_proj_weight"], given["out_proj_bias"])
        if not given["need_weights"]:
            return out, None
        weights = self.weights[-1]
        return out, weights.mean(1) if given["average_attn_weights"] else weights


def _additive(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """Return a mask of `nn.MultiheadAttention`, True where tokens are hidden, as numbers to be added."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
