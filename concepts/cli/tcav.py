"""`probing tcav`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from concepts.cli.common import (
    CacheOption,
    DeviceOption,
    KeysOption,
    ModelArgument,
    SeedOption,
    SkipOption,
    WeightsOption,
    class_index,
    named_folders,
    new_table,
    output_folder,
    pictures,
    say,
    show,
)

if TYPE_CHECKING:
    from rich.table import Table

    from concepts.tcav.result import TcavResult
    from probing.data.examples import ImageExamples

EXAMPLE = (
    "probing tcav torchvision:resnet18 --layer layer3 --layer layer4 --concept striped=photos/striped"
    " --random photos/random --inputs photos/zebras --target zebra --out results/zebra"
)


def tcav(
    model: ModelArgument,
    *,
    layer: Annotated[list[str], typer.Option(help="Path or glob, as 'layer?'; again for more.")],
    concept: Annotated[
        list[str],
        typer.Option(metavar="NAME=DIR", help="A concept's name and pictures; again for more."),
    ],
    random: Annotated[Path, typer.Option(metavar="DIR", help="Random pictures that concepts are compared with.")],
    inputs: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Pictures at which the targets' logits are explained."),
    ],
    target: Annotated[list[str], typer.Option(help="Class by name or number; again for more.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where the result is saved.")],
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    runs: Annotated[int, typer.Option(min=2, help="CAVs for each concept.")] = 20,
    seed: SeedOption = 0,
    skip_unreadable: SkipOption = False,
    allow_overlap: Annotated[bool, typer.Option("--allow-overlap", help="Accept sets of pictures that share some.")] = False,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
) -> None:
    """Test whether a model's classes depend on concepts shown by folders of pictures."""
    from concepts.data.concept_sets import Concept
    from concepts.tcav.tcav import Tcav
    from probing.models import loading
    from probing.models.scores import Score
    from probing.store.shards import default_root
    from probing.store.store import ActivationStore

    output_folder(out)  # a folder that can't be written is reported before the work
    named = named_folders(concept)
    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    scores = {name: Score(loaded.model, class_index(loaded, name)) for name in target}

    def shown(folder: Path) -> "ImageExamples":
        return pictures(folder, loaded, "skip" if skip_unreadable else "raise")

    result = Tcav(runs=runs, seed=seed)(
        ActivationStore(cache or default_root()),
        scores,
        layer,
        [Concept(name, shown(folder)) for name, folder in named.items()],
        shown(inputs),
        shown(random),
        allow_overlap=allow_overlap,
    )
    result.save(out)
    show(_tcav_table(result))
    for sentence in result.sentences():
        say(sentence)
    say(f"Saved in {out}; TcavResult.load({str(out)!r}) reads it back.")


def _tcav_table(result: "TcavResult") -> "Table":
    level = f"{result.level:.0%}"
    table = new_table("layer", "concept", "target", "TCAV", level, "p", "effect (logits)", level, "p", "CAV accuracy")
    for row in result.to_pandas().itertuples():
        table.add_row(
            row.layer,
            row.concept,
            row.target,
            f"{row.mean:.2f}",
            f"{row.low:.2f} to {row.high:.2f}",
            f"{row.p_holm:.2g}",
            f"{row.effect:+.3f}",
            f"{row.effect_low:+.3f} to {row.effect_high:+.3f}",
            f"{row.effect_p_max_t:.2g}",
            f"{row.accuracy:.2f}",
        )
    table.caption = "p-values are corrected over all layers, concepts and targets of this table."
    return table
