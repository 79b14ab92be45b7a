"""Write docs/models.md: what each model of the zoo is, costs and reaches.

    python docs/make_models.py            # writes the page
    python docs/make_models.py --check    # exits with 1 if the page is out of date

Parameters, operations, activations, bytes and sizes are read off the models (models/facts.py); speeds and accuracies
are those that benchmarks/zoo.py and benchmarks/zoo_accuracy.py wrote to benchmarks/results.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

from umbel.models import names, operators, registry
from umbel.models.facts import Facts, facts
from umbel.models.registry import TABLE

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "models.md"
RESULTS = ROOT / "benchmarks" / "results"

HEAD = """\
# Models

<!-- Written by docs/make_models.py from the code and from benchmarks/results. Do not edit by hand. -->

One word in an experiment changes the model: `model.name=maxvit_tiny32`, with its sizes under `model.sizes`
(`umbel list models`). Every model has `features(x)` and a linear `head`; the published CAS-ViTs and `uniformer_xxs`
have a second head beside it, which methods that work on features or head alone do not see
(`model.sizes.second_head=false`, `model.sizes.class_head=false`). From Python:

```python
from umbel.models import build, names

model = build("uniformer_s", num_classes=100)               # at the published 224 px
small = build("uniformer_tiny32", 10, image_size=28, in_channels=1)
assert model.features and len(names()) > 60
```

| key | |
|---|---|
| `model.norm` | `average` batch norm with all else, keep it `local`, or put `group` or `layer` norm in its place |
| `model.checkpoint` | compute blocks again in the backward pass: less memory, the same bits |
| `client.precision` | `bf16` and `fp16` by autocast; Fourier transforms and complex parts stay in float32 |
| `client.channels_last` | the memory order that convolutions like; other bits than without |
| `client.compile` | `torch.compile` of the model or a step, not with `model.checkpoint`; other bits than without |
| `client.together` | clients of equally many examples at once; other bits than one by one |

All were written from the papers' equations or descriptions in plain PyTorch; no published weights are loaded. The file
of each family says what was not clear and how it was decided.

Any other classifier of plain PyTorch becomes a model by `umbel.models.wrap` ([a page](own/model.md)).

UniRepLKNet trains in a form with more branches than it needs to predict. `fold` makes the smaller form of a trained
model: average first, fold then, since a folded average is not the average of folded models.

```python
from umbel.models import build
from umbel.models.unireplknet import fold

model = build("unireplknet_tiny32", 10)   # then `umbel.models.weights.load_state` of a run's model.safetensors
small = fold(model)
assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.parameters())
```
"""

LEGEND = """\
**Parameters**: numbers that are trained. **MMACs** / **GMACs**: multiply-adds of one image's forward pass in matrix
products and convolutions, by `torch.utils.flop_counter`; Fourier transforms (AFFNet) are not counted. **Activations**:
MB that the backward pass of one image keeps in float32, matrices of attention included (fused kernels keep less). **MB
a round**: down and up for one client in float32, batch-norm statistics included. **Norms**: layers of batch, layer and
group norm. **Smallest**: the smallest image, in pixels, that can be trained on.
"""

ACCURACY = """## Accuracy for bytes

Fashion-MNIST over 10 clients, Dirichlet 0.5, 20 rounds of 5 clients and 10 steps of 32 (`fashion_zoo`), Adam at the
better of two rates on validation data; the CNN is `cnn` of the width with as many bytes, tuned alike. One seed, by
`python benchmarks/zoo_accuracy.py all --picture docs/images/zoo.svg`:

![Accuracy over bytes a round](images/zoo.svg)
"""

SPEED = """## Speed

By `python benchmarks/zoo.py tiny` and `python benchmarks/zoo.py published`. The ratio says how many times longer a
multiply-add takes than in `resnet18` of equal operations for the same image, timed in turn in the same process; the
published variants were timed beside other work, so that of theirs the ratio is what to read. On a CPU, depthwise
convolutions and elementwise passes do little arithmetic for the memory that they read. SpaRTAN's wave mixer makes
several such passes over a widened map, TransNeXt's attention unfolds a window for each place: these two take three
times as long per multiply-add as dense convolutions.
"""

DESCRIBED = """\
DualToken-ViT, DuoFormer, TiC, SGConvNeXt and FIT are re-implementations from their descriptions: no code or count
confirms them, and the file of each says what was not clear and how it was decided. The papers' rounded figures where
there are some: 11.9 M for DualToken-ViT-S, 29 M for SGConvNeXt-T. `fit_s` and the `_tiny32` of all are ours. The clips
of UniFormer are counted here at 1,000 classes and 16 frames; at Kinetics' 400 its published 21.4 M and 49.8 M agree. An
image is read as a still clip.
"""

OPERATORS = """\
## Drop-in operators

