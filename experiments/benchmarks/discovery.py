"""Dictionaries of 50,000 rows with 512 features: non-negative matrix factorisation beside scikit-learn's and overcomplete's.

    python experiments/benchmarks/discovery.py --out discovery.json [--tiny]

Rows are correlated and rectified, as a network's are (`rectified`), or sums of twenty sparse parts and noise (`parts`).
scikit-learn has its defaults, coordinate descent from its own start (xplique's CRAFT calls it, too, with a penalty);
overcomplete has its hierarchical least squares (HALS), on the rows as they are. `agrees` is a peer's norm of what is missed
over ours, each with the codes that it returns; ours are solved for, which is part of the time. `floor` is what one pass over
the rows takes: codes from atoms, and sums of rows weighted by codes. Without overcomplete its rows are missing; `pip install
overcomplete` brings it.
"""

import warnings
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec

import torch
from harness import Row, arguments, race, report
from torch import Tensor

from concepts.discovery import Nmf

Made = tuple[Tensor, Tensor]
"""Codes and atoms."""


def rectified(n: int, features: int) -> Tensor:
    """Return rows as they are behind a ReLU: correlated, half of the values zero."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.logspace(0, -1.5, features)[:, None] * torch.randn(features, features, generator=generator)
    return (torch.randn(n, features, generator=generator) @ mixing).relu()


def parts(n: int, features: int) -> Tensor:
    """Return rows that are sums of twenty parts, each of some features, and noise."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.rand(20, features, generator=generator) * (torch.rand(20, features, generator=generator) < 0.3)
    return torch.rand(n, 20, generator=generator) ** 3 @ atoms + 0.1 * torch.rand(n, features, generator=generator)


def _ours(rows: Tensor, atoms: int) -> Made:
    found = Nmf(atoms)(rows)
    return found.codes(rows), found.atoms


def _scikit_learn(rows: Tensor, atoms: int) -> Made:
    from sklearn.decomposition import NMF

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that 200 iterations were not enough
        fitted = NMF(atoms, random_state=0)
        codes = fitted.fit_transform(rows.numpy())
    return torch.from_numpy(codes), torch.from_numpy(fitted.components_)


def _overcomplete(rows: Tensor, atoms: int) -> Made:
    import matplotlib as mpl

    mpl.cm.get_cmap = mpl.colormaps.__getitem__  # which it asks for on import, and matplotlib has no more
    from overcomplete.optimization import NMF

    codes, directions = NMF(atoms, solver="hals").fit(rows)
    return codes.detach(), directions.detach()


def _floor(rows: Tensor, atoms: int) -> Tensor:
    codes = rows @ rows[:atoms].mT
    return codes.mT @ rows


def main() -> list[Row]:
    """Run the benchmark."""
    args = arguments("Non-negative matrix factorisation against scikit-learn and overcomplete.", on_device=False)
    n, features, atoms = (300, 24, 4) if args.tiny else (50_000, 512, 16)
    found: list[Row] = []
    for make in (rectified, parts):
        rows = make(n, features)
        contenders: dict[str, Callable[[], object]] = {
            "floor": lambda rows=rows: _floor(rows, atoms),
            "ours": lambda rows=rows: _ours(rows, atoms),
            f"scikit-learn {version('scikit-learn')}": lambda rows=rows: _scikit_learn(rows, atoms),
        }
        if find_spec("overcomplete") is not None:
            contenders[f"overcomplete {version('overcomplete')}"] = lambda rows=rows: _overcomplete(rows, atoms)

        def agrees(mine: object, other: object, rows: Tensor = rows) -> str:
            missed = [float((rows - codes @ directions).norm()) for codes, directions in (mine, other)]  # type: ignore[misc,attr-defined]
            return f"misses {missed[1] / missed[0]:.3f} times as much as ours"

        case = f"{make.__name__}, {n} x {features}, {atoms} atoms"
        if args.only in case:
            peers = [who for who in contenders if who not in {"floor", "ours"}]
            found += race(case, contenders, args.rounds, dict.fromkeys(peers, agrees))
    report(found, args.out)
    return found


if __name__ == "__main__":
    main()
