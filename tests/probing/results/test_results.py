"""What is saved comes back as it was, or not at all; what is read is data and decides nothing."""

import dataclasses
import hashlib
import importlib
import json
import math
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import get_args

import numpy as np
import pytest
import torch
from jaxtyping import Float
from nets import ConvNet, seeded
from torch import Tensor

import concepts
import probing
from probing.atlas import Pca
from probing.attribution import baselines
from probing.attribution.lrp import composites
from probing.core.content_ids import model_id
from probing.results import saved_names
from probing.results.result import (
    Provenance,
    Result,
    SavedResultError,
    UnsavableError,
    describe,
    rebuild,
)
from probing.results.saved_names import SavedNameError, class_of, name_of, saved_as

OURS = {"probing", "concepts"}


@saved_as("tests.Part")
@dataclass(frozen=True)
class Part:
    name: str
    weights: Tensor | None = None


@saved_as("tests.Method")
@dataclass(frozen=True)
class Method:
    steps: int = 10
    rate: float = 0.5
    parts: tuple[Part, ...] = ()
    root: Path | None = None
    options: dict[str, object] = field(default_factory=dict)
    double: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "double", 2 * self.steps)


@saved_as("tests.Found")
@dataclass(frozen=True)
class Found(Result):
    values: Float[Tensor, "n m"]
    layers: tuple[str, ...] = ()
    score: float = 0.0
    part: Part | None = None
    more: dict[str, object] = field(default_factory=dict)
    folder: Path | None = None


@saved_as("tests.OtherFound")
@dataclass(frozen=True)
class OtherFound(Result):
    pass


MADE: list[object] = []


@dataclass
class Loose:
    a: int = 1

    def __post_init__(self) -> None:
        MADE.append(self)


@dataclass(frozen=True)
class Foreign:
    """Of the user's, without a name in saved files."""

    def __post_init__(self) -> None:
        MADE.append(self)


