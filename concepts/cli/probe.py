"""`probing probe`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from concepts.cli import common

if TYPE_CHECKING:
    from rich.table import Table

    from probing.data.examples import ImageExamples
    from probing.models.loading import LoadedModel
    from probing.probes import ProbeResult
    from probing.probes.reduction import Reduction

EXAMPLE = "probing probe torchvision:resnet18 --images photos --layer 'layer?.1' --out results/probes"


def probe(
    model: common.ModelArgument,
    *,
    images: Annotated[Path, typer.Option(metavar="DIR", help="Pictures; each sub-folder is a class.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where result and figure are saved.")],
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Path or glob, as 'layer?'; again for more. All without layers inside by default."),
    ] = None,
    reduce: Annotated[
        Literal["mean", "grid2", "grid4", "subset", "projection", "none"],
        typer.Option(
            help="What is kept of a layer's output: means over all positions or 2x2 or 4x4 cells, 1000 drawn "
            "features, a random projection to 1000, or all."
        ),
    ] = "mean",
    kind: Annotated[Literal["softmax", "ridge"], typer.Option(help="Logistic regression, or least squares.")] = "softmax",
    group_folders: Annotated[
        bool,
        typer.Option(
            "--group-folders",
            help="Folders inside a class's folder, by name, are groups (a person, a role) "
            "that are never on two sides of the split; each holds pictures.",
        ),
    ] = False,
    untrained: Annotated[bool, typer.Option("--untrained/--no-untrained", help="Read random weights too.")] = True,
    weights: common.WeightsOption = None,
    keys: common.KeysOption = "name",
    seed: common.SeedOption = 0,
    skip_unreadable: common.SkipOption = False,
    device: common.DeviceOption = "auto",
    cache: common.CacheOption = None,
    engine: common.EngineOption = "local",
    disk_budget: common.DiskOption = None,
) -> None:
    """Say how well a linear classifier reads folders' classes at each layer, beside controls."""
    from probing.models import loading
    from probing.probes import LayerProbes, RidgeProbe, SoftmaxProbe
    from probing.results.figures import new_figure, save_figure, style
    from probing.store.shards import default_root
    from probing.store.store import ActivationStore

    common.output_folder(out)  # a folder that can't be written is reported before the work
    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    examples = _examples(images, loaded, skip=skip_unreadable)
    places = [Path(examples.name(i)).relative_to(images).parts for i in range(len(examples))]
    labels, groups = _labels(images, places), _groups(places) if group_folders else None
    method = LayerProbes(
        tuple(layer) if layer else None,
        SoftmaxProbe() if kind == "softmax" else RidgeProbe(),
        _reduction(reduce),
        untrained=untrained,
        seed=seed,
    )
    root = cache or default_root()
    if not common.filled(engine, lambda: method.requests(loaded.model, examples), root, disk_budget):
        return
    store = ActivationStore(root, disk_budget_bytes=common.budget_bytes(disk_budget))
    result = method(store, loaded.model, examples, labels, groups=groups)
    result.save(out)
    with style():
        figure = new_figure(*result.figure_size())
        result.plot(figure.add_subplot())
    save_figure(figure, out / "probes")
    common.show(_table(result))
    for note in result.sentences():
        common.say(note)
    common.say(f"Saved in {out}; ProbeResult.load({str(out)!r}) reads it back, probes.png and probes.pdf show it.")


def _examples(folder: Path, loaded: "LoadedModel", *, skip: bool) -> "ImageExamples":
    from concepts.cli.common import pictures

    return pictures(folder, loaded, "skip" if skip else "raise")


def _labels(folder: Path, places: list[tuple[str, ...]]) -> list[str]:
    if loose := [parts[-1] for parts in places if len(parts) < 2]:
        raise common.CommandError(
            f"{str(folder)!r} holds {len(loose)} pictures outside a class's folder, such as {loose[0]!r}: put each into "
            "a sub-folder named by its class."
        )
    return [parts[0] for parts in places]


def _groups(places: list[tuple[str, ...]]) -> list[str]:
    if flat := [parts for parts in places if len(parts) < 3]:
        raise common.CommandError(
            f"--group-folders wants CLASS/GROUP/PICTURE, got {'/'.join(flat[0])!r}: put it into a group's folder."
        )
    return [parts[1] for parts in places]


def _reduction(name: str) -> "Reduction":
    from probing.probes import Flat, GlobalAverage, Grid, RandomProjection, RandomSubset

    kinds: dict[str, Reduction] = {
        "mean": GlobalAverage(),
        "grid2": Grid(2),
        "grid4": Grid(4),
        "subset": RandomSubset(),
        "projection": RandomProjection(),
        "none": Flat(),
    }
    return kinds[name]


def _table(result: "ProbeResult") -> "Table":
    def shown(value: float, form: str) -> str:
        return "-" if value != value else format(value, form)  # noqa: PLR0124 - NaN

    table = common.new_table(
        "layer",
        "features",
        "error",
        f"{result.level:.0%}",
        "training",
        "control task",
        "random weights",
        "compression",
        "p to the one before",
    )
    for row in result.to_pandas().itertuples():
        table.add_row(
            row.layer,
            f"{row.features:,}",
            f"{row.error:.3f}",
            f"{row.low:.3f} to {row.high:.3f}",
            f"{row.train_error:.3f}",
            shown(row.control_error, ".3f"),
            shown(row.untrained_error, ".3f"),
            shown(row.compression, ".2f"),
            shown(row.step_p_holm, ".2g"),
        )
    train, validation, test = result.examples
    table.caption = (
        f"Errors on {test} test examples; fitted on {train}, penalties chosen on {validation}. The class most frequent in "
        f"training: {result.majority_error:.3f}. p-values are corrected over the layers."
    )
    return table
