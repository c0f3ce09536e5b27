"""A correlation: which scores are lacking, what they say of the accuracies, and the report of it."""

import argparse
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml
from lightning.fabric import Fabric

from configs.schema import Config
from esformer import benchmarks
from esformer.benchmarks.base import Entry
from esformer.benchmarks.correlation import AtEqualCost, at_equal_cost, correlate
from esformer.benchmarks.guides import fit_halves
from esformer.engine.executor import compute
from esformer.engine.start import executor_of_ranks
from esformer.errors import ESFormerError
from esformer.files import write_text
from esformer.guide import Guide, Term
from esformer.plots.correlation import Panel, draw_correlations
from esformer.proxies import get, names
from pipelines.runtime.console import show_rows
from pipelines.runtime.logs import start_logging
from pipelines.runtime.processes import processes
from pipelines.runtime.run_folder import Folder
from pipelines.runtime.scoring import Job, Progress, ScoreFile, Scorer, read_batch

log = logging.getLogger("esformer")

MOST_WORKERS = 1024
AHEAD = 4
"""Architectures in hand for each worker: a table of hundreds of thousands takes no memory."""
BEYOND = ("Spearman given cost", "right at equal cost")
"""What a table says beyond cost."""


class CorrelateError(ESFormerError):
    """What was asked for cannot be; says what can."""


def run(options: argparse.Namespace, command: str) -> dict[str, Any]:
    """Score what is not scored yet, then say how well the scores order the architectures.

    Args:
        options: what `pipelines.correlate.parse` gives.
        command: which says the same, for the result.

    Raises:
        ESFormerError: what was asked for cannot be; says what can.
    """
    start_logging()
    benchmark = benchmarks.get(options.benchmark)
    dataset = options.dataset or next(iter(benchmark.datasets))
    images = benchmark.dataset(dataset)
    if options.workers > MOST_WORKERS:
        raise CorrelateError(f"--workers is {options.workers}; it must be at most {MOST_WORKERS}")
    options.table = options.table or benchmark.shipped
    if options.table is None:
        raise CorrelateError(f"{benchmark.name} comes without a table; give its file with --table")
    if options.table.exists() and not (options.table.is_file() or options.table.is_dir()):
        raise CorrelateError(f"--table is {options.table}, which is neither a file nor a folder")
    guides = choose_guides(options.proxies, options.images)
    proxies = proxies_of(guides)
    table = benchmark.read(options.table, dataset)
    sample = draw_sample(table, options.sample, options.seed)
    batch = None
    if any(get(proxy).needs == "batch" for proxy in proxies):
        batch = read_batch(options.images, options.batch_size, images.num_classes, images.img_size, options.seed)
    job = Job(benchmark.name, dataset, options.seed, batch)
    fabric = Fabric(accelerator="cpu", **processes(Config()).settings())
    fabric.launch()
    if not fabric.is_global_zero:  # it scores for rank 0, which keeps the scores
        executor_of_ranks(fabric, Scorer(job), options.workers)
        return {}
    digest = digest_of(options.table)
    meaning = {"benchmark": benchmark.name, "dataset": dataset, "table_sha256": digest, "seed": options.seed}

    out = options.out or Path("runs") / f"correlate-{benchmark.name}-{dataset}"
    with Folder(out, command, "--out") as folder:
        folder.claim("python -m pipelines.correlate", yaml.safe_dump(meaning, sort_keys=False))
        if batch is not None:  # a file of its own: proxies that look at no image may come before or after
            shown = {"batch_size": options.batch_size, "names_sha256": batch.digest}
            folder.agree(folder.path / "images.yaml", "images of python -m pipelines.correlate", yaml.safe_dump(shown))
        folder.log_to_file()
        with closing(ScoreFile(folder.path / "scores.csv")) as scores:
            tasks = scores.missing([entry.architecture for entry in sample], proxies)
            known = len(sample) - len(tasks)
            log.info(
                "%s architectures to score, %s known, with %s", f"{len(tasks):,}", f"{known:,}", ", ".join(proxies)
            )
            executor = executor_of_ranks(fabric, Scorer(job), options.workers)
            assert executor is not None
            ahead = AHEAD * options.workers * fabric.world_size
            with Progress(len(sample), known) as progress, closing(compute(executor, tasks, ahead)) as coming:
                for scored in coming:
                    for score in scored:
                        scores.append(score)
                    progress.advance()
        drawn = set(sample)
        entries = [entry for entry in table if entry in drawn]
        panels, statistics = evaluate(entries, guides, scores, options.seed)
        fitted = fit_guides(entries, proxies, scores, options.fit, options.seed) if options.fit else []
        result = {
            **meaning,
            "source": benchmark.source,
            "architectures": len(table),
            "sample": len(sample),
            "best_of_sample": max(entry.accuracy for entry in sample),
            "images": None if batch is None else len(batch.images),
            "command": command,
            "proxies": statistics,
            "fitted": fitted,
        }
        publish(folder.path, result, panels)
    return result


