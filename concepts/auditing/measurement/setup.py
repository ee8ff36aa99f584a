"""What an audit file names, found and checked: the model, the images, and which of them serve for what."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from concepts.auditing.measurement.spec import AuditFile, Contrast, Pictured
from concepts.data.concept_sets import MINIMUM, Concept, random_sets
from concepts.data.manifest import Manifest, Pairs
from concepts.data.synthetic import SyntheticImages
from concepts.effects.logit_effect import split_clusters
from probing.core.errors import ProbingError
from probing.data.examples import Concatenation, ExampleSet, Subset, concat
from probing.models import loading
from probing.models.layers import expand
from probing.models.loading import LoadedModel
from probing.models.summary import calls


class AuditError(ProbingError, ValueError):
    """The parts of an audit do not fit each other."""


@dataclass(frozen=True, eq=False)
class ContrastSets:
    """A contrast's matched images: all, those of training and those of held-out clusters."""

    spec: Contrast
    every: Pairs
    fit: Pairs
    judge: Pairs


@dataclass(eq=False)
class Table:
    """All images of an audit as rows, part by part."""

    parts: list[ExampleSet] = field(default_factory=list)
    captions: list[str] = field(default_factory=list)
    clusters: list[str] = field(default_factory=list)

    def add(self, examples: ExampleSet, captions: Sequence[str], clusters: Sequence[str] | None = None) -> range:
        """Take up images and return their rows; without clusters each stands alone."""
        rows = range(len(self.captions), len(self.captions) + len(examples))
        self.parts.append(examples)
        self.captions += captions
        self.clusters += clusters or [f"image {i}" for i in rows]
        return rows

    @property
    def examples(self) -> Concatenation:
        """All images."""
        return concat(*self.parts)


@dataclass(frozen=True, eq=False)
class Material:
    """Everything an audit works on; images are named by their row in the table.

    Attributes:
        targets: classes by name.
        manifests: of the data, and of the random images if there are any.
        cluster_by: the attribute whose values are divided into training and held-out ones; `image` where each
            image stands alone.
        judged_inputs: those inputs of clusters that no direction was fitted on.
        pool: random images.
        concepts: images of each concept that is given as one set.
    """

    file: AuditFile
    loaded: LoadedModel
    layers: tuple[str, ...]
    targets: dict[str, int]
    manifests: tuple[Manifest, ...]
    cluster_by: str
    fitted_on: frozenset[str]
    judged_on: frozenset[str]
    examples: Concatenation
    captions: tuple[str, ...]
    clusters: tuple[str, ...]
    inputs: tuple[int, ...]
    judged_inputs: tuple[int, ...]
    contrasts: tuple[ContrastSets, ...]
    pool: tuple[int, ...]
    concepts: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, file: AuditFile, folder: Path, device: str | torch.device = "cpu") -> "Material":
        """Load the model, find the images and divide them.

        Args:
            file: the audit.
            folder: where paths in it start.
            device: where the model computes, as `probing.models.loading.load` takes it.

        Raises:
            AuditError: if the parts of the audit do not fit each other.
            ValueError, LookupError, OSError, ImportError: as models and manifests raise them.
        """
        model = file.model
        loaded = loading.load(model.reference, weights=model.weights, keys=model.keys, device=device)
        data = Manifest.load(folder / file.data, root=_root(folder, file.root))
        cluster_by, names = _clusters(data, file)
        fit, judge = _divided(data, file, names)
        table = Table()
        table.add(data.examples(loaded.preprocess), _captions(data, file.inputs.caption), names)
        pool, random = _add_pool(table, file, folder, loaded)
        chosen = data.select(file.inputs.where)
        judged = _needed(file.inputs.about, [i for i in chosen if names[i] in judge])
        concepts = _add_concepts(table, file, data, [i for i, n in enumerate(names) if n in fit], loaded)
        if not file.contrasts:
            _check_clusters(concepts, table.clusters, cluster_by)
        return cls(
            file=file,
            loaded=loaded,
            layers=expand(loaded.model, model.layers, lambda: calls(loaded.model, table.examples.load([0]))),
            targets=_targets(file, loaded),
            manifests=(data, *random),
            cluster_by=cluster_by,
            fitted_on=fit,
            judged_on=judge,
            concepts=concepts,
            examples=table.examples,
            captions=tuple(table.captions),
            clusters=tuple(table.clusters),
            inputs=tuple(chosen) if file.contrasts else judged,
            judged_inputs=judged,
            contrasts=tuple(_contrast(spec, data, fit, judge) for spec in file.contrasts),
            pool=tuple(pool),
        )

    @property
    def data_clusters(self) -> tuple[str, ...]:
        """Which of the data's images belong together."""
        return self.clusters[: len(self.manifests[0])]

    def others(self, concept: str) -> tuple[int, ...]:
        """Return the images that a concept given as one set is compared with: random ones, or all other concepts'."""
        rest = (rows for name, rows in self.concepts.items() if name != concept)
        return self.pool or tuple(row for rows in rest for row in rows)

    def subset(self, rows: Sequence[int]) -> Subset:
        """Return some images."""
        return Subset(self.examples, rows)

    def clusters_of(self, rows: Sequence[int]) -> list[str]:
        """Return which of some images belong together."""
        return [self.clusters[i] for i in rows]

    def concept(self, name: str, rows: Sequence[int]) -> Concept:
        """Return some images as a concept."""
        return Concept(name, self.subset(rows), tuple(self.clusters_of(rows)))


