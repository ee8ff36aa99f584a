"""Commands under an engine: shares in any order, then one process that reads them, give what one process gives."""

from pathlib import Path

import audits
import pytest
import torch
from nets import ConvNet, images, seeded

from concepts.auditing import run
from concepts.auditing.measurement.results import AuditResults
from concepts.cli.app import main
from probing.attribution.gradient import GradientTimesInput, Saliency
from probing.evaluation.scorecard.measure import Scoring, ScoringWork
from probing.evaluation.scorecard.scorecard import Row
from probing.models.scores import Score
from probing.store.shares import Share


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted((root / "rows-v1").rglob("*"))
        if p.is_file() and p.parent.name != "locks"
    }


@pytest.mark.slow
def test_an_audit_in_shares_reads_what_one_process_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "write_report", lambda out, _: AuditResults.load(out))
    file = audits.audit_file(tmp_path, {"analyses": ["tcav", "probes", "dissection"]})
    common = ["audit", str(file), "--device", "cpu", "--out"]
    assert main([*common, str(tmp_path / "one"), "--cache", str(tmp_path / "single")]) == 0
    shared = [*common, str(tmp_path / "two"), "--cache", str(tmp_path / "shared")]
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    capsys.readouterr()
    for task in "10":
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        assert main([*shared, "--engine", "slurm"]) == 0
        assert "--engine local" in capsys.readouterr().err
    assert not (tmp_path / "two" / "results.json").exists()
    assert main(shared) == 0
    assert "; 0 forward and 0 backward passes" in capsys.readouterr().out
    assert files(tmp_path / "shared") == files(tmp_path / "single")
    results = [(tmp_path / out / "results.json").read_bytes() for out in ("one", "two")]
    assert results[0] == results[1]


@pytest.mark.slow
def test_methods_of_a_scorecard_are_measured_in_shares(tmp_path: Path) -> None:
    net, inputs = seeded(ConvNet()), images(3, size=8)
    score = Score(net, torch.tensor([0, 1, 2]))
    methods = {"saliency": Saliency(), "gradient_times_input": GradientTimesInput()}
    scoring = Scoring(steps=4, grid=4, draws=8, seeds=1, probed=2)
    work = ScoringWork(scoring, methods, score, inputs, tmp_path)
    work(Share(1, 2))
    assert [path.name for path in tmp_path.iterdir()] == ["gradient_times_input"]
    work(Share(0, 2))
    done: list[tuple[str, bool]] = []
    rows = scoring.rows(methods, score, inputs, folder=tmp_path, done=lambda *d: done.append(d))
    assert done == [("saliency", False), ("gradient_times_input", False)]
    single = scoring.rows(methods, score, inputs)
    for row, other in zip(rows, single, strict=True):
        assert _measured(row).keys() == _measured(other).keys()
        for name, value in _measured(row).items():
            torch.testing.assert_close(value, other.values[name], rtol=0, atol=0, equal_nan=True)


def _measured(row: Row) -> dict[str, torch.Tensor]:
    return {k: v for k, v in row.values.items() if k not in {"time", "memory"}}
