"""Content ids: what a tensor, a setting or a model *is*, as 32 hexadecimal characters (xxh3-128).

Nothing user-supplied ever names stored work; these ids do. They are computed anew at every call, since a memo on `data_ptr`
and `_version` misses writes through `.data`; `probing.core.model_identity` proves that a model's stands. Ids depend on the
version of Python, whose bytecode they cover, not on the process.
"""

import copyreg
import functools
import inspect
import pickle
import re
import types
import weakref
from collections.abc import Iterator, Mapping, Set as AbstractSet
from enum import Enum
from pathlib import PurePath
from typing import cast

import torch
import xxhash
from torch import Tensor, fx, nn

from probing.core.errors import ProbingError
from probing.core.foreign import left_by_libraries, refuse_foreign, refuse_global_hooks


class FingerprintError(ProbingError, TypeError):
    """A value has no stable content to name it by."""


def bytes_id(data: bytes | bytearray | memoryview) -> str:
    """Return the content id of raw bytes."""
    return xxhash.xxh3_128_hexdigest(data)


def tensor_id(tensor: Tensor) -> str:
    """Return the content id of a tensor: its dtype, shape and values, not its device or layout.

    That of one that lies in pieces in several processes is the whole's; it is put together, so all must ask at once.
    """
    tensor = getattr(tensor, "full_tensor", lambda: tensor)()
    header = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return bytes_id(header + bytes_id(tensor_bytes(tensor)).encode())


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the values as bytes in row-major order, without a copy where the tensor allows it.

    Raises:
        FingerprintError: for a tensor that is sparse or without values (`meta`).
    """
    if tensor.is_quantized and not tensor.is_meta:
        return memoryview(b"".join(bytes(tensor_bytes(part)) for part in _of_quantized(tensor)))
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = f"{tensor.layout} tensor of {tensor.dtype} on {str(tensor.device)!r}"
        raise FingerprintError(f"a {kind} has no plain values to read; make it dense first.")
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one value may have any stride
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _of_quantized(tensor: Tensor) -> tuple[Tensor, ...]:
    """Return whole numbers, and the scales and zero points by which they are meant."""
    if tensor.qscheme() in {torch.per_tensor_affine, torch.per_tensor_symmetric}:
        return tensor.int_repr(), torch.tensor([tensor.q_scale(), tensor.q_zero_point()], dtype=torch.float64)
    axis = torch.tensor([tensor.q_per_channel_axis()])
    return tensor.int_repr(), tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points(), axis


def content_id(value: object) -> str:
    """Return the content id of a setting.

    Scalars, strings, paths, containers, enums, tensors, modules, classes and functions (by their
    code, defaults and what they close over, not by the globals they read) have one. Any other
    object is named by its class and by what `pickle` would keep of it.

    Raises:
        FingerprintError: if part of the value has no stable content, such as a generator, a lock or
            an open file.
    """
    return _digest(_parts(value, ()))


def model_id(model: nn.Module) -> str:
    """Return the content id of what a model computes.

    It covers every parameter and buffer (non-persistent ones too), the modules' plain attributes,
    the code of their classes and the structure, so that one changed weight, stride or edited
    `forward` gives another id. The training flag is not part of it. A model sharded by `fully_shard`
    has the id of the unsharded one; all its processes must ask at once.

    Raises:
        ForeignHookError: if a module carries hooks or methods patched onto the instance, or is
            compiled.
        FingerprintError: if an attribute of a module has no stable content.
    """
    return _digest(_model_parts(model, ()))


def _digest(parts: Iterator[str]) -> str:
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part.encode(errors="surrogatepass"))
        digest.update(b"\0")
    return digest.hexdigest()


def _model_parts(model: nn.Module, above: tuple[int, ...]) -> Iterator[str]:
    """Yield what makes up a model; a module or parameter met again is named by its first path."""
    modules = list(model.named_modules(remove_duplicate=False))
    paths: dict[int, str] = {}
    for path, module in modules:
        paths.setdefault(id(module), path)
    weights = {id(weight): path for path, weight in model.named_parameters()}
    above = (*above, *paths, *weights)
    class_ids: dict[type, str] = {}
    refuse_global_hooks()
    for path, module in modules:
        yield f"module:{path}"
        if paths[id(module)] != path:
            yield f"same:{paths[id(module)]}"
            continue
        refuse_foreign(path, module)
        own = _unsharded_class(type(module))
        if own not in class_ids:
            class_ids[own] = _class_id(own)
        yield class_ids[own]
        yield from _tensor_parts(module, path, weights)
        yield from _attribute_parts(module, above)


def _tensor_parts(module: nn.Module, path: str, weights: dict[int, str]) -> Iterator[str]:
    for name, weight in vars(module)["_parameters"].items():
        yield f"parameter:{name}"
        first = weights.get(id(weight))
        tied = weight is not None and first != f"{path}.{name}".lstrip(".")
        yield f"same:{first}" if tied else _optional_id(weight)
    for name, buffer in vars(module)["_buffers"].items():
        yield f"buffer:{name}"
        yield _optional_id(buffer)


def _optional_id(tensor: Tensor | None) -> str:
    return "none" if tensor is None else tensor_id(tensor)


def _attribute_parts(module: nn.Module, above: tuple[int, ...]) -> Iterator[str]:
    machinery = GRAPH_MACHINERY if isinstance(module, fx.GraphModule) else MACHINERY
    left = left_by_libraries(module)
    for name, value in sorted(_state(module).items()):
        if name not in machinery and name not in left and not _SHARDING.match(name):
            yield f"attribute:{name}"
            yield from _parts(value, above)


# What every module has: containers that are read above, hooks that are refused, the training flag.
# A module compiled in place runs the same code faster, and its copies run uncompiled.
MACHINERY = frozenset(vars(nn.Module())) | {"_compiled_call_impl"}
GRAPH_MACHINERY = MACHINERY | frozenset(vars(fx.GraphModule(nn.Module(), fx.Graph())))
# What `fully_shard` leaves in the attributes of modules that it divides, and of those inside them.
_SHARDING = re.compile("_fsdp_use_orig_params$|_is_fsdp_managed_module$|__composable_api_state_key_")
_FSDP = "torch.distributed.fsdp"


def _state(value: object) -> dict[str, object]:
    """Return an object's attributes, without those that a cached property left there."""
    cls = type(value)
    cached = functools.cached_property
    return {k: v for k, v in vars(value).items() if not isinstance(getattr(cls, k, None), cached)}


