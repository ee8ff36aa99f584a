"""`kill -9` at any point of an extraction: the next run finishes and equals an undisturbed one, byte for byte."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path

import nets
import pytest
import torch
from store_worker import fill

from probing import shards
from probing.examples import TensorExamples

IMAGES = TensorExamples(nets.images(48))
SHARDS = 6 * 4  # six chunks of eight, two layers, outputs and gradients


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for p in sorted(root.rglob("*"))
        if p.is_file() and p.parent.name != "locks"
    }


def in_child(work: Callable[[], object], kill_after: float | None = None) -> int:
    """Run work in a forked process, kill it after some seconds if asked to, and return its wait status."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    if kill_after is not None:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
        signal.sigtimedwait([signal.SIGCHLD], kill_after)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def dying_at(step: int, root: Path, images: TensorExamples = IMAGES) -> Callable[[], object]:
    """Return work that kills itself, as by `kill -9`, at the given system call that changes the store."""
    calls = [0]

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            calls[0] += 1
            if calls[0] == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    def work() -> None:
        for name in ("write", "fsync", "open", "close"):
            setattr(shards.os, name, counted(getattr(os, name)))
        Path.replace = counted(Path.replace)  # type: ignore[method-assign]
        fill(root, images)

    return work


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
    share: float, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    steps = 11 * SHARDS
    status = in_child(dying_at(1 + int(share * steps), tmp_path))
    assert os.WTERMSIG(status) == signal.SIGKILL
    check(tmp_path, undisturbed)


@pytest.mark.parametrize("seed", range(8))
def test_a_run_killed_at_a_random_moment_is_completed_to_the_same_bytes(
    seed: int, tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    in_child(lambda: fill(tmp_path, IMAGES), kill_after=random.Random(seed).uniform(0, 0.1))
    check(tmp_path, undisturbed)


def test_a_run_killed_many_times_over_still_ends(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    for step in (50, 90, 90, 90):
        in_child(dying_at(step, tmp_path))
    check(tmp_path, undisturbed)


def test_two_processes_on_one_root_share_the_work(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    def work(name: str) -> Callable[[], object]:
        return lambda: (tmp_path / name).write_text(
            str(fill(tmp_path / "store", IMAGES).stats.forward_rows)
        )

    children = []
    for name in ("a", "b"):
        child = os.fork()
        if child == 0:
            try:
                work(name)()
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    assert int((tmp_path / "a").read_text()) + int((tmp_path / "b").read_text()) == len(IMAGES)
    assert files(tmp_path / "store") == undisturbed


def test_a_process_that_waits_takes_over_from_one_that_dies(
    tmp_path: Path, undisturbed: dict[str, bytes]
) -> None:
    first = os.fork()
    if first == 0:
        dying_at(100, tmp_path)()
        os._exit(0)
    store = fill(tmp_path, IMAGES)
    os.waitpid(first, 0)
    assert store.stats.forward_rows <= len(IMAGES)
    assert files(tmp_path) == undisturbed
    assert torch.get_num_threads() == 1
