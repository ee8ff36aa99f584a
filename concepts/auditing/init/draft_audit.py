"""From a folder of pictures and a model to a first audit, ready to be read, changed and run."""

import errno
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from concepts.auditing.init.requirements import (
    LEAST_RANDOM,
    BeginError,
    check_concepts,
    check_pairs,
    clusters_of,
    listed,
    names_in_common,
    too_few,
)
from concepts.auditing.init.templates import Draft, DraftTarget
from concepts.auditing.measurement.setup import class_name, divide
from concepts.data.image_folders import RANDOM, Choice, Pictures
from concepts.data.manifest import UNSTATED
from concepts.data.sources import ChosenImages, DatasetSource
from probing.core.inputs import one_tensor
from probing.data.examples import ImageExamples
from probing.models import loading
from probing.models.loading import LoadedModel
from probing.models.stages import Stages, find_stages
from probing.models.weights import Keys
from probing.store.shards import default_root
from probing.store.store import ActivationStore

HUB = "hub:"
"""Before the name of a data set of the hub."""
_CLASSES = 5
_SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
_SEED = 0
_FILES = ("audit.yaml", "images.yaml", "random.yaml")


@dataclass(frozen=True)
class Begin:
    """What a first audit is made of.

    Attributes:
        out: the folder that it is written to.
        images: a folder with a folder for each concept, a saved data set, a parquet file, or `hub:NAME`.
        model: as `probing.models.loading.load` takes it, like `weights` and `keys`.
        classes: names or numbers; without any, the model's own best guesses for these pictures.
        layers: paths; without any, the ends of the model's stages.
        random: a folder of pictures of nothing in particular; without one, the folder `random` among the images if there is
            one, and else concepts are compared with each other.
        matched: pictures of one name in different folders differ in the concept alone.
        choice: which pictures are taken.
        split: of a data set.
        image_column: of a data set.
        column: of a data set, what names concepts; by default its one column of class labels.
        licence: for the manifest, like `source`.
        force: replace files that are there.
        command: that asks for it, as it is written into the files.
        cache: of activations; by default the one of all commands.
    """

    out: Path
    images: str
    model: str
    weights: str | None = None
    keys: Keys = "name"
    classes: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()
    random: Path | None = None
    matched: bool = False
    choice: Choice = field(default_factory=Choice)
    split: str = "train"
    image_column: str = "image"
    column: str | None = None
    licence: str = UNSTATED
    source: str = UNSTATED
    force: bool = False
    command: str = "probing init"
    device: str | torch.device = "cpu"
    cache: Path | None = None

    def __call__(self, say: Callable[[str], object]) -> Path:
        """Write the audit file and its manifests, and return the audit file.

        The pictures are passed through the model once; the audit finds what it computes in the store.

        Args:
            say: takes what was found, left out and written, and the command to go on with.

        Raises:
            BeginError: if files are there already, or there are too few pictures.
            concepts.data.image_folders.PicturesError: if pictures are not laid out as needed.
            ValueError, LookupError, OSError, ImportError: as raised for pictures, models and stores.
        """
        made = _claim(self.out, force=self.force)
        try:
            return self._write(say)
        except BaseException:
            if made:
                self.out.rmdir()
            raise

    def _write(self, say: Callable[[str], object]) -> Path:
        pictures, random = self._pictures()
        for line in dict.fromkeys([*pictures.left_out, *(random.left_out if random else ())]):
            say(line)
        for line in names_in_common(pictures, matched=self.matched):
            say(line)
        share = self._share(pictures)
        loaded = loading.load(self.model, weights=self.weights, keys=self.keys, seed=_SEED, device=self.device)
        stages, targets = self._look(loaded, pictures, random)
        draft = self._draft(pictures, random, share, stages, targets)
        texts = {"audit.yaml": draft.audit(), "images.yaml": draft.images()}
        if random is not None:
            texts["random.yaml"] = draft.random_images()
        for name in _FILES:
            (self.out / name).unlink(missing_ok=True)  # one of an earlier try, with --force
        for name, text in texts.items():
            (self.out / name).write_text(text, encoding="utf-8")
        for line in _summary(pictures, random, stages, targets):
            say(line)
        audit = self.out / "audit.yaml"
        say(f"Wrote {listed(list(texts))} in {self.out}. Read them, then run:")
        say(f"  probing audit {shlex.quote(str(audit))} --out results")
        return audit

    def _pictures(self) -> tuple[Pictures, Pictures | None]:
        """Return the pictures of concepts, and random ones if there are any."""
        found = self._found()
        if self.random is not None:
            known = {p.sha256 for p in found.pictures}
            random: Pictures | None = self.choice.flat(self.random).without(known)
        else:
            random = found.of(RANDOM) if RANDOM in found.concepts else None
            found = found.of(*(name for name in found.concepts if name != RANDOM))
        if random is not None and len(random.pictures) < LEAST_RANDOM:
            raise BeginError(
                f"there are {len(random.pictures)} random pictures: give {LEAST_RANDOM} or more, or leave them out; then "
                "each concept is compared with the others."
            )
        check_concepts(found, alone=random is None or self.matched)
        return found, random

    def _found(self) -> Pictures:
        path = Path(self.images)
        kind = _dataset_kind(self.images)
        if kind is None:
            return self.choice.folders(path)
        if self.matched or self.choice.grouped:
            raise BeginError("--matched and --grouped go by folders, of which a data set has none.")
        source = DatasetSource(
            kind="dataset",
            format=kind,
            path=self.images.removeprefix(HUB) if kind == "hub" else path.name,
            split=self.split,
            column=self.image_column,
            attributes=[self.column] if self.column else [],
        )
        return self.choice.dataset(path.absolute().parent, source)

    def _share(self, pictures: Pictures) -> float:
        """Return the least share of training clusters that leaves each concept enough pictures on both sides."""
        if self.matched:
            check_pairs(pictures)
            return _SHARES[0]
        of_concept = clusters_of(pictures)
        few = ""
        for share in _SHARES:
            fit, _ = divide(pictures.clusters, of_concept, share, _SEED)
            if not (few := too_few(pictures, fit)):
                return share
        raise BeginError(few)

    def _look(
        self, loaded: LoadedModel, pictures: Pictures, random: Pictures | None
    ) -> tuple[Stages, tuple[DraftTarget, ...]]:
        """Pass the pictures through the model once, and return the layers to read and the classes to ask about."""
        examples = _examples(pictures, loaded)
        stages = find_stages(loaded.model, one_tensor(examples.load([0])).to(next(loaded.model.parameters()).device))
        if self.layers:
            stages = Stages(self.layers, stages.pool)
        named = [loaded.class_index(int(c) if c.isdecimal() else c) for c in self.classes]
        if named:
            return stages, tuple(_target(loaded, i, "asked about", "named on the command line") for i in named)
        store = ActivationStore(self.cache or default_root())
        sets = [examples, *([_examples(random, loaded)] if random else [])]
        logits = torch.cat(
            [store.activations(loaded.model, [*stages.layers, ""], s, pool=stages.pool)[""].cpu() for s in sets]
        )
        return stages, tuple(_guesses(loaded, logits))

    def _draft(
        self, pictures: Pictures, random: Pictures | None, share: float, stages: Stages, targets: tuple[DraftTarget, ...]
    ) -> Draft:
        where = self.images.removeprefix(HUB).rstrip("/").rpartition("/")[2] or self.images
        check = [
            "probing",
            "manifest",
            "check",
            f"{self.out / 'images.yaml'}",
            "--root",
            f"{pictures.root}",
        ]
        local = self.weights is not None and Path(self.weights).is_file()
        return Draft(
            command=self.command,
            check=_one_line(shlex.join(check)),
            name=re.sub(r"[^A-Za-z0-9._]+", "-", self.out.absolute().name).strip("-._") or "audit",
            about=f"pictures of “{where}”",
            model=self.model,
            weights=str(Path(self.weights).absolute()) if local and self.weights else self.weights,
            keys=self.keys,
            layers=stages.layers,
            pool=stages.pool,
            targets=targets,
            pictures=pictures,
            root=_seen_from(self.out, pictures.root),
            matched=self.matched,
            random=random,
            random_root=_seen_from(self.out, random.root) if random else "",
            share=share,
            licence=self.licence,
            source=self.source,
        )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _claim(out: Path, *, force: bool) -> bool:
    """Make the folder if it is missing, and return whether it was; what is in the way is reported before the work."""
    there = [str(out / name) for name in _FILES if (out / name).exists()]
    if there and not force:
        raise BeginError(f"{there[0]!r} is there already: choose another name, or replace it by --force.")
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)
    if not os.access(out, os.W_OK):
        raise PermissionError(errno.EACCES, "not writable", str(out))
    return made


