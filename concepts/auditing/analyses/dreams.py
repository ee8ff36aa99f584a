"""What an audit's directions point at: images that drive layers along them, beside those of a direction without a name."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import ContrastSets, Material
from concepts.tcav.dream import cav_objective
from probing.data.examples import TensorExamples
from probing.maximization import Maximization, Maximize
from probing.maximization.presets import FOURIER
from probing.results.figures import Strip, montage
from probing.results.html_report import Block, Finding, Paragraph, Plate, Points, Section
from probing.results.result import Provenance, Result
from probing.results.tables import DataTable, known
from probing.statistics.estimators import Ridge
from probing.statistics.hypothesis_tests import TooFewError
from probing.statistics.linear_classifiers import fit_pairs
from probing.store.requests import Request
from probing.store.store import ActivationStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_KINDS = ("along", "against", "control")


@dataclass(frozen=True)
class ConceptDreams(Result):
    """Dreams of each contrast's direction at each layer."""

    contrasts: tuple[str, ...]
    layers: tuple[str, ...]
    images: tuple[Maximization, ...]
    """By layer. Each contrast has three: along its direction, the other way, and along the control direction."""
    reach: Float[Tensor, "layers contrasts 3"]
    """How far each image lies along its direction, from the mean of the images that this was fitted on, in their
    standard deviations."""

    def sentences(self) -> tuple[str, ...]:
        """Return what did not go as asked for."""
        return tuple(dict.fromkeys(note for part in self.images for note in part.notes))

    def plot(self) -> "Figure":
        """Draw the dreams by contrast, layers beside each other."""
        return montage(
            [
                strip
                for k, name in enumerate(self.contrasts)
                for strip in _strips(self, k, (f"{name}, along", f"{name}, against", f"{name}, control"))
            ],
            columns=max(5, len(self.layers)),
        )


@dataclass(frozen=True)
class Dreams:
    """Dreams of the directions that separate a contrast's sides (Kim et al. 2018, sec. 4.1.3), at the audit's layers.

    Each has a control: a direction fitted to the same images after the two sides changed places in half of the
    clusters, so that it separates nothing.

    Attributes:
        settings: of the images.
        cosine_power: see `concepts.tcav.dream.cav_objective`.
    """

    settings: Maximize = field(default_factory=lambda: replace(FOURIER, steps=96))
    cosine_power: float = 2.0

    def requests(self, material: Material) -> tuple[Request, ...]:
        """Return nothing: dreams come one from the other."""
        return ()

    def measure(self, material: Material, store: ActivationStore) -> ConceptDreams:
        """Return the dreams; the directions are those that the audit's scores rest on."""
        model, pool = material.loaded.model, material.file.model.pool
        names = tuple(sets.spec.name for sets in material.contrasts)
        images, reach = [], []
        for layer in material.layers:
            rows = store.activations(model, [layer], material.examples, pool=pool)[layer].cpu()
            ways = [_ways(rows, sets, material.file.statistics.seed) for sets in material.contrasts]
            goals = [
                cav_objective(layer, v, f"{name}, {kind}", cosine_power=self.cosine_power, last=pool == "mean_last")
                for name, (vectors, _) in zip(names, ways, strict=True)
                for kind, v in zip(_KINDS, vectors, strict=True)
            ]
            found = self.settings(material.loaded, goals)
            made = store.activations(model, [layer], TensorExamples(found.images), pool=pool)[layer]
            images.append(found)
            reach.append(
                torch.stack(
                    [_reach(vectors, fitted, made[3 * i : 3 * i + 3].cpu()) for i, (vectors, fitted) in enumerate(ways)]
                )
            )
        return ConceptDreams(
            Provenance.collect(model=model, method=self), names, material.layers, tuple(images), torch.stack(reach)
        )

    def findings(self, audit: AuditResults, found: Result) -> tuple[Finding, ...]:
        """Say nothing in the verdict: a picture is to be looked at."""
        return ()

    def tables(self, audit: AuditResults, found: Result) -> tuple[DataTable, ...]:
        """Return a row for each dream."""
        assert isinstance(found, ConceptDreams)
        rows = tuple(
            (name, layer, kind, known(found.reach[i, c, k]), bool(found.images[i].dead[3 * c + k]))
            for c, name in enumerate(found.contrasts)
            for i, layer in enumerate(found.layers)
            for k, kind in enumerate(_KINDS)
        )
        columns = ("contrast", "layer", "direction", "reach", "without_gradient")
        return (DataTable("dreams", "how far each dream lies along its direction", columns, rows, 3),)

    def section(self, audit: AuditResults, found: Result) -> Section:
        """Return a figure for each contrast."""
        assert isinstance(found, ConceptDreams)
        text = (
            "The image that drives a layer furthest along a direction shows what the direction points at, be it the concept"
            " or something else in which the two sets differ. Such images lie far outside any data, and something can be"
            " seen in most of them. So each has a control: a direction fitted to the same images after the two sides"
            f" changed places in half of the {audit.clusters}, which separates nothing. Where a dream shows no more of the"
            " concept than the control does, it is no evidence that the direction means the concept."
        )
        blocks: list[Block] = [Paragraph(text)]
        for i, name in enumerate(found.contrasts):
            caption = (
                f"Dreams of {name}, by layer. Below each: how far it lies along its direction, in standard deviations of the"
                " images that the direction was fitted on, from their mean."
            )
            draw = partial(_figure, audit, found, i)
            blocks.append(Plate(draw, f"Dreams of {name}", caption, f"figures/dreams_{i + 1}", "dreams"))
        notes = found.sentences()
        return Section("What the directions point at", (*blocks, *([Points(notes)] if notes else [])))


