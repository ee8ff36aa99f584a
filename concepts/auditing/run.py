"""The main job: one audit file in, one folder of results and one report out."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from concepts.auditing.analyses import ANALYSES, NOT_ADMITTED
from concepts.auditing.measurement.exemplars import likeness_rows, pair_rows, picture_name, position_rows
from concepts.auditing.measurement.measure import Meter
from concepts.auditing.measurement.result_rows import (
    backdrops,
    cell_rows,
    cluster_rows,
    concept_infos,
    layer_rows,
    picked_rows,
    swap_rows,
)
from concepts.auditing.measurement.results import AuditResults, TargetInfo, made_of, shown_layer
from concepts.auditing.measurement.setup import Material
from concepts.auditing.measurement.spec import read_audit
from concepts.auditing.report.page import write_report
from concepts.auditing.report.verdict import verdict
from concepts.auditing.report_cache import Seal
from probing.core.content_ids import content_id, model_id
from probing.core.progress import Progress
from probing.core.storage import Place
from probing.core.threads import one_thread
from probing.models.precision import Precision
from probing.models.scores import Score
from probing.results.result import Provenance, Result
from probing.store.requests import Request
from probing.store.shards import default_root
from probing.store.store import ActivationStore

Say = Callable[[str], object]


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def audit(
    file: str | Path,
    out: str | Path,
    *,
    store_root: Place | None = None,
    device: str | torch.device = "cpu",
    disk_budget_bytes: int | None = None,
    progress: bool | None = None,
    say: Say = _say,
) -> AuditResults:
    """Run an audit and write its results and report.

    The folder gets `results.json`, `tables/*.csv`, `figures/*.png` and `*.pdf`, the pictures shown, `provenance.json`
    and `report.html`; each of the audit file's analyses a folder under `analyses`. Tables, figures and report are made
    of what was saved by `rebuild`, and left alone where they would be the same.

    Args:
        file: the audit file; paths in it start at its folder.
        out: the folder of results, made if missing.
        store_root: the cache of activations; by default the one of all commands.
        device: where the model computes, as `probing.models.loading.load` takes it.
        disk_budget_bytes: of the cache, as `ActivationStore` takes it.
        progress: a bar on stderr; None shows it on a terminal.
        say: takes what there is to be done, before, and what was reused, after; by default to stderr.

    Raises:
        concepts.data.yaml_schema.SchemaError: if the audit file is no audit file.
        concepts.auditing.measurement.setup.AuditError: if its parts do not fit each other.
        ValueError, LookupError, RuntimeError, OSError, ImportError: as raised for models, manifests and stores.
    """
    file, out = Path(file), Path(out)
    audit = read_audit(file)
    out.mkdir(parents=True, exist_ok=True)  # a folder that can't be written is reported before the work
    material = Material.of(audit, file.parent, device)
    store = ActivationStore(
        store_root or default_root(),
        precision=Precision(audit.model.precision),
        disk_budget_bytes=disk_budget_bytes,
        progress=progress,
    )
    say(_ahead(material, store))
    meter, done = _read(material, store)
    with one_thread():
        results = _results(meter)
    found, left_out = _further(material, store)
    results = replace(results, analyses=tuple(found), limits=(*results.limits, *left_out))
    for sentence in left_out:
        say(sentence)
    seal = Seal.of(results, found, audit, model_id(material.loaded.model))
    if seal.holds(out):
        say(f"{done} What the report is made of is unchanged, and so is it.\n{summary(results, out)}")
        return results
    for name, result in found.items():
        result.save(out / "analyses" / name)
    results.save(out)
    _save_pictures(meter, results, out / "images")
    _save_provenance(material, file, done, out)
    with Progress(None, "drawing figures and report"):
        rebuild(out)
    seal.write(out)
    say(f"{done}\n{summary(results, out)}")
    return results


def summary(results: AuditResults, out: Path) -> str:
    """Return the main findings, and last where the report is."""
    claims = [f"  {i}. {f.claim}" for i, f in enumerate(verdict(results), 1)]
    return "\n".join(["Main findings:", *claims, f"Report: {out / 'report.html'}"])


def rebuild(out: Path) -> AuditResults:
    """Make tables, figures and the report again from what was saved; no model is loaded or run.

    Raises:
        concepts.auditing.measurement.results.ResultsError: if the folder holds no readable audit.
        probing.results.result.SavedResultError: if those of an analysis can't be read.
    """
    return write_report(out, made_of(out))


def requests(material: Material) -> tuple[Request, ...]:
    """Return what an audit asks of the store, in its order, so that engines can fill it before.

    The rest needs few passes: images that are made, maps of a few inputs, and logits of matched images.
    """
    model, layers, pool = material.loaded.model, material.layers, material.file.model.pool
    further = (ANALYSES[name].requests(material) for name in material.file.further)
    return (
        Request(model, (*layers, ""), material.examples, pool),
        Request(model, layers, material.subset(material.inputs), pool, tuple(_scores(material))),
        *(request for more in further for request in more),
    )


def _ahead(material: Material, store: ActivationStore) -> str:
    """Say what there is to be done."""
    model, pool = material.loaded.model, material.file.model.pool
    layers = [*material.layers, ""]
    rows = store.estimate(model, layers, material.examples, pool=pool)
    slopes = store.estimate(
        model,
        material.layers,
        material.subset(material.inputs),
        pool=pool,
        scores=_scores(material),
    )
    return (
        f"Audit {material.file.name!r}: {len(material.examples)} images at {len(material.layers)} layers and the logits: "
        f"{rows}. Gradients of {len(material.targets)} logits at {len(material.inputs)} inputs: {slopes}. "
        f"Rows are kept in {store.root}."
    )


def _scores(material: Material) -> list[Score]:
    return [Score(material.loaded.model, index) for index in material.targets.values()]


def _read(material: Material, store: ActivationStore) -> tuple[Meter, str]:
    """Read all rows, in one pass over the images and one over the inputs, and say how many were reused."""
    model, pool = material.loaded.model, material.file.model.pool
    before = store.stats.reused_rows
    rows = store.activations(model, [*material.layers, ""], material.examples, pool=pool)
    images = store.stats.reused_rows - before
    slopes = store.gradients_of(_scores(material), material.layers, material.subset(material.inputs), pool=pool)
    inputs = store.stats.reused_rows - before - images
    canaries = store.stats.canary_rows
    checked = f"; {canaries} canary rows recomputed and equal" if canaries else ""
    done = (
        f"Reused {images} of {len(set(material.examples.ids))} rows of images and {inputs} of {len(material.inputs)} of "
        f"gradients; {store.stats.forward_rows} forward and {store.stats.backward_rows} backward passes{checked}."
    )
    features = {layer: rows[layer].flatten(1).cpu() for layer in material.layers}
    gradients = {layer: torch.stack([g[layer].flatten(1).cpu() for g in slopes]) for layer in material.layers}
    return Meter(material, store, features, rows[""].cpu(), gradients), done


def _results(meter: Meter) -> AuditResults:
    material, audit = meter.material, meter.material.file
    measured = []
    with Progress(len(material.contrasts), "tests", unit="contrasts") as bar:
        for sets in material.contrasts:
            measured.append(meter.contrast(sets))
            bar.advance(1)
    single = meter.concepts()
    layers = tuple(layer_rows(material, measured, single))
    shown = {r.concept: shown_layer(r.concept, layers) for r in layers}
    return AuditResults(
        name=audit.name,
        title=audit.title,
        question=audit.question,
        model=audit.model.reference,
        weights=material.loaded.weights,
        layers=material.layers,
        level=audit.statistics.level,
        alpha=audit.statistics.alpha,
        trust=audit.statistics.trust,
        cluster_by=material.cluster_by,
        fitted_on=tuple(sorted(material.fitted_on)),
        judged_on=tuple(sorted(material.judged_on)),
        divisions=audit.statistics.divisions,
        pseudo_concepts=single.pseudo_concepts if single else audit.statistics.pseudo_concepts,
        inputs=audit.inputs.about,
        input_count=len(material.inputs),
        judged_inputs=len(material.judged_inputs),
        targets=tuple(_targets(material)),
        concepts=tuple(concept_infos(material, measured, single)),
        layer_rows=layers,
        cells=tuple(cell_rows(measured, single)),
        swaps=tuple(swap_rows(material, measured)),
        backdrops=tuple(backdrops(measured)),
        picked=tuple(picked_rows(material, measured)),
        likeness=tuple(likeness_rows(meter, measured, shown)),
        positions=tuple(position_rows(meter, measured, shown)),
        sources=tuple((m.file.name, f"{m.file.source}. Licence: {m.file.licence}.") for m in material.manifests),
        limits=tuple(audit.limits),
        analyses=audit.further,
        by_cluster=tuple(cluster_rows(material, measured)),
        pairs=tuple(pair_rows(meter, measured)),
    )


def _further(material: Material, store: ActivationStore) -> tuple[dict[str, Result], list[str]]:
    """Return what the file's analyses find, and of those that this data do not admit why not: the rest is kept."""
    found: dict[str, Result] = {}
    left_out = []
    for name in material.file.further:
        try:
            found[name] = ANALYSES[name].measure(material, store)
        except NOT_ADMITTED as error:
            left_out.append(f"The analysis {name!r} is left out: {error}")
    return found, left_out


