"""`probing layers`."""

from typing import TYPE_CHECKING, Annotated

import typer

from concepts.cli.common import (
    CommandError,
    KeysOption,
    ModelArgument,
    WeightsOption,
    new_table,
    show,
)

if TYPE_CHECKING:
    from torch import Tensor

    from probing.core.inputs import Inputs
    from probing.models.loading import LoadedModel

EXAMPLE = "probing layers torchvision:resnet18 'layer4.*'"


def layers(
    model: ModelArgument,
    patterns: Annotated[
        list[str] | None,
        typer.Argument(metavar="PATTERN", help="Paths or globs; all by default."),
    ] = None,
    *,
    weights: WeightsOption = None,
    keys: KeysOption = "name",
    shape: Annotated[
        str | None,
        typer.Option(metavar="C,H,W", help="The input's shape, where the model does not come with it."),
    ] = None,
) -> None:
    """List a model's layers with the shape each returns for one example, and their sizes."""
    from probing.models import loading
    from probing.models.layers import matching
    from probing.models.summary import summarize

    fetched = model.partition(":")[0] in {"timm", "torchvision", "hf"}  # shapes need no trained weights
    loaded = loading.load(model, weights=weights or ("random" if fetched else None), keys=keys)
    wanted = set(matching(loaded.model, patterns)) if patterns else None
    table = new_table("layer", "type", "output", "runs", "parameters", "weights")
    for row in summarize(loaded.model, _blank_input(loaded, shape)):
        if wanted is None or row.path in wanted:
            output = row.output if isinstance(row.output, str) else " x ".join(map(str, row.output))
            size = f"{row.weight_bytes / 1e6:,.2f} MB"
            table.add_row(row.path or "(model)", row.kind, output, str(row.calls), f"{row.parameters:,}", size)
    show(table)


def _blank_input(loaded: "LoadedModel", shape: str | None) -> "Tensor | Inputs":
    import torch
    from PIL import Image

    from probing.data.examples import examples
    from probing.models.hugging_face import TextTokens

    if shape is None and loaded.transform is None:
        raise CommandError("the model does not say what input it takes: give --shape, as in --shape 3,224,224.")
    if shape is None and isinstance(loaded.transform, TextTokens):
        return examples(["a"], loaded.transform).load([0])
    if shape is None:
        return loaded.preprocess(Image.new("RGB", (64, 64)))[None]
    try:
        return torch.zeros(1, *[int(axis) for axis in shape.split(",")])
    except (ValueError, RuntimeError):
        raise CommandError(f"--shape takes numbers with commas, as in 3,224,224, got {shape!r}.") from None
