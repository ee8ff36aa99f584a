"""YAML files that people write: read as data only, checked against a schema, refused in one sentence."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

MAX_BYTES = 16 << 20  # a line an image: more than a hundred thousand images
MAX_DEPTH = 20

S = TypeVar("S", bound="Schema")


class SchemaError(ValueError):
    """A file is no YAML, or does not say what it must."""


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
    data = Path(path).read_bytes()
    if len(data) > MAX_BYTES:
        raise SchemaError(
            f"{str(path)!r} has {len(data)} bytes, over the limit of {MAX_BYTES}: split it."
        )
    try:
        value = _plain(data)
    except yaml.MarkedYAMLError as error:
        line = f" in line {error.problem_mark.line + 1}" if error.problem_mark else ""
        said = ", ".join(filter(None, [error.context, error.problem]))
        raise SchemaError(f"{str(path)!r} cannot be read: {said}{line}.") from None
    except (yaml.YAMLError, ValueError) as error:  # text that is no UTF-8 among them
        raise SchemaError(f"{str(path)!r} cannot be read: {str(error).splitlines()[0]}.") from None
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        raise SchemaError(f"{str(path)!r}: {_sentence(error, schema)}.") from None


def _plain(data: bytes) -> Any:
    """Parse YAML whose size in memory is that of its text."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(data, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.NodeEvent) and event.anchor:
            raise ValueError(
                f"the anchor or alias {event.anchor!r} is refused, write it out{_line(event)}"
            )
        if depth > MAX_DEPTH:
            raise ValueError(f"it is nested deeper than {MAX_DEPTH} levels{_line(event)}")
    _refuse_repeats(yaml.compose(data, Loader=loader))
    return yaml.load(data, Loader=loader)


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
                raise ValueError(f"the key {key.value!r} stands twice{_line(key)}")
            seen.add(str(key.value))
            _refuse_repeats(value)


def _sentence(error: ValidationError, schema: type[Schema]) -> str:
    # an unknown key first: it is often a known one misspelt, which is then missing
    first, *others = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    place = ".".join(str(part) for part in first["loc"])
    more = f" (and {len(others)} more)" if others else ""
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        near = get_close_matches(key, sorted(_keys(schema)), n=2)
        hint = f"; did you mean {' or '.join(map(repr, near))}" if near else ""
        return f"unknown key {place!r}{hint}{more}"
    if first["type"] == "missing":
        return f"the key {place!r} is missing{more}"
    got = f", got {first['input']!r:.80}"
    return f"{place or 'the file'!r}: {first['msg'][:1].lower()}{first['msg'][1:]}{got}{more}"


def _keys(schema: type[Schema]) -> set[str]:
    """Return all keys that a schema and its parts know."""
    definitions = schema.model_json_schema()
    parts = [definitions, *definitions.get("$defs", {}).values()]
    return {key for part in parts for key in part.get("properties", {})}
