"""Maps of a concept by implicit differentiation: against finite differences of the optimum, and on a planted thing."""

import torch
from discovery_worlds import SeesThings, world
from nets import ConvNet, images, seeded
from scipy.optimize import nnls
from torch import Tensor

from concepts.discovery import AtomCodes, Dictionary, Nmf, Pca, read_rows
from concepts.discovery.dictionary import NonNegative
from concepts.discovery.rows import Cells
from probing.attribution import IntegratedGradients, Saliency
from probing.models.scores import Score
from probing.store.store import ActivationStore


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def optimum(row: Tensor, atoms: Tensor) -> Tensor:
    return torch.from_numpy(nnls(atoms.mT.numpy(), row.numpy())[0])


def test_the_gradient_of_codes_is_that_of_the_optimum_by_finite_differences() -> None:
    atoms = torch.nn.functional.normalize(normal(5, 8, seed=0))
    coder = NonNegative(5000, 1e-14)
    zero = 0
    for seed in range(1, 7):
        row = normal(8, seed=seed)
        gradient = torch.autograd.functional.jacobian(lambda r: coder(r[None], atoms)[0], row)
        step = 1e-6
        moved = [
            (optimum(row + step * e, atoms) - optimum(row - step * e, atoms)) / (2 * step) for e in torch.eye(8).double()
        ]
        torch.testing.assert_close(gradient, torch.stack(moved, 1), atol=1e-7, rtol=0)
        off = optimum(row, atoms) == 0
        assert not gradient[off].any()
        zero += int(off.sum())
    assert zero  # some codes were at 0, where the plain least squares would have moved them


def test_codes_are_the_same_with_and_without_a_gradient_and_more_atoms_than_values_are_no_trouble() -> None:
    atoms, rows = torch.nn.functional.normalize(normal(9, 4, seed=7)), normal(20, 4, seed=8)
    plain = NonNegative()(rows, atoms)
    leaf = rows.clone().requires_grad_()
    tracked = NonNegative()(leaf, atoms)
    assert torch.equal(plain, tracked.detach())
    (slope,) = torch.autograd.grad(tracked.sum(), leaf)
    assert bool(slope.isfinite().all())
    assert bool((slope.norm(dim=1) > 0).all())


def test_a_network_of_codes_returns_the_means_that_a_discovery_reads() -> None:
    net, inputs = seeded(ConvNet()), images(4)
    rows = read_rows(ActivationStore(), net, "features.3", inputs)
    assert rows.cells is not None
    for dictionary in (Nmf(3)(rows.values), Pca(3)(rows.values)):
        codes = AtomCodes(net, "features.3", rows.cells, dictionary).eval()
        known = dictionary.codes(rows.values).reshape(4, 36, 3).mean(1)
        torch.testing.assert_close(codes(inputs).detach(), known, atol=1e-5, rtol=1e-5)


def test_the_map_of_a_planted_thing_is_the_thing() -> None:
    net, seen = SeesThings(), world(6)
    codes = AtomCodes(net, "relu", Cells("map", (6, 6)), Dictionary(net.things, torch.zeros(8), NonNegative())).eval()
    # Each channel of the picture is a thing, and its code at a place is the pixel: the mean code's parts are pixels / 36.
    for atom in range(3):
        alone = torch.zeros_like(seen.with_it)
        alone[:, atom] = seen.with_it[:, atom] / 36
        found = IntegratedGradients()(Score(codes, atom), seen.with_it)
        torch.testing.assert_close(found.values, alone.to(found.values), atol=1e-5, rtol=0)
    slope = Saliency()(Score(codes, 1), seen.with_it).values
    torch.testing.assert_close(slope[:, 1], torch.full((6, 6, 6), 1 / 36).to(slope), atol=1e-5, rtol=0)
    assert float(slope[:, [0, 2]].abs().max()) < 1e-5
