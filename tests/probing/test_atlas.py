"""Atlases: places, cells and how far the plane is to be believed."""

from dataclasses import replace
from pathlib import Path

import nets
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from concepts.cli import app
from probing.atlas import Atlas, AtlasError, AtlasResult, Pca, Umap, trustworthiness
from probing.data.examples import TensorExamples
from probing.results.result import rebuild
from probing.store.store import ActivationStore


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clouds(n: int = 60, features: int = 6, seed: int = 0) -> tuple[Tensor, list[str]]:
    """Three clouds far apart."""
    kind = torch.arange(n) % 3
    return normal(n, features, seed=seed) + 20 * torch.eye(3, features)[kind], [f"cloud {k}" for k in kind]


def atlas(method: Atlas, rows: Tensor, labels: list[str] | None = None) -> AtlasResult:
    net = nn.Sequential(nn.Identity()).eval()
    return method(ActivationStore(progress=False), net, TensorExamples(rows), labels)


@pytest.mark.parametrize("shape", [(40, 6), (8, 30)])
def test_pca_is_the_leading_singular_directions(shape: tuple[int, int]) -> None:
    rows = normal(*shape)
    centred = (rows - rows.mean(0)).double()
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    found = Pca()(rows).double()
    torch.testing.assert_close(found.abs(), (u * s)[:, :2].abs(), rtol=1e-4, atol=1e-4)
    assert torch.equal(Pca()(rows), Pca()(rows))
    assert Pca()(normal(5, 1)).shape == (5, 2)


def test_cells_hold_the_means_of_the_rows_that_lie_in_them() -> None:
    rows, labels = clouds()
    found = atlas(Atlas("0", Pca(), grid=4, least=2), rows, labels)
    assert int(found.counts.sum()) == 60
    for row, column in found.filled():
        inside = (found.cell == torch.tensor([row, column])).all(1)
        assert int(inside.sum()) == int(found.counts[row, column]) >= 2
        torch.testing.assert_close(found.means[row, column], rows[inside].mean(0))
    few = found.counts < 2
    assert float(found.means[few].abs().sum()) == 0
    low = found.points.amin(0)
    assert found.cell[found.points[:, 0].argmin(), 1] == 0
    assert found.cell[found.points[:, 1].argmin(), 0] == 0
    assert bool((found.points >= low).all())


def test_trustworthiness_is_that_of_scikit_learn_and_low_for_a_plane_drawn_at_random() -> None:
    manifold = pytest.importorskip("sklearn.manifold")
    rows, _ = clouds()
    for points in (Pca()(rows), normal(60, 2, seed=5)):
        peer = manifold.trustworthiness(rows.numpy(), points.numpy(), n_neighbors=10)
        assert trustworthiness(rows, points) == pytest.approx(peer, abs=1e-6)
    assert trustworthiness(rows[:, :2], rows[:, :2]) == 1
    assert trustworthiness(rows, normal(60, 2, seed=5)) < 0.7


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_umap_keeps_clouds_apart_and_repeats_itself() -> None:
    rows, labels = clouds()
    found = atlas(Atlas("0", Umap(neighbours=8, metric="euclidean")), rows, labels)
    again = Umap(neighbours=8, metric="euclidean")(rows)
    assert torch.equal(found.points, again)
    assert torch.get_num_threads() == 1  # as every test finds it; numba would leave another number
    assert found.trustworthiness > 0.9
    middle = torch.stack([found.points[found.labels == k].mean(0) for k in range(3)])
    within = (found.points - middle[found.labels]).norm(dim=1).max()
    assert float(torch.pdist(middle).min()) > float(within)


def test_a_position_is_drawn_by_the_seed_whatever_the_batches() -> None:
    maps = normal(12, 3, 4, 5)
    method = Atlas("0", Pca(), position=True, grid=2)
    found = atlas(method, maps)
    net, examples = nn.Sequential(nn.Identity()).eval(), TensorExamples(maps)
    small = method(ActivationStore(progress=False, batch_size=5), net, examples)
    assert torch.equal(found.points, small.points)
    assert not torch.equal(found.points, atlas(replace(method, seed=1), maps).points)
    rows = method._rows(ActivationStore(progress=False), net, examples)
    assert all((rows[i] == maps[i].flatten(1).T).all(1).any() for i in range(12))
    with pytest.raises(AtlasError, match=r"needs maps or tokens, got \(3,\) for each"):
        atlas(method, maps[:, :, 0, 0])


