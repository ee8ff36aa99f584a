"""What others put on a model besides its weights: hooks, replaced methods, compiled code.

None of it is told by the weights, so a model that carries it is refused. Two libraries leave what only watches, or brings
inputs to where the weights are; that is let pass, a copy goes without it, and `probing.models.consistency` proves at the
model's first use that the copy gives the same output.
"""

import functools
import types
from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from probing.core.errors import ProbingError


class ForeignHookError(ProbingError, RuntimeError):
    """A model carries hooks, patched methods or compiled code, which its weights do not tell."""


HOOKS = ("forward_hooks", "forward_pre_hooks", "backward_hooks", "backward_pre_hooks")
_FSDP = "torch.distributed.fsdp"
# transformers hooks its layers once hidden states were asked for; the hooks keep outputs while a call asks for them.
_CAPTURING, _IS_CAPTURING = (
    "transformers.utils.output_capturing",
    "_output_capturing_hooks_installed",
)
# accelerate puts its hook and the forward that it wraps on the instance; of these it only moves inputs.
_ACCELERATE, _WRAPPED, _ITS_HOOK = "accelerate", "_old_forward", "_hf_hook"
_PLACES = "hf_device_map"
_MOVERS = {f"accelerate.hooks.{name}" for name in ("ModelHook", "AlignDevicesHook")}
_WAYS = {
    "torch.nn.utils.prune": "make pruning permanent by torch.nn.utils.prune.remove",
    "torch.nn.utils.weight_norm": (
        "take it off by torch.nn.utils.remove_weight_norm, or use "
        "torch.nn.utils.parametrizations.weight_norm, which needs none"
    ),
    "torch.nn.utils.spectral_norm": (
        "take it off by torch.nn.utils.remove_spectral_norm, or use "
        "torch.nn.utils.parametrizations.spectral_norm, which needs none"
    ),
}


def refuse_global_hooks() -> None:
    """Raise `ForeignHookError` for hooks that run in every model."""
    for kind in HOOKS:
        if getattr(torch_module, f"_global_{kind}", None):
            raise ForeignHookError(
                f"PyTorch carries global {kind.replace('_', ' ')}, which run in every model: remove them first."
            )


def refuse_foreign(path: str, module: nn.Module) -> None:
    """Raise `ForeignHookError` for a module that carries anything that its weights do not tell."""
    where = f"{repr(path) if path else 'the model'} ({type(module).__name__})"
    attributes = vars(module)
    if isinstance(module, torch.jit.ScriptModule):
        raise ForeignHookError(f"{where} is TorchScript, whose layers can't be read: pass the Python model.")
    if "_orig_mod" in attributes["_modules"] and "dynamo_ctx" in attributes:
        raise ForeignHookError(f"{where} is compiled: pass the model that torch.compile was given.")
    for kind in HOOKS:
        for hook in attributes[f"_{kind}"].values():
            if not _only_watches(kind, hook) and not _module_of(hook).startswith(_FSDP):
                raise ForeignHookError(
                    f"{where} carries a {kind.replace('_', ' ')[:-1]}, {_name(hook)}, and what that does is not told by the "
                    f"weights: {_way_out(hook)}."
                )
    left = left_by_libraries(module)
    replaced = [k for k, v in attributes.items() if callable(v) and k not in left and k not in _OWN]
    replaced = [name for name in replaced if callable(getattr(type(module), name, None))]
    if replaced and _ITS_HOOK in attributes:
        raise ForeignHookError(
            f"{where} runs through accelerate's {type(attributes[_ITS_HOOK]).__name__}: take it off by "
            "accelerate.hooks.remove_hook_from_module(model, recurse=True)."
        )
    if replaced and "_original_forward" in attributes:
        raise ForeignHookError(
            f"{where} computes in accelerate's mixed precision: pass accelerator.unwrap_model(model, "
            "keep_fp32_wrapper=False)."
        )
    if replaced:
        raise ForeignHookError(f"{where} has the method {replaced[0]!r} replaced on the instance; subclass it instead.")


def left_by_libraries(module: nn.Module) -> frozenset[str]:
    """Return the attributes that libraries left on a module, and that change nothing it computes."""
    attributes = vars(module)
    found = {_IS_CAPTURING, _PLACES} & attributes.keys()
    if _only_moves(module):
        found |= {_ITS_HOOK, _WRAPPED, "forward"}
    found |= {name for name, value in attributes.items() if _warns(value)}
    return frozenset(found)


def is_watched(model: nn.Module) -> bool:
    """Whether any part of a model carries what libraries leave."""
    return any(left_by_libraries(m) or _watchers(m) for m in model.modules())


def take_off(copy: nn.Module) -> None:
    """Take off a copy what libraries leave; a library puts it on anew where the copy's own settings ask for it."""
    for module in copy.modules():
        for key in _watchers(module):
            del module._forward_hooks[key]
        for name in left_by_libraries(module):
            del vars(module)[name]


_OWN = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}


def _watchers(module: nn.Module) -> list[int]:
    hooks: Mapping[int, object] = module._forward_hooks
    return [key for key, hook in hooks.items() if _only_watches("forward_hooks", hook)]


def _only_watches(kind: str, hook: object) -> bool:
    return kind == "forward_hooks" and _module_of(hook) == _CAPTURING


def _only_moves(module: nn.Module) -> bool:
    """Whether accelerate wraps the forward of a module's own class in hooks that only move inputs."""
    attributes = vars(module)
    wrapper, inner = attributes.get("forward"), attributes.get(_WRAPPED)
    return (
        isinstance(wrapper, functools.partial)
        and _module_of(wrapper.func) == f"{_ACCELERATE}.hooks"
        and isinstance(inner, types.MethodType)
        and inner.__self__ is module
        and inner.__func__ is getattr(type(module), "forward", None)
        and _moves(attributes.get(_ITS_HOOK))
    )


def _moves(hook: object) -> bool:
    kind = f"{type(hook).__module__}.{type(hook).__qualname__}"
    if kind == f"{_ACCELERATE}.hooks.SequentialHook":
        return all(map(_moves, getattr(hook, "hooks", [None])))
    return kind in _MOVERS and not any(getattr(hook, k, False) for k in ("offload", "no_grad"))


def _warns(value: object) -> bool:
    """Whether a method is accelerate's, which warns before it moves the model that it was made for."""
    made_in = getattr(value, "__globals__", {}).get("__name__", "")
    return hasattr(value, "__wrapped__") and str(made_in) == f"{_ACCELERATE}.big_modeling"


def _module_of(hook: object) -> str:
    return str(getattr(hook, "__module__", ""))


def _name(hook: object) -> str:
    function = hook.func if isinstance(hook, functools.partial) else hook
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{name!r} of {_module_of(function)}"


def _way_out(hook: object) -> str:
    own = "remove it, by the handle that registering it returned"
    return next((way for module, way in _WAYS.items() if _module_of(hook) == module), own)
