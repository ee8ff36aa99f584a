"""Partial statistics: whoever accumulates which share, the whole is that of one process."""

import os
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from partials_worker import VALUES, compute, make
from where import SUPPORT

from probing.statistics.streaming import Moments, TopK, UpperQuantile
from probing.store.launchers import Local, SlurmArray
from probing.store.partials import PartError, Parts, accumulated, all_merged, packed, unpacked
from probing.store.shares import Share


def check(found: dict[str, object]) -> None:
    """Compare with one process's accumulators: exactly, but for the moments' rounding."""
    single = compute(Share(0, 1))
    for name, accumulator in found.items():
        ours, theirs = (vars(a.value()) for a in (accumulator, single[name]))  # type: ignore[attr-defined]
        for field, value in ours.items():
            tolerance = 1e-12 if name == "moments" else 0
            torch.testing.assert_close(value, theirs[field], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("count", [1, 3, 7])
def test_parts_left_in_any_order_make_the_whole(count: int, tmp_path: Path) -> None:
    parts = Parts(tmp_path, "key")
    for index in reversed(range(count)):
        parts.save(Share(index, count), compute(Share(index, count)))
    check(parts.merged(make))  # type: ignore[arg-type]


def test_an_array_s_last_task_has_the_whole_and_a_damaged_part_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts, done = Parts(tmp_path, "key"), []

    def counted(share: Share) -> dict[str, object]:
        done.append(share.index)
        return compute(share)  # type: ignore[return-value]

    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "3")

    def task(index: int) -> object:
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", str(index))
        return accumulated(SlurmArray(), parts, counted, make)  # type: ignore[arg-type]

    assert task(2) is None
    assert task(0) is None
    victim = tmp_path / "key" / "2-of-3.part"
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    assert task(1) is None
    whole = task(2)
    assert whole is not None
    check(whole)  # type: ignore[arg-type]
    assert done == [2, 0, 1, 2]
    again = accumulated(Local(), parts, counted, make)  # type: ignore[arg-type]
    assert again is not None  # what the array left is read, whatever engine asks
    assert len(done) == 4


@pytest.mark.slow
def test_two_ranks_merge_by_files_and_in_a_process_group(tmp_path: Path, repository: Path) -> None:
    worker = str(SUPPORT / "partials_worker.py")
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    path = os.pathsep.join((str(repository), str(repository / "tests" / "support")))
    subprocess.run(
        [sys.executable, *ranks, worker, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        capture_output=True,
        timeout=300,
    )
    left = [(tmp_path / f"{how}-{rank}").read_bytes() for how in ("first", "second", "group") for rank in range(2)]
    assert len(set(left)) == 1
    check(unpacked(left[0], make))  # type: ignore[arg-type]


def test_lists_numbers_and_empty_accumulators_survive_the_way() -> None:
    quantile = UpperQuantile(Fraction(1, 10), total=len(VALUES))
    quantile.add(VALUES[:30])  # waits to be sorted in
    again = unpacked(packed({"q": quantile}), lambda: {"q": UpperQuantile(Fraction(1, 10), len(VALUES))})["q"]
    for one in (quantile, again):
        one.add(VALUES[30:])
    assert torch.equal(quantile.value().threshold, again.value().threshold)
    nothing = unpacked(packed({"m": Moments()}), lambda: {"m": Moments()})["m"]
    nothing.merge(compute(Share(0, 1))["moments"])
    assert nothing.value().count == len(VALUES)


@pytest.mark.parametrize(
    ("break_", "told"),
    [
        (lambda p: p.merged(make), "parts of the statistic key are missing .* run the shares"),
        (lambda p: unpacked(b"12345678junk", make), "does not hold the accumulators moments"),
        (lambda p: unpacked(packed({"a": TopK(3)}), make), "does not hold the accumulators moments"),
        (lambda p: all_merged({"m": Moments()}, lambda: {"m": Moments()}), "no process group"),
    ],
)
def test_what_is_no_whole_is_refused(break_: Callable[[Parts], object], told: str, tmp_path: Path) -> None:
    with pytest.raises(PartError, match=told):
        break_(Parts(tmp_path, "key"))
