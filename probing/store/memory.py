"""Rows in memory, on an accelerator or the host: least recently used blocks leave first.

Rows that a request returns are allocated once, written batch by batch where they stay, and not copied for the tier: it holds
views of them. Since whoever got them may write to them, each such block has a checksum, and one that was written to is
forgotten when it is next looked for.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
import xxhash
from torch import Tensor

from probing.core.content_ids import tensor_bytes

Place = tuple[Tensor, int]
"""Where a row is: a block of rows, and its position there."""


_SLAB_BYTES = 2**22
"""Rows much smaller than this share memory: scattered, they would keep the large blocks that passes free apart."""


@dataclass(eq=False)
class _Slab:
    """Memory that leaves as a whole, and the blocks of rows in it."""

    memory: Tensor
    used: int = 0
    blocks: list[tuple[str, Sequence[str], Tensor]] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    """Of each block, where the memory is lent to whoever asked for the rows."""

    def is_sound(self, block: int) -> bool:
        """Whether nobody has written to a block."""
        return not self.checksums or _bits(self.blocks[block][2]) == self.checksums[block]

    def has_room(self, rows: Tensor) -> bool:
        """Return whether rows fit in."""
        return self.used + rows.nbytes <= self.memory.nbytes

    def place(self, rows: Tensor) -> Tensor:
        """Return a copy of rows in here."""
        space = self.memory[self.used : self.used + rows.nbytes]
        self.used += -(-rows.nbytes // 64) * 64  # aligned for any type
        return space.view(rows.dtype).view(rows.shape).copy_(rows)


class MemoryTier:
    """Blocks of rows within a budget of bytes; what leaves goes to the tier below, if there is one.

    On the host small blocks share slabs, which are used and leave as one.
    """

    def __init__(self, budget_bytes: int, device: torch.device, below: "MemoryTier | None" = None) -> None:
        self.budget_bytes = budget_bytes
        self.device = device
        self.below = below
        self.bytes = 0
        self._numbers = count()
        self._slabs: OrderedDict[int, _Slab] = OrderedDict()
        self._open = -1
        self._lent: dict[int, int] = {}
        self._rows: dict[str, dict[str, tuple[int, int, int]]] = {}

    def put(self, space: str, ids: Sequence[str], rows: Tensor, whole: Tensor | None = None) -> Tensor:
        """Keep rows, if they fit the budget at all; returns what lies here, to be used instead of them.

        Args:
            space: what the rows are.
            ids: of their examples.
            rows: one each.
            whole: what the rows are a part of that others may write to, all of which counts as used; they stay there.
        """
        if whole is not None and self.device.type == "cpu" and whole.nbytes > self._slab_bytes // 4:
            return self._lend(space, ids, rows, whole)
        if whole is not None and self.device.type != "cpu":
            rows = rows.clone()
        if rows.nbytes > self.budget_bytes:
            if self.below is not None:
                self.below.put(space, ids, rows)
            return rows.to(self.device)
        number, home = self._place(rows)
        self._take(number, space, ids, home)
        return home

    def _take(self, number: int, space: str, ids: Sequence[str], rows: Tensor) -> None:
        blocks = self._slabs[number].blocks
        blocks.append((space, ids, rows))
        known = self._rows.setdefault(space, {})
        known.update({e: (number, len(blocks) - 1, i) for i, e in enumerate(ids)})

    def _lend(self, space: str, ids: Sequence[str], rows: Tensor, whole: Tensor) -> Tensor:
        """Keep rows where they are, as long as all of the memory that this keeps alive fits the budget."""
        place = whole.data_ptr()
        if place not in self._lent:
            if whole.nbytes > self.budget_bytes:
                return rows
            self._lent[place] = self._new(_Slab(whole))
        number = self._lent[place]
        self._slabs.move_to_end(number)
        self._slabs[number].checksums.append(_bits(rows))
        self._take(number, space, ids, rows)
        return rows

    @property
    def _slab_bytes(self) -> int:
        return min(_SLAB_BYTES, self.budget_bytes // 16)

    def _place(self, rows: Tensor) -> tuple[int, Tensor]:
        """Return where rows are kept from now on: the number of a slab, and what lies in it."""
        slab_bytes = self._slab_bytes
        if self.device.type != "cpu" or rows.nbytes > slab_bytes // 4:
            home = rows.to(self.device)
            return self._new(_Slab(home)), home
        slab = self._slabs.get(self._open)
        if slab is None or not slab.has_room(rows):
            slab = _Slab(torch.empty(slab_bytes, dtype=torch.uint8))
            self._open = self._new(slab)
        self._slabs.move_to_end(self._open)
        return self._open, slab.place(rows)

    def _new(self, slab: _Slab) -> int:
        while self.bytes + slab.memory.nbytes > self.budget_bytes:
            self._evict()
        number = next(self._numbers)
        self._slabs[number] = slab
        self.bytes += slab.memory.nbytes
        return number

    def find(self, space: str, ids: Sequence[str]) -> dict[str, Place]:
        """Return those rows that are here, and mark their memory as used; what others wrote to is no longer here."""
        known = self._rows.get(space, {})
        found: dict[str, Place] = {}
        sound: dict[tuple[int, int], bool] = {}
        for example in ids:
            if example in known:
                number, block, row = known[example]
                slab = self._slabs[number]
                self._slabs.move_to_end(number)
                if (number, block) not in sound:
                    sound[number, block] = slab.is_sound(block)
                if sound[number, block]:
                    found[example] = (slab.blocks[block][2], row)
                else:
                    del known[example]
        return found

    def _evict(self) -> None:
        number, slab = self._slabs.popitem(last=False)
        self.bytes -= slab.memory.nbytes
        self._lent.pop(slab.memory.data_ptr(), None)
        for block, (space, ids, rows) in enumerate(slab.blocks):
            known = self._rows[space]
            for example in ids:
                if known.get(example, (None, 0, 0))[0] == number:
                    del known[example]
            if self.below is not None and slab.is_sound(block):
                self.below.put(space, ids, rows)


def _bits(rows: Tensor) -> int:
    return xxhash.xxh3_128_intdigest(tensor_bytes(rows))


class Landing:
    """Where the rows of a request land: a tensor for each part and layer, in the order of the positions.

    Args:
        positions: of each example in the request.
        count: of all positions.
        device: where rows are returned.
    """

    def __init__(self, positions: Mapping[str, list[int]], count: int, device: torch.device) -> None:
        self._positions, self._count, self._device = positions, count, device
        self._wholes: dict[tuple[int, str], Tensor] = {}
        self._by_memory: dict[int, Tensor] = {}

    def land(self, part: int, layer: str, ids: Sequence[str], rows: Tensor) -> Tensor:
        """Return a copy of rows, where they are to stay if that is one stretch of memory."""
        stretch = self._stretch(ids)
        if stretch is None or len(ids) != len(rows) or rows.device != self._device:
            return rows.contiguous()
        whole = self._whole(part, layer, rows)
        if whole.shape[1:] != rows.shape[1:] or whole.dtype != rows.dtype:
            return rows.contiguous()  # refused when it is remembered
        return whole[stretch].copy_(rows)

    def whole_of(self, rows: Tensor) -> Tensor | None:
        """Return the tensor that rows have landed in, if they have."""
        return self._by_memory.get(rows.untyped_storage().data_ptr())

    def take(self, part: int, layer: str, positions: list[int], rows: Tensor) -> None:
        """Copy rows to their positions, unless they have landed there."""
        whole = self._whole(part, layer, rows)
        first, last = positions[0], positions[-1]
        if positions == list(range(first, last + 1)):  # a slice is a plain copy
            target = whole[first : last + 1]
            if target.data_ptr() != rows.data_ptr():
                target.copy_(rows)
        else:
            whole[positions] = rows

    def rows(self, part: int) -> dict[str, Tensor]:
        """Return what has landed of a part, by layer."""
        return {layer: whole for (number, layer), whole in self._wholes.items() if number == part}

    def _stretch(self, ids: Sequence[str]) -> slice | None:
        first = self._positions[ids[0]][0]
        follow = all(self._positions[e] == [first + i] for i, e in enumerate(ids))
        return slice(first, first + len(ids)) if follow else None

    def _whole(self, part: int, layer: str, rows: Tensor) -> Tensor:
        if (part, layer) not in self._wholes:
            whole = torch.empty((self._count, *rows.shape[1:]), dtype=rows.dtype, device=self._device)
            self._wholes[part, layer] = self._by_memory[whole.untyped_storage().data_ptr()] = whole
        return self._wholes[part, layer]


def gather(places: Mapping[str, Place], ids: Sequence[str], device: torch.device) -> Tensor:
    """Return rows in the order of `ids`; a whole block in its own order is returned itself, not a copy."""
    by_block: dict[int, tuple[Tensor, list[int], list[int]]] = {}
    for position, example in enumerate(ids):
        block, row = places[example]
        _, positions, rows = by_block.setdefault(id(block), (block, [], []))
        positions.append(position)
        rows.append(row)
    first = places[ids[0]][0]
    if len(by_block) == 1 and [places[e][1] for e in ids] == list(range(len(first))):
        return first.to(device)
    out = torch.empty((len(ids), *first.shape[1:]), dtype=first.dtype, device=device)
    for block, positions, rows in by_block.values():
        out[torch.tensor(positions, device=device)] = block[torch.tensor(rows, device=block.device)].to(device)
    return out
