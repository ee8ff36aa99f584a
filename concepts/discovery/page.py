"""A discovery's page: each atom's examples, where it is in them, and how far it is to be believed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image

from concepts.discovery.relevance import AtomPart, atom_relevance
from concepts.discovery.result import DiscoveryResult, top_by
from concepts.discovery.rows import read_rows
from concepts.discovery.summary import discovery_summary, shown_atom
from concepts.dissection.page import masked
from probing.attribution.lrp.conditional import ConditionalLRP
from probing.attribution.lrp.lrp import LRP
from probing.core.inputs import one_tensor
from probing.data.examples import ExampleSet, ImageExamples, PicturedExamples, Subset
from probing.models.geometry import RefusedError
from probing.models.loading import Model
from probing.models.scores import Score
from probing.results.figures import Strip, figure_of, montage
from probing.results.heatmaps import colours, overlay, reduce_channels, scale_of, tones
from probing.results.html_report import Finding, Plate, Points, Report, Section, Table, interval, number, p_value
from probing.store.store import ActivationStore

_AT_ONCE = 16
_SIDE = 160
_SHOWN = 0.5
"""Places are shown whose code is at least this share of the example's largest."""
_LIMITS = (
    "An atom is a direction that gives a layer's activations back well. That it means one thing to people is not said by "
    "any number here: look at its examples.",
    "What is found again in the other half of the examples is a property of this layer and these examples; untrained "
    "networks have such directions, too.",
    "A part of a score is what the way from zero output of the layer to the layer's output owes to an atom, not what "
    "would happen in a world without it.",
    "A name is the best of those that were offered, where it is significant; the right one may not have been among them.",
)


@dataclass(frozen=True, eq=False)
class AtomStrips:
    """The pictures of one atom: its examples with where it is active, their relevance maps, and its most relevant ones."""

    atom: int
    strips: tuple[Strip, ...]


@dataclass(frozen=True, eq=False)
class AtomPictures:
    """The pictures of all atoms, and why some are missing."""

    atoms: tuple[AtomStrips, ...]
    refused: str = ""
    """Why relevance could not be followed, if it could not."""


def atom_pictures(
    result: DiscoveryResult,
    store: ActivationStore,
    model: Model,
    examples: ExampleSet,
    score: Score | None = None,
    *,
    count: int = 6,
    relevant: int = 64,
    method: LRP | None = None,
) -> AtomPictures:
    """Draw each atom's examples.

    Args:
        result: of the discovery.
        store: that rows are read from again.
        model: the one discovered in.
        examples: the same, with pictures.
        score: whose relevance is followed; None leaves maps and most relevant examples out.
        count: examples of an atom.
        relevant: held-out examples among which the most relevant are looked for, spread evenly.
        method: how relevance is followed.
    """
    if not isinstance(examples, PicturedExamples):
        return AtomPictures(())
    tops = [result.top(atom, count) for atom in range(len(result))]
    strips: list[list[Strip]] = [[] for _ in tops]
    _active(result, store, model, examples, tops, strips)
    if score is None or result.places == "mean":
        return AtomPictures(tuple(AtomStrips(a, tuple(s)) for a, s in enumerate(strips)))
    refused = ""
    try:
        _relevant(result, examples, score, tops, strips, method or LRP(), relevant)
    except RefusedError as error:
        refused = str(error)
    return AtomPictures(tuple(AtomStrips(a, tuple(s)) for a, s in enumerate(strips)), refused)


def _active(
    result: DiscoveryResult,
    store: ActivationStore,
    model: Model,
    examples: ExampleSet,
    tops: Sequence[Sequence[int]],
    strips: Sequence[list[Strip]],
) -> None:
    """Add each atom's examples, darkened where it is not active."""
    wanted = sorted({i for top in tops for i in top})
    if not wanted:
        return
    rows = read_rows(store, model, result.layer, Subset(examples, wanted), "each" if result.places == "each" else "mean")
    codes = result.dictionary.codes(rows.values).reshape(len(wanted), rows.places, len(result)).abs()
    shape = rows.cells.shape if rows.cells is not None else ()
    for atom, top in enumerate(tops):
        images, captions = [], []
        for i in top:
            own = codes[wanted.index(i), :, atom]
            picture = _picture(examples, i)
            if len(shape) == 2:
                picture = masked(picture, (own >= _SHOWN * own.amax()).reshape(shape).numpy())
            images.append(picture)
            captions.append(f"code {float(result.peaks[i, atom]):.3g}")
        if images:
            strips[atom].append(Strip(f"{result.name(atom).capitalize()}, most active", images, captions))


