"""What all errors of the suite have in common: one base class, and how to mend what is wrong.

Each error also derives from the builtin that fits it, so `except ValueError` goes on to work. An error that is no
`ProbingError` was not foreseen by the suite: it comes from the user's own code, from a library, or is a bug here.
"""

import sysconfig
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Mend:
    """One way to mend what is wrong: what to do, and the argument that does it.

    Attributes:
        do: as an order that "by" can follow, such as "leave such out".
        argument: as Python writes it, such as "on_error='skip'"; its value is … where the user chooses it.
    """

    do: str
    argument: str

    def __str__(self) -> str:
        return f"{self.do} by {self.argument}"


class ProbingError(Exception):
    """Base of all errors of the suite: something the user can mend, told in a sentence or two.

    Args:
        message: what is wrong, the value got, and how to mend it. With `mends` it has no full stop: they follow, after
            "or", and right after a colon.
        mends: ways to mend it that are arguments in Python; each front end words them for its users.
    """

    def __init__(self, *message: object, mends: Sequence[Mend] = ()) -> None:
        super().__init__(*message)
        self.mends = tuple(mends)

    def __str__(self) -> str:
        return self.worded(str)

    def worded(self, word: Callable[[Mend], str]) -> str:
        """Return the message with each mend as `word` puts it; one that it has no words for is left out."""
        said = super().__str__() if len(self.args) != 1 else str(self.args[0])  # KeyError's is a repr
        if not self.mends:
            return said
        ways = ", or ".join(way for way in map(word, self.mends) if way)
        if said.endswith(":"):
            return f"{said} {ways}." if ways else f"{said[:-1]}."
        return f"{said}, or {ways}." if ways else f"{said}."


class ArgumentError(ProbingError, ValueError):
    """An argument, or a setting of a method, that has no meaning or does not fit the others."""


class OutOfRangeError(ProbingError, IndexError):
    """An index of a row, an image or an example that there is none of."""


def line_of_users(error: BaseException) -> str:
    """Return which line of the user's own code an error arose in, or nothing if in ours.

    What counts is the innermost line that is neither a library's nor generated: an error deep in PyTorch is told of
    whoever called it there.
    """
    ours = Path(__file__).parents[2]
    packages = tuple(str(ours / name) + "/" for name in ("probing", "concepts"))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        place = str(Path(frame.filename))
        if place.startswith(packages):
            return ""
        if not (place.startswith(("<", *_STANDARD)) or _INSTALLED.intersection(Path(place).parts)):
            return f"{frame.filename}:{frame.lineno}, in {frame.name}"
    return ""


_STANDARD = tuple(str(Path(sysconfig.get_path(kind))) + "/" for kind in ("stdlib", "platstdlib"))
_INSTALLED = {"site-packages", "dist-packages"}