def same(a: object, b: object) -> bool:
    """Compare all the way down, with NaN equal to itself."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a.double(), b.double(), 0, 0, equal_nan=True)
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if hasattr(a, "__dataclass_fields__"):
        return type(a) is type(b) and same(vars(a), vars(b))
    return type(a) is type(b) and a == b


def found(**changes: object) -> Found:
    values: dict[str, object] = {
        "provenance": Provenance.collect(method=Method(parts=(Part("a"),))),
        "values": torch.tensor([[1.0, math.nan], [math.inf, -0.0]]),
        "layers": ("a", "b.c"),
        "score": 0.1,
        "part": Part("ä\n\"'\0 𝄞", torch.arange(3)),
        "more": {
            "a": {"b.c": torch.zeros(1), "list": (1, (2.5, None), True)},
            "a.b": {"c": torch.ones(1)},  # the same path as the one above, once dots are joined
            "class": {"class": "os:system", "fields": {"command": "true"}},
            "tensor": "x",
            "path": "y",
            "nan": math.nan,
            "infinities": (math.inf, -math.inf),
            "empty": ({}, (), "", torch.zeros(0, 3)),
            "": torch.tensor(2.0, dtype=torch.float64),
        },
        "folder": Path("some/folder"),
    }
    return Found(**(values | changes))


def test_a_result_comes_back_as_it_was(tmp_path: Path) -> None:
    result = found()
    assert result.save(tmp_path / "deep" / "folder") == tmp_path / "deep" / "folder"
    assert sorted(p.name for p in (tmp_path / "deep" / "folder").iterdir()) == [
        "result.json",
        "tensors.safetensors",
    ]
    assert same(Found.load(tmp_path / "deep" / "folder"), result)
    assert same(Result.load(str(tmp_path / "deep" / "folder")), result)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_tensors_of_every_kind_come_back(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.tensor([[0, 1, 1], [1, 0, 1]]).to(dtype)
    result = found(more={"plain": tensor, "turned": tensor.t(), "sliced": tensor[:, ::2], "again": tensor})
    result.save(tmp_path)
    loaded = Found.load(tmp_path)
    assert same(loaded, result)
    assert loaded.more["turned"].shape == (3, 2)


def test_tensors_with_a_graph_or_shared_memory_are_saved_by_value(tmp_path: Path) -> None:
    base = torch.ones(2, 2, requires_grad=True)
    found(values=base * 2, more={"view": base.detach()[0], "row": base.detach()[0]}).save(tmp_path)
    loaded = Found.load(tmp_path)
    assert loaded.values.tolist() == [[2, 2], [2, 2]]
    assert not loaded.values.requires_grad


def test_a_result_without_tensors_comes_back(tmp_path: Path) -> None:
    result = OtherFound(Provenance.collect())
    result.save(tmp_path)
    assert OtherFound.load(tmp_path) == result


def test_the_saved_document_is_strict_json(tmp_path: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found(score=math.nan).save(tmp_path)
    json.loads((tmp_path / "result.json").read_text(encoding="utf-8"), parse_constant=refuse)


def test_a_path_that_is_no_unicode_comes_back(tmp_path: Path) -> None:
    result = found(folder=Path("a\udcff"))
    result.save(tmp_path)
    assert Found.load(tmp_path).folder == Path("a\udcff")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({1: "a"}, "key 1; only strings"),
        (object(), "a object at 'more.x'"),
        ({1, 2}, "a set at 'more.x'"),
        (Loose(), "a Loose at 'more.x'"),
        (1j, "a complex"),
        (b"a", "a bytes"),
        (Loose, "a type"),
        (len, "a builtin_function_or_method"),
    ],
)
def test_what_would_not_come_back_is_not_saved(value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=message):
        found(more={"x": value}).save(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_result_of_another_class_is_refused(tmp_path: Path) -> None:
    found().save(tmp_path)
    with pytest.raises(SavedResultError, match="holds a Found, expected a OtherFound") as caught:
        OtherFound.load(tmp_path)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("missing", ["result.json", "tensors.safetensors"])
def test_a_missing_file_is_an_error_that_names_the_folder(missing: str, tmp_path: Path) -> None:
    found().save(tmp_path / "here")
    (tmp_path / "here" / missing).unlink()
    with pytest.raises(SavedResultError, match=f"here.*{missing}"):
        Found.load(tmp_path / "here")


def test_a_folder_that_is_none_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SavedResultError, match="nowhere"):
        Found.load(tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["result.json", "tensors.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_refused(name: str, share: float, tmp_path: Path) -> None:
    found().save(tmp_path)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(share * len(data))])
    with pytest.raises(SavedResultError, match="holds no readable result"):
        Found.load(tmp_path)


def test_a_flipped_bit_anywhere_in_the_tensors_is_refused(tmp_path: Path) -> None:
    found().save(tmp_path)
    data = (tmp_path / "tensors.safetensors").read_bytes()
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 1
        (tmp_path / "tensors.safetensors").write_bytes(changed)
        with pytest.raises(SavedResultError, match="damaged"):
            Found.load(tmp_path)
    (tmp_path / "tensors.safetensors").write_bytes(data)
    Found.load(tmp_path)


DAMAGE: dict[str, Callable[[dict[str, object]], object]] = {
    "no document": lambda d: [],
    "a number": lambda d: 3,
    "null": lambda d: None,
    "no class": lambda d: {k: v for k, v in d.items() if k != "class"},
    "no fields": lambda d: {k: v for k, v in d.items() if k != "fields"},
    "fields that are none": lambda d: d | {"fields": [1, 2]},
    "an unknown field": lambda d: d | {"fields": {"surprise": 1}},
    "a missing field": lambda d: d | {"fields": {"layers": []}},
    "an unknown tensor": lambda d: d | {"fields": {**d["fields"], "values": {"tensor": "none"}}},
    "a map that is none": lambda d: d | {"fields": {**d["fields"], "more": {"map": 3}}},
    "a number that is none": lambda d: d | {"fields": {**d["fields"], "score": {"float": "many"}}},
    "an unknown tag": lambda d: d | {"fields": {**d["fields"], "score": {"surprise": 1}}},
    "no checksum": lambda d: {k: v for k, v in d.items() if k != "tensors"},
    "another checksum": lambda d: d | {"tensors": "0" * 32},
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_document_is_refused(change: Callable[[dict[str, object]], object], tmp_path: Path) -> None:
    found().save(tmp_path)
    document = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    (tmp_path / "result.json").write_text(json.dumps(change(document)), encoding="utf-8")
    with pytest.raises(SavedResultError, match="holds no readable result"):
        Found.load(tmp_path)


@pytest.mark.parametrize("text", ["", "{", '{"class": "a:b"', "[" * 100_000, "\udcff", "NaN"])
def test_what_is_no_document_is_refused(text: str, tmp_path: Path) -> None:
    found().save(tmp_path)
    (tmp_path / "result.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(SavedResultError, match="holds no readable result"):
        Found.load(tmp_path)


FOREIGN = [
    "os:system",
    "builtins:eval",
    "subprocess:Popen",
    "",
    ":",
    "Nothing",
    "tests.Nothing",
    "test_results:Foreign",
    "test_results:Part",  # has a name, under which alone it is loaded
    "probing.nowhere:Found",
    "probing.results.result:SavedResultError",
    "probing.results.result:Result",
    "probing.store.store:ActivationStore",
    "probing.attribution.cam.grad_cam:GradCAM.__call__",
    "concepts..x:y",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_class_without_a_registered_name_is_never_made(name: str, tmp_path: Path) -> None:
    description: dict[str, object] = {"class": name, "fields": {}}
    MADE.clear()
    with pytest.raises(SavedResultError):
        rebuild(description)
    found().save(tmp_path)
    document = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    document["fields"]["part"] = description
    (tmp_path / "result.json").write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(SavedResultError, match="holds no readable result"):
        Found.load(tmp_path)
    assert not MADE


def test_a_foreign_class_is_refused_before_its_module_is_imported() -> None:
    assert "this" not in sys.modules
    for name in ("this:d", "this"):
        with pytest.raises(SavedResultError, match=f"'{name}' is no registered name of a class"):
            rebuild({"class": name, "fields": {}})
    assert "this" not in sys.modules


# Names


def test_a_class_without_a_name_is_described_but_not_saved(tmp_path: Path) -> None:
    with pytest.raises(UnsavableError) as caught:
        found(more={"x": Foreign()}).save(tmp_path)
    assert str(caught.value) == (
        "test_results:Foreign has no name in saved files: give it one by @saved_as('mylab.Foreign') of "
        "probing.results.saved_names."
    )
    assert not list(tmp_path.iterdir())
    assert describe(Foreign()) == {"class": "test_results:Foreign", "fields": {}}


def test_a_name_that_is_not_registered_here_is_told_in_one_sentence(tmp_path: Path) -> None:
    found().save(tmp_path)
    text = (tmp_path / "result.json").read_text(encoding="utf-8")
    later = text.replace("tests.Found", "mylab.Found", 1)
    (tmp_path / "result.json").write_text(later, encoding="utf-8")
    with pytest.raises(SavedResultError) as caught:
        Result.load(tmp_path)
    assert str(caught.value) == (
        f"{str(tmp_path)!r} holds no readable result: 'mylab.Found' is no registered name of a class: it is of a later "
        "version, or of a module of your own that must be imported first and register it by 'saved_as'."
    )


def test_what_was_saved_loads_after_its_class_was_moved_and_renamed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = ModuleType("probing.moved")
    module.Projected = Pca
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(Pca, "__module__", module.__name__)
    monkeypatch.setitem(saved_names._PLACES, "Pca", "probing.moved:Projected")
    for name in ("Pca", "probing.embedding:Pca"):
        assert rebuild({"class": name, "fields": {}}) == Pca()


@pytest.mark.parametrize("name", ["Found", "GradCAM", "", "tests:Found.a"])
def test_names_without_a_dot_are_the_suites(name: str) -> None:
    with pytest.raises(SavedNameError, match="give test_results:Foreign a name with a dot"):
        saved_as(name)(Foreign)


def test_a_name_stands_for_one_class() -> None:
    assert saved_as("tests.Part")(Part) is Part
    with pytest.raises(SavedNameError, match=r"'tests\.Part' stands for test_results:Part"):
        saved_as("tests.Part")(Foreign)


def test_every_name_stands_for_a_frozen_dataclass_that_has_it() -> None:
    for name, place in saved_names._PLACES.items():
        cls = class_of(name)
        assert name_of(cls) == name
        assert place == f"{cls.__module__}:{cls.__qualname__}"
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen


def _subclasses(cls: type) -> Iterator[type]:
    for below in cls.__subclasses__():
        yield below
        yield from _subclasses(below)


def test_every_result_of_the_suite_has_a_name_and_so_has_what_named_classes_hold() -> None:
    for package in (probing, concepts):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            importlib.import_module(module.name)
    results = [c for c in _subclasses(Result) if c.__module__.split(".")[0] in OURS]
    assert len(results) >= 29
    held = [
        part
        for cls in (*results, *map(class_of, saved_names._PLACES))
        for f in dataclasses.fields(cls)
        for part in (*_classes_in(f.type), type(f.default))
        if f.init and dataclasses.is_dataclass(part)
    ]
    assert [c for c in (*results, *held) if name_of(c) is None] == []


def _classes_in(annotation: object) -> Iterator[type]:
    if arguments := get_args(annotation):
        for argument in arguments:
            yield from _classes_in(argument)
    elif isinstance(annotation, type):
        yield annotation


def test_what_version_0_1_wrote_is_never_forgotten() -> None:
    """Its places are counted and hashed: a line that is changed or lost makes its files unreadable."""
    places = saved_names._PLACES_0_1
    text = "\n".join(f"{name} {place}" for name, place in sorted(places.items()))
    assert (len(places), hashlib.sha256(text.encode()).hexdigest()) == (
        184,
        "eccc7f9df6205d8777a8a2a736562e7d9d412730f92d3833143885dcf394dabd",
    )
    assert set(places) <= set(saved_names._PLACES)
    assert class_of("probing.attribution.baselines:Uniform") is baselines.Uniform
    assert class_of("probing.attribution.lrp_composites:Uniform") is composites.Uniform


# Saving over an earlier result


class Cut(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", range(6))
def test_a_save_that_is_cut_short_leaves_the_earlier_result_or_the_new_one(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ends a save in each of its five writes and renames in turn; a write leaves half a file."""
    old = found(values=torch.zeros(1, 2), score=1.0)
    new = found(values=torch.ones(1, 2), score=2.0)
    old.save(tmp_path)
    steps = iter(range(6))

    def counted(original: Callable[..., object], half: bytes) -> Callable[..., object]:
        def run(self: Path, argument: object) -> object:
            if next(steps) == step:
                if half:
                    original(self, half)
                raise Cut
            return original(self, argument)

        return run

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", counted(Path.write_bytes, b"half"))
        patch.setattr(Path, "replace", counted(Path.replace, b""))
        with pytest.raises(Cut) if step < 5 else nullcontext():
            new.save(tmp_path)
    loaded = Found.load(tmp_path)
    assert same(loaded, old if step < 4 else new)
    new.save(tmp_path)
    assert same(Found.load(tmp_path), new)


