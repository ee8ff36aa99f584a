"""A sparse autoencoder whose codes are the few largest outputs of its encoder."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.discovery.dictionary import Dictionary, DictionaryError, TopK, chunks, largest
from concepts.discovery.learners import checked, spread_rows, unit

_TRIAL = 200
"""Steps of each start, before all but the best are left."""
_ROUND = 100
"""Steps, at least, in which an atom that no row used counts as dead."""


@dataclass(frozen=True)
class TopKAutoencoder:
    """The TopK sparse autoencoder (Makhzani & Frey 2014; Gao et al. 2024, arXiv:2406.04093).

    Applies to rows of any sign. The encoder starts as the decoder's transpose (Gao et al., sec. A.1), the decoder at rows
    that lie apart; its directions keep unit length. Atoms that no row of a round used start again at the rows that are
    worst reconstructed, but for the last third of the steps.

    A single start often ends beside the optimum with all atoms in use: the offset takes the place of an atom, and all others
    make up for it where it should not be. Which starts do so shows within their first steps; so several are begun, and the
    one of least error goes on.

    Attributes:
        atoms: directions; may be more than the rows have values.
        active: most codes of a row that are not 0.
        steps: of Adam, each on `batch` rows.
        starts: that are begun.
        rate: of Adam, falling to 0 in the last third of the steps.
        batch: rows of a step.
        seed: of starts and batches.
    """

    atoms: int
    active: int = 8
    steps: int = 4000
    starts: int = 8
    rate: float = 1e-2
    batch: int = 256
    seed: int = 0

    def __call__(self, rows: Float[Tensor, "rows m"]) -> Dictionary:
        checked(rows, self.atoms)
        if not 1 <= self.active <= self.atoms:
            raise DictionaryError(f"active must be from 1 to atoms={self.atoms}, got {self.active}.")
        if min(self.steps, self.starts, self.batch) < 1 or not self.rate > 0:
            raise DictionaryError("steps, starts, batch and rate must be above 0.")
        seeds = torch.randint(2**31, (self.starts,), generator=torch.Generator().manual_seed(self.seed)).tolist()
        with torch.inference_mode(False), torch.enable_grad():
            best, least = None, float("inf")
            for seed in seeds:
                begun = _Training(self, rows, seed)
                error = begun.run(min(_TRIAL, self.steps))
                if best is None or error < least:
                    best, least = begun, error
            assert best is not None
            best.run(self.steps)
        return best.dictionary()


class _Training:
    """An autoencoder and how far its training has come."""

    def __init__(self, method: TopKAutoencoder, rows: Tensor, seed: int) -> None:
        center = sum(part.double().sum(0) for part in chunks(rows)) / len(rows)
        assert isinstance(center, Tensor)
        # One scale for all values, with which steps of Adam mean the same in every layer.
        self.scale = float(sum(float((part - center).square().sum()) for part in chunks(rows)) / rows.numel()) ** 0.5 or 1.0
        self.method, self.rows = method, rows
        self.atoms = unit(spread_rows(rows, method.atoms, seed) - center.to(rows))[0].clone()
        self.weight, self.bias = self.atoms.clone(), torch.zeros_like(self.atoms[:, 0])
        self.offset = (center / self.scale).to(rows)
        self.adam = torch.optim.Adam(
            [p.requires_grad_() for p in (self.atoms, self.weight, self.bias, self.offset)], lr=method.rate
        )
        self.batches = _batches(len(rows), method.batch, seed)
        self.done = 0
        self.used = torch.zeros(method.atoms, dtype=torch.bool, device=rows.device)
        self.worst: list[tuple[Tensor, Tensor]] = []

    def run(self, until: int) -> float:
        """Train until so many steps are done; return the mean error over the last half of them."""
        errors = []
        rounds = max(_ROUND, -(-len(self.rows) // self.method.batch))
        while self.done < until:
            errors.append(self._step())
            if self.done % rounds == 0:
                if 3 * self.done < 2 * self.method.steps and not bool(self.used.all()):
                    self._restart((~self.used).nonzero().flatten())
                self.used, self.worst = torch.zeros_like(self.used), []
        return float(torch.stack(errors[len(errors) // 2 :]).mean()) if errors else float("nan")

    def _step(self) -> Tensor:
        method = self.method
        x = self.rows[next(self.batches).to(self.rows.device)] / self.scale
        codes = largest((x - self.offset) @ self.weight.mT + self.bias, method.active)
        missed = (x - self.offset - codes @ self.atoms).square().sum(1)
        self.adam.zero_grad()
        missed.mean().backward()  # type: ignore[no-untyped-call]  # torch's
        self.adam.param_groups[0]["lr"] = method.rate * min(1.0, 3 * (1 - self.done / method.steps))
        self.adam.step()
        self.done += 1
        with torch.no_grad():
            self.atoms.copy_(unit(self.atoms)[0])
            self.used |= (codes > 0).any(0)
            hardest = missed.topk(min(method.atoms, len(missed)))
            self.worst.append((hardest.values, x[hardest.indices] - self.offset))
            return missed.mean()

    def _restart(self, dead: Tensor) -> None:
        """Start dead atoms again at the rows of largest error, and forget what Adam knows of them."""
        values, found = (torch.cat(parts) for parts in zip(*self.worst, strict=True))
        dead = dead[: len(values)]
        with torch.no_grad():
            self.atoms[dead] = unit(found[values.topk(len(dead)).indices])[0]
            self.weight[dead], self.bias[dead] = self.atoms[dead], 0.0
            for parameter in (self.atoms, self.weight, self.bias):
                for kept in ("exp_avg", "exp_avg_sq"):
                    self.adam.state[parameter][kept][dead] = 0

    def dictionary(self) -> Dictionary:
        """Return what was learned."""
        with torch.no_grad():
            coder = TopK(self.weight.detach().clone(), self.bias.detach() * self.scale, self.method.active)
            return Dictionary(self.atoms.detach().clone(), self.offset.detach() * self.scale, coder)


def _batches(count: int, size: int, seed: int) -> Iterator[Tensor]:
    """Yield row numbers, all of them in a new order again and again."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.split(torch.randperm(count, generator=generator), size)
