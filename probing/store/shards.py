"""Rows on disk: safetensors shards, each valid only with the commit record that is written after it.

A shard holds rows of one space (one layer, quantity, pooling and precision of one model). Its file is written under
a temporary name, synced and renamed; then its record follows the same way. A process killed at any point leaves
whole shards and rubbish that is overwritten, never half a shard. Each row has a checksum that is compared whenever
the row is read. Where files lie on an object store, each is written at once and the record still last.
"""

import contextlib
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from probing.core.content_ids import bytes_id, tensor_bytes
from probing.core.errors import ArgumentError, Mend, ProbingError
from probing.core.storage import (
    Address,
    Place,
    beside,
    each,
    listed,
    located,
    lock,
    move,
    read_head,
    read_pieces,
    write_whole,
)

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_PAGE = 4096
_SYNCED_AT_ONCE = 2**23
"""Bytes after which a shard is brought to the disk, behind the passes: else its commit waits for all of them."""
_BINARY = getattr(os, "O_BINARY", 0)  # without it Windows changes the ends of lines


ANOTHER_FOLDER = Mend("name another folder", "root=…")


class StoreWriteError(ProbingError, OSError):
    """The cache folder can't be written to."""


class StoreFullError(StoreWriteError):
    """The disk that holds the cache is full, or too small for what was asked."""


class DamagedShardError(ProbingError, ValueError):
    """A shard on disk is not what its record says; internal, the store recomputes its rows."""


@dataclass(frozen=True)
class Space:
    """What the rows of a shard are: the readable key of stored work."""

    weights: str
    model: str
    layer: str
    quantity: str
    pool: str
    precision: str

    @cached_property
    def id(self) -> str:
        """The content id that names the space's folder."""
        return bytes_id("\0".join(asdict(self).values()).encode())


@dataclass(frozen=True)
class Shard:
    """A committed file of rows."""

    path: Place
    space: Space
    ids: tuple[str, ...]
    inputs: tuple[str, ...]
    checksums: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return math.prod(self.shape) * _DTYPES[self.dtype].itemsize

    @property
    def record(self) -> Place:
        """The commit record beside the file."""
        return self.path.with_suffix(".json")

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return rows, each compared with its checksum.

        Raises:
            DamagedShardError: if the file is missing, short or altered.
        """
        out = torch.empty((len(rows), *self.shape), dtype=_DTYPES[self.dtype])
        view, size = tensor_bytes(out), self.row_bytes
        try:
            pieces = [(self.offset + rows[start] * size, view[start * size : stop * size]) for start, stop in _runs(rows)]
            if not read_pieces(self.path, pieces):
                raise DamagedShardError(f"{self.path} is shorter than its record says")
        except OSError as error:
            raise _read_error(self.path, error) from None
        for i, row in enumerate(rows):
            if xxhash.xxh3_64_hexdigest(view[i * size : (i + 1) * size]) != self.checksums[row]:
                raise DamagedShardError(f"row {row} of {self.path} is not what was written")
        return out

    def drop(self) -> None:
        """Remove the shard: the record first, so that no moment leaves a record without its file."""
        self.record.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yield stretches [start, stop) of positions whose rows follow each other in the file."""
    start = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield start, i
            start = i


@dataclass
class ShardWriter:
    """Streams rows of known number into a shard, then commits it."""

    folder: Place
    space: Space
    ids: tuple[str, ...]
    checksums: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    shape: tuple[int, ...] = ()
    dtype: str = ""
    offset: int = 0

    def __post_init__(self) -> None:
        self.path = self.folder / f"{_shard_name(self.ids)}.safetensors"
        self.temporary = beside(self.path)
        self.file: int | None = None
        self._unsynced = 0

    def append(self, rows: Tensor, inputs: Sequence[str]) -> None:
        """Write rows that follow the ones before."""
        if self.file is None:
            self._begin(rows)
        size = math.prod(self.shape) * rows.element_size()
        view = tensor_bytes(rows)
        self._write(view)
        self._unsynced += len(view)
        if self._unsynced >= _SYNCED_AT_ONCE:
            with writing(self.folder):
                self._sync()
        self.checksums += [xxhash.xxh3_64_hexdigest(view[i * size : (i + 1) * size]) for i in range(len(rows))]
        self.inputs += inputs

    def commit(self) -> Shard:
        """Make the rows visible to every process."""
        if self.file is None or len(self.checksums) != len(self.ids):
            raise ArgumentError(f"{len(self.checksums)} of {len(self.ids)} rows were written: nothing to commit.")
        with writing(self.folder):
            self._sync()
            self._close()
            move(self.temporary, self.path)
            shard = Shard(
                self.path,
                self.space,
                self.ids,
                tuple(self.inputs),
                tuple(self.checksums),
                self.shape,
                self.dtype,
                self.offset,
            )
            _write_record(shard)
        return shard

    def abort(self) -> None:
        """Forget what was written; a no-op after `commit`."""
        self._close()
        with contextlib.suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def _begin(self, rows: Tensor) -> None:
        if rows.dtype not in _NAMES:
            raise ArgumentError(f"layer {self.space.layer!r} returns {rows.dtype}, expected floating point.")
        self.shape, self.dtype = tuple(rows.shape[1:]), _NAMES[rows.dtype]
        header = _header(self.space, len(self.ids), self.shape, self.dtype)
        self.offset = len(header)
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = os.open(self.temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _BINARY, 0o644)
        self._write(memoryview(header))

    def _write(self, data: memoryview) -> None:
        assert self.file is not None
        with writing(self.folder):
            while len(data):
                data = data[os.write(self.file, data) :]

    def _sync(self) -> None:
        assert self.file is not None
        os.fsync(self.file)
        self._unsynced = 0

    def _close(self) -> None:
        if self.file is not None:
            os.close(self.file)
            self.file = None


