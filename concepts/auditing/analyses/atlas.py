"""What an audit's layers group its images by: planes of their activations, and whose neighbours are whose."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from PIL import Image
from torch import Tensor

from concepts.auditing.analyses import figures
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import Material
from probing.atlas import NEIGHBOURS, Atlas, AtlasResult, Pca
from probing.core.threads import one_thread
from probing.data.examples import Concatenation
from probing.results.html_report import (
    Block,
    Finding,
    Paragraph,
    Plate,
    Section,
    Table,
    interval,
    linked,
    number,
)
from probing.results.result import Provenance, Result
from probing.results.tables import DataTable, known
from probing.statistics.hypothesis_tests import ClusteredMean, clustered_mean
from probing.store.requests import Request
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_SIDE = 48
"""Pixels of a picture on the plane."""

PerLayer = Float[Tensor, "attributes layers"]


@dataclass(frozen=True)
class AttributeAtlases(Result):
    """Planes of each layer, and the share of each image's nearest that have the same attribute."""

    attributes: tuple[str, ...]
    """Those that contrasts vary, and last the one that clusters come from."""
    values: tuple[tuple[str, ...], ...]
    """Of each attribute."""
    labels: Int[Tensor, "attributes n"]
    atlases: tuple[AtlasResult, ...]
    """One for each layer."""
    same: PerLayer
    """Mean share (0-1) of an image's nearest that have its value; for attributes that contrasts vary, nearest among the
    images of other clusters."""
    low: PerLayer
    high: PerLayer
    """Interval over clusters."""
    chance: Float[Tensor, " attributes"]
    """The share among all images that may be neighbours."""
    shown: Int[Tensor, " shown"]
    """Examples whose pictures are kept, for the last layer's plane."""
    pictures: UInt8[Tensor, "shown side side 3"]

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row per attribute and layer: how often an image's nearest have its value."""
        import pandas as pd

        return pd.DataFrame(
            {
                "attribute": name,
                "layer": atlas.layer,
                "same": float(self.same[k, i]),
                "low": float(self.low[k, i]),
                "high": float(self.high[k, i]),
                "chance": float(self.chance[k]),
                "trustworthiness": atlas.trustworthiness,
            }
            for k, name in enumerate(self.attributes)
            for i, atlas in enumerate(self.atlases)
        )

    def plot(self) -> "Figure":
        """Draw the planes of all layers, coloured by the attributes that contrasts vary."""
        return figures.planes(self.atlases, self.attributes[:-1], self.values, self.labels)


@dataclass(frozen=True)
class Atlases:
    """Lays the data's images out by their activations at each of the audit's layers, by principal components."""

    def requests(self, material: Material) -> tuple[Request, ...]:
        """Return nothing: the rows are the audit's own."""
        return ()

    def measure(self, material: Material, store: ActivationStore) -> AttributeAtlases:
        """Return planes and neighbours of all the data's images, from the rows that the audit reads."""
        data = material.manifests[0]
        varied = dict.fromkeys(c.vary for c in material.file.contrasts)
        attributes = (*varied, material.cluster_by)
        columns = [data.attribute(name) for name in attributes]
        values = tuple(tuple(dict.fromkeys(column)) for column in columns)
        labels = torch.tensor([[v.index(x) for x in column] for v, column in zip(values, columns, strict=True)])
        examples = material.subset(range(len(data.items)))
        model, pool = material.loaded.model, material.file.model.pool
        level = material.file.statistics.level
        rows = store.activations(model, material.layers, examples, pool=pool)
        with one_thread():
            found = [neighbours(rows[x].flatten(1).cpu(), labels, level) for x in material.layers]
            atlases = tuple(Atlas(x, Pca(), pool=pool)(store, model, examples) for x in material.layers)
        shown = [example for _, _, example in atlases[-1].central()]
        return AttributeAtlases(
            Provenance.collect(model=model),
            attributes,
            values,
            labels,
            atlases,
            same=torch.stack([f.mean for f in found], 1),
            low=torch.stack([f.low for f in found], 1),
            high=torch.stack([f.high for f in found], 1),
            chance=chance(labels),
            shown=torch.tensor(shown),
            pictures=torch.stack([_small(material.examples, i) for i in shown]),
        )

    def findings(self, audit: AuditResults, found: Result) -> tuple[Finding, ...]:
        """Say nothing: a plane is to look at."""
        return ()

    def tables(self, audit: AuditResults, found: Result) -> tuple[DataTable, ...]:
        """Return a row for each attribute and layer."""
        assert isinstance(found, AttributeAtlases)
        return (_numbers(found),)

    def section(self, audit: AuditResults, found: Result) -> Section:
        """Return planes coloured by each attribute, one with pictures, and the table of neighbours."""
        assert isinstance(found, AttributeAtlases)
        kept = ", ".join(f"{a.layer} {a.trustworthiness:.2f}" for a in found.atlases)
        text = (
            "Each point is an image, laid out by the two directions in which activations at the layer vary most. What lies"
            " far apart on the plane lies far apart in the layer, but not the reverse. Trustworthiness, the share of"
            f" neighbours on the plane that are neighbours in the layer: {kept}."
        )
        varied = found.attributes[:-1]
        draw = partial(figures.planes, found.atlases, varied, found.values, found.labels)
        caption = f"All {found.labels.shape[1]} images at each layer, coloured by {' and by '.join(varied)}."
        blocks: list[Block] = [
            Paragraph(text),
            Plate(draw, f"Activations by {' and by '.join(varied)}", caption, "figures/atlas"),
        ]
        caption = f"The plane of {found.atlases[-1].layer}; in each cell, the image nearest to its centre."
        label = "Images in the places of their activations"
        blocks.append(Plate(partial(_pictured, found), label, caption, "figures/atlas_pictures"))
        return Section("What the layers group the images by", (*blocks, _table(found, audit.clusters)))


