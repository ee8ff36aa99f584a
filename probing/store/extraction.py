"""The engine of the activation store: finds rows in memory and on disk, computes the others, commits them in shards."""

import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import get_ident
from typing import Literal, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from probing.core.content_ids import bytes_id
from probing.core.errors import ProbingError
from probing.core.inputs import Batch, kind_of
from probing.core.progress import Progress
from probing.models.model_cache import remembered, trusted
from probing.models.precision import Precision, device_of
from probing.models.runner import Land, Runner
from probing.store.memory import Landing, MemoryTier, Place, gather
from probing.store.prefetch import LoadAhead, WriteBehind
from probing.store.requests import Estimate, Job, RequestError, Rows, StoreStats
from probing.store.shards import ANOTHER_FOLDER, DamagedShardError, Disk, ShardWriter, Space
from probing.store.shares import Share

T = TypeVar("T")

_SHARD_ROWS = 128
_CANARIES = 4
_CANARY_SCORES = 2
_RUNNERS = 4
# Elements of a batch that suit a CPU: activations past 32 MB go back to the kernel and are faulted in again.
_BATCH_ELEMENTS = {"cpu": 8 * 3 * 224 * 224}
_BATCH_ELEMENTS_ELSEWHERE = 128 * 3 * 224 * 224


class StaleRowsError(ProbingError, RuntimeError):
    """Stored rows are not what the model computes now, though their names say so."""


class RaggedRowsError(ProbingError, ValueError):
    """Examples of one set give a layer's outputs different shapes."""


_Found = dict[Space, dict[str, Place]]
_Lacking = dict[Space, list[str]]
Covered = Mapping[Space, frozenset[str]]
"""Rows that an earlier request writes, whether or not it has done so yet."""


