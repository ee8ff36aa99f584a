"""From readings of many nets to verdicts: does a method order nets as the truth does?"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats

DRAWS = 2000
LEVEL = 0.95


def column(rows: Sequence[Mapping[str, object]], name: str) -> list[float]:
    """Return one reading of all nets."""
    return [float(row[name]) for row in rows]  # type: ignore[arg-type]


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the rank correlation; NaN where one list is constant, or fewer than three pairs are known."""
    a, b = np.array(first, dtype=float), np.array(second, dtype=float)
    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return float(stats.spearmanr(a, b).statistic)


def ordered(truth: Sequence[float], reading: Sequence[float], seed: int = 0) -> dict[str, float]:
    """Return the rank correlation of a reading with the truth over nets, and percentiles of a bootstrap of nets."""
    rng, n = np.random.default_rng(seed), len(truth)
    draws = []
    for _ in range(DRAWS):
        rows = rng.integers(0, n, n)
        draws.append(spearman([truth[i] for i in rows], [reading[i] for i in rows]))
    tail = 100 * (1 - LEVEL) / 2
    kept = [d for d in draws if not math.isnan(d)]
    low, high = np.percentile(kept, [tail, 100 - tail]) if kept else (math.nan, math.nan)
    return {"rho": spearman(truth, reading), "low": float(low), "high": float(high)}


def paired_difference(higher: Sequence[float], lower: Sequence[float]) -> dict[str, float]:
    """Return the mean difference over seeds and its t interval."""
    difference = torch.tensor(higher, dtype=torch.float64) - torch.tensor(lower, dtype=torch.float64)
    n, mean = len(difference), float(difference.mean())
    if n < 2:
        return {"difference": mean, "low": math.nan, "high": math.nan}
    half = float(difference.std() / math.sqrt(n) * stats.t.ppf((1 + LEVEL) / 2, n - 1))
    return {"difference": mean, "low": mean - half, "high": mean + half}


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def write_document(path: Path, document: object) -> None:
    """Write JSON, in which what is unknown is null."""
    text = json.dumps(_known(document), indent=1, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _known(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _known(v) for k, v in value.items()}
    return [_known(v) for v in value] if isinstance(value, list | tuple) else value