def _relevant(
    result: DiscoveryResult,
    examples: ExampleSet,
    score: Score,
    tops: Sequence[Sequence[int]],
    strips: Sequence[list[Strip]],
    method: LRP,
    relevant: int,
) -> None:
    """Add the relevance maps of each atom's examples, and its most relevant examples."""
    pool = result.held_out.nonzero()[:, 0].tolist()
    pool = [pool[i] for i in np.unique(np.linspace(0, len(pool) - 1, min(relevant, len(pool))).round().astype(int))]
    amounts = torch.full(result.peaks.shape, -torch.inf, dtype=torch.float64)
    for start in range(0, len(pool), _AT_ONCE):
        some = pool[start : start + _AT_ONCE]
        amounts[some] = atom_relevance(method, score, one_tensor(examples.load(some)), result.layer, result.dictionary).cpu()
    inside = torch.zeros(len(result.held_out), dtype=torch.bool)
    inside[pool] = True
    jobs = [(atom, i) for atom, top in enumerate(tops) for i in top]
    best = {atom: top_by(amounts[:, atom], inside, max(map(len, tops))) for atom in range(len(result))}
    jobs += [(atom, i) for atom, found in best.items() for i in found]
    maps: dict[tuple[int, int], Image.Image] = {}
    jobs = list(dict.fromkeys(jobs))
    for start in range(0, len(jobs), _AT_ONCE):
        some_jobs = jobs[start : start + _AT_ONCE]
        inputs = one_tensor(examples.load([i for _, i in some_jobs]))
        parts = [AtomPart(result.dictionary, atom) for atom, _ in some_jobs]
        values = ConditionalLRP(result.layer, method)(score, inputs, parts).values
        if values.ndim != 4:
            return
        heat = reduce_channels(values.cpu().float())
        painted = colours(tones(heat, scale_of(heat)))
        for job, one in zip(some_jobs, painted, strict=True):
            maps[job] = _laid_over(_picture(examples, job[1]), one)
    for atom, top in enumerate(tops):
        for title, shown in (("Where it is relevant in them", top), ("Most relevant", best[atom])):
            if shown:
                captions = ["" if title != "Most relevant" else f"{float(amounts[i, atom]):+.3g}" for i in shown]
                strips[atom].append(Strip(title, [maps[atom, i] for i in shown], captions))


def discovery_page(result: DiscoveryResult, pictures: AtomPictures, subject: str, score_name: str = "") -> Report:
    """Return the page.

    Args:
        result: of the discovery.
        pictures: by `atom_pictures`.
        subject: what was discovered in, in a line.
        score_name: of the score whose relevance was followed.
    """
    label = "How far each atom is found again."
    caption = (
        "Cosine of each atom with its partner in a dictionary learned of the held-out half, beside other seeds; grey: what "
        "dictionaries give whose atoms are turned at random within the directions in which rows vary."
    )
    order = _order(result)
    by_atom = {one.atom: one for one in pictures.atoms}
    plates = tuple(_plate(result, by_atom[atom], score_name) for atom in order if atom in by_atom and by_atom[atom].strips)
    said = list(result.sentences())
    if pictures.refused:
        said.append(f"Relevance could not be followed through this network: {pictures.refused}")
    sections = [
        Section("Stability", (Plate(lambda: figure_of(result.plot()), label, caption, "stability"),)),
        Section("All atoms", (_table(result, order),)),
    ]
    if plates:
        sections.append(Section("Atoms", plates))
    sections.append(Section("What stands beside the numbers", (Points(tuple(said)),)))
    made = result.provenance
    return Report(
        title="Concepts that nobody named",
        subject=subject,
        question=f"Which directions does the layer {result.layer!r} consist of, and how far is each to be believed?",
        findings=tuple(_findings(result)),
        limits=_LIMITS,
        sections=tuple(sections),
        summary=discovery_summary(result, _example(result, by_atom)),
        colophon=(
            ("examples", f"{len(result.ids)}, content id {made.examples}"),
            ("model", made.model),
            ("made", f"{made.created} on {made.machine}"),
            ("versions", ", ".join(f"{name} {version}" for name, version in made.versions.items())),
        ),
    )


def _example(result: DiscoveryResult, by_atom: Mapping[int, AtomStrips]) -> Image.Image | None:
    """Return the example that shows most of the atom that the first screen shows; None without pictures."""
    one = by_atom.get(shown_atom(result))
    return one.strips[0].images[0] if one and one.strips else None


def _order(result: DiscoveryResult) -> list[int]:
    """Return atoms by the size of their part of the first score, or by how often they are active."""
    by = result.active if result.importance is None else result.importance.part[0].abs()
    return [int(i) for i in by.argsort(descending=True, stable=True)]


def _findings(result: DiscoveryResult) -> Iterator[Finding]:
    both = result.agreement
    yield Finding(
        f"{int(result.stable.sum())} of {len(result)} atoms are found again in the held-out half, significantly.",
        f"Mean cosine {number(float(both.cosine.mean()))}; unrelated dictionaries {number(float(both.chance.mean()))}.",
    )
    if result.replacement is not None:
        yield Finding(
            f"With the reconstruction in the layer's place {result.replacement.same_class:.0%} of held-out examples keep "
            "their class.",
            f"With one mean row {result.replacement.same_class_of_mean:.0%}; {result.unexplained:.0%} of the squared "
            "distance from the mean is not explained.",
        )
    if (told := result.importance) is not None:
        for t, target in enumerate(told.targets):
            called = (told.p[t] < 1 - result.level).nonzero()[:, 0].tolist()
            largest = int(told.part[t].abs().argmax())
            which = "The largest" if largest in called else "The largest, which is not significant,"
            yield Finding(
                f"{target}: {len(called)} of {len(result)} atoms have a significant part of the score.",
                f"{which} is that of {result.name(largest)}, {number(float(told.part[t, largest]), sign=True)} of "
                f"{number(float(told.change[t]), sign=True)}.",
            )
    for a, attribute in enumerate(result.attributes):
        moved = result.moves[a].nonzero()[:, 0].tolist()
        said = ", ".join(result.name(i) for i in moved)
        yield Finding(f"Swapping {attribute} moves {len(moved)} of {len(result)} atoms significantly.", said)


