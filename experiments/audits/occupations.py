"""Does the finding on drawn figures at work replicate on drawings of the same roles by other hands?

    python experiments/audits/occupations.py --out results/occupations_twice [--tiny]

runs the audit that `occupations.yaml` fixes beforehand on Twemoji's drawings and, unchanged but for the images, on
OpenMoji's, and says for each logit whether it moves on both, and whether the same roles move it. Labels are names of drawn
attributes, nobody's identity. Each set has its own report; results are saved before anything is drawn. `--tiny`: six
roles, two layers and few draws.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml

from concepts.auditing.measurement.setup import Material
from concepts.auditing.measurement.spec import read_audit
from concepts.auditing.replication.page import write_replication
from concepts.auditing.replication.replicate import replicate
from concepts.auditing.run import audit
from concepts.data.manifest import Manifest
from probing.store.store import ActivationStore

FILE = Path(__file__).with_suffix(".yaml")
DATA = Path(__file__).parents[2] / "data_manifests"
SETS = {"Twemoji": "twemoji", "OpenMoji": "openmoji"}
TINY = {
    "level": 0.95,
    "alpha": 0.05,
    "divisions": 20,
    "relabellings": 99,
    "bootstraps": 100,
    "pseudo_concepts": 19,
    "runs": 2,
    "seed": 0,
}


def people(artist: str, out: Path, *, tiny: bool) -> Path:
    """Return the manifest of an artist's figures; a tiny one holds six roles."""
    path = DATA / f"{artist}_people.yaml"
    if not tiny:
        return path
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    rows = document["images"]["rows"]
    roles = sorted({row[2] for row in rows})[::4][:6]
    document["images"]["rows"] = [row for row in rows if row[2] in roles]
    small = out / f"{artist}_people.yaml"
    small.write_text(yaml.safe_dump(document), encoding="utf-8")
    return small


def audit_file(artist: str, out: Path, *, tiny: bool) -> Path:
    """Write the audit of one artist's drawings: as fixed beforehand, with other images."""
    audit = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    data = people(artist, out, tiny=tiny)
    audit["name"] = f"occupations-{artist}"
    audit["data"] = str(data.resolve())
    del audit["concepts"], audit["random"]  # sets compared with other emoji: not what is replicated
    audit["analyses"] = []
    audit["limits"][1] = (
        "Man, woman, light and dark are names of drawn attributes, never a person's identity. "
        f"{Manifest.load(data).file.about.strip()}"
    )
    if tiny:
        audit["statistics"] = TINY
        audit["model"]["layers"] = audit["model"]["layers"][-2:]
    path = out / f"{artist}.yaml"
    path.write_text(yaml.safe_dump(audit, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    """Run both audits, save the comparison, and write the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for results and reports")
    parser.add_argument("--tiny", action="store_true", help="a small case, to see that it runs")
    options = parser.parse_args(argv)
    out: Path = options.out
    out.mkdir(parents=True, exist_ok=True)
    rows = out / "rows"
    files = [audit_file(artist, out, tiny=options.tiny) for artist in SETS.values()]
    results = [audit(file, out / file.stem, store_root=rows, progress=False, say=print) for file in files]
    materials = [Material.of(read_audit(file), file.parent) for file in files]
    names = tuple(SETS)
    found = replicate((names[0], names[1]), results, materials, ActivationStore(rows, progress=False))
    found.save(out)
    title = "Does drawn gender or skin tone move an ImageNet model alike on two artists' drawings?"
    for finding in write_replication(out, title, results[0].limits[:1]).findings:
        print(f"- {finding.claim} {finding.evidence}")
    print(f"Report: {out / 'report.html'}")


if __name__ == "__main__":
    main()
