"""Every figure for a paper, and those of the README and of `docs/findings.md`, from results that were saved.

    python experiments/figures/paper.py --from DIR [--from DIR ...] --out DIR [--readme] [--tiny]

Folders are searched for saved results: of audits, of `experiments/ground_truth`, of `probing evaluate`, and of anything else
that a method returned. Each becomes a vector PDF with embedded fonts, as wide as one column (3.3 inches) or both (6.9), in
the one style of `probing.results.figures`, without a title: that is the caption's. Nothing is computed anew; no model runs.

`--readme` also draws what pages show: `report.png` of the README, the first page of an audit's report as Chromium shows it,
and `maximization.png` of `docs/findings.md`, from the images of `experiments/maximization_quality.py`. `--tiny` makes a few
small results first, to see that all of this runs.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from concepts.auditing.measurement.results import AuditResults, saved_picture
from concepts.auditing.report import figures
from probing.results.figures import COLUMN_WIDTH, FULL_WIDTH, figure_of, for_print, save_figure
from probing.results.result import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
for _folder in (HERE.parent, HERE.parent / "ground_truth"):
    sys.path.append(str(_folder))

COLUMN_UP_TO = 4.0
"""Inches: what is drawn wider than this for a screen takes both columns in print."""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")


@dataclass(frozen=True)
class Plate:
    """A figure to be drawn: its name, how wide it is (None: by its own width), and how."""

    name: str
    width: float | None
    draw: Callable[[], "Figure"]


def plates(folder: Path) -> Iterator[Plate]:
    """Yield what can be drawn from the results in a folder and below it."""
    for path in sorted(folder.rglob("results.json")):
        document = json.loads(path.read_bytes())
        name = "_".join(path.parent.relative_to(folder).parts) or folder.name
        if "by net" in document:
            yield from _ground_truth(name, document)
        elif "cells" in document:
            yield from _audit(name, path.parent)
    for path in sorted(folder.rglob("result.json")):
        name = "_".join(path.parent.relative_to(folder).parts) or folder.name
        yield from _result(name, Result.load(path.parent))


def _audit(name: str, folder: Path) -> Iterator[Plate]:
    results = AuditResults.load(folder)
    drawings: dict[str, tuple[float, Callable[[], Figure]]] = {
        "tcav": (FULL_WIDTH, partial(figures.scores, results)),
        "accuracy": (COLUMN_WIDTH, partial(figures.accuracy, results)),
    }
    picture = partial(saved_picture, folder)
    if results.contrasts:
        drawings["changes"] = FULL_WIDTH, partial(figures.changes, results)
    if len(results.concepts) > len(results.contrasts):
        drawings["controls"] = FULL_WIDTH, partial(figures.controls, results, picture)
    for i, contrast in enumerate(results.contrasts, 1):
        drawings[f"agreement_{i}"] = FULL_WIDTH, partial(figures.agreement, results, contrast.name)
        drawings[f"likeness_{i}"] = (
            FULL_WIDTH,
            partial(figures.likeness, results, contrast.name, picture),
        )
        if any(row.concept == contrast.name for row in results.positions):
            drawings[f"positions_{i}"] = (
                COLUMN_WIDTH,
                partial(figures.positions, results, contrast.name),
            )
    for kind, (width, draw) in drawings.items():
        yield Plate(f"{name}_{kind}", width, draw)


def _ground_truth(name: str, document: Mapping[str, object]) -> Iterator[Plate]:
    import chart

    for kind, draw in chart.figures_of(document).items():
        yield Plate(f"{name}_{kind}", FULL_WIDTH, draw)


def _result(name: str, found: Result) -> Iterator[Plate]:
    from probing.evaluation.scorecard.scorecard import Scorecard

    plot: Callable[[], Figure] = lambda: figure_of(found.plot())  # type: ignore[attr-defined]  # noqa: E731
    yield Plate(name, None, plot)
    if isinstance(found, Scorecard):
        yield Plate(f"{name}_evidence", FULL_WIDTH, found.plot_evidence)


def draw(plate: Plate, out: Path) -> Path:
    """Draw a figure for print, and return the PDF; a PNG to look at lies beside it."""
    figure = plate.draw()
    width = COLUMN_WIDTH if figure.get_figwidth() <= COLUMN_UP_TO else FULL_WIDTH
    return save_figure(for_print(figure, plate.width or width), out / plate.name)[1]


def readme(folders: list[Path], out: Path) -> Iterator[Path]:
    """Draw the figures of pages as far as the folders hold what they show."""
    reports = [r for f in folders for r in sorted(f.rglob("report.html"))]
    browser = next((found for b in BROWSERS if (found := shutil.which(b))), None)
    if reports and browser:
        yield photograph(reports[0], browser, out / "report.png")
    grids = {p.parents[2] for f in folders for p in f.rglob("*/fourier/result.json")}
    whole = [g for g in sorted(grids) if len(list(g.glob("*/fourier"))) == 2]
    if whole:
        yield _grid(whole[0], out / "maximization.png")


def photograph(page: Path, browser: str, path: Path) -> Path:
    """Save the first screen of a page as a picture of 256 colours."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
            "--window-size=1100,900",
            f"--screenshot={path.resolve()}",
            page.resolve().as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    with Image.open(path) as shown:
        few = shown.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path


def _grid(folder: Path, path: Path) -> Path:
    """Draw the grid of networks and presets from the images under a folder."""
    import maximization_quality as quality

    from probing.maximization import Maximization

    made = {
        (p.parent.parent.name, p.parent.name): Maximization.load(p.parent)
        for p in sorted(folder.glob("*/*/result.json"), key=quality.rank)
    }
    names = next(iter(made.values())).names
    shown = [n for n in quality.SHOWN if n in names] or list(names)
    quality.draw(quality.rows_shown(made, names, shown), shown, path)
    return path


def main(arguments: list[str] | None = None) -> list[Path]:
    """Draw all that is found, and say what."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--from", dest="folders", metavar="DIR", type=Path, action="append", default=[])
    parser.add_argument("--out", type=Path, required=True, help="folder of PDFs")
    parser.add_argument("--readme", action="store_true", help="also draw the figures of pages")
    parser.add_argument("--tiny", action="store_true", help="make small results first")
    options = parser.parse_args(arguments)
    if options.tiny:
        import small_results

        options.folders.append(small_results.make(options.out / "results"))
    if not options.folders:
        parser.error("give a folder of saved results by --from DIR, or --tiny.")
    written = [draw(plate, options.out) for folder in options.folders for plate in plates(folder)]
    if options.readme:
        written += readme(options.folders, options.out)
    if not written:
        parser.error(f"there are no saved results in {', '.join(map(str, options.folders))}.")
    for path in written:
        print(path)
    return written


if __name__ == "__main__":
    main()
