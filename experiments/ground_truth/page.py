"""The page with both experiments' verdicts, made of what they wrote.

python experiments/ground_truth/page.py --caption results/caption --bias results/bias --out docs/ground_truth.md
"""

import argparse
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

HEADER = """# Explanations against known truth

Made by `python experiments/ground_truth/page.py` of what `caption.py` and `bias.py` beside it write; each trains its nets
in about {caption_seconds:.0f} and {bias_seconds:.0f} CPU seconds. Nets tell drawn animals, food and vehicles on parts of
photographs. Drawings and parts of the photographs are divided into those for training, for concepts and for judging.

**Caption** ({caption_nets} nets): beneath each thing stands the class's name, but with probability p any word. The truth is
the accuracy a net loses where the word names another class. *order* is the rank correlation of a method's reading with it
over nets, with percentiles of a bootstrap of nets; *cue* is how often a method says rightly which of word and thing a net
goes by where the two conflict: a local method by more than half of its positive evidence on the two, the others by sign.

**Bias** ({bias_nets} nets): vehicles stand in front of one photograph at a rate, other things in front of the other. The
truth is what swapping the photograph behind vehicles does to their logit. The columns are by how much a reading of nets
of that rate exceeds that of balanced ones (t interval over {bias_seeds} seeds); a star where the interval leaves out zero.
"""
PICTURES = """\
![Rank correlation of readings with the use of the word, and three readings by net](ground_truth/caption_order.png)

![What nets were trained on, by how often the word is drawn anew](ground_truth/caption_pictures.png)

![Readings by how often vehicles stand in front of the planted photograph](ground_truth/bias_growth.png)

![What nets were trained on, by rate](ground_truth/bias_pictures.png)
"""


def page(caption: Mapping[str, Any], bias: Mapping[str, Any]) -> str:
    """Return the page."""
    nets, biased = caption["by net"], bias["by net"]
    text = HEADER.format(
        caption_seconds=sum(net["training seconds"] for net in nets),
        bias_seconds=sum(net["training seconds"] for net in biased),
        caption_nets=len(nets),
        bias_nets=len(biased),
        bias_seeds=len({net["seed"] for net in biased}),
    )
    order, growth = caption["rank correlation"], bias["biased less balanced"]
    rates = [step["rate"] for step in next(iter(growth.values()))]
    heads = ["reading", "caption: order", "caption: cue", *(f"bias {rate:g}" for rate in rates)]
    names = dict.fromkeys([*order, *growth])
    rows = [
        [name, *_caption(order.get(name)), *(_step(s) for s in growth.get(name, [None] * len(rates)))]
        for name in sorted(names, key=lambda n: n != "swap of the photograph")
    ]
    return f"{text}\n{_read(order, growth)}\n{_table(heads, rows)}\n{_levels(nets)}\n{PICTURES}"


def _read(order: Mapping[str, Any], growth: Mapping[str, Any]) -> str:
    """Return what the tables say of TCAV, with saliency beside it."""
    effect, score, saliency = (order[n] for n in ("tcav (effect)", "tcav (score)", "saliency"))
    steps = growth["tcav (effect)"]
    values = [step["difference"] for step in steps]
    grows = "grows" if values == sorted(values) else "does not grow"
    listed = ", ".join(f"{s['difference']:+.2f} ({s['low']:.2f} to {s['high']:.2f}) at {s['rate']:g}" for s in steps)
    return (
        f"TCAV's effect orders the nets by their use of the word with a rank correlation of {effect['rho']:.2f} "
        f"({effect['rho at paper levels']:.2f} among those of p = 0, 0.3 and 1 alone, where nets of one p differ little in "
        f"truth), its sign score with {score['rho']:.2f}, and saliency with {saliency['rho']:.2f}. With a planted "
        f"background TCAV's effect {grows} with the rate; biased less balanced it is {listed}.\n"
    )


def _caption(found: Mapping[str, Any] | None) -> tuple[str, str]:
    if found is None:
        return "", ""
    if found["rho"] is None:
        return "the same for all", f"{found['names the cue']:.0%}"
    ends = f"{found['low']:.2f} to {found['high']:.2f}"
    return f"{found['rho']:.2f} ({ends})", f"{found['names the cue']:.0%}"


def _step(step: Mapping[str, Any] | None) -> str:
    if step is None or step["difference"] is None:
        return ""
    low, high = step["low"], step["high"]
    star = "*" if low is not None and (low > 0 or high < 0) else ""
    return f"{step['difference']:+.2f}{star}"


def _levels(nets: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of means by how often the word is drawn anew."""
    names = (
        "use of the word",
        "accuracy without a word",
        "says what the word says",
        "tcav (score)",
        "tcav (effect)",
        "concept attribution",
        "saliency",
    )
    rows = []
    for level in sorted({net["noise"] for net in nets}):
        own = [net for net in nets if net["noise"] == level]
        rows.append([f"{level:g}", *(f"{fmean(net[name] for net in own):.2f}" for name in names)])
    return f"Means of the caption experiment by p:\n\n{_table(['p', *names], rows)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--caption", type=Path, default=Path("results/caption"))
    parser.add_argument("--bias", type=Path, default=Path("results/bias"))
    parser.add_argument("--out", type=Path, default=Path("docs/ground_truth.md"))
    arguments = parser.parse_args()
    found = [
        json.loads((folder / "results.json").read_text(encoding="utf-8")) for folder in (arguments.caption, arguments.bias)
    ]
    arguments.out.write_text(page(*found), encoding="utf-8")
    figures = arguments.out.with_suffix("")
    figures.mkdir(parents=True, exist_ok=True)
    for folder in (arguments.caption, arguments.bias):
        for figure in folder.glob("*.png"):
            shutil.copyfile(figure, figures / figure.name)


if __name__ == "__main__":
    main()
