"""Heat maps beside swaps and TCAV in an audit: a planted bias with a place of its own, and one without."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import audits
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from concepts.auditing.analyses import ANALYSES, heat_maps as analysis
from concepts.auditing.analyses.heat_maps import HeatMapComparison, HeatMaps
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import Material
from concepts.auditing.measurement.spec import read_audit
from concepts.auditing.run import audit, rebuild
from concepts.local_vs_global.result import HIDDEN
from probing.attribution.base import Attribution, AttributionMethod
from probing.attribution.gradient import GradientTimesInput
from probing.models.geometry import RefusedError
from probing.models.scores import Score
from probing.results.html_report import Plate, Points, plain
from probing.results.result import Result
from probing.store.store import ActivationStore


def write_drawings(folder: Path, roles: int = 10) -> None:
    """Write figures in which gender shows as red in one square, and tone as green everywhere."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for role in range(roles):
        base = rng.uniform(90, 160, 3)
        for tone, green in (("light", 12), ("dark", -12)):
            for gender, red in (("woman", 60), ("man", -60), ("person", 0)):
                pixels = np.tile(base + (green + rng.normal(0, 2)) * np.array([0, 1, 0]), (8, 8, 1))
                pixels[2:5, 3:6, 0] += red + rng.normal(0, 4)
                name = f"{role}-{tone}-{gender}.png"
                Image.fromarray(pixels.round().astype(np.uint8)).save(folder / name)
                digest = hashlib.sha256((folder / name).read_bytes()).hexdigest()
                rows.append([name, digest, f"role {role}", gender, tone])
    matched = [
        {"vary": "gender", "within": ["role", "tone"], "cluster": "role"},
        {"vary": "tone", "within": ["role", "gender"], "cluster": "role"},
    ]
    audits._manifest(folder / "data.yaml", ["file", "sha256", "role", "gender", "tone"], rows, matched)


class Refuses:
    """A heat map that no model admits."""

    def __call__(self, score: Score, inputs: Tensor) -> Attribution:
        raise RefusedError("this network has no such thing.")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an audit that was run, of a map that is made and one that is refused."""
    root = tmp_path_factory.mktemp("heat-maps")
    write_drawings(root)
    statistics = {
        "relabellings": 1023,
        "bootstraps": 100,
        "pseudo_concepts": 39,
        "runs": 2,
        "divisions": 5,
    }
    changes = {"analyses": ["heat_maps"], "concepts": [], "random": None, "statistics": statistics}
    file = audits.audit_file(root, changes)
    maps: Mapping[str, AttributionMethod] = {"gxi": GradientTimesInput(), "other": Refuses()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(analysis, "HEAT_MAPS", maps)
        audit(file, root / "out", store_root=root / "store", progress=False, say=lambda _: None)
    return root


def saved(folder: Path) -> HeatMapComparison:
    found = Result.load(folder / "out" / "analyses" / "heat_maps")
    assert isinstance(found, HeatMapComparison)
    return found


def test_a_map_shows_what_has_a_place_and_hides_what_has_none(folder: Path) -> None:
    found = saved(folder).comparison
    assert found.layer == "mix"
    gender, tone = found.concepts
    purse, drill, vase = (found.targets.index(t) for t in ("purse", "drill", "vase"))
    gxi, swap = found.measures.index("gxi"), found.measures.index("swap")
    assert found.area.tolist() == pytest.approx([9 / 64, 1])
    assert found.significant[gxi, 0, purse]
    assert found.value[gxi, 0, purse] > 0.02
    assert found.significant[gxi, 0, drill]
    assert found.value[gxi, 0, drill] * found.value[swap, 0, drill] > 0
    assert not found.significant[swap, 0, vase]
    assert found.significant[swap, 1, vase]
    parted = {(p.concept, p.target, p.kind) for p in found.partings()}
    assert (tone, "vase", HIDDEN) in parted
    assert not [p for p in parted if p[:2] == (gender, "purse")]


def test_the_report_says_what_is_hidden_and_shows_it_from_what_was_saved(folder: Path) -> None:
    results, found = AuditResults.load(folder / "out"), saved(folder)
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "What TCAV found and the heat maps hide, and the reverse" in page
    rebuild(folder / "out")
    assert (folder / "out" / "report.html").read_text(encoding="utf-8") == page
    [finding] = HeatMaps().findings(results, found)
    assert finding.claim.startswith("Heat maps (gxi) show 3 of ")
    assert "vase (dark against light)" in finding.evidence
    section = HeatMaps().section(results, found)
    texts = [line for block in section.blocks if isinstance(block, Points) for line in map(plain, block.items)]
    assert any(line.startswith("vase, dark against light: found by") for line in texts)
    assert any(line.startswith("Dark against light changes 100% of the pixels") for line in texts)
    assert "other is left out: this network has no such thing." in texts
    assert sum(isinstance(block, Plate) for block in section.blocks) == 2
    for stem in ("readings_agreement", "readings_part"):
        assert (folder / "out" / "figures" / f"{stem}.pdf").exists()


def test_the_pictures_are_of_the_pair_that_moves_most(folder: Path) -> None:
    found = saved(folder)
    first = found.shown[0]
    assert first.parting.kind == HIDDEN
    assert first.images.shape == (4, 8, 8, 3)
    c = found.comparison.concepts.index(first.parting.concept)
    t = found.comparison.targets.index(first.parting.target)
    swaps = found.comparison.by_pair[found.comparison.measures.index("swap"), c, t].abs()
    looked = ~found.comparison.by_pair[found.comparison.measures.index("gxi"), c, t].isnan()
    most = int(torch.where(looked, swaps, -1).argmax())
    assert first.parting.pairs == (found.comparison.pairs[c][most],)


def test_activations_gradients_and_logits_are_the_audits_own_rows(folder: Path) -> None:
    file = folder / "audit.yaml"
    material = Material.of(read_audit(file), file.parent)
    store = ActivationStore(folder / "store", progress=False)
    before = store.stats.forward_rows, store.stats.backward_rows
    found = ANALYSES["heat_maps"].measure(material, store)
    assert isinstance(found, HeatMapComparison)
    assert (store.stats.forward_rows, store.stats.backward_rows) == before
    own = saved(folder).comparison
    for name in ("swap", "tcav", "effect", "concept attribution"):
        torch.testing.assert_close(
            found.comparison.value[found.comparison.measures.index(name)],
            own.value[own.measures.index(name)],
        )
