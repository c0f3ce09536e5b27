"""Several ranks and workers find what one process finds; whoever dies, nothing hangs and nothing is lost."""

import json
import time

import pytest
from searches import run, timeless

from esformer.genotype import Genotype
from esformer.search.journal import read
from esformer.search.schedule import Schedule

FEW = dict(start_population=6, start_tournament=2, population=8, tournament=3, seeds=2, starts=2, in_flight=8)
SCHEDULE = Schedule(unit="evaluations", start_length=12, phase_length=12, total=48, **FEW)
SMALL_INPUT = dict(img_size=33, draws=1)

ON_RANKS = """
import json, os, signal, sys, time
from pathlib import Path
from lightning.fabric import Fabric
from esformer import Budget, Schedule, SearchSpace, search
from esformer.search import scorer

folder, schedule = Path(sys.argv[1]), Schedule(**json.loads(sys.argv[2]))
ranks, processes, doomed = map(int, sys.argv[3:6])
fabric = Fabric(accelerator="cpu", devices=ranks, strategy="ddp")
fabric.launch()
if fabric.global_rank == doomed:
    score, left = scorer.score, iter(range(12))
    def scores_twelve(*args, **kwargs):
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(*args, **kwargs)
    scorer.score = scores_twelve

space, budget = SearchSpace.for_size("S0"), Budget.for_size("S0")
settings = dict(img_size=33, draws=1, fabric=fabric, workers=processes, checkpoint=folder / "journal.jsonl")
result = search(space, budget, schedule, **settings)
result.genotype.save(folder / f"rank {fabric.global_rank}.yaml")
assert len(list(result.journal)) == result.evaluations
assert search(space, budget, schedule, **settings).genotype == result.genotype  # there is nothing left to score
"""


@pytest.fixture(scope="module")
def alone():
    return run(schedule=SCHEDULE, **SMALL_INPUT)


@pytest.fixture
def script(tmp_path):
    (tmp_path / "search.py").write_text(ON_RANKS)
    return tmp_path / "search.py"


@pytest.mark.nightly
@pytest.mark.parametrize("workers", [2, 4])
def test_workers_find_what_one_process_finds(alone, tmp_path, request, workers):
    if workers > 2:
        request.getfixturevalue("warm_workers")
    result = run(tmp_path / "journal.jsonl", SCHEDULE, workers=workers, **SMALL_INPUT)
    assert timeless(result.journal) == timeless(alone.journal) and result.genotype == alone.genotype


@pytest.mark.nightly
@pytest.mark.parametrize(("ranks", "workers"), [(2, 1), (4, 1), (2, 2)])
def test_ranks_find_what_one_process_finds(alone, tmp_path, script, warm, fresh_process, ranks, workers):
    command = [script, tmp_path, json.dumps(SCHEDULE.to_dict()), ranks, workers, -1]
    if (ranks, workers) == (2, 1):
        fresh_process("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, *command)
    else:
        for process in warm.start_ranks(ranks, command):
            process.finish()
    assert timeless(read(tmp_path / "journal.jsonl")) == timeless(alone.journal)
    assert {Genotype.load(tmp_path / f"rank {rank}.yaml") for rank in range(ranks)} == {alone.genotype}


@pytest.mark.nightly
def test_a_rank_that_dies_ends_the_job_and_the_restart_resumes(alone, tmp_path, script, warm):
    """Under Fabric's own launcher, which does not look after its processes as torchrun does."""
    command = [script, tmp_path, json.dumps(SCHEDULE.to_dict()), 2, 1]
    died = warm.start([*command, 1])
    assert died.wait(timeout=120) != 0
    ends = ("rank 1 is gone; the same command goes on from where it was", "terminated with code -9")
    assert any(end in died.output for end in ends)  # Lightning's own observer may be quicker
    left = timeless(read(tmp_path / "journal.jsonl"))
    assert 0 < len(left) < 48 and left == timeless(alone.journal)[: len(left)]
    for process in warm.start_ranks(2, [*command, -1]):
        process.finish()
    assert timeless(read(tmp_path / "journal.jsonl")) == timeless(alone.journal)


@pytest.mark.nightly
def test_rank_0_that_dies_takes_the_others_along(tmp_path, script, warm):
    ranks = warm.start_ranks(2, [script, tmp_path, json.dumps(SCHEDULE.to_dict()), 2, 1, -1])
    journal = tmp_path / "journal.jsonl"
    wait_for(lambda: journal.exists() and journal.read_bytes().count(b"\n") > 2, ranks[0])
    ranks[0].kill()
    assert ranks[1].wait(timeout=60) != 0 and "rank 0 is gone" in ranks[1].output


def wait_for(reached, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from searches import SPACE, run
from esformer import score
from esformer.search.schedule import Schedule

folder, settings = Path(sys.argv[2]), json.loads(sys.argv[3])
schedule = Schedule(**settings)
path, workers = folder / "journal.jsonl", int(sys.argv[4])

def session():
    \"\"\"A search in a process of its own, which leaves its result when it comes to its end.\"\"\"
    child = os.fork()
    if child == 0:
        result = run(path, schedule, img_size=33, draws=1, workers=workers)
        result.genotype.save(folder / "genotype.yaml")
        os._exit(0)
    return child

rng = random.Random(0)
for _ in range(60):
    score("entropic_score", SPACE.sample(rng), img_size=33, draws=1)  # the sessions need not draw the weights anew
kills = 0
while kills < 25:
    size = path.stat().st_size if path.exists() else 0
    child = session()
    while not (path.exists() and path.stat().st_size > size):  # it got on
        time.sleep(0.001)
    time.sleep(rng.uniform(0, 0.04))
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] == 0:
        break
    kills += 1
if not (folder / "genotype.yaml").exists():
    assert os.waitpid(session(), 0)[1] == 0
print(kills)
"""


@pytest.mark.nightly
def test_killed_at_25_random_moments_it_ends_as_if_it_had_not_been(tmp_path, warm):
    # without LogSynflow: autograd's threads would not survive the forks
    schedule = Schedule(
        unit="evaluations", start_length=80, phase_length=80, total=400, size_proxy="entropic_score", **FEW
    )
    (tmp_path / "killed.py").write_text(KILLED)
    where = __file__.rpartition("/")[0]
    killed = warm.start([tmp_path / "killed.py", where, tmp_path, json.dumps(schedule.to_dict()), 1])
    assert killed.finish().splitlines()[-1] == "25"
    calm = run(schedule=schedule, **SMALL_INPUT)
    assert timeless(read(tmp_path / "journal.jsonl")) == timeless(calm.journal)
    assert Genotype.load(tmp_path / "genotype.yaml") == calm.genotype