def _targets(material: Material) -> list[TargetInfo]:
    pairs = zip(material.file.targets, material.targets.items(), strict=True)
    return [TargetInfo(name, index, spec.group, spec.reason, dict(spec.expect)) for spec, (name, index) in pairs]


def _save_pictures(meter: Meter, results: AuditResults, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    wanted = {row.image for row in results.likeness} | {n for p in results.pairs for n in (p.negative, p.positive)}
    for i in range(len(meter.material.examples)):
        name = picture_name(meter, i)
        if name in wanted and not (folder / name).exists():
            picture = meter.material.examples.image(i)
            picture.thumbnail((96, 96))
            picture.save(folder / name)


def _save_provenance(material: Material, file: Path, done: str, out: Path) -> None:
    provenance = Provenance.collect(model=material.loaded.model, examples=content_id(list(material.examples.ids)))
    document = asdict(provenance) | {"audit": material.file.model_dump(), "rows": done}
    document["file"] = {"name": file.name, "sha256": _sha256(file)}
    document["manifests"] = [
        {
            "name": m.file.name,
            "file": m.path.name,
            "sha256": _sha256(m.path),
            "images": len(m.items),
            "content": content_id([[i.name, i.sha256 or "", *i.attributes.items()] for i in m.items]),
        }
        for m in material.manifests
    ]
    document["weights"] = material.loaded.weights
    del document["method"]
    text = json.dumps(document, indent=1, ensure_ascii=False)
    (out / "provenance.json").write_text(text + "\n", encoding="utf-8")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
