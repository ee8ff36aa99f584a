"""A checksum of tensors' bits, computed where they lie: equal again only if nothing was written meanwhile.

On the CPU every byte is read in place by xxh3-128, on as many threads as torch computes on: two contents that differ by
accident agree with a chance of 2⁻¹²⁸. On an accelerator the words are summed there in two ways with fixed random factors,
modulo 2⁶⁴ (multilinear hashing, Carter & Wegman 1979), and both sums come to the host at once: whatever change was made, and
whatever keeps its order or its plain sum, it is missed with a chance of at most 2⁻⁵⁶.
"""

import ctypes
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from threading import Thread

import torch
import xxhash
from torch import Tensor

_PIECE = 1 << 22  # bytes that a thread hashes at once
_WORTH_THREADS = 1 << 23
_ROW = 4096  # words of four bytes that one row of products takes
_ROWS = 2048  # of an arena, which weights on an accelerator are copied through: 32 MB


def checksum(tensors: Sequence[Tensor]) -> tuple[object, ...]:
    """Return what is equal for tensors of the same bits, formats, shapes, layouts and devices.

    Args:
        tensors: strided, on any devices.
    """
    facts: list[object] = []
    pieces: list[tuple[int, int]] = []
    elsewhere: dict[torch.device, list[Tensor]] = {}
    kept: list[Tensor] = []
    for tensor in tensors:
        facts += (tensor.dtype, tensor.shape, tensor.stride(), tensor.device)
        if tensor.is_cpu:
            dense = tensor if tensor.is_contiguous() else _dense(tensor)
            kept.append(dense)  # until it has been read
            address, size = dense.data_ptr(), dense.nbytes
            if size <= _PIECE:
                pieces.append((address, size))
            else:
                pieces += [(address + start, min(_PIECE, size - start)) for start in range(0, size, _PIECE)]
        else:
            elsewhere.setdefault(tensor.device, []).append(tensor)
    sums = [on_device(group, device) for device, group in elsewhere.items()]
    return (*facts, *_hashes(pieces), *sums)


def _hashes(pieces: list[tuple[int, int]]) -> list[int]:
    """Return 128 bits for each piece of memory, read by as many threads as torch computes on where that is worth it."""
    threads = torch.get_num_threads() if sum(size for _, size in pieces) >= _WORTH_THREADS else 1
    if threads == 1:
        return [_hash(*piece) for piece in pieces]
    found = [0] * len(pieces)
    left = deque(enumerate(pieces))

    def work() -> None:
        while True:
            try:
                place, piece = left.popleft()
            except IndexError:
                return
            found[place] = _hash(*piece)

    others = [Thread(target=work) for _ in range(min(threads, len(pieces)) - 1)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()
    return found


def _dense(tensor: Tensor) -> Tensor:
    """Return a tensor whose values lie side by side, in whatever order."""
    tensor = tensor.detach()
    dense = tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    return tensor if dense else tensor.contiguous()


def _hash(address: int, size: int) -> int:
    return xxhash.xxh3_128_intdigest(_bytes(size).from_address(address))


@lru_cache(4096)
def _bytes(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    return ctypes.c_char * size


def on_device(tensors: Sequence[Tensor], device: torch.device) -> tuple[int, ...]:
    """Return 128 bits for all tensors of a device, which the host reads once."""
    rows, columns, groups = _keys(device)
    arena = torch.empty(_ROWS * _ROW, dtype=torch.int32, device=device)
    total = torch.zeros(2, dtype=torch.int64, device=device)
    for number, group in enumerate(_groups(tensors)):
        arena.zero_()
        for dtype in (torch.int32, torch.uint8):
            flat = arena.view(dtype)
            parts = [(flat[start // dtype.itemsize :][: len(part)], part) for start, part in group if part.dtype == dtype]
            if parts:
                torch._foreach_copy_([there for there, _ in parts], [part for _, part in parts])
        words = arena.view(_ROWS, _ROW)
        sums = torch.stack([(words * each).sum(1) for each in columns])
        # A group's own odd factor: groups that change places are seen.
        total = (total + (sums * rows).sum(1)) * groups[number % len(groups)]
    return tuple(total.tolist())


def _groups(tensors: Sequence[Tensor]) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield what fits into an arena at a time: parts of tensors as words or bytes, and where in it they begin."""
    size, used = 4 * _ROWS * _ROW, 0
    group: list[tuple[int, Tensor]] = []
    for tensor in tensors:
        flat = _flat(tensor)
        while len(flat):
            room = (size - used) // flat.element_size()
            part, flat = flat[:room], flat[room:]
            group.append((used, part))
            used += -(-part.nbytes // 4) * 4
            if used + 4 > size:
                yield group
                group, used = [], 0
    if group:
        yield group


def _flat(tensor: Tensor) -> Tensor:
    """Return a tensor's values in the order in which they lie, as words of four bytes or as bytes."""
    dense = _dense(tensor)
    flat = dense.as_strided((dense.numel(),), (1,))
    size, offset = flat.nbytes, flat.storage_offset() * flat.element_size()
    words = size % 4 == 0 and offset % 4 == 0 and flat.data_ptr() % 4 == 0 and flat.element_size() <= 8
    return flat.view(torch.int32) if words else flat.view(torch.uint8)


@cache
def _keys(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Return random factors of 64 bits, the same in every call: two of each row and column, and odd ones of groups."""
    generator = torch.Generator().manual_seed(0x5EED)

    def drawn(count: int) -> Tensor:
        return torch.randint(-(2**63), 2**63 - 1, (count,), generator=generator, dtype=torch.int64)

    pair = [torch.stack([drawn(count), drawn(count)]).to(device) for count in (_ROWS, _ROW)]
    return pair[0], pair[1], (drawn(64) | 1).to(device)
