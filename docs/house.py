"""Draw how the suite is built: its folders as boxes on levels, and what imports what as arrows.

    python docs/house.py

Writes `docs/house.svg`. Levels are those of the first contract in `pyproject.toml`; arrows are read from the imports of
every module, those inside functions too. Where a folder is reached by way of another anyhow, its arrow is left out.
"""

import ast
import math
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"concepts": ("#fdf3e4", "#b36b00"), "probing": ("#e9f1fb", "#1f5fa8")}
"""Packages from the top down, each with the colour of its ground and that of its boxes' edges."""
SWEEPS = 60
WIDTH, MARGIN, PITCH, BOX, LETTER, PORT = 800, 14, 66, 32, 7.8, 12
TITLE = 40  # the strip beside a package's levels
STRAIGHT = 12  # how much more a piece between two bends keeps upright than one at a box

Graph = dict[str, set[str]]
Levels = list[list[str]]
_BEND = "|"  # begins the name of a place where a line passes a level


def levels() -> Levels:
    """Return the folders from the top down, those of one level in one list."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    return [sorted(layer.split(" | ")) for layer in layers]


def imports(folders: Iterable[str]) -> Graph:
    """Return for each folder, or module beside them, those whose modules any of its own imports."""
    graph: Graph = {folder: set() for folder in folders}
    for folder, below in graph.items():
        path = ROOT.joinpath(*folder.split("."))
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                names: list[str] = []
                if isinstance(node, ast.Import):
                    names = [alias.name for alias in node.names]
                elif isinstance(node, ast.ImportFrom) and node.module:
                    names = [f"{node.module}.{alias.name}" for alias in node.names]
                found = {".".join(name.split(".")[:2]) for name in names}
                below.update(found & graph.keys() - {folder})
    return graph


def reduced(graph: Mapping[str, set[str]]) -> Graph:
    """Return a graph without circles, less the arrows to what is reached by others."""

    def reach(node: str) -> set[str]:
        return graph[node].union(*map(reach, graph[node]))

    return {node: below - set().union(*map(reach, below)) for node, below in graph.items()}


def bent(graph: Graph, rows: Levels) -> tuple[Graph, Levels]:
    """Return both with a bend wherever a line passes a level; lines to one folder share their bends.

    Raises:
        ValueError: if an arrow does not point down.
    """
    level = {node: i for i, row in enumerate(rows) for node in row}
    lines: Graph = {node: set() for node in graph}
    rows = [list(row) for row in rows]
    for source in sorted(graph):
        for target in sorted(graph[source]):
            if level[target] <= level[source]:
                raise ValueError(f"{source} imports {target}, which is not below it.")
            at = source
            for i in range(level[source] + 1, level[target]):
                bend = f"{_BEND}{target}@{i}"
                if bend not in lines:
                    lines[bend] = set()
                    rows[i].append(bend)
                lines[at].add(bend)
                at = bend
            lines[at].add(target)
    return lines, rows


def ordered(lines: Graph, rows: Levels) -> Levels:
    """Return the levels, each in an order by which few lines cross: of Sugiyama's sweeps the best."""
    above: Graph = {node: {n for n in lines if node in lines[n]} for node in lines}
    best, fewest = rows, _crossings(lines, rows)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        near = above if down else lines
        rows = [list(row) for row in rows]
        for i in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            place = {n: k / len(row) for row in (rows[i - 1 if down else i + 1],) for k, n in enumerate(row)}
            own = {n: k / len(rows[i]) for k, n in enumerate(rows[i])}
            rows[i].sort(
                key=lambda n: (
                    _mean([place[m] for m in near[n]], own[n]),
                    n if sweep % 4 < 2 else "".join(reversed(n)),
                )
            )
        rows = _swapped(lines, rows)
        if (found := _crossings(lines, rows)) < fewest:
            best, fewest = rows, found
    return best


def _swapped(lines: Graph, rows: Levels) -> Levels:
    """Exchange neighbours as long as fewer lines cross by it."""
    better = True
    while better:
        better = False
        for i, row in enumerate(rows):
            for k in range(len(row) - 1):
                before = _crossings(lines, rows[max(i - 1, 0) : i + 2])
                row[k], row[k + 1] = row[k + 1], row[k]
                if _crossings(lines, rows[max(i - 1, 0) : i + 2]) < before:
                    better = True
                else:
                    row[k], row[k + 1] = row[k + 1], row[k]
    return rows


def _crossings(lines: Graph, rows: Levels) -> int:
    found = 0
    for upper, lower in pairwise(rows):
        place = {node: k for k, node in enumerate(lower)}
        ends = [(i, place[b]) for i, a in enumerate(upper) for b in lines[a]]
        found += sum((a - c) * (b - d) < 0 for n, (a, b) in enumerate(ends) for c, d in ends[:n])
    return found


def _mean(values: Sequence[float], otherwise: float) -> float:
    """Return the mean, the same to the last bit in whatever order a set yields the values."""
    return math.fsum(values) / len(values) if values else otherwise


