"""What an audit looks at besides swaps and TCAV: measured on the audit's own rows, saved, and told from what was saved."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import get_args

import audits
import pytest
import torch
from matplotlib.figure import Figure

from concepts.auditing import analyses
from concepts.auditing.analyses import ANALYSES, Analysis
from concepts.auditing.analyses.atlas import Atlases, AttributeAtlases, chance, neighbours
from concepts.auditing.analyses.discovery import Atoms, AttributeAtoms
from concepts.auditing.analyses.dissection import AttributeUnits, Units
from concepts.auditing.analyses.dreams import ConceptDreams, Dreams, _ways
from concepts.auditing.analyses.probes import AttributeProbes, Probes
from concepts.auditing.analyses.read_used_moved import Use
from concepts.auditing.measurement.results import AuditResults
from concepts.auditing.measurement.setup import Material
from concepts.auditing.measurement.spec import AnalysisName, read_audit
from concepts.auditing.report import sections
from concepts.auditing.report.page import audit_page
from concepts.auditing.run import audit, rebuild
from concepts.data.manifest import Pairs
from concepts.data.yaml_schema import SchemaError
from concepts.erasure.table import ReadUsedMovedResult
from probing.models.scores import Score
from probing.results.html_report import plain
from probing.results.result import Result
from probing.statistics.hypothesis_tests import TooFewError
from probing.store.store import ActivationStore


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an audit with all analyses that was run."""
    root = tmp_path_factory.mktemp("analyses")
    file = audits.audit_file(root, {"analyses": ["tcav", *ANALYSES], "scenes": 6})
    audit(file, root / "out", store_root=root / "store", progress=False, say=lambda _: None)
    return root


def test_an_audit_file_may_name_every_analysis_and_no_other(tmp_path: Path) -> None:
    assert set(get_args(AnalysisName)) == {"tcav", *ANALYSES}
    assert all(isinstance(analysis, Analysis) for analysis in ANALYSES.values())
    with pytest.raises(SchemaError, match="analyses"):
        read_audit(audits.audit_file(tmp_path, {"analyses": ["horoscope"]}))
    with pytest.raises(SchemaError, match="'probes' stands twice"):
        read_audit(audits.audit_file(tmp_path, {"analyses": ["probes", "probes"]}))


def test_analyses_are_told_in_the_report_from_what_was_saved(folder: Path) -> None:
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Where the attributes are readable" in page
    assert "Readable does not mean used" in page
    assert "What the directions point at" in page
    assert "Control: sides swapped in half of the roles" in page
    assert (folder / "out" / "figures" / "probes_2.pdf").exists()
    assert (folder / "out" / "figures" / "dreams_2.pdf").exists()
    rebuild(folder / "out")
    assert (folder / "out" / "report.html").read_text(encoding="utf-8") == page


def test_whoever_composes_a_report_draws_and_writes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def files() -> dict[Path, tuple[bytes, int]]:
        return {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}

    monkeypatch.setattr(Figure, "__init__", lambda *_, **__: pytest.fail("a figure was drawn"))
    before = files()
    page = audit_page(AuditResults.load(folder / "out"), folder / "out", {})
    assert {s.title for s in page.sections} >= {"Where the attributes are readable", "What the directions point at"}
    assert files() == before


def test_no_section_is_told_where_it_will_lie() -> None:
    found = [
        function
        for package in (sections, analyses)
        for part in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for function in _functions(importlib.import_module(part.name))
    ]
    named = {function.__name__ for function in found}
    assert named >= {"section", "scores_section", "changes_section", "likeness_section", "reproduction_section"}
    for function in found:
        taken = inspect.signature(function).parameters
        assert "folder" not in taken, function.__qualname__
        assert not any("Path" in str(p.annotation) for p in taken.values()), function.__qualname__


def _functions(module: ModuleType) -> Iterator[FunctionType]:
    """Yield the functions that a module defines, and the methods that its classes do."""
    own = [one for one in vars(module).values() if getattr(one, "__module__", "") == module.__name__]
    for one in (*own, *(part for kind in own if inspect.isclass(kind) for part in vars(kind).values())):
        if inspect.isfunction(one):
            yield one


def test_probes_read_the_attributes_that_contrasts_vary_and_pass_only_the_untrained_net(
    folder: Path,
) -> None:
    file = folder / "audit.yaml"
    material, store = Material.of(read_audit(file), file.parent), ActivationStore()
    data = material.subset(range(60))
    store.activations(material.loaded.model, material.layers, data, pool="mean")
    before = store.stats.forward_rows
    found = Probes().measure(material, store)
    assert store.stats.forward_rows - before == len(set(data.ids))  # random weights, once
    assert found.attributes == ("gender", "tone")
    saved = Result.load(folder / "out" / "analyses" / "probes")
    assert isinstance(saved, AttributeProbes)
    for probe, other in zip(found.probes, saved.probes, strict=True):
        assert probe.layers == ("features", "mix")
        assert probe.grouped
        torch.testing.assert_close(probe.error, other.error)
    assert found.probes[0].majority_error == pytest.approx(2 / 3)


