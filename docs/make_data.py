"""Write docs/data: a page for each data set, with counts, pictures and linear probes, and their index.

    python docs/make_data.py              # counts and draws the sets that are on this machine, then writes all pages
    python docs/make_data.py NAME ...     # counts and draws these only
    python docs/make_data.py --pages      # writes the pages from what was counted before
    python docs/make_data.py --check      # exits with 1 if a page is out of date

What was counted is in docs/data/counted/<set>.json, what was probed in benchmarks/results/probe/<set>.json; pages
are made of these files, docs/data/about.yaml and the docstrings' lines, and of nothing else.
"""

from __future__ import annotations

import json
import runpy
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from umbel.core.rng import generator
from umbel.data.config import DataConfig
from umbel.data.errors import MissingDataError
from umbel.data.sets import papers, registry
from umbel.data.types import DataSet

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "data"
COUNTED = PAGES / "counted"
PICTURES = PAGES / "pictures"
PROBES = ROOT / "benchmarks" / "results" / "probe"
MARK = "<!-- Written by docs/make_data.py. Do not edit by hand. -->"
MOST_ROWS, MOST_BARS, WIDTH = 24, 48, 120

Facts = dict[str, Any]


def about() -> dict[str, dict[str, Any]]:
    """Return what is written by hand, by the names of sets."""
    found = yaml.safe_load((PAGES / "about.yaml").read_text(encoding="utf-8"))
    return {str(name): dict(entry) for name, entry in found.items()}


def facts(name: str, data_set: DataSet, examples: int = 0) -> Facts:
    """Count what is in a set.

    Args:
        name: Its name.
        data_set: The set.
        examples: How many texts to keep, of as many classes.
    """
    train, test = data_set.train, data_set.test

    def counts(column: str, names: Sequence[str]) -> list[list[Any]]:
        pair = [_bincount(getattr(split, column), len(names)) for split in (train, test)]
        return [[label, *numbers] for label, *numbers in zip(names, *pair, strict=True)]

    classes = counts("labels", data_set.class_names)
    some = [number for _, number, _ in classes if number]
    found: Facts = {
        "name": name,
        "line": registry.describe(name),
        "train": len(train),
        "test": len(test),
        "image": list(train.images.shape[1:]) if train.images.shape[1] else [],
        "classes": classes,
        "imbalance": round(max(some) / min(some), 2),
        "domains": counts("domains", data_set.domain_names) if data_set.domain_names else [],
        "licence": data_set.licence,
        "attribution": data_set.attribution.splitlines(),
        "options": registry.options(name),
    }
    if train.concepts is not None and test.concepts is not None:
        found["concepts"] = [len(torch.unique(split.concepts)) for split in (train, test)]
    if train.texts is not None and test.texts is not None:
        texts = [*train.texts, *test.texts]
        found["texts"] = {
            "distinct": len(set(texts)),
            "words": statistics.median(len(text.split()) for text in texts),
            "longest": max(len(text.split()) for text in texts),
        }
        largest = sorted(range(len(classes)), key=lambda label: -classes[label][1])[:examples]
        chosen = [_pick(train.labels == label) for label in largest]
        found["examples"] = [[classes[int(train.labels[n])][0], train.texts[n]] for n in chosen]
    return found


def _bincount(values: Tensor, length: int) -> list[int]:
    return [int(count) for count in torch.bincount(values, minlength=length)]


def _pick(which: Tensor) -> int:
    numbers = which.nonzero().flatten()
    return int(numbers[torch.randint(len(numbers), (), generator=generator(0, purpose="page"))])


def draw(entry: dict[str, Any], data_set: DataSet, path: Path) -> int:
    """Draw the picture of a set; return its bytes."""
    pen = runpy.run_path(str(PAGES / "draw.py"))
    if entry["picture"] == "counts":
        counts = _bincount(data_set.train.labels, data_set.num_classes)
        rows = _cut(sorted(zip(data_set.class_names, counts, strict=True), key=lambda row: -row[1]), MOST_BARS)
        names, numbers = [str(row[0]) for row in rows], [int(row[1]) for row in rows]
        return int(pen["save"](pen["of_counts"](names, numbers, "training examples of each class"), path))
    more = {"without": entry["without"]} if "without" in entry else {}
    return int(pen["save"](pen[f"of_{entry['picture']}"](data_set, **more), path))


def _cut(rows: Sequence[Sequence[Any]], most: int) -> list[list[Any]]:
    """Return at most so many rows, the rest summed in the last."""
    if len(rows) <= most:
        return [list(row) for row in rows]
    rest = rows[most - 1 :]
    sums = [sum(row[column] for row in rest) for column in range(1, len(rest[0]))]
    return [*map(list, rows[: most - 1]), [f"{len(rest)} more", *sums]]


