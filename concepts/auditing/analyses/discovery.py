"""Directions that nobody named in an audit's last layer, and which of them an attribute moves."""

import math
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
from concepts.discovery.page import atom_pictures
from concepts.discovery.result import DiscoveryResult
from concepts.discovery.rows import IN_MEMORY, Places
from concepts.local_vs_global.matched_pairs import MatchedConcept
from probing.core.inputs import one_tensor
from probing.data.examples import Subset
from probing.models.geometry import layers_run
from probing.models.layers import split_call
from probing.models.runner import Pool
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
    pictures: UInt8[Tensor, "atoms shown side side 3"]
    """Of these, dark where the atom is not active if its rows are places; black where there is none."""

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
    """Discovers atoms in the last layer, on training clusters, and judges them on held-out ones.

    Rows are the places of the layer's maps, of which there are many where clusters are few: means of a dozen clusters are
    given back by an atom for each of them, which no other clusters show. Where the maps do not fit into memory, rows are
    the means.
    """

    def requests(self, material: Material) -> tuple[Request, ...]:
        """Return rows of the last layer, as trained and at random weights."""
        data, layer, model = _data(material), material.layers[-1], material.loaded.model
        one = one_tensor(data.load([0]))
        bare = untrained_copy(model, material.file.statistics.seed, example=one)
        pool: Pool = "none" if _places(material) == "each" else "mean"
        return tuple(Request(each, (layer,), data, pool) for each in (model, bare))

    def measure(self, material: Material, store: ActivationStore) -> AttributeAtoms:
        """Return the atoms."""
        statistics, data = material.file.statistics, _data(material)
        distinct = len(set(data.ids))
        method = Discovery(
            material.layers[-1],
            SemiNmf(min(_ATOMS, max(1, distinct // 8)), seed=statistics.seed),
            places=_places(material),
            share=material.file.inputs.fit_share,
            refits=0,
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
        drawn = atom_pictures(found, store, material.loaded.model, data, count=_SHOWN)
        pictures = torch.zeros(len(found), _SHOWN, _SIDE, _SIDE, 3, dtype=torch.uint8)
        for one in drawn.atoms:
            for strip in one.strips:
                for slot, picture in enumerate(strip.images):
                    pictures[one.atom, slot] = _small(picture)
        return AttributeAtoms(
            Provenance.collect(model=material.loaded.model, method=method),
            discovery=found,
            shown=torch.tensor([top + [-1] * (_SHOWN - len(top)) for top in tops]),
            pictures=pictures,
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
        rows = "places of the layer's maps" if result.places == "each" else "the layer's means over places"
        text = (
            f"{' '.join(result.sentences()[:2])} Rows are {rows}. Nobody said what to look for: atoms were found without the"
            f" attributes' names, on training {audit.clusters} alone, and here are judged on the others. An atom that a"
            " contrast moves responds to something that differs between its sides; it need not stand for the attribute, and"
            " need not be used. One that is not found again is as much a property of the images it was learned of."
        )
        beside = result.sentences()[2 : len(result.sentences()) - len(result.attributes)]
        blocks: list[Block] = [Paragraph(" ".join([text, *beside]))]
        if bool((found.shown >= 0).any()):
            caption = f"The held-out images that show most of each atom of {result.layer}"
            caption += ", dark where it is not active" if result.places == "each" else ""
            caption += ". * not found again in the other half." if not bool(result.stable.all()) else "."
            blocks.append(
                Plate(partial(_pictured, found), "Images that show most of each atom", caption, "figures/atoms", "atoms")
            )
        return Section(_TITLE, (*blocks, _table(found)))


def _data(material: Material) -> Subset:
    return material.subset(range(len(material.manifests[0].items)))


def _places(material: Material) -> Places:
    """Return each place where the layer's maps of all images fit into memory, else their mean."""
    data, model = _data(material), material.loaded.model
    name, call = split_call(material.layers[-1])
    ran = layers_run(model, one_tensor(data.load([0])))
    values = sum(math.prod(one.shape[1:]) for one in ran if (one.layer, one.call) == (name, call or 0))
    return "each" if 0 < 4 * values * len(data) <= IN_MEMORY else "mean"


def _small(picture: Image.Image) -> UInt8[Tensor, "side side 3"]:
    return torch.from_numpy(np.array(picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)))


def _pictured(found: AttributeAtoms) -> "Figure":
    result = found.discovery
    strips = []
    for atom, top in enumerate(found.shown.tolist()):
        own = [Image.fromarray(found.pictures[atom, k].numpy()) for k, i in enumerate(top) if i >= 0]
        moved = [name for name, moves in zip(result.attributes, result.moves[:, atom], strict=True) if moves]
        if own:
            many = moved[0] if len(moved) == 1 else f"{len(moved)} contrasts"  # a title is one line
            said = f", moved by {many}" if moved else ""
            again = "" if bool(result.stable[atom]) else "*"
            strips.append(Strip(f"Atom {atom}{again}{said}", own, [""] * len(own)))
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
            f"({interval(low, high)}). "
        )
        again = int((result.moves[k] & result.stable).sum())
        others = "directions of the other half"
        evidence += (
            f"{again} of these {moved} {'is' if again == 1 else 'are'} found again among {others}, significantly. "
            if again
            else f"None of these {moved} is found again among {others}: other {audit.clusters} may give other directions. "
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
