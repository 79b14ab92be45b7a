"""What benchmarks/probe.py found, as Markdown; docs/make_data.py puts the same tables on its pages."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

RANK = 10


def spread(values: Sequence[float]) -> str:
    """Write mean and deviation over seeds (of a sample, so with one seed there is none) in percent."""
    text = f"{100 * statistics.fmean(values):.1f}"
    return f"{text} ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else text


def tables(result: dict[str, Any]) -> str:
    """Return what was found as Markdown.

    Args:
        result: What `--json` of benchmarks/probe.py writes.
    """
    parts = []
    for probed in result["probes"]:
        size = f" at {probed['size']} px" if probed["size"] else ""
        head = f"`{probed['encoder']}`{size}, {probed['features']} features: accuracy in %"
        head += ", each draw with a test split of its own" if result.get("resplit") else ""
        single = len(probed["columns"]) == 1
        lines = [
            "| trained on | examples | " + " | ".join(["accuracy", "balanced"] if single else probed["columns"]) + " |",
            "|---|" + "---:|" * (3 if single else 1 + len(probed["columns"])),
        ]
        for row, name in enumerate(probed["rows"]):
            cells = probed["accuracy"][row] + (probed["balanced"][row] if single else [])
            name = result["set"] if single else name
            lines.append(f"| {name} | {probed['train'][row]:,} | " + " | ".join(map(spread, cells)) + " |")
        rates = [f"{100 * rate:.1f}" for rate in probed["majority"]]
        rates += [f"{100 / result['classes']:.1f}"] if single else []
        lines.append("| commonest class | | " + " | ".join(rates) + " |")
        tested = [f"{count:,}" for count in probed["test"]]
        lines.append("| tested on | | " + " | ".join(tested + [""] * single) + " |")
        parts.append(f"{head}\n\n" + "\n".join(lines))
    search = result.get("retrieval")
    if search:
        parts.append(
            f"Recall at {RANK} in %, a ridge map from `{search['images']}` to `{search['texts']}`, among "
            f"{search['candidates']:,} unseen concepts\n\n"
            "| image to text | text to image | chance |\n|---:|---:|---:|\n"
            f"| {spread(search['to_text'])} | {spread(search['to_image'])} | {100 * search['chance']:.1f} |"
        )
    return "\n\n".join(parts) + "\n"
