"""Speed: how fast this machine scores genotypes, and how small an input still ranks them as the paper's does.

What `python -m pipelines.search --speed` prints. Everything is measured in one run, on one thread, genotype by genotype
in turn, so that whatever else the machine does disturbs all that is compared alike.
"""

import logging
import math
import os
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from configs.schema import Config
from esformer.errors import ESFormerError
from esformer.throttle import Throttle

if TYPE_CHECKING:
    from esformer.genotype import Genotype

log = logging.getLogger("esformer")

Item = TypeVar("Item")

PROXIES = ("entropic_score", "log_synflow")
PAPERS_SIZE = 224
SIZES = (33, 65, 97, 129, 161, 193)
"""Smaller inputs; at 32 k + 1 pixels the last stage has as many positions as at the next multiple of 32."""
LATE = 100
"""So many of the last genotypes that a search compared by a proxy are ranked."""
TOGETHER = 10
"""Genotypes that are timed one after the other before another way to score them has its turn."""
PROFILED = 5
"""Genotypes of which it is measured where the time goes."""
KINDS = {
    "matrix products": ("mm", "bmm", "mv", "addmm", "addmv"),
    "logarithms": ("log", "log1p"),
    "sums, maxima": ("sum", "dot", "mean", "amax", "amin"),
}
"""Operators by what they compute; convolutions are told by parts of their names, and by the shape of the weight."""


@dataclass(frozen=True)
class Input:
    """What a genotype is scored on: the size of the random images, and how many draws the score is the mean of."""

    img_size: int
    draws: int

    def __str__(self) -> str:
        return f"{self.img_size} px, {self.draws} {'draw' if self.draws == 1 else 'draws'}"


@dataclass(frozen=True)
class Scores:
    """One way to score genotypes: what it found, and how many seconds each took."""

    values: list[float]
    seconds: list[float]


def speed(config: Config, sample: int = 100, late: str | Path | None = None) -> dict[str, Any]:
    """Measure, print tables, and return what they show.

    Args:
        config: its size, seed, `search.extended`, and `search.img_size` and `search.draws` if they are set.
        sample: how many random genotypes.
        late: the journal of a search, whose last genotypes are ranked too: they are more alike than random ones.
    """
    from esformer.space import SearchSpace
    from pipelines.runtime.logs import start_logging

    if sample < 1:
        raise ESFormerError(f"{sample} genotypes are too few to measure; give at least 1")
    start_logging()
    space, rng = SearchSpace.for_size(config.size, config.search.extended), random.Random(config.seed)
    genotypes = [space.sample(rng) for _ in range(sample)]
    found = measure(
        genotypes, {} if late is None else last_of(late), config.seed, config.search.img_size, config.search.draws
    )
    found = {"space": space.name, "seed": config.seed, **found}
    show(found)
    return found


def last_of(journal: str | Path) -> "dict[str, list[Genotype]]":
    """The last `LATE` genotypes that a search scored with each proxy, each once."""
    from esformer.genotype import Genotype
    from esformer.search.journal import read

    last: dict[str, dict[str, Any]] = {name: {} for name in PROXIES}
    for evaluation in read(journal):
        key = str(evaluation.genotype)
        for name in set(PROXIES) & set(evaluation.scores):
            last[name].pop(key, None)
            last[name][key] = evaluation.genotype
            if len(last[name]) > LATE:
                del last[name][next(iter(last[name]))]
    return {name: [Genotype.from_dict(genotype) for genotype in found.values()] for name, found in last.items()}


def measure(
    genotypes: "Sequence[Genotype]",
    late: "Mapping[str, Sequence[Genotype]]",
    seed: int = 0,
    img_size: int | None = None,
    draws: int | None = None,
    papers_size: int = PAPERS_SIZE,
    sizes: Sequence[int] = SIZES,
) -> dict[str, Any]:
    """All the figures of the tables, proxy by proxy.

    Args:
        genotypes: random ones, of which times and ranks are measured.
        late: for each proxy such as a search compares by it, which are ranked too; may be empty.
        seed: of the scores.
        img_size: pixels of a search's inputs; by default what each proxy recommends.
        draws: of a search; by default what each proxy recommends.
        papers_size: the input that all else is compared with.
        sizes: smaller inputs.
    """
    import torch

    from esformer.proxies import get

    found: dict[str, Any] = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability(), "proxies": {}}
    found["genotypes"] = {"random": len(genotypes)} | ({"late": max(map(len, late.values()))} if late else {})
    for name in PROXIES:
        proxy = get(name)
        paper = Input(papers_size, proxy.draws)
        search = Input(img_size or proxy.search_img_size, draws or proxy.search_draws or proxy.draws)
        times = _times(name, genotypes, seed, paper, search)
        groups = {"random": genotypes} | ({"late": late[name]} if late else {})
        inputs = list(dict.fromkeys([*(Input(size, 1) for size in sizes), search, Input(papers_size, 1)]))
        found["proxies"][name] = {
            **times,
            "ranks": {group: _ranks(name, members, seed, paper, inputs, group) for group, members in groups.items()},
            "profile": profile(name, genotypes[:PROFILED], seed, search),
        }
    return found


