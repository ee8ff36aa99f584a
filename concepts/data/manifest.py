"""Manifests: where images come from, what they show and how they match, in YAML; the images stay where they are."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from concepts.data.sources import (
    ChosenImages,
    DatasetSource,
    FolderImages,
    Item,
    ListedImages,
    ManifestError,
    MaskSource,
    PackageImages,
    find,
    some,
)
from concepts.data.yaml_schema import Schema, read
from probing.data.examples import ImageExamples, ImageSource, OnError, Skipped, Transform
from probing.data.images import ImageError, Preprocess, decode
from probing.data.svg_images import VectorFiles


class ChecksumError(ManifestError):
    """Images are missing, or are not the ones that the manifest was written for."""


UNSTATED = "not stated"
"""What stands for a licence or source that only the manifest's author knows."""
Where = dict[str, str | list[str]]
"""Attributes and the value or values that they may have."""


class Group(Schema):
    """Images that belong together: those with certain attributes, less others, or certain files by name."""

    where: Where = Field(default_factory=dict)
    without: Where = Field(default_factory=dict)
    files: list[str] | None = None


class Matched(Schema):
    """Images that differ in one attribute only.

    Attributes:
        vary: the attribute that differs.
        within: the attributes that agree.
        cluster: the attribute whose images are not independent of each other, such as who is drawn.
    """

    vary: str
    within: list[str]
    cluster: str


class ManifestFile(Schema):
    """What a manifest says; the schema of the YAML file."""

    name: str
    about: str = ""
    licence: str
    source: str
    background: Annotated[list[Annotated[int, Field(ge=0, le=255)]], Field(min_length=3, max_length=3)] | None = None
    images: Annotated[FolderImages | ListedImages | PackageImages | DatasetSource, Field(discriminator="kind")]
    groups: dict[str, Group] = Field(default_factory=dict)
    matched: list[Matched] = Field(default_factory=list)
    masks: MaskSource | None = None


class Pairs(NamedTuple):
    """Matched images: `first[i]` and `second[i]` differ in one attribute and belong to `cluster[i]`."""

    first: tuple[int, ...]
    second: tuple[int, ...]
    cluster: tuple[str, ...]