An operator goes into any model, of the zoo or your own: in the place of its convolutions, or around the whole of it.
`layers` says which convolutions: `conv` (all that it can stand for), `dense`, `depthwise`, or names with `*`.

```console
umbel run digits model.name=cvt_tiny32 'model.operators={wconv: {density: [0.7], layers: depthwise}}' run.rounds=2
umbel list operators
```

```python
from umbel.models import build, operators

model = operators.replace(build("cvt_tiny32", 10), "conv", "wconv", density=[0.7])
```

What all clients have to share travels with the model or follows from the experiment, which they compare: SGConv's norm
of the initial kernel is a buffer that the server's state brings; DCLS's positions are parameters, clamped after each
step; wConv's density is fixed by its option. Several operators in one model are placed in the order of the list. FOT
does not go with `wconv`, `dcls` and `sgconv`, whose kernels are computed from their weights.
"""

OPERATOR_COSTS = """\
What each costs in `cvt_tiny32` and in `cnn` at 28 px, placed as its preset `operator_<name>` says, by
`python benchmarks/operators.py cost`. **Step**: time of a training step at batch 32 beside the plain model's, timed in
turn in one process beside other work, so that the ratio is what to read; plain beside plain says how rough it is.
Fourier transforms (SGConv) are not among the multiply-adds.
"""

OPERATOR_ACCURACY = """\
What they bring in the budget of `fashion_zoo` (20 rounds of 5 of 10 clients, 10 steps of 32, Dirichlet 0.5), mean ±
sample deviation over three seeds, paired gain over the plain model ± standard error, by
`python benchmarks/operators.py accuracy`. The learning rate, 0.001 or 0.003, is each one's own, chosen on validation
data of the first seed.
"""

OPERATOR_READING = """\
* **No operator is above its plain model by two standard errors** in this budget of 1,000 steps. A global branch, which
  begins as good as nothing, and wConv in CvT's depthwise and embedding kernels stay equal to it; what begins anew with
  weights of its own (DCLS, separable kernels, SGConv) or mixes fewer channels (E2GC) has not caught up.
* DOLG pools the last map by a generalised mean. Over the CNN that takes the place of its layer over all places, and a
  third of the accuracy goes with it. `pool=features` keeps that layer; it was not measured.
* GLSim crops a part of images of 28 px that are small already; its paper is about large ones.
* What their papers claim was claimed for ImageNet, landmarks, fine-grained or multi-label classes, after hundreds of
  epochs. That is not what was tried here, and says nothing against it.
"""

READING = """\
* **In so short a budget the plain CNN is hard to beat**: over three seeds none of the five is above it by two standard
  errors, CvT is below it by as much. All learn and none diverges.
* ConViT, MaxViT and GC ViT are last after at most 200 steps a client. MaxViT likes smaller rates than the two that were
  tried (see its docstring).
