"""Bad days of a store: workers that die, stop or run out of disk, files that are cut, flipped or lost, at random.

    python tests/chaos.py --trials 1000 [--seed 0] [--out chaos.json]

A trial is drawn from its seed: some rounds, in each of which one to three workers fill one store at once, each with a
fate of its own, while files of the store are damaged before or under them. Then one undisturbed run. It fails if

- any worker is ever served a row that is not, bit for bit, the one of an undisturbed run;
- a shard that was whole is written or computed again;
- a worker ends in any way but its fate's, or for a reason other than the disk's;
- the last run leaves other files than an undisturbed run, or computes more than what was missing.

What is drawn repeats with the seed; moments in real time, of kills for one, do not.
"""

import argparse
import contextlib
import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent / "support"))

import nets
import torch
from torch import Tensor

from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.store import extraction, shards
from probing.store.requests import Rows
from probing.store.shards import StoreWriteError
from probing.store.store import ActivationStore

COUNT, CHUNK = 32, 8
SHARDS = 4  # of a chunk: two layers, outputs and gradients
STEPS = COUNT // CHUNK * SHARDS * 11  # calls that change the disk, in an undisturbed run
WRONG, DISK = 3, 4  # exit statuses of workers
PIXELS = nets.images(COUNT)

Fate = tuple[str, float]
FATES = (
    "lives",
    "killed at a call",
    "killed at a moment",
    "interrupted",
    "stopped for a while",
    "disk full",
    "files too large",
    "sync fails",
    "rename fails",
    "short writes",
)
_DISK_FATES = ("disk full", "files too large", "sync fails", "rename fails")
_ENDS: dict[str, tuple[int, ...]] = {
    "killed at a call": (0, -signal.SIGKILL),
    "killed at a moment": (0, -signal.SIGKILL),
    "interrupted": (0, 1, 130, -signal.SIGINT),
} | dict.fromkeys(_DISK_FATES, (0, DISK))
DAMAGES = ("cut", "flipped", "gone", "zeroed", "longer", "half a copy", "another clock")


class ChaosError(AssertionError):
    """A trial that found the store to break its word."""


def read(root: Path) -> tuple[Rows, ActivationStore]:
    """Read activations and gradients of a small network, in shards of eight rows."""
    net = nets.seeded(nets.ConvNet())
    store = ActivationStore(root, batch_size=4, progress=False)
    with mock.patch.object(extraction, "_SHARD_ROWS", CHUNK):
        rows = store.read([Score(net, 0)], ["features.0", "features.2"], TensorExamples(PIXELS))
    return rows, store


def flat(rows: Rows) -> list[Tensor]:
    """Return all rows, in one order."""
    return [part[name] for part in (rows.activations, *rows.gradients) for name in sorted(part)]


def work(root: Path, fate: Fate, expected: list[Tensor], parent: Connection) -> None:
    """Fill a store as a worker with a fate, from when the parent says so, and compare what it serves."""
    try:
        parent.send("ready")
        parent.recv()
        _prepare(*fate)
        rows, _ = read(root)
    except StoreWriteError:
        sys.exit(DISK)
    except KeyboardInterrupt:
        sys.exit(130)
    if not all(map(torch.equal, flat(rows), expected)):
        sys.exit(WRONG)