def neighbours(rows: Float[Tensor, "n m"], labels: Int[Tensor, "attributes n"], level: float) -> ClusteredMean:
    """Return the mean share of each image's nearest that have the same label, by attribute.

    Args:
        rows: a layer's features.
        labels: of each attribute; the last are the clusters, and the others count neighbours in other clusters only.
        level: of the interval over clusters.
    """
    distance = torch.cdist(rows.double(), rows.double())
    shares = []
    for k, own in enumerate(labels):
        apart = distance.masked_fill(~_eligible(labels, k), torch.inf)
        near = apart.topk(NEIGHBOURS, largest=False)
        same = (own[near.indices] == own[:, None]) & near.values.isfinite()
        shares.append(same.sum(1) / near.values.isfinite().sum(1).clamp(min=1))
    return clustered_mean(torch.stack(shares, 1), labels[-1], level)


def _eligible(labels: Int[Tensor, "attributes n"], k: int) -> Tensor:
    """Return which images may be neighbours for an attribute: other ones, and of other clusters if it varies in them."""
    clusters = labels[-1]
    if k == len(labels) - 1:
        return ~torch.eye(len(clusters), dtype=torch.bool)
    return clusters[:, None] != clusters[None, :]


def chance(labels: Int[Tensor, "attributes n"]) -> Float[Tensor, " attributes"]:
    """Return the mean share of all that may be neighbours that have the same label, by attribute."""
    found = []
    for k, own in enumerate(labels):
        may = _eligible(labels, k)
        same = (own[:, None] == own[None, :]) & may
        found.append((same.sum(1) / may.sum(1).clamp(min=1)).double().mean())
    return torch.stack(found)


def _small(examples: Concatenation, index: int) -> UInt8[Tensor, "side side 3"]:
    picture = examples.image(index).convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.array(picture))


@dataclass(frozen=True)
class _Kept:
    """The pictures that were saved."""

    found: AttributeAtlases

    @property
    def ids(self) -> Sequence[str]:
        return self.found.atlases[-1].ids

    def image(self, index: int) -> Image.Image:
        place = int((self.found.shown == index).nonzero()[0])
        return Image.fromarray(self.found.pictures[place].numpy())


def _pictured(found: AttributeAtlases) -> "Figure":
    return found.atlases[-1].figure(_Kept(found))


def _numbers(found: AttributeAtlases) -> DataTable:
    rows = tuple(
        (name, atlas.layer, *(known(v[k, i]) for v in (found.same, found.low, found.high)), known(found.chance[k]))
        for k, name in enumerate(found.attributes)
        for i, atlas in enumerate(found.atlases)
    )
    columns = ("attribute", "layer", "same", "low", "high", "chance")
    about = f"share of an image's {NEIGHBOURS} nearest that have its value"
    return DataTable("neighbours", about, columns, rows, 2)


def _table(found: AttributeAtlases, clusters: str) -> Table:
    numbers = _numbers(found)
    rows = tuple(
        linked(
            (
                name,
                atlas.layer,
                number(float(found.same[k, i])),
                interval(float(found.low[k, i]), float(found.high[k, i]), sign=False),
                number(float(found.chance[k])),
            ),
            numbers.at(name, atlas.layer),
            2,
        )
        for k, name in enumerate(found.attributes)
        for i, atlas in enumerate(found.atlases)
    )
    caption = (
        f"Share of an image's {NEIGHBOURS} nearest that have its value, by Euclidean distance in the whole layer, with the "
        f"interval over {clusters}. For {' and '.join(found.attributes[:-1])}, nearest among images of other {clusters}. "
        "Chance: the share among all of those."
    )
    return Table(caption, ("attribute", "layer", "same", "interval", "chance"), rows, 2)