def _root(folder: Path, root: str | None) -> Path | None:
    return None if root is None else folder / root


def _clusters(data: Manifest, file: AuditFile) -> tuple[str, tuple[str, ...]]:
    """Return what is divided into two parts, and which of it each image belongs to."""
    name = _cluster_attribute(data, file.contrasts) if file.contrasts else file.inputs.cluster
    if name is None:
        return "image", tuple(item.name for item in data.items)
    return name, data.attribute(name)


def _divided(data: Manifest, file: AuditFile, names: Sequence[str]) -> tuple[frozenset[str], frozenset[str]]:
    """Return training and held-out clusters; without contrasts each concept's are divided by themselves."""
    share, seed = file.inputs.fit_share, file.statistics.seed
    if file.contrasts:
        return split_clusters(names, share, seed)
    pictured = [c for c in file.concepts if isinstance(c, Pictured)]
    return divide(names, {c.name: {names[i] for i in data.select(c.where)} for c in pictured}, share, seed)


def divide(
    names: Collection[str], of_concept: Mapping[str, Collection[str]], share: float, seed: int
) -> tuple[frozenset[str], frozenset[str]]:
    """Divide clusters into training and held-out ones, so that each concept has its share of both.

    Args:
        names: of all clusters.
        of_concept: the clusters that each concept has images of.
        share: of the clusters that are fitted on; one alone of its kind is.
        seed: of the draws.
    """
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(set(names)):
        kind = tuple(concept for concept, own in of_concept.items() if name in own)
        alike.setdefault(kind, []).append(name)
    parts = [split_clusters(n, share, seed)[0] for n in alike.values() if len(n) > 1]
    fit = frozenset[str]().union(*parts, *(n for n in alike.values() if len(n) == 1))
    return fit, frozenset(names) - fit


def _cluster_attribute(data: Manifest, contrasts: Sequence[Contrast]) -> str:
    found = {}
    for contrast in contrasts:
        matched = [m for m in data.file.matched if m.vary == contrast.vary]
        if not matched:
            known = [m.vary for m in data.file.matched]
            raise AuditError(
                f"the contrast {contrast.name!r} varies {contrast.vary!r}, but {data.file.name!r} matches images over "
                f"{known} only."
            )
        found[contrast.name] = matched[0].cluster
    if len(set(found.values())) > 1:
        raise AuditError(f"contrasts must come in clusters of one attribute, got {found}.")
    return next(iter(found.values()))