def _times(
    name: str, genotypes: "Sequence[Genotype]", seed: int, paper: Input, search: Input
) -> dict[str, dict[str, Any]]:
    """How long the reference takes, the score without a network, and that on a search's input, in turn."""
    import numpy as np

    from esformer.model.esformer import MIN_IMAGE
    from esformer.proxies.cached_weights import cached_weights

    cached_weights.cache_clear()
    cold = _timed(name, genotypes[0], seed, search)[1]
    for genotype in genotypes:  # on any input this draws the weights, which a search needs to do only once
        _timed(name, genotype, seed, Input(MIN_IMAGE, max(paper.draws, search.draws)))
    ways = {"reference": (paper, True), "without_network": (paper, False), "search": (search, False)}
    for given, reference in ways.values():
        _timed(name, genotypes[0], seed, given, reference)
    found: dict[str, Scores] = {way: Scores([], []) for way in ways}
    # by turns, so that what else the machine does disturbs all alike; some at a time, as a search does it
    batches = [genotypes[i : i + TOGETHER] for i in range(0, len(genotypes), TOGETHER)]
    for members in _progress(batches, f"{name}: timed, batch"):
        for way, (given, reference) in ways.items():
            for genotype in members:
                value, seconds = _timed(name, genotype, seed, given, reference)
                found[way].values.append(value)
                found[way].seconds.append(seconds)
    baseline = found["reference"]
    result: dict[str, dict[str, Any]] = {}
    for way, (given, _) in ways.items():
        taken = np.array(found[way].seconds)
        slow, median, quick = np.percentile(taken, (75, 50, 25)).tolist()
        result[way] = {
            **asdict(given),
            "per_second": 1 / median,
            "per_second_quartiles": (1 / slow, 1 / quick),
            "times_reference": float(np.median(np.array(baseline.seconds) / taken)),
        }
    values, references = np.array(found["without_network"].values), np.array(baseline.values)
    result["without_network"]["largest_difference"] = float(np.abs(values / references - 1).max())
    result["search"]["first_seconds"] = cold
    return result


def _timed(name: str, genotype: "Genotype", seed: int, given: Input, reference: bool = False) -> tuple[float, float]:
    """A score and the seconds that it took."""
    from esformer.proxies import score

    start = time.perf_counter()
    value = score(name, genotype, seed, given.img_size, draws=given.draws, reference=reference)
    return value, time.perf_counter() - start


def _ranks(
    name: str, genotypes: "Sequence[Genotype]", seed: int, paper: Input, inputs: Sequence[Input], group: str
) -> list[dict[str, Any]]:
    """How alike the paper's input and others rank the genotypes; and, as a yardstick, the paper's with another seed."""
    asked = [(paper, seed), *((given, seed) for given in inputs), (paper, seed + 1)]
    scores: list[list[float]] = [[] for _ in asked]
    for genotype in _progress(genotypes, f"{name}: {group} genotypes ranked"):
        for values, (given, of) in zip(scores[:-1], asked, strict=False):
            values.append(_timed(name, genotype, of, given)[0])
    # last, for another seed's weights take the place of these
    for genotype in _progress(genotypes, f"{name}: {group} genotypes ranked with another seed"):
        scores[-1].append(_timed(name, genotype, seed + 1, paper)[0])
    rows = []
    for (given, of), values in zip(asked[1:], scores[1:], strict=True):
        rho, interval = spearman(scores[0], values)
        rows.append({**asdict(given), "seed": of, "spearman": rho, "interval": interval})
    return rows


