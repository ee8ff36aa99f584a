"""Dictionaries: closed forms, other libraries, and rows of every kind of layer."""

from dataclasses import replace

import pytest
import torch
from jaxtyping import Float
from nets import ConvNet, images, seeded
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from concepts.discovery import KMeans, Nmf, Pca, SemiNmf, TopKAutoencoder, read_rows, rows as rows_module
from concepts.discovery.dictionary import Dictionary, DictionaryError, NonNegative, TopK
from concepts.discovery.rows import Cells, RowsError
from probing.results.result import describe, rebuild
from probing.store.store import ActivationStore


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthonormal(size: int) -> Float[Tensor, "size size"]:
    found: Tensor = torch.linalg.qr(torch.randn(size, size, generator=generator()))[0]
    return found.mT.contiguous()


@pytest.fixture(scope="module")
def separable() -> tuple[Tensor, Tensor]:
    """Return non-negative rows with a pure row of each part, and the parts: each has a feature of its own."""
    parts = torch.rand(4, 12, generator=generator(1)) * (torch.rand(4, 12, generator=generator(2)) < 0.5)
    parts[:, :4] = torch.eye(4)
    codes = torch.rand(200, 4, generator=generator(3)) ** 3
    codes[:4] = 2 * torch.eye(4)
    return codes @ parts, parts


@pytest.fixture(scope="module")
def any_rows() -> Tensor:
    return torch.randn(150, 6, generator=generator(4)) @ torch.randn(6, 9, generator=generator(5)) + 1


def test_nmf_finds_the_parts_of_separable_rows_up_to_order_and_scale(separable: tuple[Tensor, Tensor]) -> None:
    rows, parts = separable
    for seed in range(2):
        found = Nmf(4, seed=seed, iterations=1000, tolerance=1e-8)(rows)
        cosine = found.atoms @ nn.functional.normalize(parts).mT
        own, theirs = linear_sum_assignment(-cosine)
        assert float(cosine[own, theirs].min()) > 0.999
        assert found.unexplained(rows) < 1e-5
        assert float(found.atoms.min()) >= 0
        assert float(found.codes(rows).min()) >= 0


def test_what_pca_leaves_unexplained_is_the_share_of_the_last_eigenvalues(any_rows: Tensor) -> None:
    values = torch.linalg.eigvalsh(any_rows.double().T.cov()).flip(0)
    found = Pca(2)(any_rows)
    assert found.unexplained(any_rows) == pytest.approx(float(values[2:].sum() / values.sum()), rel=1e-5)
    assert found.signed
    assert torch.allclose(found.atoms @ found.atoms.mT, torch.eye(2), atol=1e-5)
    assert bool((found.atoms.gather(1, found.atoms.abs().argmax(1, keepdim=True)) > 0).all())


def test_pca_is_scikit_learns(any_rows: Tensor) -> None:
    from sklearn.decomposition import PCA

    theirs = PCA(3).fit(any_rows.double().numpy())
    cosine = (Pca(3)(any_rows).atoms.double() @ torch.from_numpy(theirs.components_).mT).abs()
    assert torch.allclose(cosine, torch.eye(3).double(), atol=1e-4)


def test_nmf_reconstructs_as_well_as_scikit_learns(separable: tuple[Tensor, Tensor]) -> None:
    from sklearn.decomposition import NMF

    rows = separable[0] + 0.2 * torch.rand(200, 12, generator=generator(6))  # no exact parts any more
    theirs = NMF(4, init="nndsvda", max_iter=2000, tol=1e-7).fit(rows.double().numpy())
    ours = Nmf(4, iterations=2000, tolerance=1e-8)(rows)
    missed = torch.linalg.norm(rows - ours.decode(ours.codes(rows)))
    assert float(missed) <= 1.02 * theirs.reconstruction_err_


def test_semi_nmf_takes_rows_of_any_sign_and_nmf_refuses_them(any_rows: Tensor) -> None:
    with pytest.raises(DictionaryError, match=r"NMF takes rows of 0 or more, got -.*: use SemiNmf, or read a layer after"):
        Nmf(3)(any_rows)
    found = SemiNmf(7, iterations=1000, tolerance=1e-6)(any_rows)
    assert float(found.codes(any_rows).min()) >= 0
    # Rows fill six dimensions off the origin: seven directions can open a cone that holds all of them, three can't.
    assert found.unexplained(any_rows) < 0.02 < SemiNmf(3)(any_rows).unexplained(any_rows)