def test_a_result_saved_over_another_replaces_it(tmp_path: Path) -> None:
    found(score=1.0).save(tmp_path)
    found(score=2.0, values=torch.ones(3, 1), more={}).save(tmp_path)
    assert Found.load(tmp_path).score == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "tensors.safetensors"]


# Descriptions


METHODS = [
    Method(),
    Method(steps=3, rate=math.nan),
    Method(rate=-math.inf),
    Method(
        parts=(Part("a"), Part("b")),
        root=Path("x"),
        options={"k": (1, "2", None), "part": Part("c")},
    ),
]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_rebuilt_from_its_description_and_from_json(method: Method) -> None:
    description = describe(method)
    assert same(rebuild(description), method)
    assert same(rebuild(json.loads(json.dumps(description, allow_nan=False))), method)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_is_rebuilt_from_a_saved_result(method: Method, tmp_path: Path) -> None:
    record = Provenance.collect(method=method)
    found(provenance=record).save(tmp_path)
    loaded = Found.load(tmp_path).provenance
    assert same(loaded, record)
    assert same(rebuild(loaded.method), method)


def test_a_description_says_what_the_class_and_its_fields_are() -> None:
    description = describe(Part("a"))
    assert description == {
        "class": "tests.Part",
        "fields": {"name": "a", "weights": None},
    }


