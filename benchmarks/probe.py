"""How much of a data set does a linear model read off a frozen encoder, in its own domain and in others?

Multinomial logistic regression on embeddings. A seed draws the training examples (at most `--max-train` a domain) and
holds a fifth of them out, whole concepts where examples share them; on that fifth the strength of the L2 penalty is
chosen, and never on the test set. Training is on one domain, testing on the unseen concepts of every domain. With
`--resplit` a seed also draws which concepts are tested, out of all of them: how hard a set's own split happens to be is
then part of the deviation. Pairs of
image and text are also searched: a ridge map from image to text embeddings, recall at 10 among unseen concepts.

    python benchmarks/probe.py --set emoji_domains --encoder lite0 --size 96 --seeds 3 [--json FILE]

Shapes: N examples, D features, C classes, T features of a text.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from probe_tables import tables  # beside this script
from torch import Tensor
from torch.nn import functional as F

from umbel.core.rng import generator
from umbel.data import encoders
from umbel.data.config import DataConfig
from umbel.data.sets import registry
from umbel.data.split import stratified, stratified_concepts
from umbel.data.types import DataSet, Examples

PENALTIES = (3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3, 1e-4)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
FLOOR, HELD_OUT, ITERATIONS, PATIENCE, RANK = 0.1, 0.2, 60, 2, 10


def standardiser(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and scale of each feature, [D] and [D].

    The scale is the deviation, but at least a tenth of the root mean square of all deviations: a pixel that is almost
    constant in training would otherwise be blown up in testing. It is 1 where all features are constant.
    """
    deviations = features.std(0, correction=0)
    floor = FLOOR * deviations.square().mean().sqrt()
    return features.mean(0), deviations.clamp_min(float(floor) or 1.0)