@dataclass(frozen=True)
class Manifest:
    """A manifest with its images found and checked.

    All indices count the images that are left after skipping, as the examples do.

    Attributes:
        version: of the package that the images come from.
        skipped: unreadable images that were left out on demand.
    """

    path: Path
    file: ManifestFile
    items: tuple[Item, ...]
    images: ImageSource
    version: str | None = None
    skipped: tuple[Skipped, ...] = ()

    @classmethod
    def load(cls, path: Path | str, *, root: Path | None = None, on_error: OnError = "raise") -> "Manifest":
        """Read a manifest and check that its images are there and unchanged.

        Args:
            path: the YAML file.
            root: where relative paths start, by default the file's folder.
            on_error: `skip` decodes every image and leaves out unreadable ones, listed in `skipped`. Missing and
                changed ones are refused all the same.

        Raises:
            concepts.data.yaml_schema.SchemaError: if the file breaks its schema.
            ManifestError: if groups and matched sets do not fit the images.
            ChecksumError: if images are missing or changed, by name.
            probing.core.packages.PathEscapeError: if a path leaves its root.
            probing.core.packages.PackageMissingError: if a package is not installed.

        Example:
            >>> manifest = Manifest.load("data_manifests/twemoji_people.yaml")
            >>> women, men, roles = manifest.pairs("gender", "woman", "man")
        """
        path = Path(path)
        file = read(path, ManifestFile)
        manifest = cls(path, file, *find(file.images, root or path.parent))
        manifest._verify_content()
        manifest._verify_structure()
        return manifest._readable() if on_error == "skip" else manifest

    def __len__(self) -> int:
        return len(self.items)

    def examples(self, preprocess: Transform) -> ImageExamples:
        """Return the images as examples in the order of `items`, on the manifest's background if it names one."""
        if self.file.background is not None and isinstance(preprocess, Preprocess):
            red, green, blue = self.file.background
            preprocess = replace(preprocess, background=(red, green, blue))
        return ImageExamples(self.images, preprocess)

    def attribute(self, name: str) -> tuple[str, ...]:
        """Return an attribute's value for each image.

        Raises:
            ManifestError: if the images have no such attribute.
        """
        known = list(self.items[0].attributes)
        if name not in known:
            raise ManifestError(f"the images of {self.file.name!r} have no attribute {name!r}, only {known}.")
        return tuple(item.attributes[name] for item in self.items)

    def group(self, name: str) -> tuple[int, ...]:
        """Return the images of a group.

        Raises:
            ManifestError: if there is no such group, or no image in it.
        """
        if name not in self.file.groups:
            raise ManifestError(f"{self.file.name!r} has no group {name!r}; it has {sorted(self.file.groups)}.")
        group = self.file.groups[name]
        chosen = self.select(group.where, group.without)
        if group.files is not None:
            known = {item.name for item in self.items} | {bad.name for bad in self.skipped}
            absent = sorted(set(group.files) - known)
            if absent:
                raise ManifestError(f"the group {name!r} lists {absent[0]!r}, which is none of the images.")
            listed = set(group.files)
            chosen = tuple(i for i in chosen if self.items[i].name in listed)
        if not chosen:
            raise ManifestError(f"the group {name!r} of {self.file.name!r} holds no image.")
        return chosen

    def select(self, where: Where, without: Where | None = None) -> tuple[int, ...]:
        """Return the images with all the attributes in `where` and none of those in `without`.

        Raises:
            ManifestError: if no image has such an attribute or value.
        """
        wanted, unwanted = (
            {name: self._values(name, values) for name, values in (part or {}).items()} for part in (where, without)
        )
        return tuple(
            i
            for i, item in enumerate(self.items)
            if all(item.attributes[k] in v for k, v in wanted.items())
            and not any(item.attributes[k] in v for k, v in unwanted.items())
        )

    def pairs(self, vary: str, a: str, b: str) -> Pairs:
        """Return images with `vary` equal to `a` beside those with `b` that agree in all that is matched.

        Images whose partner is missing are left out; `check` counts them.

        Raises:
            ManifestError: if nothing is matched so, there is no pair, or a partner is not unique.
        """
        matched = next((m for m in self.file.matched if m.vary == vary), None)
        if matched is None:
            known = [m.vary for m in self.file.matched]
            raise ManifestError(f"{self.file.name!r} matches no images that vary in {vary!r}, only in {known}.")
        one, other = (self._keyed(matched, self.select({vary: value})) for value in (a, b))
        keys = [key for key in one if key in other]
        if not keys:
            raise ManifestError(f"{self.file.name!r} has no pair of images with {vary} {a!r} and {b!r}.")
        first, second = (tuple(side[key] for key in keys) for side in (one, other))
        return Pairs(first, second, tuple(self.items[i].attributes[matched.cluster] for i in first))

    def _values(self, name: str, values: str | list[str]) -> set[str]:
        wanted = {values} if isinstance(values, str) else set(values)
        seen = set(self.attribute(name))
        if unknown := sorted(wanted - seen):
            raise ManifestError(f"no image of {self.file.name!r} has {name} {unknown[0]!r}; values: {some(sorted(seen))}.")
        return wanted

    def _keyed(self, matched: Matched, indices: Sequence[int]) -> dict[tuple[str, ...], int]:
        found: dict[tuple[str, ...], int] = {}
        for i in indices:
            item = self.items[i]
            key = tuple(item.attributes[name] for name in matched.within)
            if key in found:
                raise ManifestError(
                    f"{self.items[found[key]].name!r} and {item.name!r} agree in {[matched.vary, *matched.within]}: "
                    "a matched image must be unique, so name one more attribute in 'within'."
                )
            found[key] = i
        return found

    def _verify_content(self) -> None:
        found = self.states()
        if all(state == "sound" for state in found):
            return
        parts = [
            f"{len(names)} {what} ({some(names)})"
            for what in ("missing", "changed")
            if (names := [item.name for item, state in zip(self.items, found, strict=True) if state == what])
        ]
        raise ChecksumError(
            f"of the {len(self.items)} images of {str(self.path)!r}, {' and '.join(parts)}: "
            "restore them, or write the manifest anew if the change is meant."
        )

    def states(self) -> list[Literal["sound", "missing", "changed"]]:
        """Return whether each image is there and what its checksum says; without one it counts as sound."""
        return [self._state(i) for i in range(len(self.items))]

    def _state(self, index: int) -> Literal["sound", "missing", "changed"]:
        checksum = self.items[index].sha256
        if checksum is None:
            return "sound"
        try:
            data = self.original(index)
        except FileNotFoundError:
            return "missing"
        except ImageError:  # a pipe, or larger than any picture
            return "changed"
        return "sound" if hashlib.sha256(data).hexdigest() == checksum else "changed"

    def original(self, index: int) -> bytes:
        """Return what the manifest's checksum is of: a drawing itself, not how it was drawn."""
        source = self.images
        return source.original(index) if isinstance(source, VectorFiles) else source.read(index)

    def _verify_structure(self) -> None:
        for name in self.file.groups:
            self.group(name)
        for matched in self.file.matched:
            self.verify_matched(matched)

    def verify_matched(self, matched: Matched) -> None:
        """Refuse a way of matching that does not fit the images.

        Raises:
            ManifestError: if it contradicts itself, names no attribute, or a partner is not unique.
        """
        if matched.vary in matched.within or matched.cluster not in matched.within:
            raise ManifestError(
                f"images matched over {matched.vary!r} must agree in their cluster {matched.cluster!r} and not in "
                f"{matched.vary!r} itself, got within: {matched.within}."
            )
        for name in matched.within:
            self.attribute(name)
        for value in sorted(set(self.attribute(matched.vary))):
            self._keyed(matched, self.select({matched.vary: value}))

    def unreadable(self) -> dict[int, Skipped]:
        """Return the images that cannot be decoded, by index, and why; each is tried."""
        bad = {}
        for i in range(len(self.items)):
            try:
                decode(self.images.read(i))
            except ImageError as error:
                bad[i] = Skipped(self.items[i].name, str(error))
        return bad

    def _readable(self) -> "Manifest":
        bad = self.unreadable()
        kept = [i for i in range(len(self.items)) if i not in bad]
        if not kept:
            raise ManifestError(f"none of the {len(self.items)} images of {str(self.path)!r} can be read.")
        items = tuple(self.items[i] for i in kept)
        return replace(
            self,
            items=items,
            images=ChosenImages(self.images, tuple(kept)),
            skipped=tuple(bad.values()),
        )