def is_sharded(module: nn.Module) -> bool:
    """Whether `fully_shard` has divided a module's own parameters among processes."""
    return _unsharded_class(type(module)) is not type(module)


def _unsharded_class(cls: type) -> type:
    """Return the class that `fully_shard` has made a module's class of, or the class itself."""
    names = [f"{base.__module__}.{base.__qualname__}" for base in cls.__mro__]
    mixed_in = f"{_FSDP}.FSDPModule"
    return cls.__mro__[names.index(mixed_in) + 1] if mixed_in in names else cls


_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device)


def _parts(value: object, above: tuple[int, ...]) -> Iterator[str]:
    """Yield the strings that make up a value's content; `above` are the objects it lies in."""
    if type(value) in _PLAIN:
        yield f"{type(value).__name__}:{value!r}"
    elif id(value) in above:
        yield f"above:{len(above) - above.index(id(value))}"
    elif isinstance(value, Tensor):
        yield f"tensor:{tensor_id(value)}"
    elif isinstance(value, nn.Module):
        yield f"model:{type(value).__name__}"
        yield from _model_parts(value, above)
    elif isinstance(value, bytes):
        yield f"bytes:{bytes_id(value)}"
    elif isinstance(value, PurePath):
        yield f"path:{value}"
    elif isinstance(value, Enum):
        yield f"enum:{type(value).__module__}.{type(value).__qualname__}.{value.name}"
    elif isinstance(value, Mapping | AbstractSet | list | tuple):
        yield from _container_parts(value, (*above, id(value)))
    else:
        yield from _object_parts(value, (*above, id(value)))


