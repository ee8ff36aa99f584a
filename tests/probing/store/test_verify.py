"""`probing cache verify`, and stores on bad days: damage, half a copy, full and read-only disks, wrong clocks."""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from where import ROOT, SUPPORT

from concepts.cli import app
from probing.data.examples import TensorExamples
from probing.store import extraction, shards
from probing.store.shards import DamagedShardError, StoreFullError, read_record
from probing.store.store import ActivationStore
from probing.store.verify import NoStoreError, verify_cache

LAYERS = ("features.0", "features.2")
IMAGES = TensorExamples(nets.images(32))
SHARDS = 2 * 4


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_SHARD_ROWS", 8)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return nets.seeded(nets.ConvNet())


def read(root: Path, net: nn.Module) -> tuple[dict[str, Tensor], ActivationStore]:
    store = ActivationStore(root)
    return store.activations(net, LAYERS, IMAGES), store


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def filled(tmp_path: Path, net: nn.Module) -> Path:
    read(tmp_path / "store", net)
    return tmp_path / "store"


def mutate(data: bytes, rng: random.Random) -> bytes:
    """Return other bytes: a bit flipped, a stretch zeroed, cut, repeated or put in."""
    at = rng.randrange(len(data))
    length = rng.randint(1, 64)
    ways: list[Callable[[], bytes]] = [
        lambda: data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :],
        lambda: data[:at] + bytes(len(data[at : at + length])) + data[at + length :],
        lambda: data[:at],
        lambda: data[:at] + data[at + length :],
        lambda: data[:at] + rng.randbytes(length) + data[at:],
        lambda: data + rng.randbytes(length),
        lambda: bytes(len(data)),
    ]
    changed = rng.choice(ways)()
    return changed if changed != data else mutate(data, rng)


# Verify


def test_a_sound_store_is_read_to_the_last_byte_and_left_alone(filled: Path) -> None:
    before = files(filled)
    found = verify_cache(filled)
    assert (found.shards, found.rows, found.damaged, found.unfinished) == (SHARDS, 64, (), ())
    assert found.bytes == sum(len(d) for n, d in before.items() if n.endswith(".safetensors"))
    assert files(filled) == before


@pytest.mark.parametrize("seed", range(40))
def test_any_change_of_any_file_is_found_named_dropped_and_mended(seed: int, filled: Path, net: nn.Module) -> None:
    rng, before = random.Random(seed), files(filled)
    victim = filled / rng.choice([n for n in before if "locks" not in n])
    victim.write_bytes(mutate(before[str(victim.relative_to(filled))], rng))
    damaged = files(filled)
    record = victim.with_suffix(".json").relative_to(filled).as_posix()

    kept = verify_cache(filled, keep=True)
    assert [d.file for d in kept.damaged] == [record]
    assert (kept.shards, kept.dropped) == (SHARDS - 1, False)
    assert files(filled) == damaged

    assert [d.file for d in verify_cache(filled).damaged] == [record]
    assert not victim.exists()
    assert verify_cache(filled).damaged == ()
    _, store = read(filled, net)
    assert store.stats.forward_rows == 8  # the shard that was dropped, and no other
    assert files(filled) == before


def test_shards_that_changed_places_are_found(filled: Path) -> None:
    first, second = sorted(filled.rglob("*.safetensors"))[:2]
    for suffix in (".json", ".safetensors"):
        one, other = (p.with_suffix(suffix).read_bytes() for p in (first, second))
        first.with_suffix(suffix).write_bytes(other)
        second.with_suffix(suffix).write_bytes(one)
    found = verify_cache(filled, keep=True)
    assert len(found.damaged) == 2
    assert all("is a record of other rows" in d.reason for d in found.damaged)


@pytest.mark.parametrize("seed", range(12))
def test_a_store_copied_half_way_serves_what_is_whole_and_computes_the_rest(
    seed: int, filled: Path, net: nn.Module, tmp_path: Path
) -> None:
    rng, whole = random.Random(seed), files(filled)
    names = rng.sample([n for n in whole if "locks" not in n], rng.randint(1, 2 * SHARDS))
    copy = tmp_path / "copy"
    for i, name in enumerate(names):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        data = whole[name]
        (copy / name).write_bytes(data[: rng.randrange(len(data))] if i == 0 else data)
    there = {n: sum(m.startswith(n.removesuffix(".json")) for m in names[1:]) for n in names[1:]}
    complete = sum(files == 2 for name, files in there.items() if name.endswith(".json"))
    found = verify_cache(copy)
    assert found.shards == complete
    alone = sum(n.endswith(".safetensors") for n in names) - complete
    assert len(found.unfinished) + sum(d.file[:-5] + ".safetensors" in names for d in found.damaged) == alone
    expected, _ = read(filled, net)
    rows, _ = read(copy, net)
    assert all(torch.equal(rows[layer], expected[layer]) for layer in LAYERS)
    assert files(copy) == whole


