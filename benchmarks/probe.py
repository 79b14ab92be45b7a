"""How much of a data set does a linear model read off a frozen encoder, in its own domain and in others?

Multinomial logistic regression on embeddings. A seed draws the training examples (at most `--max-train` a domain) and
holds a fifth of them out, whole concepts where examples share them; on that fifth the strength of the L2 penalty is
chosen, and never on the test set. Training is on one domain, testing on the unseen concepts of every domain. With
`--resplit` a seed also draws which concepts are tested, out of all of them: how hard a set's own split happens to be is
then part of the deviation. Pairs of image and text are also searched: a ridge map from image to text embeddings,
recall at 10 among unseen concepts.

    python benchmarks/probe.py --set emoji_domains --encoder lite0 --size 96 --seeds 3 [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from linear_probe import draw, probe, probe_resplit  # these lie beside this script
from pair_retrieval import retrieve
from probe_tables import tables

from umbel.data import encoders
from umbel.data.config import DataConfig
from umbel.data.sets import registry


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Load, draw, encode what was drawn, and probe."""
    pairs = (option.split("=", 1) for option in given.option)
    options = {key: _value(value) for key, value in pairs}
    data_set = registry.load(DataConfig(name=given.set, path=given.path, options=options), 0)
    domains = max(1, len(data_set.domain_names))
    draws = [draw(data_set.train, given.max_train, seed, "probe train", domains) for seed in range(given.seeds)]
    used = torch.unique(torch.cat(draws))
    draws = [torch.searchsorted(used, index) for index in draws]
    test = draw(data_set.test, given.max_test, 0, "probe test", domains)
    data_set = replace(
        data_set,
        train=data_set.train.take(used),
        test=data_set.test.take(test),
        natural_ids=None if data_set.natural_ids is None else data_set.natural_ids[used],
    )
    result: dict[str, Any] = {
        "set": given.set,
        "options": options,
        "classes": data_set.num_classes,
        "seeds": given.seeds,
        "max_train": given.max_train,
        "max_test": given.max_test,
        "resplit": given.resplit,
        "probes": [],
    }
    encoded = {}
    for name, _, size in (entry.partition("@") for entry in given.encoder.split(",")):
        pixels = int(size or given.size)
        started = time.perf_counter()
        encoded[name] = encoders.encode(data_set, name, pixels)
        middle = time.perf_counter()
        probed = probe_resplit(encoded[name], given.seeds) if given.resplit else probe(encoded[name], draws)
        result["probes"].append({"encoder": name, "size": pixels, **probed})
        seconds = time.perf_counter() - middle
        print(f"{name}: {middle - started:.1f} s to encode, {seconds:.1f} s to probe", file=sys.stderr, flush=True)
    pair = given.pairs.split(",") if given.pairs else []
    if pair:
        sizes = {probed["encoder"]: probed["size"] for probed in result["probes"]}
        both = [encoded.get(name) or encoders.encode(data_set, name, given.size) for name in pair]
        searched = retrieve(both[0], both[1], draws, given.candidates)
        at = f" at {sizes.get(pair[0], given.size)} px"
        result["retrieval"] = {"images": pair[0] + at, "texts": pair[1], **searched}
    return result


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def main() -> int:
    """Probe, print the tables, write the JSON; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", required=True, help="a name of `umbel list data`")
    parser.add_argument("--encoder", default="pixels", help="names of `umbel list encoders`, as in pixels,lite0@96")
    parser.add_argument("--size", type=int, default=0, help="side of an image in pixels, 0 for the encoder's own")
    parser.add_argument("--seeds", type=int, default=3, help="how many training subsets, at least 1")
    parser.add_argument("--max-train", type=int, default=0, help="most training examples of a domain, 0 for all")
    parser.add_argument("--max-test", type=int, default=0, help="most test examples of a domain, 0 for all")
    parser.add_argument("--resplit", action="store_true", help="a seed also draws which concepts are tested")
    parser.add_argument("--pairs", default="", help="encoders of images and of texts, as in lite0,minilm")
    parser.add_argument("--candidates", type=int, default=500, help="unseen concepts to search in")
    parser.add_argument("--option", action="append", default=[], help="key=value of data.options; may be repeated")
    parser.add_argument("--path", help="data.path")
    parser.add_argument("--json", type=Path, help="write what was found, for docs/make_data.py")
    given = parser.parse_args()
    if given.seeds < 1:
        parser.error("--seeds should be at least 1")
    if given.resplit and (given.max_train or given.max_test or given.pairs):
        parser.error("--resplit takes all examples: leave --max-train, --max-test and --pairs out")
    torch.set_num_threads(1)
    result = run(given)
    words = sys.argv[1:]
    command = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("--path") and before != "--path"
    ]
    result["command"] = shlex.join(["python", "benchmarks/probe.py", *command])
    print(tables(result))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
