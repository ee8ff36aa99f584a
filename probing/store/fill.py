"""Work that engines deal out: rows of a store, filled share by share."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from probing.core.storage import Place
from probing.models.precision import Precision
from probing.store.requests import Request
from probing.store.shares import Share
from probing.store.store import ActivationStore


@dataclass
class Fill:
    """Fills a store with the rows of some requests.

    It can be sent to another process, where it opens the same root.

    Attributes:
        requests: in the order in which one process would ask for them.
        root: of the store, reached by all workers.
        device: as of the store.
        precision: as of the store.
        batch_size: as of the store.
        disk_budget_bytes: as of the store.
        progress: as of the store.
    """

    requests: tuple[Request, ...]
    root: Place | str
    device: torch.device | str | None = None
    precision: Precision = field(default_factory=Precision)
    batch_size: int | Literal["auto"] = "auto"
    disk_budget_bytes: int | None = None
    progress: bool | None = None
    _store: ActivationStore | None = field(default=None, init=False, repr=False)

    def __call__(self, share: Share) -> None:
        """Compute and commit a share of the rows; see `ActivationStore.fill`."""
        if self._store is None:
            self._store = ActivationStore(
                self.root,
                device=self.device,
                precision=self.precision,
                batch_size=self.batch_size,
                disk_budget_bytes=self.disk_budget_bytes,
                progress=self.progress,
            )
        self._store.fill(self.requests, share)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_store": None}  # another process opens its own