def _prepare(kind: str, share: float) -> None:
    """Arrange for what will befall this process; `share` in [0, 1) says when."""
    step = 1 + int(share * STEPS)
    if kind == "killed at a call":
        _count_calls(lambda: os.kill(os.getpid(), signal.SIGKILL), step, only=True)
    elif kind == "disk full":
        _fail("write", errno.ENOSPC, step // 3)
    elif kind == "sync fails":
        _fail("fsync", errno.EIO, step // 4)
    elif kind == "rename fails":
        _fail("replace", errno.ENOSPC, step // 6)
    elif kind == "files too large":  # the kernel's own refusal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * 12_000), resource.RLIM_INFINITY))
    elif kind == "short writes":
        write = os.write
        vars(shards.os)["write"] = lambda file, data: write(file, data[: max(1, len(data) // 2)])


def _count_calls(strike: Callable[[], object], step: int, *, only: bool) -> None:
    calls = count(1)  # of several threads

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            now = next(calls)
            if now == step or (now > step and not only):
                strike()
            return function(*args, **kwargs)

        return call

    for name in ("write", "fsync", "open", "close"):
        setattr(shards.os, name, counted(getattr(os, name)))
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]


def _fail(name: str, number: int, step: int) -> None:
    """Let a call fail from some step on, as a full disk does."""
    owner = Path if name == "replace" else shards.os
    function, calls = getattr(owner, name), [0]

    def call(*args: object, **kwargs: object) -> object:
        calls[0] += 1
        if calls[0] > step:
            raise OSError(number, os.strerror(number))
        return function(*args, **kwargs)

    setattr(owner, name, call)


def begin(fates: Sequence[Fate], root: Path, expected: list[Tensor]) -> list[BaseProcess]:
    """Start workers at one moment, in processes forked from a server that has never computed anything."""
    context, workers, pipes = _context(), [], []
    for fate in fates:
        ours, theirs = context.Pipe()
        workers.append(context.Process(target=work, args=(root, fate, expected, theirs)))
        pipes.append(ours)
        workers[-1].start()
    for pipe in pipes:
        pipe.recv()
    for pipe in pipes:
        pipe.send("go")
    return list(workers)


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])
    context.set_forkserver_preload(["chaos"])
    forkserver.ensure_running()
    return context


def files(root: Path) -> dict[str, bytes]:
    """Return the bytes of all files but locks."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.parent.name != "locks" and path.is_file():
            try:
                found[str(path.relative_to(root))] = path.read_bytes()
            except FileNotFoundError:  # a worker's, renamed meanwhile
                continue
    return found


@dataclass
class Trial:
    """One store and what befalls it."""

    seed: int
    root: Path
    expected: list[Tensor]
    undisturbed: dict[str, bytes]
    happened: Counter[str] = field(default_factory=Counter)
    log: list[str] = field(default_factory=list)
    unlocked: bool = False

    def run(self) -> None:
        """Go through all rounds and the undisturbed run after them.

        Raises:
            ChaosError: if the store breaks its word, with the seed and what befell it.
        """
        draw = random.Random(self.seed)
        for _ in range(draw.randint(1, 3)):
            self._round(draw)
        self._last()

    def _round(self, draw: random.Random) -> None:
        damaged = False
        for _ in range(draw.choice((0, 1, 1, 2, 3, 5))):
            damaged |= self._damage(draw)
        whole = self._whole()
        fates = [(draw.choice(FATES), draw.random()) for _ in range(draw.choice((1, 1, 2, 3)))]
        meanwhile = [draw.random() for _ in range(draw.choice((0, 0, 1, 2)))]
        self.log.append(f"fates {fates}")
        workers = begin(fates, self.root, self.expected)
        started = time.monotonic()
        for moment, event in sorted(self._events(fates, workers) + self._under(meanwhile, draw)):
            time.sleep(max(0.0, started + moment - time.monotonic()))
            event()
        for (kind, _), worker in zip(fates, workers, strict=True):
            worker.join(120)
            self._judge(kind, worker, damaged or bool(meanwhile))
        if not meanwhile:
            self._untouched(whole)

    def _events(self, fates: list[Fate], workers: list[BaseProcess]) -> list[tuple[float, Callable[[], object]]]:
        found: list[tuple[float, Callable[[], object]]] = []
        for (kind, share), worker in zip(fates, workers, strict=True):
            signals = {
                "killed at a moment": [(0.0, signal.SIGKILL)],
                "interrupted": [(0.0, signal.SIGINT)],
                "stopped for a while": [(0.0, signal.SIGSTOP), (0.15, signal.SIGCONT)],
            }.get(kind, [])
            found += [(share * 0.15 + later, _signaller(worker, s)) for later, s in signals]
        return found

    def _under(self, moments: list[float], draw: random.Random) -> list[tuple[float, Callable[[], object]]]:
        kinds = [k for k in DAMAGES if k != "half a copy"]  # nothing is copied under a writer's hands
        return [(moment * 0.15, lambda: self._damage(draw, kinds)) for moment in moments]

    def _judge(self, kind: str, worker: BaseProcess, damaged: bool) -> None:
        self.happened[f"{kind}: {worker.exitcode}"] += 1
        if worker.exitcode is None:
            worker.kill()
            self._fail(f"a worker that {kind} hung for two minutes")
        if worker.exitcode == WRONG:
            self._fail(f"a worker that {kind} was served wrong rows")
        allowed = (*_ENDS.get(kind, (0,)), *([DISK] if damaged else []))
        if worker.exitcode not in allowed:
            self._fail(f"a worker that {kind} ended with {worker.exitcode}, not {allowed}")

    def _damage(self, draw: random.Random, kinds: Sequence[str] = DAMAGES) -> bool:
        kind, where, how = draw.choice(kinds), draw.random(), draw.random()
        paths = [p for p in sorted(self.root.rglob("*")) if p.is_file()]
        if not paths:
            return False
        path = paths[int(where * len(paths))]
        self.log.append(f"{kind}: {path.relative_to(self.root)} ({how:.3f})")
        self.happened[kind] += 1
        self.unlocked |= path.parent.name == "locks" and kind == "gone"
        try:
            if kind == "half a copy":
                self._half_a_copy(draw)
            else:
                _hurt(path, kind, how)
        except FileNotFoundError:  # gone under our hands: a worker's temporary file
            return False
        return kind != "another clock"

    def _half_a_copy(self, draw: random.Random) -> None:
        """Put in the store's place a copy of it that was broken off in the middle of a file."""
        copy = self.root.with_name("copy")
        shutil.copytree(self.root, copy)
        paths = [p for p in copy.rglob("*") if p.is_file()]
        draw.shuffle(paths)
        keep = draw.randrange(len(paths))
        for path in paths[keep + 1 :]:
            path.unlink()
        os.truncate(paths[keep], draw.randrange(paths[keep].stat().st_size + 1))
        away = self.root.with_name("away")
        self.root.rename(away)
        copy.rename(self.root)
        shutil.rmtree(away)

    def _whole(self) -> dict[str, tuple[int, int]]:
        """Return shards that are what an undisturbed run writes, with identity and time of their file."""
        now = files(self.root)
        found = {}
        for name in now:
            record = name.removesuffix(".safetensors") + ".json"
            pair = (name, record)
            if name.endswith(".safetensors") and all(now.get(n) == self.undisturbed.get(n, b"") for n in pair):
                for n in pair:
                    state = (self.root / n).stat()
                    found[n] = (state.st_ino, state.st_mtime_ns)
        return found

    def _untouched(self, whole: dict[str, tuple[int, int]]) -> None:
        for name, before in whole.items():
            state = (self.root / name).stat() if (self.root / name).exists() else None
            if state is None or (state.st_ino, state.st_mtime_ns) != before:
                self._fail(f"a whole shard was written again or lost: {name}")

    def _last(self) -> None:
        whole = self._whole()
        chunks = Counter(Path(name).stem for name in whole if name.endswith(".json"))
        missing = COUNT - CHUNK * sum(n == SHARDS for n in chunks.values())
        rows, store = read(self.root)
        if not all(map(torch.equal, flat(rows), self.expected)):
            self._fail("the last run was served wrong rows")
        if store.stats.forward_rows > missing:  # fewer, where a canary of a damaged shard was whole
            self._fail(f"the last run computed {store.stats.forward_rows} rows, not the {missing} missing")
        self._untouched(whole)
        left = files(self.root)
        if self.unlocked:  # two at work on one shard: what the killed one had begun stays, and is never read
            left = {name: data for name, data in left.items() if not name.endswith(".tmp")}
        if left != self.undisturbed:
            names = sorted(n for n in {*left, *self.undisturbed} if left.get(n) != self.undisturbed.get(n))
            self._fail(f"files differ from an undisturbed run's: {names}")
        self.happened["rows computed again"] += missing

    def _fail(self, what: str) -> None:
        raise ChaosError(f"seed {self.seed}: {what}. What befell the store: {'; '.join(self.log)}")


def _signaller(worker: BaseProcess, number: int) -> Callable[[], object]:
    def send() -> None:
        if worker.is_alive() and worker.pid is not None:
            with contextlib.suppress(ProcessLookupError):  # it ended this moment
                os.kill(worker.pid, number)

    return send


def _hurt(path: Path, kind: str, how: float) -> None:
    size = path.stat().st_size
    at = int(how * size)
    if kind == "cut":
        os.truncate(path, at)
    elif kind == "gone":
        path.unlink()
    elif kind == "another clock":
        os.utime(path, (how * 4e9, how * 4e9))
    else:
        with path.open("r+b") as file:
            file.seek(at if kind != "longer" else size)
            byte = file.read(1) or b"\0"
            file.seek(at if kind != "longer" else size)
            file.write(
                bytes([byte[0] ^ (1 << int(how * 997) % 8)])
                if kind == "flipped"
                else b"\0" * (512 if kind == "longer" else min(512, size - at))
            )


@dataclass(frozen=True)
class Grounds:
    """What an undisturbed run serves and leaves."""

    expected: list[Tensor]
    undisturbed: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> "Grounds":
        """Run undisturbed."""
        rows, _ = read(folder)
        return cls(flat(rows), files(folder))

    def trial(self, seed: int) -> Trial:
        """Run one trial in a folder of its own."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            trial = Trial(seed, Path(folder) / "store", self.expected, self.undisturbed)
            trial.root.mkdir()
            trial.run()
        return trial


def main() -> int:
    """Run trials and print what happened in them."""
    parser = argparse.ArgumentParser(description="Random disasters on one store.")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    happened: Counter[str] = Counter()
    failures, begun = [], time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        grounds = Grounds.of(Path(folder))
    for seed in range(args.seed, args.seed + args.trials):
        try:
            happened += grounds.trial(seed).happened
        except ChaosError as error:
            failures.append(str(error))
            sys.stderr.write(f"{error}\n")
        if (seed - args.seed) % 50 == 49:
            sys.stderr.write(f"{seed - args.seed + 1} trials, {len(failures)} failed\n")
    figures = {
        "trials": args.trials,
        "first seed": args.seed,
        "seconds": round(time.monotonic() - begun),
        "failures": failures,
        "happened": dict(sorted(happened.items())),
    }
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if args.out is not None:
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    return bool(failures)


torch.set_num_threads(1)

if __name__ == "__main__":
    import chaos  # under its own name, so that workers find it loaded in the server that forks them

    sys.exit(chaos.main())
