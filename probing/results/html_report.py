"""One self-contained HTML page from results: text, tables and figures as data, laid out by one template.

Parts of a report are values: whoever composes one writes nothing. `Report.save` alone draws the figures and writes them,
the tables and the page.

The page needs no network and no file beside it, follows the reader's light or dark setting, and prints. All of it can be
read without scripts; the one script that it carries sorts tables and enlarges figures, and nothing else may run.
Everything in it is escaped; only figures, by `probing.results.figures`, enter as markup.
"""

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from probing.core.errors import ProbingError
from probing.results.figures import inline_svg, save_figure
from probing.results.tables import DataTable, anchor

if TYPE_CHECKING:
    from jinja2 import Environment
    from matplotlib.figure import Figure

Draw = Callable[[], "Figure"]
"""What draws a figure anew, so that a report holds no drawn one and draws them one after the other."""

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
        draw: returns the figure, drawn anew at each call.
        label: what it shows, in a few words, for readers that do not see it.
        caption: what is shown, and how to read it.
        stem: path of the figure's PNG and PDF from the page's folder, without the ending; without one it stands on the
            page alone.
        data: name of the table with its numbers.
        written: whether `Report.save` writes the files under the stem; if not, something else does.
    """

    kind: ClassVar[str] = "plate"
    draw: Draw
    label: str
    caption: str
    stem: str = ""
    data: str = ""
    written: bool = True


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
    """Whether it is significant, which a star shows."""
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
    """A heading and what stands under it; the sections among its blocks stand a level below.

    Attributes:
        folded: closed below its heading until the reader opens it; printed open.
        nothing: whether it says that nothing was found, so that `nothing_last` folds it away.
    """

    kind: ClassVar[str] = "section"
    title: str
    blocks: "tuple[Block | Section, ...]"
    folded: bool = False
    nothing: bool = False

    @property
    def id(self) -> str:
        """Where links lead to."""
        return slug(self.title)


def nothing_last(sections: Sequence[Section]) -> tuple[Section, ...]:
    """Return sections with those that found nothing behind the others, folded into one."""
    lost = tuple(s for s in sections if s.nothing)
    gathered = (Section("Looked for and not found", lost, folded=True),) if lost else ()
    return (*(s for s in sections if not s.nothing), *gathered)


def slug(title: str) -> str:
    """Return the id of a section."""
    return "s-" + "-".join(re.findall(r"\w+", title.lower()))


@dataclass(frozen=True)
class Finding:
    """One statement of the verdict, with the numbers it rests on, which the page folds under it.

    Attributes:
        parts: what it sums up.
        see: title of the section that shows it.
        picture: what shows it at a glance; those of parts are not drawn.
    """

    claim: str
    evidence: Words = ""
    parts: "tuple[Finding, ...]" = ()
    see: str = ""
    picture: Plate | None = None

    @property
    def slug(self) -> str:
        """The id of the section that shows it."""
        return slug(self.see)


class Standing(Enum):
    """How far something is so that makes a finding surer."""

    YES = "yes"
    PARTLY = "in part"
    NO = "no"
    UNTESTED = "not tested"

    @classmethod
    def of(cls, count: int, total: int) -> "Standing":
        """Return how far something is so that holds for some of so many: for all, for a part, or for none."""
        return cls.YES if count == total > 0 else cls.PARTLY if count else cls.NO


@dataclass(frozen=True)
class Mark:
    """One short mark of how sure an answer is.

    Attributes:
        asks: the question, such as whether it replicates.
        standing: its answer.
        says: what that rests on, in a few words.
    """

    asks: str
    standing: Standing
    says: str = ""


@dataclass(frozen=True)
class Summary:
    """The first screen of a page, and the first sheet in print: what those read who read one screen.

    Attributes:
        answer: one sentence in plain words, no stronger than its numbers.
        plate: the figure that shows it.
        marks: how sure it is.
        caveat: what it does not say, in two lines at most: what follows “It does not say”.
    """

    answer: str
    plate: Plate
    marks: tuple[Mark, ...]
    caveat: str


@dataclass(frozen=True)
class Report:
    """A whole page: its summary if it has one, the findings, then their limits, then the sections, then all numbers.

    Attributes:
        subject: what was looked at, in a line.
        question: what was asked, at length; below the summary where there is one.
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
    summary: Summary | None = None

    def html(self) -> str:
        """Return the page, its figures drawn; nothing is written.

        Raises:
            ReportError: if two places have one name, or a link leads nowhere.
        """
        self._check()
        return self._page([_drawn(plate, None) for plate in self._every_plate()])

    def save(self, path: Path, *, alone: bool = False) -> Path:
        """Write the page and what belongs beside it: `tables/NAME.csv` of its data, and figures as PNG and PDF.

        Figures are drawn one after the other, in the order of the page, and each is let go before the next.

        Args:
            path: of the page; the rest is written into its folder, made if missing.
            alone: write the page and nothing beside it.

        Returns:
            The path.

        Raises:
            ReportError: if two places or two figures have one name, before anything is written, or a link leads nowhere.
            OSError: if something can't be written.
        """
        self._check()
        folder = path.parent
        folder.mkdir(parents=True, exist_ok=True)
        for table in () if alone else self.data:
            table.write(folder / "tables")
        drawn = [_drawn(plate, None if alone else folder) for plate in self._every_plate()]
        path.write_text(self._page(drawn), encoding="utf-8", errors="backslashreplace")
        return path

    def _ahead(self) -> list[Plate]:
        """Return the figures that stand above the sections: the summary's and the findings'."""
        return [*([self.summary.plate] if self.summary else []), *(f.picture for f in self.findings if f.picture)]

    def _every_plate(self) -> list[Plate]:
        """Return the figures in the order in which they are numbered."""
        return [*self._ahead(), *_plates(self.sections)]

    def _places(self) -> list[str]:
        """Return the ids that links may lead to."""
        return [*_ids(self.sections), *(i for table in self.data for i in _table_ids(table))]

    def _check(self) -> None:
        """Raise a `ReportError` if two places or two figures have one name."""
        if repeats := _repeated(self._places()):
            raise ReportError(f"two places of the page are called {repeats[0]!r}.")
        if repeats := _repeated([plate.stem for plate in self._every_plate() if plate.stem]):
            raise ReportError(f"two figures of the page are called {repeats[0]!r}.")

    def _page(self, drawn: Sequence[str]) -> str:
        """Return the page with the `svg` elements of its figures, in their order."""
        environment = _environment()
        page = environment.get_template("report.html.j2").render(
            report=self,
            cards=_cards(self.findings, 1 if self.summary else 0),
            sections=_numbered(self.sections, {"plate": len(self._ahead()), "table": 0}),
            drawn=drawn,
            script_hash=_script_hash(environment),
            short=_short,
            anchor=anchor,
            as_url=_as_url,
        )
        if lost := set(re.findall(r'<a [^>]*href="#([^"]+)"', page)) - {*self._places(), *_FIXED}:
            raise ReportError(f"a link leads to {sorted(lost)[0]!r}, which the page does not have.")
        return page