def test_semi_nmf_is_as_good_as_least_squares_allows_at_its_own_codes(any_rows: Tensor) -> None:
    found = SemiNmf(4, iterations=3000, tolerance=1e-9)(any_rows)
    codes = found.codes(any_rows)
    best = torch.linalg.lstsq(codes, any_rows).solution
    missed = [float((any_rows - codes @ atoms).square().sum()) for atoms in (found.atoms, best)]
    assert missed[0] == pytest.approx(missed[1], rel=1e-3)


def test_codes_of_0_or_more_solve_the_constrained_problem(any_rows: Tensor) -> None:
    from scipy.optimize import nnls

    atoms = nn.functional.normalize(torch.randn(5, 9, generator=generator(7)))
    found = Dictionary(atoms, torch.zeros(9), NonNegative()).codes(any_rows[:20])
    oracle = [torch.from_numpy(nnls(atoms.mT.double().numpy(), row.double().numpy())[0]) for row in any_rows[:20]]
    assert torch.allclose(found.double(), torch.stack(oracle), atol=1e-4)


def test_k_means_gives_each_row_the_code_of_its_nearest_centre_alone(any_rows: Tensor) -> None:
    found = KMeans(4)(any_rows)
    codes = found.codes(any_rows)
    assert bool(((codes != 0).sum(1) == 1).all())
    centres = found.coder.lengths[:, None] * found.atoms  # type: ignore[attr-defined]  # of a Nearest
    assert torch.equal(codes.argmax(1), torch.cdist(any_rows, centres).argmin(1))
    assert torch.allclose(found.decode(codes), centres[codes.argmax(1)], atol=1e-4)


def sparse_rows() -> tuple[Tensor, Tensor]:
    """Return rows that are combinations of two of eight orthonormal directions, and the directions."""
    codes = torch.rand(500, 8, generator=generator(8)) + 0.5
    codes *= torch.rand(500, 8, generator=generator(9)).argsort(1) < 2
    return codes @ orthonormal(8), orthonormal(8)


def test_of_orthonormal_atoms_and_sparse_codes_the_topk_coder_misses_nothing() -> None:
    rows, atoms = sparse_rows()
    exact = Dictionary(atoms, torch.zeros(8), TopK(atoms, torch.zeros(8), 2))
    assert exact.unexplained(rows) < 1e-10
    assert replace(exact, coder=TopK(atoms, torch.zeros(8), 1)).unexplained(rows) > 0.1


def test_a_trained_autoencoder_misses_nothing_of_orthonormal_atoms_and_an_untrained_one_does() -> None:
    rows, atoms = sparse_rows()
    for seed in range(3):
        trained = TopKAutoencoder(8, 2, steps=1200, batch=64, seed=seed)(rows)
        assert trained.unexplained(rows) < 1e-5
        assert torch.allclose((trained.atoms @ atoms.mT).amax(0), torch.ones(8), atol=1e-2)
    start = TopKAutoencoder(8, 2, steps=1, rate=1e-9)(rows)
    assert start.unexplained(rows) > 0.02
    assert bool(((trained.codes(rows) > 0).sum(1) <= 2).all())
    assert torch.allclose(trained.atoms.norm(dim=1), torch.ones(8), atol=1e-5)


def test_of_several_starts_the_one_of_least_error_goes_on() -> None:
    rows, _ = sparse_rows()
    # Nothing is trained by such a rate: what is left is the best of the starts, and more starts are no worse.
    still = TopKAutoencoder(8, 2, steps=4, rate=1e-9, batch=500)
    missed = [replace(still, starts=starts)(rows).unexplained(rows) for starts in (1, 4, 16)]
    assert missed[0] >= missed[1] >= missed[2]
    assert missed[0] > missed[2]


LEARNERS = [Pca(3), KMeans(3), Nmf(3), SemiNmf(3), TopKAutoencoder(3, 2, steps=20, starts=2)]


@pytest.mark.parametrize("learner", LEARNERS, ids=lambda one: type(one).__name__)
def test_every_learner_keeps_the_contract(learner: Pca, separable: tuple[Tensor, Tensor]) -> None:
    rows = separable[0]
    state = torch.get_rng_state()
    found, again = learner(rows), learner(rows.clone())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found.atoms, again.atoms)
    assert len(found) == learner.atoms == 3
    assert torch.allclose(found.atoms.norm(dim=1), torch.ones(3), atol=1e-5)
    assert torch.allclose(found.decode(found.codes(rows)), found.offset + found.codes(rows) @ found.atoms)
    assert 0 <= found.unexplained(rows) <= 1.01
    assert rebuild(describe(learner)) == learner
    with pytest.raises(DictionaryError, match=r"rows at least as many, got 3 for 2 rows"):
        learner(rows[:2])
    with pytest.raises(DictionaryError, match="rows hold NaN or infinity"):
        learner(torch.where(torch.arange(12) == 3, torch.nan, rows))
    with pytest.raises(DictionaryError, match=r"rows have 5 values and the atoms 12"):
        found.codes(rows[:, :5])


