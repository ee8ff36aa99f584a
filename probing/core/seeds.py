"""Seeds that hang on what is asked for, and on nothing of how the code that asks is written."""

import dataclasses
import numbers
from collections.abc import Iterator, Mapping, Set as AbstractSet

from torch import Tensor

from probing.core.content_ids import bytes_id


def seed_of(*meant: object) -> int:
    """Return a seed of 62 bits for generators, made of what settings mean.

    A number counts by its value. A dataclass counts by its name and by those of its fields that are compared and differ
    from their defaults, so that a new option leaves old seeds alone. A tensor counts by its shape: the last bits of
    what was computed differ between machines. Anything else counts by its name.
    """
    text = "\0".join(part for value in meant for part in _meaning(value))
    return int(bytes_id(text.encode(errors="surrogatepass")), 16) % 2**62


def _meaning(value: object) -> Iterator[str]:
    if value is None or isinstance(value, bool | str):
        yield repr(value)
    elif isinstance(value, numbers.Integral):
        yield repr(int(value))
    elif isinstance(value, numbers.Real):
        number = float(value)
        yield repr(int(number) if number.is_integer() else number)
    elif isinstance(value, Tensor):
        yield f"tensor {tuple(value.shape)}"
    elif isinstance(value, Mapping):
        yield f"map {len(value)}"
        yield from sorted("\0".join((*_meaning(k), *_meaning(v))) for k, v in value.items())
    elif isinstance(value, AbstractSet):
        yield f"set {len(value)}"
        yield from sorted("\0".join(_meaning(item)) for item in value)
    elif isinstance(value, tuple | list):
        yield f"sequence {len(value)}"
        for item in value:
            yield from _meaning(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__
        for field in dataclasses.fields(value):
            held = getattr(value, field.name)
            if field.compare and field.init and not _is_default(field, held):
                yield field.name
                yield from _meaning(held)
        yield "end"
    else:
        yield str(getattr(value, "__name__", type(value).__name__))


def _is_default(field: dataclasses.Field[object], held: object) -> bool:
    if field.default_factory is not dataclasses.MISSING:
        return list(_meaning(held)) == list(_meaning(field.default_factory()))
    if field.default is dataclasses.MISSING:
        return False
    return list(_meaning(held)) == list(_meaning(field.default))