def path(features: Tensor, labels: Tensor, num_classes: int, penalties: Sequence[float]) -> Iterator[Tensor]:
    """Fit one model a penalty, each from the one before.

    The loss is the mean cross-entropy plus penalty / 2 times the squared weights; the bias is not penalised.

    Args:
        features: [N, D] floating point.
        labels: [N] int64.
        num_classes: C.
        penalties: Strengths, from strong to weak.

    Yields:
        Weights and bias, [C, D + 1].
    """
    padded = F.pad(features, (0, 1), value=1.0)
    weights = padded.new_zeros(num_classes, padded.shape[1], requires_grad=True)
    for penalty in penalties:
        optimizer = torch.optim.LBFGS([weights], max_iter=ITERATIONS, history_size=10, line_search_fn="strong_wolfe")

        def loss(penalty: float = penalty, optimizer: torch.optim.LBFGS = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(padded @ weights.T, labels) + penalty / 2 * weights[:, :-1].square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
        yield weights.detach().clone()


def predict(weights: Tensor, features: Tensor) -> Tensor:
    """Return the likeliest class of each example, [N]."""
    return (features @ weights[:, :-1].T + weights[:, -1]).argmax(1)


def fit(train: Examples, validation: Examples, num_classes: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Fit on `train`, choose the penalty on `validation`.

    Returns:
        Weights [C, D + 1], mean [D], scale [D] and the penalty. Of equal penalties the strongest is taken.
    """
    mean, scale = standardiser(train.images)
    features, held_out = (train.images - mean) / scale, (validation.images - mean) / scale
    # The L2 penalty keeps the weights in the span of the examples; with fewer examples than features that is smaller.
    basis = torch.linalg.qr(features.T)[0] if features.shape[0] < features.shape[1] else None
    if basis is not None:
        features, held_out = features @ basis, held_out @ basis
    best, chosen, worse = -1.0, (torch.empty(0), 0.0), 0
    for penalty, weights in zip(PENALTIES, path(features, train.labels, num_classes, PENALTIES), strict=True):
        found = float((predict(weights, held_out) == validation.labels).double().mean())
        if found > best:
            best, chosen, worse = found, (weights, penalty), 0
        elif found < best and (worse := worse + 1) == PATIENCE:
            break  # a tie says nothing: the strongest penalties may all give the commonest class
    weights, penalty = chosen
    if basis is not None:
        weights = torch.cat([weights[:, :-1] @ basis.T, weights[:, -1:]], dim=1)
    return weights, mean, scale, penalty


def draw(examples: Examples, most: int, seed: int, purpose: str, domains: int) -> Tensor:
    """Return example numbers, ascending: at most `most` of each domain (0 for all), drawn by the seed."""
    order = torch.randperm(len(examples), generator=generator(seed, purpose=purpose))
    if most > 0:
        kind = torch.zeros_like(order) if examples.domains is None else examples.domains[order]
        order = torch.cat([order[kind == domain][:most] for domain in range(domains)])
    return order.sort().values


def hold_out(examples: Examples, seed: int) -> tuple[Examples, Examples]:
    """Return examples in two parts that share no concept: to fit on, and to choose the penalty on."""
    groups = examples.labels
    if examples.concepts is None:
        kept, held = stratified(groups, HELD_OUT, seed, "probe validation")
    else:
        kept, held = stratified_concepts(examples.concepts, groups, HELD_OUT, seed, "probe validation")
    return examples.take(kept), examples.take(held)


def of_domain(examples: Examples, domain: int) -> Examples:
    """Return the examples of one domain; all of them for -1."""
    if domain < 0 or examples.domains is None:
        return examples
    return examples.take(examples.domains == domain)


def probe(encoded: DataSet, draws: Sequence[Tensor], first_seed: int = 0) -> dict[str, Any]:
    """Probe a set of embeddings with one training subset a seed.

    Returns:
        `rows`, the domains trained on ("all of them" last where there are several); `columns`, those tested on; for
        each pair a list with one `accuracy` and one `balanced` accuracy (the mean over the classes) a seed; for each
        column the rate of the commonest class, `majority`, and `test`; for each row `train` and the `penalties`.
    """
    columns = list(encoded.domain_names) or ["all"]
    train_on = list(range(len(columns))) + ([-1] if len(columns) > 1 else [])
    found: dict[str, Any] = {
        "features": encoded.in_channels,
        "rows": columns + (["all of them"] if len(columns) > 1 else []),
        "columns": columns,
        "majority": [],
        "test": [],
        "train": [0] * len(train_on),
        "penalties": [[] for _ in train_on],
        "accuracy": [[[] for _ in columns] for _ in train_on],
        "balanced": [[[] for _ in columns] for _ in train_on],
    }
    tests = [of_domain(encoded.test, column) for column in range(len(columns))]
    for test in tests:
        found["test"].append(len(test))
        found["majority"].append(float(torch.bincount(test.labels).max()) / len(test))
    for seed, index in enumerate(draws, start=first_seed):
        subset = encoded.train.take(index)
        for row, domain in enumerate(train_on):
            train, validation = hold_out(of_domain(subset, domain), seed)
            weights, mean, scale, penalty = fit(train, validation, encoded.num_classes)
            found["train"][row] = len(train)
            found["penalties"][row].append(penalty)
            for column, test in enumerate(tests):
                right = (predict(weights, (test.images - mean) / scale) == test.labels).double()
                sizes = torch.bincount(test.labels, minlength=encoded.num_classes)
                hits = torch.bincount(test.labels, right, minlength=encoded.num_classes)
                found["accuracy"][row][column].append(float(right.mean()))
                found["balanced"][row][column].append(float((hits / sizes)[sizes > 0].mean()))
    return found


def resplit(encoded: DataSet, seed: int) -> DataSet:
    """Return a set whose test examples are drawn anew, by concept, as many of them as it has."""
    both = (encoded.train, encoded.test)
    if encoded.train.concepts is None or encoded.test.concepts is None:
        raise SystemExit(f"{encoded.name} has no concepts: leave --resplit out")
    whole = Examples(
        images=torch.cat([part.images for part in both]),
        labels=torch.cat([part.labels for part in both]),
        domains=None if both[0].domains is None else torch.cat([part.domains for part in both]),  # type: ignore[misc]
        concepts=torch.cat([encoded.train.concepts, encoded.test.concepts]),
    )
    assert whole.concepts is not None
    share = len(torch.unique(encoded.test.concepts)) / len(torch.unique(whole.concepts))
    kept, held = stratified_concepts(whole.concepts, whole.labels, share, seed, "probe split")
    return replace(encoded, train=whole.take(kept), test=whole.take(held), natural_ids=None)


def probe_resplit(encoded: DataSet, seeds: int) -> dict[str, Any]:
    """Probe as `probe` does, on another split for each seed; counts and rates are those of the last."""
    found: dict[str, Any] = {}
    for seed in range(seeds):
        drawn = resplit(encoded, seed)
        one = probe(drawn, [torch.arange(len(drawn.train))], first_seed=seed)
        for key in ("accuracy", "balanced"):
            for row, cells in enumerate(one[key]):
                for column, values in enumerate(cells):
                    values[:0] = found[key][row][column] if found else []
        for row, penalties in enumerate(one["penalties"]):
            penalties[:0] = found["penalties"][row] if found else []
        found = one
    return found


def ridge(images: Tensor, texts: Tensor, strength: float) -> Tensor:
    """Return the map [D, T] that minimises |X M - Y|^2 + strength * N |M|^2, for centred X [N, D] and Y [N, T]."""
    gram = images.T @ images + strength * len(images) * torch.eye(images.shape[1], dtype=images.dtype)
    found: Tensor = torch.linalg.solve(gram, images.T @ texts)
    return found


def recalls(mapped: Tensor, texts: Tensor, rank: int = RANK) -> tuple[float, float]:
    """Return recall at `rank` from image to text and back, where row n of both, [N, T], is one pair.

    Similarity is the cosine; a tie counts against the pair.
    """
    scores = F.normalize(mapped, dim=1) @ F.normalize(texts, dim=1).T
    own = scores.diagonal()
    to_text = ((scores >= own[:, None]).sum(1) <= rank).double().mean()
    to_image = ((scores >= own[None, :]).sum(0) <= rank).double().mean()
    return float(to_text), float(to_image)


def one_each(examples: Examples, seed: int) -> Tensor:
    """Return one example of each concept and of each caption, in random order: the same words twice fool a search."""
    assert examples.texts is not None
    seen: set[str] = set()
    shown: set[int] = set()
    texts, kept = list(examples.texts), []
    concepts = torch.arange(len(examples)) if examples.concepts is None else examples.concepts
    for number in torch.randperm(len(examples), generator=generator(seed, purpose="probe pairs")).tolist():
        text, concept = texts[number].strip().lower(), int(concepts[number])
        if text not in seen and concept not in shown:
            seen.add(text)
            shown.add(concept)
            kept.append(number)
    return torch.tensor(kept)


def retrieve(images: DataSet, texts: DataSet, draws: Sequence[Tensor], candidates: int) -> dict[str, Any]:
    """Learn a ridge map from image to text embeddings and search among unseen concepts with it.

    Args:
        images: Embeddings [N, D] of the images.
        texts: Embeddings [N, T] of the texts, in the same order.
        draws: Training examples, one tensor a seed.
        candidates: How many unseen concepts there are to find a pair in, at most.
    """
    found: dict[str, Any] = {"candidates": 0, "chance": 0.0, "to_text": [], "to_image": [], "ridges": []}

    def pair(split: str, index: Tensor) -> tuple[Tensor, Tensor]:
        both = (getattr(source, split).take(index).images.double() for source in (images, texts))
        first, second = both
        return first, second

    for seed, index in enumerate(draws):
        numbered = replace(images.train.take(index), images=index.double()[:, None])
        kept, held = (part.images[:, 0].long() for part in hold_out(numbered, seed))
        held = held[one_each(images.train.take(held), seed)][:candidates]
        x, y = pair("train", kept)
        mean, scale = standardiser(x)
        centre = y.mean(0)
        maps = [ridge((x - mean) / scale, y - centre, strength) for strength in RIDGES]

        def search(split: str, index: Tensor, matrix: Tensor) -> tuple[float, float]:
            first, second = pair(split, index)
            return recalls((first - mean) / scale @ matrix, second - centre)  # noqa: B023 - called in this turn only

        scores = [sum(search("train", held, matrix)) for matrix in maps]
        best = scores.index(max(scores))
        unseen = one_each(images.test, seed)[:candidates]
        to_text, to_image = search("test", unseen, maps[best])
        found["candidates"], found["chance"] = len(unseen), min(1.0, RANK / len(unseen))
        found["to_text"].append(to_text)
        found["to_image"].append(to_image)
        found["ridges"].append(RIDGES[best])
    return found


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
        found = probe_resplit(encoded[name], given.seeds) if given.resplit else probe(encoded[name], draws)
        result["probes"].append({"encoder": name, "size": pixels, **found})
        seconds = time.perf_counter() - middle
        print(f"{name}: {middle - started:.1f} s to encode, {seconds:.1f} s to probe", file=sys.stderr, flush=True)
    pair = given.pairs.split(",") if given.pairs else []
    if pair:
        sizes = {found["encoder"]: found["size"] for found in result["probes"]}
        both = [encoded.get(name) or encoders.encode(data_set, name, given.size) for name in pair]
        found = retrieve(both[0], both[1], draws, given.candidates)
        at = f" at {sizes.get(pair[0], given.size)} px"
        result["retrieval"] = {"images": pair[0] + at, "texts": pair[1], **found}
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
