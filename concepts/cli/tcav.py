"""`probing tcav`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from concepts.cli.common import (
    CacheOption,
    CommandError,
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
    from collections.abc import Mapping, Sequence

    from rich.table import Table
    from torch import Tensor

    from concepts.tcav.result import TcavResult
    from concepts.tcav.sample_size import SampleSizes
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
        list[str] | None,
        typer.Option(metavar="NAME=DIR", help="A concept's name and pictures; again for more."),
    ] = None,
    random: Annotated[Path, typer.Option(metavar="DIR", help="Random pictures that concepts are compared with.")],
    inputs: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Pictures at which the targets' logits are explained."),
    ],
    target: Annotated[list[str], typer.Option(help="Class by name or number; again for more.")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the result is saved.")] = None,
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    runs: Annotated[int, typer.Option(min=2, help="CAVs for each concept.")] = 20,
    plan: Annotated[
        bool,
        typer.Option("--plan", help="Analyse nothing, but tell which effects how many pictures of a concept would show."),
    ] = False,
    size: Annotated[
        list[int] | None,
        typer.Option(metavar="N", help="Pictures of a concept to plan with; again for more. 10, 20, 40 and 80 by default."),
    ] = None,
    power: Annotated[float, typer.Option(help="Probability to find the effect that is planned for.")] = 0.8,
    draws: Annotated[int, typer.Option(min=10, help="Simulated analyses for each line of a plan.")] = 100,
    seed: SeedOption = 0,
    skip_unreadable: SkipOption = False,
    allow_overlap: Annotated[bool, typer.Option("--allow-overlap", help="Accept sets of pictures that share some.")] = False,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
) -> None:
    """Test whether a model's classes depend on concepts shown by folders of pictures, or plan such a test."""
    from concepts.data.concept_sets import Concept
    from concepts.tcav.sample_size import SampleSizes
    from concepts.tcav.tcav import Tcav
    from probing.models import loading
    from probing.models.scores import Score
    from probing.store.shards import default_root
    from probing.store.store import ActivationStore

    named = named_folders(concept or [])
    if not plan and not named:
        raise CommandError("tcav tests concepts: name one by --concept NAME=DIR, or plan by --plan.")
    if not plan and out is None:
        raise CommandError("tcav saves what it finds: name a folder by --out DIR.")
    if out is not None:
        output_folder(out)  # a folder that can't be written is reported before the work
    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    scores = {name: Score(loaded.model, class_index(loaded, name)) for name in target}

    def shown(folder: Path) -> "ImageExamples":
        return pictures(folder, loaded, "skip" if skip_unreadable else "raise")

    store, method = ActivationStore(cache or default_root()), Tcav(runs=runs, seed=seed)
    if plan:
        rows = store.activations(loaded.model, layer, shown(random), pool=method.pool)
        slopes = store.gradients_of(list(scores.values()), layer, shown(inputs), pool=method.pool)
        tests = len(rows) * len(scores) * max(1, len(named))
        planned = SampleSizes(method, power, tests, draws, seed)
        show(_plan_table(planned, rows, dict(zip(scores, slopes, strict=True)), size or [10, 20, 40, 80]))
        say(
            "Pictures of the concept are taken to be as many as their counterparts, and to be like the random ones but for "
            "one step of their activations, the shortest that moves the score so far to first order. A deviation is that "
            "of what one random picture moves the score by."
        )
        return
    assert out is not None
    result = method(
        store,
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


def _plan_table(
    planned: "SampleSizes",
    rows: "Mapping[str, Tensor]",
    slopes: "Mapping[str, Mapping[str, Tensor]]",
    sizes: "Sequence[int]",
) -> "Table":
    """Return what sizes show at each layer for each target, given random pictures' activations and the gradients."""
    table = new_table("layer", "target", "pictures", "effect (logits)", "in deviations", "found", "found by sign score")
    for layer, known in rows.items():
        for target, gradients in slopes.items():
            for line in planned(known.cpu().flatten(1), gradients[layer].cpu().flatten(1), sizes):
                told = f"{line.effect:.3g}", f"{line.deviations:.2f}", f"{line.found:.0%}", f"{line.found_by_sign:.0%}"
                table.add_row(layer, target, str(line.size), *told)
    table.caption = (
        f"The effect that its test finds with probability {planned.power:.0%}, tested in {planned.tests} cells; what both "
        f"tests found in {planned.draws} simulated analyses with it."
    )
    return table


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
