"""`probing evaluate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from concepts.cli.common import (
    CommandError,
    DeviceOption,
    EngineOption,
    KeysOption,
    ModelArgument,
    SeedOption,
    WeightsOption,
    class_index,
    have_done,
    named_folders,
    new_table,
    output_folder,
    picture_files,
    pictures,
    say,
    show,
)
from probing.evaluation.scorecard import DEFAULT_METHODS

if TYPE_CHECKING:
    from torch import Tensor

    from concepts.scorecard_rows import Material
    from probing.attribution.base import AttributionMethod
    from probing.evaluation.scorecard.scorecard import Scorecard
    from probing.models.loading import LoadedModel

EXAMPLE = "probing evaluate torchvision:resnet18 zebra.jpg okapi.jpg --out results/scorecard"
TOP = "top"


def evaluate(
    model: ModelArgument,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE|DIR...", help="Picture files, or folders of them."),
    ],
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where tables, figures and rows are saved.")],
    method: Annotated[
        list[str] | None,
        typer.Option(help=f"Again for more; by default {', '.join(DEFAULT_METHODS)}."),
    ] = None,
    target: Annotated[str, typer.Option(help="Class by name or number; top: the one with the highest score.")] = TOP,
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    device: DeviceOption = "auto",
    background: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures that stand for the data, for expected_gradients."),
    ] = None,
    lime_samples: Annotated[int, typer.Option(min=10, help="Passes of LIME for each picture.")] = 300,
    network: Annotated[
        bool,
        typer.Option("--network/--no-network", help="Rows for TCAV and dissection, of drawn examples."),
    ] = True,
    layer: Annotated[str | None, typer.Option(help="That TCAV and dissection read; found if left out.")] = None,
    concept: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A concept's name and pictures, for TCAV; again for more, three at least.",
        ),
    ] = None,
    random: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Random pictures that these concepts are compared with."),
    ] = None,
    seed: SeedOption = 0,
    fast: Annotated[bool, typer.Option("--fast", help="bfloat16 for perturbed passes, not for gradients.")] = False,
    engine: EngineOption = "local",
) -> None:
    """Measure explanation methods on a model: which is faithful, readable, sufficient, easy to set up, quick?

    Each method's row is kept in DIR/rows as soon as it is measured, so that a run that was cut short goes on.
    """
    from concepts.scorecard_rows import NetworkRows
    from probing.core.inputs import one_tensor
    from probing.core.progress import Progress
    from probing.data.examples import ImageExamples
    from probing.evaluation.scorecard.measure import Scoring, ScoringWork
    from probing.evaluation.scorecard.page import scorecard_page
    from probing.models import loading
    from probing.models.precision import Precision
    from probing.models.scores import Score

    names = tuple(method or DEFAULT_METHODS)
    _check(names, background)
    given = _given_concepts(concept, random)
    files = picture_files(images)
    output_folder(out)  # a folder that can't be written is reported before the work
    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    inputs = one_tensor(ImageExamples(files, loaded.preprocess).load(range(len(files)))).clone()
    wanted = None if target == TOP else class_index(loaded, target)
    score = Score(loaded.model, wanted).named(inputs)
    methods = _methods(names, loaded, background, lime_samples)
    scoring = Scoring(seed=seed, precision=Precision("fast" if fast else "float32"))
    work = ScoringWork(scoring, methods, score, inputs, out / "rows")
    if engine != "local" and not have_done(engine, work):
        return
    with Progress(len(methods) + 2 * network, "evaluate", unit="methods") as bar:

        def done(name: str, computed: bool) -> None:
            say(f"{name}: {'measured' if computed else 'kept from before'}", err=True)
            bar.advance(1, computed=computed)

        rows = scoring.rows(methods, score, inputs, folder=out / "rows", done=done)
        if network:
            material = _material(given, random, loaded, seed)
            rows += NetworkRows(layer, seed=seed)(score, inputs, loaded.preprocess, material, folder=out / "rows", done=done)
    card = scoring.card(rows, score, inputs)
    card.save(out / "result")
    written = card.write(out)
    subject = f"{loaded.reference}, {len(inputs)} pictures, {len(card.rows)} methods"
    page = scorecard_page(card, subject).save(out / "scorecard.html")
    _show(card)
    say(f"Saved {', '.join(p.name for p in (*written, page))} in {out}.")


_OF_A_LAYER = {"layer_ig", "layer_conductance", "internal_influence"}


def _check(names: Sequence[str], background: Path | None) -> None:
    from probing.attribution import METHODS

    for name in names:
        if name not in METHODS:
            raise CommandError(f"there is no method {name!r}; methods: {', '.join(METHODS)}.")
        if name in _OF_A_LAYER:
            raise CommandError(f"--method {name} explains a layer, and is compared with nothing here.")
        if names.count(name) > 1:
            raise CommandError(f"--method {name} is given twice.")
        if name == "expected_gradients" and background is None:
            raise CommandError("--method expected_gradients needs --background DIR: pictures that stand for the data.")
    if len(names) < 2:
        raise CommandError(f"a scorecard compares methods, got {len(names)}: give two or more.")


def _given_concepts(concept: Sequence[str] | None, random: Path | None) -> dict[str, Path]:
    given = named_folders(concept or [])
    if given and random is None:
        raise CommandError("--concept needs --random DIR: pictures that concepts are compared with.")
    if random is not None and len(given) < 3:
        raise CommandError(f"--random needs three concepts or more, by --concept, got {len(given)}.")
    return given


def _material(given: dict[str, Path], random: Path | None, loaded: "LoadedModel", seed: int) -> "Material":
    from concepts.data.concept_sets import Concept
    from concepts.scorecard_rows import Material

    if random is None:
        return Material.drawn(loaded.preprocess, seed=seed)
    concepts = tuple(Concept(n, pictures(folder, loaded, "raise")) for n, folder in given.items())
    return Material(concepts, pictures(random, loaded, "raise"))


def _methods(
    names: Sequence[str], loaded: "LoadedModel", background: Path | None, lime_samples: int
) -> dict[str, "AttributionMethod"]:
    from probing.attribution import METHODS
    from probing.attribution.baselines import Samples
    from probing.attribution.perturbation.lime import LIME
    from probing.attribution.perturbation.surrogate import Local

    found: dict[str, AttributionMethod] = {}
    for name in names:
        if name == "lime":
            found[name] = LIME(surrogate=Local(samples=lime_samples))
        elif name == "expected_gradients" and background is not None:
            rows = pictures(background, loaded, "raise")
            found[name] = METHODS[name](background=Samples.of(_all(rows)))  # type: ignore[call-arg]
        else:
            found[name] = METHODS[name]()
    return found


def _all(rows: object) -> "Tensor":
    from probing.core.inputs import one_tensor
    from probing.data.examples import ImageExamples

    assert isinstance(rows, ImageExamples)
    return one_tensor(rows.load(range(len(rows))))


def _cell(card: "Scorecard", row: int, desideratum: int) -> str:
    from probing.results.html_report import NONE

    mark, at = card.mark(row, desideratum), (row, desideratum)
    if mark is None:
        return NONE
    standing, low, high = (float(t[at]) for t in (card.standing, card.low, card.high))
    return f"{mark} {standing:.2f} ({low:.2f} to {high:.2f})"


def _show(card: "Scorecard") -> None:
    from probing.evaluation.scorecard.criteria import DESIDERATA

    table = new_table("method", *DESIDERATA, "passes", "time", "MB")
    for r, row in enumerate(card.rows):
        if row.refused:
            table.add_row(row.name, f"refused: {row.refused}")
            continue
        cells = [_cell(card, r, d) for d in range(len(DESIDERATA))]
        cost = row.cost
        passes = f"{cost.n_forward}+{cost.n_backward}"
        table.add_row(row.name, *cells, passes, f"{cost.relative:.1f}", f"{cost.peak_mb:.0f}")
    table.caption = "Mean rank among these methods, 0 to 1, 95 %; +, 0, -: thirds. Time in forward passes of one picture."
    show(table)
    for disagreement in card.disagreements:
        say(str(disagreement))
