"""Two ranks that are asked to stop at 20 random moments, and go on each time, end as the undisturbed ones do."""

import random
import re
import signal
import time
from pathlib import Path

import pytest
import torch

STOPPED = 75
SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


TRAIN = """
from callbacks import history
from pipelines import train
from pipelines.runtime import cli

history.draw_training = lambda *figures: None  # takes longer than an epoch
cli.run(train.main)
"""


@pytest.fixture
def command(digits_in_folders, smallest, tmp_path):
    """A training of 5 epochs of 4 steps."""
    (tmp_path / "train.py").write_text(TRAIN)
    data = ["data=folder", f"data.root={digits_in_folders(83, 19)}", "data.img_size=32", "data.workers=0"]
    recipe = ["recipe=quick", "recipe.epochs=5", "recipe.batch_size=16", f"genotype={smallest}"]
    return [tmp_path / "train.py", *data, *recipe, "trainer.accelerator=cpu", "wandb.mode=disabled"]


def wait_until_all_listen(ranks):
    """They have installed their handlers; before, within the first hundredths of a second, a signal is Python's."""
    waiting = list(ranks)
    while waiting:
        assert all(rank.poll() is None for rank in ranks), [rank.output for rank in ranks]
        status = Path(f"/proc/{waiting[0].pid}/status").read_text()
        caught = int(status.partition("SigCgt:")[2].split()[0], 16)
        if all(caught >> (number - 1) & 1 for number in SIGNALS):
            waiting.pop(0)
        else:
            time.sleep(0.01)


def end(ranks):
    """Exit codes. As torchrun and srun do, end the others when one has failed, and kill those that do not listen."""
    failed, deadline = None, time.monotonic() + 60
    while any(rank.poll() is None for rank in ranks):
        now = time.monotonic()
        assert now < deadline, [rank.output for rank in ranks]
        if failed is None and any(rank.poll() for rank in ranks):
            failed = now
            for rank in ranks:
                rank.terminate()
        elif failed is not None and now > failed + 10:
            for rank in ranks:
                rank.kill()
        time.sleep(0.05)
    return [rank.returncode for rank in ranks]


def disturb(rng, ranks, span):
    """Ask for a stop in one of the ways in which clusters do: both ranks, one after the other, or only one."""
    time.sleep(rng.uniform(0, 0.6 * span))
    asked = rng.sample(ranks, rng.choice([1, 2, 2]))
    for rank in asked:
        rank.send_signal(rng.choice(SIGNALS))
        time.sleep(rng.choice([0, 0.1]))


def last(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def steps_kept(folder):
    return last(folder)["global_step"] if (folder / "checkpoints").exists() else 0


def left(folder):
    checkpoint = last(folder)
    return (folder / "metrics.csv").read_text(), checkpoint["state_dict"], checkpoint["state_dict_ema"]


@pytest.mark.nightly
def test_twenty_signals_at_random_moments(warm, command, tmp_path):
    def start(name):
        ranks = warm.start_ranks(2, [*command, f"run.dir={tmp_path / name}"])
        wait_until_all_listen(ranks)
        return ranks

    ranks, began = start("calm"), time.monotonic()
    assert end(ranks) == [0, 0], ranks[0].output
    span = time.monotonic() - began
    rng, stops, finished = random.Random(0), 0, 0
    while stops < 20:
        ranks = start(f"asked {finished}")
        disturb(rng, ranks, span)
        codes = end(ranks)
        said = ranks[0].output
        epochs = re.findall(r"epoch (\d) of 5: ", said)
        training = epochs and epochs[-1] != "5"  # before and after it, a rank may stop alone and the other one fail
        assert codes in ([0, 0], [STOPPED, STOPPED]) or (STOPPED in codes and not training), (codes, said)
        if stop := re.search(r"asked to stop in epoch \d, step (\d+)", said):
            assert steps_kept(tmp_path / f"asked {finished}") == int(stop[1])
        stops += codes != [0, 0]
        finished += codes == [0, 0]
    assert end(start(f"asked {finished}")) == [0, 0]

    metrics, *calm = left(tmp_path / "calm")
    for i in range(finished + 1):
        again, *weights = left(tmp_path / f"asked {i}")
        assert again == metrics
        for one, other in zip(calm, weights, strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)
