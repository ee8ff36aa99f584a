"""Extraction by two processes of one thread against one process of two, what a shard costs, and what a large job needs.

    python experiments/benchmarks/scaling.py --out scaling.json [--tiny]

Each contender fills an empty store with four ResNet-18 stages, pooled. Processes start and warm up before the clock does;
they get their shares as the ranks of a `torchrun` do, and take the same locks. `one, 1 thread` is the floor of the ratios.

A shard's overhead is what is left of a shard's time when the network is next to nothing: hashes of inputs and rows, files,
syncs, renames, locks and the record. The plan multiplies constants of this machine; it is arithmetic, not a run.
"""

import argparse
import io
import json
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
import torchvision
from harness import Row, machine, report
from PIL import Image
from torch import Tensor, nn

from probing.core.content_ids import content_id
from probing.data.images import Preprocess, decode
from probing.store.fill import Fill
from probing.store.requests import Request
from probing.store.shares import Share
from probing.store.store import ActivationStore

LAYERS = ("layer1", "layer2", "layer3", "layer4")
SHARD = 128
IMAGENET = (1_281_167, "1.28 M")
WEB = (1_000_000_000, "1 B")


class Drawn:
    """Noise images made when they are loaded, so that many cost no memory."""

    def __init__(self, count: int, size: int, channels: int = 3) -> None:
        self.shape = (channels, size, size)
        self.ids = tuple(content_id((i, self.shape)) for i in range(count))

    def load(self, indices: Sequence[int]) -> Tensor:
        """Return images of a seed each."""
        made = [torch.randn(self.shape, generator=torch.Generator().manual_seed(i)) for i in indices]
        return torch.stack(made)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Size:
    """How large the measured job is."""

    images: int
    pixels: int
    shards: int

    @classmethod
    def of(cls, *, tiny: bool) -> "Size":
        return cls(256, 32, 4) if tiny else cls(768, 224, 200)


def worker(index: int, count: int, threads: int, tiny: bool, root: Path) -> None:
    """Warm up, say so, wait for a word, fill a share, and say what CPU time that took."""
    torch.set_num_threads(threads)
    size = Size.of(tiny=tiny)
    net = resnet()
    warm = Drawn(8, size.pixels)
    ActivationStore(progress=False).activations(net, LAYERS, warm, pool="mean")
    work = Fill((Request(net, LAYERS, Drawn(size.images, size.pixels), "mean"),), root, progress=False)
    print("ready", flush=True)
    sys.stdin.readline()
    before = time.process_time()
    work(Share(index, count))
    print(time.process_time() - before, flush=True)


def resnet() -> nn.Module:
    """Return the same untrained network in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18(weights=None).eval()


def timed(processes: int, threads: int, tiny: bool) -> tuple[float, float, dict[str, bytes]]:
    """Return wall and CPU seconds of filling an empty store, and what lies there."""
    with tempfile.TemporaryDirectory() as folder:
        started = [
            subprocess.Popen(
                [sys.executable, __file__, "--worker", f"{i},{processes},{threads},{int(tiny)}", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for i in range(processes)
        ]
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        begun = time.perf_counter()
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        cpu = sum(float(process.stdout.readline()) for process in started if process.stdout)
        wall = time.perf_counter() - begun
        for process in started:
            process.communicate()
        found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*.*") if p.is_file()}
    return wall, cpu, found


def race(tiny: bool, rounds: int) -> tuple[list[Row], int]:
    """Time contenders in turns; return their rows, and the bytes that one image leaves."""
    contenders = {
        "one, 1 thread": (1, 1),
        "one, 2 threads": (1, 2),
        "two, 1 thread each": (2, 1),
    }
    times: dict[str, list[tuple[float, float]]] = {who: [] for who in contenders}
    left: dict[str, dict[str, bytes]] = {}
    for _ in range(rounds):
        for who, (processes, threads) in contenders.items():
            wall, cpu, left[who] = timed(processes, threads, tiny)
            times[who].append((wall, cpu))
    wall_of = {who: median(wall for wall, _ in found) for who, found in times.items()}
    cpu_of = {who: median(cpu for _, cpu in found) for who, found in times.items()}
    size, first = Size.of(tiny=tiny), next(iter(contenders))
    same = "the same bytes" if left["two, 1 thread each"] == left[first] else "OTHER BYTES"
    rows = [
        Row(
            f"{size.images} images of {size.pixels} px",
            who,
            wall_of[who],
            cpu_of[who],
            wall_of[who] / wall_of[first],
            cpu_of[who] / cpu_of[first],
            None,
            0.0,
            same if processes > 1 else "",
        )
        for who, (processes, _) in contenders.items()
    ]
    return rows, sum(map(len, left[first].values())) // size.images


class Next(nn.Module):
    """Next to no work: what a shard of 512 features costs beside the network."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the input, flattened, as it is."""
        return x.flatten(1) + 0


