"""Take outputs and run counts out of notebooks, so that neither pictures nor paths of a machine are committed.

    python experiments/notebooks/strip.py [NOTEBOOK ...]

All beside this file by default. Exits with 1 if a notebook had to be changed, as a pre-commit hook does.
"""

import argparse
import json
from pathlib import Path

HERE = Path(__file__).parent
KEPT = {"kernelspec", "language_info"}
"""Metadata of a notebook that a reader needs."""


def stripped(text: str) -> str:
    """Return a notebook's text without outputs, run counts, widgets' state and cells' metadata."""
    book = json.loads(text)
    book["metadata"] = {name: value for name, value in book["metadata"].items() if name in KEPT}
    book["metadata"]["language_info"] = {"name": "python"}
    for number, cell in enumerate(book["cells"]):
        cell["metadata"], cell["id"] = {}, f"cell-{number:02d}"
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
    return json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Strip notebooks in place."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all beside this file by default")
    changed = 0
    for path in parser.parse_args(arguments).notebooks or sorted(HERE.glob("*.ipynb")):
        before = path.read_text(encoding="utf-8")
        if (after := stripped(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(f"stripped {path}")
            changed = 1
    return changed


if __name__ == "__main__":
    raise SystemExit(main())
