"""The texts of a first audit: a commented audit file, and manifests of the pictures that it speaks of."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import yaml

from concepts.data.image_folders import Pictures
from concepts.data.synthetic import PATTERNS


@dataclass(frozen=True)
class DraftTarget:
    """A class whose logit is explained, and why."""

    name: str | int
    group: str
    reason: str


@dataclass(frozen=True)
class Draft:
    """All that a first audit says.

    Attributes:
        command: that writes it.
        check: the command that checks the manifest of the pictures.
        name: of the audit, as files take it.
        about: what the pictures are, in words.
        root: where the names of pictures start, seen from the audit file's folder; `random_root` the same for random ones.
        matched: whether pictures of one name in different folders differ in the concept alone.
        random: pictures of nothing in particular, or None.
        share: of the clusters that directions are fitted on.
    """

    command: str
    check: str
    name: str
    about: str
    model: str
    weights: str | None
    keys: str
    layers: tuple[str, ...]
    pool: str
    targets: tuple[DraftTarget, ...]
    pictures: Pictures
    root: str
    matched: bool
    random: Pictures | None
    random_root: str
    share: float
    licence: str
    source: str

    def audit(self) -> str:
        """Return the audit file."""
        lines = [
            f"# Written by: {self.command}",
            "# All of it may be changed before the audit is run; what is changed after seeing results was chosen by them.",
            f"name: {_flow(self.name)}",
            f"title: {_flow(f'What {self.model} makes of {self.about}')}",
            f"question: {_flow(self._question())}",
            "# What a reader must know of these pictures. The report says it beside every number.",
            "limits:",
            "  - How these pictures were chosen is not written down; replace this line by how they were.",
            "data: images.yaml",
            "# Where the names in images.yaml start.",
            f"root: {_flow(self.root)}",
            "",
            *self._model(),
            "",
            *self._inputs(),
            "",
            *(self._contrasts() if self.matched else self._concepts()),
            *self._random(),
            "",
            *self._targets(),
            "",
            *self._rest(),
        ]
        return "\n".join(lines) + "\n"

    def images(self) -> str:
        """Return the manifest of the pictures that concepts are shown by."""
        lines = self._manifest(f"{self.name}-images", self.about, self.pictures)
        lines.insert(1, f"# Check it by: {self.check}")
        if self.matched:
            lines += [
                "# Pictures that differ in the concept alone, and which of them are not independent of each other.",
                "matched:",
                f"  - {{vary: concept, within: [{'item, group' if self._grouped else 'item'}], cluster: {self._cluster}}}",
            ]
        return "\n".join([*lines, *self._source(self.pictures)]) + "\n"

    def random_images(self) -> str:
        """Return the manifest of the random pictures."""
        assert self.random is not None
        lines = self._manifest(f"{self.name}-random", "Pictures of nothing in particular.", self.random)
        return "\n".join([*lines, *self._source(self.random)]) + "\n"

    @property
    def _column(self) -> str:
        return self.pictures.column

    @property
    def _grouped(self) -> bool:
        return any(p.group for p in self.pictures.pictures)

    @property
    def _cluster(self) -> str:
        return "group" if self._grouped else "item"

    def _question(self) -> str:
        what = "swapping matched pictures" if self.matched else "the concepts"
        names = ", ".join(self.pictures.concepts)
        return f"Which of the model's classes depend on {what} ({names}), and at which layers?"

    def _model(self) -> Iterator[str]:
        yield "model:"
        yield "  # timm:NAME, torchvision:NAME, or package.module:function for a model of your own."
        yield f"  reference: {_flow(self.model)}"
        if self.weights is None:
            yield "  # weights: FILE, package:NAME/path/inside, or random; left out, the library's own."
        else:
            yield f"  weights: {_flow(self.weights)}"
        if self.keys != "name":
            yield f"  keys: {self.keys}"
        yield f"  # Ends of the model's stages. 'probing layers {self.model}' lists all layers."
        yield f"  layers: {_flow(list(self.layers))}"
        if self.pool != "mean":
            yield f"  pool: {self.pool}"

    def _inputs(self) -> Iterator[str]:
        yield "# The pictures at which logits are explained. No direction is read at pictures that it was fitted on."
        yield "inputs:"
        yield f"  about: {_flow(self.about)}"
        if self._grouped and not self.matched:
            yield "  # Pictures of one group are not independent of each other, and lie on one side of the division."
            yield "  cluster: group"
        yield "  # Share of the pictures (or groups) that directions are fitted on."
        yield f"  fit_share: {self.share}"
        yield f"  caption: [{self._column}]"

    def _contrasts(self) -> Iterator[str]:
        first, *others = self.pictures.concepts
        yield "# Each swap puts the picture of the same name in the other folder in the place of every picture of one."
        yield "contrasts:"
        for name in others:
            swap = _flow([[first, name]])
            yield f"  - {{positive: {_flow(name)}, negative: {_flow(first)}, vary: concept, swaps: {swap}}}"

    def _concepts(self) -> Iterator[str]:
        compared_with = "the random pictures" if self.random else "all the others together"
        yield f"# Each concept is compared with {compared_with}."
        if self.random:
            drawn = ", ".join(PATTERNS[:4])
            yield f"# Drawn ones may be added: {{kind: synthetic, name: stripes, pattern: stripes}} ({drawn}, …)."
        yield "concepts:"
        for name in self.pictures.concepts:
            where = f"{{{_flow(self._column)}: {_flow(name)}}}"
            yield f"  - {{kind: images, name: {_flow(name)}, where: {where}}}"

    def _random(self) -> Iterator[str]:
        if self.random is None:
            return
        count = len(self.random.pictures)
        yield "random:"
        yield "  data: random.yaml"
        yield f"  root: {_flow(self.random_root)}"
        yield "  about: random pictures"
        yield "  # How many are drawn, and how many of them a concept is compared with in each run."
        yield f"  images: {min(count, 240)}"
        yield f"  size: {min(count // 3, 40)}"

    def _targets(self) -> Iterator[str]:
        yield "# The classes that are asked about, each with the reason. 'group' parts them in figures."
        if self.matched:
            yield "# expect: {NEW against OLD: up} writes down beforehand where a logit should go."
        yield "targets:"
        for target in self.targets:
            parts = (_flow(target.name), _flow(target.group), _flow(target.reason))
            yield "  - {{name: {}, group: {}, reason: {}}}".format(*parts)

    def _rest(self) -> Iterator[str]:
        if self.matched:
            yield "# Also: read_used_moved, dissection, discovery, heat_maps, dreams."
            yield "analyses: [tcav, probes, atlas]"
        else:
            yield "# Other analyses look at matched pictures, not at plain folders."
            yield f"analyses: [tcav{', probes' if len(self.pictures.concepts) > 1 else ''}]"
        least = max(199, 40 * len(self.pictures.concepts) - 1)  # p below 0.05 after correction
        yield "statistics:"
        yield "  # A corrected p below alpha counts as evidence."
        yield "  alpha: 0.05"
        yield f"  pseudo_concepts: {least}"
        yield "  seed: 0"

    def _manifest(self, name: str, about: str, pictures: Pictures) -> list[str]:
        counts = ", ".join(f"{concept} {n}" for concept, n in pictures.concepts.items())
        return [
            f"# Written by: {self.command}",
            f"# {len(pictures.pictures)} pictures: {counts}.".replace("\n", " "),
            f"name: {_flow(name)}",
            f"about: {_flow(about)}",
            "# By which licence or consent you hold them, and where they come from; the report says both.",
            f"licence: {_flow(self.licence)}",
            f"source: {_flow(self.source)}",
        ]

    def _source(self, pictures: Pictures) -> Iterator[str]:
        yield "images:"
        if pictures.dataset is not None:
            said = pictures.dataset.model_dump(exclude_none=True)
            for key, value in said.items():
                yield f"  {key}: {_flow(value)}"
            return
        columns = ["file", "sha256", "concept", *(["item"] if self.matched else [])]
        grouped = any(p.group for p in pictures.pictures)
        yield "  kind: files"
        yield f"  columns: [{', '.join([*columns, *(['group'] if grouped else [])])}]"
        yield "  rows:"
        for picture, cluster in zip(pictures.pictures, pictures.clusters, strict=True):
            row = [picture.name, picture.sha256, picture.concept]
            row += [picture.item] if self.matched else []
            yield f"    - {_flow([*row, *([cluster] if grouped else [])])}"


def _flow(value: str | int | Sequence[object]) -> str:
    """Return a value as YAML on one line, quoted where it must be."""
    text = yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=1 << 30)
    return text.strip()[1:-1]
