"""Which layers of an unknown network are worth reading first: the ends of its stages, from one pass."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from probing.core.errors import ProbingError
from probing.models.layers import split_parts
from probing.models.runner import Pool
from probing.models.summary import LayerRow, summarize


class StageError(ProbingError, LookupError):
    """No layer of a network can be read by a plain path."""


@dataclass(frozen=True)
class Stages:
    """Layers to read, in the network's order, and how their outputs are pooled."""

    layers: tuple[str, ...]
    pool: Pool


def find_stages(model: nn.Module, inputs: Tensor, most: int = 4) -> Stages:
    """Return the ends of a network's last stages.

    Where outputs are maps, a stage is what has one number of positions, and its end the last layer that has it. Where all
    have one number of tokens, the ends are evenly spaced among the blocks; of plain features, the last layers before the
    output. A layer as wide as the network's output is left out: it holds the answer itself.

    Args:
        model: of which a private copy is run once.
        inputs: one example, in model space.
        most: how many layers are returned at most.

    Raises:
        StageError: if every layer runs several times, or none returns a tensor.
        probing.models.summary.SummaryError: if the model fails on the input.

    Example:
        >>> find_stages(torchvision.models.resnet18(), torch.zeros(1, 3, 224, 224)).layers
        ('layer1', 'layer2', 'layer3', 'layer4')
    """
    rows = summarize(model, inputs)
    usable = [r for r in rows[1:] if r.calls == 1 and isinstance(r.output, tuple) and not split_parts(r.path)[1]]
    last = _is_last(usable)
    width = rows[0].output[-1] if isinstance(rows[0].output, tuple) and rows[0].output else 0
    usable = [r for r in usable if _width(r, last=last) != width]
    square = inputs.ndim == 4 and inputs.shape[-1] == inputs.shape[-2]
    ends = _ends([r for r in usable if _is_map(r, last=last, square=square)], last=last)
    blocks = _blocks([r for r in usable if len(r.output) == 2])
    if len(ends) > 1 or (ends and not blocks):
        return Stages(tuple(ends[-most:]), "mean_last" if last else "mean")
    if blocks:
        count = min(most, len(blocks))
        even = (blocks[(k + 1) * len(blocks) // count - 1] for k in range(count))
        return Stages(tuple(even), "mean")
    plain = _shallowest([r for r in usable if len(r.output) == 1])
    if not plain:
        raise StageError(
            f"{type(model).__name__} has no layer that runs once and returns a tensor of another width than the output's: "
            "name layers yourself, as 'probing layers' lists them."
        )
    return Stages(tuple(plain[-most:]), "mean")


def _is_last(rows: Sequence[LayerRow]) -> bool:
    """Whether most maps have their channels last: two equal sides come first, and another number after them."""
    shapes = [r.output for r in rows if len(r.output) == 3 and isinstance(r.output, tuple)]
    last = sum(a == b != c for a, b, c in shapes)
    return last > sum(b == c != a for a, b, c in shapes)


def _width(row: LayerRow, *, last: bool) -> int | str:
    if not row.output:
        return 0
    return row.output[0] if len(row.output) == 3 and not last else row.output[-1]


def _sides(row: LayerRow, *, last: bool) -> tuple[int, int]:
    assert isinstance(row.output, tuple)
    height, width = row.output[:2] if last else row.output[1:]
    return height, width


def _is_map(row: LayerRow, *, last: bool, square: bool) -> bool:
    """Whether an output has channels and places; of a square input, as many down as across."""
    if len(row.output) != 3:
        return False
    height, width = _sides(row, last=last)
    return height * width > 1 and (height == width or not square)


def _ends(maps: Sequence[LayerRow], *, last: bool) -> list[str]:
    """Return the last layer that has each size of map, of those least deep inside others, from large maps to small."""
    by_size: dict[tuple[int, int], list[LayerRow]] = {}
    for row in maps:
        by_size.setdefault(_sides(row, last=last), []).append(row)
    sizes = sorted(by_size, key=lambda sides: -sides[0] * sides[1])
    return [_shallowest(by_size[size])[-1] for size in sizes]


def _shallowest(rows: Sequence[LayerRow]) -> list[str]:
    """Return the layers that are inside the fewest others."""
    least = min((r.path.count(".") for r in rows), default=0)
    return [r.path for r in rows if r.path.count(".") == least]


def _blocks(rows: Sequence[LayerRow]) -> list[str]:
    """Return the longest row of siblings of one class: a transformer's blocks."""
    siblings: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        siblings.setdefault((row.path.rpartition(".")[0], row.kind), []).append(row.path)
    return max(siblings.values(), key=len, default=[])
