"""`probing maximize`."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from concepts.cli.common import (
    CacheOption,
    CommandError,
    DeviceOption,
    KeysOption,
    ModelArgument,
    WeightsOption,
    class_index,
    output_folder,
    pictures,
    say,
)

if TYPE_CHECKING:
    from probing.data.examples import ImageExamples
    from probing.maximization import Maximization, Maximize, Objective
    from probing.models.loading import LoadedModel
    from probing.store.store import ActivationStore

EXAMPLE = "probing maximize torchvision:resnet18 --layer layer3 --unit 0:64 --out results/layer3"


def maximize(
    model: ModelArgument,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where images are saved.")],
    layer: Annotated[str | None, typer.Option(help="Path of the layer, with --unit.")] = None,
    unit: Annotated[
        str | None,
        typer.Option(metavar="UNITS", help="A number, several as in 3,7,9, or 0:64 for the first 64."),
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Class by name or number instead; again for more.")] = None,
    preset: Annotated[
        Literal["fourier", "A", "B", "C", "D", "unregularized"],
        typer.Option(help="Fourier images, or pixels as in Yosinski et al. 2015."),
    ] = "fourier",
    steps: Annotated[int, typer.Option(min=1, help="Passes per image.")] = 256,
    size: Annotated[int | None, typer.Option(help="Side of the images; what the model was made for by default.")] = None,
    seed: Annotated[int, typer.Option(help="Of start and random views.")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="Images in a pass.")] = 16,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures that images are placed among."),
    ] = None,
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    device: DeviceOption = "auto",
    cache: CacheOption = None,
) -> None:
    """Make images that raise units of a layer, or classes; what was made before is not made again."""
    units = _units(layer, unit, target)
    from probing.maximization.presets import PRESETS
    from probing.models import loading

    output_folder(out)
    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    settings = replace(PRESETS[preset], steps=steps, size=size, seed=seed, batch=batch)
    goals = _goals(loaded, layer, units, target or [])
    examples = None if data is None else pictures(data, loaded, "raise")
    run = _Run(loaded, settings, out, examples, cache)
    found, reused = run.all(goals)
    _save(found, out)
    made = f"Made {len(goals) - reused} images" + (f", {reused} were there." if reused else ".")
    say(f"{made} {out / 'contact.png'} shows all.")
    for name, gone in zip(found.names, found.dead.tolist(), strict=True):
        if gone:
            say(f"{name} has no gradient at any step: it has no image.", err=True)
    for note in dict.fromkeys(found.notes):
        say(note, err=True)


def _units(layer: str | None, unit: str | None, target: list[str] | None) -> list[int]:
    if bool(target) == (layer is not None) or (layer is None) != (unit is None):
        raise CommandError("give --layer with --unit, or --target, as in --layer layer3 --unit 0:64.")
    if unit is None:
        return []
    try:
        if ":" in unit:
            first, last = (int(part) for part in unit.split(":"))
            found = list(range(first, last))
        else:
            found = [int(part) for part in unit.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise CommandError(f"--unit takes 7, or 3,7,9, or 0:64, got {unit!r}.")
    return list(dict.fromkeys(found))


def _goals(loaded: "LoadedModel", layer: str | None, units: Sequence[int], target: Sequence[str]) -> list["Objective"]:
    from probing.maximization import Channel, Logit

    if layer is not None:
        return [Channel(layer, k) for k in units]
    classes = dict.fromkeys(class_index(loaded, name) for name in target)
    return [Logit(k, loaded.classes[k] if loaded.classes else "") for k in classes]


@dataclass(frozen=True)
class _Run:
    loaded: "LoadedModel"
    settings: "Maximize"
    out: Path
    examples: "ImageExamples | None"
    cache: Path | None

    def all(self, goals: Sequence["Objective"]) -> tuple["Maximization", int]:
        """Return images of all objectives, and how many were there already."""
        from probing.maximization.ascent_loop import ZeroGradientError
        from probing.maximization.result import joined

        known = {goal.name: self._known(goal) for goal in goals}
        parts: dict[str, Maximization] = {n: part for n, part in known.items() if part is not None}
        missing = [goal for goal in goals if goal.name not in parts]
        refused: ZeroGradientError | None = None
        for start in range(0, len(missing), self.settings.batch):
            chunk = missing[start : start + self.settings.batch]
            try:
                found = self._made(chunk)
            except ZeroGradientError as error:  # of a whole chunk: others may have images
                refused = error
                continue
            for i, goal in enumerate(chunk):
                parts[goal.name] = found.part([i])
                parts[goal.name].save(self._folder(goal))
        if not parts and refused is not None:
            raise refused
        ordered = [parts[goal.name] for goal in goals if goal.name in parts]
        return joined(ordered), len(goals) - len(missing)

    def _made(self, goals: Sequence["Objective"]) -> "Maximization":
        return self.settings(self.loaded, goals, store=self._store(), examples=self.examples)

    def _store(self) -> "ActivationStore | None":
        from probing.store.shards import default_root
        from probing.store.store import ActivationStore

        return None if self.examples is None else ActivationStore(self.cache or default_root())

    def _folder(self, goal: "Objective") -> Path:
        return self.out / "units" / _slug(goal.name)

    def _known(self, goal: "Objective") -> "Maximization | None":
        """Return an image made before of the same model with the same settings, placed among the same data."""
        from probing.core.content_ids import content_id, model_id
        from probing.maximization import Maximization
        from probing.results.result import SavedResultError, rebuild

        try:
            found = Maximization.load(self._folder(goal))
            same = rebuild(found.provenance.method) == self.settings
        except SavedResultError:
            return None
        data = None if self.examples is None else content_id(tuple(self.examples.ids))
        placed = None if found.beside is None else found.beside.examples
        model = found.provenance.model == model_id(self.loaded.model)
        return found if same and model and placed == data and found.names == (goal.name,) else None


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def _save(found: "Maximization", out: Path) -> None:
    from probing.results.csv_files import write_csv
    from probing.results.figures import save_figure

    found.save(out)
    for name, picture, gone in zip(found.names, found.pictures(), found.dead.tolist(), strict=True):
        if not gone:
            picture.save(out / f"{_slug(name)}.png")
    save_figure(found.plot(), out / "contact")
    rows = ([step, *row] for step, row in enumerate(found.trace.T.tolist()))
    write_csv(out / "traces.csv", ["step", *found.names], rows)