def _shard_name(ids: Sequence[str]) -> str:
    return bytes_id("\0".join(ids).encode())


def _read_error(path: Place, error: OSError) -> OSError | DamagedShardError:
    """Return what a failed read says of a shard: damage only where its bytes can't be had at any other time either."""
    if isinstance(error, FileNotFoundError):
        return DamagedShardError(f"{path} is gone")
    if error.errno == errno.EIO:
        return DamagedShardError(f"the disk can't read {path}")
    return error


def _header(space: Space, count: int, shape: tuple[int, ...], dtype: str) -> bytes:
    """Return what a shard begins with: so much safetensors that its data start on a page boundary."""
    total = count * math.prod(shape) * _DTYPES[dtype].itemsize
    tensor = {"dtype": dtype, "shape": [count, *shape], "data_offsets": [0, total]}
    text = json.dumps({"__metadata__": asdict(space), "rows": tensor}).encode()
    text += b" " * (-(len(text) + 8) % _PAGE)
    return len(text).to_bytes(8, "little") + text


def _write_record(shard: Shard) -> None:
    fields = {
        "space": asdict(shard.space),
        "shape": shard.shape,
        "dtype": shard.dtype,
        "offset": shard.offset,
        "ids": shard.ids,
        "inputs": shard.inputs,
        "checksums": shard.checksums,
    }
    body = json.dumps(fields).encode()
    write_whole(shard.record, bytes_id(body).encode() + b"\n" + body)


def read_record(record: Place) -> Shard:
    """Return the shard that a commit record describes.

    Raises:
        DamagedShardError: if the record is altered, lies where it does not belong, or the file beside it is missing, of
            another size or headed otherwise.
        OSError: if it can't be read now, which says nothing of the shard: no permission, too many open files.
    """
    path = record.with_suffix(".safetensors")
    try:
        checksum, _, body = record.read_bytes().partition(b"\n")
        if bytes_id(body) != checksum.decode():
            raise DamagedShardError(f"{record} is not what was written")
        fields = json.loads(body)
        lists = {name: tuple(fields[name]) for name in ("ids", "inputs", "checksums", "shape")}
        shard = Shard(path, Space(**fields["space"]), dtype=fields["dtype"], offset=fields["offset"], **lists)
        _refuse_contradictions(shard)
        if path.stat().st_size != shard.offset + shard.row_bytes * len(shard.ids):
            raise DamagedShardError(f"{path} is not as long as its record says")
        header = _header(shard.space, len(shard.ids), shard.shape, shard.dtype)
        if shard.offset != len(header) or read_head(path, shard.offset) != header:
            raise DamagedShardError(f"{path} does not begin as it was written")  # no row's checksum covers it
    except OSError as error:
        raise _read_error(path, error) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedShardError(str(error)) from None
    return shard


def _read_or_none(record: Place) -> Shard | None:
    try:
        return read_record(record)
    except DamagedShardError:
        return None


def _refuse_contradictions(shard: Shard) -> None:
    """Raise where a record does not fit its place, or its parts each other; a checksum alone is no proof of that."""
    count = len(shard.ids)
    if len(shard.inputs) != count or len(shard.checksums) != count:
        raise DamagedShardError(f"{shard.record} counts its rows in two ways")
    if shard.path.stem != _shard_name(shard.ids) or shard.path.parent.name != shard.space.id:
        raise DamagedShardError(f"{shard.record} is a record of other rows")
    if min(shard.shape, default=0) < 0:
        raise DamagedShardError(f"{shard.record} holds a size below zero")


@contextlib.contextmanager
def writing(folder: Place) -> Iterator[None]:
    """Say of an error what can't be written, and how to mend it."""
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise StoreFullError(
                f"the disk of the cache folder {str(folder)!r} is full; free space, pool the rows",
                mends=[ANOTHER_FOLDER],
            ) from None
        raise StoreWriteError(
            f"can't write to the cache folder {str(folder)!r} ({error.strerror or error}):",
            mends=[ANOTHER_FOLDER, Mend("keep rows in memory", "root=None")],
        ) from None


