"""How long the report of a hundred runs takes to be written and to be opened, and how large it is.

    python benchmarks/report_speed.py
    python benchmarks/report_speed.py --folder results/hundred --keep --profile

Ten strategies with ten seeds each are run on bundled digits (small, but whole runs), compared, and reported again. The
page is then opened in a headless Chromium, if there is one: `loaded` is what the page's own clock says when everything
is loaded and laid out, `drawn` how much longer Chromium takes for a picture of the whole page than for one of an empty
page, its start being in both. Figures are medians over repeats.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from round_times import machine

from umbel import compare
from umbel.simulations.report.page import report

STRATEGIES = (
    "fedavg,fedprox(mu=0.1),fedprox(mu=1),scaffold,moon,feddyn(alpha=0.1),fednova,fedntd,fedprox(mu=0.01)"
    ",feddyn(alpha=0.01)"
)
RUNS = (
    "data.max_train=400",
    "data.max_test=300",
    "data.num_clients=10",
    "model.name=cnn",
    "model.sizes={width: 4, hidden: 16}",
    "client.epochs=1",
    "client.lr=0.1",
    "client.device=cpu",
    "evaluate.clients=-1",
    "checkpoint.every=0",
)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EMPTY = "<!doctype html><title>empty</title>"
# Reading the height makes the browser lay everything out.
CLOCK = (
    "<script>addEventListener('load', () => { document.body.offsetHeight;"
    " document.title = 'loaded ' + performance.now().toFixed(0); });</script>"
)
TALLEST = 12_000  # pixels of a picture


def written(folder: Path, repeats: int) -> tuple[list[float], list[float]]:
    """Return how many seconds each writing of the report took, and how many of a processor."""
    times, used = [], []
    for _ in range(repeats):
        start, before = time.perf_counter(), time.process_time()
        report([folder])
        times.append(time.perf_counter() - start)
        used.append(time.process_time() - before)
    return times, used


def opened(page: Path, width: int, repeats: int) -> tuple[list[float], list[float]]:
    """Return in seconds when the page was loaded, and how long it took to be drawn as a whole."""
    text = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page.read_text(encoding="utf-8"))
    loaded, drawn = [], []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with_clock, empty = place / "page.html", place / "empty.html"
        with_clock.write_text(text.replace("<head>", f"<head>{CLOCK}", 1), encoding="utf-8")
        empty.write_text(EMPTY, encoding="utf-8")
        for _ in range(repeats):
            said, _ = _chromium(place, width, "--dump-dom", with_clock)
            found = re.search(r"<title>loaded (\d+)</title>", said)
            loaded.append(int(found[1]) / 1000 if found else float("nan"))
            picture = f"--screenshot={place / 'picture.png'}"
            drawn.append(_chromium(place, width, picture, page)[1] - _chromium(place, width, picture, empty)[1])
    return loaded, drawn


def _chromium(place: Path, width: int, what: str, page: Path) -> tuple[str, float]:
    """Return what a headless Chromium printed of a page, and how many seconds it was there."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={place / 'user'}"]
    start = time.perf_counter()
    done = subprocess.run(
        [*command, f"--window-size={width},{TALLEST}", what, page.as_uri()], capture_output=True, text=True, timeout=120
    )
    return done.stdout, time.perf_counter() - start


def row(what: str, values: Sequence[float]) -> str:
    """Return a row of the table."""
    return f"| {what} | {median(values):.2f} | {min(values):.2f}-{max(values):.2f} |"


def main() -> None:
    """Make what is measured, measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where the comparison is, or is to be; what is there is used again")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--keep", action="store_true", help="use runs that other code gave")
    parser.add_argument("--profile", action="store_true", help="say where the writing spends its time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary) / "hundred"
        found = compare(
            "digits",
            *RUNS,
            f"run.rounds={arguments.rounds}",
            strategies=STRATEGIES,
            seeds=arguments.seeds,
            output=folder,
            keep=arguments.keep,
        )
        load = os.getloadavg()[0]
        seconds, used = written(folder, arguments.repeats)
        page = folder / "report.html"
        print(f"{machine(load)}\n{len(found.members)} runs of {arguments.rounds} rounds\n")
        print(f"{page.stat().st_size / 1e6:.2f} MB, {page.read_text().count('<'):,} tags\n")
        print("| | median (s) | range |\n|---|---:|---:|")
        print(row("written", seconds))
        print(row("written, seconds of a processor", used))
        for width in (400, 1200) if CHROMIUM else ():
            loaded, drawn = opened(page, width, arguments.repeats)
            print(row(f"loaded, {width} pixels wide", loaded))
            print(row(f"drawn, {width} pixels wide", drawn))
        if arguments.profile:
            with cProfile.Profile() as profile:
                report([folder])
            pstats.Stats(profile).sort_stats("cumulative").print_stats(40)


if __name__ == "__main__":
    main()