def _plate(result: DiscoveryResult, one: AtomStrips, score_name: str) -> Plate:
    atom = one.atom
    parts = [
        f"Found again with cosine {number(float(result.agreement.cosine[atom]))} "
        f"(p {_p(float(result.agreement.p[atom]))}); active in {float(result.active[atom]):.0%} of rows."
    ]
    if (told := result.importance) is not None:
        for t, target in enumerate(told.targets):
            low, high = (float(x[t, atom]) for x in (told.low, told.high))
            sobol = float(told.sobol[t, atom])
            also = "" if math.isnan(sobol) else f", Sobol {number(sobol)} ± {number(float(told.sobol_error[t, atom]))}"
            parts.append(
                f"Part of {target}: {number(float(told.part[t, atom]), sign=True)} ({interval(low, high)}), "
                f"p {_p(float(told.p[t, atom]))}{also}."
            )
    for a, attribute in enumerate(result.attributes):
        assert result.shifts is not None
        parts.append(
            f"Swapping {attribute}: {number(float(result.shifts.shift[a, atom]), sign=True)} deviations, "
            f"p {_p(float(result.shifts.p[a, atom]))}."
        )
    if result.twin is not None:
        parts.append(f"Nearest codes in the untrained network: r = {number(float(result.twin.counterpart[atom]))}.")
    if result.naming is not None:
        best = result.naming.names[int(result.naming.best[atom])]
        score = number(float(result.naming.correlation[atom].amax()))
        chance = number(float(result.naming.chance[atom]))
        verdict = "named" if bool(result.naming.named[atom]) else "no name; best is"
        parts.append(f"{verdict[:1].upper()}{verdict[1:]} {best}: r = {score}, shuffled {chance}.")
    if score_name and len(one.strips) > 1:
        parts.append(f"Maps: relevance for {score_name} that goes through this atom, red for, blue against.")
    columns = max(len(strip.images) for strip in one.strips)
    draw = partial(montage, list(one.strips), columns=max(columns, 4), width=5.6)
    return Plate(
        draw, f"Examples of {result.name(atom)}.", f"{result.name(atom).capitalize()}. {' '.join(parts)}", f"atom-{atom}"
    )


def _table(result: DiscoveryResult, order: Sequence[int]) -> Table:
    header = ["atom", "stability", "p", "active, %"]
    told, shifts = result.importance, result.shifts
    if told is not None:
        for target in told.targets:
            header += [f"part of {target}", "interval", "p"]
    header += [f"by {attribute}, p" for attribute in result.attributes]
    header += ["twin"] if result.twin is not None else []
    rows = []
    for atom in order:
        cells = [
            result.name(atom),
            number(float(result.agreement.cosine[atom])),
            _p(float(result.agreement.p[atom])),
            number(100 * float(result.active[atom]), 1),
        ]
        if told is not None:
            for t in range(len(told.targets)):
                cells += [
                    number(float(told.part[t, atom]), sign=True),
                    interval(_known(told.low[t, atom]), _known(told.high[t, atom])),
                    _p(float(told.p[t, atom])),
                ]
        if shifts is not None:
            cells += [_p(float(shifts.p[a, atom])) for a in range(len(result.attributes))]
        if result.twin is not None:
            cells.append(number(float(result.twin.counterpart[atom])))
        rows.append(tuple(cells))
    return Table("Atoms; p is corrected for all of them.", tuple(header), tuple(rows))


def _known(value: torch.Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)


def _p(value: float) -> str:
    return p_value(None if math.isnan(value) else value)


def _picture(examples: ExampleSet, index: int) -> Image.Image:
    """Return what the model sees of an example, small."""
    if isinstance(examples, ImageExamples):
        picture = examples.seen(index).convert("RGB")
    else:
        assert isinstance(examples, PicturedExamples)
        picture = examples.image(index).convert("RGB")
    picture = picture.copy()
    if max(picture.size) < _SIDE:
        return picture.resize((_SIDE, _SIDE), Image.Resampling.NEAREST)
    picture.thumbnail((_SIDE, _SIDE))
    return picture


def _laid_over(picture: Image.Image, heat: torch.Tensor) -> Image.Image:
    pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255).movedim(-1, 0)
    laid = overlay(pixels[None], heat[None])[0]
    return Image.fromarray((laid.clamp(0, 1) * 255).byte().movedim(0, -1).numpy())
