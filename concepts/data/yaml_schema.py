"""YAML files that people write: read as data only, checked against a schema, refused in one sentence."""

import reprlib
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from probing.core.errors import ProbingError

MAX_BYTES = 16 << 20  # a line an image: more than a hundred thousand images
MAX_DEPTH = 20
MAX_FAULTS = 100  # that are reported one by one
MAX_VALUES = 600_000  # a hundred thousand images of four columns; bounds the time that reading takes

S = TypeVar("S", bound="Schema")


class SchemaError(ProbingError, ValueError):
    """A file is no YAML, or does not say what it must.

    Attributes:
        faults: all that is wrong, where the message tells the first.
    """

    def __init__(self, message: str, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults) or (message,)


class Schema(BaseModel):
    """A part of a file: every key is known, every value of the type stated, nothing is converted."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def read(path: Path | str, schema: type[S]) -> S:
    """Return what a YAML file says.

    Raises:
        SchemaError: if the file is too large, is no plain YAML (anchors, aliases and repeated keys are refused), or
            breaks the schema; the message gives the place and, for an unknown key, the one that was probably meant.
        FileNotFoundError: if there is no such file.
    """
    return validated(parse(path), path, schema)


def parse(path: Path | str) -> Any:  # whatever YAML can say
    """Return the plain values in a YAML file, checked against no schema.

    Raises:
        SchemaError: if the file is too large, or no plain YAML.
        FileNotFoundError: if there is no such file.
    """
    with Path(path).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise SchemaError(f"{str(path)!r} has more bytes than the limit of {MAX_BYTES}: split it.")
    try:
        return _plain(data)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        said = ", ".join(filter(None, [error.context, error.problem]))
        raise SchemaError(f"{str(path)!r} cannot be read: {said}{line}.") from None
    except (yaml.YAMLError, ValueError) as error:  # text that is no UTF-8 among them
        raise SchemaError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}.") from None


def validated(value: object, path: Path | str, schema: type[S]) -> S:
    """Return the values of a file as its schema has them.

    Raises:
        SchemaError: if they break it.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        count = error.error_count()
        faults = [f"{str(path)!r}: {fault}" for fault in _faults(error, schema)]
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise SchemaError(f"{faults[0]}{more}.", [f"{fault}." for fault in faults]) from None


def _plain(data: bytes) -> Any:
    """Parse YAML whose size in memory is that of its text."""
    kind = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    _refuse_bombs(yaml.parse(data, Loader=kind))
    loader = kind(data)
    try:
        node = loader.get_single_node()
        _refuse_repeats(node)
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _refuse_bombs(events: Iterator[yaml.Event]) -> None:
    depth = values = 0
    for event in events:
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if not isinstance(event, yaml.NodeEvent):
            continue
        values += 1
        depth += isinstance(event, yaml.CollectionStartEvent)
        if event.anchor:
            raise SchemaError(f"the anchor or alias {event.anchor!r} is refused, write it out{_line(event)}")
        if depth > MAX_DEPTH:
            raise SchemaError(f"it is nested deeper than {MAX_DEPTH} levels{_line(event)}")
        if values > MAX_VALUES:
            raise SchemaError(f"it holds more than {MAX_VALUES} values: split it")


def _line(place: yaml.Event | yaml.Node) -> str:
    return f" in line {place.start_mark.line + 1}" if place.start_mark else ""


def _refuse_repeats(node: yaml.Node | None) -> None:
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeats(item)
    elif isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if str(key.value) in seen:
                raise SchemaError(f"the key {key.value!r} stands twice{_line(key)}")
            seen.add(str(key.value))
            _refuse_repeats(value)


def _faults(error: ValidationError, schema: type[Schema]) -> list[str]:
    """Return what breaks a schema, unknown keys first: they are often known ones misspelt, which are then missing."""
    ordered = sorted(error.errors(include_url=False), key=lambda e: e["type"] != "extra_forbidden")
    return [_fault(e["type"], e["loc"], e["msg"], e["input"], schema) for e in ordered[:MAX_FAULTS]]


def _fault(kind: str, loc: Sequence[int | str], said: str, got: object, schema: type[Schema]) -> str:
    place = ".".join(map(str, loc))
    if kind == "extra_forbidden":
        near = get_close_matches(str(loc[-1]), _keys(schema), n=2)
        hint = f"; did you mean {' or '.join(map(repr, near))}" if near else ""
        return f"unknown key {place!r}{hint}"
    if kind == "missing":
        return f"the key {place!r} is missing"
    return f"{place or 'the file'!r}: {said[:1].lower()}{said[1:]}, got {_shown(got)}"


def _shown(value: object) -> str:
    """Return the beginning of a value."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    try:
        return short.repr(value)[:80]
    except ValueError:  # Python prints no whole number of thousands of digits
        return "a huge number"


@cache
def _keys(schema: type[Schema]) -> list[str]:
    """Return all keys that a schema and its parts know."""
    definitions = schema.model_json_schema()
    parts = [definitions, *definitions.get("$defs", {}).values()]
    return sorted({key for part in parts for key in part.get("properties", {})})