def test_what_a_seed_and_other_settings_are_for(separable: tuple[Tensor, Tensor], any_rows: Tensor) -> None:
    rows = separable[0] + torch.rand(200, 12, generator=generator(10))
    base = Nmf(3, iterations=5, tolerance=0.0)
    for other in (replace(base, seed=1), replace(base, iterations=50), replace(base, tolerance=0.5)):
        assert not torch.equal(base(rows).atoms, other(rows).atoms)
    auto = TopKAutoencoder(3, 2, steps=20, starts=2)
    for changed in (
        replace(auto, seed=1),
        replace(auto, active=1),
        replace(auto, rate=0.1),
        replace(auto, batch=20),
        replace(auto, steps=21),
    ):
        assert not torch.equal(auto(rows).atoms, changed(rows).atoms)
    with pytest.raises(DictionaryError, match="active must be from 1 to atoms=3, got 4"):
        TopKAutoencoder(3, 4)(rows)
    with pytest.raises(DictionaryError, match="have so many directions, got atoms=20"):
        Pca(20)(any_rows)


class Tokens(nn.Module):
    """Images as a class token and four patches."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 5, 3, stride=3)
        self.blocks = nn.Linear(5, 5)
        self.head = nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).mT
        logits: Tensor = self.head(self.blocks(torch.cat([patches[:, :1] * 0, patches], 1))[:, 0])
        return logits


def test_rows_are_a_layers_places_in_order_and_go_back_into_them() -> None:
    net, inputs = seeded(ConvNet()), images(5)
    store = ActivationStore()
    rows = read_rows(store, net, "features.3", inputs)
    output = store.activations(net, ["features.3"], inputs)["features.3"]
    assert rows.places == 36
    assert rows.cells == Cells("map", (6, 6))
    assert torch.equal(rows.values.reshape(5, 6, 6, 5).permute(0, 3, 1, 2), output)
    assert torch.equal(rows.of([3, 1]).values, torch.cat([rows.values[108:144], rows.values[36:72]]))
    assert torch.equal(rows.cells.put(output * 0, rows.values.reshape(5, 36, 5)), output)
    mean = read_rows(store, net, "features.3", inputs, "mean")
    assert torch.allclose(mean.values, output.mean((2, 3)), atol=1e-6)
    assert mean.cells is None
    head = read_rows(store, net, "head", inputs)
    assert head.cells == Cells("vector", ())
    assert torch.equal(head.cells.put(torch.zeros(5, 3), head.values[:, None]), head.values)


def test_patches_are_rows_and_class_tokens_are_not() -> None:
    net, inputs = seeded(Tokens()), images(3)
    rows = read_rows(ActivationStore(), net, "blocks", inputs)
    assert rows.cells == Cells("tokens", (2, 2))
    output = ActivationStore().activations(net, ["blocks"], inputs)["blocks"]
    assert torch.equal(rows.values.reshape(3, 4, 5), output[:, 1:])
    put = rows.cells.put(output, rows.values.reshape(3, 4, 5) + 1)
    assert torch.equal(put[:, :1], output[:, :1])
    assert torch.equal(put[:, 1:], output[:, 1:] + 1)


def test_many_rows_lie_in_a_file_and_give_the_same_dictionary(monkeypatch: pytest.MonkeyPatch) -> None:
    net, inputs = seeded(ConvNet()), images(70)
    held = read_rows(ActivationStore(), net, "features.3", inputs)
    monkeypatch.setattr(rows_module, "IN_MEMORY", 100)
    mapped = read_rows(ActivationStore(), net, "features.3", inputs)
    assert torch.equal(held.values, mapped.values)
    assert torch.equal(Nmf(2, iterations=9)(held.values).atoms, Nmf(2, iterations=9)(mapped.values).atoms)


class Texts(nn.Module):
    """Words, their mean without padding, and a layer that is told of it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(9, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        tokens: Tensor = self.layer(self.words(ids), src_key_padding_mask=ids == 0)
        return tokens.mean(1)


def test_tokens_of_which_some_are_padding_are_refused_and_outputs_that_are_no_map() -> None:
    ids = torch.randint(1, 9, (4, 6), generator=generator())
    with pytest.raises(RowsError, match="are padding is not known of stored rows: take places='mean'"):
        read_rows(ActivationStore(), seeded(Texts()), "words", ids)
    with pytest.raises(RowsError, match=r"returns \(2, 3, 4\) for an example, which is no map and no tokens"):
        Cells.of(nn.Identity(), ids[:1], "layer", (2, 3, 4))