def page(found: Facts, entry: dict[str, Any], probes: Sequence[dict[str, Any]]) -> str:
    """Return the page of a set.

    Args:
        found: What `facts` counted.
        entry: What is written by hand.
        probes: What benchmarks/probe.py found, with the defaults first.
    """
    name = found["name"]
    parts = [f"# `{name}`", MARK, _prose(entry["about"]), f"```console\n{entry['get']}\n```", _summary(found)]
    options = ", ".join(f"`{key}={json.dumps(value)}`" for key, value in found["options"].items())
    if options:
        parts.append(_prose(f"Options (`data.options`) with their defaults: {options}."))
    if (PICTURES / f"{name}.png").is_file():
        shown = "training examples of each class" if entry["picture"] == "counts" else "some training examples"
        parts.append(f"![{name}: {shown}](pictures/{name}.png)")
        if entry.get("because"):
            parts.append(_prose(entry["because"]))
        if entry["picture"] != "counts":
            under = [*found["attribution"], *([entry["under"].strip()] if "under" in entry else [])]
            parts.append("<br>\n".join(under))
    if found.get("examples"):
        parts.append("## Some of the texts\n\n" + _table(["class", "text"], found["examples"]))
    rows = sorted(found["classes"], key=lambda row: -row[1]) if found["imbalance"] > 2 else found["classes"]
    parts.append("## Examples by class\n\n" + _table(["class", "training", "test"], _cut(rows, MOST_ROWS)))
    if found["domains"]:
        parts.append("## Examples by domain\n\n" + _table(["domain", "training", "test"], found["domains"]))
    if probes:
        parts.append(f"## Linear probe\n\n{_how(probes[0])}")
    tables = runpy.run_path(str(ROOT / "benchmarks" / "probe_tables.py"))["tables"]
    for probed in probes:
        changed = [f"`{key}={json.dumps(value)}`" for key, value in probed["options"].items()]
        parts.append(f"With {' and '.join(changed)} in `data.options`:" if changed else "")
        words = probed["command"].split(" --")
        command = " \\\n    --".join(words) if len(probed["command"]) > 100 else probed["command"]
        parts.append(f"{tables(probed).strip()}\n\n```bash\n{command}\n```")
    if entry.get("notes"):
        parts.append(_prose(entry["notes"]))
    return "\n\n".join(filter(None, parts)) + "\n"


