"""The activation store: what is computed, what is reused, and what is never served."""

import os
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import nets
import pytest
import torch
from store_worker import fill
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from where import SUPPORT

from probing.data.examples import Subset, TensorExamples
from probing.models.precision import Precision
from probing.models.runner import NonFiniteError
from probing.models.scores import ModelModeError, Score
from probing.store import extraction, shards
from probing.store.extraction import RaggedRowsError, StaleRowsError
from probing.store.memory import MemoryTier
from probing.store.requests import RequestError
from probing.store.shards import StoreFullError, StoreWriteError, cache_info, clear_cache
from probing.store.store import ActivationStore

LAYERS = ("features.0", "features.2")


@pytest.fixture
def net() -> nn.Module:
    return nets.seeded(nets.ConvNet())


@pytest.fixture
def pictures() -> TensorExamples:
    return TensorExamples(nets.images(40))


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "_SHARD_ROWS", 8)


def files(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def direct(net: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """The two convolutions' outputs, from the formulas."""
    first = torch.conv2d(images, net.features[0].weight, net.features[0].bias, padding=1)
    second = torch.conv2d(first.relu(), net.features[2].weight, net.features[2].bias, padding=1)
    return first.detach(), second.detach()


@pytest.mark.parametrize("on_disk", [False, True])
def test_rows_are_what_the_layers_return(net: nn.Module, pictures: TensorExamples, tmp_path: Path, on_disk: bool) -> None:
    store = ActivationStore(tmp_path if on_disk else None)
    rows = store.activations(net, LAYERS, pictures)
    for layer, expected in zip(LAYERS, direct(net, nets.images(40)), strict=True):
        torch.testing.assert_close(rows[layer], expected)


def test_pooled_rows_are_the_spatial_means(net: nn.Module, pictures: TensorExamples) -> None:
    rows = ActivationStore().activations(net, ["features.2"], pictures, pool="mean")["features.2"]
    torch.testing.assert_close(rows, direct(net, nets.images(40))[1].mean((2, 3)))


def test_the_empty_path_holds_the_logits(net: nn.Module, pictures: TensorExamples) -> None:
    logits = ActivationStore().activations(net, [""], pictures)[""]
    torch.testing.assert_close(logits, net(nets.images(40)).detach())


def test_gradients_of_several_scores_come_from_one_forward_pass(net: nn.Module, pictures: TensorExamples) -> None:
    store = ActivationStore()
    per_class = store.gradients_of([Score(net, 0), Score(net, 2)], ["features.3"], pictures, pool="mean")
    assert store.stats.forward_rows == 40
    assert store.stats.backward_rows == 80
    for k, by_layer in zip((0, 2), per_class, strict=True):
        torch.testing.assert_close(by_layer["features.3"], net.head.weight[k].detach().expand(40, 5))


def test_a_target_per_example_gives_each_example_its_own_gradient(net: nn.Module, pictures: TensorExamples) -> None:
    target = torch.arange(40) % 3
    rows = ActivationStore().gradients(Score(net, target), ["features.3"], pictures, pool="mean")["features.3"]
    torch.testing.assert_close(rows, net.head.weight[target].detach())


def test_no_target_gives_each_example_the_gradient_of_its_top_class(net: nn.Module, pictures: TensorExamples) -> None:
    tops = net(nets.images(40)).argmax(1)
    assert len(set(tops.tolist())) > 1
    rows = ActivationStore().gradients(Score(net), ["features.3"], pictures, pool="mean")
    torch.testing.assert_close(rows["features.3"], net.head.weight[tops].detach())
    two = nets.seeded(nets.TwoHeadNet())
    x = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    inner = two(x)[1].argmax(1)  # of features, through which the gradient of the body leads
    assert len(set(inner.tolist())) > 1
    rows = ActivationStore().gradients(Score(two, output=1), ["body"], TensorExamples(x))["body"]
    expected = nn.functional.one_hot(inner, 5) * (two.body(x) > 0)
    torch.testing.assert_close(rows, expected.float())
    with pytest.raises(RequestError, match="or for the top class of each"):
        ActivationStore().gradients_of([Score(net)], ["features.3"], pictures)


def test_read_returns_activations_and_gradients_from_one_pass(net: nn.Module, pictures: TensorExamples) -> None:
    store = ActivationStore()
    rows = store.read([Score(net, 1)], LAYERS, pictures, pool="mean")
    assert store.stats.forward_rows == 40
    other = ActivationStore()
    for layer in LAYERS:
        torch.testing.assert_close(
            rows.activations[layer],
            other.activations(net, LAYERS, pictures, pool="mean")[layer],
            rtol=0,
            atol=0,
        )
        torch.testing.assert_close(
            rows.gradients[0][layer],
            other.gradients(Score(net, 1), LAYERS, pictures, pool="mean")[layer],
            rtol=0,
            atol=0,
        )


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_rows_do_not_depend_on_the_batch_size(net: nn.Module, pictures: TensorExamples, batch: int) -> None:
    rows = ActivationStore(batch_size=batch).activations(net, LAYERS, pictures)
    torch.testing.assert_close(rows["features.2"], direct(net, nets.images(40))[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_examples_of_two_number_formats_are_each_brought_to_the_models(
    net: nn.Module, order: tuple[torch.dtype, torch.dtype]
) -> None:
    store, wide = ActivationStore(), net.double()
    for dtype in order:
        images = nets.images(6).to(dtype)
        found = store.activations(wide, "features.0", TensorExamples(images))
        torch.testing.assert_close(found["features.0"].double(), direct(wide, images.double())[0])
    assert store.stats.prepared == {"channels_last", "channels_last, examples cast to float64"}


def test_rows_are_computed_once_per_distinct_example(net: nn.Module, tmp_path: Path) -> None:
    images = nets.images(30)
    pool = TensorExamples(images)
    store = ActivationStore(tmp_path)
    for start in range(0, 20, 2):  # ten sets of eleven that share most of their members
        store.activations(net, LAYERS, Subset(pool, list(range(start, start + 11))))
    assert store.stats.forward_rows == 29
    store.activations(net, LAYERS, TensorExamples(torch.cat([images, images])))
    assert store.stats.forward_rows == 30


def test_examples_that_repeat_get_equal_rows_in_place(net: nn.Module) -> None:
    images = nets.images(5)
    order = torch.tensor([3, 0, 3, 4, 0, 1])
    store = ActivationStore()
    rows = store.activations(net, LAYERS, TensorExamples(images[order]))["features.2"]
    assert store.stats.forward_rows == 4
    torch.testing.assert_close(rows, direct(net, images[order])[1])


def test_fault_2_one_changed_weight_recomputes_every_row_and_one_changed_pixel_one_row(
    net: nn.Module, tmp_path: Path
) -> None:
    images = nets.images(20)
    ActivationStore(tmp_path).activations(net, LAYERS, TensorExamples(images))
    images[7, 0, 0, 0] += 1
    store = ActivationStore(tmp_path)
    rows = store.activations(net, LAYERS, TensorExamples(images))
    assert store.stats.forward_rows == 1
    torch.testing.assert_close(rows["features.2"], direct(net, images)[1])
    net.features[0].weight.data[0, 0, 0, 0] += 1  # through .data: no version counter sees it
    store = ActivationStore(tmp_path)
    rows = store.activations(net, LAYERS, TensorExamples(images))
    assert store.stats.forward_rows == 20
    torch.testing.assert_close(rows["features.2"], direct(net, images)[1])


def test_a_model_changed_in_place_does_not_stand_in_for_one_of_its_former_weights(
    pictures: TensorExamples,
) -> None:
    first, second = nets.seeded(nets.ConvNet()), nets.seeded(nets.ConvNet())
    store = ActivationStore()
    store.activations(first, [""], Subset(pictures, [0, 1]))
    with torch.no_grad():
        first.head.weight += 1
    rows = store.activations(second, [""], pictures)[""]
    torch.testing.assert_close(rows, second(nets.images(40)).detach())


def test_another_layer_pooling_or_precision_has_rows_of_its_own(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path
) -> None:
    store = ActivationStore(tmp_path)
    store.activations(net, ["features.0"], pictures)
    store.activations(net, ["features.0"], pictures)
    assert store.stats.forward_rows == 40
    store.activations(net, ["features.2"], pictures)
    store.activations(net, ["features.0"], pictures, pool="mean")
    assert store.stats.forward_rows == 120
    double = ActivationStore(tmp_path, precision=Precision("float64"))
    assert double.activations(net, ["features.0"], pictures)["features.0"].dtype == torch.float64
    assert double.stats.forward_rows == 40


def test_fast_precision_keeps_gradients_in_float32(net: nn.Module, pictures: TensorExamples) -> None:
    fast = ActivationStore(precision=Precision("fast"))
    exact = ActivationStore()
    assert fast.activations(net, ["features.2"], pictures)["features.2"].dtype == torch.bfloat16
    gradients = fast.gradients(Score(net, 0), ["features.0"], pictures)["features.0"]
    torch.testing.assert_close(gradients, exact.gradients(Score(net, 0), ["features.0"], pictures)["features.0"])


def test_fault_1_a_second_store_on_the_same_root_passes_only_canaries(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path
) -> None:
    first = ActivationStore(tmp_path).activations(net, LAYERS, pictures)
    store = ActivationStore(tmp_path)
    again = store.activations(net, LAYERS, pictures)
    assert (store.stats.forward_rows, store.stats.canary_rows, store.stats.reused_rows) == (
        0,
        4,
        40,
    )
    assert all(torch.equal(first[layer], again[layer]) for layer in LAYERS)
    store.activations(net, LAYERS, pictures)
    assert store.stats.canary_rows == 4  # once per process


def test_a_function_patched_at_run_time_is_caught_by_the_canaries(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ActivationStore(tmp_path).activations(net, LAYERS, pictures)
    relu = torch.nn.functional.relu
    monkeypatch.setattr(torch.nn.functional, "relu", lambda x, inplace=False: relu(x) + 0.1)
    with pytest.raises(StaleRowsError, match=r"'features\.2'.*relative difference"):
        ActivationStore(tmp_path).activations(net, LAYERS, pictures)


def test_stored_rows_of_nan_are_no_match_for_what_is_computed(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            "probing.models.runner._refuse_not_finite",
            lambda found: [v.fill_(torch.nan) for rows in found for v in rows.values()],
        )
        ActivationStore(tmp_path).activations(net, LAYERS, pictures)
    with pytest.raises(StaleRowsError, match="relative difference nan"):
        ActivationStore(tmp_path).activations(net, LAYERS, pictures)


def test_a_changed_loader_under_an_old_id_is_caught_by_the_canaries(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path
) -> None:
    changed = TensorExamples(nets.images(40, seed=1))
    changed.ids = pictures.ids
    ActivationStore(tmp_path).activations(net, LAYERS, pictures)
    with pytest.raises(StaleRowsError, match="preprocessed otherwise"):
        ActivationStore(tmp_path).activations(net, LAYERS, changed)


def test_fault_5_an_in_place_relu_behind_the_layer_changes_no_row(pictures: TensorExamples) -> None:
    inplace, plain = (
        nets.seeded(nets.ConvNet(inplace=True)),
        nets.seeded(nets.ConvNet(inplace=False)),
    )
    rows = ActivationStore().activations(inplace, LAYERS, pictures)
    expected = ActivationStore().activations(plain, LAYERS, pictures)
    assert all(torch.equal(rows[layer], expected[layer]) for layer in LAYERS)
    assert (rows["features.0"] < 0).any()


def test_the_model_is_left_as_found(net: nn.Module, pictures: TensorExamples) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.random.get_rng_state()
    ActivationStore().read([Score(net, 0)], LAYERS, pictures)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_memory_tier_stays_within_its_budget(net: nn.Module, pictures: TensorExamples, tmp_path: Path) -> None:
    row = 5 * 6 * 6 * 4
    store = ActivationStore(tmp_path, budget_bytes=10 * row, batch_size=4)
    rows = store.activations(net, ["features.2"], pictures)["features.2"]
    assert store._engine.tiers[0].bytes <= 10 * row
    assert store.stats.forward_rows == 40
    assert torch.equal(rows, store.activations(net, ["features.2"], pictures)["features.2"])
    assert store.stats.forward_rows == 40  # what left memory is read from disk


def test_rows_kept_in_memory_only_are_computed_again_once_they_left_it(net: nn.Module, pictures: TensorExamples) -> None:
    store = ActivationStore(budget_bytes=10 * 5 * 6 * 6 * 4, batch_size=4)
    first = store.activations(net, ["features.2"], pictures)["features.2"]
    assert torch.equal(first, store.activations(net, ["features.2"], pictures)["features.2"])
    assert store.stats.forward_rows > 40


def test_what_a_caller_does_to_rows_does_not_reach_the_store(net: nn.Module, pictures: TensorExamples) -> None:
    store = ActivationStore()
    expected = store.activations(net, ["features.2"], pictures)["features.2"].clone()
    for _, rows in store.batches(net, ["features.2"], pictures):
        rows["features.2"].zero_()
    store.activations(net, ["features.2"], pictures)["features.2"].zero_()
    assert torch.equal(expected, store.activations(net, ["features.2"], pictures)["features.2"])


def test_batches_cover_every_position_once(net: nn.Module, tmp_path: Path) -> None:
    images = nets.images(11)[torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 3, 3, 0])]
    store = ActivationStore(tmp_path, batch_size=3)
    rows = torch.full((14, 5, 6, 6), torch.nan)
    seen: list[int] = []
    for positions, by_layer in store.batches(net, ["features.2"], TensorExamples(images)):
        rows[positions] = by_layer["features.2"]
        seen += positions
    assert sorted(seen) == list(range(14))
    torch.testing.assert_close(rows, direct(net, images)[1])


def test_a_consumer_that_stops_early_leaves_no_half_shard(net: nn.Module, pictures: TensorExamples, tmp_path: Path) -> None:
    for _ in ActivationStore(tmp_path, batch_size=3).batches(net, ["features.2"], pictures):
        break
    assert not list(tmp_path.rglob("*.tmp"))
    store = ActivationStore(tmp_path)
    torch.testing.assert_close(
        store.activations(net, ["features.2"], pictures)["features.2"],
        direct(net, nets.images(40))[1],
    )


def test_the_estimate_is_the_size_of_what_is_written(net: nn.Module, pictures: TensorExamples, tmp_path: Path) -> None:
    store = ActivationStore(tmp_path)
    estimate = store.estimate(net, LAYERS, pictures, scores=[Score(net, 0)])
    assert (estimate.missing, estimate.examples) == (40, 40)
    assert estimate.bytes == 40 * (4 + 5) * 36 * 4 * 2
    store.read([Score(net, 0)], LAYERS, pictures)
    assert store.estimate(net, LAYERS, pictures, scores=[Score(net, 0)]).missing == 0
    assert sum(info.bytes for info in cache_info(tmp_path)) >= estimate.bytes


def test_a_job_larger_than_the_disk_is_refused_with_its_size(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(StoreFullError, match=r"GB to .* free"):
        ActivationStore(tmp_path).activations(net, LAYERS, pictures)


def damage(path: Path, how: str) -> None:
    if how == "truncated":
        os.truncate(path, path.stat().st_size - 100)
    elif how == "flipped":
        data = bytearray(path.read_bytes())
        data[-5] ^= 1
        path.write_bytes(data)
    elif how == "gone":
        path.unlink()
    else:
        path.write_bytes(b"\0" * path.stat().st_size)


@pytest.mark.parametrize("how", ["truncated", "flipped", "gone", "zeroed"])
@pytest.mark.parametrize("suffix", [".safetensors", ".json"])
def test_fault_2_a_damaged_shard_is_computed_again_and_written_again(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path, how: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Canaries are drawn by content ids: one that is whole and in the damaged shard would be reused before that is seen.
    monkeypatch.setattr(extraction, "_CANARIES", 0)
    expected = ActivationStore(tmp_path).activations(net, LAYERS, pictures)
    undisturbed = files(tmp_path)
    victim = next(p for p in sorted(tmp_path.rglob(f"*{suffix}")))
    damage(victim, how)
    store = ActivationStore(tmp_path)
    rows = store.activations(net, LAYERS, pictures)
    assert all(torch.equal(expected[layer], rows[layer]) for layer in LAYERS)
    assert store.stats.forward_rows == 8
    if how != "gone" or suffix != ".json":
        assert store.stats.dropped_shards == 1
    assert files(tmp_path) == undisturbed


def test_a_shard_damaged_while_a_store_is_open_is_computed_again(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path
) -> None:
    store = ActivationStore(tmp_path, budget_bytes=0)
    expected = store.activations(net, LAYERS, pictures)
    undisturbed = files(tmp_path)
    damage(sorted(tmp_path.rglob("*.safetensors"))[3], "flipped")
    rows = store.activations(net, LAYERS, pictures)
    assert all(torch.equal(expected[layer], rows[layer]) for layer in LAYERS)
    assert files(tmp_path) == undisturbed


def test_a_full_disk_is_named_and_leaves_whole_shards(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, room = os.write, [30_000]

    def limited(file: int, data: memoryview) -> int:
        if room[0] <= 0:
            raise OSError(28, "No space left on device")
        count = write(file, data[: room[0]])
        room[0] -= count
        return count

    with monkeypatch.context() as patch:
        patch.setattr(shards.os, "write", limited)
        with pytest.raises(StoreFullError, match=r"the disk of the cache folder .* is full"):
            ActivationStore(tmp_path).activations(net, LAYERS, pictures)
    assert not list(tmp_path.rglob("*.tmp"))
    undisturbed = ActivationStore(tmp_path / "other").activations(net, LAYERS, pictures)
    store = ActivationStore(tmp_path)
    rows = store.activations(net, LAYERS, pictures)
    assert all(torch.equal(undisturbed[layer], rows[layer]) for layer in LAYERS)
    assert store.stats.dropped_shards == 0


def test_a_folder_that_cannot_be_written_is_named_with_a_way_out(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreWriteError, match=r"can't write .* root=None"):
        ActivationStore(tmp_path / "file" / "cache").activations(net, LAYERS, pictures)


def test_a_read_only_root_still_serves_its_rows(
    net: nn.Module, pictures: TensorExamples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ActivationStore(tmp_path).activations(net, LAYERS, pictures)
    monkeypatch.setattr(shards.os, "open", lambda *_: pytest.fail("a stored row needs no write"))
    assert torch.equal(
        expected["features.0"],
        ActivationStore(tmp_path).activations(net, LAYERS, pictures)["features.0"],
    )


def test_layers_whose_rows_differ_in_shape_are_refused(net: nn.Module, tmp_path: Path) -> None:
    class Ragged:
        ids = ("0" * 32, "1" * 32)

        def __len__(self) -> int:
            return 2

        def load(self, indices: list[int]) -> Tensor:
            return nets.images(len(indices), size=6 + indices[0])

    with pytest.raises(RaggedRowsError, match="rows of differing shape"):
        ActivationStore(tmp_path, batch_size=1).activations(net, ["features.0"], Ragged())


def test_nan_in_an_activation_is_refused_by_layer(net: nn.Module, pictures: TensorExamples) -> None:
    net.features[2].weight.data[0, 0, 0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match=r"'features\.2'"):
        ActivationStore().activations(net, LAYERS, pictures)


def test_a_model_in_training_mode_is_refused(net: nn.Module, pictures: TensorExamples) -> None:
    with pytest.raises(ModelModeError, match=r"call model\.eval\(\)"):
        ActivationStore().activations(net.train(), LAYERS, pictures)


def test_an_empty_example_set_is_refused(net: nn.Module, pictures: TensorExamples) -> None:
    with pytest.raises(ValueError, match="empty"):
        ActivationStore().activations(net, LAYERS, Subset(pictures, []))


def test_scores_of_two_models_in_one_call_are_refused(net: nn.Module, pictures: TensorExamples) -> None:
    other = nets.seeded(nets.ConvNet(), seed=1)
    with pytest.raises(ValueError, match="same model"):
        ActivationStore().gradients_of([Score(net, 0), Score(other, 0)], LAYERS, pictures)


def test_clearing_the_cache_removes_rows_and_nothing_else(net: nn.Module, pictures: TensorExamples, tmp_path: Path) -> None:
    ActivationStore(tmp_path).activations(net, LAYERS, pictures)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "rows-v1" / "notes.txt").write_text("mine too")
    held = {info.space.layer: info.rows for info in cache_info(tmp_path)}
    assert held == {"features.0": 40, "features.2": 40}
    assert clear_cache(tmp_path) > 0
    assert sorted(files(tmp_path)) == ["notes.txt", "rows-v1/notes.txt"]
    assert cache_info(tmp_path) == []


def test_shards_open_with_the_safetensors_library(net: nn.Module, pictures: TensorExamples, tmp_path: Path) -> None:
    from safetensors import safe_open

    rows = ActivationStore(tmp_path).activations(net, ["features.2"], pictures)["features.2"]
    for path in tmp_path.rglob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            assert shard.metadata()["layer"] == "features.2"
            first = shard.get_tensor("rows")[0]
        assert any(torch.equal(first, row) for row in rows)
        assert (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 4096 == 0


def test_rows_used_longest_ago_leave_a_full_tier_for_the_one_below() -> None:
    host = MemoryTier(1000, torch.device("cpu"))
    near = MemoryTier(100, torch.device("cpu"), below=host)
    near.put("space", ["a", "b"], torch.arange(8.0).reshape(2, 4))  # 32 bytes
    near.put("space", ["c"], torch.ones(1, 4))  # 16 bytes
    assert set(near.find("space", ["a", "c", "z"])) == {"a", "c"}
    near.find("space", ["a"])
    near.put("space", ["d", "e", "f", "g"], torch.zeros(4, 4))  # 64 bytes
    assert set(near.find("space", list("abcdefg"))) == set("abdefg")
    block, row = host.find("space", ["c"])["c"]
    assert torch.equal(block[row], torch.ones(4))
    near.put("space", ["h"], torch.zeros(1, 40))  # more than fits at all
    assert not near.find("space", ["h"])
    assert set(host.find("space", ["a", "h"])) == {"h"}
    assert near.bytes == 96


def test_small_blocks_share_memory_and_leave_together() -> None:
    budget = 1600  # slabs of 100 bytes
    tier = MemoryTier(budget, torch.device("cpu"))
    rows = torch.arange(6.0).reshape(2, 3)
    home = [tier.put(kind, ["a", "b"], rows + i) for i, kind in enumerate("xy")]
    assert len({h.untyped_storage().data_ptr() for h in home}) == 1
    assert all(torch.equal(h, rows + i) for i, h in enumerate(home))
    rows.zero_()  # what was put is a copy
    assert torch.equal(tier.find("y", ["b"])["b"][0][1], torch.tensor([4.0, 5.0, 6.0]))
    assert tier.bytes == 100
    tier.put("large", ["c"], torch.ones(1, 375))  # all but 100 bytes
    assert tier.find("x", ["a"])
    tier.put("large", ["d"], torch.ones(1, 20))  # 80 more: the one longest unused has to go
    assert not tier.find("large", ["c"])
    assert tier.find("x", ["a"])
    tier.put("large", ["e"], torch.ones(1, 400))
    assert not tier.find("x", ["a", "b"])
    assert not tier.find("y", ["a", "b"])
    assert tier.bytes <= budget


def test_two_ranks_under_torchrun_write_the_same_bytes_as_one_process(tmp_path: Path) -> None:
    worker = str(SUPPORT / "store_worker.py")
    run = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        worker,
    ]
    subprocess.run([*run, str(tmp_path / "two")], check=True, capture_output=True, timeout=300)
    subprocess.run(
        [sys.executable, worker, str(tmp_path / "one")],
        check=True,
        capture_output=True,
        timeout=300,
    )
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    counts = [int(two.pop(f"count-{rank}")) for rank in range(2)]
    assert int(one.pop("count-0")) == 96
    assert [two.pop(f"asked/asked-{rank}") for rank in range(2)] == [b"", b""]
    assert one.pop("asked/asked-0") == b""
    assert one == two
    assert sum(counts) == 96  # no row was computed twice
    assert min(counts) > 0


def test_every_module_is_imported_without_what_only_posix_has() -> None:
    worker = str(SUPPORT / "elsewhere_worker.py")
    subprocess.run([sys.executable, worker, "import"], check=True, timeout=300)


def test_two_processes_fill_a_store_without_what_only_posix_has(tmp_path: Path) -> None:
    worker, root = str(SUPPORT / "elsewhere_worker.py"), tmp_path / "two"
    ranks = [os.environ | {"RANK": str(r), "WORLD_SIZE": "2"} for r in range(2)]
    run = [sys.executable, worker, "fill", str(root)]
    processes = [subprocess.Popen(run, env=env) for env in ranks]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    found = files(root)
    counts = [int(found.pop(f"count-{rank}")) for rank in range(2)]
    assert sum(counts) == 96  # no row was computed twice
    assert min(counts) > 0
    fill(tmp_path / "one", TensorExamples(nets.images(96, size=24)))
    kept = {name: data for name, data in found.items() if name.endswith((".json", ".safetensors"))}
    assert kept == files(tmp_path / "one")


# Rows land once


WIDE = nets.images(24, size=64)  # whose rows are too large to share memory with others


def storages(rows: dict[str, Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in rows.values()}


def test_rows_are_written_where_they_are_returned_and_kept_there(net: nn.Module) -> None:
    store = ActivationStore(batch_size=5)
    rows = store.activations(net, LAYERS, WIDE)
    tier = store._engine.tiers[0]
    assert {slab.memory.untyped_storage().data_ptr() for slab in tier._slabs.values()} == storages(rows)
    assert tier.bytes == sum(tensor.untyped_storage().nbytes() for tensor in rows.values())
    again = store.activations(net, LAYERS, WIDE)
    assert not storages(again) & storages(rows)
    assert all(torch.equal(again[layer], rows[layer]) for layer in LAYERS)
    assert store.stats.forward_rows == 24


WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda rows: rows[3].zero_(),
    "through .data": lambda rows: rows.data[3].zero_(),
    "through numpy": lambda rows: rows.numpy()[3].fill(0),
    "in the last bit": lambda rows: rows.view(torch.int32)[3, 0, 0, 0].add_(1),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("on_disk", [False, True])
def test_what_a_caller_does_to_large_rows_does_not_reach_the_store(
    net: nn.Module, tmp_path: Path, write: Callable[[Tensor], object], on_disk: bool
) -> None:
    store = ActivationStore(tmp_path if on_disk else None, batch_size=5)
    rows = store.activations(net, LAYERS, WIDE)
    expected = {layer: tensor.clone() for layer, tensor in rows.items()}
    write(rows[LAYERS[0]])
    for _ in range(2):
        found = store.activations(net, LAYERS, WIDE)
        assert all(torch.equal(found[layer], expected[layer]) for layer in LAYERS)
        found[LAYERS[1]].zero_()
    assert store.stats.forward_rows == (24 if on_disk else 29)  # the batch that was written to is computed anew


def test_rows_of_batches_may_be_written_to_while_the_sweep_goes_on(net: nn.Module) -> None:
    store = ActivationStore(batch_size=5)
    expected = store.activations(net, LAYERS, WIDE)[LAYERS[0]].clone()
    for positions, rows in store.batches(net, LAYERS, WIDE):
        assert torch.equal(rows[LAYERS[0]], expected[positions])
        rows[LAYERS[0]].zero_()
    assert torch.equal(store.activations(net, LAYERS, WIDE)[LAYERS[0]], expected)


def test_memory_that_a_view_keeps_counts_as_a_whole() -> None:
    tier = MemoryTier(1000, torch.device("cpu"))
    whole = torch.arange(200.0).reshape(20, 10)
    tier.put("space", ["a", "b"], whole[:2], whole)
    assert tier.bytes == whole.nbytes
    tier.put("space", ["c"], whole[2:3], whole)
    assert tier.bytes == whole.nbytes  # the same memory
    assert set(tier.find("space", ["a", "b", "c"])) == {"a", "b", "c"}
    other = torch.zeros(20, 10)
    tier.put("other", ["a"], other[:1], other)  # both do not fit
    assert not tier.find("space", ["a", "b", "c"])
    assert tier.bytes == other.nbytes
    large = torch.zeros(30, 10)
    tier.put("large", ["a"], large[:1], large)  # more than fits at all
    assert not tier.find("large", ["a"])
    assert tier.bytes == other.nbytes


def test_what_was_written_to_does_not_go_to_the_tier_below() -> None:
    host = MemoryTier(10_000, torch.device("cpu"))
    near = MemoryTier(1000, torch.device("cpu"), below=host)
    whole = torch.arange(200.0).reshape(20, 10)
    near.put("space", ["a", "b"], whole[:2], whole)
    near.put("space", ["c"], whole[2:3], whole)
    whole[2] += 1
    near.put("other", ["a"], torch.zeros(1, 200))
    assert set(host.find("space", ["a", "b", "c"])) == {"a", "b"}


def test_examples_in_another_order_or_twice_get_their_own_rows(net: nn.Module) -> None:
    order = [7, 3, 3, 20, 0, 23, 7, 1, 2]
    store = ActivationStore(batch_size=2)
    expected = ActivationStore(batch_size=2).activations(net, LAYERS, WIDE)
    for examples in (WIDE[order], WIDE):
        found = store.activations(net, LAYERS, examples)
        for layer in LAYERS:
            rows = expected[layer][order] if examples is not WIDE else expected[layer]
            torch.testing.assert_close(found[layer], rows)


def test_equal_scores_get_rows_of_their_own(net: nn.Module) -> None:
    first, second = ActivationStore().gradients_of([Score(net, 0), Score(net, 0)], LAYERS, WIDE)
    assert torch.equal(first[LAYERS[0]], second[LAYERS[0]])
    first[LAYERS[0]].zero_()
    assert second[LAYERS[0]].any()


def test_peak_memory_is_little_more_than_the_rows(net: nn.Module) -> None:
    """Tensors are counted as they are made: rows, and besides them what one batch needs."""
    alive: list[weakref.ref[Tensor]] = []
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest, alive
            out = func(*args, **(kwargs or {}))
            alive += [weakref.ref(t) for t in tree_leaves(out) if isinstance(t, Tensor) and t.layout == torch.strided]
            there = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for r in alive if (t := r()) is not None}
            alive = [r for r in alive if r() is not None]
            largest = max(largest, sum(there.values()))
            return out

    store, examples = ActivationStore(batch_size=1), TensorExamples(WIDE)
    store.activations(net, LAYERS, examples)  # prepares the model
    store = ActivationStore(batch_size=1)
    with Watch():
        rows = store.activations(net, LAYERS, examples)
    size = sum(tensor.nbytes for tensor in rows.values())
    assert size < largest < 1.5 * size


def test_a_model_is_prepared_once_for_all_stores(net: nn.Module, pictures: TensorExamples) -> None:
    first, second = ActivationStore(), ActivationStore()
    for store in (first, second):
        store.activations(net, LAYERS, pictures)
    [one], [other] = (store._engine._runners[net].values() for store in (first, second))
    assert one is other
    with torch.no_grad():
        net.features[0].weight.data += 1
    third = ActivationStore()
    rows = third.activations(net, LAYERS, pictures)
    assert one not in third._engine._runners[net].values()
    torch.testing.assert_close(rows[LAYERS[1]], direct(net, nets.images(40))[1])


def test_only_the_first_batch_is_waited_for(net: nn.Module) -> None:
    """The thread that loads is ahead also where a chunk ends."""
    here, elsewhere = [0], [0]

    class Watched(TensorExamples):
        def load(self, indices: Sequence[int]) -> Tensor:
            if len(indices) == 4:  # not those that a look at the examples takes
                (here if threading.current_thread() is threading.main_thread() else elsewhere)[0] += 1
            return super().load(indices)

    examples = Watched(nets.images(32))
    store = ActivationStore(batch_size=4)
    store.activations(net, LAYERS, Subset(examples, range(16, 24)))
    here[0] = elsewhere[0] = 0
    store.activations(net, LAYERS, examples)  # four chunks, of which the third is there
    assert (here[0], elsewhere[0]) == (1, 5)
    assert store.stats.forward_rows == 32
