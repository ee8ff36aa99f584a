"""What all benchmarks share: contenders run in turns in one process, and medians are reported as ratios."""

import argparse
import json
import os
import platform
import resource
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from rich.console import Console
from rich.table import Table


@dataclass
class Row:
    """One contender in one case: medians over rounds; ratios are of wall seconds, and of CPU seconds where named so."""

    case: str
    who: str
    seconds: float
    cpu_seconds: float
    floor_ratio: float | None
    floor_cpu_ratio: float | None
    peer_ratio: float | None
    peak_mb: float
    agrees: str


def arguments(description: str, *, on_device: bool = True, numbers: Sequence[str] = ()) -> argparse.Namespace:
    """Parse what every benchmark takes, and whole numbers by name; `--device` only where an accelerator can do the work."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that the script runs")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="run the cases whose name holds this")
    if on_device:
        parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    for name in numbers:
        parser.add_argument(f"--{name}", type=int)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parsed = parser.parse_args()
    torch.set_num_threads(parsed.threads)
    return parsed


def race(
    case: str,
    contenders: Mapping[str, Callable[[], object]],
    rounds: int,
    agrees: Mapping[str, Callable[[object, object], str]] | None = None,
) -> list[Row]:
    """Run contenders in turns, `rounds` times each after one unmeasured turn.

    Args:
        case: what is measured.
        contenders: by name; `floor` is the least work that any of them must do, `ours` is this suite, others are peers.
        rounds: measured turns.
        agrees: per peer, how its last result compares with ours.
    """
    walls: dict[str, list[float]] = {who: [] for who in contenders}
    cpus: dict[str, list[float]] = {who: [] for who in contenders}
    peaks: dict[str, float] = dict.fromkeys(contenders, 0.0)
    last: dict[str, object] = {}
    for turn in range(rounds + 1):
        for who, work in contenders.items():
            last.pop(who, None)
            with _PeakMemory() as memory:
                wall, cpu = time.perf_counter(), _cpu_seconds()
                last[who] = work()
                if torch.cuda.is_initialized():
                    torch.cuda.synchronize()
                wall, cpu = time.perf_counter() - wall, _cpu_seconds() - cpu
            if turn:
                walls[who].append(wall)
                cpus[who].append(cpu)
                peaks[who] = max(peaks[who], memory.peak_mb)
    wall_of = {who: median(times) for who, times in walls.items()}
    cpu_of = {who: median(times) for who, times in cpus.items()}
    return [
        Row(
            case,
            who,
            wall_of[who],
            cpu_of[who],
            wall_of[who] / wall_of["floor"] if "floor" in wall_of else None,
            cpu_of[who] / cpu_of["floor"] if "floor" in cpu_of else None,
            None if "ours" in who or "floor" in who else wall_of["ours"] / wall_of[who],
            peaks[who],
            (agrees or {}).get(who, lambda *_: "")(last.get("ours"), last[who]),
        )
        for who in contenders
    ]


def report(rows: list[Row], out: Path | None) -> None:
    """Print the table and write the JSON file."""
    table = Table("case", "who", "s", "CPU s", "÷ floor", "÷ floor (CPU)", "ours ÷ it", "peak MB", "agrees")
    for row in rows:
        numbers = [
            row.seconds,
            row.cpu_seconds,
            row.floor_ratio,
            row.floor_cpu_ratio,
            row.peer_ratio,
        ]
        shown = ["" if n is None else f"{n:.3g}" for n in numbers]
        table.add_row(row.case, row.who, *shown, f"{row.peak_mb:.0f}", row.agrees)
    Console(width=160).print(table)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        document = {"machine": machine(), "rows": [asdict(row) for row in rows]}
        out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def markdown(rows: list[Row]) -> str:
    """Return rows as a table for a page: seconds, and ratios of wall seconds."""

    def cell(ratio: float | None) -> str:
        return "" if ratio is None else f"{ratio:.3g}"

    lines = [
        "| case | who | seconds | time ÷ floor | ours ÷ it | agrees |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratios = f"{cell(row.floor_ratio)} | {cell(row.peer_ratio)}"
        lines.append(f"| {row.case} | {row.who} | {row.seconds:.3g} | {ratios} | {row.agrees} |")
    return "\n".join(lines)


def machine() -> dict[str, str]:
    """Describe what ran."""
    cpu = next(
        (x.split(":")[1].strip() for x in _cpuinfo() if x.startswith("model name")),
        platform.processor(),
    )
    return {
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "bf16 instructions": str(has_bf16()),
        "torch": version("torch"),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def has_bf16() -> bool:
    """Return whether the CPU multiplies bfloat16 itself; without, autocast to it is slower than float32."""
    return any("avx512_bf16" in x or "amx_bf16" in x for x in _cpuinfo())


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class _PeakMemory:
    """Largest growth of resident memory inside the block, sampled every 20 ms (Linux; 0 elsewhere)."""

    def __enter__(self) -> "_PeakMemory":
        self._before, self.peak_mb, self._done = _resident_mb(), 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.peak_mb = max(self.peak_mb, _resident_mb() - self._before)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()


def _resident_mb() -> float:
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6 if path.exists() else 0.0
