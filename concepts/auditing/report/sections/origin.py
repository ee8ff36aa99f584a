"""Where an audit's model and images come from, and how to get the same numbers again."""

import shlex
from collections.abc import Mapping, Sequence

from concepts.auditing.measurement.results import AuditResults
from probing.results.html_report import NONE, Code, Paragraph, Points, Section, Table

Made = Mapping[str, object]
"""What made results, as `provenance.json` has it."""


def origin_section(results: AuditResults, made: Made) -> Section:
    """Return what the model and the images are, with the ids of their content."""
    model = (
        ("reference", results.model),
        ("weights", results.weights),
        ("content of weights and structure", str(made.get("model", NONE))),
        ("layers read", ", ".join(results.layers)),
        ("content of all images, prepared", str(made.get("examples", NONE))),
    )
    header = ("images", "what they are", "how many", "SHA-256 of the manifest")
    about = dict(results.sources)
    rows = tuple(
        (name, about.get(name, NONE), str(one.get("images", NONE)), str(one.get("sha256", NONE)))
        for one in _manifests(made)
        if (name := str(one["name"]))
    ) or tuple((name, text, NONE, NONE) for name, text in about.items())
    note = (
        "What images show is what their manifest says: names of drawn or given attributes, never a person's identity. A "
        "manifest has the checksum of every image that it names."
    )
    return Section(
        "Where the model and the images come from",
        (
            Table("The model, as it was loaded.", ("what", "value"), model, 2),
            Table("The images.", header, rows, 4),
            Paragraph(note),
        ),
    )


def reproduction_section(results: AuditResults, made: Made, kept_in: str, files: Mapping[str, str]) -> Section:
    """Return the command, versions, seeds and hashes with which the same numbers come out again.

    Args:
        results: of the audit.
        made: what made them.
        kept_in: name of the folder that holds them.
        files: SHA-256 of each file that the report is made of, by its path in that folder.
    """
    versions = _mapping(made.get("versions"))
    audit = _mapping(made.get("audit"))
    packages = [f"{name}=={version}" for name, version in versions.items() if name != "python"]
    file = _mapping(made.get("file"))
    lines = [
        f"# Python {versions.get('python', '')}; {made.get('machine', '')}".rstrip("; "),
        *([f"pip install {shlex.join(packages)}"] if packages else []),
        f"probing audit {shlex.quote(str(file.get('name', f'{results.name}.yaml')))} --out again",
        "sha256sum again/results.json",
    ]
    hashes = list(files.items())
    if file:
        hashes.insert(0, (str(file["name"]), str(file["sha256"])))
    statistics = _mapping(audit.get("statistics"))
    seed = f"All random draws start from the seed {statistics['seed']}. " if statistics else ""
    command = made.get("command", ())
    ran = shlex.join(map(str, command)) if isinstance(command, Sequence) else str(command)
    points = (
        f"Made {made.get('created', NONE)} by: {ran}",
        f"{seed}On one machine, with these versions, results.json comes out the same byte for byte; on another, last digits "
        "may differ.",
        f"Of the rows that it rests on: {made.get('rows', NONE)}",
        "The report alone is made again from what was saved, without the model, by: probing report " + shlex.quote(kept_in),
    )
    blocks = (
        Code("\n".join(lines)),
        Points(points),
        Table("What must come out, and of what.", ("file", "SHA-256"), tuple(hashes), 2),
    )
    return Section("How to reproduce it", (*blocks, *([_audit_file(audit)] if audit else [])))


def _audit_file(audit: Mapping[str, object]) -> Code:
    import yaml

    text = yaml.safe_dump(dict(audit), sort_keys=False, allow_unicode=True, width=110)
    return Code(text, "The audit file, with all that it leaves to defaults")


def _manifests(made: Made) -> list[Mapping[str, object]]:
    found = made.get("manifests")
    return [_mapping(one) for one in found] if isinstance(found, Sequence) else []


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}
