"""Rows in memory, on an accelerator or the host: least recently used blocks leave first."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

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
        self._rows: dict[str, dict[str, tuple[int, int, int]]] = {}

    def put(self, space: str, ids: Sequence[str], rows: Tensor) -> Tensor:
        """Keep rows, if they fit the budget at all; returns what lies here, to be used instead of them."""
        if rows.nbytes > self.budget_bytes:
            if self.below is not None:
                self.below.put(space, ids, rows)
            return rows.to(self.device)
        number, home = self._place(rows)
        blocks = self._slabs[number].blocks
        blocks.append((space, ids, home))
        known = self._rows.setdefault(space, {})
        known.update({e: (number, len(blocks) - 1, i) for i, e in enumerate(ids)})
        return home

    def _place(self, rows: Tensor) -> tuple[int, Tensor]:
        """Return where rows are kept from now on: the number of a slab, and what lies in it."""
        slab_bytes = min(_SLAB_BYTES, self.budget_bytes // 16)
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
        """Return those rows that are here, and mark their memory as used."""
        known = self._rows.get(space, {})
        found: dict[str, Place] = {}
        for example in ids:
            if example in known:
                number, block, row = known[example]
                self._slabs.move_to_end(number)
                found[example] = (self._slabs[number].blocks[block][2], row)
        return found

    def _evict(self) -> None:
        number, slab = self._slabs.popitem(last=False)
        self.bytes -= slab.memory.nbytes
        for space, ids, rows in slab.blocks:
            known = self._rows[space]
            for example in ids:
                if known.get(example, (None, 0, 0))[0] == number:
                    del known[example]
            if self.below is not None:
                self.below.put(space, ids, rows)


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