def _container_parts(
    value: Mapping[object, object] | AbstractSet[object] | list[object] | tuple[object, ...],
    above: tuple[int, ...],
) -> Iterator[str]:
    builtin = type(value).__module__ == "builtins"
    yield f"{type(value).__name__ if builtin else _class_id(type(value))}:{len(value)}"
    if isinstance(value, AbstractSet):
        yield from sorted(_digest(_parts(item, above)) for item in value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _parts(key, above)
            yield from _parts(item, above)
    else:
        for item in value:
            yield from _parts(item, above)
    if isinstance(value, dict | list | tuple) and hasattr(value, "__dict__"):
        yield from _parts(_state(value), above)


def _object_parts(value: object, above: tuple[int, ...]) -> Iterator[str]:
    if isinstance(value, type):
        yield f"class:{_class_id(value)}"
    elif isinstance(value, types.FunctionType):
        yield f"function:{value.__module__}.{value.__qualname__}"
        yield from _code_parts(value.__code__)
        yield from _parts((value.__defaults__, value.__kwdefaults__), above)
        for name, inner in _closure(value):
            yield name
            yield from _parts(inner, above)
    elif isinstance(value, types.MethodType):
        yield "method"
        yield from _parts((value.__func__, value.__self__), above)
    elif isinstance(value, types.BuiltinFunctionType):
        yield f"builtin:{value.__module__}.{value.__qualname__}"
        yield from _parts(value.__self__, above)
    elif isinstance(value, types.ModuleType):
        yield f"package:{value.__name__}"
    elif isinstance(value, functools.partial):
        yield "partial"
        yield from _parts((value.func, value.args, value.keywords), above)
    elif isinstance(value, weakref.ref):
        yield "weak"
        yield from _parts(value(), above)
    elif isinstance(inner := getattr(value, "__wrapped__", None), types.FunctionType):
        yield f"wrapper:{type(value).__module__}.{type(value).__qualname__}"
        yield from _parts(inner, above)
    else:
        yield from _instance_parts(value, above)


def _instance_parts(value: object, above: tuple[int, ...]) -> Iterator[str]:
    """Yield an object's class and what `pickle` would keep of it."""
    yield f"object:{_class_id(type(value))}"
    reduce = copyreg.dispatch_table.get(type(value))
    try:
        kept = value.__reduce_ex__(4) if reduce is None else reduce(value)
    except (TypeError, ValueError, RuntimeError, NotImplementedError, pickle.PickleError):
        raise FingerprintError(
            f"a {type(value).__qualname__} has no stable content to name stored work by: {value!r}."
        ) from None
    if isinstance(kept, str):
        yield f"global:{kept}"
        return
    make, arguments, state, *rest = (*kept, None, None, None)[:5]
    if isinstance(state, dict) and hasattr(value, "__dict__"):
        state = {k: v for k, v in state.items() if k in _state(value) or k not in vars(value)}
    yield from _parts((make, arguments, state), above)
    yield from _parts([None if items is None else list(items) for items in rest], above)


def _closure(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    cells = function.__closure__ or ()
    for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # a name that its function has not bound yet
            yield name, None


def _code_parts(code: types.CodeType) -> Iterator[str]:
    yield f"code:{code.co_code.hex()}:{code.co_exceptiontable.hex()}:{code.co_names}"
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _code_parts(constant)
        elif isinstance(constant, frozenset):
            yield f"{sorted(constant, key=repr)}"
        else:
            yield repr(constant)


def _class_id(cls: type) -> str:
    return _digest(_class_parts(cls))


def _class_parts(cls: type) -> Iterator[str]:
    """Yield a class's source and code, those of its bases included.

    Of a class of PyTorch only `forward` is read: the library is named by the provenance.
    """
    for base in cls.__mro__:
        yield f"{base.__module__}.{base.__qualname__}"
        library = is_library(base)
        if not library:
            yield _source(base)
        for name, member in vars(base).items():
            if library and name != "forward":
                continue
            function = function_of(member)
            if function is not None:  # follows a class whose methods are replaced at run time
                yield name
                yield from _lenient_parts(function, {id(function)})
            elif _is_constant(member) and not name.startswith("__"):
                yield name
                yield from _parts(member, ())


def _is_constant(value: object) -> bool:
    if type(value) in {tuple, frozenset}:
        return all(map(_is_constant, cast("tuple[object, ...]", value)))
    return type(value) in _PLAIN


def is_library(cls: type) -> bool:
    """Whether a class is PyTorch's or Python's own, of which only `forward` is read."""
    return cls.__module__.split(".")[0] in {"torch", "typing", "abc"}


def function_of(member: object) -> types.FunctionType | None:
    """Return the function behind a member of a class; None for one that is no method or property."""
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, property):
        member = member.fget
    elif isinstance(member, functools.cached_property):
        member = member.func
    return member if isinstance(member, types.FunctionType) else None


def _lenient_parts(function: types.FunctionType, seen: set[int]) -> Iterator[str]:
    """Yield a method's code and that of functions it wraps; all else it closes over is left out."""
    yield from _code_parts(function.__code__)
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    for value in (*defaults, *(inner for _, inner in _closure(function))):
        if type(value) in _PLAIN:
            yield repr(value)
        elif isinstance(value, types.FunctionType) and id(value) not in seen:
            seen.add(id(value))
            yield from _lenient_parts(value, seen)


_SOURCES: weakref.WeakKeyDictionary[type, str] = weakref.WeakKeyDictionary()


def _source(cls: type) -> str:
    """Return a class's source as it was when first asked for; nothing where there is none."""
    if cls not in _SOURCES:
        try:
            _SOURCES[cls] = inspect.getsource(cls)
        except (OSError, TypeError):  # made by `exec` or in a console: its code has to do
            _SOURCES[cls] = ""
    return _SOURCES[cls]