_FIXED = ("verdict", "findings", "limits", "contents", "data")  # ids that the template gives


def _drawn(plate: Plate, folder: Path | None) -> str:
    """Return a figure as an `svg` element, its files for print written into a folder, if one is given."""
    figure = plate.draw()
    if folder is not None and plate.stem and plate.written:
        save_figure(figure, folder / plate.stem)
    return inline_svg(figure, plate.label)


def _plates(sections: Sequence[Section]) -> Iterator[Plate]:
    """Yield the figures of sections in the order in which they are numbered."""
    for block in (block for section in sections for block in section.blocks):
        if isinstance(block, Section):
            yield from _plates([block])
        elif isinstance(block, Plate):
            yield block


def _repeated(names: Sequence[str]) -> list[str]:
    """Return the names that stand more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _ids(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield section.id
        yield from _ids([block for block in section.blocks if isinstance(block, Section)])


def _table_ids(table: DataTable) -> Iterator[str]:
    yield f"data-{table.name}"
    for i in range(len(table.rows)):
        yield anchor(table.name, i)


def _cards(findings: Sequence[Finding], before: int) -> list[tuple[Finding, int]]:
    """Return the findings, each with its picture's number, after some figures before them."""
    numbers = count(before + 1)
    return [(finding, next(numbers) if finding.picture else 0) for finding in findings]


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
