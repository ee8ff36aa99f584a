"""`probing atlas`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from concepts.cli.common import (
    CacheOption,
    DeviceOption,
    KeysOption,
    ModelArgument,
    SeedOption,
    SkipOption,
    WeightsOption,
    output_folder,
    pictures,
    say,
)

EXAMPLE = "probing atlas torchvision:resnet18 --images photos --layer layer4 --out results/atlas"


def atlas(
    model: ModelArgument,
    *,
    images: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Pictures; sub-folders, if any, colour the points."),
    ],
    layer: Annotated[str, typer.Option(help="Dotted path.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where result and figure are saved.")],
    projection: Annotated[Literal["umap", "pca"], typer.Option(help="How activations are laid out.")] = "umap",
    position: Annotated[
        bool,
        typer.Option("--position", help="Read each picture at one random position, not on average."),
    ] = False,
    grid: Annotated[int, typer.Option(min=1, help="Cells on a side.")] = 10,
    thumbnails: Annotated[bool, typer.Option("--thumbnails/--no-thumbnails", help="Show a picture in each cell.")] = True,
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    seed: SeedOption = 0,
    skip_unreadable: SkipOption = False,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
) -> None:
    """Lay a layer's activations out on a plane, with pictures in their places."""
    from probing.atlas import Atlas, Pca, Umap
    from probing.models import loading
    from probing.results.figures import save_figure
    from probing.store.shards import default_root
    from probing.store.store import ActivationStore

    output_folder(out)  # a folder that can't be written is reported before the work
    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    examples = pictures(images, loaded, "skip" if skip_unreadable else "raise")
    places = [Path(examples.name(i)).relative_to(images).parts for i in range(len(examples))]
    labels = [parts[0] for parts in places] if all(len(p) > 1 for p in places) else None
    method = Atlas(layer, Umap(seed=seed) if projection == "umap" else Pca(), position, grid, seed=seed)
    result = method(ActivationStore(cache or default_root()), loaded.model, examples, labels)
    result.save(out)
    save_figure(result.figure(examples if thumbnails else None), out / "atlas")
    say(
        f"{len(result.ids)} points at {layer!r}, {len(result.filled())} of {grid * grid} cells hold {result.least} or more; "
        f"trustworthiness {result.trustworthiness:.2f} (1: no neighbour on the plane is a stranger)."
    )
    say(f"Saved in {out}; AtlasResult.load({str(out)!r}) reads it back, atlas.png and atlas.pdf show it.")
