"""Guides that look at a batch of images: the same for everybody who scores, and part of what a search is."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from searches import BUDGET, SMALL, SPACE, TINY, run, timeless

from esformer.errors import ESFormerError
from esformer.proxies import score
from esformer.search.batch import Batch
from esformer.search.journal import JournalError, read_header
from esformer.search.replay import replay
from esformer.search.schedule import Schedule
from esformer.search.stage import SearchStage

NASWOT = Schedule(unit="evaluations", start_length=9, total=18, start_proxy="naswot", **SMALL)
IMAGES = dict(images=torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(1)), labels=torch.arange(6))
NOISE = dict(img_size=32, batch_size=6)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    path = tmp_path_factory.mktemp("alone") / "journal.jsonl"
    return path, run(path, NASWOT, **IMAGES)


def test_scores_are_those_of_the_given_images(alone):
    _, found = alone
    assert found.scores == {"naswot": score("naswot", found.genotype, **IMAGES)}


@pytest.mark.slow
def test_workers_find_what_one_process_finds(alone, tmp_path, warm_workers):
    found = run(tmp_path / "journal.jsonl", NASWOT, workers=2, **IMAGES)
    assert timeless(found.journal) == timeless(alone[1].journal) and found.genotype == alone[1].genotype


def test_it_resumes_and_replays(alone, tmp_path):
    path, found = alone
    lines = path.read_bytes().splitlines(keepends=True)
    (tmp_path / "journal.jsonl").write_bytes(b"".join(lines[:11]))
    assert timeless(run(tmp_path / "journal.jsonl", NASWOT, **IMAGES).journal) == timeless(found.journal)
    assert replay(path).genotype == found.genotype  # without the images


OTHERS = [NOISE, IMAGES | {"images": IMAGES["images"] + 1e-3}, IMAGES | {"labels": torch.ones(6).long()}]


@pytest.mark.parametrize("other", OTHERS)
def test_a_search_that_saw_other_images_is_refused(alone, other):
    path, _ = alone
    before = path.read_bytes()
    with pytest.raises(JournalError, match="another search: .*batch was .*choose another folder"):
        run(path, NASWOT, **other)
    assert path.read_bytes() == before


def test_without_images_it_looks_at_noise_that_the_seed_draws(tmp_path):
    stages = [SearchStage(SPACE, BUDGET, NASWOT, seed=seed, **NOISE) for seed in (0, 0, 1)]
    digests = [stage.header()["batch"]["sha256"] for stage in stages]
    assert digests[0] == digests[1] != digests[2]
    assert stages[0].header()["batch"]["shape"] == [6, 3, 32, 32]
    assert SearchStage(SPACE, BUDGET, NASWOT, cost_img_size=40).header()["batch"]["shape"] == [32, 3, 40, 40]


def test_a_journal_says_nothing_of_images_that_no_proxy_looks_at(fake, tmp_path):
    run(tmp_path / "with.jsonl", TINY, **IMAGES)
    run(tmp_path / "without.jsonl", TINY)
    assert read_header(tmp_path / "with.jsonl") == read_header(tmp_path / "without.jsonl")
    assert "batch" not in read_header(tmp_path / "with.jsonl")


@pytest.mark.parametrize("joint", [None, "naswot+macs"])
def test_it_drives_any_phase(joint):
    proxies = dict(start_proxy="naswot", topology_proxy="naswot", size_proxy="naswot", joint_proxy=joint)
    few = dict(start_population=2, start_tournament=2, population=3, tournament=2, seeds=1, starts=1, in_flight=2)
    schedule = Schedule(unit="evaluations", start_length=3, phase_length=4, total=11, **proxies, **few)
    found = run(schedule=schedule, **NOISE)
    assert found.evaluations == 11 and list(found.scores) == (["naswot", "macs"] if joint else ["naswot"])
    assert {e.phase for e in found.journal} == {phase.name for phase in schedule.phases()}


@pytest.mark.parametrize(("images", "labels"), [((3, 32, 32), (3,)), ((2, 3, 32, 32), (3,)), ((0, 3, 32, 32), (0,))])
def test_shapes_that_do_not_belong_together_are_refused(images, labels):
    with pytest.raises(ESFormerError, match="a search takes"):
        Batch.of(torch.zeros(images), torch.zeros(labels).long())
    with pytest.raises(ESFormerError, match="None; a search takes"):
        Batch.of(torch.zeros(2, 3, 32, 32), None)


def test_it_is_pickled_as_plain_bytes():
    """A tensor would travel as a file descriptor, which another machine cannot open."""
    batch = Batch.of(**IMAGES)
    again = pickle.loads(pickle.dumps(batch))
    assert again.describe() == batch.describe() and type(batch.images) is np.ndarray
    assert replace(batch, source="noise").describe() != batch.describe()
