"""A report is drawn anew only where something that it is made of has changed."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path

import concepts
import probing
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.spec import AuditFile
from probing.core.content_ids import bytes_id, content_id
from probing.results.result import Provenance, Result

_FILE = "report.seal"


@dataclass(frozen=True)
class Seal:
    """What a report is made of, as a content id: numbers, audit file, code, and versions of packages."""

    made_of: str

    @classmethod
    def of(cls, results: AuditResults, found: Mapping[str, Result], file: AuditFile, model: str) -> "Seal":
        """Return the seal of a report.

        Args:
            results: of the audit.
            found: by its analyses; when and by which command they were made does not count.
            file: the audit file.
            model: content id.
        """
        now = Provenance.collect()
        versions = {**now.versions, "matplotlib": version("matplotlib")}
        parts = [
            {name: value for name, value in asdict(results).items() if name != "provenance"},
            _numbers(found),
            file.model_dump(),
            model,
            versions,
            now.machine,
            _code(),
        ]
        return cls(content_id(parts))

    def holds(self, folder: Path) -> bool:
        """Return whether a folder has this very report, and every file beside it is what it was."""
        try:
            said = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            return bool(said == {"made_of": self.made_of, "files": _files(folder)})
        except (OSError, ValueError):
            return False

    def write(self, folder: Path) -> None:
        """Seal the files of a folder."""
        text = json.dumps({"made_of": self.made_of, "files": _files(folder)}, indent=1)
        (folder / _FILE).write_text(text + "\n", encoding="utf-8")


def _numbers(value: object) -> object:
    """Return a value without the provenance of the results in it."""
    if isinstance(value, Mapping):
        return {name: _numbers(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_numbers(one) for one in value]
    if isinstance(value, Result):
        return {f.name: _numbers(getattr(value, f.name)) for f in fields(value) if f.name != "provenance"}
    return value


def _files(folder: Path) -> dict[str, str]:
    return {name: bytes_id(path.read_bytes()) for name, path in _below(folder) if name != _FILE}


def _code() -> dict[str, str]:
    """Return the content ids of this suite's own files: one that was edited draws otherwise."""
    roots = [Path(package.__path__[0]) for package in (probing, concepts)]
    return {
        f"{root.name}/{name}": bytes_id(path.read_bytes())
        for root in roots
        for name, path in _below(root)
        if path.suffix != ".pyc"
    }


def _below(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path
