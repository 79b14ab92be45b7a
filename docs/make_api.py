"""Write docs/api.md from the docstrings of what `import umbel` offers.

python docs/make_api.py            # writes the page
python docs/make_api.py --check    # exits with 1 if the page is out of date
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import ModuleType

import umbel

PAGE = Path(__file__).resolve().parent / "api.md"

HEAD = """\
# What `import umbel` offers

<!-- Written by docs/make_api.py from the docstrings in the code. Do not edit by hand. -->

```python
import umbel

result = umbel.run("digits", "strategy.name=fedprox", "strategy.mu=0.1")
print(result.summary["metrics"]["test/accuracy"])
```

These names keep their meaning from version to version; each is loaded when it is first used. Everything else is
importable too (`umbel.strategies.ggeur.geometry`, `umbel.core.metrics.retrieval`), documented where it stands.
"""


def signature(name: str, found: object) -> str:
    """Return how a function or class is called, with short names of types."""
    try:
        text = str(inspect.signature(found)).replace("'", "")  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return name
    return f"{name}{text}"


def entry(name: str) -> str:
    """Return the section of one name."""
    found = getattr(umbel, name)
    doc = inspect.getdoc(found) or ""
    if isinstance(found, ModuleType):
        lines = [f"## {name}", "", doc, ""]
        for each in found.__all__:
            first = (inspect.getdoc(getattr(found, each)) or "").splitlines()[0]
            lines.append(f"* `umbel.{name}.{each}`: {first}")
        return "\n".join(lines) + "\n"
    head, _, rest = doc.partition("\n")
    body = f"\n```text\n{rest.strip(chr(10))}\n```\n" if rest.strip() else ""
    kind = "class " if inspect.isclass(found) else ""
    return f"## {name}\n\n{head}\n\n```text\n{kind}{signature(f'umbel.{name}', found)}\n```\n{body}"


def page() -> str:
    """Return the page."""
    return "\n".join([HEAD, *map(entry, umbel.__all__)])


def main() -> int:
    """Write the page, or compare it."""
    if "--check" in sys.argv:
        return int(page() != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
