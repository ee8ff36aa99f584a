"""Look up what other libraries have: for each ability, the class or function of that name, or a dash.

    python docs/peers.py [--source NetDissect-Lite=FOLDER] > table.md

Names are read from the source of the installed packages, of which nothing is run; a library that is missing has no column.
`pip install -e '.[lucent,peers]'` brings those that pip knows; NetDissect-Lite is a folder of scripts, to be cloned.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN = "this suite"
PACKAGES = {"captum": "captum", "zennit": "zennit", "lucent": "torch-lucent", "quantus": "quantus", "lime": "lime"}
"""Packages by the name they are imported by, with the name they are installed by."""
ABILITIES = {
    "gradients": "Saliency Gradient",
    "guided backprop": "GuidedBackprop",
    "SmoothGrad": "SmoothGrad NoiseTunnel",
    "integrated gradients": "IntegratedGradients",
    "guided integrated gradients": "GuidedIG",
    "blur integrated gradients": "BlurIG",
    "XRAI": "XRAI",
    "expected gradients": "ExpectedGradients GradientShap",
    "DeepLIFT": "DeepLIFT DeepLift",
    "DeepSHAP": "DeepSHAP DeepLiftShap",
    "Grad-CAM": "GradCAM LayerGradCam",
    "CAM, HiResCAM, LayerCAM, Ablation-CAM": "CAM HiResCAM LayerCAM AblationCAM",
    "Score-CAM, XGrad-CAM, Eigen-CAM, Finer-CAM": "ScoreCAM XGradCAM EigenCAM FinerCAM",
    "LRP": "LRP Composite",
    "canonizers for LRP": "Canonizer",
    "LIME of images": "LIME Lime LimeImageExplainer",
    "LIME of texts": "TextLIME LimeTextExplainer",
    "LIME of tables": "TableLIME LimeTabularExplainer",
    "Shapley values": "Shapley KernelShap ShapleyValues",
    "Owen values": "Owen",
    "Sobol indices": "Sobol",
    "interactions of parts": "PairInteractions",
    "occlusion": "Occlusion",
    "feature ablation": "FeatureAblation",
    "RISE": "RISE",
    "conductance": "LayerConductance",
    "internal influence": "InternalInfluence",
    "attributions of the next token": "NextToken LLMAttribution",
    "influence of training data": "TracIn TracInCP",
    "adversarial attacks": "PGD",
    "TCAV": "Tcav TCAV",
    "linear probes": "LayerProbes",
    "network dissection": "Dissection FeatureOperator",
    "activation maximisation": "maximize render_vis",
    "activation atlas": "Atlas",
    "filters that stand for parts": "FilterLoss",
    "pixel flipping": "PixelFlipping",
    "ROAD": "Road ROAD",
    "IROF": "Irof IROF",
    "rationales of texts": "Comprehensiveness",
    "monotonicity": "Monotonicity MonotonicityCorrelation",
    "parameter randomisation": "CascadingRandomisation MPRT",
    "randomisation by complexity, or smooth": "EfficientRandomisation SmoothRandomisation EfficientMPRT SmoothMPRT",
    "pointing game": "PointingGame",
    "infidelity": "Infidelity infidelity",
    "sensitivity to noise": "MaxSensitivity sensitivity_max",
    "TensorFlow models": "TensorFlowModel",
}
"""Names that an ability goes by, in any of the libraries."""


def names(folder: Path) -> Iterator[str]:
    """Yield the public classes and functions of the modules below a folder."""
    for path in folder.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found = (ast.ClassDef, ast.FunctionDef)
        yield from (node.name for node in tree.body if isinstance(node, found))


def installed() -> dict[str, list[Path]]:
    """Return the folders of this suite and of every library that is here, by its name and version."""
    folders = {OWN: [ROOT / "probing", ROOT / "concepts"]}
    for package, project in PACKAGES.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            continue
        try:
            release = ".".join(version(project).split(".")[:3])
        except PackageNotFoundError:
            continue
        folders[f"{package} {release}"] = [Path(spec.origin).parent]
    return folders


def table(folders: Mapping[str, Sequence[Path]]) -> list[list[str]]:
    """Return the rows of the table, its header first."""
    own = {library: {n for folder in paths for n in names(folder)} for library, paths in folders.items()}
    rows = [["", *folders]]
    for ability, known in ABILITIES.items():
        found = [[f"`{n}`" for n in known.split() if n in own[library]] for library in folders]
        rows.append([ability, *(", ".join(cell) or "—" for cell in found)])
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What other libraries have, by the names in their source.")
    parser.add_argument("--source", action="append", default=[], metavar="NAME=FOLDER")
    folders = installed()
    for word in parser.parse_args().source:
        name, _, folder = word.partition("=")
        if not Path(folder).is_dir():
            parser.error(f"there is no folder {folder!r}.")
        folders[name] = [Path(folder)]
    header, *rows = table(folders)
    lines = [header, ["---"] * len(header), *rows]
    sys.stdout.write("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()