@dataclass
class Engine:
    """What a store keeps between requests."""

    disk: Disk | None
    tiers: list[MemoryTier]
    device: torch.device | None
    precision: Precision
    batch_size: int | Literal["auto"]
    show_progress: bool | None
    stats: StoreStats = field(default_factory=StoreStats)
    _runners: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], Runner]] = field(default_factory=WeakKeyDictionary)
    _input_ids: dict[str, str] = field(default_factory=dict)
    _shapes: dict[Space, tuple[int, ...]] = field(default_factory=dict)
    _trusted: set[Space] = field(default_factory=set)

    def collect(self, job: Job) -> Rows:
        """Return all rows of a job, which are allocated once."""
        landing = Landing(job.positions, len(job.examples), self.tiers[0].device)
        for piece in self.stream(job, landing):
            for part, by_layer in enumerate((piece.activations, *piece.gradients)):
                for layer, rows in by_layer.items():
                    landing.take(part, layer, piece.positions, rows)
        gradients = [landing.rows(part) for part in range(1, len(job.scores) + 1)]
        return Rows(list(range(len(job.examples))), landing.rows(0), gradients)

    def stream(self, job: Job, landing: Landing | None = None) -> Iterator[Rows]:
        """Yield the rows of a job, batch by batch; chunks that another process computes come last, from its shards.

        Args:
            job: which rows.
            landing: where whole batches of computed rows are put, which are then yielded from there.
        """
        self._check_canaries(job)
        chunks, waiting = _rotated(split(list(job.positions), _SHARD_ROWS)), set[str]()
        title = f"{type(job.model).__name__}: {', '.join(job.layers[:3])}{' …' if len(job.layers) > 3 else ''}"
        with (
            Progress(len(job.positions), title, self.show_progress) as progress,
            LoadAhead(job.load_with_ids) as loader,
        ):
            room_checked = self.disk is None
            while chunks:
                chunk = chunks.popleft()
                with self._claim(job, chunk, wait=chunk[0] in waiting) as claimed:
                    if claimed:
                        for rows, computed in self._chunk(job, chunk, loader, landing, chunks):
                            progress.advance(len(set(rows.positions)), computed=computed)
                            if computed and not room_checked:
                                room_checked = self._has_room(job, rows)
                            yield rows
                    else:
                        waiting.add(chunk[0])
                        chunks.append(chunk)
                self._mend(job, chunk, loader)

    def fill(self, jobs: Sequence[Job], share: Share) -> None:
        """Compute and commit a share of some jobs' rows, of which a row that several ask for is written once.

        Raises:
            RequestError: without a disk.
            StoreFullError: before anything is computed, if all shares' rows would exceed the disk or the budget.
        """
        if self.disk is None:
            raise RequestError("rows can be filled on disk only: give the store a root.")
        earlier: list[Covered] = []
        covered: dict[Space, frozenset[str]] = {}
        size = 0
        for job in jobs:
            earlier.append(dict(covered))
            size += self.estimate(job, covered).bytes
            for space in job.spaces:
                covered[space] = covered.get(space, frozenset()).union(job.positions)
        self.disk.refuse_beyond(size)
        for job, written in zip(jobs, earlier, strict=True):
            self._fill(job, share, written)

    def estimate(self, job: Job, covered: Covered | None = None) -> Estimate:
        """Return what a job would cost beyond rows that earlier ones write; one example is passed if any is missing."""
        lacking = self._lacking(job, list(job.positions))
        missing = set[str]().union(*(set(ids) - (covered or {}).get(s, frozenset()) for s, ids in lacking.items()))
        if not missing:
            return Estimate(0, len(job.positions), 0)
        example = job.load([e for e in job.positions if e in missing][:1])
        [outputs] = self._runner(job, self.precision, example).run(example, job.layers, job.pools)
        self.stats.estimate_rows += 1
        one = sum(out.numel() * out.element_size() for out in outputs.values())
        size = one * (bool(job.outputs) + len(job.scores))
        return Estimate(len(missing), len(job.positions), size * len(missing))

    def _fill(self, job: Job, share: Share, covered: Covered) -> None:
        """Compute and commit a share's chunks, but for rows that are stored or that an earlier job writes."""
        self._check_canaries(job)
        own = share.of(split(list(job.positions), _SHARD_ROWS))
        chunks = deque(chunk for chunk in own if self._unwritten(job, chunk, covered))
        waiting, title = set[str](), f"{type(job.model).__name__}, {share}"
        with (
            Progress(len(own), title, self.show_progress) as progress,
            LoadAhead(job.load_with_ids) as loader,
        ):
            progress.advance(len(own) - len(chunks), computed=False)
            while chunks:
                chunk = chunks.popleft()
                with self._claim(job, chunk, wait=chunk[0] in waiting) as claimed:
                    if claimed:
                        self._fill_chunk(job, chunk, self._unwritten(job, chunk, covered), loader)
                        progress.advance(1, computed=True)
                    else:
                        waiting.add(chunk[0])
                        chunks.append(chunk)

    def _fill_chunk(self, job: Job, chunk: list[str], unwritten: _Lacking, loader: LoadAhead) -> None:
        batches = split(chunk, self._batch_rows(job)) if unwritten else []
        members = {space: set(ids) for space, ids in unwritten.items()}
        wanted = [[e for e in ids if any(e in m for m in members.values())] for ids in batches]
        wanted = [ids for ids in wanted if ids]
        with _Writers(self.disk, unwritten) as writers:
            for names, ahead in zip(wanted, [*wanted[1:], []], strict=True):
                inputs, input_ids = loader.get(names)
                loader.start(ahead)
                lacking = {s: [e for e in names if e in m] for s, m in members.items()}
                lacking = {space: ids for space, ids in lacking.items() if ids}
                self._input_ids.update(zip(names, input_ids, strict=True))
                computed = self._compute(job, lacking, names, inputs)
                self.stats.forward_rows += len(names)
                index = {e: i for i, e in enumerate(names)}
                found = {s: {e: (rows, index[e]) for e in names} for s, rows in computed.items()}
                writers.append(names, found, self._input_ids)
            writers.commit()

    def _lacking(self, job: Job, ids: Sequence[str]) -> _Lacking:
        """Return, per space, those examples whose rows are neither in memory nor on disk."""
        found: _Lacking = {}
        for space in job.spaces:
            known = set().union(*(tier.find(space.id, ids) for tier in self.tiers))
            on_disk = self.disk.rows(space) if self.disk else {}
            if rest := [e for e in ids if e not in known and e not in on_disk]:
                found[space] = rest
        return found

    def _runner(self, job: Job, precision: Precision, inputs: Batch) -> Runner:
        """Return the prepared model for a job, made once, of a batch's first examples, and kept while the model lives."""
        device = self.device or device_of(job.model)
        # It shares memory with the very model it was made from: one of equal weights must not stand in for it.
        own = self._runners.get(job.model, {})
        key = (job.weights, job.layers, precision, device, inputs.dtype, get_ident())
        if key not in own:
            with trusted(job.model, job.weights):
                made = _runner_of(job, precision, device, inputs)
            self.stats.prepared.add(made.prepared.how)
            self._forget_runners()
            own = self._runners.setdefault(job.model, {})
            own[key] = made
        return own[key]

    def _forget_runners(self) -> None:
        """Make room for one more, at the cost of the oldest."""
        while sum(map(len, self._runners.values())) >= _RUNNERS:
            model, oldest = next(iter(self._runners.items()))
            del oldest[next(iter(oldest))]
            if not oldest:
                del self._runners[model]

    @contextmanager
    def _claim(self, job: Job, chunk: list[str], *, wait: bool) -> Iterator[bool]:
        """Hold the right to write a chunk's rows, if any are unwritten; yields False where another process has it."""
        if self.disk is None or not self._unwritten(job, chunk):
            yield True
            return
        name = bytes_id("\0".join([job.weights, *chunk]).encode())
        with self.disk.lock(name, wait=wait) as held:
            if held and self.disk.has_locks:  # without locks others' rows are no sooner there than ours
                self._refresh(job)
            yield held

    def _refresh(self, job: Job) -> None:
        assert self.disk is not None
        for space in job.spaces:
            self.disk.rows(space, refresh=True)

    def _unwritten(self, job: Job, chunk: list[str], covered: Covered | None = None) -> _Lacking:
        if self.disk is None:
            return {}
        rows = {space: self.disk.rows(space) for space in job.spaces}
        others = {space: (covered or {}).get(space, frozenset()) for space in job.spaces}
        found = {space: [e for e in chunk if e not in rows[space] and e not in others[space]] for space in job.spaces}
        return {space: ids for space, ids in found.items() if ids}

    def _chunk(
        self,
        job: Job,
        chunk: list[str],
        loader: LoadAhead,
        landing: Landing | None = None,
        upcoming: Sequence[list[str]] = (),
    ) -> Iterator[tuple[Rows, bool]]:
        """Yield a chunk's rows batch by batch, and whether any were computed; commit those that were unwritten."""
        lacking = self._lacking(job, chunk)
        batches = split(chunk, self._batch_rows(job) if lacking else len(chunk))
        members = set().union(*lacking.values())
        wanted = [[e for e in ids if e in members] for ids in batches]
        with _Writers(self.disk, self._unwritten(job, chunk)) as writers:
            for ids, ahead in zip(batches, [*wanted[1:], self._first(job, upcoming)], strict=True):
                loader.start(ahead)
                found, computed = self._batch(job, ids, loader, landing)
                writers.append(ids, found, self._input_ids)
                self.stats.reused_rows += len(ids) - computed
                yield self._rows(job, ids, found), computed > 0
            writers.commit()

    def _first(self, job: Job, chunks: Sequence[list[str]]) -> list[str]:
        """Return the first batch of the next chunk that has to be computed, as far as can be told now."""
        chunk = chunks[0] if chunks else []
        members = set().union(*self._lacking(job, chunk).values())
        return [e for e in split(chunk, self._batch_rows(job))[0] if e in members] if members else []

    def _batch(self, job: Job, ids: list[str], loader: LoadAhead, landing: Landing | None) -> tuple[_Found, int]:
        """Return where a batch's rows are, having computed those that were nowhere, and how many examples that took."""
        found = {space: self._find(space, ids) for space in job.spaces}
        lacking = {space: [e for e in ids if e not in places] for space, places in found.items()}
        lacking = {space: lack for space, lack in lacking.items() if lack}
        if not lacking:
            return found, 0
        members = set().union(*lacking.values())
        names = [e for e in ids if e in members]
        inputs, input_ids = loader.get(names)
        self._input_ids.update(zip(names, input_ids, strict=True))
        computed = self._compute(job, lacking, names, inputs, landing)
        self.stats.forward_rows += len(names)
        for space, rows in computed.items():
            keep = lacking[space]
            index = {e: i for i, e in enumerate(names)}
            block = rows if len(keep) == len(names) else rows[[index[e] for e in keep]]
            whole = None if landing is None else landing.whole_of(block)
            found[space] |= self._remember(space, keep, block, whole)
        return found, len(names)

    def _compute(
        self,
        job: Job,
        lacking: _Lacking,
        names: list[str],
        inputs: Batch,
        landing: Landing | None = None,
    ) -> dict[Space, Tensor]:
        """Pass examples through the model once and return rows of the spaces that lack some."""
        layers = [n for n in job.layers if any(by.get(n) in lacking for by in (job.outputs, *job.slopes))]
        scores = [i for i, by_layer in enumerate(job.slopes) if any(s in lacking for s in by_layer.values())]
        found: dict[Space, Tensor] = {}
        if scores:
            runner = self._runner(job, self.precision.gradients, inputs)
            same = self.precision.gradients == self.precision
            parts = [job.outputs if same else {}, *(job.slopes[i] for i in scores)]
            land = _landing(landing, parts, [0, *(i + 1 for i in scores)], lacking, names)
            outputs, *gradients = runner.run(inputs, layers, job.pools, [job.scores[i] for i in scores], land=land)
            self.stats.backward_rows += len(names) * len(scores)
            for i, by_layer in zip(scores, gradients, strict=True):
                found |= {job.slopes[i][layer]: rows for layer, rows in by_layer.items()}
            if same and job.outputs:
                found |= {job.outputs[layer]: rows for layer, rows in outputs.items()}
        if rest := [n for n in layers if n in job.outputs and job.outputs[n] in lacking and job.outputs[n] not in found]:
            land = _landing(landing, [job.outputs], [0], lacking, names)
            [outputs] = self._runner(job, self.precision, inputs).run(inputs, rest, job.pools, land=land)
            found |= {job.outputs[layer]: rows for layer, rows in outputs.items()}
        return {space: rows for space, rows in found.items() if space in lacking}

    def _find(self, space: Space, ids: Sequence[str]) -> dict[str, Place]:
        found: dict[str, Place] = {}
        for tier in self.tiers:
            found = tier.find(space.id, [e for e in ids if e not in found]) | found
        on_disk = self.disk.rows(space) if self.disk else {}
        for shard in dict.fromkeys(on_disk[e][0] for e in ids if e not in found and e in on_disk):
            assert self.disk is not None
            here = [e for e in ids if e not in found and e in on_disk and on_disk[e][0] is shard]
            try:
                rows = shard.read([on_disk[e][1] for e in here])
            except DamagedShardError:
                self.disk.drop(shard)
                continue
            self._input_ids |= {e: shard.inputs[on_disk[e][1]] for e in here}
            found |= self._remember(space, here, rows)
        return found

    def _remember(self, space: Space, ids: list[str], rows: Tensor, whole: Tensor | None = None) -> dict[str, Place]:
        shape = self._shapes.setdefault(space, tuple(rows.shape[1:]))
        if shape != tuple(rows.shape[1:]):
            raise RaggedRowsError(
                f"layer {space.layer!r} returns rows of differing shape, {shape} and {tuple(rows.shape[1:])}; "
                "use pool='mean', or examples of one size."
            )
        home = self.tiers[0].put(space.id, ids, rows, whole)
        return {e: (home, i) for i, e in enumerate(ids)}

    def _rows(self, job: Job, ids: list[str], found: _Found) -> Rows:
        """Return a batch's rows for every position that asks for them."""
        home = self.tiers[0].device
        positions = [p for e in ids for p in job.positions[e]]
        repeats = torch.tensor([len(job.positions[e]) for e in ids], device=home)

        def rows_of(by_layer: dict[str, Space]) -> dict[str, Tensor]:
            rows = {layer: gather(found[space], ids, home) for layer, space in by_layer.items()}
            return rows if len(positions) == len(ids) else {n: r.repeat_interleave(repeats, 0) for n, r in rows.items()}

        return Rows(positions, rows_of(job.outputs), [rows_of(by_layer) for by_layer in job.slopes])

    def _has_room(self, job: Job, rows: Rows) -> bool:
        """Return True, or raise where the disk can't hold the rows that are still unwritten."""
        assert self.disk is not None
        layers = [values for by_layer in (rows.activations, *rows.gradients) for values in by_layer.values()]
        size = sum(values[0].numel() * values.element_size() for values in layers)
        unwritten = set().union(*self._unwritten(job, list(job.positions)).values())
        self.disk.refuse_beyond(len(unwritten) * size)
        return True

    def _mend(self, job: Job, chunk: list[str], loader: LoadAhead) -> None:
        """Write rows again whose shard was found damaged while its chunk was read."""
        if self.disk is None or self.disk.dropped == self.stats.dropped_shards:
            return
        self.stats.dropped_shards = self.disk.dropped
        with self._claim(job, chunk, wait=True):  # waiting always ends with the claim
            for _ in self._chunk(job, chunk, loader):
                pass

    def _batch_rows(self, job: Job) -> int:
        if self.batch_size != "auto":
            return self.batch_size
        device = self.device or device_of(job.model)
        elements = job.load([next(iter(job.positions))]).numel()
        return max(
            1,
            min(
                _SHARD_ROWS,
                _BATCH_ELEMENTS.get(device.type, _BATCH_ELEMENTS_ELSEWHERE) // max(1, elements),
            ),
        )

    def _check_canaries(self, job: Job) -> None:
        """Recompute a few stored rows of spaces this process has not seen: this catches what no key can see."""
        if self.disk is None:
            return
        by_ids: dict[tuple[str, ...], list[Space]] = {}
        by_score = [list(by_layer.values()) for by_layer in job.slopes]
        checked = [s for slopes in _spread(by_score, _CANARY_SCORES) for s in slopes]
        for space in dict.fromkeys([*job.outputs.values(), *checked]):
            if space not in self._trusted:
                stored = [e for e in job.positions if e in self.disk.rows(space)]
                by_ids.setdefault(tuple(_spread(stored, _CANARIES)), []).append(space)
        for ids, spaces in by_ids.items():
            if ids:
                self._check(job, list(ids), spaces)
            self._trusted.update(spaces)
        self._trusted.update(job.spaces)  # what was not checked itself was computed in the same passes

    def _check(self, job: Job, ids: list[str], spaces: list[Space]) -> None:
        stored = {space: self._find(space, ids) for space in spaces}
        was = {e: self._input_ids[e] for places in stored.values() for e in places}
        inputs, input_ids = job.load_with_ids(ids)
        self._input_ids.update(zip(ids, input_ids, strict=True))
        backward = self.stats.backward_rows
        now = self._compute(job, dict.fromkeys(spaces, ids), ids, inputs)
        self.stats.backward_rows = backward
        self.stats.canary_rows += len(ids)
        for e, before in was.items():
            if self._input_ids[e] != before:
                raise StaleRowsError(
                    f"example {e} is preprocessed otherwise than when its rows were stored. {_UNSEEN}",
                    mends=[ANOTHER_FOLDER],
                )
        for space, places in stored.items():
            for e, (block, row) in places.items():
                gap = _gap(now[space][ids.index(e)], block[row])
                tolerance = Precision(space.precision).tolerance  # type: ignore[arg-type]
                tolerance *= 20 if space.quantity != "activation" else 1  # a flipped ReLU moves a gradient
                if not gap <= tolerance:  # NaN included
                    raise StaleRowsError(
                        f"stored rows of layer {space.layer!r} ({space.quantity}) are not what {space.model} computes "
                        f"now: relative difference {gap:.2g} for example {e}. {_UNSEEN}",
                        mends=[ANOTHER_FOLDER],
                    )