def test_an_attribute_is_called_readable_only_where_its_interval_says_so(folder: Path) -> None:
    results = AuditResults.load(folder / "out")
    saved = Result.load(folder / "out" / "analyses" / "probes")
    assert isinstance(saved, AttributeProbes)
    probe = saved.probes[0]

    def claim(high: float, untrained_low: float) -> str:
        changed = replace(
            probe,
            error=torch.tensor([0.5, 0.2]),
            low=torch.tensor([0.4, 0.1]),
            high=torch.tensor([0.6, high]),
            untrained_low=torch.tensor([0.3, untrained_low]),
        )
        only = replace(saved, attributes=("gender",), probes=(changed,))
        [finding] = Probes().findings(results, only)
        return finding.claim

    assert claim(0.3, 0.4) == "Gender is linearly readable inside the model, better than at random weights."
    assert claim(0.3, 0.2) == "Gender is linearly readable inside the model."
    assert claim(0.7, 0.9) == "Gender is not shown to be linearly readable inside the model."


def test_dreams_show_the_planted_concept_one_way_and_not_the_other(folder: Path) -> None:
    found = Result.load(folder / "out" / "analyses" / "dreams")
    assert isinstance(found, ConceptDreams)
    assert found.layers == ("features", "mix")
    assert found.contrasts == ("woman against man", "dark against light")
    for images, reach in zip(found.images, found.reach, strict=True):
        assert len(images.names) == 6
        red = images.pixels[:, 0].mean((1, 2)) - images.pixels[:, 1:].mean((1, 2, 3))
        assert red[0] > 0.1  # woman is red in these drawings, and nothing else
        assert red[1] < -0.1
        assert red[5] < 0  # tone with its sides swapped says nothing of red
        assert (reach[:, :2] > 1).all()  # both ways lead out of the drawings
    material = Material.of(read_audit(folder / "audit.yaml"), folder)
    again = Dreams().measure(material, ActivationStore())
    assert torch.equal(again.images[0].images, found.images[0].images)
    other = Dreams(cosine_power=0.0).measure(material, ActivationStore())
    assert not torch.equal(other.images[0].images, found.images[0].images)


def test_the_control_of_a_dream_leaves_nothing_of_the_contrast(folder: Path) -> None:
    material = Material.of(read_audit(folder / "audit.yaml"), folder)
    [gender, _] = material.contrasts
    rows = torch.zeros(len(material.examples), 3)
    rows[list(gender.fit.first)] = torch.tensor([1.0, 0, 0])
    rows += 0.01 * torch.randn(rows.shape, generator=torch.Generator().manual_seed(0))
    (own, against, control), _ = _ways(rows, gender, 0)
    assert float(own[0]) > 0.9
    assert torch.equal(against, -own)
    assert abs(float(control[0])) < 0.2
    one = replace(gender, fit=Pairs(gender.fit.first[:2], gender.fit.second[:2], ("a", "a")))
    with pytest.raises(TooFewError, match="half of the clusters, got 1 to fit on"):
        _ways(rows, one, 0)


def test_tcav_may_be_named_and_is_looked_at_anyway(tmp_path: Path, folder: Path) -> None:
    assert read_audit(audits.audit_file(tmp_path)).further == ()
    named = read_audit(audits.audit_file(tmp_path, {"analyses": ["atlas", "tcav"]}))
    assert named.further == ("atlas",)
    assert AuditResults.load(folder / "out").analyses == tuple(ANALYSES)


def test_scenes_without_dissection_or_a_single_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match="the analyses do not name 'dissection'"):
        read_audit(audits.audit_file(tmp_path, {"scenes": 6}))
    with pytest.raises(SchemaError, match="needs at least two"):
        read_audit(audits.audit_file(tmp_path, {"analyses": ["dissection"], "scenes": 1}))


def test_no_analysis_passes_anything_a_second_time(folder: Path) -> None:
    file = folder / "audit.yaml"
    material = Material.of(read_audit(file), file.parent)
    store = ActivationStore()
    data = material.subset(range(60))
    store.activations(material.loaded.model, material.layers, data, pool="mean")
    images = len(set(data.ids))
    Atlases().measure(material, store)
    assert store.stats.forward_rows == images
    Units().measure(material, store)
    assert store.stats.forward_rows == images + images + 6  # random weights, and the scenes
    scores = [Score(material.loaded.model, i) for i in material.targets.values()]
    store.gradients_of(scores, material.layers, material.subset(material.inputs), pool="mean")
    before = store.stats.forward_rows, store.stats.backward_rows
    for analysis in (Units(), Atlases(), Probes(), Use()):
        analysis.measure(material, store)
    assert (store.stats.forward_rows, store.stats.backward_rows) == before
    for _ in range(2):
        Atoms().measure(material, store)  # reads maps, of the network and of its untrained twin
        assert store.stats.forward_rows == before[0] + 2 * images


