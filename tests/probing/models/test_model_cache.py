"""What is remembered of a model: two threads that explain it at once do not meet."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import nets
import torch
from torch import Tensor

from probing.attribution.base import LocalMethod
from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.gradient import GuidedBackprop
from probing.attribution.lrp.lrp import LRP
from probing.models.model_cache import remembered
from probing.models.scores import Score
from probing.store.store import ActivationStore

THREADS = 4


def test_threads_explain_one_model_as_one_thread_does() -> None:
    model = nets.seeded(nets.ConvNet())
    batches = [nets.images(3, size=12) + i for i in range(THREADS)]
    methods: list[LocalMethod] = [GradCAM(layer="features.2"), GuidedBackprop(), LRP()]
    expected = [[method(Score(model, 1), x).values for method in methods] for x in batches]
    again = nets.seeded(nets.ConvNet())  # of which nothing is remembered yet
    start = Barrier(THREADS)

    def explain(x: Tensor) -> list[list[Tensor]]:
        start.wait()
        return [[method(Score(again, 1), x).values for method in methods] for _ in range(5)]

    with ThreadPoolExecutor(THREADS) as pool:
        for found, one in zip(pool.map(explain, batches), expected, strict=True):
            for turn in found:
                torch.testing.assert_close(turn, one)


def test_stores_in_threads_read_one_model_as_one_thread_does() -> None:
    model = nets.seeded(nets.ConvNet())
    batches = [nets.images(6, size=12) + i for i in range(THREADS)]
    layers = ["features.0", "features.2", "head"]
    expected = [ActivationStore().activations(model, layers, x) for x in batches]
    stores = [ActivationStore(batch_size=1) for _ in batches]
    for store, x in zip(stores, batches, strict=True):
        store.activations(model, layers, x[:1])  # in this thread first
    start = Barrier(THREADS)

    def read(number: int) -> dict[str, Tensor]:
        start.wait()
        return stores[number].activations(model, layers, batches[number])

    with ThreadPoolExecutor(THREADS) as pool:
        for found, one in zip(pool.map(read, range(THREADS)), expected, strict=True):
            torch.testing.assert_close(found, one)


def test_what_was_made_once_is_kept_as_long_as_the_model_is_the_same() -> None:
    model, made = nets.seeded(nets.ConvNet()), []

    def make() -> int:
        made.append(1)
        return len(made)

    assert [remembered(model, "key", make) for _ in range(3)] == [1, 1, 1]
    with torch.no_grad():
        model.head.weight[0, 0] += 1  # type: ignore[index, union-attr, operator]
    assert remembered(model, "key", make) == 2
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(remembered, model, "key", make).result() == 3
