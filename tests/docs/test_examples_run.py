"""Every example runs: README, pages beside the how-to ones, help pages. What can't run here says why, and that is checked.

A stand-in with the layers and classes of a ResNet-18 takes the place of fetched weights; pictures are made.
"""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from glob import glob
from pathlib import Path

import click
import pytest
import torch
import typer.main
from PIL import Image
from test_howto import blocks, take_photos
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights
from torchvision.models.resnet import BasicBlock
from where import ROOT

from concepts.auditing import run as auditing
from concepts.auditing.measurement.results import AuditResults
from concepts.cli import app
from concepts.data.segmentation.emoji_scenes import EmojiScenes
from probing.data.examples import ImageExamples, ImageFiles
from probing.data.images import Preprocess
from probing.models import loading
from probing.store.launchers import Local
from probing.store.store import ActivationStore

LOAD = loading.load


class SmallResNet(nn.Module):
    """The layers of a ResNet-18 by name, narrow, for pictures of 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = _stage(8, 8, 1)
        self.layer2 = _stage(8, 16, 2)
        self.layer3 = _stage(16, 64, 2)
        self.layer4 = _stage(64, 64, 1)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits


def _stage(planes: int, out: int, stride: int) -> nn.Sequential:
    smaller = nn.Sequential(nn.Conv2d(planes, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    return nn.Sequential(BasicBlock(planes, out, stride, smaller), BasicBlock(out, out))


def load(reference: str, **settings: object) -> loading.LoadedModel:
    """Return the stand-in for what would be fetched; all else is loaded as ever."""
    if not re.fullmatch(r"torchvision:resnet\d+", reference) or settings.get("weights"):
        return LOAD(reference, **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SmallResNet().eval()
    entry = ResNet18_Weights.DEFAULT
    classes = tuple(entry.meta["categories"])
    return loading.LoadedModel(model, Preprocess(size=32, resize=36), classes, reference, str(entry))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples name."""
    folder = tmp_path_factory.mktemp("world")
    take_photos(folder)
    for old, new in (("beach", "striped"), ("forest", "zebras"), ("street", "random")):
        shutil.copytree(folder / old, folder / "photos" / new)
    for where, count, red in (("photos/random", 24, 0), ("striped", 12, 5), ("zebras", 4, 7)):
        (folder / where).mkdir(exist_ok=True)
        for i in range(count):
            plain = Image.new("RGB", (48, 40), (red + 10 * i, 200 - 5 * i, 100))
            plain.save(folder / where / f"plain_{i}.jpg")
    shutil.copy(folder / "beach" / "IMG_0.jpg", folder / "zebra.jpg")
    shutil.copytree(ROOT / "data_manifests", folder / "data_manifests")
    shutil.copy(folder / "beach" / "IMG_1.jpg", folder / "okapi.jpg")
    loaded = load("torchvision:resnet18")
    images = ImageExamples(ImageFiles.in_folder(folder / "zebras"), loaded.preprocess)
    ActivationStore(folder / "results" / "cache").activations(loaded.model, ["fc"], images)
    return folder


