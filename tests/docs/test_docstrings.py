"""Every example in a docstring runs and gives what it says, on small data that bear the names it uses."""

import ast
import doctest
import importlib
import importlib.util
import shutil
import tarfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from test_examples_run import load as load_stand_in
from test_howto import take_photos
from where import ROOT

from probing.models import loading

COMMON = """
import torch, torchvision
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from concepts.data.concept_sets import Concept
from probing.models import loading
from probing.store.launchers import Local
from probing.data.examples import Subset, TensorExamples
from probing.data.images import Preprocess
from probing.models.scores import Score
from probing.store.shares import Share
from probing.store.store import ActivationStore

loaded = loading.load("torchvision:resnet18")
net = model = loaded.model
generator = torch.Generator().manual_seed(0)
pictures = torch.rand(12, 3, 32, 32, generator=generator)
images = TensorExamples(pictures)
labels = torch.arange(12) % 2
store = ActivationStore("rows")
"""
ROWS = "activations = torch.randn(40, 5, generator=generator)\nactivations[:20, 0] += 3\n"
PAIRS = """
from concepts.tcav.sampling import Pairs
from probing.statistics.estimators import Logistic
from probing.statistics.row_products import SharedRows
"""
LARGE = "loaded = replace(loaded, transform=Preprocess())"  # 224 pixels
FEW = "\nmany, EmojiScenes = EmojiScenes, lambda count: many(12)\n"
MATCHED = """
from concepts.local_vs_global.matched_pairs import MatchedConcept
other = pictures.clone()
other[:, :, 2:10, 4:16] = 1 - other[:, :, 2:10, 4:16]
concept = MatchedConcept("stripes", images, TensorExamples(other))
"""
# What an example calls by name, beside the names above; whatever its module imports is there too.
OF_IMAGES = """
images = pictures
class Segmenter(nn.Module):
    def forward(self, x):
        return {"out": x.mean(1, keepdim=True) * torch.arange(21.0)[:, None, None]}
class Weigher(nn.Module):
    def forward(self, x):
        return x.flatten(1).sum(1)
segmenter, model = Segmenter().eval(), Weigher().eval()
"""
GIVEN = {
    "probing.models.scores:Score": OF_IMAGES
    + "from probing import load\nfrom probing.models.readings import Pixel\nimages = torch.rand(2, 3, 160, 120)",
    "probing.models.readings:Reading": OF_IMAGES,
    "concepts.dissection.ablation:Ablation": (
        """
from types import SimpleNamespace
classes, cat = labels, 0
result = SimpleNamespace(
    rows_of=lambda layer: torch.arange(64), iou=torch.rand(64, 3, generator=generator), unit=torch.arange(64)
)
"""
    ),
    "concepts.discovery.code_maps:AtomCodes": (
        "from concepts.discovery import SemiNmf, read_rows\nfrom probing.attribution import Saliency"
    ),
    "concepts.tcav.cav:fit_cavs": ROWS
    + PAIRS
    + """
striped = torch.arange(20)
randoms = torch.arange(20, 40).expand(3, -1)
""",
    "concepts.tcav.calibrated:cav_sensitivities": ROWS
    + "rows, gradients = activations, torch.randn(7, 5, generator=generator)\n"
    + "striped, randoms = torch.arange(20), torch.arange(20, 40)",
    "concepts.tcav.cav:sort_by_concept": ROWS
    + PAIRS
    + """
from concepts.tcav.cav import fit_cavs
cavs = fit_cavs(
    SharedRows(activations), torch.arange(20), torch.arange(20, 40).expand(1, -1), Logistic(), seed=0
)
""",
    "probing.attribution.perturbation.tables:TableLIME": """
import pandas as pd
from types import SimpleNamespace
people = pd.DataFrame({"age": range(20, 80), "member": [True, False] * 30})
def predict(rows):
    return torch.tensor(rows["age"].to_numpy() / 100.0)[:, None]
pipeline = SimpleNamespace(predict_proba=predict)
""",
    "probing.core.inputs:Inputs": """
from probing.attribution.gradient import Saliency
from probing.attribution.path import IntegratedGradients
class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(9, 4), nn.Linear(4, 2)
    def forward(self, input_ids, attention_mask):
        return self.head((self.table(input_ids) * attention_mask[..., None]).sum(1))
class Views(nn.Module):
    def forward(self, image, depth):
        return (image.flatten(2).mean(2) * depth.flatten(1).mean(1, keepdim=True))
model, ids, mask = Words().eval(), torch.tensor([[3, 5], [7, 0]]), torch.tensor([[1, 1], [1, 0]])
depths = torch.rand(12, 1, 32, 32)
words, views, images = model, Views().eval(), pictures
""",
    "probing.data.examples:NamedExamples": """
ids = torch.arange(72).reshape(6, 12)
mask = torch.ones_like(ids)
""",
    "concepts.local_vs_global.compare:Compare": (
        """
from concepts.local_vs_global.matched_pairs import MatchedConcept
def changed(row, name):
    other = pictures.clone()
    other[:, :, row:row + 8, 4:16] = 1 - other[:, :, row:row + 8, 4:16]
    return MatchedConcept(name, images, TensorExamples(other))
stripes, grass = changed(2, "stripes"), changed(20, "grass")
Compare = partial(Compare, heat_maps={}, relabellings=20, pseudo_concepts=4)
"""
    ),
    "concepts.erasure.patching:Patching": MATCHED + "from concepts.erasure import Units",
    "concepts.erasure.mending:Mending": (
        "from concepts.erasure import Projection\ndotted, classes = [i % 3 == 0 for i in range(12)], labels"
    ),
    "concepts.erasure.read_used_moved:ReadUsedMoved": (
        MATCHED + "ReadUsedMoved = partial(ReadUsedMoved, controls=2, relabellings=99, bootstraps=100)"
    ),
    "concepts.dissection.dissection:Dissection": (
        """
from concepts.data.segmentation.emoji_scenes import EmojiScenes
scenes = EmojiScenes(8).scenes(loaded.preprocess)
Dissection = partial(Dissection, draws=9)
"""
    ),
    "concepts.dissection.tally:Tally": (
        """
from concepts.dissection.unit_masks import Upsampling
from concepts.dissection.protocols import PAPER
from concepts.data.segmentation.emoji_scenes import EmojiScenes
from probing.models.geometry import Layout
scenes = EmojiScenes(4).scenes(loaded.preprocess)
layout = Layout.of(net, pictures[:1], "layer4")
upsampling = Upsampling.of(layout, scenes.size, PAPER)
maps = torch.randn(4, 512, layout.height, layout.width, generator=generator)
thresholds = torch.zeros(512)
"""
    ),
    "concepts.discovery.discovery:Discovery": (
        "from concepts.discovery import Nmf\nDiscovery = partial(Discovery, refits=1, draws=19, explained=2)"
    ),
    "concepts.discovery.slices:Slices": (
        "images, labels = TensorExamples(torch.rand(60, 3, 32, 32, generator=generator)), torch.arange(60) % 2"
    ),
    "concepts.discovery.naming:Strengths.of_texts": """
from types import SimpleNamespace
space = SimpleNamespace(encode_image=lambda x: x.mean((2, 3)), encode_texts=lambda names: torch.eye(3)[: len(names)])
""",
    "concepts.discovery.learners:Nmf": "rows = torch.rand(48, 5, generator=generator)",
    "concepts.effects.concept_attribution:ConceptGradients": (
        """
from concepts.tcav.cav import mean_difference
rows = store.activations(net, ["layer3"], images)["layer3"].flatten(1)
striped, plain, dotted = torch.arange(4), torch.arange(4, 8), torch.arange(8, 12)
zebras = pictures[:2]
"""
    ),
    "concepts.data.concept_sets:random_sets": (
        """
pool = TensorExamples(torch.rand(80, 3, 4, 4, generator=generator))
concept = Concept("dots", Subset(pool, range(10)))
"""
    ),
    "concepts.tcav.tcav:Tcav.__call__": (
        """
from concepts.tcav.tcav import Tcav
Tcav = partial(Tcav, runs=2, relabellings=19, bootstraps=19)
striped = Concept("striped", Subset(images, range(9)))
zebras = Subset(images, range(9, 12))
random_photos = TensorExamples(torch.rand(40, 3, 32, 32, generator=generator))
"""
    ),
    "probing.attribution.lrp.conditional:ConditionalLRP": "images = pictures[:2]",
    "probing.attribution.lrp.lrp:LRP": "from probing.attribution.lrp.composites import EpsilonPlus\nimages = pictures[:2]",
    "probing.attribution.perturbation.interactions:PairInteractions": "images = pictures[:1]",
    "probing.attribution.priors:attribution_prior": "x, y, step = pictures[:4], torch.arange(4), 1",
    "probing.atlas:Atlas": "Atlas = partial(Atlas, projection=Pca())",
    "probing.evaluation.base:Tally": (
        """
from probing.attribution import Saliency
from probing.evaluation.curves import Deletion
deletion, method, score, inputs, names = Deletion(steps=2), Saliency(), Score(net, 1), pictures[:2], ["a", "b"]
"""
    ),
    "probing.attribution.training_data:TracIn": "print = None\n",
    "probing.evaluation.significance:PartSignificance": (
        """
from probing.attribution import Saliency
images = pictures[:2]
model = nn.Sequential(nn.Conv2d(3, 4, 5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
"""
    ),
    "probing.evaluation.rationales:Comprehensiveness": (
        """
from probing.attribution import Saliency
class Bag(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(9, 2)
    def forward(self, ids):
        return self.table(ids).sum(1)
method, loaded, texts = Saliency(), Bag().eval(), torch.randint(9, (2, 5), generator=generator)
print = lambda *said: None
"""
    ),
    "concepts.data.segmentation.labels:Scenes": (
        "from concepts.data.segmentation.emoji_scenes import EmojiScenes\n" + LARGE + FEW
    ),
    "concepts.data.segmentation.emoji_scenes:EmojiScenes": FEW,
    "concepts.data.synthetic:SyntheticImages": LARGE,
    "probing.data.examples:as_examples": LARGE,
    "probing.data.remote_images:PlacedImages": "from probing.data.examples import ImageExamples",
    "probing.data.remote_images:TarImages": "from probing.data.examples import ImageExamples\nrange = lambda n: [0, 1]\n",
    "probing.models.gradients:layer_gradients": "images = pictures",
    "probing.attribution.base:LocalMethod": "from probing import IntegratedGradients\nimages = pictures[:2]",
    "probing.evaluation.scorecard.measure:evaluate": (
        """
from probing import GradCAM, Saliency
evaluate = partial(evaluate, methods={"saliency": Saliency(), "Grad-CAM": GradCAM()})
images = pictures[:2]
"""
    ),
    "probing.interpretable_cnn:FilterLoss": (
        """
from probing.models.hooks import capture
images = pictures[:2]
net = nn.Sequential()
net.relu5 = nn.Sequential(nn.Conv2d(3, 32, 2, 5), nn.ReLU())
net.head = nn.Sequential(nn.Flatten(), nn.LazyLinear(2))
labels, categories = torch.tensor([0, 1]), torch.zeros(32, dtype=torch.long)
"""
    ),
    "probing.models.layers:expand": "from probing.models.summary import calls\nimages = pictures",
    "probing.statistics.linear_classifiers:fit_pairs": ROWS
    + PAIRS
    + """
concept, randoms = torch.arange(20).expand(3, -1), torch.arange(20, 40).expand(3, -1)
gradients = torch.randn(4, 5, generator=generator)
""",
    "probing.maximization.run:maximize": "from probing.maximization import Channel\nmaximize = partial(maximize, steps=2)",
    "probing.store.partials:accumulated": (
        """
root, RayActors = Path("."), Local
from probing.core.content_ids import content_id, model_id
from probing.statistics.streaming import Moments
def moments_of_share(share):
    found = {"layer4": Moments()}
    for _, rows in store.batches(net, ["layer4"], Subset(images, share.of(range(len(images))))):
        found["layer4"].add(rows["layer4"])
    return found
"""
    ),
    "probing.probes.sklearn_estimators:SoftmaxClassifier": (
        """
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
features = torch.randn(120, 60, generator=generator).numpy()
labels = features[:, 0] > 0
others, theirs = features[:20], labels[:20]
"""
    ),
    "probing.probes.leave_one_out:leave_out": (
        "rows = torch.randn(20, 4, generator=generator)\ntargets = torch.ones(20, 1)\ntargets[10:] = -1"
    ),
    "probing.probes.leave_one_out:leave_out_of_cav": ROWS
    + PAIRS
    + "striped, plain = torch.arange(20), torch.arange(20, 40)",
    "probing.probes.layer_probes:LayerProbes": (
        "people = list('abcdefabcdef')\nLayerProbes = partial(LayerProbes, controls=2)"
    ),
    "probing.probes.ridge:RidgeStatistics": "rows = torch.randn(60, 4, generator=generator)\nlabels = torch.arange(60) % 10",
    "probing.probes.solvers:fit_softmax": (
        """
from probing.probes.feature_tables import TableRows
features, labels = torch.randn(60, 4, generator=generator), torch.arange(60) % 10
"""
    ),
    "probing.probes.training_probes:TrainingProbes": (
        """
LayerProbes = partial(LayerProbes, controls=1)
def train_one_epoch(net):
    net.fc.weight.data += 0.01
def range(n): return [0, 1]
"""
    ),
    "probing.results.saved_names:saved_as": "from probing.results.result import Result",
    "probing.store.store:ActivationStore.gradients_of": "classes = [3, 5]",
    "probing.store.store:ActivationStore.fill": "from probing.store.requests import Request",
    "probing.statistics.streaming:Moments": "batches = pictures.split(5)",
    "probing.statistics.streaming:UpperQuantile": "examples = images",
    "probing.statistics.streaming:CountedQuantile": "activations = torch.randn(8, 3, 4, 4, generator=generator)",
    "probing.statistics.streaming:TopK": (
        "activations, indices = torch.randn(12, 3, 4, 4, generator=generator), list(range(12))"
    ),
    "probing.statistics.streaming:PairwiseIou": (
        """
upsampled, thresholds = torch.rand(4, 3, 8, 8, generator=generator), torch.tensor([0.5, 0.6, 0.7])
masks = torch.rand(4, 2, 8, 8, generator=generator) > 0.5
"""
    ),
}


