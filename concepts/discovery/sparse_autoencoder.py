"""A sparse autoencoder whose codes are the few largest outputs of its encoder."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.discovery.dictionary import Dictionary, DictionaryError, TopK, chunks, largest
from concepts.discovery.learners import checked, spread_rows, unit


@dataclass(frozen=True)
class TopKAutoencoder:
    """The TopK sparse autoencoder (Makhzani & Frey 2014; Gao et al. 2024, arXiv:2406.04093).

    Applies to rows of any sign. The encoder starts as the decoder's transpose (Gao et al., sec. A.1), the decoder at rows
    that lie apart; its directions keep unit length. Atoms that no row of an epoch used start again at the
    rows that are worst reconstructed, but for the last third of the epochs. Training may end beside the optimum: of codes
    that an autoencoder of this kind could give back without error, one seed in five or so left 4 % unexplained.

    Attributes:
        atoms: directions; may be more than the rows have values.
        active: most codes of a row that are not 0.
        epochs: over the rows.
        rate: of Adam, falling to 0 in the last third of the steps.
        batch: rows of a step.
        seed: of start and batches.
    """

    atoms: int
    active: int = 8
    epochs: int = 40
    rate: float = 1e-2
    batch: int = 256
    seed: int = 0

    def __call__(self, rows: Float[Tensor, "rows m"]) -> Dictionary:
        checked(rows, self.atoms)
        if not 1 <= self.active <= self.atoms:
            raise DictionaryError(f"active must be from 1 to atoms={self.atoms}, got {self.active}.")
        if min(self.epochs, self.batch) < 1 or not self.rate > 0:
            raise DictionaryError("epochs, batch and rate must be above 0.")
        generator = torch.Generator().manual_seed(self.seed)
        with torch.inference_mode(False), torch.enable_grad():
            return self._trained(rows, generator)

    def _trained(self, rows: Tensor, generator: torch.Generator) -> Dictionary:
        center = sum(part.double().sum(0) for part in chunks(rows)) / len(rows)
        assert isinstance(center, Tensor)
        # One scale for all values, with which steps of Adam mean the same in every layer.
        scale = float(sum(float((part - center).square().sum()) for part in chunks(rows)) / rows.numel()) ** 0.5 or 1.0
        atoms = unit(spread_rows(rows, self.atoms, self.seed) - center.to(rows))[0].clone()
        weight, bias = atoms.clone(), torch.zeros_like(atoms[:, 0])
        offset = (center / scale).to(rows)
        learned = [p.requires_grad_() for p in (atoms, weight, bias, offset)]
        adam = torch.optim.Adam(learned, lr=self.rate)
        steps = self.epochs * -(-len(rows) // self.batch)
        done = 0
        for epoch in range(self.epochs):
            used = torch.zeros(self.atoms, dtype=torch.bool, device=rows.device)
            worst: list[tuple[Tensor, Tensor]] = []
            for index in torch.split(torch.randperm(len(rows), generator=generator), self.batch):
                x = rows[index.to(rows.device)] / scale
                codes = largest((x - offset) @ weight.mT + bias, self.active)
                missed = (x - offset - codes @ atoms).square().sum(1)
                adam.zero_grad()
                missed.mean().backward()  # type: ignore[no-untyped-call]  # torch's
                adam.param_groups[0]["lr"] = self.rate * min(1.0, 3 * (1 - done / steps))
                adam.step()
                done += 1
                with torch.no_grad():
                    atoms.copy_(unit(atoms)[0])
                    used |= (codes > 0).any(0)
                    hardest = missed.topk(min(self.atoms, len(missed)))
                    worst.append((hardest.values, x[hardest.indices] - offset))
            if 3 * epoch < 2 * self.epochs and not bool(used.all()):
                _restart(learned, adam, (~used).nonzero().flatten(), worst)
        with torch.no_grad():
            coder = TopK(weight.detach().clone(), bias.detach() * scale, self.active)
            return Dictionary(atoms.detach().clone(), offset.detach() * scale, coder)


def _restart(learned: list[Tensor], adam: torch.optim.Adam, dead: Tensor, worst: list[tuple[Tensor, Tensor]]) -> None:
    """Start dead atoms again at the rows of largest error, and forget what Adam knows of them."""
    values, found = (torch.cat(parts) for parts in zip(*worst, strict=True))
    dead = dead[: len(values)]
    atoms, weight, bias, _ = learned
    with torch.no_grad():
        atoms[dead] = unit(found[values.topk(len(dead)).indices])[0]
        weight[dead], bias[dead] = atoms[dead], 0.0
        for parameter in (atoms, weight, bias):
            for kept in ("exp_avg", "exp_avg_sq"):
                adam.state[parameter][kept][dead] = 0
