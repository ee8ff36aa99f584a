"""A network sharded by `fully_shard` on two ranks, read beside the same one whole: `torchrun … sharded_worker.py FOLDER`."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import nets
import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from probing.core.content_ids import model_id
from probing.core.foreign import ForeignHookError
from probing.data.examples import TensorExamples
from probing.models.gradients import layer_gradients
from probing.models.hooks import capture, edit
from probing.models.scores import Score
from probing.store.requests import ShardedModelError
from probing.store.store import ActivationStore

LAYERS = ["features.0", "features.2", ""]


def read(net: nn.Module) -> dict[str, torch.Tensor]:
    """Return what a reader may want of a network."""
    images = nets.images(3)
    found = {}
    with torch.no_grad():
        for name, stop in (("whole", False), ("stopped", True), ("stopped again", True)):
            layers = LAYERS[:2] if stop else LAYERS
            with capture(net, layers, stop=stop) as kept:
                net(images)
            found |= {f"{name} {layer}": rows for layer, rows in kept.items()}
        with edit(net, {"features.0": lambda _, __, output: output * 2}):
            found["edited"] = net(images)
    for layer, pair in layer_gradients(Score(net, 1), images, LAYERS[:2]).items():
        found[f"gradient {layer}"] = pair[1]
    return found


def main(folder: Path) -> None:
    """Compare, and write what was found."""
    distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
    whole, sharded = (nets.seeded(nets.ConvNet()) for _ in range(2))
    for module in (sharded.features[0], sharded.features[2], sharded.head, sharded):  # type: ignore[index]
        fully_shard(module, mesh=mesh)
    expected, got = read(whole), read(sharded)
    found = {name: torch.equal(value, got[name]) for name, value in expected.items()}
    found["one id"] = model_id(sharded) == model_id(whole)
    try:
        ActivationStore().activations(sharded, LAYERS, TensorExamples(nets.images(3)))
    except ShardedModelError as error:
        found[str(error)] = True
    with torch.no_grad():
        sharded.get_parameter("features.0.bias").add_(1)
    found["another id after one weight changed"] = model_id(sharded) != model_id(whole)
    sharded.features[0].register_forward_hook(lambda *_: None)  # type: ignore[index]
    try:
        model_id(sharded)
    except ForeignHookError:
        found["foreign hook refused"] = True
    rank = distributed.get_rank()
    (folder / f"rank-{rank}.json").write_text(json.dumps(found))
    distributed.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
