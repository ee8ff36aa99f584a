"""What a model is given: one tensor, for now. What is not one is refused with how to make it one."""

from collections.abc import Mapping

from torch import Tensor

from probing.core.errors import ProbingError


class InputError(ProbingError, ValueError):
    """Inputs that can't be explained: none, NaN, or of a kind or shape that the method or the model does not take."""


def one_tensor(inputs: object) -> Tensor:
    """Return inputs that are one tensor.

    Raises:
        InputError: for anything else, with how to make it one.
    """
    if not isinstance(inputs, Tensor):
        raise InputError(not_one_tensor(inputs))
    return inputs


def not_one_tensor(given: object, what: str = "inputs") -> str:
    """Return the sentence that refuses what is no tensor, with the way out.

    Args:
        given: a mapping, as tokenisers return, several tensors, an array, a data set …
        what: it is, at the start of the sentence.
    """
    start = f"{what} must be one tensor [n, …], got"
    if isinstance(given, Mapping):
        first, *rest = (str(key) for key in given) if given else ("x",)
        others = "".join(f", {name}=…" for name in rest)
        return (
            f"{start} a {type(given).__name__} of {[str(key) for key in given]}: wrap the model in a module that takes one "
            f"of them and makes the rest of it, as in "
            f"`def forward(self, {first}): return self.model({first}={first}{others})`."
        )
    if isinstance(given, tuple | list) and given and all(isinstance(x, Tensor) for x in given):
        shapes = [tuple(x.shape) for x in given]
        return f"{start} a {type(given).__name__} of {len(given)} tensors: {_way_out_of_several(given, shapes)}."
    return f"{start} {type(given).__name__}: as_examples(…).load(range(n)) of probing.data.examples makes one."


def _way_out_of_several(given: object, shapes: list[tuple[int, ...]]) -> str:
    if isinstance(given, list) and len(set(shapes)) == 1:
        return "torch.stack or torch.cat makes them one"
    if isinstance(given, list):
        return f"bring them to one size and stack them, or give them one at a time (their shapes are {shapes[:3]})"
    names = ["first", "second", "third"][: len(shapes)]
    return (
        "for a model of several inputs wrap it in a module that takes one and holds the others, as in "
        f"`def forward(self, first): return self.model(first, {', '.join(f'self.{n}' for n in names[1:]) or '…'})`"
    )
