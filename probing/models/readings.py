"""What is read of a model's output where that is no class score: one number per example."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 (the field's name for it)

from probing.core.content_ids import content_id
from probing.core.errors import ArgumentError, Mend, ProbingError

R = TypeVar("R", bound="Reading")


class OutputError(ProbingError, TypeError):
    """A model's output does not hold what a score reads."""


class Reading(ABC):
    """One number per example, read of a model's output; a score takes it in place of a class.

    It is a frozen dataclass that is called with the output, or the part of it that the score names. Of a function
    `Custom` makes one.

    Attributes:
        unit: of the number, such as `logit`; shown beside it wherever it is reported.

    Example:
        >>> Score(model, Regression(unit="kg"))(images)
    """

    unit: str
    own: ClassVar[Mapping[str, int]] = {}
    """The fields that may hold a value for each example, as a tensor of one axis more than here."""

    def __post_init__(self) -> None:
        for name in self.own:
            value = getattr(self, name)
            if isinstance(value, Sequence):
                object.__setattr__(self, name, torch.tensor(value))
            elif isinstance(value, Tensor) and value.ndim == 0:
                object.__setattr__(self, name, value.item())
        if len(counts := {len(getattr(self, name)) for name in self._own}) > 1:
            raise ArgumentError(f"{type(self).__name__} has values for {sorted(counts)} examples: give one for each.")

    @property
    @abstractmethod
    def name(self) -> str:
        """What results call it, such as `pixel (3, 4) of class 1`."""

    @abstractmethod
    def __call__(self, output: object) -> Float[Tensor, " n"]:
        """Return the number of each example, differentiable.

        Raises:
            OutputError: if the output holds no such number.
        """

    @property
    def count(self) -> int | None:
        """Of how many examples it holds a value for each; None if it is the same for all."""
        return next((len(getattr(self, name)) for name in self._own), None)

    def rows(self: R, rows: Tensor | slice | int) -> R:
        """Return the reading of some of the examples; of one, by its number, it is one that is the same for all."""
        if isinstance(rows, Tensor):
            rows = rows.cpu()
        values: dict[str, Any] = {name: getattr(self, name).cpu()[rows] for name in self._own}
        return replace(self, **values) if values else self  # type: ignore[type-var]  # subclasses are dataclasses

    @property
    def open(self) -> bool:
        """Whether a part of it is yet to be found in the output for each input, by `named`."""
        return False

    def named(self: R, output: object) -> R:
        """Return the reading with what is open found in the output for the inputs themselves."""
        return self

    def of_texts(self: R, read: Bool[Tensor, "n tokens"]) -> R:
        """Return the reading for texts of which a mask tells what is read, and what is padding.

        Raises:
            OutputError: if it is read at padding.
        """
        return self

    @property
    def column(self) -> int | Tensor | None:
        """Which column of `[n, outputs]` it is as it stands; None if it is more than that."""
        return None

    @property
    def key(self) -> str:
        """Its content, by which rows of the store are named."""
        settings = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]  # as above
        ours = type(self).__module__.startswith("probing.")
        return f"{type(self).__name__} {content_id(settings if ours else self)}"

    @property
    def _own(self) -> tuple[str, ...]:
        values = {name: getattr(self, name) for name in self.own}
        return tuple(n for n, v in values.items() if isinstance(v, Tensor) and v.ndim == self.own[n] + 1)


def joined(readings: Sequence[R]) -> R:
    """Return readings of consecutive examples as one."""
    first = readings[0]
    values: dict[str, Any] = {name: torch.cat([getattr(r, name) for r in readings]) for name in first._own}
    return replace(first, **values)  # type: ignore[type-var]  # subclasses are dataclasses


Index = int | Tensor | Sequence[int]
"""A number that counts from 0, or one per example."""


