"""A way out of dead rectifiers: for the first steps, gradients pass where they would wake a unit up."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from probing.attribution.rectifiers import rectifier_ceiling


class Redirected(TorchFunctionMode):
    """Lets gradients through closed rectifiers inside the block, for examples whose gradient would vanish there.

    Where a whole example's gradient at a rectifier is zero, it is blocked only where it would push a
    negative input lower, or one above the ceiling higher (lucid, `misc/redirected_relu_grad.py`). Other
    examples keep their gradient. Gradients are taken to be of what is maximised. Modules and functions
    alike.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        """Put the rule on a call of a rectifier; other calls pass."""
        named = dict(kwargs or {})
        x = args[0] if args else named.get("input")
        ceiling = rectifier_ceiling(getattr(func, "__name__", ""), args[1:], named)
        if ceiling is None or not isinstance(x, Tensor) or not x.requires_grad:
            return func(*args, **named)
        if func.__name__.endswith("_") or named.get("inplace") or True in args[1:2]:
            return x.copy_(_Rectifier.apply(x.clone(), ceiling))  # its caller may read `x` itself
        return _Rectifier.apply(x, ceiling)


class _Rectifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, ceiling):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        ctx.ceiling = ceiling
        return x.clamp(min=0, max=None if ceiling == torch.inf else ceiling)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        (x,) = ctx.saved_tensors
        plain = gradient.masked_fill((x <= 0) | (x >= ctx.ceiling), 0)
        dead = ~plain.flatten(1).any(1)
        if not dead.any():
            return plain, None
        worse = ((x < 0) & (gradient < 0)) | ((x >= ctx.ceiling) & (gradient > 0))
        kept = gradient.masked_fill(worse, 0)
        return torch.where(dead.reshape(-1, *[1] * (x.ndim - 1)), kept, plain), None