@pytest.mark.parametrize("value", [3, "a", None, (), {}, Part, Loose()])
def test_only_frozen_dataclasses_are_described(value: object) -> None:
    with pytest.raises(TypeError):
        describe(value)


def test_a_number_of_numpy_is_saved_as_a_plain_one(tmp_path: Path) -> None:
    for number, plain in ((np.int64(3), 3), (np.float32(0.5), 0.5), (np.uint8(7), 7)):
        found(more={"x": number}).save(tmp_path / str(plain))
        (loaded,) = Found.load(tmp_path / str(plain)).more.values()
        assert (loaded, type(loaded)) == (plain, type(plain))


def test_a_description_holds_no_tensors() -> None:
    with pytest.raises(TypeError, match="a Tensor at 'weights'"):
        describe(Part("a", torch.ones(1)))


def test_provenance_names_the_model_by_content_and_what_it_ran_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/private/probing", "audit", "file.yaml"])
    net = seeded(ConvNet())
    record = Provenance.collect(model=net, examples="abc", method=Method(steps=7))
    assert record.model == model_id(net)
    assert record.command == ("probing", "audit", "file.yaml")
    assert record.examples == "abc"
    assert record.versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert torch.__version__.startswith(record.versions["torch"])
    assert record.created.endswith("+00:00")
    assert same(rebuild(record.method), Method(steps=7))
    assert Provenance.collect().model == ""