@dataclass(frozen=True, eq=False)
class Label(Reading):
    """One label of a multi-label classifier `[n, labels]`, each of which has a sigmoid of its own.

    Attributes:
        label: one, or one per example.
        unit: `logit`; `probability`, its sigmoid, 0 to 1; `logprob`, the logarithm of that.
    """

    own: ClassVar[Mapping[str, int]] = {"label": 0}

    label: Index
    unit: Literal["logit", "probability", "logprob"] = "probability"

    @property
    def name(self) -> str:
        return f"label {_said(self.label)}"

    @property
    def column(self) -> int | Tensor | None:
        return _index(self.label) if self.unit == "logit" else None

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        labels = _of_rank(output, (2,), self, "[n, labels]")
        logit = _chosen(labels, self.label, "label")
        if self.unit == "logit":
            return logit
        if maker_of(labels) == "SigmoidBackward0":
            raise made_probabilities(self.unit)
        return logit.sigmoid() if self.unit == "probability" else F.logsigmoid(logit)


@dataclass(frozen=True, eq=False)
class Regression(Reading):
    """A number that the model predicts: a column of `[n, outputs]`, or an output `[n]`.

    Attributes:
        index: of the column; one, or one per example.
        unit: of what is predicted, such as `kg`.
    """

    own: ClassVar[Mapping[str, int]] = {"index": 0}

    index: Index = 0
    unit: str = "output"

    @property
    def name(self) -> str:
        return f"column {_said(self.index)}"

    @property
    def column(self) -> int | Tensor | None:
        return _index(self.index)

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        columns = _of_rank(output, (1, 2), self, "[n] or [n, outputs]")
        return _chosen(columns[:, None] if columns.ndim == 1 else columns, self.index, "column")