class Disk:
    """The shards under one root, found by space and example id."""

    def __init__(self, root: Place, budget: int | None = None) -> None:
        self.root = root / "rows-v1"
        self.budget = budget
        self.dropped = 0
        self._records: dict[str, dict[str, Shard]] = {}
        self._rows: dict[str, dict[str, tuple[Shard, int]]] = {}
        self._listed: set[str] = set()

    @property
    def has_locks(self) -> bool:
        """Whether processes can keep each other from computing the same rows."""
        return isinstance(self.root, Path)

    def folder(self, space: Space) -> Place:
        """Return where a space's shards lie."""
        return self.root / space.id

    def rows(self, space: Space, *, refresh: bool = False) -> dict[str, tuple[Shard, int]]:
        """Return where each stored row of a space is; `refresh` sees what other processes committed."""
        known = self._records.setdefault(space.id, {})
        rows = self._rows.setdefault(space.id, {})
        if refresh or space.id not in self._listed:
            self._listed.add(space.id)
            found = listed(self.folder(space), "*.json")
            new = [record for record in found if record.name not in known]
            for record, shard in zip(new, each(_read_or_none, new, self.root), strict=True):
                self._take(record, shard)
        return rows

    def add(self, shard: Shard) -> None:
        """Take up a shard that was committed."""
        self._records.setdefault(shard.space.id, {})[shard.record.name] = shard
        rows = self._rows.setdefault(shard.space.id, {})
        for i, example in enumerate(shard.ids):
            rows.setdefault(example, (shard, i))

    def drop(self, shard: Shard) -> None:
        """Remove a damaged shard, so that its rows are computed again."""
        with writing(self.root):
            shard.drop()
        self.dropped += 1
        self._records[shard.space.id].pop(shard.record.name, None)
        rows = self._rows[shard.space.id]
        for example in [e for e, (s, _) in rows.items() if s is shard]:
            del rows[example]

    def refuse_beyond(self, size: int) -> None:
        """Raise `StoreFullError` if the disk, or the budget, has less room than a job needs."""
        if self.budget is not None:
            held = sum(path.stat().st_size for path in self.root.glob("*/*.safetensors"))
            if size > self.budget - held:
                raise StoreFullError(
                    f"this job writes {size / 1e9:,.2f} GB to {str(self.root)!r}, which holds {held / 1e9:,.2f} GB of a "
                    f"budget of {self.budget / 1e9:,.2f} GB; pool the rows, read fewer layers",
                    mends=[Mend("raise the budget", "disk_budget_bytes=…")],
                )
        if isinstance(self.root, Address):
            return
        folder = next(p for p in (self.root, *self.root.parents) if p.exists())
        free = shutil.disk_usage(folder).free
        if size > free:
            raise StoreFullError(
                f"this job writes {size / 1e9:,.2f} GB to {str(self.root)!r}, where {free / 1e9:,.2f} GB are free; "
                "pool the rows, read fewer layers",
                mends=[ANOTHER_FOLDER],
            )

    def _take(self, record: Place, shard: Shard | None) -> None:
        """Take up what a record tells, or remove one that tells nothing."""
        if shard is not None:
            self.add(shard)
            return
        with writing(self.root):
            record.unlink(missing_ok=True)
            record.with_suffix(".safetensors").unlink(missing_ok=True)
        self.dropped += 1

    @contextlib.contextmanager
    def lock(self, name: str, *, wait: bool) -> Iterator[bool]:
        """Hold a lock between processes; yields whether it was got, as `probing.core.storage.lock` does.

        An object store has none: there two workers on one chunk write the same bytes twice.
        """
        if not isinstance(self.root, Path):
            yield True
            return
        path = self.root / "locks" / name
        with contextlib.ExitStack() as until_done:
            with writing(self.root):
                path.parent.mkdir(parents=True, exist_ok=True)
                held = until_done.enter_context(lock(path, wait=wait))
            yield held


def default_root() -> Place:
    """Return the cache folder that commands use: `$PROBING_CACHE`, or `~/.cache/probing`."""
    return located(os.environ.get("PROBING_CACHE") or Path.home() / ".cache" / "probing")


@dataclass(frozen=True)
class SpaceInfo:
    """How much is stored of one space."""

    space: Space
    rows: int
    bytes: int


def cache_info(root: Place) -> list[SpaceInfo]:
    """Return what a cache folder holds, largest first; damaged shards count as nothing."""
    totals: dict[Space, tuple[int, int]] = {}
    for record in listed(root / "rows-v1", "*/*.json"):
        try:
            shard = read_record(record)
        except DamagedShardError:
            continue
        rows, size = totals.get(shard.space, (0, 0))
        totals[shard.space] = rows + len(shard.ids), size + shard.path.stat().st_size
    found = [SpaceInfo(space, rows, size) for space, (rows, size) in totals.items()]
    return sorted(found, key=lambda info: (-info.bytes, info.space.layer))


def clear_cache(root: Place) -> int:
    """Remove all stored rows under a root, and nothing else that lies there; return the bytes freed."""
    freed = 0
    for path in listed(root / "rows-v1", "*/*"):
        if path.suffix in {".json", ".safetensors", ".tmp"} or path.parent.name == "locks":
            freed += path.stat().st_size
            path.unlink()
    for folder in [*(root / "rows-v1").glob("*"), root / "rows-v1"]:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return freed