def test_units_that_carry_the_planted_attribute_are_found_and_no_others(folder: Path) -> None:
    saved = Result.load(folder / "out" / "analyses" / "dissection")
    assert isinstance(saved, AttributeUnits)
    significant = saved.shifts.significant(0.1)  # five held-out roles can be swapped in 16 ways
    assert significant[0].tolist() == (saved.unit == 0).tolist()  # gender is red and nothing else
    assert (saved.shifts.shift[0][significant[0]] > 0).all()
    tone = saved.contrasts.index("dark against light")
    assert significant[tone].any()
    assert (saved.shifts.shift[tone][significant[tone]] < 0).all()  # dark is less of every colour
    results = replace(AuditResults.load(folder / "out"), alpha=0.1)
    finding = Units().findings(results, saved)[0]
    assert finding.claim.startswith("2 of 6 units separate woman against man on roles that they were")
    assert "Largest on the other roles: unit 0 of" in plain(finding.evidence)
    assert "Training did not make more of them" in plain(
        Units().findings(results, replace(saved, untrained=saved.shifts))[0].evidence
    )
    idle = replace(saved, untrained=replace(saved.untrained, p=torch.ones_like(saved.untrained.p)))
    assert "Training did not" not in plain(Units().findings(results, idle)[0].evidence)
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Units that separate the attributes" in page
    assert "In 6 drawn scenes" in page


def test_what_is_read_is_told_from_what_is_used(folder: Path) -> None:
    saved = Result.load(folder / "out" / "analyses" / "read_used_moved")
    assert isinstance(saved, ReadUsedMovedResult)
    results = AuditResults.load(folder / "out")
    assert saved.attributes == ("woman against man", "dark against light")
    assert saved.layers == results.layers
    # Gender is red and nothing else, which the net hands on as it is: what is carried is the swap, and so is the effect.
    red = torch.tensor([4.0, -4, 2, 0, 0, 0]).double()
    torch.testing.assert_close(saved.moved[0] / saved.moved[0, 0], red / 4, atol=0.02, rtol=0)
    for name in ("carried", "needed"):
        torch.testing.assert_close(getattr(saved, name)[0, 0], saved.moved[0], atol=0.1 * float(saved.moved[0, 0]), rtol=0)
    for c in results.cells:
        if c.concept in saved.attributes:
            at = saved.attributes.index(c.concept), saved.layers.index(c.layer), saved.targets.index(c.target)
            assert float(saved.predicted[at]) == pytest.approx(c.effect, abs=1e-5)
    found = Use().findings(results, saved)
    assert found[0].claim.startswith("woman against man moves 3 of 6 logits on 5 held-out roles; ")
    assert "Readable does not" not in plain(found[0].evidence)
    idle = replace(saved, moved_p=torch.ones_like(saved.moved_p))
    nothing = Use().findings(results, idle)[0]
    assert nothing.claim.startswith("woman against man is not shown to move any of 6 logits on 5 held-out roles")
    unused = replace(saved, **{f"{n}_p": torch.ones_like(saved.carried_p) for n in ("carried", "needed")})
    assert Use().findings(results, unused)[0].claim.endswith("; none is shown to use what is read.")
    called = replace(saved, carried_p=torch.zeros_like(saved.carried_p))
    assert Use().findings(results, called)[0].claim.endswith("; 3 of them are shown to use what is read at features.")
    assert "of which the directions carry " in plain(Use().findings(results, called)[0].evidence)
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Five questions on the same held-out roles." in page
    assert (folder / "out" / "tables" / "read_used_moved.csv").exists()
    assert (folder / "out" / "figures" / "read_used_moved.pdf").exists()


def test_units_of_noise_make_no_finding(folder: Path) -> None:
    saved = Result.load(folder / "out" / "analyses" / "dissection")
    assert isinstance(saved, AttributeUnits)
    idle = replace(saved, shifts=replace(saved.shifts, p=torch.ones_like(saved.shifts.p)))
    results = AuditResults.load(folder / "out")
    finding = Units().findings(results, idle)[0]
    assert finding.claim.startswith("0 of 6 units")
    assert "No p could be below 0.062: there are 5 roles to swap" in plain(finding.evidence)
    assert "Largest" not in plain(finding.evidence)
    section = Units().section(results, replace(idle, names=None))
    assert len(section.blocks) == 4  # no points on scenes