@dataclass(frozen=True, eq=False)
class NextToken(Reading):
    """The logit of a token after a text, or by how much it is larger than another's: of `[n, tokens, vocabulary]`.

    What a position returns is about the token that follows it.

    Attributes:
        token: its id; one, or one per example.
        instead_of: the id of the token that it is compared with.
        after: the position that is read; -1 is the last one, of texts with a mask the last that is no padding. Where no mask
            tells, texts that are padded behind need one each.
    """

    own: ClassVar[Mapping[str, int]] = {"token": 0, "instead_of": 0, "after": 0}

    token: Index
    instead_of: Index | None = None
    after: Index = -1
    unit: str = field(default="logit", init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.instead_of is not None:
            object.__setattr__(self, "unit", "logit difference")

    def of_texts(self, read: Bool[Tensor, "n tokens"]) -> "NextToken":
        if isinstance(self.after, int) and self.after < 0 and not bool(read[:, self.after :].all()):
            left = (read.flip(1).cumsum(1) == -self.after).float()  # counted from the end
            if not bool(left.any(1).all()):
                raise OutputError(f"a text has no {-self.after} tokens, so none is position {self.after}.")
            return replace(self, after=read.shape[1] - 1 - left.argmax(1).cpu())
        _refuse_padding(self, read, torch.as_tensor(self.after))
        return self

    @property
    def name(self) -> str:
        other = "" if self.instead_of is None else f" instead of {_said(self.instead_of)}"
        return f"token {_said(self.token)}{other} after position {_said(self.after)}"

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        scores = _of_rank(output, (3,), self, "[n, tokens, vocabulary]")
        scores = _place(scores, self.after, "position")
        logit = _chosen(scores, self.token, "token")
        return logit if self.instead_of is None else logit - _chosen(scores, self.instead_of, "token")


@dataclass(frozen=True, eq=False)
class Span(Reading):
    """The log-probability of some consecutive tokens of the text, given all before them: of `[n, tokens, vocabulary]`.

    They must stand in the input, where each is predicted by what the position before it returns.

    Attributes:
        tokens: their ids, `[length]` or `[n, length]`.
        start: the position of the first of them, at least 1; one, or one per example.
    """

    own: ClassVar[Mapping[str, int]] = {"tokens": 1, "start": 0}

    tokens: Tensor | Sequence[int]
    start: Index
    unit: str = field(default="logprob", init=False)

    def of_texts(self, read: Bool[Tensor, "n tokens"]) -> "Span":
        for i in range(torch.as_tensor(self.tokens).shape[-1]):
            _refuse_padding(self, read, torch.as_tensor(self.start) + i)
        return self

    @property
    def name(self) -> str:
        return f"tokens {_said(self.tokens)} from position {_said(self.start)}"

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        scores = _of_rank(output, (3,), self, "[n, tokens, vocabulary]")
        tokens = torch.as_tensor(self.tokens, device=scores.device)
        tokens = tokens.expand(len(scores), tokens.shape[-1])
        start = torch.as_tensor(self.start, device=scores.device).expand(len(scores))
        if len(start) and int(start.min()) < 1:
            raise OutputError(f"a span starts at position 1 or later, which has something before it: got {_said(start)}.")
        found = [
            _chosen(_place(scores, start + (i - 1), "position").log_softmax(1), tokens[:, i], "token")
            for i in range(tokens.shape[1])
        ]
        return torch.stack(found).sum(0)


@dataclass(frozen=True, eq=False)
class Pixel(Reading):
    """The logit of a class at one place of a segmentation `[n, classes, h, w]`, or of a volume's.

    Attributes:
        target: the class; one, or one per example.
        place: row and column, or as many numbers as there are axes; or those of each example, `[n, axes]`.
    """

    own: ClassVar[Mapping[str, int]] = {"target": 0, "place": 1}

    target: Index
    place: Tensor | Sequence[int]
    unit: str = field(default="logit", init=False)

    @property
    def name(self) -> str:
        return f"class {_said(self.target)} at {_said(self.place)}"

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        maps = _of_rank(output, (3, 4, 5), self, "[n, classes, h, w]")
        place = torch.as_tensor(self.place, device=maps.device)
        if place.shape[-1] != maps.ndim - 2:
            raise OutputError(f"{self.name} has {place.shape[-1]} numbers for maps of shape {tuple(maps.shape[2:])}.")
        classes = maps
        for axis in range(maps.ndim - 2, 0, -1):  # the last first, so that the others keep their places
            classes = _place(classes.movedim(-1, 1), place[..., axis - 1], "place")
        return _chosen(classes, self.target, "class")


@dataclass(frozen=True, eq=False)
class Region(Reading):
    """The mean logit of a class over some places of a segmentation `[n, classes, h, w]` (Vinogradova et al. 2020, eq. 4).

    Attributes:
        target: the class; one, or one per example.
        mask: `[h, w]` or `[n, h, w]`, True where it is read; by default where the class is the top one of the input itself.
    """

    own: ClassVar[Mapping[str, int]] = {"target": 0, "mask": 2}

    target: Index
    mask: Tensor | None = None
    unit: str = field(default="logit", init=False)

    @property
    def name(self) -> str:
        pixels = "" if self.mask is None or self.mask.ndim > 2 else f" {int(self.mask.sum())} pixels"
        return f"class {_said(self.target)} over{pixels or ' a region'}"

    @property
    def open(self) -> bool:
        return self.mask is None

    def named(self, output: object) -> "Region":
        maps = _of_rank(output, (4,), self, "[n, classes, h, w]")
        target = torch.as_tensor(self.target, device=maps.device).expand(len(maps))
        mask = maps.argmax(1) == target[:, None, None]
        if not bool(mask.flatten(1).any(1).all()):
            row = int((~mask.flatten(1).any(1)).nonzero()[0])
            raise OutputError(
                f"class {int(target[row])} is nowhere the top class of input {row}:",
                mends=[Mend("say over which places its mean is taken", "Region(mask=…)")],
            )
        return replace(self, target=target.cpu(), mask=mask.cpu())

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        maps = _of_rank(output, (4,), self, "[n, classes, h, w]")
        if self.mask is None:
            raise OutputError("the places of a region are not named: give a mask, or use score.named(inputs).")
        mask = self.mask.to(maps.device)
        if mask.shape[-2:] != maps.shape[2:] or mask.dtype != torch.bool or not bool(mask.flatten(-2).any(-1).all()):
            raise OutputError(
                f"the mask of a region must be boolean, of the output's size {tuple(maps.shape[2:])}, and hold a place: got "
                f"{mask.dtype} of shape {tuple(mask.shape)} with {int(mask.sum())} places."
            )
        share = mask.to(maps) / mask.to(maps).sum((-2, -1), keepdim=True)
        means = (maps * share.unsqueeze(-3)).sum((2, 3))
        return _chosen(means, self.target, "class")


@dataclass(frozen=True, eq=False)
class Box(Reading):
    """The score of a detected object: of its label, and of all such the one that overlaps a box most.

    The output is a list with a mapping for each example, of `boxes` `[k, 4]` (left, top, right, bottom), `labels` and
    `scores`, as torchvision's detectors return. Where no detection overlaps enough, as in a changed input, it is 0. Which
    detection that is counts as fixed: gradients are those of its score (Petsiuk et al. 2021 compare boxes alike).

    Attributes:
        label: of the object; one, or one per example.
        box: `[4]` or `[n, 4]`, in pixels; by default that of the label's best detection in the input itself.
        overlap: least intersection over union.
    """

    own: ClassVar[Mapping[str, int]] = {"label": 0, "box": 1}

    label: Index
    box: Tensor | Sequence[float] | None = None
    overlap: float = 0.5
    unit: str = field(default="probability", init=False)

    @property
    def name(self) -> str:
        at = "" if self.box is None else f" in box {_said(torch.as_tensor(self.box).round())}"
        return f"label {_said(self.label)}{at}"

    @property
    def open(self) -> bool:
        return self.box is None

    def named(self, output: object) -> "Box":
        found = []
        labels = self._labels(output)
        for row, (one, label) in enumerate(zip(_detections(output), labels, strict=True)):
            mine = one["labels"] == label
            if not bool(mine.any()):
                raise OutputError(
                    f"the model detects nothing of label {label} in input {row}: give another label, or a box."
                )
            found.append(one["boxes"][mine][one["scores"][mine].argmax()].detach().cpu())
        return replace(self, label=torch.tensor(labels), box=torch.stack(found))

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        detected, labels = _detections(output), self._labels(output)
        if self.box is None:
            raise OutputError("the box is not named: give one, or use score.named(inputs).")
        boxes = torch.as_tensor(self.box).expand(len(detected), 4)
        values = []
        for one, label, box in zip(detected, labels, boxes, strict=True):
            overlaps = _overlaps(one["boxes"].detach(), box.to(one["boxes"]))
            overlaps = torch.where(one["labels"] == label, overlaps, -1)
            best = int(overlaps.argmax()) if len(overlaps) else -1
            near = best >= 0 and float(overlaps[best]) >= self.overlap
            values.append(one["scores"][best] if near else one["scores"].sum() * 0)
        return torch.stack(values)

    def _labels(self, output: object) -> list[int]:
        count = len(_detections(output))
        return [int(v) for v in torch.as_tensor(self.label).expand(count)]


@dataclass(frozen=True, eq=False)
class Similarity(Reading):
    """The cosine between the model's embedding `[n, features]` and a given one, −1 to 1.

    Attributes:
        embedding: `[features]` or `[n, features]`, such as another example's or a text's.
        label: what it is of, for results.
    """

    own: ClassVar[Mapping[str, int]] = {"embedding": 1}

    embedding: Tensor
    label: str = "an embedding"
    unit: str = field(default="cosine", init=False)

    @property
    def name(self) -> str:
        return f"similarity to {self.label}"

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        found = _of_rank(output, (2,), self, "[n, features]")
        other = self.embedding.to(found)
        if other.shape[-1] != found.shape[1]:
            raise OutputError(f"the embedding has {other.shape[-1]} features, the model's output {found.shape[1]}.")
        return F.cosine_similarity(found, other.expand_as(found), dim=1)


@dataclass(frozen=True, eq=False)
class Custom(Reading):
    """Any function of the output: it returns one number per example, and treats examples alone.

    Attributes:
        function: from the output, or the part of it that the score names, to `[n]`; differentiable where methods need
            gradients. The store names rows by its code, its defaults and what it closes over, not by globals it reads.
        unit: of what it returns.
        label: what results call it.
    """

    function: Callable[[Any], Tensor]
    unit: str = "score"
    label: str = ""

    @property
    def name(self) -> str:
        return self.label or getattr(self.function, "__name__", type(self.function).__name__)

    def __call__(self, output: object) -> Float[Tensor, " n"]:
        found: object = self.function(output)
        if not isinstance(found, Tensor) or found.ndim != 1 or not found.is_floating_point():
            got = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
            raise OutputError(f"{self.name} must return one real number per example, a tensor [n], got {got}.")
        return found


def part_of(output: object, part: str | int | None) -> object:
    """Return a part of an output by its position, key or attribute.

    If none is named, that is all of it, or the `logits` of what models of transformers return.

    Raises:
        OutputError: if there is none; the message names what the output holds.
    """
    if part is None:
        return output.get("logits", output) if isinstance(output, Mapping) and _is_of_transformers(output) else output
    if not isinstance(output, Tensor):  # whose parts are examples
        try:
            return output[part]  # type: ignore[index]  # whatever is no container says so
        except (KeyError, IndexError, TypeError):
            found = getattr(output, part, None) if isinstance(part, str) and not part.startswith("_") else None
            if found is not None and not callable(found):
                return found
    raise OutputError(f"the model's output has no part {part!r}: it is {holds(output)}.")


def _is_of_transformers(output: object) -> bool:
    """Whether an output is one of the library's own, whose class scores are called `logits`."""
    return any((c.__module__, c.__name__) == ("transformers.utils.generic", "ModelOutput") for c in type(output).__mro__)


def holds(output: object) -> str:
    """Return in words what an output is, with its parts."""
    if isinstance(output, Mapping):
        return f"a mapping with keys {list(output)}"
    if isinstance(output, Sequence) and not isinstance(output, str):
        return f"a {type(output).__name__} of {[type(o).__name__ for o in output]}"
    named = sorted(n for n in getattr(output, "__dict__", {}) if not n.startswith("_"))
    return f"a {type(output).__name__}" + (f" with attributes {named}" if named and not isinstance(output, Tensor) else "")


def ways_to_read(output: object) -> list[Mend]:
    """Return what may be read of an output that holds no class scores."""
    if isinstance(output, Sequence) and output and all(isinstance(o, Mapping) and "boxes" in o for o in output):
        return [Mend("explain a detected object", "target=Box")]
    if isinstance(output, Tensor) and output.is_floating_point():
        return {
            1: [Mend("explain a number that is predicted", "target=Regression")],
            3: [Mend("explain a token", "target=NextToken"), Mend("its sum or the like", "target=Custom")],
            4: [Mend("explain a place or a region", "target=Pixel"), Mend("its mean", "target=Region")],
        }.get(output.ndim, [Mend("explain a number of it", "target=Custom")])
    return []


def maker_of(tensor: Tensor) -> str:
    """Return the name of what computed a tensor, reshaping and copying aside."""
    node = tensor.grad_fn
    while node is not None and node.name().startswith(_RESHAPES):
        node = node.next_functions[0][0]
    return "" if node is None else node.name()


_RESHAPES = (
    "View",
    "UnsafeView",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Clone",
    "Alias",
    "Transpose",
    "Permute",
    "TBackward",
    "Select",
    "Slice",
    "ToCopy",
)


def made_probabilities(unit: str) -> OutputError:
    """Return the refusal of probabilities of what are probabilities already."""
    return OutputError(
        f"the model returns probabilities already, of which no {unit} can be taken anew: read them as they are",
        mends=[Mend("do so", "unit='logit'")],
    )


def _of_rank(output: object, ranks: Sequence[int], reading: Reading, shape: str) -> Tensor:
    """Return an output that is a tensor of real numbers of some rank."""
    if not isinstance(output, Tensor):
        raise OutputError(
            f"{type(reading).__name__} reads a tensor {shape}, but the model returns {holds(output)}:",
            mends=[Mend("name its part", "Score(output=…)")],
        )
    if output.ndim not in ranks or not output.is_floating_point():
        raise OutputError(
            f"{type(reading).__name__} reads real numbers {shape}, got {output.dtype} of shape {tuple(output.shape)}."
        )
    return output


def _index(value: Index) -> int | Tensor:
    return value if isinstance(value, int) else torch.as_tensor(value)


def _chosen(scores: Float[Tensor, "n many"], index: Index, what: str) -> Float[Tensor, " n"]:
    """Return one of each row's numbers."""
    at = torch.as_tensor(index, device=scores.device).expand(len(scores))
    many = scores.shape[1]
    if len(at) and (int(at.min()) < 0 or int(at.max()) >= many):
        bad = int(at.min()) if int(at.min()) < 0 else int(at.max())
        raise OutputError(f"{what} {bad} is out of range: the output has {many}, 0 to {many - 1}.")
    return scores.gather(1, at[:, None]).squeeze(1)


def _place(values: Float[Tensor, "n many *rest"], at: Index, what: str) -> Float[Tensor, "n *rest"]:
    """Return what stands at one place of the second axis; negative ones count from its end."""
    index, many = torch.as_tensor(at, device=values.device).expand(len(values)), values.shape[1]
    if len(index) and (int(index.min()) < -many or int(index.max()) >= many):
        raise OutputError(f"{what} {_said(at)} is out of range: the output has {many}, 0 to {many - 1}.")
    return values[torch.arange(len(values), device=values.device), index]


def _refuse_padding(reading: Reading, read: Bool[Tensor, "n tokens"], at: Tensor) -> None:
    position = at.to(read.device).expand(len(read))
    inside = (position >= -read.shape[1]) & (position < read.shape[1])  # what is not is told when it is read
    row = torch.arange(len(read), device=read.device)
    padding = inside & ~read[row, torch.where(inside, position, 0)]
    if bool(padding.any()):
        text = int(padding.nonzero()[0])
        raise OutputError(f"position {int(position[text])} of text {text}, which {reading.name} reads, is padding.")


def _detections(output: object) -> list[Mapping[str, Tensor]]:
    keys = {"boxes", "labels", "scores"}
    if not isinstance(output, list | tuple) or not all(isinstance(o, Mapping) and keys <= set(o) for o in output):
        raise OutputError(
            f"Box reads a list with boxes, labels and scores of each example, but the model returns {holds(output)}."
        )
    return list(output)


def _overlaps(boxes: Float[Tensor, "k 4"], box: Float[Tensor, " 4"]) -> Float[Tensor, " k"]:
    """Return intersection over union of boxes with one."""
    size = (torch.minimum(boxes[:, 2:], box[2:]) - torch.maximum(boxes[:, :2], box[:2])).clamp(min=0).prod(1)
    areas = [(b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) for b in (boxes, box)]
    return size / (areas[0] + areas[1] - size).clamp(min=1e-12)


def _said(value: object) -> str:
    """Return an index, or several, in words; those of many examples are not listed."""
    if not isinstance(value, Tensor):
        return str(value)
    if value.ndim > 1 or value.numel() > 8:
        return "of each example"
    numbers = [int(v) for v in value.flatten()]
    return str(numbers[0]) if value.ndim == 0 else f"({', '.join(map(str, numbers))})"
