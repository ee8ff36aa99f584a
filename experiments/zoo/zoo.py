"""Ten operations on every kind of model: what the check of each says, or why it is refused.

python experiments/zoo/zoo.py [--models NAME …] [--out docs/zoo.md]

A test makes the columns of some models anew and compares them with the committed page.
"""

import argparse
import logging
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from checks import (
    COALITIONS,
    EXPECTED,
    MASKS,
    MOST_CHANNELS,
    OPERATIONS,
    ROWS,
    SMOOTH,
    STEPS,
    Outcome,
    attempt,
    local,
    network,
)
from subjects import GROUPS, MODELS

TEN: dict[str, tuple[str, ...]] = {
    "gradient maps": (
        "saliency",
        "gradient_times_input",
        "guided_backprop",
        "deconvolution",
        "smoothgrad",
        "ig",
        "guided_ig",
        "blur_ig",
        "xrai",
        "layer_ig",
        "layer_conductance",
        "internal_influence",
        "expected_gradients",
        "deeplift",
    ),
    "LRP": ("lrp",),
    "CAMs": (
        "cam",
        "gradcam",
        "gradcam++",
        "guided_gradcam",
        "hirescam",
        "layercam",
        "xgradcam",
        "ablationcam",
        "scorecam",
        "eigencam",
        "finercam",
    ),
    "attention": ("rollout", "attention_relevance"),
    "perturbation": ("lime", "occlusion", "feature_ablation", "rise", "shapley", "owen", "sobol"),
    "rows": ("store",),
    "probes": ("probes",),
    "TCAV": ("tcav",),
    "dissection": ("dissection",),
    "maximisation": ("maximization",),
}
BY_NATURE = {
    "no attention weights were seen": "a network without attention",
    "windows, pooled or other tokens have no one map": "attention within windows or to other tokens",
    "examples influence each other": "a layer that scales its numbers by the whole batch",
    "RISE needs images": "masks over features without places",
    "have no usual groups": "groups of tokens or features that nobody gave",
    "LRP shares out a score that is a sum": "a score that is no sum of outputs",
}
"""Refusals that no code would change, by what they say."""

TESTED = (
    "mobilenet_v3_small",
    "DINOv2 (timm)",
    "BERT",
    "LSTM",
    "3-D CNN of volumes",
)

HEADER = """# Ten operations on every kind of model

Made by `python experiments/zoo/zoo.py --out docs/zoo.md`. A test, `tests/experiments/test_zoo.py`, makes the columns of
{tested} anew and compares.

{count} models, of which one, `tf_efficientnet_lite0`, has its packaged ImageNet weights; the others are built small or from
their library with random weights (seed 0), biases that are not zero, and BatchNorm's statistics set by a batch of noise. The
inputs are noise, of images smooth and {size} pixels a side. What is explained is a class's logit, or where there are no
classes a number, a pixel, a detected box, the logit of a next token or its difference from another's, or a cosine.

| sign | says |
|---|---|
| yes | at least one method of the operation works and passes its check |
| by nature | refused for a reason in the mathematics: {natures}; features without places, token ids that can't be climbed |
| no | refused for want of code, with the reason below |

{overview}

What a cell of the tables below holds:

- A number, for values that have a definition: their largest distance from it, as a share of the largest value. Gradients,
  guided rules and class activation maps are computed in float64 and compared with plain autograd and the papers' formulas
  written out; rows and gradients of the store with each example alone in a loop, a text without its padding; probes' error
  with one normal equation; TCAV's effect with gradient times difference of means; dissection's IoU with a loop over units
  and labels; the value of the image that maximisation ends at ({steps} steps) with a pass of plain PyTorch. At most 0.1 %.
- A number, for maps whose parts must add up: what they miss. IG, of the score minus the baseline's (at most 1 %); LRP, the
  ledger against the score; CAM, against the logit; attention rollout, against 1; LIME by Kernel SHAP ({lime} coalitions or
  more) and Shapley and Owen values, of the score minus that with everything hidden (at most 0.1 %). In 16 bits {half} times
  as much is let pass.
- `map`: finite, of the right kind and not constant; so with SmoothGrad ({smooth} samples), Expected Gradients ({expected}),
  RISE ({masks} masks) and Sobol indices (2 pairs of masks), which hang on draws, occlusion, feature ablation, attention
  relevance, Score-CAM, Eigen-CAM, Finer-CAM, guided IG, blur IG, XRAI, conductance, internal influence, and Ablation-CAM of
  more than {channels} channels. `zero`: nothing raises the score, as `diagnostics["nothing_positive"]` says. `refused`: by
  name, for the reason given below the table. `jumps`: IG says in `diagnostics["converged"]` that no number of steps adds
  up, as where another box is found on the way.
"""


