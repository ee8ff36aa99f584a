"""Where files lie: a path of this machine, or an address that `fsspec` knows, such as `s3://bucket/cache`.

Addresses are read and written whole, or in ranges. An object store has no rename and no locks, but an object is seen
only when it is whole: what is written under a temporary name and renamed on a disk is simply written there.
"""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from types import SimpleNamespace
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from probing.core.errors import ArgumentError, ProbingError
from probing.core.packages import PackageMissingError

try:
    import fcntl
except ImportError:  # no system of POSIX, such as Windows
    fcntl = None  # type: ignore[assignment]

T = TypeVar("T")
_AT_ONCE = 16
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hf": "huggingface_hub"}


class PlaceError(ProbingError, OSError):
    """An address that can't be read or written."""


@dataclass(frozen=True, order=True)
class Address:
    """What of `pathlib.Path` a store needs, for a file or folder elsewhere.

    Attributes:
        protocol: `s3`, `gs`, `hf`, `memory`, …
        path: without the protocol.
    """

    protocol: str
    path: str

    @property
    def fs(self) -> Any:  # fsspec ships no types
        """The file system, one for all addresses of a protocol."""
        return _file_system(self.protocol)

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.path).name

    @property
    def stem(self) -> str:
        """The last part, without its suffix."""
        return PurePosixPath(self.path).stem

    @property
    def suffix(self) -> str:
        """What follows the last dot of the name, with the dot."""
        return PurePosixPath(self.path).suffix

    @property
    def parent(self) -> "Address":
        """The folder that it lies in."""
        return Address(self.protocol, str(PurePosixPath(self.path).parent))

    def with_suffix(self, suffix: str) -> "Address":
        """Return the address with another suffix."""
        return Address(self.protocol, str(PurePosixPath(self.path).with_suffix(suffix)))

    def __truediv__(self, part: str | PurePosixPath) -> "Address":
        return Address(self.protocol, f"{self.path.rstrip('/')}/{part}")

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path.lstrip('/')}"

    def glob(self, pattern: str) -> Iterator["Address"]:
        """Yield the files below whose path from here fits a pattern of as many parts; what is new is seen."""
        depth = pattern.count("/") + 1
        with _told(self):
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(self.path, maxdepth=depth)
            except FileNotFoundError:
                found = []
        for path in found:
            inside = str(PurePosixPath(path).relative_to(PurePosixPath(self.path)))
            if inside.count("/") + 1 == depth and fnmatch(inside, pattern):
                yield Address(self.protocol, path)

    def exists(self) -> bool:
        """Whether there is a file, or a folder with files."""
        with _told(self):
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self.path))

    def is_dir(self) -> bool:
        """Whether there is a folder with files."""
        with _told(self):
            self.fs.invalidate_cache()
            return bool(self.fs.isdir(self.path))

    def is_file(self) -> bool:
        """Whether there is a file."""
        with _told(self):
            return bool(self.fs.isfile(self.path))

    def stat(self) -> SimpleNamespace:
        """Return the size, as `st_size`."""
        with _told(self):
            return SimpleNamespace(st_size=int(self.fs.info(self.path)["size"]))

    def read_bytes(self) -> bytes:
        """Return the whole file."""
        with _told(self):
            return bytes(self.fs.cat_file(self.path))

    def read_range(self, start: int, stop: int) -> bytes:
        """Return some bytes of the file, fewer where it is shorter."""
        with _told(self):
            return bytes(self.fs.cat_file(self.path, start=start, end=stop))

    def open(self, mode: str = "rb", buffering: int = -1) -> io.BufferedIOBase:
        """Return the file to be read; the end of it is fetched only if it is asked for."""
        del buffering
        if mode != "rb":
            raise ArgumentError(f"an address is opened to be read, got mode {mode!r}: use write_whole.")
        with _told(self):
            return self.fs.open(self.path, "rb")  # type: ignore[no-any-return]

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove the file."""
        try:
            with _told(self):
                self.fs.rm_file(self.path)
        except FileNotFoundError:
            if not missing_ok:
                raise

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: folders come with their files."""

    def rmdir(self) -> None:
        """Do nothing: folders go with their files."""


Place = Path | Address


def located(where: str | Path | Address) -> Place:
    """Return a place by its name; `file://` and names without a protocol are paths of this machine.

    Raises:
        PlaceError: for a protocol that is none.
        probing.core.packages.PackageMissingError: if the package that speaks it is not installed.
    """
    if isinstance(where, Path | Address):
        return where
    protocol, separator, path = where.partition("://")
    if not separator:
        return Path(where)
    if protocol == "file":
        return Path(path)
    return Address(protocol, str(_file_system(protocol)._strip_protocol(where)).rstrip("/"))


