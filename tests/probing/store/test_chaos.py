"""Random disasters on one store: no wrong row, no whole shard done again, the same files in the end.

`make chaos` runs many more trials; a failing one says its seed, and `python tests/chaos.py --seed N --trials 1` repeats
what was drawn.
"""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from chaos import COUNT, ChaosError, Grounds, Trial, read
from torch import Tensor

from probing.store.shards import Shard


@pytest.fixture(scope="module")
def grounds(tmp_path_factory: pytest.TempPathFactory) -> Grounds:
    return Grounds.of(tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("seed", range(1000, 1005))
def test_a_store_survives_what_a_seed_draws(seed: int, grounds: Grounds) -> None:
    trial = grounds.trial(seed)
    assert sum(trial.happened.values()) > 0


def _trial(root: Path, grounds: Grounds) -> Trial:
    read(root)
    return Trial(0, root, grounds.expected, grounds.undisturbed)


def test_rows_served_unchecked_would_fail_the_trial(
    tmp_path: Path, grounds: Grounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = _trial(tmp_path, grounds)
    victim = sorted(tmp_path.rglob("*.safetensors"))[0]
    data = bytearray(victim.read_bytes())
    data[-3] ^= 0x40
    victim.write_bytes(data)

    def unchecked(shard: Shard, rows: Sequence[int]) -> Tensor:
        data = bytearray(shard.path.read_bytes()[shard.offset :])
        return torch.frombuffer(data, dtype=torch.float32).reshape(-1, *shard.shape)[list(rows)]

    monkeypatch.setattr(Shard, "read", unchecked)
    with pytest.raises(ChaosError, match="seed 0: the last run was served wrong rows"):
        trial._last()


def test_a_whole_shard_written_again_would_fail_the_trial(tmp_path: Path, grounds: Grounds) -> None:
    trial = _trial(tmp_path, grounds)
    whole = trial._whole()
    assert len(whole) == 2 * COUNT // 8 * 4
    victim = sorted(tmp_path.rglob("*.safetensors"))[0]
    data = victim.read_bytes()
    victim.unlink()
    victim.write_bytes(data)
    with pytest.raises(ChaosError, match="written again or lost"):
        trial._untouched(whole)


def test_a_damaged_header_is_found_though_no_row_is_touched(tmp_path: Path, grounds: Grounds) -> None:
    read(tmp_path)
    victim = sorted(tmp_path.rglob("*.safetensors"))[0]
    data = bytearray(victim.read_bytes())
    data[2000] ^= 1
    victim.write_bytes(data)
    _, store = read(tmp_path)
    assert store.stats.dropped_shards == 1
    assert victim.read_bytes() == grounds.undisturbed[str(victim.relative_to(tmp_path))]
