"""A model that `fully_shard` divides between two processes is read as the whole one is, and never by a worker alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from where import SUPPORT


@pytest.mark.slow
def test_a_sharded_model_is_read_as_the_whole_one(tmp_path: Path, repository: Path) -> None:
    worker = str(SUPPORT / "sharded_worker.py")
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    path = os.pathsep.join((str(repository), str(repository / "tests" / "support")))
    done = subprocess.run(
        [sys.executable, *ranks, worker, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        found = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert len(found) == 14
        assert all(found.values()), [name for name, held in found.items() if not held]
        assert any("read it by capture() in all processes at once" in name for name in found)
        assert {"foreign hook refused", "one id"} <= found.keys()
