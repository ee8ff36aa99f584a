"""`probing mend`: the planted audit's model, corrected on some roles and judged on others."""

from pathlib import Path

import audits
import pytest
import torch
from safetensors.torch import load_file

from concepts.cli.app import main
from concepts.erasure.mending_result import UNKNOWN, MendingResult


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return audits.audit_file(tmp_path_factory.mktemp("mend"))


def test_the_planted_model_leans_on_gender_no_more(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mend", str(file), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    found = MendingResult.load(tmp_path / "out")
    assert found.verdict == UNKNOWN
    assert found.attributes == ("woman against man", "dark against light")
    assert found.targets == audits.CLASSES
    moves = torch.tensor([True, True, True, False, False, False])  # the classes that read red
    assert (found.swap_before[0, moves].abs() > 1).all()
    assert (found.swap_after[0, moves].abs() < 0.5 * found.swap_before[0, moves].abs()).all()
    weights = load_file(tmp_path / "out" / "weights.safetensors")
    assert set(weights) == {"head.weight", "head.bias"}
    assert (weights["head.weight"][:3, 0].abs() < 1).all()  # were 4, -4 and 2
    assert "keep their top class" in capsys.readouterr().out
    assert "without labels, what it costs is not known" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_another_contrast_may_be_named_and_none_made_up(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["mend", str(file), "--device", "cpu"]
    out = ["--out", str(tmp_path / "tone")]
    assert main([*given, *out, "--contrast", "dark against light", "--by", "mean-projection"]) == 0
    assert MendingResult.load(tmp_path / "tone").attribute == "dark against light"
    assert main([*given, *out, "--contrast", "old against new"]) == 2
    assert "the audit has no contrast 'old against new'" in capsys.readouterr().err
    assert main([*given, *out, "--by", "last-layer"]) == 2
    assert "fits the last layer to labels" in capsys.readouterr().err
    assert main([*given, *out, "--by", "last-layer", "--labels", "role"]) == 2