def choose_guides(asked: str | None, images: Path | None) -> list[Guide]:
    """The proxies and sums of proxies that were asked for, or all proxies that can run."""
    if asked is None:
        return [Guide((Term(name),)) for name in names() if images is not None or get(name).needs != "batch"]
    chosen = list(dict.fromkeys(Guide.parse(text) for text in asked.split(",") if text.strip()))
    if not chosen:
        raise CorrelateError("--proxies names none; give at least one, such as entropic_score")
    for name in proxies_of(chosen):
        if get(name).needs == "batch" and images is None:
            raise CorrelateError(f"{name} looks at images; give a folder of them with --images, or --images noise")
    return chosen


def proxies_of(guides: Sequence[Guide]) -> list[str]:
    """The proxies of guides, each once."""
    return list(dict.fromkeys(name for guide in guides for name in guide.proxies))


def draw_sample(entries: list[Entry], size: int | None, seed: int) -> list[Entry]:
    """The first of one permutation, so that a larger sample holds a smaller one, and a killed run a random one."""
    if not 0 <= seed < 2**32:
        raise CorrelateError(f"--seed is {seed}; it must be from 0 to {2**32 - 1}")
    if size is not None and size > len(entries):
        raise CorrelateError(f"--sample is {size}, but the table has {len(entries)} architectures")
    return [entries[i] for i in np.random.default_rng(seed).permutation(len(entries))[:size]]


def digest_of(table: Path) -> str:
    """SHA-256 of a file; of a folder, that of its files' digests."""
    if table.is_dir():
        digests = [digest_of(file) for file in sorted(table.rglob("*")) if file.is_file()]
        return hashlib.sha256("".join(digests).encode()).hexdigest()
    with table.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def evaluate(
    entries: list[Entry], guides: Sequence[Guide], scores: ScoreFile, seed: int
) -> tuple[list[Panel], dict[str, Any]]:
    """What each proxy's or sum's scores say about the accuracies: a panel of the figure, and the statistics."""
    panels, statistics, costs = [], {}, costs_of(entries, scores)
    for guide in guides:
        names, name = guide.proxies, str(guide)
        lines = [[scores.known[entry.architecture, proxy] for proxy in names] for entry in entries]
        scored = np.array([all(line.score is not None for line in of_one) for of_one in lines])
        accuracies = np.array([entry.accuracy for entry in entries])[scored]
        columns = np.array([[line.score for line in of_one] for of_one in lines], dtype=float)[scored].T
        single = names == (name,)
        values = columns[0] if single else guide.worth(dict(zip(names, columns, strict=True)))
        upwards = not single or get(name).higher_is_better
        promise = values if upwards else -values
        beyond = AtEqualCost() if costs is None else at_equal_cost(accuracies, promise, costs[scored], seed)
        found = asdict(correlate(accuracies, promise, seed)) | asdict(beyond)
        errors = Counter(line.error for of_one in lines for line in of_one if line.error)
        statistics[name] = {
            **found,
            "unscored": int((~scored).sum()),
            "errors": dict(errors.most_common(3)),
            "higher_is_better": upwards,
            "seconds": sum(median(of_one[i].seconds for of_one in lines) for i in range(len(names))),
        }
        rho = _with_interval(found["spearman"], found["spearman_interval"], "none", digits=2)
        panels.append(Panel(f"{name}{'' if upwards else ' (lower is better)'}  rho = {rho}", values, accuracies))
    return panels, statistics


def fit_guides(
    entries: list[Entry], proxies: list[str], scores: ScoreFile, most: int, seed: int
) -> list[dict[str, Any]]:
    """Guides of one to `most` terms fitted to either half of the architectures, each judged on the other half.

    Raises:
        CorrelateError: costs are not known, so there is nothing to say beyond them.
    """
    costs = costs_of(entries, scores)
    if costs is None:
        raise CorrelateError("a guide is fitted given parameters and MACs; add parameters and macs to --proxies")
    columns = {name: [scores.known[entry.architecture, name].score for entry in entries] for name in proxies}
    known = {name: np.array(column) for name, column in columns.items() if None not in column}
    accuracies = np.array([entry.accuracy for entry in entries])
    return [
        {"guide": str(found.guide), "fitted_to": found.fitted_to, "judged_on": found.judged_on, **asdict(found.judged)}
        for found in fit_halves(accuracies, known, costs, most, seed)
    ]


def costs_of(entries: list[Entry], scores: ScoreFile) -> np.ndarray | None:
    """Parameters and MACs of the architectures, N, 2: of the table, or as they were counted; None if one is unknown."""
    columns = []
    for published, name in (("params", "parameters"), ("macs", "macs")):
        counted = [scores.known.get((entry.architecture, name)) for entry in entries]
        column = [
            getattr(entry, published) or (score.score if score else None)
            for entry, score in zip(entries, counted, strict=True)
        ]
        if not all(column):
            return None
        columns.append(column)
    return np.array(columns, dtype=float).T


