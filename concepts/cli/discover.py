"""`probing discover`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from concepts.cli import common
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
    output_folder,
    pictures,
    say,
)

if TYPE_CHECKING:
    from rich.table import Table

    from concepts.discovery.learners import Learner
    from concepts.discovery.result import DiscoveryResult
    from concepts.local_vs_global.matched_pairs import MatchedConcept
    from probing.data.examples import ExampleSet
    from probing.models.loading import LoadedModel
    from probing.models.scores import Score
    from probing.store.store import ActivationStore

EXAMPLE = "probing discover torchvision:resnet18 --images photos --layer layer4 --atoms 8 --out results/discovery"

How = Literal["semi-nmf", "nmf", "k-means", "pca", "autoencoder"]


def discover(
    model: ModelArgument,
    *,
    images: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Pictures to discover in; sub-folders, if any, are names to hold atoms against."),
    ],
    layer: Annotated[str, typer.Option(help="Dotted path.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where result and page are written.")],
    atoms: Annotated[int, typer.Option(min=1, help="Directions.")] = 16,
    learner: Annotated[How, typer.Option(help="nmf is for layers without negative values.")] = "semi-nmf",
    target: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS", help="Name or number; again for more. By default the class given most often."),
    ] = None,
    matched: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=DIR",
            help="A folder of two sub-folders, matched by file names, whose pictures differ in NAME alone; again for more.",
        ),
    ] = None,
    places: Annotated[Literal["each", "mean"], typer.Option(help="Rows: each place of a map, or their mean.")] = "each",
    masks: Annotated[int, typer.Option(min=0, help="Pairs of masks for Sobol indices; 0: none.")] = 0,
    twin: Annotated[bool, typer.Option("--twin/--no-twin", help="Read the untrained network, too.")] = True,
    maps: Annotated[bool, typer.Option("--maps/--no-maps", help="Follow relevance through each atom.")] = True,
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    seed: SeedOption = 0,
    skip_unreadable: SkipOption = False,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
) -> None:
    """Find directions in a layer that nobody named, and how far each is to be believed."""
    from concepts.discovery.discovery import Discovery
    from concepts.discovery.naming import Strengths
    from concepts.discovery.page import atom_pictures, discovery_page
    from probing.models import loading
    from probing.results.csv_files import write_frame
    from probing.store.shards import default_root
    from probing.store.store import ActivationStore

    output_folder(out)  # a folder that can't be written is reported before the work
    loaded = loading.load(model, weights=weights, keys=keys, device=device)
    on_error: Literal["skip", "raise"] = "skip" if skip_unreadable else "raise"
    examples = pictures(images, loaded, on_error)
    inside = [Path(examples.name(i)).relative_to(images).parts for i in range(len(examples))]
    folders = [parts[0] for parts in inside] if all(len(p) > 1 for p in inside) else []
    store = ActivationStore(cache or default_root())
    targets = _targets(loaded, store, examples, target or [])
    pairs = [_matched(name, folder, loaded) for name, folder in named_folders(matched or [], "--matched").items()]
    method = Discovery(layer, _learner(learner, atoms, seed), places, masks=masks, twin=twin, seed=seed)
    strengths = Strengths.of_labels(folders) if len(set(folders)) > 1 else None
    result = method(store, loaded.model, examples, targets, matched=pairs, strengths=strengths)
    result.save(out)
    write_frame(out / "atoms.csv", result.to_pandas())
    first = next(iter(targets), "")
    drawn = atom_pictures(result, store, loaded.model, examples, targets[first] if maps and first else None)
    subject = f"{model}, {len(examples)} pictures of {images}"
    discovery_page(result, drawn, subject, first).save(out / "index.html")
    common.show(_table(result))
    for sentence in result.sentences():
        say(sentence)
    say(f"Saved in {out}: index.html, atoms.csv; DiscoveryResult.load({str(out)!r}) reads it back.")


def _learner(name: How, atoms: int, seed: int) -> "Learner":
    from concepts.discovery.learners import KMeans, Nmf, Pca, SemiNmf
    from concepts.discovery.sparse_autoencoder import TopKAutoencoder

    if name == "pca":
        return Pca(atoms)
    if name == "autoencoder":
        return TopKAutoencoder(atoms, active=min(8, atoms), seed=seed)
    if name == "k-means":
        return KMeans(atoms, seed)
    return Nmf(atoms, seed) if name == "nmf" else SemiNmf(atoms, seed)


def _targets(
    loaded: "LoadedModel", store: "ActivationStore", examples: "ExampleSet", given: list[str]
) -> "dict[str, Score]":
    """Return the scores asked for, or that of the class given most often; none for models without class scores."""
    from probing.models.readings import OutputError
    from probing.models.scores import Score, class_scores

    if given:
        return {name: Score(loaded.model, class_index(loaded, name)) for name in given}
    try:
        outputs = class_scores(store.activations(loaded.model, [""], examples)[""])
    except OutputError:
        return {}
    most = int(outputs.argmax(1).mode().values)
    return {loaded.classes[most] if loaded.classes else f"class {most}": Score(loaded.model, most)}


def _matched(name: str, folder: Path, loaded: "LoadedModel") -> "MatchedConcept":
    from concepts.local_vs_global.matched_pairs import MatchedConcept
    from probing.data.examples import ImageExamples, ImageFiles

    sides = sorted(p for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []
    if len(sides) != 2:
        raise CommandError(
            f"--matched {name}={folder} takes a folder with two sub-folders, got {len(sides)}: put one side of each pair in "
            "each, under the same file names."
        )
    files = [{p.name: p for p in ImageFiles.in_folder(side).paths} for side in sides]
    common = sorted(files[0].keys() & files[1].keys())
    if not common:
        raise CommandError(f"the sub-folders of {folder} have no file name in common: matched pictures have one name.")
    first, second = (ImageExamples(ImageFiles(tuple(f[n] for n in common)), loaded.preprocess) for f in files)
    return MatchedConcept(f"{name} ({sides[0].name} against {sides[1].name})", first, second, tuple(common))


def _table(result: "DiscoveryResult") -> "Table":
    from probing.results.html_report import number, p_value

    table = common.new_table(
        "atom", "stability", "p", "active, %", *(["part", "p "] if result.importance is not None else [])
    )
    for atom in range(len(result)):
        cells = [
            result.name(atom),
            number(float(result.agreement.cosine[atom])),
            p_value(float(result.agreement.p[atom])),
            number(100 * float(result.active[atom]), 1),
        ]
        if result.importance is not None:
            cells += [
                number(float(result.importance.part[0, atom]), sign=True),
                p_value(float(result.importance.p[0, atom])),
            ]
        table.add_row(*cells)
    if result.importance is not None:
        table.caption = f"Parts are those of {result.importance.targets[0]}."
    return table
