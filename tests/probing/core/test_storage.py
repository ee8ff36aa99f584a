"""Stores and pictures on object stores: against a server of S3's protocol on this machine, and in fsspec's memory."""

import logging
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import nets
import pytest
import torch
from torch import nn

from concepts.cli.app import main
from probing.core.packages import PackageMissingError
from probing.core.storage import Address, PlaceError, beside, inside, listed, located, write_whole
from probing.data.examples import Subset, TensorExamples
from probing.store.requests import Request
from probing.store.shards import StoreFullError, cache_info, clear_cache
from probing.store.shares import Share
from probing.store.store import ActivationStore
from probing.store.verify import verify_cache

LAYERS = ("features.0", "features.2")
IMAGES = TensorExamples(nets.images(160))


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """Return the address of an empty bucket."""
    server_of = pytest.importorskip("moto.server").ThreadedMotoServer
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_of(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"key": "a", "secret": "b", "endpoint_url": f"http://{host}:{port}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(fsspec.config.conf, "s3", settings)
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
    fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


@pytest.fixture
def root() -> str:
    return f"memory://cache-{uuid.uuid4().hex}"


@pytest.fixture
def net() -> nn.Module:
    return nets.seeded(nets.ConvNet())


def objects(root: str) -> dict[str, bytes]:
    place = located(root)
    return {inside(path, place): path.read_bytes() for path in listed(place, "*/*/*")}


def local(root: Path) -> dict[str, bytes]:
    paths = [p for p in root.rglob("*") if p.is_file() and p.parent.name != "locks"]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in paths}


def check_store(root: str, net: nn.Module, folder: Path) -> None:
    """Fill a store in shares, read it, damage it, and look after it; the objects are the files of a local store."""
    expected = ActivationStore(folder).activations(net, LAYERS, IMAGES)
    files = local(folder)
    for index in (1, 0):
        store = ActivationStore(root)
        store.fill([Request(net, LAYERS, IMAGES)], Share(index, 2))
    assert objects(root) == files
    store = ActivationStore(root)
    rows = store.activations(net, LAYERS, IMAGES)
    assert all(torch.equal(rows[layer], expected[layer]) for layer in LAYERS)
    assert (store.stats.forward_rows, store.stats.canary_rows) == (0, 4)
    few = range(150, 3, -9)
    some = ActivationStore(root).activations(net, LAYERS, Subset(IMAGES, few))
    assert torch.equal(some["features.2"], expected["features.2"][list(few)])

    place = located(root)
    data = next(p for p in listed(place, "*/*/*.safetensors"))
    write_whole(data, data.read_bytes()[:-40])
    lost = next(p for p in listed(place, f"*/*/{data.stem}.json") if p.parent != data.parent)
    lost.unlink()  # as of a worker that died between a shard and its record
    assert [d.reason for d in verify_cache(place, keep=True).damaged] == [
        f"{inside(data, place)} is not as long as its record says"
    ]
    store = ActivationStore(root)
    rows = store.activations(net, LAYERS, IMAGES)
    assert all(torch.equal(rows[layer], expected[layer]) for layer in LAYERS)
    assert store.stats.dropped_shards == 1
    assert 0 < store.stats.forward_rows < len(IMAGES)
    assert objects(root) == files
    assert verify_cache(place).shards == 4
    assert sum(info.rows for info in cache_info(place)) == 2 * len(IMAGES)
    assert clear_cache(place) == sum(map(len, files.values()))
    assert objects(root) == {}


@pytest.mark.slow
def test_a_store_on_s3_holds_the_bytes_of_one_on_disk(s3: str, net: nn.Module, tmp_path: Path) -> None:
    check_store(f"{s3}/cache", net, tmp_path)


def test_a_store_in_any_file_system_holds_the_bytes_of_one_on_disk(root: str, net: nn.Module, tmp_path: Path) -> None:
    check_store(root, net, tmp_path)


def test_a_folder_elsewhere_is_listed_once_for_a_whole_job(
    root: str, net: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []
    glob = Address.glob
    monkeypatch.setattr(Address, "glob", lambda s, p: listings.append(str(s)) or glob(s, p))
    store = ActivationStore(root)
    store.fill([Request(net, LAYERS, IMAGES)], Share(0, 1))
    assert len(listings) == len(LAYERS)  # whatever the number of shards
    ActivationStore(root).activations(net, LAYERS, IMAGES)
    assert len(listings) == 2 * len(LAYERS)


def test_two_workers_on_one_share_without_locks_leave_the_bytes_of_one(root: str, net: nn.Module, tmp_path: Path) -> None:
    ActivationStore(tmp_path).activations(net, LAYERS, IMAGES)
    stores = [ActivationStore(root) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda s: s.fill([Request(net, LAYERS, IMAGES)], Share(0, 1)), stores))
    assert objects(root) == local(tmp_path)
    assert all(store.stats.dropped_shards == 0 for store in stores)


def test_a_budget_holds_where_no_disk_tells_its_room(root: str, net: nn.Module) -> None:
    ActivationStore(root).activations(net, LAYERS, IMAGES)
    held = sum(len(data) for name, data in objects(root).items() if name.endswith("safetensors"))
    more = TensorExamples(nets.images(160, seed=1))
    store = ActivationStore(root, disk_budget_bytes=held + 1000)
    with pytest.raises(StoreFullError, match=r"memory://.* of a budget of"):
        store.fill([Request(net, LAYERS, more)], Share(0, 1))
    assert store.stats.forward_rows == 0
    ActivationStore(root, disk_budget_bytes=3 * held).fill([Request(net, LAYERS, more)], Share(0, 1))


def test_commands_take_an_address(root: str, net: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    ActivationStore(root).activations(net, LAYERS, IMAGES)
    assert main(["cache", "info", "--cache", root]) == 0
    assert f"{root}: 320 rows" in capsys.readouterr().out
    assert main(["cache", "info", "--cache", "nowhere://x"]) == 2
    assert "'nowhere' is no protocol that fsspec knows" in capsys.readouterr().err


def test_an_address_that_cannot_be_reached_is_told_by_name(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ConnectionAbortedError

    monkeypatch.setattr(type(fsspec.filesystem("memory")), "find", broken)
    with pytest.raises(PlaceError, match=r"'memory://away/.*' can't be reached \(ConnectionAbortedError\)"):
        ActivationStore("memory://away").activations(net, LAYERS, IMAGES)


def test_a_protocol_whose_package_is_missing_names_its_extra(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(protocol: str) -> None:
        raise ImportError(protocol)

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(PackageMissingError, match=r"gs:// needs .* pip install 'probing-concepts\[gs\]'"):
        located("gs://bucket/x")


def test_places_are_named_as_paths_are() -> None:
    place = located("memory://a/b/c.tar.json")
    assert isinstance(place, Address)
    assert (place.name, place.stem, place.suffix) == ("c.tar.json", "c.tar", ".json")
    assert str(place.with_suffix(".safetensors")) == "memory://a/b/c.tar.safetensors"
    assert str(place.parent / "d") == "memory://a/b/d"
    assert located("file:///tmp/x") == Path("/tmp/x")
    assert located("plain/x") == Path("plain/x")
    assert beside(Path("/a/b.safetensors")) == Path("/a/b.tmp")
    with pytest.raises(ValueError, match="got mode 'wb'"):
        place.open("wb")