def shard_cost(shards: int) -> dict[str, float]:
    """Return seconds a shard of 128 × 512 rows costs beside the network, and the memory that its index takes."""
    torch.set_num_threads(1)  # as in a worker: on more, threads that wait for so little work burn CPU time
    examples, net = Drawn(shards * SHARD, 16, channels=2), nn.Sequential(Next()).eval()
    with tempfile.TemporaryDirectory() as folder:
        begun, before = time.perf_counter(), time.process_time()
        Fill((Request(net, ("0",), examples),), Path(folder), progress=False)(Share(0, 1))
        wall, cpu = time.perf_counter() - begun, time.process_time() - before
        again = time.perf_counter()
        tracemalloc.start()
        store = ActivationStore(Path(folder), progress=False)
        store.estimate(net, ["0"], examples)
        index = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        listing = time.perf_counter() - again
    drawn = time.perf_counter()
    for start in range(0, len(examples), SHARD):
        examples.load(range(start, start + SHARD))
    drawn = time.perf_counter() - drawn
    return {
        "seconds": (wall - drawn) / shards,
        "cpu_seconds": (cpu - drawn) / shards,
        "listing_seconds": listing / shards,
        "index_bytes_per_row": index / len(examples),
    }


def decode_seconds(tiny: bool) -> float:
    """Return the CPU seconds of reading and preparing a photograph of ImageNet's usual size."""
    noise = torch.randint(0, 256, (47, 63, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = io.BytesIO()
    Image.fromarray(noise.numpy()).resize((500, 375), Image.Resampling.BICUBIC).save(data, "JPEG", quality=92)
    preprocess = Preprocess()
    times = []
    for _ in range(3 if tiny else 30):
        begun = time.process_time()
        preprocess(decode(data.getvalue()))
        times.append(time.process_time() - begun)
    return median(times)


def plan(count: int, name: str, constants: dict[str, float]) -> dict[str, str]:
    """Return what a job of so many images needs, by the constants of this machine."""
    per_image = constants["forward_cpu_seconds"] + constants["decode_cpu_seconds"]
    shards = len(LAYERS) * -(-count // SHARD)
    overhead = shards * constants["shard_cpu_seconds"]
    core_hours = (count * per_image + overhead) / 3600
    return {
        "images": name,
        "core hours": f"{core_hours:,.0f}",
        "of these, overhead of shards": f"{overhead / 36 / core_hours:.1f} %",
        "hours on 64 cores": f"{core_hours / 64:,.1f}",
        "rows": f"{count * constants['bytes_per_image'] / 1e9:,.1f} GB",
        "objects": f"{2 * shards:,}",
        "index of one process": f"{count * len(LAYERS) * constants['index_bytes_per_row'] / 1e9:,.1f} GB",
    }


def main() -> None:
    """Run the benchmark, or one worker of it."""
    parser = argparse.ArgumentParser(description="Scaling of extraction over processes.")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        index, count, threads, tiny = map(int, args.worker[0].split(","))
        worker(index, count, threads, bool(tiny), Path(args.worker[1]))
        return
    rows, held = race(args.tiny, 1 if args.tiny else args.rounds)
    report(rows, None)
    by_who = {row.who: row for row in rows}
    gain = by_who["one, 2 threads"].seconds / by_who["two, 1 thread each"].seconds
    size, shard = Size.of(tiny=args.tiny), shard_cost(Size.of(tiny=args.tiny).shards)
    constants = {
        "forward_cpu_seconds": by_who["one, 1 thread"].cpu_seconds / size.images,
        "decode_cpu_seconds": decode_seconds(args.tiny),
        "bytes_per_image": float(held),
        "shard_seconds": shard["seconds"],
        "shard_cpu_seconds": shard["cpu_seconds"],
        "shard_listing_seconds": shard["listing_seconds"],
        "index_bytes_per_row": shard["index_bytes_per_row"],
    }
    plans = [plan(*job, constants) for job in (IMAGENET, WEB)]
    print(f"two processes ÷ one process of two threads, in throughput: {gain:.2f}")
    print(json.dumps({k: float(f"{v:.3g}") for k, v in constants.items()}, indent=1))
    print("| " + " | ".join(["", *(p["images"] for p in plans)]) + " |")
    for key in list(plans[0])[1:]:
        print("| " + " | ".join([key, *(p[key] for p in plans)]) + " |")
    if args.out is not None:
        document = {
            "machine": machine(),
            "rows": [asdict(row) for row in rows],
            "throughput ratio": gain,
            "constants": constants,
            "plan": plans,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
