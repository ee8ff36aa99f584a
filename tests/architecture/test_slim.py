"""On an accelerator without float64, such as Apple's GPUs, everything gives the CPU's numbers."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from where import SUPPORT

from probing.attribution import METHODS


@pytest.mark.slow
def test_all_runs_on_an_accelerator_without_float64(tmp_path: Path) -> None:
    worker, told = str(SUPPORT / "slim_worker.py"), tmp_path / "told.json"
    subprocess.run([sys.executable, worker, str(told)], check=True, timeout=600)
    wrong = json.loads(told.read_text())
    assert {f"{name}, inputs {place}" for name in METHODS for place in ("here", "there")} <= wrong.keys()
    assert {name: how for name, how in wrong.items() if how} == {}