def _contrast(spec: Contrast, data: Manifest, fit: frozenset[str], judge: frozenset[str]) -> ContrastSets:
    matched = [match for before, after in spec.swaps for match in zip(*data.pairs(spec.vary, after, before), strict=True)]

    def of(names: frozenset[str]) -> Pairs:
        kept = [match for match in matched if match[2] in names]
        _needed(f"matched images of {spec.name!r}", [after for after, _, _ in kept])
        first, second, clusters = zip(*kept, strict=True)
        return Pairs(first, second, clusters)

    return ContrastSets(spec, of(fit | judge), of(fit), of(judge))


def _needed(what: str, rows: Sequence[int]) -> tuple[int, ...]:
    if not rows:
        raise AuditError(f"there are no {what} on one side of the division: change fit_share or the data.")
    return tuple(rows)


def _captions(manifest: Manifest, attributes: Sequence[str]) -> list[str]:
    columns = [manifest.attribute(name) for name in attributes]
    if not columns:
        return [item.name for item in manifest.items]
    return [" ".join(words).replace("_", " ") for words in zip(*columns, strict=True)]


def _add_pool(table: Table, file: AuditFile, folder: Path, loaded: LoadedModel) -> tuple[range, list[Manifest]]:
    spec = file.random
    if spec is None:
        return range(0), []
    manifest = Manifest.load(folder / spec.data, root=_root(folder, spec.root))
    every = manifest.examples(loaded.preprocess)
    known = {i for part in table.parts for i in part.ids}
    [drawn] = random_sets(every, spec.images, 1, seed=file.statistics.seed, exclude=known)
    captions = _captions(manifest, [spec.caption] if spec.caption else [])
    return table.add(Subset(every, drawn), [captions[i] for i in drawn]), [manifest]


def _add_concepts(
    table: Table, file: AuditFile, data: Manifest, fit: Sequence[int], loaded: LoadedModel
) -> dict[str, tuple[int, ...]]:
    """Return the rows of concepts given as one set, having added those that are synthetic."""
    found: dict[str, tuple[int, ...]] = {}
    size, seed = file.random.size if file.random else None, file.statistics.seed
    for spec in file.concepts:
        if isinstance(spec, Pictured):
            rows = sorted(set(data.select(spec.where)) & set(fit))
            order = np.random.default_rng(seed).permutation(len(rows))[:size]
            found[spec.name] = tuple(rows[i] for i in sorted(order))
        else:
            assert size is not None  # the file's check
            images = SyntheticImages(spec.pattern, size, seed=seed).examples(loaded.preprocess)
            found[spec.name] = tuple(table.add(images, [spec.name] * size))
    return found


def _check_clusters(concepts: Mapping[str, Sequence[int]], clusters: Sequence[str], called: str) -> None:
    for name, rows in concepts.items():
        if (count := len({clusters[row] for row in rows})) < MINIMUM:
            raise AuditError(
                f"the concept {name!r} has images of {count} {called}s to fit on: {MINIMUM} or more are needed, since those"
                f" of one {called} count as one observation."
            )


def _targets(file: AuditFile, loaded: LoadedModel) -> dict[str, int]:
    indices = [loaded.class_index(target.name) for target in file.targets]
    if repeats := [index for index, n in Counter(indices).items() if n > 1]:
        raise AuditError(f"class {repeats[0]} stands twice among the targets: name each once.")
    return {class_name(loaded, index): index for index in indices}


def class_name(loaded: LoadedModel, index: int) -> str:
    """Return a class's name, with its number where the model has two of that name, or none."""
    name = loaded.classes[index] if loaded.classes else "class"
    return name if loaded.classes.count(name) == 1 else f"{name} {index}"
