"""Which examples probes are fitted, chosen and judged on; members of one group are never on two sides."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from probing.core.errors import ProbingError

DRAWS = 200


class SplitError(ProbingError, ValueError):
    """Labels or groups that allow no division into sides that each hold every class."""


@dataclass(frozen=True)
class Split:
    """Positions of the examples to fit on, to choose the penalty on, and to judge on."""

    train: Int[Tensor, " train"]
    validation: Int[Tensor, " validation"]
    test: Int[Tensor, " test"]

    def __post_init__(self) -> None:
        every = torch.cat([self.train, self.validation, self.test])
        if len(set(every.tolist())) != len(every):
            raise SplitError("sides of a split must not share examples: some positions occur twice.")
        for name in ("train", "validation", "test"):
            if not len(getattr(self, name)):
                raise SplitError(f"the {name} side of a split is empty: give it examples.")


def encode(labels: Sequence[object] | Int[Tensor, " n"] | None, examples: int) -> tuple[Int[Tensor, " n"], tuple[str, ...]]:
    """Return labels as numbers from 0, with what each stands for, sorted.

    Raises:
        SplitError: if there are not as many labels as examples, one is missing, or all are the same.
    """
    if labels is None:
        raise SplitError(
            "the examples came without labels: give labels, or a data set whose items are pairs of an example and its label."
        )
    given = labels.tolist() if isinstance(labels, Tensor) else list(labels)
    if len(given) != examples:
        raise SplitError(f"there are {len(given)} labels for {examples} examples: give one to each.")
    if missing := [i for i, x in enumerate(given) if x is None or x != x]:  # noqa: PLR0124 - NaN
        raise SplitError(f"{len(missing)} labels are missing or NaN, the first at {missing[0]}: leave those examples out.")
    kinds = {type(x) for x in given}
    names = sorted(set(given)) if len(kinds) == 1 else sorted(set(given), key=str)
    if len(names) < 2:
        raise SplitError(f"a probe needs examples of two classes or more, got {len(given)} of {[str(x) for x in names]}.")
    number = {name: i for i, name in enumerate(names)}
    return torch.tensor([number[x] for x in given]), tuple(str(x) for x in names)


def draw_split(
    labels: Int[Tensor, " n"],
    groups: Sequence[str] | None,
    *,
    validation: float,
    test: float,
    seed: int,
    names: Sequence[str] = (),
) -> Split:
    """Divide examples at random so that every side holds every class, in about the same shares.

    Args:
        labels: classes from 0.
        groups: what each example belongs to; a group goes to one side as a whole. None: each stands alone.
        validation: share of examples to choose the penalty on.
        test: share of examples to judge on.
        seed: of the draw.
        names: what the classes are called, for messages.

    Raises:
        SplitError: if a class has fewer than three examples, or groups.
    """
    if not (validation > 0 and test > 0 and validation + test < 1):
        raise SplitError(
            f"validation and test must be shares above 0 that leave a share to fit on, got {validation} and {test}."
        )
    if groups is not None and len(groups) != len(labels):
        raise SplitError(f"there are {len(groups)} groups for {len(labels)} examples: give one to each.")
    of_group = group_numbers(groups, len(labels))
    counts = np.zeros((int(of_group.max()) + 1, int(labels.max()) + 1))
    np.add.at(counts, (of_group.numpy(), labels.numpy()), 1)
    _check_groups(counts, names, grouped=groups is not None)
    shares = np.array([1 - validation - test, validation, test])
    sides = _best_sides(counts, shares, np.random.default_rng(seed))
    if sides is None:
        raise SplitError(
            f"{len(counts)} groups allow no division in which each side holds all {counts.shape[1]} classes "
            f"({DRAWS} tried): give more groups, drop rare classes, or pass a Split of your own."
        )
    side = torch.from_numpy(sides)[of_group]
    return Split(*((side == s).nonzero().squeeze(1) for s in range(3)))


def group_numbers(groups: Sequence[str] | None, n: int) -> Int[Tensor, " n"]:
    """Return groups as numbers from 0 in the order they appear; without groups each example is its own."""
    if groups is None:
        return torch.arange(n)
    number = {name: i for i, name in enumerate(dict.fromkeys(groups))}
    return torch.tensor([number[name] for name in groups])


def control_labels(labels: Int[Tensor, " n"], types: Sequence[str] | None, seed: int) -> Int[Tensor, " n"]:
    """Return the labels of a control task: each type of input gets one at random, as often as the true ones occur.

    Hewitt & Liang 2019, sec. 2. Without types each example is its own, and nothing can be learnt for other examples.
    """
    own = group_numbers(types, len(labels))
    rng = np.random.default_rng([seed, 1])
    if types is None:
        return labels[torch.from_numpy(rng.permutation(len(labels)))]
    drawn = torch.from_numpy(rng.choice(labels.numpy(), int(own.max()) + 1))
    return drawn[own]


def _check_groups(counts: "np.ndarray", names: Sequence[str], *, grouped: bool) -> None:
    held = (counts > 0).sum(0)
    if held.min() < 3:
        rare = int(held.argmin())
        what = "groups" if grouped else "examples"
        name = names[rare] if names else rare
        raise SplitError(
            f"class {name!r} occurs in {int(held[rare])} {what}, and three are needed, one to fit, one to choose the "
            f"penalty and one to judge on: add {what}, or leave the class out."
        )


def _best_sides(counts: "np.ndarray", shares: "np.ndarray", rng: np.random.Generator) -> "np.ndarray | None":
    """Return each group's side, the best of some greedy divisions of groups in random order."""
    wanted = shares[:, None] * counts.sum(0)
    single = bool((counts.sum(1) == 1).all())
    best, best_miss = None, np.inf
    for _ in range(1 if single else DRAWS):
        sides = _dealt(counts, shares, rng) if single else _greedy(counts, wanted, rng)
        got = np.stack([counts[sides == s].sum(0) for s in range(3)])
        miss = np.square((got - wanted) / wanted.clip(1)).sum()
        if (got > 0).all() and miss < best_miss:
            best, best_miss = sides, miss
    return best


def _dealt(counts: "np.ndarray", shares: "np.ndarray", rng: np.random.Generator) -> "np.ndarray":
    """Deal each class's examples out in its shares, at least one to each side."""
    sides = np.zeros(len(counts), dtype=np.int64)
    for members in counts.T:
        order = rng.permutation(np.flatnonzero(members))
        least = np.maximum(1, np.floor(shares[1:] * len(order) + rng.uniform(size=2))).astype(int)
        validation = min(int(least[0]), len(order) - 2)
        test = min(int(least[1]), len(order) - 1 - validation)
        sides[order[:validation]], sides[order[validation : validation + test]] = 1, 2
    return sides


def _greedy(counts: "np.ndarray", wanted: "np.ndarray", rng: np.random.Generator) -> "np.ndarray":
    """Give each group, in random order, to the side that lacks its classes most."""
    sides = np.zeros(len(counts), dtype=np.int64)
    lacking = wanted.copy()
    for group in rng.permutation(len(counts)):
        side = int(((lacking / wanted.clip(1)) @ counts[group]).argmax())
        sides[group] = side
        lacking[side] -= counts[group]
    return sides