* The rates were chosen on one seed; the CNN's differences from one width to the next show how large noise is.
"""


def million(number: float) -> str:
    """Write a number in millions."""
    return f"{number / 1e6:.2f} M" if number >= 1e5 else f"{number / 1e3:.0f} k"


def row(model: Facts, unit: float) -> str:
    """Return the row of a model."""
    cells = [
        million(model.parameters),
        f"{model.macs / unit:.1f}" if model.macs / unit >= 1 else f"{model.macs / unit:.2f}",
        f"{model.activation_bytes / 1e6:.2f}",
        f"{model.bytes_per_round / 1e6:.2f}",
        " / ".join(str(model.norms[kind]) for kind in ("batch", "layer", "group")),
        str(model.image_size),
        str(model.smallest),
    ]
    return f"| `{model.name}` | {' | '.join(cells)} |"


def table(models: list[Facts], unit: float, prefix: str) -> list[str]:
    """Return the table of models."""
    return [
        f"| model | parameters | {prefix}MACs | activations (MB) | MB a round | norms | image | smallest |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(row(model, unit) for model in models),
    ]


def speeds() -> list[str]:
    """Return what benchmarks/zoo.py measured, by hardware."""
    path = RESULTS / "zoo.json"
    known: dict[str, list[dict[str, Any]]] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    lines = []
    for where, rows in known.items():
        lines += [
            f"**{where}**",
            "",
            "| model | batch | way | training, images/s | ratio per MAC | inference, images/s | ratio per MAC |",
            "|---|---:|---|---:|---:|---:|---:|",
        ]
        for each in rows:
            cells = [f"`{each['model']}`", str(each["batch"]), each["way"]]
            for kind in ("train", "predict"):
                cells += [f"{each[f'{kind}_images_per_second']:.1f}", f"{each[f'{kind}_ratio']:.2f}"]
            lines.append(f"| {' | '.join(cells)} |")
        lines.append("")
    return lines


def accuracies(part: str) -> list[str]:
    """Return a table of benchmarks/zoo_accuracy.py."""
    path = RESULTS / "zoo_accuracy.json"
    known = json.loads(path.read_text(encoding="utf-8")).get(part, []) if path.exists() else []
    lines = [
        "| model | MB a round | learning rate | accuracy, % | plain CNN of as many bytes, % | gain |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for each in sorted(known, key=lambda each: -statistics.fmean(each["accuracy"])):
        cells = [f"{8 * each['shared'] / 1e6:.2f}", f"{each['lr']:g}"]
        cells += [_percent(each["accuracy"]), _percent(each["cnn_accuracy"])]
        cells.append(_gain(each["accuracy"], each["cnn_accuracy"]))
        lines.append(f"| `{each['model']}` | {' | '.join(cells)} |")
    return lines


def operators_section() -> list[str]:
    """Return what there is of operators, and what benchmarks/operators.py measured."""
    path = RESULTS / "operators.json"
    measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    lines = [OPERATORS, "| operator | options | |", "|---|---|---|"]
    for name in operators.names():
        options = ", ".join(f"`{key}`" for key in operators.options(name)) or "none"
        lines.append(f"| `{name}` | {options} | {operators.describe(name)} |")
    if "cost" in measured:
        lines += ["", OPERATOR_COSTS, f"On {measured['hardware']}:\n", *_operator_costs(measured["cost"])]
    if "accuracy" in measured:
        lines += ["", OPERATOR_ACCURACY, *_operator_accuracies(measured["accuracy"]), "", OPERATOR_READING]
    return lines


def _operator_costs(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| base | operator | parameters | MMACs | activations (MB) | MB a round | steps/s | step / plain |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = [f"{row['parameters']:,}", f"{row['macs'] / 1e6:.2f}", f"{row['activation_bytes'] / 1e6:.2f}"]
        cells += [f"{row['bytes_per_round'] / 1e6:.2f}", f"{row['steps_per_second']:.1f}", f"{row['ratio']:.2f}"]
        lines.append(f"| `{row['base']}` | {row['operator']} | {' | '.join(cells)} |")
    return lines


def _operator_accuracies(rows: list[dict[str, Any]]) -> list[str]:
    plain = {row["base"]: row["accuracy"] for row in rows if row["operator"] == "plain"}
    lines = ["| base | operator | learning rate | accuracy, % | gain |", "|---|---|---:|---:|---:|"]
    for row in rows:
        gain = "" if row["operator"] == "plain" else _gain(row["accuracy"], plain[row["base"]])
        cells = [f"{row['lr']:g}", _percent(row["accuracy"]), gain]
        lines.append(f"| `{row['base']}` | {row['operator']} | {' | '.join(cells)} |")
    return lines


def _gain(own: list[float], other: list[float]) -> str:
    gains = [100 * (a - b) for a, b in zip(own, other, strict=True)]
    error = f" ± {statistics.stdev(gains) / len(gains) ** 0.5:.2f}" if len(gains) > 1 else ""
    return f"{statistics.fmean(gains):+.2f}{error}"


def _percent(values: list[float]) -> str:
    spread = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.fmean(values):.2f}{spread}"


def page() -> str:
    """Return the page."""
    tiny = [name for name in names() if name.endswith("_tiny32")]
    families = {TABLE[name][0] for name in tiny}
    published = [name for name in names() if TABLE[name][0] in families and name not in tiny]
    described = [f"| `{name}` | {registry.describe(name)} |" for name in (*tiny, *published)]
    parts = [
        HEAD,
        "## Small images\n",
        "At 32 px with three channels and 10 classes, by `python docs/make_models.py`:\n",
        *table([facts(name, 10) for name in tiny], 1e6, "M"),
        "\n" + LEGEND,
        ACCURACY,
        *accuracies("all"),
        "\nThe five best on validation data, three seeds, mean ± sample deviation, paired gain ± standard error, by",
        "`python benchmarks/zoo_accuracy.py best`:\n",
        *accuracies("best"),
        "",
        READING,
        "## Published variants\n",
        "At 1,000 classes and the published size of image, by `python docs/make_models.py`:\n",
        *table([facts(name, 1000) for name in published], 1e9, "G"),
        "\n" + DESCRIBED,
        "\n" + SPEED,
        *speeds(),
        *operators_section(),
        "",
        "## What each is\n",
        "| model | |",
        "|---|---|",
        *described,
    ]
    return "\n".join(parts) + "\n"


def main() -> int:
    """Write the page, or compare it with what is there."""
    text = page()
    if "--check" in sys.argv[1:]:
        return int(text != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
