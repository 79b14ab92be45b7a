"""Write docs/configuration.md from the docstrings of the configuration's dataclasses.

python docs/make_configuration.py            # writes the page
python docs/make_configuration.py --check    # exits with 1 if the page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from umbel.simulations.commands import catalogue
from umbel.simulations.commands.catalogue import Option
from umbel.strategies import registry as strategies

PAGE = Path(__file__).resolve().parent / "configuration.md"

HEAD = """\
# Configuration

<!-- Written by docs/make_configuration.py from the docstrings in the code. Do not edit by hand. -->

An experiment is a YAML file with the sections below. Every key has a default, so a file says only what differs.
`umbel run` takes the name of an experiment of `conf/experiments/` or the path of a file, then `key=value` overrides,
of which the last one wins:

```console
umbel run digits strategy.name=fedprox strategy.mu=0.1 run.rounds=3
umbel list keys
umbel list experiments
```

An unknown key, a key that stands twice, a value of the wrong type, or values that do not go together are refused before
anything starts; the message says which key to change. A file is text in UTF-8. From the shell, quote what has blanks or
brackets. The resolved experiment is kept in the run's folder as `config.yaml`, which `umbel run` reads again. A file
may also have the blocks `compare` and `sweep`, which are for [`umbel compare`](comparing.md).

How values are written:

* The type is the key's. Text stays as it was written: `data.path=007`, `run.name=1e3`, and behind the `=` of an
  override also `data.path=pics #2` or `${USER}`, which stands for itself. In a file YAML's own rules come first: quote
  what has a `#` or a `: ` in it.
* Numbers are decimal: `20`, `0.05`, `1e-3`. A whole number has no point, no exponent and no zero in front, so `010`,
  `1_000` and `1:30` are none. NaN, infinity, integers beyond 64 bits and numbers beyond float32 are refused everywhere.
* `true` and `false`; `null` where a key may be empty; `[1, 2]` and `{a: 1}` as in YAML.
* A relative `data.path`, and `~`, are resolved where umbel is called, once: the path that is kept is absolute, so that
  a resume, an explanation or a node that starts elsewhere finds the same folder. `run.results` likewise.
* A file may have any name; letters, digits, underscores, dots and hyphens of it come into the names of folders.
* YAML's anchors and merges are read, tags are not, and all of it may have 4,000 values on 20 levels.

Some mappings take keys that depend on what they belong to: `data.options` (see `umbel list data`; single values have
the type of the set's default), `model.sizes` (see `umbel list models`), and the options and sizes that a strategy hands
on.
There a number is a number, `true` and `false` are truth values, other words are text, and `yes`, `no`, `on` and `off`,
which YAML's versions read differently, are refused without quotes. Which keys of `data` a partition reads says
`umbel list partitions`.
"""

PORTABLE = """\
## What server and clients must agree on

Both sides hash the resolved experiment without the keys that may differ between sites or after a resume: `name`,
`description`, `data.path`, `data.sites`, `data.server`, `client.device`, `run.results`, `run.name`, `run.rounds`, the
paths `simulation.devices.capacity` and `simulation.devices.availability` (the traces' hash counts), and the sections
`engine`, `evaluate`, `checkpoint` and `tune`. A node with another hash is refused, and the message has both.
"""


def main() -> int:
    """Write or check the page; return the exit code."""
    text = page()
    if "--check" in sys.argv[1:]:
        current = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
        print("configuration.md is", "up to date" if current else "out of date: python docs/make_configuration.py")
        return 0 if current else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


def page() -> str:
    """Return the text of the page."""
    parts = [HEAD]
    for entry in catalogue.entries("keys"):
        parts.append(f"## `{entry.name}`\n\n{_sentence(entry.line)}\n\n{_table(entry.options)}")
        if entry.name == "strategy":
            parts.extend(_strategies())
    return "\n".join([*parts, PORTABLE])


def _strategies() -> list[str]:
    """Return a section for each strategy of this project; Flower's change with its version."""
    ours = set(strategies.names())
    found = []
    for entry in catalogue.entries("strategies"):
        if entry.name in ours:
            options = tuple(Option(f"strategy.{o.name}", o.default, o.doc) for o in entry.options)
            head = f"### `strategy.name={entry.name}`\n\n{_sentence(entry.line)}"
            page_of = PAGE.parent / "strategies" / f"{entry.name}.md"
            link = f" See [its page](strategies/{entry.name}.md)." if page_of.is_file() else ""
            found.append(f"{head}{link}\n\n{_table(options)}")
    return found


def _table(options: tuple[Option, ...]) -> str:
    lines = ["| key | default | meaning |", "|---|---|---|"]
    for option in options:
        default = "" if "<" in option.name else f"`{_value(option.default)}`"
        lines.append(f"| `{option.name}` | {default} | {option.doc.replace('|', chr(92) + '|')} |")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """Write a value as YAML does, on one line."""
    if value is None:
        return "null"
    return yaml.safe_dump(value, default_flow_style=True).removesuffix("\n").removesuffix("...").strip()


def _sentence(text: str) -> str:
    return text if text.endswith(".") else text + "."


if __name__ == "__main__":
    sys.exit(main())
