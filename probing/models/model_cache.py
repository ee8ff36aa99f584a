"""What was made of a model is kept as long as the model computes the same."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import RLock, get_ident
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

from torch import nn

from probing.core import model_identity

T = TypeVar("T")

_KNOWN: ContextVar[tuple[tuple[nn.Module, str], ...]] = ContextVar("known models", default=())


@contextmanager
def unchanged(model: nn.Module) -> Iterator[str]:
    """Compute the model's content id, and trust it inside the block: a method that calls others asks once."""
    name = identity(model)
    with trusted(model, name):
        yield name


@contextmanager
def trusted(model: nn.Module, name: str) -> Iterator[None]:
    """Trust inside the block that a model still has the content id that the work at hand began with."""
    token = _KNOWN.set((*_KNOWN.get(), (model, name)))
    try:
        yield
    finally:
        _KNOWN.reset(token)


def identity(model: nn.Module) -> str:
    """Return the content id of what a model computes."""
    return next((name for known, name in _KNOWN.get() if known is model), "") or model_identity.identity(model)


_MOST_REMEMBERED = 16
_ONE_AT_A_TIME = RLock()
_REMEMBERED: WeakKeyDictionary[nn.Module, tuple[str, dict[Hashable, object]]] = WeakKeyDictionary()


def remembered(model: nn.Module, key: Hashable, make: Callable[[], T]) -> T:
    """Return what was made of a model before, under a key, as long as the model computes the same.

    Each thread has its own: passes of two would meet in the hooks of one copy. What is made may pass the model itself, so
    that one thread makes at a time.
    """
    name = identity(model)
    if model not in _REMEMBERED or _REMEMBERED[model][0] != name:
        _REMEMBERED[model] = (name, {})
    made, own = _REMEMBERED[model][1], (get_ident(), key)
    if own in made:
        return cast("T", made[own])
    with _ONE_AT_A_TIME:
        found = made[own] = make()
        if len(made) > _MOST_REMEMBERED:  # copies hold weights of their own where BatchNorm is folded
            del made[next(iter(made))]
    return found
