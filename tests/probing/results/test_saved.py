"""What a version has saved loads for ever: a small result of every kind, as the version wrote it that brought it.

The files in `tests/saved` are never made again: where one no longer loads, the reader is at fault.
"""

import dataclasses
import json
import math
from collections.abc import Iterator
from pathlib import Path

import made_up
import pytest
from safetensors.torch import load_file
from torch import Tensor
from where import SAVED

from concepts.auditing.measurement.results import AuditResults
from probing.results.result import Result, describe, rebuild
from probing.results.saved_names import class_of, name_of

FOLDERS = sorted(path.parent for path in SAVED.glob("*/*/result.json"))
METHODS = json.loads((SAVED / "0.1.0" / "methods.json").read_text(encoding="utf-8"))


def differences(found: object, said: object, tensors: dict[str, Tensor], where: str = "") -> Iterator[str]:
    """Yield where an object is not what a document says, read here by rules of its own."""
    if isinstance(said, dict) and ("map" in said or "class" in said):
        if "class" in said and type(found) is class_of(said["class"]):
            found = {name: getattr(found, name) for name in said["fields"]}
        said = said["map"] if "map" in said else said["fields"]
        inner = found if isinstance(found, dict) else {}
        if list(inner) != list(said):
            yield where
        for name in set(inner) & set(said):
            yield from differences(inner[name], said[name], tensors, f"{where}.{name}")
    elif isinstance(said, list):
        inside = found if isinstance(found, tuple) else ()
        if len(inside) != len(said) or not isinstance(found, tuple):
            yield where
        for i, (f, s) in enumerate(zip(inside, said, strict=False)):
            yield from differences(f, s, tensors, f"{where}.{i}")
    elif isinstance(said, dict) and "tensor" in said:
        if not isinstance(found, Tensor) or not same(found, tensors[said["tensor"]]):
            yield where
    elif isinstance(said, dict):
        if not isinstance(found, float) or repr(found) != repr(float(said["float"])):
            yield where
    elif type(found) is not type(said) or found != said:
        yield where


def same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda f: f"{f.parent.name}/{f.name}")
def test_a_saved_result_loads_with_every_value(folder: Path, tmp_path: Path) -> None:
    found = Result.load(folder)
    document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "tensors.safetensors")
    assert list(differences(found, document, tensors)) == []
    assert tensors
    found.save(tmp_path)
    again = Result.load(tmp_path)
    assert list(differences(again, document, tensors)) == []
    assert json.loads((tmp_path / "result.json").read_text())["class"] == name_of(type(found))


def test_there_is_a_file_of_every_kind_of_result() -> None:
    kinds = {cls.__name__ for cls in made_up.result_classes()} - {"AuditResults", "SideBySide"}  # of files of their own
    assert {f.name for f in FOLDERS} == kinds


@pytest.mark.parametrize("said", METHODS, ids=lambda s: s["class"].partition(":")[2])
def test_a_method_that_was_saved_is_rebuilt(said: dict[str, object]) -> None:
    found = rebuild(said)
    assert list(differences(found, said, {})) == []
    assert rebuild(json.loads(json.dumps(describe(found)))) == found


def test_a_difference_anywhere_is_found() -> None:
    """The control of the tests above: another value, type, order, shape or class is seen."""
    folder = SAVED / "0.1.0" / "Curves"
    found = Result.load(folder)
    document = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    tensors = load_file(folder / "tensors.safetensors")
    changes = {
        "metric": "other",
        "n_forward": 2,
        "orders": found.orders[::-1],
        "substrates": found.substrates[:1],
        "values": found.values + 1e-6,
        "shares": found.shares.double(),
    }
    for name, value in changes.items():
        changed = dataclasses.replace(found, **{name: value})
        places = {d.split(".")[1] for d in differences(changed, document, tensors)}
        assert places == {name}


def test_results_of_an_audit_load() -> None:
    found = AuditResults.load(SAVED / "0.1.0" / "AuditResults")
    said = json.loads((SAVED / "0.1.0" / "AuditResults" / "results.json").read_text("utf-8"))
    kept = json.loads(json.dumps(dataclasses.asdict(found), allow_nan=False))
    assert {name: kept[name] for name in said} == said
    assert math.isclose(found.alpha, 0.5)
