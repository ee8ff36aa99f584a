"""`kill -9` at any point of an extraction: the next run finishes and equals an undisturbed one, byte for byte."""

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import nets
import pytest
from store_worker import fill, fill_and_count, fill_dying_at

from probing.data.examples import TensorExamples

PIXELS = nets.images(48)
IMAGES = TensorExamples(PIXELS)
SHARDS = 6 * 4  # six chunks of eight, two layers, outputs and gradients
Start = Callable[..., BaseProcess]


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file() and p.parent.name != "locks"
    }


@pytest.fixture(scope="module")
def start(repository: Path) -> Start:
    """Return what starts a function in a process of its own.

    It is forked from a server that has never computed anything: a fork of this process would inherit the locks of
    threads that earlier tests have started, and wait for them for ever.
    """
    context = multiprocessing.get_context("forkserver")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(map(str, (repository / "tests" / "support", repository))))
        context.set_forkserver_preload(["store_worker"])
        forkserver.ensure_running()

    def begin(work: Callable[..., None], *arguments: object) -> BaseProcess:
        process = context.Process(target=work, args=arguments)
        process.start()
        return process

    return begin


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("undisturbed")
    fill(root, IMAGES)
    return files(root)


def committed(root: Path) -> int:
    """How many examples' rows are all on disk: a chunk counts once its four shards are committed."""
    names = [record.name for record in root.rglob("*.json")]
    return sum(8 for name in set(names) if names.count(name) == 4)


def check(root: Path, undisturbed: dict[str, bytes]) -> None:
    done = committed(root)
    store = fill(root, IMAGES)
    assert store.stats.forward_rows == len(IMAGES) - done  # the open shards' rows, and no other
    assert files(root) == undisturbed


@pytest.mark.parametrize("share", [i / 24 for i in range(24)])
def test_a_run_killed_at_a_write_is_completed_to_the_same_bytes(
    share: float, tmp_path: Path, undisturbed: dict[str, bytes], start: Start
) -> None:
    steps = 11 * SHARDS
    child = start(fill_dying_at, tmp_path, PIXELS, 1 + int(share * steps))
    child.join()
    assert child.exitcode == -signal.SIGKILL
    check(tmp_path, undisturbed)


@pytest.mark.parametrize("seed", range(8))
def test_a_run_killed_at_a_random_moment_is_completed_to_the_same_bytes(
    seed: int, tmp_path: Path, undisturbed: dict[str, bytes], start: Start
) -> None:
    child = start(fill_and_count, tmp_path / "store", PIXELS, tmp_path / "count")
    child.join(random.Random(seed).uniform(0, 0.3))
    child.kill()
    child.join()
    check(tmp_path / "store", undisturbed)


def test_a_run_killed_many_times_over_still_ends(tmp_path: Path, undisturbed: dict[str, bytes], start: Start) -> None:
    for step in (50, 90, 90, 90):
        start(fill_dying_at, tmp_path, PIXELS, step).join()
    check(tmp_path, undisturbed)


def test_two_processes_on_one_root_share_the_work(tmp_path: Path, undisturbed: dict[str, bytes], start: Start) -> None:
    counts = [tmp_path / name for name in "ab"]
    children = [start(fill_and_count, tmp_path / "store", PIXELS, count) for count in counts]
    for child in children:
        child.join()
    assert sum(int(count.read_text()) for count in counts) == len(IMAGES)
    assert files(tmp_path / "store") == undisturbed


def test_a_process_that_waits_takes_over_from_one_that_dies(
    tmp_path: Path, undisturbed: dict[str, bytes], start: Start
) -> None:
    first = start(fill_dying_at, tmp_path, PIXELS, 100)
    store = fill(tmp_path, IMAGES)
    first.join()
    assert store.stats.forward_rows <= len(IMAGES)
    assert files(tmp_path) == undisturbed
