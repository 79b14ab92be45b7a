"""What axe-core says of reports, in a headless Chromium, at two widths, in light and in dark.

Left out without a Chromium, and without UMBEL_AXE, which names axe-core's axe.min.js.
"""

from __future__ import annotations

import html
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.helpers import SMALL, small_run
from tests.simulations.watch.test_page import CHROMIUM
from umbel.simulations.compare.carry_out import compare
from umbel.simulations.report.page import report

LOOKS = (
    "document.querySelectorAll('details').forEach((each) => { each.open = true; });"
    "setTimeout(async () => { const found = await axe.run(); const said = document.createElement('pre');"
    " said.id = 'axe'; said.textContent = JSON.stringify(found.violations.map((v) => [v.id, v.nodes[0].html]));"
    " document.body.append(said); }, 100)"
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("browser")
    compare("digits", *SMALL, strategies="fedavg,moon", seeds=2, output=folder / "both", target=0.1)
    return [report([small_run(folder).path]), folder / "both" / "report.html"]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.skipif(CHROMIUM is None or "UMBEL_AXE" not in os.environ, reason="needs Chromium and UMBEL_AXE")
@pytest.mark.parametrize("width", [500, 1200])
@pytest.mark.parametrize("scheme", ["0", "1"])  # dark and light
def test_axe_finds_nothing(pages: list[Path], tmp_path: Path, width: int, scheme: str) -> None:
    axe = Path(os.environ["UMBEL_AXE"]).read_text(encoding="utf-8")
    for number, page in enumerate(pages):
        text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text(encoding="utf-8"))
        with_axe = tmp_path / f"{number}.html"
        with_axe.write_text(f"{text}<script>{axe}</script><script>{LOOKS}</script>", encoding="utf-8")
        command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'user'}"]
        options = [f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}"]
        looked = [*command, *options, "--virtual-time-budget=15000", "--dump-dom", with_axe.as_uri()]
        done = subprocess.run(looked, capture_output=True, text=True, timeout=120)
        found = re.search(r'<pre id="axe">(.*?)</pre>', done.stdout, re.DOTALL)
        assert found, done.stderr[-2000:]
        assert json.loads(html.unescape(found[1])) == []
