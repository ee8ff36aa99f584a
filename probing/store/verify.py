"""Every checksum of a store compared with what lies there; what is damaged is named and dropped."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from probing.core.errors import ProbingError
from probing.core.progress import Progress
from probing.core.storage import Place, inside, listed
from probing.store.shards import DamagedShardError, Shard, read_record, writing

_READ_BYTES = 64 << 20  # at a time
_ROWS = "rows-v1"


class NoStoreError(ProbingError, LookupError):
    """A folder holds no store."""


@dataclass(frozen=True)
class Damage:
    """A shard that is not what was written.

    Attributes:
        file: its path below the root.
        what: model and layer, where the record can still be read.
        reason: what is wrong.
        rows: that are lost, where the record can still be read.
    """

    file: str
    what: str
    reason: str
    rows: int | None


@dataclass(frozen=True)
class Verification:
    """What was found in a store.

    Attributes:
        shards: that are what was written, to the byte.
        rows: in these.
        bytes: in these.
        damaged: the others.
        dropped: whether these were removed.
        unfinished: files of jobs that were cut short or are at work now, below the root; never served, left alone.
        unfinished_bytes: their size.
    """

    shards: int
    rows: int
    bytes: int
    damaged: tuple[Damage, ...]
    dropped: bool
    unfinished: tuple[str, ...]
    unfinished_bytes: int


def verify_cache(root: Place, *, keep: bool = False, progress: bool | None = None) -> Verification:
    """Read every byte of a store and compare it with its checksum.

    Damaged shards are dropped, so that the next job computes their rows again, as it would when it met them. Jobs may
    run on the store meanwhile: a shard is only looked at once it is committed, and unfinished files are left alone.

    Args:
        root: the folder of the store.
        keep: drop nothing.
        progress: a bar on stderr; None shows it on a terminal.

    Raises:
        NoStoreError: if there is no store.
        probing.store.shards.StoreWriteError: if a damaged shard can't be dropped.
    """
    folder = root / _ROWS
    if not folder.is_dir():
        raise NoStoreError(f"{str(root)!r} holds no store: name the folder that --cache named.")
    records = listed(folder, "*/*.json")
    sound: list[Shard] = []
    damaged: list[Damage] = []
    with Progress(len(records), "Shards", progress) as bar:
        for record in records:
            found = _examined(record, root)
            if isinstance(found, Shard):
                sound.append(found)
            elif found is not None:
                damaged.append(found)
                if not keep:
                    _drop(record)
            bar.advance(1, computed=True)
    left = sorted(_unfinished(folder), key=str)
    return Verification(
        shards=len(sound),
        rows=sum(len(shard.ids) for shard in sound),
        bytes=sum(shard.offset + shard.row_bytes * len(shard.ids) for shard in sound),
        damaged=tuple(damaged),
        dropped=not keep,
        unfinished=tuple(inside(path, root) for path, _ in left),
        unfinished_bytes=sum(size for _, size in left),
    )


def _examined(record: Place, root: Place) -> Shard | Damage | None:
    """Return a shard that is sound, or what is wrong with it; None where it is gone, as another process dropped it."""
    for _ in range(2):  # damaged only if it is so twice: another process may have written it anew meanwhile
        name = inside(record, root)
        try:
            shard = read_record(record)
        except DamagedShardError as error:
            found = Damage(name, "", str(error).replace(f"{root}/", ""), None)
            continue
        fault = _fault(shard)
        if not fault:
            return shard
        what = f"{shard.space.model} {shard.space.layer or '(output)'}, {shard.space.quantity}"
        found = Damage(name, what, fault.replace(f"{root}/", ""), len(shard.ids))
    return found if record.exists() else None


def _fault(shard: Shard) -> str:
    """Return what is wrong with a shard's rows, or nothing."""
    step = max(1, _READ_BYTES // max(1, shard.row_bytes))
    try:
        for start in range(0, len(shard.ids), step):
            shard.read(range(start, min(start + step, len(shard.ids))))
    except DamagedShardError as error:
        return str(error)
    return ""


def _drop(record: Place) -> None:
    with writing(record.parent):
        record.unlink(missing_ok=True)  # first: no moment leaves a record without its file
        record.with_suffix(".safetensors").unlink(missing_ok=True)


def _unfinished(folder: Place) -> Iterator[tuple[Place, int]]:
    """Yield files that no record stands for, and their sizes."""
    for path in listed(folder, "*/*"):
        alone = path.suffix == ".safetensors" and not path.with_suffix(".json").exists()
        if alone or path.suffix == ".tmp":
            with contextlib.suppress(FileNotFoundError):  # it was finished meanwhile
                yield path, path.stat().st_size