def _runner_of(job: Job, precision: Precision, device: torch.device, inputs: Batch) -> Runner:
    """Return the prepared model for a job, of which all stores share the last few of a model."""
    made = remembered(job.model, "runners", dict[tuple[object, ...], Runner])
    key = (job.layers, precision, device, kind_of(inputs))
    if key not in made:
        runner = Runner.of(job.model, job.layers, precision, device, inputs)
        while len(made) >= _RUNNERS:
            del made[next(iter(made))]
        made[key] = runner
    return made[key]


def _landing(
    landing: Landing | None,
    parts: Sequence[Mapping[str, Space]],
    numbers: Sequence[int],
    lacking: _Lacking,
    names: list[str],
) -> Land:
    """Return what puts the rows of a pass where they are to stay: those of spaces that lack all of them."""

    def land(part: int, layer: str, rows: Tensor) -> Tensor:
        space = parts[part].get(layer)
        if landing is None or space is None or lacking.get(space) != names:
            return rows.contiguous()
        return landing.land(numbers[part], layer, names, rows)

    return land


_UNSEEN = (
    "Something that no key can see has changed, such as a function patched at run time: "
    "restore it, run `probing cache clear`"
)


class _Writers:
    """The shards that a chunk's unwritten rows go to, written behind the computation."""

    def __init__(self, disk: Disk | None, unwritten: _Lacking) -> None:
        self._disk, self._unwritten = disk, {space: set(ids) for space, ids in unwritten.items()}
        self._writers = {s: ShardWriter(disk.folder(s), s, tuple(ids)) for s, ids in unwritten.items()} if disk else {}
        self._behind = WriteBehind()

    def __enter__(self) -> "_Writers":
        return self

    def append(self, ids: list[str], found: _Found, input_ids: dict[str, str]) -> None:
        for space, writer in self._writers.items():
            if names := [e for e in ids if e in self._unwritten[space]]:
                rows, inputs = (
                    gather(found[space], names, torch.device("cpu")),
                    [input_ids[e] for e in names],
                )
                self._behind.submit(lambda w=writer, r=rows, i=inputs: w.append(r, i))  # type: ignore[misc]

    def commit(self) -> None:
        self._behind.wait()
        if self._disk is None or not self._writers:
            return
        with ThreadPoolExecutor(len(self._writers)) as pool:  # each waits for the disk several times
            for shard in pool.map(ShardWriter.commit, self._writers.values()):
                self._disk.add(shard)

    def __exit__(self, *_: object) -> None:
        self._behind.close()
        for writer in self._writers.values():
            writer.abort()


def split(ids: list[str], size: int) -> list[list[str]]:
    """Return consecutive pieces of at most `size`."""
    return [ids[i : i + size] for i in range(0, len(ids), size)]


def _rotated(chunks: list[list[str]]) -> deque[list[str]]:
    """Start each rank of a `torchrun` at its own share, so that ranks seldom meet."""
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    queue = deque(chunks)
    queue.rotate(-(rank * len(chunks) // world))
    return queue


def _spread(items: list[T], count: int) -> list[T]:
    """Return up to `count` items, evenly spread."""
    if len(items) <= count:
        return items
    return [items[i * (len(items) - 1) // (count - 1)] for i in range(count)]


def _gap(now: Tensor, stored: Tensor) -> float:
    now, stored = now.double().cpu(), stored.double().cpu()
    if now.shape != stored.shape:
        return float("inf")
    scale = float(stored.norm())
    return float((now - stored).norm()) / scale if scale else float(now.norm())