def _prose(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def _how(probed: dict[str, Any]) -> str:
    seeds = probed["seeds"]
    over = f"mean ± deviation over {seeds} draws of the training examples" if seeds > 1 else "one draw of the training"
    limits = [f"at most {probed[key]:,} {split}" for key, split in (("max_train", "drawn"), ("max_test", "tested on"))
              if probed[key]]  # fmt: skip
    limited = f" ({', '.join(limits)} of a domain)" if limits else ""
    return _prose(
        f"What a linear model reads off a frozen encoder: {over}{limited}, a fifth of which only chooses the penalty. "
        "Balanced is the mean over the classes."
    )


def _summary(found: Facts) -> str:
    shape = " x ".join(map(str, found["image"]))
    rows = [["examples", f"{found['train']:,} for training, {found['test']:,} for testing"]]
    rows.append(["images", f"{shape} (channels, height, width)" if shape else "none: texts, which need `data.encoder`"])
    rows.append(["classes", _classes(found)])
    if found["domains"]:
        rows.append(["domains", ", ".join(name for name, *_ in found["domains"])])
    if "concepts" in found:
        rows.append(["concepts", "{:,} in training, {:,} others in testing".format(*found["concepts"])])
    if "texts" in found:
        texts = found["texts"]
        rows.append(["texts", f"{texts['distinct']:,} distinct, {texts['words']:g} words in the median, "
                              f"{texts['longest']:,} in the longest"])  # fmt: skip
    rows.append(["licence", found["licence"]])
    if found["attribution"]:
        rows.append(["attribution", "<br>".join(found["attribution"])])
    return _table(["", ""], rows)


def _classes(found: Facts) -> str:
    count, factor = len(found["classes"]), found["imbalance"]
    balance = f"the largest has {factor:g} times the examples of the smallest" if factor > 1 else "balanced"
    return f"{count}; {balance}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    numbers = [all(isinstance(row[column], int) for row in rows) for column in range(len(heads))]
    lines = ["| " + " | ".join(heads) + " |", "|" + "|".join("---:" if number else "---" for number in numbers) + "|"]
    for row in rows:
        cells = [f"{cell:,}" if isinstance(cell, int) else str(cell).replace("|", "\\|") for cell in row]
        lines.append("| " + " | ".join(" ".join(cell.split()) for cell in cells) + " |")
    return "\n".join(lines)


def papers_page() -> str:
    """Return the page of the sets that are fetched from the hub."""
    rows = []
    for name in registry.names():
        paper = getattr(papers, name.upper(), None)
        if paper is not None:
            about = [getattr(paper, "licence", "those of the sets it is made of"), getattr(paper, "attribution", "")]
            licence = "<br>".join(filter(None, about))
            rows.append([f"`{name}`", registry.describe(name), licence, f"`umbel data fetch {name}`"])
    head = (
        "# The sets of papers\n\n" + MARK + "\n\n"
        "Fetched from the Hugging Face hub, or read from a folder in the form of the downloaded set with\n"
        "`data.path=FOLDER`. Counts are as published with the sets; nothing of them is in this repository. Without a\n"
        "network the error gives the command that fetches the set elsewhere.\n\n"
    )
    return head + _table(["`data.name`", "what", "licence and source", "get it"], rows) + "\n"


def index(sets: dict[str, Facts]) -> str:
    """Return the index of all names.

    Args:
        sets: What was counted, by name.
    """
    head = (
        "# Data sets\n\n" + MARK + "\n\n"
        "All by name in `data.name`; `umbel list data` shows them with their options. "
        "A partition cuts any of them into clients; its\nkeys are in [configuration.md](../configuration.md).\n"
    )
    rows = []
    for name, found in sorted(sets.items()):
        shape = " x ".join(map(str, found["image"])) or "texts"
        domains = str(len(found["domains"]) or "")
        counts = [found["train"], found["test"], len(found["classes"])]
        rows.append([f"[{name}]({name}.md)", shape, *counts, domains, f"{found['imbalance']:g}", found["licence"]])
    heads = ["set", "form", "training", "test", "classes", "domains", "largest / smallest class", "licence"]
    others = [
        [f"[{name}](papers.md)" if hasattr(papers, name.upper()) else f"`{name}`", registry.describe(name)]
        for name in registry.names()
        if name not in sets
    ]
    return (
        f"{head}\n## Sets that packages carry\n\n{_table(heads, rows)}\n\n"
        f"## From the hub, or from your own folders\n\n{_table(['set', 'what'], others)}\n\n"
        "What is read of your own folders, tables and functions, what is left out, and what is refused: "
        "[own.md](own.md).\n\n"
        "Pages, counts and pictures are written by `python docs/make_data.py`, probes by `benchmarks/probe.py`.\n"
    )


def probe_files(name: str) -> list[Path]:
    """Return what was probed of a set: `<set>.json` with its defaults, then `<set>+<what differs>.json`."""
    return [path for path in (PROBES / f"{name}.json", *sorted(PROBES.glob(f"{name}+*.json"))) if path.is_file()]


def pages() -> dict[str, str]:
    """Return all pages by file name, from the files that are there."""
    entries, found, sets = about(), {}, {}
    for name, entry in entries.items():
        counted = COUNTED / f"{name}.json"
        if counted.is_file():
            sets[name] = json.loads(_read(counted))
            found[f"{name}.md"] = page(sets[name], entry, [json.loads(_read(path)) for path in probe_files(name)])
    return found | {"papers.md": papers_page(), "README.md": index(sets)}


def count(names: Sequence[str]) -> None:
    """Count and draw sets, and say which are not on this machine."""
    entries = about()
    for name in names or entries:
        try:
            data_set = registry.load(DataConfig(name=name), 0)
        except (MissingDataError, ModuleNotFoundError) as error:
            print(f"{name}: left as it is. {error}")
            continue
        found = facts(name, data_set, int(entries[name].get("examples", 0)))
        text = json.dumps(found, indent=1, ensure_ascii=False)
        (COUNTED / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        size = draw(entries[name], data_set, PICTURES / f"{name}.png")
        print(f"{name}: {found['train']:,} + {found['test']:,} examples, a picture of {size / 1000:.0f} KB")


def main() -> int:
    """Do what the command line says; return the exit code."""
    words = sys.argv[1:]
    if "--check" in words:
        old = [name for name, text in pages().items() if _read(PAGES / name) != text]
        print("docs/data is", f"out of date ({', '.join(old)}): python docs/make_data.py --pages" if old else "current")
        return int(bool(old))
    if "--pages" not in words:
        count(words)
    for name, text in pages().items():
        (PAGES / name).write_text(text, encoding="utf-8")
    return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


if __name__ == "__main__":
    sys.exit(main())
