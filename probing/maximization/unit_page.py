"""A page that sets one synthetic image beside data."""

from typing import TYPE_CHECKING

from probing.core.errors import ProbingError
from probing.data.examples import PicturedExamples
from probing.maximization.result import Maximization
from probing.results.figures import Strip, montage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SheetError(ProbingError, ValueError):
    """A result holds not what a page is to show."""


def unit_page(
    found: Maximization,
    index: int,
    examples: PicturedExamples,
    *,
    label: str = "",
    columns: int = 6,
) -> "Figure":
    """Return one synthetic image, the data that raise the unit most, and the data most like the image.

    What a unit answers to and what it is driven to by hand are different questions: where the rows
    disagree, neither alone says what the unit is for.

    Args:
        found: with its place among data (`store` and `examples` of `maximize`).
        index: of the image.
        examples: the data it was placed among.
        label: what the unit is said to detect, such as its label from dissection.
        columns: pictures in a row.

    Raises:
        SheetError: if the images were not placed among data, or among others.
    """
    if found.beside is None:
        raise SheetError("the images have no place among data: pass store and examples to maximize.")
    count = int(max(found.beside.top.max(), found.beside.nearest.max())) + 1
    if count > len(examples):
        raise SheetError(f"the images were placed among at least {count} examples, got {len(examples)}: pass the same.")
    beside, name = found.beside, found.names[index]
    said = f"{name}, labelled {label!r}" if label else name
    strips = [
        Strip(f"Synthetic image of {said}", [found.pictures()[index]], [found.captions()[index]]),
        _row(
            f"Highest of {len(examples)} examples",
            examples,
            beside.top[index].tolist(),
            [f"{v:.3g}" for v in beside.highest[index].tolist()],
            columns,
        ),
        _row(
            "Most like the synthetic image",
            examples,
            beside.nearest[index].tolist(),
            [f"cosine {v:.2f}" for v in beside.cosine[index].tolist()],
            columns,
        ),
    ]
    return montage([strip for strip in strips if strip.images], columns=columns)


def _row(title: str, examples: PicturedExamples, indices: list[int], captions: list[str], columns: int) -> Strip:
    shown = [i for i in indices if i >= 0][:columns]
    return Strip(title, [examples.image(i) for i in shown], captions[: len(shown)])
