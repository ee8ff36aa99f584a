"""`probing dissect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from concepts.cli.common import (
    CacheOption,
    CommandError,
    DeviceOption,
    DiskOption,
    EngineOption,
    KeysOption,
    ModelArgument,
    WeightsOption,
    budget_bytes,
    filled,
    new_table,
    output_folder,
    say,
    show,
)

if TYPE_CHECKING:
    from rich.table import Table

    from concepts.data.segmentation import Scenes
    from concepts.dissection.dissection import Dissection
    from concepts.dissection.result import DissectionResult
    from probing.models.loading import LoadedModel
    from probing.store.store import ActivationStore

EXAMPLE = "probing dissect torchvision:resnet18 --layer layer3 --layer layer4 --out results/dissection"
SYNTHETIC = "synthetic"


def dissect(
    model: ModelArgument,
    *,
    layer: Annotated[list[str], typer.Option(help="Path or glob, as 'layer?'; again for more.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where results and pages are written.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="synthetic|MANIFEST|DIR",
            help="Drawn scenes, a manifest that names masks, or the folder of Broden.",
        ),
    ] = SYNTHETIC,
    images: Annotated[
        int | None,
        typer.Option(min=2, help="How many scenes are drawn (500), or read of Broden (all)."),
    ] = None,
    protocol: Annotated[
        Literal["paper", "lite", "pnas"],
        typer.Option(help="Which published procedure is followed."),
    ] = "paper",
    draws: Annotated[int, typer.Option(min=0, help="Shuffles of the images for the test.")] = 199,
    rotate: Annotated[
        bool,
        typer.Option("--rotate", help="Dissect a random rotation of each layer, as a control."),
    ] = False,
    units: Annotated[int, typer.Option(min=1, help="Units on each layer's page.")] = 16,
    dreams: Annotated[
        int,
        typer.Option(
            min=0,
            metavar="STEPS",
            help="Beside each unit's images, one synthesised in so many steps.",
        ),
    ] = 0,
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    seed: Annotated[int, typer.Option(help="Of scenes, shuffles and rotation.")] = 0,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
    engine: EngineOption = "local",
    disk_budget: DiskOption = None,
    counts: Annotated[
        bool,
        typer.Option(
            "--counts",
            help="Leave counts in DIR/parts and store no maps; the images are passed twice.",
        ),
    ] = False,
) -> None:
    """Find the units of a network that single out objects, parts, scenes, textures or colours."""
    from concepts.dissection.dissection import Dissection
    from concepts.dissection.protocols import PROTOCOLS
    from concepts.dissection.rotation import Rotation
    from probing.models import loading
    from probing.results.csv_files import write_frame
    from probing.store.launchers import ENGINES
    from probing.store.shards import default_root
    from probing.store.store import ActivationStore

    if dreams and rotate:
        raise CommandError("--dreams draws units, and --rotate dissects mixtures of them: leave one out.")
    output_folder(out)  # a folder that can't be written is reported before the work
    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    scenes = _scenes(data, loaded, images, seed)
    method = Dissection(
        tuple(layer),
        PROTOCOLS[protocol],
        rotation=Rotation(seed=seed) if rotate else None,
        draws=draws,
        seed=seed,
    )
    root = cache or default_root()
    store = ActivationStore(root, disk_budget_bytes=budget_bytes(disk_budget))
    if counts:
        found = method.in_shares(ENGINES[engine](), out / "parts", loaded.model, scenes)
        if found is None:
            if engine == "slurm":
                say("This share is counted. The array counts in two runs; then --engine local reads.", err=True)
            return
        result = found
    elif filled(engine, lambda: method.requests(loaded.model, scenes), root, disk_budget):
        result = method(store, loaded.model, scenes)
    else:
        return
    result.save(out)
    write_frame(out / "units.csv", result.to_pandas())
    subject = f"{model}, {len(scenes)} images of {data}, protocol {protocol}" + (", rotated" if rotate else "")
    _write_pages(result, method, store, loaded, scenes, subject, units, dreams, out)
    show(_table(result))
    for sentence in result.sentences():
        say(sentence)
    say(f"Saved in {out}: index.html, units.csv; DissectionResult.load({str(out)!r}) reads it back.")


def _scenes(data: str, loaded: "LoadedModel", images: int | None, seed: int) -> "Scenes":
    from concepts.data.manifest import Manifest
    from concepts.data.segmentation import Broden, EmojiScenes, MaskedManifest

    if data == SYNTHETIC:
        return EmojiScenes(images or 500, seed=seed).scenes(loaded.preprocess)
    if Path(data).is_dir():
        return Broden(Path(data), limit=images).scenes(loaded.preprocess)
    if images is not None:
        raise CommandError("--images chooses among scenes or Broden's images: leave it out for a manifest.")
    return MaskedManifest(Manifest.load(data)).scenes(loaded.preprocess)


def _write_pages(
    result: "DissectionResult",
    method: "Dissection",
    store: "ActivationStore",
    loaded: "LoadedModel",
    scenes: "Scenes",
    subject: str,
    units: int,
    dreams: int,
    out: Path,
) -> None:
    from concepts.dissection.page import (
        dreams_folder,
        highest,
        overview,
        unit_file,
        unit_page,
        unit_strips,
        with_dreams,
    )
    from probing.maximization import Channel, maximize

    overview(result, subject).save(out / "index.html")
    for lens in method.lenses(loaded.model, scenes):
        rows = highest(result, lens.layer, units)
        strips = list(unit_strips(result, lens, rows, store, loaded.model, scenes))
        if dreams:
            goals = [Channel(lens.layer, int(result.unit[row])) for row in rows]
            made = maximize(loaded, goals, steps=dreams, store=store, examples=scenes.examples)
            made.save(out / dreams_folder(lens.layer))
            strips = with_dreams(strips, made)
        page = unit_page(result, lens.layer, rows, strips, subject)
        page.save(out / unit_file(lens.layer))


def _table(result: "DissectionResult") -> "Table":
    from probing.results.html_report import NONE

    table = new_table("layer", "units", "detectors", "concepts", "by chance", "significant", "IoU", "held out")
    for layer in result.layers:
        rows = result.rows_of(layer)
        own = rows[result.detector[rows]]
        table.add_row(
            layer,
            str(len(rows)),
            str(len(own)),
            str(sum(result.detectors_by_category(layer).values())),
            f"{sum(result.null_by_category(layer).values()):.1f}",
            str(int(result.significant[rows].sum())),
            *(f"{float(v[own].mean()):.3f}" if len(own) else NONE for v in (result.best_iou, result.held_out)),
        )
    table.caption = (
        f"Detectors have IoU > {result.min_iou:g}; 'by chance' is the mean number of concepts with a detector where "
        "images are shuffled."
    )
    return table
