"""Accumulators of shares; `torchrun … partials_worker.py FOLDER` merges those of ranks and writes them on each."""

import sys
from pathlib import Path
from typing import Any

import torch

from probing.statistics.streaming import CountedQuantile, Moments, PairwiseIou, TopK, UpperQuantile
from probing.store.launchers import Torchrun
from probing.store.partials import Parts, accumulated, all_merged, packed
from probing.store.shares import Share, ranks_share

VALUES = torch.randn(101, 5, generator=torch.Generator().manual_seed(0)).bfloat16().float()


def make() -> dict[str, Any]:
    """Return accumulators without data."""
    return {
        "moments": Moments(),
        "quantile": UpperQuantile(0.1, total=len(VALUES)),
        "counted": CountedQuantile(0.1),
        "top": TopK(4),
        "iou": PairwiseIou(),
    }


def compute(share: Share) -> dict[str, Any]:
    """Return accumulators of a share."""
    found = make()
    own = share.of(range(len(VALUES)))
    rows = VALUES[own]
    found["moments"].add(rows)
    found["quantile"].add(rows)
    found["counted"].add(rows)
    found["top"].add(rows, torch.tensor(own))
    maps = rows.reshape(-1, 1, 5)
    found["iou"].add(maps > 0, maps > 0.5)
    return found


def merged_by_ranks(folder: Path) -> None:
    """Accumulate this rank's share twice by files, then in the process group, and write the whole."""
    rank = ranks_share().index
    for key in ("first", "second"):  # ranks meet after each
        whole = accumulated(Torchrun(), Parts(folder, key), compute, make)
        assert whole is not None
        (folder / f"{key}-{rank}").write_bytes(packed(whole))
    whole = all_merged(compute(ranks_share()), make)
    (folder / f"group-{rank}").write_bytes(packed(whole))


if __name__ == "__main__":
    merged_by_ranks(Path(sys.argv[1]))