def test_an_atom_that_nobody_named_moves_with_the_planted_attribute_alone(folder: Path) -> None:
    saved = Result.load(folder / "out" / "analyses" / "discovery")
    assert isinstance(saved, AttributeAtoms)
    found = saved.discovery
    assert found.layer == "mix"
    assert found.attributes[0] == "woman against man"
    assert found.shifts is not None
    results = replace(AuditResults.load(folder / "out"), alpha=0.1)  # five held-out roles can be swapped in 16 ways
    called = replace(saved, discovery=replace(found, level=0.9))
    assert called.discovery.moves[0].any()
    finding = Atoms().findings(results, called)[0]
    moved = int(called.discovery.moves[0].sum())
    assert finding.claim.startswith(f"{moved} of {len(found)} directions that nobody named move with woman against man")
    assert "Largest: atom" in plain(finding.evidence)
    for p, said in ((0.0, f"{moved} of these {moved} "), (1.0, f"None of these {moved} is found again")):
        stable = replace(found.agreement, p=torch.full_like(found.agreement.p, p))
        other = replace(called, discovery=replace(called.discovery, agreement=stable))
        assert said in plain(Atoms().findings(results, other)[0].evidence)
        assert Atoms().section(results, other).blocks  # drawn with and without the mark
    assert found.places == "each"
    assert torch.equal(saved.pictures.flatten(2).amax(2) > 0, saved.shown >= 0)
    assert len(Atoms().tables(results, saved)[0].rows) == len(found) * len(found.attributes)
    idle = replace(saved, discovery=replace(found, shifts=replace(found.shifts, p=torch.ones_like(found.shifts.p))))
    nothing = Atoms().findings(AuditResults.load(folder / "out"), idle)[0]
    assert nothing.claim.startswith("0 of")
    assert "No p could be below 0.062: there are 5 roles to swap" in plain(nothing.evidence)
    assert (folder / "out" / "figures" / "atoms.png").exists()
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "Directions that nobody named" in page
    assert set(found.held_out.nonzero()[:, 0].tolist()) >= {i for i in saved.shown.flatten().tolist() if i >= 0}


def test_neighbours_are_counted_over_other_clusters_and_beside_chance(folder: Path) -> None:
    saved = Result.load(folder / "out" / "analyses" / "atlas")
    assert isinstance(saved, AttributeAtlases)
    assert saved.attributes == ("gender", "tone", "role")
    assert float(saved.chance[0]) == pytest.approx(1 / 3)
    assert float(saved.chance[2]) == pytest.approx(5 / 59)
    assert (saved.low <= saved.same).all()
    assert [a.layer for a in saved.atlases] == ["features", "mix"]
    assert len(saved.pictures) == len(saved.shown) == len(saved.atlases[-1].central())
    for stem in ("atlas", "atlas_pictures", "units"):
        assert (folder / "out" / "figures" / f"{stem}.png").exists()


def test_neighbours_share_what_a_layer_groups_by() -> None:
    role = torch.arange(12).repeat_interleave(12)
    kind, other = torch.arange(144) % 3, torch.arange(144) // 3 % 4
    labels = torch.stack([kind, other, role])
    noise = torch.randn(144, 8, generator=torch.Generator().manual_seed(0))
    by_kind = neighbours(noise + 50 * torch.eye(8)[kind], labels, 0.95)
    assert by_kind.mean[0] == 1
    assert by_kind.low[1] < chance(labels)[1] < by_kind.high[1]
    by_role = neighbours(noise + 50 * torch.nn.functional.one_hot(role, 12)[:, :8], labels, 0.95)
    assert by_role.mean[2] > 0.6
    assert by_role.low[0] < chance(labels)[0] < by_role.high[0]  # a role's own images do not count


def test_an_analysis_that_the_data_do_not_admit_is_left_out_and_the_rest_is_kept(
    tmp_path: Path,
) -> None:
    contrasts = [
        {"positive": a, "negative": b, "vary": "gender", "swaps": [[b, a]]}
        for a, b in (("woman", "man"), ("man", "woman"))  # one direction and its opposite
    ]
    said: list[str] = []
    file = audits.audit_file(
        tmp_path,
        {
            "analyses": ["heat_maps"],
            "contrasts": contrasts,
            "concepts": [],
            "targets": [{"name": n, "group": "g", "reason": "r"} for n in audits.CLASSES],
        },
    )
    found = audit(file, tmp_path / "out", store_root=tmp_path / "store", say=said.append)
    reason = (
        "The analysis 'heat_maps' is left out: the directions of ['woman against man', 'man against woman'] do not differ"
    )
    assert any(line.startswith(reason) for line in said)
    assert found.analyses == ()
    assert found.limits[-1].startswith(reason)
    assert "is left out: the directions of" in (tmp_path / "out" / "report.html").read_text()
    assert rebuild(tmp_path / "out") == found
