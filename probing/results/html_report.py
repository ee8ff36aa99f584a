"""One self-contained HTML page from results: text, tables and figures as data, laid out by one template.

The page needs no network and no file beside it, follows the reader's light or dark setting, and prints. All of it can be
read without scripts; the one script that it carries sorts tables and enlarges figures, and nothing else may run.
Everything in it is escaped; only figures drawn by `probing.results.figures` enter as markup.
"""

import base64
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from probing.core.errors import ProbingError
from probing.results.tables import DataTable, anchor

if TYPE_CHECKING:
    from jinja2 import Environment


MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"
"""What stands in a table where there is no number."""


class ReportError(ProbingError, ValueError):
    """Parts of a report do not fit together."""


@dataclass(frozen=True)
class Link:
    """Words or a number that lead to another place of the page.

    Attributes:
        to: the id of a table's row (`DataTable.at`), of a section (`slug`), or of a table (`data-NAME`).
    """

    text: str
    to: str


Words = str | tuple[str | Link, ...]
"""Running text, some of which may lead elsewhere."""
Cell = str | Link


def words(*parts: Words | Link) -> tuple[str | Link, ...]:
    """Return parts of a text as one."""
    found: list[str | Link] = []
    for part in parts:
        found += part if isinstance(part, tuple) else (part,)
    return tuple(found)


def listed(parts: Sequence[Words | Link], between: str = ", ") -> tuple[str | Link, ...]:
    """Return parts of a text as one, with something between them."""
    return words(*(p for part in parts for p in (between, part)))[1:] if parts else ()


def linked(cells: Sequence[str], to: str, start: int = 1) -> tuple[Cell, ...]:
    """Return cells of a row that lead to one place, from one on; those without a number do not."""
    return tuple(Link(cell, to) if i >= start and any(c.isdigit() for c in cell) else cell for i, cell in enumerate(cells))


def plain(text: Words) -> str:
    """Return a text without its links."""
    return text if isinstance(text, str) else "".join(p if isinstance(p, str) else p.text for p in text)


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    kind: ClassVar[str] = "paragraph"
    text: Words


@dataclass(frozen=True)
class Points:
    """A list of short statements."""

    kind: ClassVar[str] = "points"
    items: tuple[Words, ...]


@dataclass(frozen=True)
class Code:
    """Text that is set as it stands: a command, a file."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""
    """If given, the text is folded under it."""


@dataclass(frozen=True)
class Plate:
    """A figure with its caption.

    Attributes:
        svg: an `svg` element by `probing.results.figures.inline_svg`, the only markup that a report takes as it is.
        caption: what is shown, and how to read it.
        stem: name of the figure's PNG and PDF beside the page.
        data: name of the table with its numbers.
    """

    kind: ClassVar[str] = "plate"
    svg: str
    caption: str
    stem: str = ""
    data: str = ""

    def __post_init__(self) -> None:
        if not self.svg.startswith("<svg ") or not self.svg.rstrip().endswith("</svg>"):
            raise ReportError(f"a plate holds one svg element, got {self.svg[:30]!r}.")


@dataclass(frozen=True)
class Table:
    """Rows of text under a header; the first cell of a row names it.

    Attributes:
        text_columns: how many columns, from the left, hold words; the others are set as numbers.
        folded: closed until the reader opens it; printed open.
    """

    kind: ClassVar[str] = "table"
    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    text_columns: int = 1
    folded: bool = False

    def __post_init__(self) -> None:
        if wrong := [len(row) for row in self.rows if len(row) != len(self.header)]:
            raise ReportError(f"the table {self.caption!r} has {len(self.header)} columns, but a row of {wrong[0]} cells.")


@dataclass(frozen=True)
class Square:
    """One place of a heat map: a number, its interval, and how far from the middle it is (-1 to 1)."""

    text: str
    interval: str
    shade: float
    told: bool
    """Whether it is told from chance, which a star shows."""
    to: str


@dataclass(frozen=True)
class Heat:
    """A heat map that is a table, so that every number in it can be read and followed."""

    kind: ClassVar[str] = "heat"
    caption: str
    corner: str
    """What the rows are."""
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Square, ...]], ...]
    folded: bool = False


Block = Paragraph | Points | Code | Plate | Table | Heat


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it; the sections among its blocks stand a level below."""

    kind: ClassVar[str] = "section"
    title: str
    blocks: "tuple[Block | Section, ...]"

    @property
    def id(self) -> str:
        """Where links lead to."""
        return slug(self.title)


