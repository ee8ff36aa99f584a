"""The audit file: question, model, data, concepts and targets, written down before anything is measured."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from concepts.auditing.measurement.results import Direction
from concepts.data.concept_sets import MINIMUM
from concepts.data.manifest import Where
from concepts.data.yaml_schema import Schema, SchemaError, read
from probing.models.precision import Kind
from probing.models.weights import Keys

Share = Annotated[float, Field(gt=0, lt=1)]
Some = Annotated[int, Field(ge=1)]


class ModelPart(Schema):
    """The model to audit: as `probing.models.loading.load` takes it."""

    reference: str
    weights: str | None = None
    keys: Keys = "name"
    layers: Annotated[list[str], Field(min_length=1)]
    pool: Literal["mean", "mean_last"] = "mean"
    precision: Kind = "float32"


class InputsPart(Schema):
    """The images whose logits are explained; a direction is never read at those of a cluster it was fitted on.

    Attributes:
        about: what they are, in words.
        cluster: without contrasts, the attribute whose images are not independent of each other, such as who took
            them; by default each image stands alone. With contrasts, the manifest's matched images say it.
        fit_share: share of the clusters that directions are fitted on where they are judged on the others.
        caption: attributes that name an image in figures.
    """

    about: str
    where: Where = Field(default_factory=dict)
    cluster: str | None = None
    fit_share: Share = 0.5
    caption: list[str] = Field(default_factory=list)


class Contrast(Schema):
    """Two sets that differ in one attribute: swapping one for the other shows what the model really does.

    Attributes:
        vary: the attribute; the manifest says which images match over it, and what their clusters are.
        swaps: pairs of its values, from and to.
        place: whether to show where inputs that are on neither side lie between the two.
    """

    positive: str
    negative: str
    vary: str
    swaps: Annotated[list[Annotated[list[str], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    place: bool = False

    @property
    def name(self) -> str:
        """How the contrast is called everywhere."""
        return f"{self.positive} against {self.negative}"


class Pictured(Schema):
    """A concept shown by images of the audit's data, of the clusters that concepts are fitted on."""

    kind: Literal["images"]
    name: str
    where: Annotated[Where, Field(min_length=1)]


class Drawn(Schema):
    """A concept of synthetic images: a colour or a texture."""

    kind: Literal["synthetic"]
    name: str
    pattern: str


class RandomPart(Schema):
    """The images that concepts given as one set are compared with.

    Attributes:
        data: their manifest.
        root: where paths in it start; its folder by default.
        about: what they are, in words.
        caption: the attribute that names an image in figures.
        images: how many of them are drawn, three times `size` at least.
        size: images of a concept and of each random counterpart.
    """

    data: str
    root: str | None = None
    about: str
    caption: str | None = None
    images: Some = 240
    size: Annotated[int, Field(ge=MINIMUM)] = 40


class Target(Schema):
    """A class whose logit is explained, and why.

    Attributes:
        name: the class as the model calls it, or its number.
        expect: by contrast, where its logit is expected to go.
    """

    name: str | int
    group: str
    reason: Annotated[str, Field(min_length=1)]
    expect: dict[str, Direction] = Field(default_factory=dict)


class StatisticsPart(Schema):
    """How sure is sure.

    Attributes:
        level: of intervals.
        trust: a layer is trusted for a contrast if the lower bound of the correlation over targets of predicted
            effect and measured swap is at least this, the two coming from different clusters.
        divisions: random ones of the clusters into halves, for that correlation.
        relabellings: of the test of the effect; with few clusters all there are.
        pseudo_concepts: of the test of the TCAV score; where none are named, more than 199 are drawn for so many
            concepts given as one set that no corrected p could be small otherwise.
        runs: CAVs a concept, each against another random counterpart or on other held-out images.
        picked: classes per contrast and direction that are picked on one part of the clusters and judged on the other.
    """

    level: Share = 0.95
    alpha: Share = 0.05
    trust: Annotated[float, Field(ge=0, lt=1)] = 0.5
    divisions: Some = 200
    relabellings: Annotated[int, Field(ge=99)] = 9999
    bootstraps: Annotated[int, Field(ge=100)] = 1000
    pseudo_concepts: Annotated[int, Field(ge=19)] = 199
    runs: Annotated[int, Field(ge=2)] = 10
    picked: Annotated[int, Field(ge=0)] = 0
    seed: int = 0