@pytest.fixture
def here(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(world)
    monkeypatch.setenv("PROBING_CACHE", str(world / "rows"))
    monkeypatch.setattr(loading, "load", load)
    # slow to draw, and drawn by the tests of reports
    monkeypatch.setattr(auditing, "write_report", lambda out, _: AuditResults.load(out))
    return world


def run(line: str) -> None:
    """Run a command line as a shell would, in this process."""
    words = [found for word in shlex.split(line) for found in (sorted(glob(word)) or [word])]  # noqa: PTH207
    assert words[0] == "probing", f"a reader can't run {line!r}"
    assert app.main(words[1:]) == 0, line


# Command lines


def in_makefile(line: str) -> bool:
    return f".venv/bin/{line}\n" in (ROOT / "Makefile").read_text(encoding="utf-8")


NOT_HERE: dict[str, tuple[str, Callable[[str], bool]]] = {
    "probing audit experiments/audits/occupations.yaml --out results/occupations": (
        "takes minutes: `make audit` runs it, in CI too",
        in_makefile,
    ),
}
"""Lines that are not run here, why, and what shows that the reason holds."""
FIRST = {
    "probing report results/occupations": (
        "probing init my_report --images photos --model torchvision:resnet18",
        "probing audit my_report/audit.yaml --out results/occupations",
    ),
    "probing mend people/audit.yaml --by projection --out results/mended": (
        "probing init people --images photos --matched --model torchvision:resnet18",
    ),
}
"""Lines that must have been run before another."""
LESS = {
    "probing maximize": "--steps 4",
    "probing dissect": "--images 12 --draws 9",
    "probing evaluate": "--no-network --method saliency --method gradcam",
}
"""Options that make a command's example quick; none of those on its help page changes."""


def helped(command: click.Command, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield the path of each command, and the example on its help page."""
    yield " ".join(("probing", *path)), (command.epilog or "").removeprefix("Example: ")
    for name, below in getattr(command, "commands", {}).items():
        yield from helped(below, (*path, name))


HELP = dict(helped(typer.main.get_command(app.app)))


def test_every_help_page_has_an_example_of_its_own_command() -> None:
    assert len(HELP) >= 15
    for command, example in HELP.items():
        assert example.startswith(command), command


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tensorflow not installed")  # says umap, which does without
@pytest.mark.parametrize("line", sorted(set(HELP.values()) - set(NOT_HERE)))
def test_the_example_of_a_help_page_runs(line: str, here: Path) -> None:
    for first in FIRST.get(line, ()):
        run(first)
    run(f"{line} {LESS.get(' '.join(line.split()[:2]), '')}")


def test_what_is_not_run_here_is_an_example_and_has_its_reason() -> None:
    for line, (reason, holds) in NOT_HERE.items():
        assert line in HELP.values()
        assert holds(line), reason


# Pages


SHELL = {
    "make": lambda words: f"\n{words[1]}: " in (ROOT / "Makefile").read_text(encoding="utf-8"),
    "pip": lambda words: words[1:] == ["install", "."] and (ROOT / "pyproject.toml").exists(),
    ".venv/bin/pre-commit": lambda words: (ROOT / ".pre-commit-config.yaml").exists(),
}
"""Programs other than ours in the README's blocks, and whether what they ask for is there."""


@pytest.mark.slow
def test_every_block_of_the_readme_runs(here: Path) -> None:
    shutil.rmtree(here / "my_audit", ignore_errors=True)
    names: dict[str, object] = {"__name__": "readme"}
    ran = {"python": 0, "probing": 0}
    for block in blocks(ROOT / "README.md"):
        if block.language == "python":
            exec(compile(block.text, "README.md", "exec"), names)
            ran["python"] += 1
            continue
        assert not block.language
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            if words[0] == "probing":
                run(line)
                ran["probing"] += 1
            else:
                assert SHELL[words[0]](words), line
    assert ran == {"python": 1, "probing": 2}
    assert names["maps"].values.shape[0] == 2
    text = (ROOT / "README.md").read_text(encoding="utf-8").split("\n## ")
    [text] = [section for section in text if section.startswith("In Python")]
    [example] = re.findall(r"`(pb\.examples\([^`]+\))`", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    exec("\n".join(IMPORTS), names)
    calls = re.findall(r"`((?:pb\.)?[A-Z]\w*\([^`]*\)\([^`]*\)|pb\.maximize\([^`]+\))`", text)
    data = eval(example, names)
    names |= {
        "examples": data,
        "labels": data.labels,
        "scenes": EmojiScenes(12).scenes(names["loaded"].preprocess),
    }
    assert len(calls) == 3
    for call in calls:
        assert eval(call, names).provenance.method, call


IMPORTS = (
    "from concepts import Dissection",
    "from probing.maximization import Channel",
    "from torchvision.datasets import ImageFolder",
)


def test_the_pages_beside_the_how_to_ones_run(here: Path) -> None:
    """Their blocks need a store, a model and examples, as their text says; a job script needs a scheduler."""
    loaded = load("torchvision:resnet18")
    images = ImageExamples(ImageFiles.in_folder("zebras"), loaded.preprocess)
    names: dict[str, object] = {
        "store": ActivationStore(here / "rows"),
        "model": loaded.model,
        "net": loaded.model,
        "images": images,
        "examples": images,
        "engine": Local(),
    }
    exec(PAGES_IMPORT, names)
    ran = []
    for name in ("operators", "cluster"):
        for block in blocks(ROOT / "docs" / f"{name}.md"):
            if block.language == "python":
                text = block.text.replace("/shared/parts", str(here / "parts"))
                exec(compile(text, f"{name}.md", "exec"), names)
            else:
                assert block.language == "bash"
                assert "#SBATCH" in block.text
                assert shutil.which("sbatch") is None, "here it can be run: do so"
                [line] = [ln for ln in block.text.splitlines() if ln.startswith("probing ")]
                parsed(line.replace("FILE.yaml", str(ROOT / "experiments/audits/occupations.yaml")))
            ran.append((name, block.language))
    assert ran == [("operators", "python"), ("cluster", "bash"), ("cluster", "python")]
    assert names["whole"]["layer4"].value().mean.shape[0] == 64  # type: ignore[index]


PAGES_IMPORT = """
from pathlib import Path
from probing.data.examples import Subset
from probing.core.content_ids import content_id, model_id
from probing.store.partials import Parts, accumulated
from probing.store.store import ActivationStore
from probing.statistics.streaming import Moments
"""


def parsed(line: str) -> None:
    """Check that a command line is one of ours, without running it."""
    words = shlex.split(line)
    command = typer.main.get_command(app.app)
    context = command.make_context("probing", words[1:], resilient_parsing=False)
    name, below, rest = command.resolve_command(context, [*context._protected_args, *context.args])  # type: ignore[attr-defined]
    below.make_context(name, rest)
