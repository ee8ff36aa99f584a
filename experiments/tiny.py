"""Run every experiment small, to see that it runs; the first that fails ends it and is shown.

    python experiments/tiny.py [PART OF A NAME …]

An experiment is a script below this folder that takes `--tiny`; each writes into a folder that is thrown away.
"""

import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).parent


def scripts() -> Iterator[Path]:
    """Yield every script that takes `--tiny`, by itself or by the harness of the benchmarks."""
    for path in sorted(set(HERE.rglob("*.py")) - {Path(__file__), *HERE.rglob("__main__.py")}):
        text = path.read_text(encoding="utf-8")
        if path.parent.name == "ground_truth" and path.stem in {"caption", "bias"}:
            continue  # which tests run whole
        small = '"--tiny"' in text or "from harness import" in text or "import harness" in text
        if small and '__name__ == "__main__"' in text:
            yield path


def run(script: Path, folder: Path) -> tuple[float, float]:
    """Run one script and return the seconds it took, and those of the processors.

    Raises:
        SystemExit: if it fails, with what it said.
    """
    target = folder / script.stem
    out = target.with_suffix(".json") if script.parent.name == "benchmarks" else target
    command = [sys.executable, str(script), "--tiny"]
    if '"--out"' in script.read_text(encoding="utf-8") or out.suffix:
        command += ["--out", str(out)]
    began, spent = time.perf_counter(), _cpu_seconds()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began, _cpu_seconds() - spent


def _cpu_seconds() -> float:
    """Return the processors' seconds of all processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main(argv: Sequence[str] | None = None) -> None:
    """Run all experiments, or those whose path holds a word."""
    words = list(sys.argv[1:] if argv is None else argv)
    chosen = [s for s in scripts() if not words or any(w in str(s.relative_to(HERE)) for w in words)]
    if not chosen:
        raise SystemExit(f"no experiment has {words} in its name.")
    with tempfile.TemporaryDirectory() as folder:
        for script in chosen:
            seconds, cpu = run(script, Path(folder))
            print(f"{seconds:6.1f} s  {cpu:6.1f} CPU s  {script.relative_to(HERE)}", flush=True)


if __name__ == "__main__":
    main()
