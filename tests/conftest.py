"""What every test file shares: one thread, no network, a cache of its own, tiny nets."""

import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

from where import ROOT

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the library is first imported
os.environ["MPLBACKEND"] = "Agg"

import jaxtyping
import nets
import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

# One is six times faster for nets this small on a busy machine; more are for `make test-kernels`.
torch.set_num_threads(int(os.environ.get("THREADS", "1")))

# The same examples in every run, and no deadline: a busy machine is no failure.
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("repeatable")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Draw the same in a test whatever ran before it, in fixtures that several tests share as well."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002  what other libraries draw from
    random.seed(0)


_LOCAL = ("127.0.0.1", "::1", "localhost")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tests talk to this machine only, as the processes of one `torchrun` do."""
    connect = socket.socket.connect

    def connect_here(self: socket.socket, address: str | tuple[str, int]) -> None:
        if isinstance(address, tuple) and address[0] not in _LOCAL:
            raise OSError(f"tests use no network, but something connects to {address}.")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect_here)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep tests away from the user's own activation store."""
    monkeypatch.setenv("PROBING_CACHE", str(tmp_path / "default-cache"))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Run as users do, without the checks of annotated types that tests add."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def repository() -> Path:
    return ROOT


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def conv_net() -> nn.Module:
    return nets.seeded(nets.ConvNet())


@pytest.fixture
def image_batch() -> Tensor:
    return nets.images()
