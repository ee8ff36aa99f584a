"""Nothing outlives its model, its store or its audit: loops keep memory flat."""

import gc
import os
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import audits
import nets
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from concepts.auditing import run as auditing
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.run import audit
from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.gradient import Saliency
from probing.data.examples import TensorExamples
from probing.models.scores import Score
from probing.store.extraction import Engine
from probing.store.store import ActivationStore

X = nets.images(4, size=4)
WARM = 10  # rounds after which what is kept once for all is there
_STATM = Path("/proc/self/statm")


class Wide(nn.Module):
    """More weights than what a loop may leave behind in the heap by chance."""

    megabytes = 1.1

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(1, 8, 3, padding=1)
        self.wide = nn.Linear(128, 2048)
        self.head = nn.Linear(2048, 3)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.features(x).relu().flatten(1)).relu())


def resident() -> float:
    """Return this process's memory in megabytes."""
    gc.collect()
    if not _STATM.exists():
        pytest.skip("this system does not tell a process's memory in /proc")
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def held() -> float:
    """Return how many megabytes living tensors hold; the heap may serve them from what it had."""
    gc.collect()
    # Tensors without memory are left out: those on the meta device, and those that tracing by other tests left.
    tensors = [
        t for t in gc.get_objects() if issubclass(type(t), Tensor) and not t.is_meta and not isinstance(t, FakeTensor)
    ]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values()) / 1e6


def living(*kinds: type) -> int:
    """Return how many objects of some kinds there are."""
    gc.collect()
    return sum(issubclass(type(thing), kinds) for thing in gc.get_objects())


def handles() -> tuple[int, int]:
    """Return how many threads and open files this process has."""
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def grown(work: Callable[[], object], rounds: int, measure: Callable[[], float] = resident) -> float:
    """Return by how many megabytes memory grows in some rounds."""
    before = measure()
    for _ in range(rounds):
        work()
    return measure() - before


@pytest.mark.slow
def test_fifty_models_leave_nothing_but_rows() -> None:
    store, dead = ActivationStore(progress=False), list[weakref.ref[nn.Module]]()

    def explain() -> nn.Module:
        net = Wide()
        score = Score(net, torch.tensor([0, 1, 2, 1]))
        Saliency()(score, X)
        GradCAM("features")(score, X)
        store.activations(net, ["features", "wide"], X)
        dead.append(weakref.ref(net))
        return net

    grown(explain, WARM)
    assert grown(explain, 50 - WARM) < 0.2 * (50 - WARM) * Wide.megabytes
    assert [ref() for ref in dead] == [None] * 50
    assert store.stats.reused_rows == 0  # each model had passes of its own
    kept = list[nn.Module]()
    assert grown(lambda: kept.append(explain()), WARM, held) > 0.8 * WARM * Wide.megabytes


def test_fifty_stores_leave_nothing_in_memory(tmp_path: Path) -> None:
    net, roots = nets.seeded(nets.ConvNet()), iter(range(100))
    examples = TensorExamples(nets.images(8, size=128))
    megabytes = 8 * 4 * 128 * 128 * 4 / 1e6
    dead = list[weakref.ref[Engine]]()

    def read() -> ActivationStore:
        store = ActivationStore(tmp_path / str(next(roots)), progress=False)
        store.activations(net, ["features.0"], examples)
        assert store.stats.forward_rows == 8
        dead.append(weakref.ref(store._engine))
        return store

    grown(read, WARM)
    before = handles()
    assert grown(read, 50 - WARM) < 0.2 * (50 - WARM) * megabytes
    assert [ref() for ref in dead] == [None] * 50
    assert handles() == before
    kept = list[ActivationStore]()
    assert grown(lambda: kept.append(read()), WARM, held) > 0.8 * WARM * megabytes


@pytest.mark.slow
def test_audits_leave_no_model_no_tensor_and_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "write_report", lambda out, _: AuditResults.load(out))  # slow to draw
    file = audits.audit_file(
        tmp_path,
        {
            "model": {"reference": "audits:planted", "layers": ["mix"]},
            "contrasts": [{"positive": "dark", "negative": "light", "vary": "tone", "swaps": [["light", "dark"]]}],
            "concepts": [{"kind": "synthetic", "name": "red", "pattern": "red"}],
            "targets": [{"name": "purse", "group": "control", "reason": "planted"}],
            "statistics": {
                "relabellings": 99,
                "bootstraps": 100,
                "pseudo_concepts": 39,
                "runs": 2,
                "divisions": 2,
                "picked": 0,
            },
        },
    )
    rounds = iter(range(100))

    def run() -> None:
        place = tmp_path / str(next(rounds))
        audit(file, place / "out", store_root=place / "rows", progress=False, say=lambda _: None)

    def left() -> tuple[int, ...]:
        return living(nn.Module), living(Tensor), living(Engine), *handles()

    for _ in range(2):
        run()
    before = left()
    for _ in range(3):  # what is left is counted one by one: three rounds tell what fifty would
        run()
    assert left() == before
    kept = audits.planted().model
    assert left()[0] == before[0] + len(list(kept.modules()))
