"""How the inputs of a method of parts are cut, and what hides them, if nothing else is said."""

from dataclasses import replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probing.attribution.baselines import ZERO
from probing.attribution.perturbation.parts import Hidden, PartMean, TensorParts, fillings
from probing.attribution.perturbation.superpixels import Blocks, Segmentation, Separate, Slic, usual_parts
from probing.attribution.score_passes import Passes
from probing.models.scores import Score

SUPERPIXELS, PART_MEAN = Slic(), PartMean()


@runtime_checkable
class OfParts(Protocol):
    """A frozen dataclass of settings that cuts inputs into parts and hides them."""

    @property
    def parts(self) -> Segmentation:
        """How inputs are cut."""
        ...

    @property
    def hidden(self) -> Hidden:
        """What shows where a part is hidden."""
        ...


M = TypeVar("M", bound=OfParts)


def settled(method: M, score: Score, inputs: Float[Tensor, "n *shape"]) -> M:
    """Return a method as it cuts such inputs: the default is for images, and others have one of their own.

    Tokens, features and parts of one of several inputs show zero where they are hidden: a value alone is its own mean.
    """
    usual = _usual(score, inputs)
    if method.parts != SUPERPIXELS or usual == SUPERPIXELS:
        return method
    flat = method.hidden == PART_MEAN and not isinstance(usual, Blocks)
    return replace(method, parts=usual, hidden=ZERO if flat else method.hidden)  # type: ignore[type-var]  # a dataclass


def cut_up(method: OfParts, passes: Passes, inputs: Float[Tensor, "n *shape"]) -> list[TensorParts]:
    """Return the parts of each input, on the passes' device; padding of texts is in none.

    Raises:
        InputError: if an input can't be cut, or looks the same whatever is hidden.
    """
    beside, placed = passes.origin.beside, inputs.to(passes.device)
    labels, shown = method.parts(placed), fillings(method.hidden, placed)
    read = None if beside is None else beside.read
    kept = [None] * len(inputs) if read is None else [~r.to(passes.device) for r in read]
    return [TensorParts.of(placed[i], labels[i], shown[i], kept[i]) for i in range(len(inputs))]


def part_facts(cut: list[TensorParts], device: torch.device) -> dict[str, Tensor]:
    """Return what the diagnostics say of parts: `parts`, `flat_parts` and `unhidden_parts`."""
    places = [parts.labels.expand(parts.example.shape) for parts in cut]
    return {
        "parts": torch.stack(places).to(device),
        "flat_parts": torch.tensor([parts.flat for parts in cut]),
        "unhidden_parts": torch.tensor([parts.unhidden for parts in cut]),
    }


def _usual(score: Score, inputs: Float[Tensor, "n *shape"]) -> Segmentation:
    """Return how inputs are cut where superpixels were not asked for but are the default."""
    beside = score.beside
    if beside is None:
        return usual_parts(inputs.ndim)
    tokens = tuple(name in beside.layers for name in beside.names)
    if len(beside.names) > 1:
        return Separate(beside.shapes, tokens)
    return usual_parts(inputs.ndim, tokens=tokens[0])
