"""The memory law: ten times the images, not ten times the memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_an_audit_of_ten_times_the_images_takes_at_most_1_3_times_the_memory(
    tmp_path: Path, repository: Path
) -> None:
    """Peak of a whole audit with probes, from the import of torch to the report; 10,000 images against 1,000."""
    peaks = {}
    for count in (1_000, 10_000):
        worker = [sys.executable, str(repository / "tests" / "memory_worker.py"), str(count)]
        done = subprocess.run(
            [*worker, str(tmp_path / str(count))],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        peaks[count] = float(done.stdout.split()[-1])
    assert peaks[10_000] <= 1.3 * peaks[1_000], peaks
