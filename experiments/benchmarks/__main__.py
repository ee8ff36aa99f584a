"""Run every benchmark, one after the other, and print what they found as one table.

    python experiments/benchmarks [NAME …] [--out results/benchmarks] [--device cuda] [--rounds 3] [--limit SECONDS] [--tiny]

Each writes its own JSON file into the folder. One that fails, or takes longer than the limit, is named at the end and
makes the exit status 1; the others run all the same. On an accelerator those run that have something to do there.

    python experiments/benchmarks --page results/benchmarks/*.json > page.md

prints a page of saved runs instead: what each benchmark says of itself, what ran where, and all its rows.
"""

import argparse
import ast
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from harness import Row, markdown

HERE = Path(__file__).parent
ON_DEVICE = ("extraction", "overhead", "tcav", "attribution", "maximization", "evaluation")
ON_CPU = ("discovery", "dissection", "probes", "scaling")


def page(files: Sequence[Path]) -> str:
    """Return a page of saved runs, a section for each file; a file is called as the benchmark that wrote it."""
    sections = ["# Benchmarks"]
    for file in files:
        document = json.loads(file.read_text(encoding="utf-8"))
        script = HERE / f"{file.stem}.py"
        said = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
        title, _, rest = said.partition("\n\n")
        machine = "; ".join(f"{key}: {value}" for key, value in document["machine"].items())
        table = markdown([Row(**row) for row in document["rows"]])
        sections += [
            f"## {file.stem.capitalize()}",
            title,
            rest,
            f"Measured with {machine}.",
            table,
        ]
    return "\n\n".join(sections) + "\n"


def main() -> None:
    """Run the benchmarks named, or all."""
    parser = argparse.ArgumentParser(description="Every benchmark of the suite.")
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=float, help="seconds that one benchmark may take")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--page", nargs="+", type=Path, metavar="FILE.json", help="print saved runs")
    args = parser.parse_args()
    if args.page:
        if unknown := [p for p in args.page if p.stem not in {*ON_DEVICE, *ON_CPU} or not p.is_file()]:
            parser.error(f"no benchmark wrote {', '.join(map(str, unknown))}.")
        print(page(args.page), end="")
        return
    if unknown := set(args.names) - {*ON_DEVICE, *ON_CPU}:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}.")
    if args.device != "cpu" and (here := set(args.names) & {*ON_CPU}):
        parser.error(f"on {args.device} there is nothing to do for {', '.join(sorted(here))}.")
    names = args.names or [*ON_DEVICE, *(ON_CPU if args.device == "cpu" else ())]
    args.out.mkdir(parents=True, exist_ok=True)
    failed: list[str] = []
    rows: list[Row] = []
    for name in names:
        out = args.out / f"{name}.json"
        command = [sys.executable, str(HERE / f"{name}.py"), "--out", str(out), "--rounds", str(args.rounds)]
        command += ["--tiny"] if args.tiny else []
        command += ["--device", args.device] if name in ON_DEVICE else []
        print(f"{name} …", flush=True)
        try:
            subprocess.run(command, check=True, timeout=args.limit)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
            failed.append(f"{name}: {error}")
            continue
        rows += [Row(**row) for row in json.loads(out.read_text(encoding="utf-8"))["rows"]]
    print(markdown(rows), flush=True)
    sys.exit("\n".join(failed) or 0)


if __name__ == "__main__":
    main()