def placed(lines: Graph, rows: Levels) -> dict[str, float]:
    """Return where the middles of boxes and bends lie, from left to right: near what they are joined to."""
    near = {node: sorted(lines[node] | {n for n in lines if node in lines[n]}) for node in lines}
    x = {node: WIDTH * (k + 1) / (len(row) + 1) for row in rows for k, node in enumerate(row)}
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else reversed(rows):
            offsets = [0.0]
            for a, b in pairwise(row):
                offsets.append(offsets[-1] + (_width(a) + _width(b)) / 2 + 22)
            drawn_to = [_mean([x[m] for m in near[n] for _ in range(_pull(n, m))], x[n]) for n in row]
            wanted = [a - b for a, b in zip(drawn_to, offsets, strict=True)]
            low = MARGIN + TITLE + _width(row[0]) / 2
            high = WIDTH - 2 * MARGIN - _width(row[-1]) / 2 - offsets[-1]
            for node, offset, start in zip(row, offsets, _rising(wanted), strict=True):
                x[node] = min(max(start, low), high) + offset
    return x


def _pull(node: str, other: str) -> int:
    return STRAIGHT if node.startswith(_BEND) and other.startswith(_BEND) else 1


def _rising(values: Sequence[float]) -> list[float]:
    """Return the nearest values, by squares, of which none is below the one before it."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and _mean(pools[-2], 0) > _mean(pools[-1], 0):
            pools[-2:] = [pools[-2] + pools[-1]]
    return [_mean(pool, 0) for pool in pools for _ in pool]


def _width(node: str) -> float:
    return 0 if node.startswith(_BEND) else len(node.rpartition(".")[2]) * LETTER + 22


def svg() -> str:
    """Return the picture."""
    rows = levels()
    folders = [node for row in rows for node in row]
    lines, rows = bent(reduced(imports(folders)), rows)
    rows = ordered(lines, rows)
    x = placed(lines, rows)
    y, grounds = _heights(rows)
    height = round(max(y.values()) + BOX / 2 + 2 * MARGIN)
    drawn = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
            ' role="img">'
        ),
        "<title>Folders of the suite, and which imports which: arrows point down only</title>",
        "<!-- Drawn from the code by `python docs/house.py`. -->",
        (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
            '<path d="M0 0 8 4 0 8Z" fill="#5b6470"/></marker></defs>'
        ),
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
        *grounds,
        '<g fill="none" stroke="#5b6470" stroke-width="1.4">',
        *_paths(lines, rows, x, y),
        "</g>",
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13" text-anchor="middle">',
    ]
    for node in folders:
        package, _, name = node.rpartition(".")
        left, top, width = x[node] - _width(node) / 2, y[node] - BOX / 2, _width(node)
        edge = PACKAGES[package][1]
        drawn += [
            (
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BOX}" rx="5" fill="#ffffff"'
                f' stroke="{edge}" stroke-width="1.5"/>'
            ),
            f'<text x="{x[node]:.1f}" y="{y[node] + 4.5:.1f}" fill="#1c2128">{name}</text>',
        ]
    return "\n".join([*drawn, "</g>", "</svg>", ""])


def _heights(rows: Levels) -> tuple[dict[str, float], list[str]]:
    """Return where levels lie, from top to bottom, and the ground of each package with its name."""
    y, grounds, top = {}, [], float(MARGIN)
    for package, (fill, ink) in PACKAGES.items():
        own = [row for row in rows if any(n.startswith(f"{package}.") for n in row)]
        for i, row in enumerate(own):
            y |= dict.fromkeys(row, top + MARGIN + BOX / 2 + i * PITCH)
        tall = (len(own) - 1) * PITCH + BOX + 2 * MARGIN
        grounds += [
            f'<rect x="{MARGIN}" y="{top:.1f}" width="{WIDTH - 2 * MARGIN}" height="{tall}" rx="8" fill="{fill}"/>',
            (
                f'<text transform="translate({MARGIN + 22} {top + tall / 2:.1f}) rotate(-90)" text-anchor="middle" '
                f'font-family="system-ui, sans-serif" font-size="15" font-weight="600" fill="{ink}">{package}</text>'
            ),
        ]
        top += tall + MARGIN
    return y, grounds


def _paths(lines: Graph, rows: Levels, x: Mapping[str, float], y: Mapping[str, float]) -> Iterable[str]:
    """Yield the pieces of every line; those of a box leave it, and reach it, side by side."""
    for upper, lower in pairwise(rows):
        for source in upper:
            ends = sorted(lines[source], key=x.__getitem__)
            for target in ends:
                starts = sorted((n for n in upper if target in lines[n]), key=x.__getitem__)
                x1 = x[source] + _port(source, ends.index(target), len(ends))
                x2 = x[target] + _port(target, starts.index(source), len(starts))
                bend = target.startswith(_BEND)
                y1 = y[source] + BOX / 2
                y2 = y[target] - BOX / 2
                middle = (y1 + y2) / 2
                through = f"V{y2 + BOX:.1f}" if bend else ""
                tip = "" if bend else ' marker-end="url(#tip)"'
                yield (
                    f'<path d="M{x1:.1f} {y1:.1f}C{x1:.1f} {middle:.1f} {x2:.1f} {middle:.1f} {x2:.1f}'
                    f' {y2:.1f}{through}"{tip}/>'
                )
        assert set().union(*(lines[n] for n in upper)) <= set(lower)


def _port(node: str, index: int, count: int) -> float:
    return 0 if node.startswith(_BEND) else (index - (count - 1) / 2) * PORT


if __name__ == "__main__":
    (ROOT / "docs" / "house.svg").write_text(svg(), encoding="utf-8")