def test_an_atlas_is_saved_loaded_and_drawn(tmp_path: Path) -> None:
    images = normal(30, 1, 4, 4)
    net, examples = nets.seeded(nets.ConvNet()), TensorExamples(images)
    labels = ["a", "b", "c"] * 10
    store = ActivationStore(progress=False)
    found = Atlas("features", Pca(), grid=3)(store, net, examples, labels)
    assert store.stats.forward_rows == 30
    Atlas("features", Pca(), grid=5)(store, net, examples)
    assert store.stats.forward_rows == 30  # the second analysis makes no pass
    loaded = AtlasResult.load(found.save(tmp_path))
    assert rebuild(loaded.provenance.method) == Atlas("features", Pca(), grid=3)
    assert torch.equal(loaded.means, found.means)
    table = loaded.to_pandas()
    assert table.label.tolist() == labels
    assert table.column.tolist() == found.cell[:, 1].tolist()
    plain, pictured = loaded.plot(), loaded.plot(pictures=examples)
    assert len(plain.get_images()) == 0
    [canvas] = pictured.get_images()
    opaque = np.asarray(canvas.get_array())[..., 3].reshape(3, 64, 3, 64).max((1, 3)) > 0
    assert np.array_equal(opaque[::-1], (found.counts > 0).numpy())  # a picture in each cell that holds any
    assert [t.get_text() for t in plain.get_legend().get_texts()] == ["a", "b", "c"]
    assert "&lt;b&gt;" in replace(loaded, layer="<b>")._repr_html_()
    with pytest.raises(AtlasError, match="of the 30 examples of the atlas, got 30 that differ"):
        loaded.plot(pictures=TensorExamples(images + 1))


def test_rows_that_make_no_atlas_are_refused() -> None:
    rows, labels = clouds()
    with pytest.raises(AtlasError, match="59 labels for 60 examples"):
        atlas(Atlas("0", Pca()), rows, labels[1:])
    with pytest.raises(AtlasError, match="needs 3 examples or more, got 2"):
        atlas(Atlas("0", Pca()), rows[:2])
    with pytest.raises(AtlasError, match="all 5 activations at '0' are equal"):
        atlas(Atlas("0", Pca()), torch.ones(5, 4))
    with pytest.raises(AtlasError, match="grid must be 1 or more, got 0"):
        atlas(Atlas("0", Pca(), grid=0), rows)
    with pytest.raises(AtlasError, match="15 neighbours needs 17 rows or more, got 16"):
        atlas(Atlas("0"), rows[:16])


def test_the_atlas_command_prints_saves_and_draws(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    for name in ("red", "dull"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(6):
            pixels = rng.integers(0, 128, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{i}.png")
    arguments = ["atlas", "nets:red_net", "--images", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    assert app.main([*arguments, "--layer", "relu", "--projection", "pca", "--grid", "2"]) == 0
    assert "12 points at 'relu', " in capsys.readouterr().out
    assert AtlasResult.load(tmp_path / "out").names == ("dull", "red")
    assert (tmp_path / "out" / "atlas.png").exists()
    assert app.main([*arguments, "--layer", "relu"]) == 2
    assert "UMAP with 15 neighbours needs 17 rows" in capsys.readouterr().err


def test_channels_last_are_averaged_over_the_axes_before_them() -> None:
    rows = normal(12, 4, 4, 3)
    last, first = (atlas(Atlas("0", Pca(), pool=p), rows).means.shape[-1] for p in ("mean_last", "mean"))
    assert (last, first) == (3, 4)


def test_the_example_shown_in_a_cell_lies_in_it_nearest_to_its_centre() -> None:
    found = atlas(Atlas("0", Pca(), grid=3), normal(40, 6))
    assert len(found.central()) == int((found.counts > 0).sum())
    low = found.points.amin(0)
    side = (found.points.amax(0) - low) / 3
    for row, column, index in found.central():
        assert found.cell[index].tolist() == [row, column]
        centre = low + side * (torch.tensor([column, row]) + 0.5)
        inside = (found.cell == found.cell[index]).all(1)
        distance = (found.points - centre).square().sum(1)
        assert distance[index] == distance[inside].min()
