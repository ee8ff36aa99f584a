"""Four layers of a ResNet-18 into memory and to disk, against a bare forward pass and captum.

    python experiments/benchmarks/extraction.py --out extraction.json [--tiny] [--device cuda] [--count 20000 --size 64]

`floor` is a forward pass of the prepared model (channels_last, BatchNorm folded, micro-batches) that keeps nothing;
`floor, kept` copies the layers' outputs to one tensor each, with plain hooks and nothing else: the least that rows cost;
`floor, written` writes these to a file each besides, on a second thread and with one sync at the end, without any checksum;
`eager` is the model as given in batches of 32. `ours (bf16)` is `Precision("fast")`, and on a CUDA device `ours (tf32)`
computes as captum does there.
"""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import torch
import torchvision
from captum.attr import LayerActivation
from harness import Row, arguments, has_bf16, race, report
from torch import Tensor, nn

from probing.data.examples import TensorExamples
from probing.models.precision import Precision, Prepared
from probing.store.store import ActivationStore

LAYERS = ["layer1", "layer2", "layer3", "layer4"]


def bare_forward(net: Prepared, images: Tensor, batch: int) -> None:
    """Pass all images forward and keep nothing."""
    with torch.no_grad(), net.arithmetic():
        for part in images.split(batch):
            net.model(net.inputs(part))


def kept_forward(
    net: Prepared, images: Tensor, batch: int, after: Callable[[dict[str, Tensor]], object] = lambda _: None
) -> dict[str, Tensor]:
    """Pass all images forward and keep what the layers return, of which `after` gets each batch."""
    kept: dict[str, Tensor] = {}
    start = 0

    def keep(layer: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: Tensor) -> None:
            if layer not in kept:
                kept[layer] = output.new_empty((len(images), *output.shape[1:]))
            kept[layer][start : start + len(output)] = output

        return hook

    hooks = [net.model.get_submodule(layer).register_forward_hook(keep(layer)) for layer in LAYERS]
    try:
        with torch.no_grad(), net.arithmetic():
            for part in images.split(batch):
                net.model(net.inputs(part))
                after({layer: rows[start : start + len(part)] for layer, rows in kept.items()})
                start += len(part)
    finally:
        for hook in hooks:
            hook.remove()
    return kept


def written_forward(net: Prepared, images: Tensor, batch: int) -> dict[str, Tensor]:
    """Pass all images forward, and keep and write what the layers return."""
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread, ExitStack() as stack:
        files = {layer: stack.enter_context((Path(folder) / layer).open("wb", buffering=0)) for layer in LAYERS}

        def write(rows: dict[str, Tensor]) -> None:
            for layer, part in rows.items():
                files[layer].write(part.cpu().numpy().data)

        kept = kept_forward(net, images, batch, lambda rows: thread.submit(write, rows))
        for file in files.values():
            thread.submit(os.fsync, file.fileno()).result()
    return kept


def main() -> list[Row]:
    """Run the benchmark."""
    args = arguments("Extraction of four ResNet-18 layers.", numbers=("count", "size"))
    count, size = (8, 64) if args.tiny else (args.count or 256, args.size or 224)
    images = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    examples = TensorExamples(images)
    examples.ids  # noqa: B018  hashed before the clock starts: the ids belong to the data set
    device = args.device
    net = torchvision.models.resnet18(weights=None).to(device).eval()
    exact, fast = Precision("float32"), Precision("fast")
    given = Precision("reference")
    rounded, cuda = Precision("tf32"), device.type == "cuda"
    prepared = {p: p.prepare(net, LAYERS, device, images) for p in (exact, fast, given, *([rounded] if cuda else []))}
    in_batch = 8 if device.type == "cpu" else 128
    batch = max(1, min(128, in_batch * 3 * 224 * 224 // images[0].numel()))

    def ours(precision: Precision, *, disk: bool) -> dict[str, Tensor]:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) if disk else None
            store = ActivationStore(root, device=device, precision=precision, budget_bytes=8 << 30, progress=False)
            return store.activations(net, LAYERS, examples)

    def captum() -> list[Tensor]:
        reader = LayerActivation(net, [getattr(net, layer) for layer in LAYERS])
        with torch.no_grad():
            parts = [reader.attribute(part.to(device)) for part in images.split(32)]
        return [torch.cat(layer) for layer in zip(*parts, strict=True)]

    def gap(mine: object, theirs: object) -> str:
        pairs = zip(mine.values(), theirs, strict=True)  # type: ignore[attr-defined, call-overload]
        return f"largest difference {max(float((a - b).abs().max()) for a, b in pairs):.1g}"

    contenders: dict[str, Callable[[], object]] = {
        "floor": lambda: bare_forward(prepared[exact], images, batch),
        "floor, kept": lambda: kept_forward(prepared[exact], images, batch),
        "floor, written": lambda: written_forward(prepared[exact], images, batch),
        "eager": lambda: bare_forward(prepared[given], images, 32),
        "ours": lambda: ours(exact, disk=False),
        "ours to disk": lambda: ours(exact, disk=True),
        "captum": captum,
    }
    if has_bf16() or device.type == "cuda" or args.tiny:
        contenders["floor (bf16)"] = lambda: bare_forward(prepared[fast], images, batch)
        contenders["ours (bf16)"] = lambda: ours(fast, disk=False)
    if cuda:
        contenders["floor (tf32)"] = lambda: bare_forward(prepared[rounded], images, batch)
        contenders["ours (tf32)"] = lambda: ours(rounded, disk=False)
    rows = race(f"four layers of {count} images", contenders, args.rounds, {"captum": gap})
    report(rows, args.out)
    seconds = {row.who: row.seconds for row in rows}
    for who in (who for who in seconds if who.startswith("ours")):
        print(f"{who} ÷ eager: {seconds[who] / seconds['eager']:.2f}")
    if not has_bf16() and device.type == "cpu":
        print("This CPU has no bfloat16 instructions: bf16 is not measured.")
    return rows


if __name__ == "__main__":
    main()
