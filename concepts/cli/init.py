"""`probing init`."""

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from concepts.cli.common import MODEL_REFERENCES, CacheOption, DeviceOption, KeysOption, SkipOption, WeightsOption, say

EXAMPLE = "probing init my_audit --images photos --model torchvision:resnet18"


def init(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to write; made if missing.")],
    *,
    images: Annotated[
        str,
        typer.Option(
            metavar="DIR",
            help="A folder with a folder of pictures for each concept; or a data set: saved by save_to_disk, a .parquet "
            "file, or hub:OWNER/NAME.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help=MODEL_REFERENCES),
    ],
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Classes to ask about, by name or number; by default the model's best guesses.",
        ),
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Path or glob, as 'layer?'; again for more. By default the ends of the model's stages."),
    ] = None,
    random: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Pictures of anything, that concepts are compared with; a folder 'random' among the images does as well.",
        ),
    ] = None,
    matched: Annotated[
        bool,
        typer.Option("--matched", help="Pictures of one name in two folders differ in the concept alone."),
    ] = False,
    grouped: Annotated[
        bool,
        typer.Option("--grouped", help="Folders inside a concept's hold pictures that belong together."),
    ] = False,
    most: Annotated[int, typer.Option(min=10, help="Pictures of a concept at most.")] = 100,
    skip_unreadable: SkipOption = False,
    split: Annotated[str, typer.Option(help="Of a data set.")] = "train",
    column: Annotated[str | None, typer.Option(help="Of a data set: what names the concepts.")] = None,
    image_column: Annotated[str, typer.Option(help="Of a data set: what holds the pictures.")] = "image",
    licence: Annotated[str, typer.Option(help="By which licence or consent you hold the pictures.")] = "not stated",
    source: Annotated[str, typer.Option(help="Where the pictures come from.")] = "not stated",
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    device: DeviceOption = "auto",
    cache: CacheOption = None,
) -> None:
    """Write a first audit of a model by your own pictures: a commented audit file and its manifests."""
    from concepts.auditing.init.draft_audit import Begin
    from concepts.data.image_folders import Choice

    named = [name.strip() for name in (classes or "").split(",")]
    begin = Begin(
        out=out,
        images=images,
        model=model,
        weights=weights,
        keys=keys,
        classes=tuple(name for name in named if name),
        layers=tuple(layer or ()),
        random=random,
        matched=matched,
        choice=Choice(most, grouped, skip_unreadable),
        split=split,
        image_column=image_column,
        column=column,
        licence=licence,
        source=source,
        force=force,
        command=" ".join(f"probing {shlex.join(sys.argv[1:])}".split()),
        device=device,
        cache=cache,
    )
    begin(say)
