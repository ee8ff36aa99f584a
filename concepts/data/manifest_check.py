"""All that is wrong with a manifest, or worth knowing about it, in one go, each with how to mend it."""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from concepts.data.manifest import UNSTATED, Manifest, ManifestFile
from concepts.data.segmentation import MaskedManifest
from concepts.data.sources import (
    DatasetSource,
    FolderImages,
    ManifestError,
    PackageImages,
    find,
    some,
)
from concepts.data.yaml_schema import SchemaError, parse, validated
from probing.core.packages import package_path, path_under
from probing.data.examples import ImageFiles
from probing.data.images import ImageError, decode

_STATED = {
    "name": "a short name, as in name: street",
    "licence": "the licence or consent by which you hold the images, as in licence: CC-BY-4.0",
    "source": "where the images come from, as in source: taken by the author in 2024",
}
"""What every manifest says, and how."""
_FAULTS = (ValueError, LookupError, OSError, ImportError)


@dataclass(frozen=True)
class Finding:
    """Something wrong (`error`) or worth knowing (`warning`) about a manifest."""

    level: Literal["error", "warning"]
    message: str


def check(path: Path | str, *, root: Path | None = None) -> list[Finding]:
    """Return what is wrong with a manifest or worth knowing about it; every image and mask is decoded.

    One fault does not hide the others: what can still be looked at is looked at.

    Args:
        path: the YAML file.
        root: where relative paths start, by default the file's folder.
    """
    path = Path(path)
    try:
        value = parse(path)
        unstated = list(_state(value))
        rows = list(_mend_rows(value, root or path.parent))
        file = validated(value, path, ManifestFile)
    except SchemaError as error:
        return [Finding("error", fault) for fault in error.faults]
    except OSError as error:
        return [Finding("error", str(error))]
    found = [*unstated, *rows]
    if rows and not getattr(file.images, "rows", True):
        return found
    try:
        manifest = Manifest(path, file, *find(file.images, root or path.parent))
    except _FAULTS as error:
        return [*found, Finding("error", str(error))]
    found += [Finding("error", fault) for fault in (*_content(manifest), *_structure(manifest))]
    return found + [Finding("warning", message) for message in _remarks(manifest)]


def _state(value: Any) -> Iterator[Finding]:
    """Yield what is not stated, and put something in its place, so that the rest can be checked."""
    if not isinstance(value, dict) or "images" not in value:
        return
    for key, how in _STATED.items():
        if key not in value:
            yield Finding("error", f"the key {key!r} is missing: add {how}.")
            value[key] = "missing"


def _mend_rows(value: Any, root: Path) -> Iterator[Finding]:
    """Yield rows without a checksum or with too few values, and take them out."""
    images: Any = value.get("images") if isinstance(value, dict) else None
    if not isinstance(images, dict):
        return
    columns, rows = images.get("columns"), images.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list):
        return
    if not all(isinstance(c, str) for c in columns) or not {"file", "sha256"} <= set(columns):
        return
    sound = []
    for row in rows:
        if fault := _row_fault(columns, row, images, root):
            yield Finding("error", fault)
        else:
            sound.append(row)
    images["rows"] = sound


def _row_fault(columns: list[str], row: Any, images: Mapping[str, Any], root: Path) -> str:
    """Return what is wrong with a row, or nothing; what is no row at all is the schema's to say."""
    if not isinstance(row, list) or not all(isinstance(cell, str) for cell in row):
        return ""
    if len(row) != len(columns):
        return f"the row {row} has {len(row)} values for the columns {columns}: give one each."
    record = dict(zip(columns, row, strict=True))
    name, sha256 = record["file"], record["sha256"]
    if re.fullmatch("[0-9a-f]{64}", sha256):
        return ""
    try:
        data = ImageFiles((path_under(_base(images, root), name),)).read(0)
    except _FAULTS:
        how = "put the file in its place, and check again to be told it"
    else:
        how = f"write {hashlib.sha256(data).hexdigest()}, if the file is the one that is meant"
    what = f"{sha256!r} is none of 64 hexadecimal digits in lower case" if sha256 else "it is empty"
    return f"the checksum of {name!r} is missing ({what}): {how}."


def _base(images: Mapping[str, Any], root: Path) -> Path:
    if images.get("kind") == "package":
        return package_path(str(images.get("package")), str(images.get("root")))
    return path_under(root, str(images.get("root", ".")))


