"""Rows in memory, on an accelerator or the host: least recently used blocks leave first."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import count

import torch
from torch import Tensor

Place = tuple[Tensor, int]
"""Where a row is: a block of rows, and its position there."""


class MemoryTier:
    """Blocks of rows within a budget of bytes; what leaves goes to the tier below, if there is one."""

    def __init__(
        self, budget_bytes: int, device: torch.device, below: "MemoryTier | None" = None
    ) -> None:
        self.budget_bytes = budget_bytes
        self.device = device
        self.below = below
        self.bytes = 0
        self._numbers = count()
        self._blocks: OrderedDict[int, tuple[str, Sequence[str], Tensor]] = OrderedDict()
        self._rows: dict[str, dict[str, tuple[int, int]]] = {}

    def put(self, space: str, ids: Sequence[str], rows: Tensor) -> None:
        """Keep rows, if they fit the budget at all."""
        size = rows.numel() * rows.element_size()
        if size > self.budget_bytes:
            if self.below is not None:
                self.below.put(space, ids, rows)
            return
        while self.bytes + size > self.budget_bytes:
            self._evict()
        number = next(self._numbers)
        self._blocks[number] = (space, ids, rows.to(self.device))
        self.bytes += size
        self._rows.setdefault(space, {}).update(
            {example: (number, i) for i, example in enumerate(ids)}
        )

    def find(self, space: str, ids: Sequence[str]) -> dict[str, Place]:
        """Return those rows that are here, and mark their blocks as used."""
        known = self._rows.get(space, {})
        found: dict[str, Place] = {}
        for example in ids:
            if example in known:
                number, row = known[example]
                self._blocks.move_to_end(number)
                found[example] = (self._blocks[number][2], row)
        return found

    def _evict(self) -> None:
        number, (space, ids, rows) = self._blocks.popitem(last=False)
        self.bytes -= rows.numel() * rows.element_size()
        known = self._rows[space]
        for example in ids:
            if known.get(example, (None, 0))[0] == number:
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
        out[torch.tensor(positions, device=device)] = block[
            torch.tensor(rows, device=block.device)
        ].to(device)
    return out
