"""A search on a GPU: the scores of the CPU, and nothing of it left behind for the training."""

import gc
import json
import random

import pytest
import torch

from esformer import SearchSpace, score
from esformer.proxies import ProxyError
from pipelines import search

QUICK = ["--quick", "search.accelerator=gpu", "search.total=60", "search.start_length=10", "search.phase_length=10"]


@pytest.mark.parametrize("size", ["S0", "S1", "S2"])
@pytest.mark.parametrize("proxy", ["entropic_score", "log_synflow"])
def test_scores_are_those_of_the_cpu(proxy, size):
    space, rng = SearchSpace.for_size(size), random.Random(0)
    for genotype in (space.sample(rng) for _ in range(5)):
        for img_size in (33, 161):
            on_cpu = score(proxy, genotype, img_size=img_size)
            assert score(proxy, genotype, img_size=img_size, device="cuda") == pytest.approx(on_cpu, rel=1e-4)


def held():
    """Bytes in use, but for cuBLAS' workspace, which is there from the first matrix on and serves the training too."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()
    return torch.cuda.memory_allocated()


def test_nothing_of_a_search_stays_in_the_memory_of_the_device(tmp_path):
    torch.cuda.init()
    before = held()
    found = search.main([*QUICK, f"run.dir={tmp_path / 'run'}", "wandb.mode=disabled"])
    assert found["search_evaluations"] == 60
    assert held() - before < 2**20


def test_a_search_without_memory_says_which_setting_needs_less(tmp_path):
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(2e-4)  # some megabytes
    try:
        with pytest.raises(ProxyError, match="no memory left .* search.img_size"):
            search.main([*QUICK, "search.img_size=1024", f"run.dir={tmp_path / 'run'}", "wandb.mode=disabled"])
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_each_rank_searches_on_its_own_device(warm, tmp_path):
    """On one device the ranks of a job share it; on several each measures latencies where it is alone."""
    ranks = torch.cuda.device_count()
    command = ["pipelines.search", *QUICK, "budget.latency_ms=1000", "wandb.mode=disabled", f"run.dir={tmp_path}/run"]
    for process in warm.start_ranks(ranks, command):
        process.finish()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["search_evaluations"] == 60