def _content(manifest: Manifest) -> Iterator[str]:
    """Yield images and masks that are missing, changed or unreadable, one by one."""
    states = manifest.states()
    names = [item.name for item in manifest.items]
    missing = {i for i, state in enumerate(states) if state == "missing"}
    if len(missing) == len(names) > 1:
        yield (
            f"all {len(names)} images are missing ({some(names)}): if they lie elsewhere, say where by --root; if the"
            " manifest was moved, move it back beside them."
        )
        return
    for i in sorted(missing):
        yield f"{names[i]!r} is missing: put the file back, or take its row out."
    for i, state in enumerate(states):
        if state == "changed":
            yield (
                f"{names[i]!r} has changed, its checksum is not {manifest.items[i].sha256}: put the old file back, or write "
                f"{_sha256(manifest, i)} if the change is meant."
            )
    for i, bad in _unreadable(manifest, missing).items():
        yield f"{names[i]!r}: {bad}; mend or replace it, or take its row out."
    yield from _masks(manifest)


def _sha256(manifest: Manifest, index: int) -> str:
    return hashlib.sha256(manifest.original(index)).hexdigest()


def _unreadable(manifest: Manifest, missing: set[int]) -> dict[int, str]:
    bad = {}
    for i in set(range(len(manifest))) - missing:
        try:
            decode(manifest.images.read(i))
        except ImageError as error:
            bad[i] = str(error)
    return dict(sorted(bad.items()))


def _masks(manifest: Manifest) -> Iterator[str]:
    if manifest.file.masks is None:
        return
    try:
        masks = MaskedManifest(manifest)
    except _FAULTS as error:
        yield str(error)
        return
    for i in range(len(manifest)):
        try:
            masks.labels(i)
        except _FAULTS as error:
            yield str(error)


def _structure(manifest: Manifest) -> Iterator[str]:
    """Yield groups and ways of matching that do not fit the images."""
    known = {item.name for item in manifest.items}
    for name, group in manifest.file.groups.items():
        absent = sorted(set(group.files or ()) - known)
        yield from (
            f"the group {name!r} lists {file!r}, which is none of the images: list it under 'rows' too, or take it out of "
            "the group."
            for file in absent
        )
        try:
            if not absent:
                manifest.group(name)
        except ManifestError as error:
            yield f"{error} Change what the group {name!r} asks for, or the attributes of the images."
    for matched in manifest.file.matched:
        try:
            manifest.verify_matched(matched)
        except ManifestError as error:
            yield str(error)


def _remarks(manifest: Manifest) -> Iterator[str]:
    file = manifest.file
    for key in ("licence", "source"):
        if getattr(file, key).strip() in {"", UNSTATED}:
            yield f"the {key} is not stated, and the report will say so: write {_STATED[key]}."
    source = file.images
    if isinstance(source, PackageImages) and manifest.version != source.version:
        yield f"the package {source.package!r} is {manifest.version}, the manifest was written for {source.version}."
    if isinstance(source, FolderImages | DatasetSource):
        yield f"images of kind {source.kind!r} have no checksums: a change of them goes unnoticed."
    if isinstance(source, DatasetSource) and source.format == "hub" and source.revision is None:
        yield f"no revision of {source.path!r} is named: its next state will be read without notice."
    contents = Counter(_contents(manifest))
    if repeated := sum(n - 1 for n in contents.values()):
        yield f"{repeated} of {len(manifest)} images repeat another one byte for byte."
    yield from _partnerless(manifest)


def _contents(manifest: Manifest) -> Iterator[bytes]:
    for i in range(len(manifest)):
        try:
            yield hashlib.sha256(manifest.images.read(i)).digest()
        except (OSError, ImageError):
            continue  # said already


def _partnerless(manifest: Manifest) -> Iterator[str]:
    for matched in manifest.file.matched:
        try:
            values = len(set(manifest.attribute(matched.vary)))
            count = Counter(tuple(item.attributes[k] for k in matched.within) for item in manifest.items)
        except (ManifestError, KeyError):
            continue  # said already
        if partial := sum(n < values for n in count.values()):
            yield f"{partial} of {len(count)} sets matched over {matched.vary!r} lack one of its {values} values."
