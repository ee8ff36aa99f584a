"""Partial statistics: accumulators that workers leave in files, or exchange in a process group, and that are merged.

For what is too large to be stored as rows: each worker passes its share of the examples through the network and keeps
accumulators. Parts are merged in the order of their shares, whoever was first. Counts, thresholds and top examples are
exactly those of one process, moments equal to float64 rounding.
"""

import contextlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from probing.core.content_ids import bytes_id
from probing.core.errors import ProbingError
from probing.store.launchers import Engine
from probing.store.shares import Share


class PartError(ProbingError, RuntimeError):
    """Parts of a statistic that can't be put together."""


@runtime_checkable
class Mergeable(Protocol):
    """An accumulator whose data are attributes that are tensors, arrays, lists of tensors or whole numbers."""

    def merge(self, other: Any) -> None:
        """Take in what another accumulator of the same settings has seen."""


A = TypeVar("A", bound=Mergeable)
Make = Callable[[], dict[str, A]]
"""Returns new accumulators by name, all with their settings and without data."""


def packed(accumulators: Mapping[str, Mergeable]) -> bytes:
    """Return accumulators' data as safetensors; their settings are left out."""
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, int] = {}
    for name, accumulator in accumulators.items():
        for attribute, value in vars(accumulator).items():
            path = f"{name}\0{attribute}"
            if isinstance(value, np.ndarray):
                tensors[path] = torch.from_numpy(value).clone()
            elif isinstance(value, Tensor):
                tensors[path] = value.detach().cpu().contiguous().clone()
            elif isinstance(value, int):
                numbers[path] = value
            elif isinstance(value, list):
                numbers[path] = len(value)
                tensors |= {f"{path}\0{i}": v.cpu().clone() for i, v in enumerate(value)}
    return save(tensors, {"numbers": json.dumps(numbers)})


def unpacked(data: bytes, make: Make[A]) -> dict[str, A]:
    """Return new accumulators with the data that were packed.

    Raises:
        PartError: for data that are no part, or one of other accumulators.
    """
    found = make()
    try:
        tensors = load(data)
        size = int.from_bytes(data[:8], "little")
        numbers = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["numbers"])
        for name, accumulator in found.items():
            for attribute, value in vars(accumulator).items():
                path = f"{name}\0{attribute}"
                if isinstance(value, np.ndarray):
                    setattr(accumulator, attribute, tensors[path].numpy().copy())
                elif isinstance(value, Tensor):
                    setattr(accumulator, attribute, tensors[path])
                elif isinstance(value, int):
                    setattr(accumulator, attribute, numbers[path])
                elif isinstance(value, list):
                    kept = [tensors[f"{path}\0{i}"] for i in range(numbers[path])]
                    setattr(accumulator, attribute, kept)
    except (SafetensorError, KeyError, ValueError):
        names = ", ".join(found)
        raise PartError(f"a part does not hold the accumulators {names}: make it anew.") from None
    return found


@dataclass(frozen=True)
class Parts:
    """The parts of one statistic in a folder, each a file that is renamed into place when it is whole.

    Attributes:
        folder: reached by all workers.
        key: content id of all that the statistic depends on: model, examples, settings.
    """

    folder: Path
    key: str

    def save(self, share: Share, accumulators: Mapping[str, Mergeable]) -> None:
        """Leave a share's accumulators."""
        data = packed(accumulators)
        path = self._path(share)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        with temporary.open("wb") as file:
            file.write(bytes_id(data).encode() + b"\n" + data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def load(self, share: Share) -> bytes | None:
        """Return what a share left, or None if it left nothing, or what it left is damaged."""
        with contextlib.suppress(FileNotFoundError):
            checksum, _, data = self._path(share).read_bytes().partition(b"\n")
            if bytes_id(data).encode() == checksum:
                return data
        return None

    def complete(self) -> int | None:
        """Return into how many shares the statistic was cut, if all parts of some cutting are here."""
        counts = {
            int(found[1])
            for path in self.folder.glob(f"{self.key}/*.part")
            if (found := re.fullmatch(r"\d+-of-(\d+)", path.stem))
        }
        for count in sorted(counts):
            if all(self.load(Share(i, count)) is not None for i in range(count)):
                return count
        return None

    def merged(self, make: Make[A]) -> dict[str, A]:
        """Return the accumulators of all shares, as one.

        Raises:
            PartError: if parts are missing.
        """
        count = self.complete()
        if count is None:
            raise PartError(
                f"parts of the statistic {self.key} are missing in {str(self.folder)!r}: run the shares that left none."
            )
        return _in_order([self.load(Share(i, count)) or b"" for i in range(count)], make)

    def _path(self, share: Share) -> Path:
        return self.folder / self.key / f"{share.index}-of-{share.count}.part"


@dataclass(frozen=True)
class Accumulation:
    """Work for an engine: a share's accumulators, left in a folder; a part that is there already is left as it is.

    Attributes:
        parts: where they are left.
        compute: passes a share's examples and returns its accumulators.
    """

    parts: Parts
    compute: Callable[[Share], Mapping[str, Mergeable]]

    def __call__(self, share: Share) -> None:
        """Do a share."""
        if self.parts.load(share) is None:
            self.parts.save(share, self.compute(share))


def accumulated(
    engine: Engine, parts: Parts, compute: Callable[[Share], Mapping[str, A]], make: Make[A]
) -> dict[str, A] | None:
    """Have an engine accumulate, and return the whole; None where this process's part ends before it is there.

    Example:
        >>> parts = Parts(root / "parts", content_id([model_id(net), *images.ids]))
        >>> whole = accumulated(RayActors(), parts, moments_of_share, lambda: {"layer4": Moments()})
    """
    if parts.complete() is None:
        engine.run(Accumulation(parts, compute))
    return parts.merged(make) if parts.complete() is not None else None


def all_merged(accumulators: Mapping[str, A], make: Make[A]) -> dict[str, A]:
    """Return, on every rank, the accumulators of all ranks of the process group as one; a collective call.

    Raises:
        PartError: outside of a process group.
    """
    from torch import distributed

    if not distributed.is_initialized():
        raise PartError("there is no process group: call torch.distributed.init_process_group, or use Parts.")
    own = torch.frombuffer(bytearray(packed(accumulators)), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, torch.tensor([len(own)]))
    room = int(max(sizes))
    got = [torch.zeros(room, dtype=torch.uint8) for _ in sizes]
    distributed.all_gather(got, torch.nn.functional.pad(own, (0, room - len(own))))
    return _in_order([g[: int(n)].numpy().tobytes() for g, n in zip(got, sizes, strict=True)], make)


def _in_order(parts: list[bytes], make: Make[A]) -> dict[str, A]:
    whole = unpacked(parts[0], make)
    for part in parts[1:]:
        for name, accumulator in unpacked(part, make).items():
            whole[name].merge(accumulator)
    return whole