def test_a_record_that_contradicts_itself_is_no_record_though_its_checksum_is_right(
    filled: Path,
) -> None:
    record = sorted(filled.rglob("*.json"))[0]
    body = record.read_bytes().partition(b"\n")[2]
    for old, new in (
        (b'"inputs": ["', b'"inputs": ["0", "'),
        (b'"checksums": ["', b'"checksums": ["0", "'),
        (b'"shape": [', b'"shape": [-1, '),
        (b'"shape": [', b'"shape": ["a", '),
        (b'"dtype": "F32"', b'"dtype": "I8"'),
        (b'"offset": ', b'"offset": -'),
        (b'"layer": "features', b'"layer": "other'),
        (b'"space": {', b'"space": {"more": 1, '),
        (body, b"[" * 100_000),
        (body, b"[]"),
    ):
        changed = body.replace(old, new)
        assert changed != body
        record.write_bytes(shards.bytes_id(changed).encode() + b"\n" + changed)
        with pytest.raises(DamagedShardError):
            read_record(record)


def test_a_file_that_cannot_be_read_now_is_not_taken_for_damaged(
    filled: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(filled)

    def refused(path: Path) -> bytes:
        raise OSError(errno.EMFILE, "Too many open files", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", refused)
        with pytest.raises(OSError, match="Too many open files"):
            read(filled, net)
        with pytest.raises(OSError, match="Too many open files"):
            verify_cache(filled)
    assert files(filled) == before


def test_a_bad_sector_is_damage(filled: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    before, broken = files(filled), sorted(filled.rglob("*.safetensors"))[0]
    whole = shards.read_pieces

    def failing(place: Path, pieces: list[tuple[int, memoryview]]) -> bool:
        if place == broken:
            raise OSError(errno.EIO, "Input/output error")
        return whole(place, pieces)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "read_pieces", failing)
        [damage] = verify_cache(filled).damaged
    assert "the disk can't read" in damage.reason
    assert damage.rows == 8
    read(filled, net)
    assert files(filled) == before


def test_a_shard_written_anew_while_it_is_looked_at_is_not_dropped(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, victim = files(filled), sorted(filled.rglob("*.safetensors"))[0]
    good = victim.read_bytes()
    victim.write_bytes(good[:-1] + b"?")
    original = shards.Shard.read

    def read_then_mended(self: shards.Shard, rows: range) -> Tensor:
        try:
            return original(self, rows)
        finally:
            victim.write_bytes(good)

    monkeypatch.setattr(shards.Shard, "read", read_then_mended)
    assert verify_cache(filled).damaged == ()
    assert files(filled) == before


def test_the_command_says_what_it_dropped_and_ends_with_1(filled: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["cache", "verify", "--cache", str(filled)]
    assert app.main(arguments) == 0
    assert f"{filled}: 8 shards are what was written (64 rows, 0.1 MB).\n" == capsys.readouterr().out
    victim = sorted(filled.rglob("*.safetensors"))[0]
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    victim.with_name("left.tmp").write_bytes(b"123")
    assert app.main([*arguments, "--keep"]) == 1
    assert "Damaged, kept: rows-v1/" in capsys.readouterr().out
    assert app.main(arguments) == 1
    said = capsys.readouterr().out
    name = victim.relative_to(filled).with_suffix(".json").as_posix()
    layer = "features.0" if "features.0" in said else "features.2"
    assert f"Dropped: {name} (ConvNet {layer}, activation: 8 rows): row 7 of rows-v1/" in said
    assert "1 are not: a job that asks for their rows computes them again." in said
    assert "1 unfinished files (0.0 MB)" in said
    assert victim.with_name("left.tmp").exists()
    assert app.main(arguments) == 0


def test_a_folder_without_a_store_is_refused_rather_than_called_sound(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NoStoreError, match="holds no store"):
        verify_cache(tmp_path)
    assert app.main(["cache", "verify", "--cache", str(tmp_path)]) == 2
    assert "holds no store" in capsys.readouterr().err


# Bad days


def test_nothing_depends_on_the_clock_or_on_times_of_files(
    filled: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, expected = files(filled), read(filled, net)[0]
    rng = random.Random(0)
    for path in [*filled.rglob("*"), filled]:
        os.utime(path, (rng.choice([0, 2**33]), rng.choice([0, 2**33])))
    monkeypatch.setattr(time, "time", lambda: -1e9)
    rows, store = read(filled, net)
    assert store.stats.forward_rows == 0
    assert all(torch.equal(rows[layer], expected[layer]) for layer in LAYERS)
    assert verify_cache(filled).damaged == ()
    assert files(filled) == before


def test_no_module_looks_at_times_of_files() -> None:
    sources = [p for package in ("probing", "concepts") for p in (ROOT / package).rglob("*.py")]
    asked = re.compile(r"st_[amc]time|get[amc]time|utime\(")
    assert [p.name for p in sources if asked.search(p.read_text(encoding="utf-8"))] == []


def test_a_read_only_cache_is_one_line_with_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = os.open

    def refused(path: str | Path, *options: int) -> int:
        if "cache" in str(path) and options[0] & os.O_CREAT:
            raise OSError(errno.EROFS, "Read-only file system")
        return opened(path, *options)

    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setenv("PROBING_CACHE", str(tmp_path / "cache"))
    assert app.main(probe(tmp_path, "nets_of_verify:quick")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "can't write to the cache folder" in said
    assert "Read-only file system): name another folder by --cache" in said


@pytest.mark.parametrize("step", range(1, 90, 3))
def test_a_disk_that_fills_at_any_step_is_named_and_leaves_a_sound_store(
    step: int, tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = count(1)  # of several threads

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            if next(calls) == step:
                raise OSError(errno.ENOSPC, "No space left on device")
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        for name in ("write", "fsync", "open"):
            patch.setattr(shards.os, name, counted(getattr(os, name)))
        for name in ("replace", "mkdir"):
            patch.setattr(Path, name, counted(getattr(Path, name)))
        with pytest.raises(StoreFullError, match="is full"):
            read(tmp_path, net)
    found = verify_cache(tmp_path) if (tmp_path / "rows-v1").exists() else None
    assert found is None or found.damaged == ()
    assert not list(tmp_path.rglob("*.tmp"))
    read(tmp_path, net)
    assert verify_cache(tmp_path).unfinished == ()
    assert verify_cache(tmp_path).shards == SHARDS


def test_large_shards_are_brought_to_the_disk_as_they_grow(
    tmp_path: Path, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their commit, which the passes wait for, finds little left to sync."""
    monkeypatch.setattr(shards, "_SYNCED_AT_ONCE", 1)
    synced, sync = [0], os.fsync
    monkeypatch.setattr(shards.os, "fsync", lambda file: (synced.append(os.fstat(file).st_size), sync(file)))
    writer = shards.ShardWriter(tmp_path, shards.Space("w", "m", "layer", "activation", "none", "float32"), ("a", "b", "c"))
    for name in ("a", "b", "c"):
        before = len(synced)
        writer.append(torch.ones(1, 8), [name])
        assert len(synced) == before + 1
        assert synced[-1] > synced[-2]
    writer.commit()
    assert writer.path.exists()


def probe(folder: Path, model: str, pictures: int = 6) -> list[str]:
    """Return a command that reads two classes of pictures."""
    rng = np.random.default_rng(0)
    for i in range(pictures):
        path = folder / "pictures" / "ab"[i % 2] / f"{i // 2 // 8}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (6, 6), dtype=np.uint8)).save(path)
    places = ["--images", str(folder / "pictures"), "--out", str(folder / "out")]
    return ["probe", model, *places, "--no-untrained", "--layer", "features.0"]


@pytest.mark.slow
def test_ctrl_c_is_one_line_and_the_next_run_computes_the_rest_only(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    environment = os.environ | {
        "PROBING_CACHE": str(cache),
        "PYTHONPATH": f"{SUPPORT}{os.pathsep}{ROOT}",
    }
    code = (
        "import signal, sys; from concepts.cli.app import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "  # shells let jobs in the background ignore it
        "sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *probe(tmp_path, "nets_of_verify:slow", 300)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 120
    while not list(cache.rglob("*.json")) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "Interrupted; what was stored is kept."
    kept = verify_cache(cache)
    assert kept.damaged == ()
    assert 0 < kept.rows < 300
    code = f"""
from pathlib import Path
import nets_of_verify
from probing.data.examples import ImageExamples, ImageFiles
from probing.store.store import ActivationStore
examples = ImageExamples(ImageFiles.in_folder({str(tmp_path / "pictures")!r}), nets_of_verify.PLAIN)
store, net = ActivationStore(Path({str(cache)!r})), nets_of_verify.slow().model
print(store.estimate(net, ["features.0"], examples, pool="mean").missing)
"""  # in a process of its own: the checks of tests change the code that names examples
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 300 - kept.rows