AnalysisName = Literal["tcav", "probes", "read_used_moved", "dissection", "atlas", "discovery", "heat_maps", "dreams"]
"""What an audit may look at; TCAV always is, `concepts.auditing.analyses` has the others."""
TCAV = "tcav"


class AuditFile(Schema):
    """A whole audit; the schema of the YAML file.

    Without contrasts nothing can be swapped: concepts are read along their directions alone. Without random images
    too, each concept is compared with all the others together.

    Attributes:
        data: the manifest of the images.
        root: where paths in that manifest start; its folder by default.
        analyses: what is looked at, in the order of the report; swaps and TCAV always are, named or not.
        scenes: drawn scenes by which `dissection` says what units detect; 0 leaves that out. Each is a forward pass.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    title: str
    question: str
    limits: list[str] = Field(default_factory=list)
    data: str
    root: str | None = None
    model: ModelPart
    inputs: InputsPart
    contrasts: list[Contrast] = Field(default_factory=list)
    concepts: list[Annotated[Pictured | Drawn, Field(discriminator="kind")]] = Field(default_factory=list)
    random: RandomPart | None = None
    targets: Annotated[list[Target], Field(min_length=1)]
    statistics: StatisticsPart = Field(default_factory=StatisticsPart)
    analyses: list[AnalysisName] = Field(default_factory=list)
    scenes: Annotated[int, Field(ge=0)] = 0

    @property
    def further(self) -> tuple[AnalysisName, ...]:
        """What is looked at besides swaps and TCAV."""
        return tuple(name for name in self.analyses if name != TCAV)

    @property
    def attributes(self) -> tuple[str, ...]:
        """What the images differ in: the attributes that contrasts vary, or else those that name concepts."""
        named = (a for c in self.concepts if isinstance(c, Pictured) for a in c.where)
        return tuple(dict.fromkeys([c.vary for c in self.contrasts] or named))


def _nothing_to_tell_from(audit: AuditFile) -> str:
    """Return what is missing for concepts to be compared with something, or nothing."""
    if not audit.contrasts and not audit.concepts:
        return "an audit compares: name 'contrasts' of matched images, or 'concepts'"
    if not audit.concepts or audit.random is not None:
        return ""
    if audit.contrasts or not all(isinstance(c, Pictured) for c in audit.concepts):
        return "concepts given as one set need random counterparts: add the key 'random'"
    if len(audit.concepts) == 1:
        return "one concept alone has nothing to be compared with: name another, or add the key 'random'"
    return ""


def _not_without_contrasts(audit: AuditFile) -> str:
    """Return what an audit asks for that only contrasts give, or that they give already, or nothing."""
    if audit.contrasts and audit.inputs.cluster:
        return "'inputs.cluster' is for audits without contrasts: matched images name their clusters in the manifest"
    more = [name for name in audit.further if name != "probes"]
    if more and not audit.contrasts:
        return f"the analysis {more[0]!r} looks at contrasts of matched images, of which there are none: leave it out"
    return ""


def _contradiction(audit: AuditFile) -> str:
    """Return what contradicts itself in an audit, or nothing."""
    contrasts = [c.name for c in audit.contrasts]
    for what, names in (
        ("concept", [*contrasts, *(c.name for c in audit.concepts)]),
        ("target", [str(t.name) for t in audit.targets]),
        ("analysis", [str(name) for name in audit.analyses]),
    ):
        if repeats := [name for name, n in Counter(names).items() if n > 1]:
            return f"the {what} {repeats[0]!r} stands twice: name each once"
    if audit.scenes == 1:
        return "'scenes' is 1, but dissection needs at least two, one to choose a concept on and one to judge it"
    if audit.scenes and "dissection" not in audit.analyses:
        return f"'scenes' is {audit.scenes}, but the analyses do not name 'dissection', which looks at them"
    if fault := _nothing_to_tell_from(audit) or _not_without_contrasts(audit):
        return fault
    for target in audit.targets:
        if unknown := sorted(set(target.expect) - set(contrasts)):
            return f"target {target.name!r} expects something of {unknown[0]!r}, which is none of {contrasts}"
    return ""


def read_audit(path: Path) -> AuditFile:
    """Return what an audit file says.

    Raises:
        concepts.data.yaml_schema.SchemaError: if it is no plain YAML, has an unknown key, or contradicts itself.
        FileNotFoundError: if there is no such file.
    """
    audit = read(path, AuditFile)
    if fault := _contradiction(audit):
        raise SchemaError(f"{str(path)!r}: {fault}.")
    return audit