def _ways(
    rows: Float[Tensor, "n ..."], sets: ContrastSets, seed: int
) -> tuple[Float[Tensor, "3 m"], Float[Tensor, "fitted m"]]:
    """Return a contrast's direction, its opposite and its control, with the rows that they were fitted on.

    Raises:
        TooFewError: if a single cluster is there to fit on.
    """
    flat = rows.flatten(1)
    pairs = sets.fit
    names = sorted(set(pairs.cluster))
    if len(names) < 2:
        raise TooFewError(
            f"a control for {sets.spec.name!r} swaps sides in half of the clusters, got {len(names)} to fit on: "
            "change fit_share or the data."
        )
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    half = len(names) // 2  # of an odd number one is left out: the halves must cancel
    sides = {names[i]: k < half for k, i in enumerate(order[: 2 * half])}
    mixed = [
        (b, a) if sides[cluster] else (a, b)
        for a, b, cluster in zip(pairs.first, pairs.second, pairs.cluster, strict=True)
        if cluster in sides
    ]
    own = _direction(flat, pairs.first, pairs.second)
    control = _direction(flat, [a for a, _ in mixed], [b for _, b in mixed])
    return torch.stack([own, -own, control]), flat[[*pairs.first, *pairs.second]]


def _direction(rows: Float[Tensor, "n m"], positive: Sequence[int], negative: Sequence[int]) -> Float[Tensor, " m"]:
    used = rows[[*positive, *negative]]
    first = torch.arange(len(positive)).unsqueeze(0)
    second = len(positive) + torch.arange(len(negative)).unsqueeze(0)
    return fit_pairs(used, first, second, Ridge()).normals()[0]


def _reach(
    vectors: Float[Tensor, "3 m"], fitted: Float[Tensor, "fitted m"], made: Float[Tensor, "3 ..."]
) -> Float[Tensor, " 3"]:
    along = (fitted @ vectors.T).double()
    return ((made.flatten(1) * vectors).sum(1).double() - along.mean(0)) / along.std(0)


def _figure(audit: AuditResults, found: ConceptDreams, contrast: int) -> "Figure":
    shown = audit.of(found.contrasts[contrast])
    titles = (
        f"Toward {shown.positive}",
        f"Toward {shown.negative}",
        f"Control: sides swapped in half of the {audit.clusters}",
    )
    return montage(_strips(found, contrast, titles), columns=max(5, len(found.layers)))


def _strips(found: ConceptDreams, contrast: int, titles: Sequence[str]) -> list[Strip]:
    strips = []
    for k, title in enumerate(titles):
        pictures, captions = [], []
        for i, layer in enumerate(found.layers):
            part = found.images[i].part([3 * contrast + k])
            gone = bool(part.dead[0])
            pictures.append(part.pictures()[0])
            captions.append(f"{layer}\n" + ("no gradient" if gone else f"{float(found.reach[i, contrast, k]):+.1f} sd"))
        strips.append(Strip(title, pictures, captions))
    return strips