def absent(package: str) -> Callable[[], bool]:
    return lambda: importlib.util.find_spec(package) is None


NOT_HERE: dict[str, tuple[str, Callable[[], bool]]] = {
    "probing.maximization.lucent:from_lucent": ("lucent is an extra", absent("lucent")),
    "probing.maximization.lucent:LucentImage.of": ("lucent is an extra", absent("lucent")),
    "concepts.data.segmentation.broden:Broden": (
        "its 2 GB are fetched by hand",
        lambda: not (ROOT / "broden1_224").exists(),
    ),
    "concepts.data.segmentation.masks:MaskedManifest": (
        "needs drawn masks, with which the tests of segmentation run it",
        lambda: (
            "MaskedManifest(data).scenes(" in (ROOT / "tests/concepts/data/test_segmentation.py").read_text(encoding="utf-8")
        ),
    ),
}
"""Examples that are not run here, why, and whether the reason holds."""


def examples() -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each docstring that has an example."""
    for package in ("probing", "concepts"):
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            yield from _inside(ast.parse(path.read_text(encoding="utf-8")), f"{module}:")


def _inside(node: ast.AST, place: str) -> Iterator[tuple[str, str]]:
    for below in ast.iter_child_nodes(node):
        if isinstance(below, ast.ClassDef | ast.FunctionDef):
            text = ast.get_docstring(below) or ""
            if ">>>" in text:
                yield f"{place}{below.name}", text
            yield from _inside(below, f"{place}{below.name}.")


EXAMPLES = dict(examples())


@pytest.mark.slow
@pytest.mark.parametrize("place", sorted(set(EXAMPLES) - set(NOT_HERE)))
def test_the_example_of_a_docstring_runs(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loading, "load", load_stand_in)
    _data(tmp_path)
    module = importlib.import_module(place.partition(":")[0])
    names = dict(vars(module)) | {"__name__": "__main__"}
    exec(COMMON, names)
    exec(GIVEN.get(place, ""), names)
    test = doctest.DocTestParser().get_doctest(EXAMPLES[place].replace("s3://", "memory://"), names, place, None, 0)
    told: list[str] = []
    runner = doctest.DocTestRunner(_Checker(), optionflags=doctest.NORMALIZE_WHITESPACE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)
        runner.run(test, out=told.append)
    assert runner.failures == 0, "".join(told)


class _Checker(doctest.OutputChecker):
    """What an example leaves unsaid may be anything."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


def _data(folder: Path) -> None:
    take_photos(folder)
    shutil.copytree(folder / "beach", folder / "photos" / "beach")
    shutil.copytree(folder / "forest", folder / "zebras")
    (folder / "data_manifests").symlink_to(ROOT / "data_manifests")
    remote = fsspec.filesystem("memory")
    for i in (0, 1):
        photo = folder / "beach" / f"IMG_{i}.jpg"
        remote.pipe(f"/bucket/photos/{i}.jpg", photo.read_bytes())
        with tarfile.open(folder / "one.tar", "w") as tar:
            tar.add(photo, f"{i}.jpg")
            (folder / "class").write_text(str(i))
            tar.add(folder / "class", f"{i}.cls")
        remote.pipe(f"/bucket/train-{i:04}.tar", (folder / "one.tar").read_bytes())


def test_what_is_not_run_has_its_reason_and_what_is_given_has_its_example() -> None:
    assert len(EXAMPLES) >= 50
    for place, (reason, holds) in NOT_HERE.items():
        assert place in EXAMPLES
        assert holds(), f"{place} can be run here, no longer: {reason}"
    assert set(GIVEN) <= set(EXAMPLES)