def read_pieces(place: Place, pieces: Sequence[tuple[int, memoryview]]) -> bool:
    """Fill views with a file's bytes from given offsets; return whether the file was long enough."""
    if isinstance(place, Path):
        with place.open("rb", buffering=0) as file:
            return all(file.seek(at) == at and file.readinto(v) == len(v) for at, v in pieces)
    found = each(lambda piece: place.read_range(piece[0], piece[0] + len(piece[1])), pieces, place)
    for (_, view), data in zip(pieces, found, strict=True):
        if len(data) != len(view):
            return False
        view[:] = data
    return True


def read_head(place: Place, count: int) -> bytes:
    """Return a file's first bytes."""
    if isinstance(place, Address):
        return place.read_range(0, count)
    with place.open("rb", buffering=0) as file:
        return file.read(count)


def beside(place: Place) -> Path:
    """Return where a file is written before it is whole: beside its place, or on this machine if that is elsewhere."""
    if isinstance(place, Path):
        return place.with_suffix(".tmp")
    handle, name = tempfile.mkstemp(prefix="probing-", suffix=".tmp")
    os.close(handle)
    return Path(name)


def move(temporary: Path, place: Place) -> None:
    """Put a whole file into its place."""
    if isinstance(place, Path):
        temporary.replace(place)
        return
    with _told(place):
        place.fs.put_file(str(temporary), place.path)
    temporary.unlink()


def write_whole(place: Place, data: bytes) -> None:
    """Write a file that is seen only when it is whole, and with the names around it survives a loss of power."""
    if isinstance(place, Address):
        with _told(place):
            place.fs.pipe_file(place.path, data)
        return
    temporary = place.with_suffix(f"{place.suffix}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(place)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    if hasattr(os, "O_DIRECTORY"):  # on Windows a folder can't be opened
        folder = os.open(place.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the renames themselves
        finally:
            os.close(folder)


def each(work: Callable[[Any], T], items: Iterable[Any], place: Place) -> list[T]:
    """Return what work makes of items; several at once where each has a long way to go."""
    if isinstance(place, Path):
        return [work(item) for item in items]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(work, items))


def inside(place: Place, folder: Place) -> str:
    """Return the path of a file from a folder above it."""
    whole, above = (p.path if isinstance(p, Address) else p.as_posix() for p in (place, folder))
    return PurePosixPath(whole).relative_to(above).as_posix()


def listed(folder: Place, pattern: str) -> list[Place]:
    """Return the files below a folder whose path from there fits a pattern, sorted."""
    return sorted(folder.glob(pattern), key=str)


@contextlib.contextmanager
def lock(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock between processes, which the kernel frees when its holder dies; yields whether it was got.

    The file is gone once its holder is done.
    """
    if fcntl is None:
        with _lock_elsewhere(path, wait=wait) as held:
            yield held
        return
    file = _locked(path, wait=wait)
    try:
        yield file is not None
    finally:
        if file is not None:
            path.unlink(missing_ok=True)
            os.close(file)


def _locked(path: Path, *, wait: bool) -> int | None:
    """Return the open file of a lock that was got, which closing frees; None where another process has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(file).st_ino == path.stat().st_ino:
                return file
        except BlockingIOError:
            os.close(file)
            return None
        except FileNotFoundError:
            pass
        os.close(file)  # its holder removed the file that we locked: lock the one that others see


@contextlib.contextmanager
def _lock_elsewhere(path: Path, *, wait: bool) -> Iterator[bool]:
    file = FileLock(path)
    try:
        file.acquire(timeout=-1 if wait else 0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        file.release()


def _file_system(protocol: str) -> Any:
    import fsspec

    try:
        return fsspec.filesystem(protocol)
    except ImportError:
        package = _PACKAGES.get(protocol, protocol)
        extra = {"s3fs": "s3", "gcsfs": "gs"}.get(package)
        name = f"'probing-concepts[{extra}]'" if extra else package
        raise PackageMissingError(f"{protocol}:// needs the package {package!r}: pip install {name}") from None
    except ValueError:
        raise PlaceError(f"{protocol!r} is no protocol that fsspec knows: use a path, s3://, gs:// or hf://.") from None


@contextlib.contextmanager
def _told(place: Address) -> Iterator[None]:
    """Turn what a protocol's package raises into errors of files that name the address."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileNotFoundError(2, "No such file", str(place)) from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise PlaceError(_failure(place, error)) from error
    except Exception as error:
        raise PlaceError(_failure(place, error)) from error


def _failure(place: Address, error: Exception) -> str:
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    return f"{str(place)!r} can't be reached ({said}): check the address, the network and the credentials."