def spearman(a: Sequence[float], b: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    """The rank correlation and where 95 % of such would lie (Fisher's z, with Fieller's variance for ranks)."""
    from scipy import stats

    if len(a) < 4 or min(len(set(a)), len(set(b))) == 1:
        return None, None
    rho = float(stats.spearmanr(a, b).statistic)
    z, reach = math.atanh(max(-1 + 1e-12, min(rho, 1 - 1e-12))), 1.96 * math.sqrt(1.06 / (len(a) - 3))
    return rho, (math.tanh(z - reach), math.tanh(z + reach))


def profile(name: str, genotypes: "Sequence[Genotype]", seed: int, given: Input) -> dict[str, float]:
    """Which share of the time each kind of work takes when a search scores."""
    import torch
    from torch.profiler import ProfilerActivity

    shares = dict.fromkeys(("matrix products", "depthwise convolutions", "other convolutions"), 0.0)
    shares |= dict.fromkeys(("logarithms", "sums, maxima", "other operators"), 0.0)
    for genotype in genotypes:
        _timed(name, genotype, seed, given)
    with _hushed(), torch.profiler.profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        seconds = sum(_timed(name, genotype, seed, given)[1] for genotype in genotypes)
    for event in profiler.key_averages(group_by_input_shape=True):
        shares[_kind(event.key, event.input_shapes)] += event.self_cpu_time_total * 1e-6 / seconds
    return shares | {"Python, profiler": max(0.0, 1 - sum(shares.values()))}


def _kind(operator: str, shapes: Sequence[Sequence[int]]) -> str:
    """What kind of work an operator does."""
    name = operator.removeprefix("aten::").removesuffix("_")
    if "conv" in name:
        # going back, the gradient comes before image and weight; a depthwise weight is C, 1, K, K
        image, weight = shapes[1:3] if "backward" in name else shapes[:2]
        depthwise = len(weight) == 4 and weight[1] == 1 < image[1]
        return "depthwise convolutions" if depthwise else "other convolutions"
    return next((kind for kind, names in KINDS.items() if name in names), "other operators")


@contextmanager
def _hushed() -> Iterator[None]:
    """Without the lines that the profiler's C++ writes to stderr."""
    stderr = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


def _progress(items: Iterable[Item], what: str, every: float = 15) -> Iterator[Item]:
    """The items, with a line now and then."""
    members = list(items)
    throttle = Throttle(every, at_once=False)
    for number, item in enumerate(members):
        yield item
        if throttle.due():
            log.info("%s %s of %s", what, number + 1, len(members))
    log.info("%s %s of %s", what, len(members), len(members))


def show(found: dict[str, Any]) -> None:
    """Print the figures as tables."""
    from pipelines.runtime.console import console, show_rows

    counts = ", ".join(f"{count:,} {name}" for name, count in found["genotypes"].items())
    console().print(
        f"Space {found['space']}, {counts} genotypes, one thread, PyTorch {found['torch']}, {found['cpu']}."
    )
    for title, rows in {
        "Genotypes a second: median (quartiles), once the weights are drawn": speed_table(found["proxies"]),
        "Spearman's rank correlation with the paper's input (95 % interval)": rank_table(found["proxies"]),
        "Where a search's scoring spends its time, percent": profile_table(found["proxies"]),
    }.items():
        show_rows(rows, title=title, title_justify="left")


def speed_table(proxies: dict[str, Any]) -> list[list[str]]:
    """A head and three rows for each proxy."""
    rows = [["proxy", "how", "input", "genotypes a second", "times the reference", "remarks"]]
    for name, found in proxies.items():
        for way, how in (
            ("reference", "float64 network with hooks"),
            ("without_network", "float32, no network"),
            ("search", "the same, a search's input"),
        ):
            f = found[way]
            low, high = f["per_second_quartiles"]
            remarks = {
                "reference": "",
                "without_network": f"differs by {f.get('largest_difference', 0):.0e} at most",
                "search": f"first genotype {f.get('first_seconds', 0):.2g} s",
            }
            pace = f"{f['per_second']:.3g} ({low:.3g} to {high:.3g})"
            given = str(Input(f["img_size"], f["draws"]))
            rows.append([name, how, given, pace, f"{f['times_reference']:.3g}", remarks[way]])
    return rows


def rank_table(proxies: dict[str, Any]) -> list[list[str]]:
    """A head and a row for each proxy and input; a column for each group of genotypes."""
    groups = list(next(iter(proxies.values()))["ranks"])
    rows = [["proxy", "input", *(f"{group} genotypes" for group in groups)]]
    for name, found in proxies.items():
        first = found["ranks"][groups[0]]
        for number, row in enumerate(first):
            given = str(Input(row["img_size"], row["draws"]))
            other = row["seed"] != first[0]["seed"]
            ranks = [_correlation(found["ranks"][group][number]) for group in groups]
            rows.append([name, f"{given}, another seed" if other else given, *ranks])
    return rows


def _correlation(row: dict[str, Any]) -> str:
    if row["spearman"] is None:
        return "too few, or all equal"
    return f"{row['spearman']:.3f} ({row['interval'][0]:.3f} to {row['interval'][1]:.3f})"


def profile_table(proxies: dict[str, Any]) -> list[list[str]]:
    """A head and a row for each proxy."""
    kinds = list(next(iter(proxies.values()))["profile"])
    rows = [["proxy", "input", *kinds]]
    for name, found in proxies.items():
        given = str(Input(found["search"]["img_size"], found["search"]["draws"]))
        rows.append([name, given, *(f"{100 * found['profile'][kind]:.0f}" for kind in kinds)])
    return rows
