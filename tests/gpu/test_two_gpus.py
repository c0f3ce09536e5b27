"""Several GPUs: NCCL for the device and gloo for the host, the training of one device, and ranks that die."""

import json
import signal
import time

import pytest

from esformer.checkpoint import read

pytestmark = [pytest.mark.gpus(2), pytest.mark.slow]

TINY = ["--quick", "wandb.mode=disabled", "trainer.accelerator=gpu", "recipe.epochs=2", "data.limit=512"]
TINY += ["recipe.batch_size=128", "trainer.log_every=1", "trainer.precision=32-true", "genotype=efficientformerv2_s0"]


def test_two_devices_train_as_one(warm, tmp_path):
    command = ["pipelines.train", *TINY, "trainer.sync_batchnorm=true"]
    exact = {"NVIDIA_TF32_OVERRIDE": "0"}
    warm.start([*command, f"run.dir={tmp_path / 'one'}"], env=exact).finish()
    for process in warm.start_ranks(2, [*command, f"run.dir={tmp_path / 'two'}"], env=exact):
        process.finish()
    one, two = (read(tmp_path / name / "checkpoints" / "last.ckpt")["state_dict"] for name in ("one", "two"))
    for name, value in one.items():
        if value.ndim > 1:
            assert (two[name] - value).norm() <= 2e-2 * value.norm(), name


def test_the_whole_job_on_two_ranks(warm, tmp_path):
    short = ["search.total=60", "search.start_length=10", "search.phase_length=10"]
    words = [word for word in TINY if not word.startswith("genotype")]
    for process in warm.start_ranks(2, ["pipelines.full", *words, *short, f"run.dir={tmp_path / 'run'}"]):
        process.finish()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["search_evaluations"] == 60


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_rank_that_is_gone_ends_the_other(number, warm, tmp_path):
    ranks = warm.start_ranks(2, ["pipelines.train", *TINY, "recipe.epochs=1000", f"run.dir={tmp_path / 'run'}"])
    steps = tmp_path / "run" / "steps.csv"
    while not steps.exists() or steps.read_text().count("\n") <= 5:
        assert ranks[0].poll() is None, ranks[0].output
        time.sleep(0.01)
    ranks[1].send_signal(number)
    began = time.monotonic()
    assert ranks[0].wait(120) != 0
    assert time.monotonic() - began < 90