def outcomes(name: str) -> dict[str, Outcome]:
    """Return what each row gives on a model."""
    subject = MODELS[name]()
    found: dict[str, Outcome] = {}
    for row, work in [*local(subject, [r for r in ROWS if r not in OPERATIONS]), *network(subject)]:
        began = time.process_time()
        found[row] = replace(attempt(work), seconds=time.process_time() - began)
    return found


def sign(name: str, row: Mapping[str, Outcome], operation: str) -> str:
    """Return whether an operation works on a model, does not by nature, or not yet."""
    mine = [row[method] for method in TEN[operation]]
    if any(outcome.cell not in {"refused", "jumps", "FAILS"} for outcome in mine):
        return "yes"
    natural = operation in MODELS[name]().nature
    return "by nature" if natural or all(any(part in o.reason for part in BY_NATURE) for o in mine) else "no"


def overview(found: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Return a table of models by operations."""
    lines = [f"| | {' | '.join(TEN)} | of ten |", "|---" * (len(TEN) + 2) + "|"]
    for name, row in found.items():
        signs = [sign(name, row, operation) for operation in TEN]
        settled = sum(s != "no" for s in signs)
        lines.append(f"| {name} | {' | '.join(signs)} | {settled} |")
    return "\n".join(lines)


def table(found: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Return a table of rows by models, and the reasons of refusals below it."""
    lines = [f"| method | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {r} | {' | '.join(row[r].cell for row in found.values())} |" for r in ROWS]
    lines.append("")
    for head, row in found.items():
        for reason in dict.fromkeys(o.reason for o in row.values() if o.reason):
            those = ", ".join(r for r, o in row.items() if o.reason == reason)
            lines.append(f"- {those} on {head}: {_plain(reason)}")
    return "\n".join(lines) + "\n"


def _plain(reason: str) -> str:
    """Return a reason without what markdown would take for its own."""
    return re.sub(r"([*_<>|])", r"\\\1", reason)


def header(found: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Return what the tables say, and the overview."""
    return HEADER.format(
        tested=", ".join(f"`{name}`" for name in TESTED),
        count=len(found),
        size=64,
        natures=", ".join(BY_NATURE.values()),
        overview=overview(found),
        steps=STEPS,
        lime=COALITIONS,
        half="50 (float16) and 200 (bfloat16)",
        smooth=SMOOTH,
        masks=MASKS,
        expected=EXPECTED,
        channels=MOST_CHANNELS,
    )


def page(found: Mapping[str, Mapping[str, Outcome]]) -> str:
    """Return the whole page: the overview, and a table for each group."""
    parts = [header(found)]
    for group, members in GROUPS.items():
        mine = {name: found[name] for name in members if name in found}
        if mine:
            parts.append(f"## {group}\n\n{table(mine)}")
    return "\n".join(parts)


def main() -> int:
    """Write the page; 1 if a check fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)  # of libraries about random weights
    found: dict[str, dict[str, Outcome]] = {}
    for name in arguments.models:
        found[name] = outcomes(name)
        for row, outcome in found[name].items():
            print(f"{name:32} {row:20} {outcome.cell:9} {outcome.seconds:6.1f} s  {outcome.reason}", flush=True)
        MODELS[name].cache_clear()  # type: ignore[attr-defined]  # of functools
    if arguments.out:
        arguments.out.write_text(page(found), encoding="utf-8")
    return int(any(o.cell == "FAILS" for row in found.values() for o in row.values()))


if __name__ == "__main__":
    sys.exit(main())
