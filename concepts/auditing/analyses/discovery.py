"""Directions that nobody named in an audit's last layer, and which of them an attribute moves."""

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int, UInt8
from PIL import Image
from torch import Tensor

from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import Material
from concepts.discovery.discovery import Discovery
from concepts.discovery.learners import SemiNmf
from concepts.discovery.result import DiscoveryResult
from concepts.discovery.rows import pool_of
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.core.inputs import one_tensor
from probing.data.examples import Subset
from probing.probes import untrained_copy
from probing.results.figures import Strip, montage
from probing.results.html_report import Block, Finding, Paragraph, Plate, Section, Table, interval, linked, number, p_value
from probing.results.result import Provenance, Result
from probing.results.tables import DataTable, known
from probing.store.requests import Request
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_TITLE = "Directions that nobody named"
_ATOMS = 12
_SHOWN, _SIDE = 6, 64
"""Pictures of each atom, and pixels of their side."""


@dataclass(frozen=True)
class AttributeAtoms(Result):
    """Atoms of the audit's last layer, how far each contrast moves them, and the pictures that show most of each."""

    discovery: DiscoveryResult
    """`attributes` are the contrasts."""
    shown: Int[Tensor, "atoms shown"]
    """Held-out images, most of the atom first; -1 where fewer show it."""
    pictures: UInt8[Tensor, "pictures side side 3"]
    """Of the images shown, in the order of `images`."""
    images: Int[Tensor, " pictures"]

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per atom."""
        return self.discovery.to_pandas()

    def plot(self) -> "Figure":
        """Draw the pictures of each atom."""
        return _pictured(self)

    def sentences(self) -> tuple[str, ...]:
        """Return what is said of the atoms."""
        return self.discovery.sentences()


@dataclass(frozen=True)
class Atoms:
    """Discovers atoms in the means over places of the last layer, on training clusters, and judges them on held-out ones.

    Rows are the audit's own where its `pool` is a mean; random weights take one pass over the data's images, which linear
    probes read, too.
    """

    def requests(self, material: Material) -> tuple[Request, ...]:
        """Return rows of the last layer, as trained and at random weights."""
        data, layer, model = _data(material), material.layers[-1], material.loaded.model
        one = one_tensor(data.load([0]))
        bare = untrained_copy(model, material.file.statistics.seed, example=one)
        pool = pool_of(model, one, layer)
        return tuple(Request(each, (layer,), data, pool) for each in (model, bare))

    def measure(self, material: Material, store: ActivationStore) -> AttributeAtoms:
        """Return the atoms."""
        statistics, data = material.file.statistics, _data(material)
        distinct = len(set(data.ids))
        method = Discovery(
            material.layers[-1],
            SemiNmf(min(_ATOMS, max(1, distinct // 8)), seed=statistics.seed),
            places="mean",
            share=material.file.inputs.fit_share,
            relabellings=statistics.relabellings,
            level=1 - statistics.alpha,
            seed=statistics.seed,
        )
        matched = [
            MatchedConcept(c.spec.name, material.subset(c.every.first), material.subset(c.every.second), c.every.cluster)
            for c in material.contrasts
        ]
        found = method(store, material.loaded.model, data, clusters=material.data_clusters, matched=matched)
        tops = [found.top(atom, _SHOWN) for atom in range(len(found))]
        images = sorted({i for top in tops for i in top})
        return AttributeAtoms(
            Provenance.collect(model=material.loaded.model, method=method),
            discovery=found,
            shown=torch.tensor([top + [-1] * (_SHOWN - len(top)) for top in tops]),
            pictures=torch.stack([_small(material, i) for i in images])
            if images
            else torch.zeros(0, _SIDE, _SIDE, 3, dtype=torch.uint8),
            images=torch.tensor(images, dtype=torch.long),
        )

    def findings(self, audit: AuditResults, found: Result) -> tuple[Finding, ...]:
        """Say for each contrast how many atoms it moves, and how many nothing else does."""
        assert isinstance(found, AttributeAtoms)
        return tuple(_finding(audit, found, k) for k in range(len(found.discovery.attributes)))

    def tables(self, audit: AuditResults, found: Result) -> tuple[DataTable, ...]:
        """Return a row for each contrast and atom."""
        assert isinstance(found, AttributeAtoms)
        return (_numbers(found),)

    def section(self, audit: AuditResults, found: Result) -> Section:
        """Return the pictures of each atom, and a table of how contrasts move them."""
        assert isinstance(found, AttributeAtoms)
        result = found.discovery
        text = (
            f"{' '.join(result.sentences()[:2])} Nobody said what to look for: atoms were found without the attributes'"
            f" names, on training {audit.clusters} alone, and here are judged on the others. An atom that a contrast moves"
            " responds to something that differs between its sides; it need not stand for the attribute, and need not be"
            " used."
        )
        twin = "" if result.twin is None else f" {result.sentences()[2]}"
        blocks: list[Block] = [Paragraph(text + twin)]
        if len(found.images):
            caption = f"The held-out images that show most of each atom of {result.layer}."
            blocks.append(
                Plate(partial(_pictured, found), "Images that show most of each atom", caption, "figures/atoms", "atoms")
            )
        return Section(_TITLE, (*blocks, _table(found)))


def _data(material: Material) -> Subset:
    return material.subset(range(len(material.manifests[0].items)))


def _small(material: Material, index: int) -> UInt8[Tensor, "side side 3"]:
    picture = material.examples.image(index).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(picture))


def _pictured(found: AttributeAtoms) -> "Figure":
    place = {int(i): k for k, i in enumerate(found.images)}
    strips = []
    for atom, top in enumerate(found.shown.tolist()):
        pictures = [Image.fromarray(found.pictures[place[i]].numpy()) for i in top if i >= 0]
        moved = [
            name for name, moves in zip(found.discovery.attributes, found.discovery.moves[:, atom], strict=True) if moves
        ]
        if pictures:
            many = moved[0] if len(moved) == 1 else f"{len(moved)} contrasts"  # a title is one line
            said = f": moved by {many}" if moved else ""
            strips.append(Strip(f"Atom {atom}{said}", pictures, [""] * len(pictures)))
    return montage(strips, columns=_SHOWN, width=3.4)


_PER_ATOM = ("fitted", "shift", "low", "high", "same_way", "p")


def _numbers(found: AttributeAtoms) -> DataTable:
    result, shifts = found.discovery, found.discovery.shifts
    assert shifts is not None
    rows = tuple(
        (
            contrast,
            atom,
            *(known(getattr(shifts, name)[k, atom]) for name in _PER_ATOM),
            bool(result.moves[k, atom]),
            known(result.agreement.cosine[atom]),
            known(result.agreement.p[atom]),
            None if result.twin is None else known(result.twin.counterpart[atom]),
        )
        for k, contrast in enumerate(result.attributes)
        for atom in range(len(result))
    )
    columns = ("contrast", "atom", *_PER_ATOM, "moves", "stability", "stability_p", "twin")
    return DataTable("atoms", "by how much each contrast moves each atom", columns, rows, 2)


def _finding(audit: AuditResults, found: AttributeAtoms, k: int) -> Finding:
    result, shifts = found.discovery, found.discovery.shifts
    assert shifts is not None
    name = result.attributes[k]
    alone = result.moves[k] & ~result.moves[torch.arange(len(result.attributes)) != k].any(0)
    moved = int(result.moves[k].sum())
    claim = f"{moved} of {len(result)} directions that nobody named move with {name}, {int(alone.sum())} with nothing else."
    floor = shifts.least_p
    evidence = (
        f"Found in {result.layer} without the attributes' names and judged on other {audit.clusters}; p corrected for all "
        "directions and contrasts. "
    )
    if moved:
        atom = int(torch.where(result.moves[k], shifts.shift[k].abs(), -1).argmax())
        low, high = float(shifts.low[k, atom]), float(shifts.high[k, atom])
        evidence += (
            f"Largest: atom {atom}, {number(float(shifts.shift[k, atom]), sign=True)} standard deviations "
            f"({interval(low, high)}); the other half gives it again with cosine "
            f"{number(float(result.agreement.cosine[atom]))}. "
        )
    elif floor >= audit.alpha:
        evidence += f"No p could be below {floor:.2g}: there are {len(audit.judged_on)} {audit.clusters} to swap. "
    return Finding(claim, f"{evidence}That a direction moves does not show that the network uses it.", see=_TITLE)


def _table(found: AttributeAtoms) -> Table:
    result, shifts, numbers = found.discovery, found.discovery.shifts, _numbers(found)
    assert shifts is not None
    rows = tuple(
        linked(
            (
                contrast,
                f"atom {atom}",
                number(float(shifts.shift[k, atom]), sign=True),
                interval(float(shifts.low[k, atom]), float(shifts.high[k, atom])),
                p_value(float(shifts.p[k, atom])),
                number(float(result.agreement.cosine[atom])),
                p_value(float(result.agreement.p[atom])),
            ),
            numbers.at(contrast, atom),
            2,
        )
        for k, contrast in enumerate(result.attributes)
        for atom in range(len(result))
    )
    caption = (
        "By how much each contrast moves each atom on held-out data, in standard deviations of the atom; stability is the "
        "cosine with its partner among atoms learned of the held-out half. p corrected."
    )
    return Table(caption, ("contrast", "atom", "shift", "interval", "p", "stability", "p "), rows, 2, folded=True)
