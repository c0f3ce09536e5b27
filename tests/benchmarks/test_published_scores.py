"""Our scores order architectures as those that the authors of FreeREA and NASLib published do."""

import csv
import gzip
import random

import pytest
from scipy.stats import spearmanr

from esformer import benchmarks
from esformer.proxies import score


@pytest.mark.nightly
def test_scores_on_nats_bench(table):
    with gzip.open(table("natsbench_tss_proxies.csv.gz"), "rt") as file:
        published = list(csv.DictReader(file))
    benchmark = benchmarks.get("nats-tss")
    entries = benchmark.read(table("natsbench_tss_nb201.csv.gz"))
    sample = [i for i in random.Random(0).sample(range(len(entries)), 60) if "nor_conv" in entries[i].architecture][:40]
    networks = [benchmark.network(entries[i].architecture) for i in sample]
    for proxy, column in (("log_synflow", "c10_logsynflow_freerea"), ("synflow", "c10_synflow_freerea")):
        ours = [score(proxy, network, img_size=32) for network in networks]
        theirs = [float(published[i][column]) for i in sample]
        assert spearmanr(ours, theirs).statistic > 0.97, proxy
