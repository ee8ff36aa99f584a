"""Whether someone's pictures are enough for an audit, and what would have to be added."""

from collections.abc import Collection, Iterator, Sequence

from concepts.data.concept_sets import MINIMUM
from concepts.data.image_folders import RANDOM, Pictures
from concepts.data.sources import some
from probing.core.errors import ProbingError

LEAST_RANDOM = 3 * MINIMUM
"""Random pictures that concepts are compared with."""


class BeginError(ProbingError, ValueError):
    """What is asked for makes no audit."""


def check_concepts(pictures: Pictures, *, alone: bool) -> None:
    """Refuse concepts that are too few to be compared with each other, or have too few pictures."""
    for name, count in pictures.concepts.items():
        if count <= MINIMUM:
            raise BeginError(
                f"{name!r} holds {count} {'picture' if count == 1 else 'different pictures'}: {MINIMUM + 1} or more are "
                f"needed, {MINIMUM} to fit a direction on and others to judge it at. Add some, or take it out of "
                f"{str(pictures.root)!r}."
            )
    if not pictures.concepts:
        raise BeginError(f"{str(pictures.root)!r} holds no pictures but random ones: add a folder for each concept.")
    if alone and len(pictures.concepts) < 2:
        raise BeginError(
            f"{listed(list(pictures.concepts))!r} is the only folder of pictures: a concept is compared with others, so add"
            f" one, or a folder {RANDOM!r} of {LEAST_RANDOM} pictures of anything."
        )


def too_few(pictures: Pictures, fit: Collection[str]) -> str:
    """Say which concept is left too little on one side of a division, or nothing."""
    for name, own in clusters_of(pictures).items():
        count = sum(c in fit for p, c in zip(pictures.pictures, pictures.clusters, strict=True) if p.concept == name)
        if min(len(own & set(fit)), count) < MINIMUM or own <= set(fit):
            return (
                f"{name!r} holds pictures of {len(own)} groups ({some(sorted(own))}), which count as one observation each: "
                f"{MINIMUM + 1} or more are needed. Add groups, or leave --grouped out if each picture stands alone."
            )
    return ""


def check_pairs(pictures: Pictures) -> None:
    """Refuse folders that have too few names of pictures in common."""
    first, *others = pictures.concepts
    items = _items(pictures)
    for name in others:
        common = items[first] & items[name]
        if len(common) <= MINIMUM:
            raise BeginError(
                f"{first!r} and {name!r} have {len(common)} names of pictures in common ({some(sorted(common)) or 'none'}): "
                f"--matched needs {MINIMUM + 1} or more, as {first}/ann.jpg and {name}/ann.jpg."
            )
    groups = {p.group for p in pictures.pictures if p.group}
    if groups and len(groups) <= MINIMUM:
        raise BeginError(
            f"the matched pictures are of {len(groups)} groups ({some(sorted(groups))}), which count as one observation"
            f" each: {MINIMUM + 1} or more are needed."
        )


def names_in_common(pictures: Pictures, *, matched: bool) -> Iterator[str]:
    """Say which pictures have no partner; or, where pairs were not asked for, that there may be some."""
    if pictures.dataset is not None:
        return
    names: dict[str, set[str]] = {name: set() for name in pictures.concepts}
    for picture in pictures.pictures:
        names[picture.concept].add(picture.item)
    first, *others = names
    for name in others:
        if (alone := len(names[first] ^ names[name])) and matched:
            yield f"{alone} pictures of {first!r} and {name!r} have no partner of the same name."
    common = set.intersection(*names.values())
    if not matched and others and len(common) > MINIMUM:
        yield (
            f"All folders have {len(common)} names of pictures in common. If those of one name differ in the concept alone, "
            "--matched measures what swapping them does; if not, all is well."
        )


def clusters_of(pictures: Pictures) -> dict[str, set[str]]:
    """Return the clusters that each concept has pictures of."""
    found: dict[str, set[str]] = {name: set() for name in pictures.concepts}
    for picture, cluster in zip(pictures.pictures, pictures.clusters, strict=True):
        found[picture.concept].add(cluster)
    return found


def _items(pictures: Pictures) -> dict[str, set[str]]:
    """Return what the pictures of each concept are called.

    Raises:
        BeginError: if two of one concept differ by their suffix alone.
    """
    found: dict[str, set[str]] = {name: set() for name in pictures.concepts}
    for picture in pictures.pictures:
        if picture.item in found[picture.concept]:
            raise BeginError(f"{picture.name!r} and another picture differ in their suffix alone: rename one.")
        found[picture.concept].add(picture.item)
    return found


def listed(names: Sequence[str]) -> str:
    """Return names as words of a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