def _dataset_kind(images: str) -> Literal["hub", "arrow", "parquet"] | None:
    path = Path(images)
    if images.startswith(HUB):
        return "hub"
    if path.suffix == ".parquet":
        return "parquet"
    saved = ("dataset_dict.json", "dataset_info.json", "state.json")
    return "arrow" if any((path / name).is_file() for name in saved) else None


def _seen_from(folder: Path, root: Path) -> str:
    """Return a path to a folder as another one sees it, or its absolute path on another drive."""
    try:
        return Path(os.path.relpath(root.resolve(), folder.resolve())).as_posix()
    except ValueError:
        return root.resolve().as_posix()


def _examples(pictures: Pictures, loaded: LoadedModel) -> ImageExamples:
    rows = tuple(p.index for p in pictures.pictures)
    return ImageExamples(ChosenImages(pictures.source, rows), loaded.preprocess)


def _guesses(loaded: LoadedModel, logits: Float[Tensor, "n classes"]) -> Iterator[DraftTarget]:
    """Yield the classes that are the best guess most often.

    All pictures count alike, whatever they show, so that picking them so does not make any concept's test significant.
    """
    counts = Counter(logits.argmax(1).tolist())
    means = logits.mean(0)
    classes = range(logits.shape[1])
    order = sorted(classes, key=lambda i: (-counts[i], -float(means[i])))
    for i in order[:_CLASSES]:
        why = f"the model's best guess for {counts[i]} of {len(logits)} pictures, when this file was written"
        if len(classes) <= _CLASSES:
            why = f"one of the model's {len(classes)} classes"
        elif not counts[i]:
            why = "no best guess, but among the highest logits on average, when this file was written"
        yield _target(loaded, i, "best guesses", why)


def _target(loaded: LoadedModel, index: int, group: str, reason: str) -> DraftTarget:
    unique = bool(loaded.classes) and loaded.classes.count(loaded.classes[index]) == 1
    said = f"{class_name(loaded, index)}: {reason}" if loaded.classes and not unique else reason
    return DraftTarget(loaded.classes[index] if unique else index, group, said)


def _summary(pictures: Pictures, random: Pictures | None, stages: Stages, targets: Sequence[DraftTarget]) -> Iterator[str]:
    counts = ", ".join(f"{name} {n}" for name, n in pictures.concepts.items())
    beside = f", compared with {len(random.pictures)} random ones" if random else ""
    yield f"{len(pictures.pictures)} pictures ({counts}){beside}."
    yield f"Layers: {', '.join(stages.layers)}. Classes: {', '.join(str(t.name) for t in targets)}."