def publish(folder: Path, result: dict[str, Any], panels: list[Panel]) -> None:
    """Leave `result.json`, `figure.png` and `report.md`; print the report's tables."""
    title = (
        f"{result['benchmark']}, {result['dataset']}: {result['sample']:,} of {result['architectures']:,} architectures"
    )
    draw_correlations(panels, title, folder / "figure.png")
    write_text(folder / "result.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    tables = [correlation_table(result["proxies"]), selection_table(result["proxies"])]
    tables += [fit_table(result["fitted"])] if result["fitted"] else []
    write_text(folder / "report.md", report(title, result, [_markdown(rows) for rows in tables]))
    for rows in tables:
        show_rows(rows)
    log.info("%s holds scores.csv, result.json, figure.png and report.md", folder)


def report(title: str, result: dict[str, Any], tables: list[str]) -> str:
    """The report as Markdown."""
    images = f", {result['images']} real images" if result["images"] else ""
    lines = [
        f"# {title}",
        f"Found by `{result['command']}`: seed {result['seed']}{images}."
        f" Benchmark: {result['source']}. Best accuracy of the sample: {result['best_of_sample']:.2f} %.",
        "Rank correlation of score and test accuracy, with 95 % bootstrap intervals, and the median seconds that one"
        " architecture takes on one thread:",
        tables[0],
        "Given cost: the partial correlation, given parameters and MACs. Right at equal cost: of the pairs whose"
        " parameters and MACs differ by 3 % at most, the share that the score decides rightly (0.5 is guessing).",
        "What the highest score selects: accuracy in percent, and rank by accuracy in the sample (1 is the best):",
        tables[1],
        "![score against accuracy](figure.png)",
        "The accuracy's axis is logarithmic in the error, so that good networks stay apart.",
    ]
    if result["fitted"]:
        lines += [
            "Guides fitted to one half of the sample given parameters and MACs, and judged on the other half, both ways"
            " round; weights are of ranks, and a guide with one term more follows only where leave-one-out prediction"
            " of the first half improves:",
            tables[2],
        ]
    for name, found in result["proxies"].items():
        if not found["higher_is_better"]:
            lines.append(f"Of {name} a lower score promises more: it was negated for correlation and selection.")
        for error, count in found["errors"].items():
            lines.append(f"{name} could not score {count:,} of the sample: {error}.")
    return "\n\n".join(lines) + "\n"


def correlation_table(proxies: dict[str, Any]) -> list[list[str]]:
    """A head and a row for each proxy."""
    rows = [["proxy", "n", "unscored", "Spearman", "Kendall", *BEYOND, "seconds"]]
    for name, found in proxies.items():
        nothing = "too few" if found["n"] < 3 else "constant"
        rho = _with_interval(found["spearman"], found["spearman_interval"], nothing)
        tau = _with_interval(found["kendall"], found["kendall_interval"], nothing)
        partial = _with_interval(found["partial"], found["partial_interval"], "none", digits=2)
        decided = _with_interval(found["decided"], found["decided_interval"], "none", digits=2)
        beyond = [partial, f"{decided} of {found['pairs']:,}" if found["pairs"] else decided]
        counts = [f"{found['n']:,}", f"{found['unscored']:,}"]
        rows.append([name, *counts, rho, tau, *beyond, f"{found['seconds']:.3g}"])
    return rows


def selection_table(proxies: dict[str, Any]) -> list[list[str]]:
    """A head and a row for each proxy; ties are shown as ties."""
    rows = [["proxy", "its maximum selects", "mean of its top 10"]]
    for name, found in proxies.items():
        s = found["selected"]
        if s is None:
            text, top = "nothing", ""
        else:
            best = f"{s['best']:.2f} (rank {s['best_rank']:,})"
            mean, worst = (f"{k} {s[k]:.2f} (rank {s[f'{k}_rank']:,.0f})" for k in ("mean", "worst"))
            text = best if s["tied"] == 1 else f"{s['tied']:,} tied: best {best}, {mean}, {worst}"
            top = f"{found['top10_mean']:.2f}"
        rows.append([name, text, top])
    return rows


def fit_table(fitted: list[dict[str, Any]]) -> list[list[str]]:
    """A head and a row for each guide, with what it is worth on the half that it was not fitted to."""
    rows = [["fitted guide", "fitted to", "judged on", *BEYOND]]
    for found in fitted:
        partial = _with_interval(found["partial"], found["partial_interval"], "none", digits=2)
        decided = _with_interval(found["decided"], found["decided_interval"], "none", digits=2)
        rows.append([found["guide"], str(found["fitted_to"]), str(found["judged_on"]), partial, decided])
    return rows


def _with_interval(value: float | None, interval: Sequence[float] | None, nothing: str, digits: int = 3) -> str:
    if value is None or interval is None:
        return nothing
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def _markdown(rows: list[list[str]]) -> str:
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])
