"""Made-up results of every class: what their annotations say, filled from a seed."""

import importlib
import pkgutil
import types
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import audits
import torch
from jaxtyping import AbstractArray
from torch import Tensor

import concepts
import probing
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.model_comparison.compare import Difference, Side, SideBySide
from concepts.discovery.dictionary import Projection
from probing.results.result import Provenance, Result

SIZES = {
    "layers": 3,
    "targets": 2,
    "runs": 4,
    "h": 6,
    "w": 6,
    "grid": 2,
    "side": 4,
    "steps": 2,
    "features": 5,
    "contrasts": 1,
    "sets": 2,
}
"""Of named axes; others have `OTHER`. Fields of names are as long as the axis that they are called as."""
OTHER = 3
_FIXED: dict[tuple[str, str], object] = {
    ("Attribution", "target"): (0,) * OTHER,
    ("AxiomTable", "outcomes"): (("holds", "fails", "can't be asked: it has no gates."),) * OTHER,
    ("AttributeAtlases", "values"): (("a", "b"),) * OTHER,
    ("AtlasResult", "least"): 1,
    ("Comparison", "measures"): ("swap", "tcav", "gradcam"),
    ("Comparison", "heat_maps"): ("gradcam",),
    ("Comparison", "pairs"): ((0, 1, 2),) * OTHER,
    ("Randomisation", "measures"): ("spearman", "spearman_abs", "ssim"),
    ("Randomisation", "layers"): ("a", "b"),
    ("Curves", "orders"): ("most", "least", "random"),
    ("Scorecard", "low"): torch.zeros(OTHER, 5),
    ("Scorecard", "high"): torch.ones(OTHER, 5),
    ("Scorecard", "standing"): torch.tensor([[0.1, 0.5, 0.9, torch.nan, 0.7]] * OTHER),
    ("Row", "values"): {"abpc": torch.rand(4).double(), "gap": torch.rand(4).double(), "passes": torch.ones(1).double()},
    ("TableAttribution", "diagnostics"): {"prediction": 0.4, "r2": 0.9},
    ("TextAttribution", "text"): "some words here",
    ("TextAttribution", "spans"): (((0, 4),), ((5, 10),), ((11, 15),)),
    ("TextAttribution", "diagnostics"): {"prediction": 0.4, "r2": 0.9},
    ("ProbeHistory", "moments"): (0, 1, 2),
    ("AblationResult", "counts"): (1, 2, 4),
    ("Retrained", "fractions"): (0.0, 0.1, 0.3),
    ("Retrained", "rankings"): ("a", "b", "random"),
    ("WordResult", "methods"): ("swap", "lime", "tcav"),
    ("WordResult", "listed"): ("swap", "lime"),
    ("ConceptDreams", "layers"): ("a", "b", "c"),
    ("HeatMapComparison", "refused"): (("lrp", "this network has a gate."),),
    ("HeatMapComparison", "shown"): (),
    ("DissectionResult", "label_tests"): (),
    ("AttributeUnits", "names"): None,
    ("Dictionary", "coder"): Projection(),
    ("DiscoveryResult", "attributes"): (),
}
_LONG = {"images": 3, "probes": 3, "atlases": 3, "results": 3, "rows": 3, "names": 3, "ids": 3}


def result_classes() -> list[type[Result]]:
    """Return every class of results of the suite, in order of their names."""
    for package in (probing, concepts):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name != "probing.maximization.lucent":
                importlib.import_module(found.name)
    return sorted(_below(Result), key=lambda c: c.__name__)


def _below(cls: type[Result]) -> Iterator[type[Result]]:
    for sub in cls.__subclasses__():
        if sub.__module__.split(".")[0] in {"probing", "concepts"}:
            yield sub
            yield from _below(sub)


def result(cls: type, *, empty: bool = False) -> Any:
    """Return a result of a class.

    Args:
        cls: which one.
        empty: all tensors of fractions are NaN, as where nothing was asked for.
    """
    if cls is AuditResults:  # whose rows belong together
        return audits.results()
    if cls is SideBySide:
        one, other = (Side(Path(name), audits.results(), {"model": name}) for name in ("old", "new"))
        targets = tuple(t.name for t in one.results.targets)
        contrasts = tuple(c.name for c in one.results.contrasts)
        rows = tuple(
            Difference(c, t, 0.1, 0.0, 0.2, 0.5, 0.4, 0.6, 0.4, 0.3, 0.5, 0.01, 0.02, False, True, 0.1, 0.2)
            for c in contrasts
            for t in targets
        )
        return SideBySide(Provenance.collect(), one, other, contrasts, targets, rows)
    generator = torch.Generator().manual_seed(0)
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls) if f.init]
    return cls(**{n: _value(cls, n, hints[n], generator, empty) for n in names})


def _value(cls: type, name: str, kind: Any, generator: torch.Generator, empty: bool) -> Any:  # noqa: PLR0911
    if (cls.__name__, name) in _FIXED:
        return _FIXED[cls.__name__, name]
    if isinstance(kind, type) and issubclass(kind, AbstractArray):
        made = _tensor(kind, generator, empty)
        return made + _beside(name) if _beside(name) else made
    if kind is Provenance:
        return Provenance.collect()
    if get_origin(kind) in {Union, types.UnionType}:
        return None if type(None) in get_args(kind) else _value(cls, name, get_args(kind)[0], generator, empty)
    if get_origin(kind) is Literal:
        return get_args(kind)[0]
    if get_origin(kind) is dict:
        return {}
    if get_origin(kind) is tuple and get_args(kind)[-1] is ...:
        inner, count = get_args(kind)[0], _LONG.get(name, SIZES.get(name, OTHER))
        if inner is str:
            return tuple(f"{name}<{i}>" for i in range(count))
        return tuple(_value(cls, name, inner, generator, empty) for _ in range(count))
    if get_origin(kind) is tuple:
        return tuple(_value(cls, name, inner, generator, empty) for inner in get_args(kind))
    if is_dataclass(kind):
        return result(kind, empty=empty)
    return {str: f"{name}<b>", int: 1, float: 0.5, bool: True}[kind]


def _beside(name: str) -> int:
    """Return how far the bounds of an interval lie from what is made up, which lies between 0 and 1."""
    return int(name.endswith("high")) - int(name.endswith("low"))


def _tensor(kind: Any, generator: torch.Generator, empty: bool) -> Tensor:
    shape: list[int] = []
    for dim in kind.dim_str.split():
        if dim.startswith("*"):
            shape += [1, 6, 6] if dim == "*shape" else [2, 2]
        else:
            shape.append(int(dim) if dim.isdigit() else SIZES.get(dim, OTHER))
    drawn = torch.rand(shape, generator=generator)
    if any("bool" in d for d in kind.dtypes):
        return drawn > 0.5
    if any("int" in d for d in kind.dtypes):
        return (drawn * 2).to(torch.uint8 if set(kind.dtypes) == {"uint8"} else torch.long)
    drawn = torch.full_like(drawn, torch.nan) if empty else drawn
    return drawn.double() if set(kind.dtypes) == {"float64"} else drawn
