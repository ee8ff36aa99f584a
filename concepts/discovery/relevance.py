"""Atoms as parts of a layer's output: their conditional relevance maps, and which examples they are most relevant in."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.discovery.dictionary import Dictionary
from probing.attribution.lrp.conditional import PartError, layer_relevance
from probing.attribution.lrp.lrp import LRP
from probing.models.scores import Score


@dataclass(frozen=True, eq=False)
class AtomPart:
    """What an atom makes of a layer's output: its code times its direction, at each place.

    All atoms of a dictionary and its `RestPart` are a complete set.

    Attributes:
        dictionary: of the layer's rows, one for each place.
        atom: which one.
    """

    dictionary: Dictionary
    atom: int

    def __call__(self, output: Float[Tensor, "n units *places"]) -> Float[Tensor, "n units *places"]:
        if not 0 <= self.atom < len(self.dictionary):
            raise PartError(f"there is no atom {self.atom} among {len(self.dictionary)}, which are counted from 0.")
        codes = atom_codes(self.dictionary, output)[:, self.atom]
        return codes[:, None] * self.dictionary.atoms[self.atom].to(output).reshape(-1, *[1] * (output.ndim - 2))


@dataclass(frozen=True, eq=False)
class RestPart:
    """What no atom of a dictionary makes of a layer's output: the offset, and what is missed."""

    dictionary: Dictionary

    def __call__(self, output: Float[Tensor, "n units *places"]) -> Float[Tensor, "n units *places"]:
        codes = atom_codes(self.dictionary, output)
        return output - (codes.movedim(1, -1) @ self.dictionary.atoms.to(output)).movedim(-1, 1)


def atom_codes(dictionary: Dictionary, output: Float[Tensor, "n units *places"]) -> Float[Tensor, "n atoms *places"]:
    """Return each atom's code at each place of outputs whose units come second."""
    rows = output.movedim(1, -1)
    codes = dictionary.codes(rows.reshape(-1, rows.shape[-1]))
    return codes.reshape(*rows.shape[:-1], len(dictionary)).movedim(-1, 1)


def atom_relevance(
    method: LRP, score: Score, inputs: Float[Tensor, "n *shape"], layer: str, dictionary: Dictionary
) -> Float[Tensor, "n atoms"]:
    """Return each atom's relevance for the score of each input, summed over places, by one walk for all.

    Inputs of most relevance are those in which an atom matters to the score, where those of most activation are those that
    show most of it (Achtibat et al. 2023).

    Args:
        method: composite and start.
        score: what is explained.
        inputs: in model space.
        layer: a dotted path.
        dictionary: of the layer's rows, one for each place.

    Raises:
        probing.models.geometry.RefusedError: for networks that relevance can't be followed through.
    """
    arrived = layer_relevance(method, score, inputs, layer)
    codes = atom_codes(dictionary, arrived.output).flatten(2).double() if arrived.output.ndim > 2 else None
    slopes = torch.einsum("nu...,au->na...", arrived.slope.double(), dictionary.atoms.to(arrived.slope).double())
    if codes is None:
        return atom_codes(dictionary, arrived.output).double() * slopes
    return (codes * slopes.flatten(2)).sum(2)
