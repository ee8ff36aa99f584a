"""One self-contained HTML page from results: text, tables and figures as data, laid out by one template.

The page needs no network, no script and no file beside it, follows the reader's light or dark setting, and prints.
Everything in it is escaped; only figures drawn by `probing.figures` enter as markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from jinja2 import Template


MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""What stands in a table where there is no number."""


class ReportError(ValueError):
    """Parts of a report do not fit together."""


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    kind: ClassVar[str] = "paragraph"
    text: str


@dataclass(frozen=True)
class Points:
    """A list of short statements."""

    kind: ClassVar[str] = "points"
    items: tuple[str, ...]


@dataclass(frozen=True)
class Plate:
    """A figure with its caption.

    Attributes:
        svg: an `svg` element by `probing.figures.inline_svg`, the only markup that a report takes as it is.
        caption: what is shown, and how to read it.
        stem: name of the figure's PNG and PDF beside the page.
    """

    kind: ClassVar[str] = "plate"
    svg: str
    caption: str
    stem: str = ""

    def __post_init__(self) -> None:
        if not self.svg.startswith("<svg ") or not self.svg.rstrip().endswith("</svg>"):
            raise ReportError(f"a plate holds one svg element, got {self.svg[:30]!r}.")


@dataclass(frozen=True)
class Table:
    """Rows of text under a header.

    Attributes:
        text_columns: how many columns, from the left, hold words; the others are set as numbers.
        folded: closed until the reader opens it; printed open.
    """

    kind: ClassVar[str] = "table"
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    text_columns: int = 1
    folded: bool = False

    def __post_init__(self) -> None:
        if wrong := [len(row) for row in self.rows if len(row) != len(self.header)]:
            raise ReportError(
                f"the table {self.caption!r} has {len(self.header)} columns, but a row of {wrong[0]} cells."
            )


Block = Paragraph | Points | Plate | Table


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Finding:
    """One statement of the verdict, with the numbers it rests on."""

    claim: str
    evidence: str = ""


@dataclass(frozen=True)
class Report:
    """A whole page: the verdict first, then its limits, then the sections.

    Attributes:
        subject: what was looked at, in a line.
        limits: what the findings do not say.
        colophon: where it all came from, as name and value.
    """

    title: str
    subject: str
    question: str
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]
    sections: tuple[Section, ...]
    colophon: tuple[tuple[str, str], ...] = ()

    def html(self) -> str:
        """Return the page."""
        return _template().render(report=self, sections=_numbered(self.sections))

    def save(self, path: Path) -> Path:
        """Write the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8")
        return path


def _numbered(sections: Sequence[Section]) -> list[tuple[Section, list[tuple[Block, int]]]]:
    """Return the sections with each block's number among the figures, or among the tables."""
    counts = {"plate": 0, "table": 0}
    found = []
    for section in sections:
        blocks = []
        for block in section.blocks:
            if block.kind in counts:
                counts[block.kind] += 1
            blocks.append((block, counts.get(block.kind, 0)))
        found.append((section, blocks))
    return found


@cache
def _template() -> "Template":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("probing", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.j2")


def number(value: float | None, digits: int = 2, *, sign: bool = False) -> str:
    """Return a number with a true minus and fixed digits; a dash where there is none."""
    if value is None:
        return NONE
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")  # neither +0.00 nor -0.00
    return text.replace("-", MINUS)


def interval(low: float | None, high: float | None, digits: int = 2, *, sign: bool = True) -> str:
    """Return `low to high`, or a dash where there is no interval."""
    if low is None or high is None:
        return NONE
    return f"{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)}"


def p_value(value: float | None, *, smallest: float = 1e-3) -> str:
    """Return a p-value with three digits, or `< 0.001`; a dash where nothing was tested."""
    if value is None:
        return NONE
    return f"< {smallest:g}" if value < smallest else f"{value:.3f}"