def slug(title: str) -> str:
    """Return the id of a section."""
    return "s-" + "-".join(re.findall(r"\w+", title.lower()))


@dataclass(frozen=True)
class Finding:
    """One statement of the verdict, with the numbers it rests on.

    Attributes:
        parts: what it sums up.
        see: title of the section that shows it.
    """

    claim: str
    evidence: Words = ""
    parts: "tuple[Finding, ...]" = ()
    see: str = ""

    @property
    def slug(self) -> str:
        """The id of the section that shows it."""
        return slug(self.see)


@dataclass(frozen=True)
class Report:
    """A whole page: the verdict first, then its limits, then the sections, then all numbers.

    Attributes:
        subject: what was looked at, in a line.
        limits: what the findings do not say.
        colophon: where it all came from, as name and value.
        data: the tables that links lead to.
    """

    title: str
    subject: str
    question: str
    findings: tuple[Finding, ...]
    limits: tuple[str, ...]
    sections: tuple[Section, ...]
    colophon: tuple[tuple[str, str], ...] = ()
    data: tuple[DataTable, ...] = ()

    def html(self) -> str:
        """Return the page.

        Raises:
            ReportError: if two places have one name, or a link leads nowhere.
        """
        ids = [*_ids(self.sections), *(i for table in self.data for i in _table_ids(table))]
        if repeats := {i for i in ids if ids.count(i) > 1} if len(set(ids)) < len(ids) else ():
            raise ReportError(f"two places of the page are called {sorted(repeats)[0]!r}.")
        environment = _environment()
        page = environment.get_template("report.html.j2").render(
            report=self,
            sections=_numbered(self.sections, {"plate": 0, "table": 0}),
            script_hash=_script_hash(environment),
            short=_short,
            anchor=anchor,
            as_url=_as_url,
        )
        if lost := set(re.findall(r'<a [^>]*href="#([^"]+)"', page)) - {*ids, *_FIXED}:
            raise ReportError(f"a link leads to {sorted(lost)[0]!r}, which the page does not have.")
        return page

    def save(self, path: Path) -> Path:
        """Write the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(), encoding="utf-8", errors="backslashreplace")
        return path


_FIXED = ("verdict", "limits", "contents", "data")  # ids that every page has


def _ids(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield section.id
        yield from _ids([block for block in section.blocks if isinstance(block, Section)])


def _table_ids(table: DataTable) -> Iterator[str]:
    yield f"data-{table.name}"
    for i in range(len(table.rows)):
        yield anchor(table.name, i)


_COUNTED = {"plate": "plate", "table": "table", "heat": "table"}


def _numbered(
    sections: Sequence[Section], counts: dict[str, int]
) -> list[tuple[Section, list[tuple[Block | Section, object]]]]:
    """Return the sections with each block's number among the figures, or among the tables; below a section, its own."""
    found = []
    for section in sections:
        blocks: list[tuple[Block | Section, object]] = []
        for block in section.blocks:
            if isinstance(block, Section):
                blocks += [(block, below) for _, below in _numbered([block], counts)]
                continue
            if kind := _COUNTED.get(block.kind):
                counts[kind] += 1
            blocks.append((block, counts.get(kind or "", 0)))
        found.append((section, blocks))
    return found


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("probing.results", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _script_hash(environment: "Environment") -> str:
    """Return what the page's policy lets run: this very script."""
    script = environment.get_template("report.js").render()
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _short(value: object) -> str:
    """Return a raw number as it stands on the page; the CSV file has all its digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", MINUS)
    return NONE if value is None else str(value)


def _as_url(table: DataTable) -> str:
    """Return a table's CSV file as an address that holds it."""
    return "data:text/csv;charset=utf-8;base64," + base64.b64encode(table.csv().encode(errors="backslashreplace")).decode()


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
