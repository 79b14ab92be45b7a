"""A comparison's report alone is enough to have its runs again: what a file of one's own says is in it."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest

from umbel import compare, run

MINE = """
description: "mine"
data: {name: digits, num_clients: 2, max_train: 200, client_test: 0.0}
model: {name: linear}
client: {lr: 0.2, max_steps: 2, batch_size: 8}
strategy: {name: fedprox, mu: 0.3}
run: {rounds: 2}
evaluate: {clients: 0}
"""


@pytest.mark.parametrize("budget", ["rounds", "steps"])
def test_the_configurations_of_a_report_give_the_same_weights(budget: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(MINE)
    done = compare(
        str(tmp_path / "mine.yaml"), strategies="fedprox,fedavg", seeds=[3, 4], output=tmp_path / "c", budget=budget
    )
    (tmp_path / "mine.yaml").unlink()
    page = (tmp_path / "c" / "report.html").read_text(encoding="utf-8")
    found = dict(re.findall(r"<summary>Configuration of (.+?), seed 3</summary><pre>(.*?)</pre>", page, re.DOTALL))
    assert list(found) == ["fedprox", "fedavg"] and "mu: 0.3" in found["fedprox"] and "mu:" not in found["fedavg"]
    assert ("run.budget" in page.partition("Or run by run")[2].partition("</p>")[0]) == (budget != "rounds")
    for label, text in found.items():
        (tmp_path / f"{label}.yaml").write_text(html.unescape(text), encoding="utf-8")
        for member in done.of(label):
            if budget != "rounds" and label != "fedprox" and member.seed != 3:
                continue  # its budget is what fedprox cost with that seed
            others = (f"run.seed={member.seed}", f"run.name={label}-{member.seed}", f"run.results={tmp_path / 'again'}")
            again = run(str(tmp_path / f"{label}.yaml"), *others)
            assert again.summary["weights_sha256"] == member.summary["weights_sha256"], (label, member.seed)
