"""All that needs an accelerator, in one run of at most six minutes: the benchmarks' table there, and the tests.

    python experiments/benchmarks/accelerator.py --out results/accelerator [--device cuda]

Further arguments are handed to the benchmarks. Each part has a limit of its own and is stopped there; what was written is
kept. `summary.json` in the folder says of each part how it ended and how long it took, and what was found of each ratio
that is promised.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


@dataclass(frozen=True)
class Part:
    """A command, how many seconds it may take, and the JSON file that it writes, if it is a benchmark."""

    name: str
    command: tuple[str, ...]
    seconds: int
    benchmark: bool = True


@dataclass(frozen=True)
class Target:
    """What is promised of a benchmark: one contender takes at most so many times as long as another."""

    part: str
    case: str
    who: str
    against: str
    most: float


TARGETS = (
    *(
        Target(part, "four layers", f"ours{kind}", f"floor{kind}", 1.3)
        for part in ("extraction", "extraction-20000")
        for kind in ("", " (tf32)", " (bf16)")
    ),
    Target("extraction", "four layers", "ours (tf32)", "captum", 1.0),
    Target("attribution-saliency", "saliency", "ours", "floor", 2.0),
    Target("attribution-cam", "Grad-CAM", "ours", "floor", 2.0),
    Target("evaluation", "flipping", "ours", "floor", 2.0),
    Target("evaluation", "randomisation", "ours", "floor", 2.0),
)


def parts(device: str, more: Sequence[str]) -> Iterator[Part]:
    """Yield what is run, the shortest first; `more` is handed to every benchmark."""

    def benchmark(name: str, script: str, seconds: int, *own: str) -> Part:
        return Part(name, (str(HERE / f"{script}.py"), "--device", device, "--rounds", "3", *own, *more), seconds)

    yield benchmark("extraction", "extraction", 45)
    yield benchmark("attribution-saliency", "attribution", 25, "--only", "saliency")
    yield benchmark("attribution-cam", "attribution", 25, "--only", "Grad-CAM")
    yield benchmark("overhead", "overhead", 55, "--only", "ResNet-18")
    yield benchmark("extraction-20000", "extraction", 60, "--count", "20000", "--size", "64")
    yield benchmark("evaluation", "evaluation", 45)
    tests = ("-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests" / "gpu"))
    yield Part("tests", tests, 100, benchmark=False)


def run(part: Part, out: Path) -> dict[str, object]:
    """Run a part and say how it ended."""
    command = [sys.executable, *part.command]
    if part.benchmark:
        command += ["--out", str(out / f"{part.name}.json")]
    begun = time.perf_counter()
    try:
        ended = subprocess.run(command, cwd=ROOT, timeout=part.seconds, check=False, capture_output=True, text=True)
        how = "done" if ended.returncode == 0 else f"exit status {ended.returncode}"
        told = (ended.stdout + ended.stderr)[-4000:]
    except subprocess.TimeoutExpired as error:
        how, told = f"stopped after {part.seconds} s", str(error.stdout or "")[-4000:]
    (out / f"{part.name}.txt").write_text(told, encoding="utf-8")
    return {"part": part.name, "ended": how, "seconds": round(time.perf_counter() - begun, 1)}


def found(out: Path) -> Iterator[dict[str, object]]:
    """Yield each target with the ratio that was found; None where its part did not get there."""
    for target in TARGETS:
        file = out / f"{target.part}.json"
        rows = json.loads(file.read_text(encoding="utf-8"))["rows"] if file.exists() else []
        seconds = {row["who"]: row["seconds"] for row in rows if target.case in row["case"]}
        there = target.who in seconds and target.against in seconds
        ratio = seconds[target.who] / seconds[target.against] if there else None
        yield asdict(target) | {"found": ratio}


def main() -> None:
    """Run all parts and write the summary."""
    parser = argparse.ArgumentParser(description="What an accelerator is needed for, in six minutes.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--device", default="cuda")
    args, more = parser.parse_known_args()
    args.out.mkdir(parents=True, exist_ok=True)
    ended: list[dict[str, object]] = []
    for part in parts(args.device, more):
        ended.append(run(part, args.out))
        print(ended[-1], flush=True)
        summary = {"parts": ended, "targets": list(found(args.out))}
        (args.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    for line in found(args.out):
        print(line)


if __name__ == "__main__":
    main()
