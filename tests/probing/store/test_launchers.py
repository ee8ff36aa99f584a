"""Engines: whoever does the shares, in whatever order, leaves the bytes that one process writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine_worker import PIXELS, ask, filler
from where import SUPPORT

from probing.data.examples import TensorExamples
from probing.store.launchers import ENGINES, Engine, Local, SlurmArray, Torchrun
from probing.store.requests import RequestError
from probing.store.shards import StoreFullError
from probing.store.shares import Share, ShareError, array_share
from probing.store.store import ActivationStore

WORKER = str(SUPPORT / "engine_worker.py")


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.parent.name != "locks"
    }


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("single")
    ask(root)
    return files(root)


def run(repository: Path, *command: str) -> None:
    """Run a worker without what another engine's environment may have left in this one."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RANK", "WORLD_SIZE", "SLURM_", "RAY_"))}
    kept["PYTHONPATH"] = os.pathsep.join((str(repository), str(repository / "tests" / "support")))
    done = subprocess.run([sys.executable, *command], env=kept, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_shares_filled_in_any_order_leave_the_bytes_of_one_process(tmp_path: Path, single: dict[str, bytes]) -> None:
    for index in (2, 0, 1, 0):
        filler(tmp_path, TensorExamples(PIXELS))(Share(index, 3))
    assert files(tmp_path) == single
    assert ask(tmp_path).stats.forward_rows == 0


def test_a_share_done_again_computes_nothing(tmp_path: Path) -> None:
    filler(tmp_path, TensorExamples(PIXELS))(Share(0, 2))
    before = files(tmp_path)
    work = filler(tmp_path, TensorExamples(PIXELS))
    work(Share(0, 2))
    assert work._store is not None
    assert work._store.stats.forward_rows == 0
    assert files(tmp_path) == before


@pytest.mark.slow
def test_two_ranks_of_torchrun_leave_the_bytes_of_one_process(
    tmp_path: Path, single: dict[str, bytes], repository: Path
) -> None:
    ranks = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    run(repository, *ranks, WORKER, "torchrun", str(tmp_path))
    assert files(tmp_path / "store") == single
    assert (tmp_path / "after").read_text() == "0"  # the one that goes on finds all rows
    counts = [int((tmp_path / f"count-{rank}").read_text()) for rank in range(2)]
    assert min(counts) > 0
    assert sum(counts) == 640 + 2 * 250  # nothing was computed twice


@pytest.mark.slow
def test_ray_with_a_killed_actor_leaves_the_bytes_of_one_process(
    tmp_path: Path, single: dict[str, bytes], repository: Path
) -> None:
    pytest.importorskip("ray")
    run(repository, WORKER, "ray", str(tmp_path))
    assert (tmp_path / "grave").exists()  # an actor died
    assert files(tmp_path / "store") == single
    assert (tmp_path / "after").read_text() == "0"


def test_tasks_of_a_slurm_array_leave_the_bytes_of_one_process(
    tmp_path: Path, single: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SlurmArray()
    monkeypatch.setenv("SLURM_ARRAY_TASK_COUNT", "2")
    monkeypatch.setenv("SLURM_ARRAY_TASK_MIN", "4")
    for task in ("5", "4"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        assert not engine.run(filler(tmp_path, TensorExamples(PIXELS)))
    assert not engine.leads()
    assert files(tmp_path) == single


def test_shares_are_dealt_so_that_each_item_is_in_one() -> None:
    items = list(range(11))
    dealt = [Share(i, 4).of(items) for i in range(4)]
    assert dealt[1] == [1, 5, 9]
    assert sorted(item for share in dealt for item in share) == items
    inner = [Share(j, 2).within(Share(i, 4)) for i in range(4) for j in range(2)]
    assert {(share.index, share.count) for share in inner} == {(i, 8) for i in range(8)}


def test_processes_of_a_step_share_their_tasks_share() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}
    assert array_share(array) == Share(3, 4)
    step = {"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}
    assert array_share(array | step) == Share(7, 8)
    stepped = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_STEP": "2"}
    assert array_share(array | stepped) == Share(1, 4)


@pytest.mark.parametrize(
    ("engine", "told"),
    [
        (Torchrun(), r"no share of the job: RANK and WORLD_SIZE are '' and ''; start it by `torchrun"),
        (SlurmArray(), r"SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT are '' and ''; submit it"),
    ],
)
def test_an_engine_outside_of_its_place_says_how_to_start_it(
    engine: Engine, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ShareError, match=told):
        engine.run(lambda share: None)


def test_an_array_with_holes_is_refused() -> None:
    array = {"SLURM_ARRAY_TASK_ID": "9", "SLURM_ARRAY_TASK_COUNT": "2"}
    with pytest.raises(ShareError, match=r"task 9 is none of the 2 tasks .* must follow each other"):
        array_share(array)
    with pytest.raises(ShareError, match=r"0 … count - 1, got 2 of 2"):
        Share(2, 2)


def test_every_engine_is_listed_and_the_local_one_does_all() -> None:
    assert list(ENGINES) == ["local", "torchrun", "slurm", "ray"]
    assert all(isinstance(make(), Engine) for make in ENGINES.values())
    done: list[Share] = []
    assert Local().run(done.append)
    assert done == [Share(0, 1)]
    assert Local().leads()


def test_a_job_over_its_budget_is_refused_before_it_starts(tmp_path: Path) -> None:
    work = filler(tmp_path, TensorExamples(PIXELS))
    work.disk_budget_bytes = 640 * 4 * 4
    with pytest.raises(StoreFullError, match=r"writes .* GB .* of a budget of .* GB; pool the rows"):
        work(Share(0, 2))
    assert work._store is not None
    assert work._store.stats.forward_rows == 0
    assert not files(tmp_path)
    work.disk_budget_bytes, work._store = 10**6, None
    work(Share(0, 1))
    assert ask(tmp_path).stats.forward_rows == 0


def test_a_store_without_a_root_is_not_filled() -> None:
    with pytest.raises(RequestError, match="give the store a root"):
        ActivationStore().fill([], Share(0, 1))
