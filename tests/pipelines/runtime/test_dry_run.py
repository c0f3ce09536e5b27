"""Rehearsal: every stage is tried, the figures are those of the real run, and nothing stays behind."""

import errno

import pytest
import torch

from callbacks.checkpoints import AtomicCheckpointIO, Checkpoints
from configs.compose import compose
from esformer.errors import ESFormerError
from pipelines import full, search, train
from pipelines.runtime import dry_run
from pipelines.runtime.run_folder import RunFolder

FAST = ["--quick", "trainer.accelerator=cpu", "wandb.mode=offline"]
SMALL = ["genotype=efficientformerv2_s0", "recipe.batch_size=8", "run.dir=runs/a/t"]


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("wandb.init", lambda **_: pytest.fail("a rehearsal begins no run of W&B"))
    monkeypatch.setattr(dry_run, "STEPS", 2)
    monkeypatch.setattr(dry_run, "EVALUATIONS", 3)


@pytest.mark.nightly
def test_the_whole_job_in_small_leaves_nothing(tmp_path, capsys):
    found = full.main([*FAST, "--dry-run", "recipe.batch_size=8"])
    assert not list(tmp_path.iterdir())
    assert found["run"].startswith("runs/full-S0-digits-") and found["run"].endswith("(not there yet)")
    assert (found["steps_per_epoch"], found["epochs"], found["steps"]) == (179, 10, 1790)  # of 1,437 images
    assert (found["processes"], found["images_per_step"], found["validation_batches"]) == (1, 8, 45)
    assert 2e6 < found["params"] <= 3.5e6 and 0 < found["macs"] < 4e7
    assert 2**28 < found["memory_bytes"] < 2**34
    assert 0 < found["images_per_second"] < 1e5
    assert found["training_seconds"] == pytest.approx(1790 * 8 / found["images_per_second"])
    assert found["search_seconds"] == pytest.approx(510 / found["search_evaluations_per_second"])
    parts = [found[f"{part}_seconds"] for part in ("search", "training", "validation")]
    assert found["seconds"] == pytest.approx(sum(parts)) and min(parts) > 0
    printed = capsys.readouterr().out
    for text in ("runs/full-S0-digits-", "1,790", "GiB a process", "end if begun now", "search "):
        assert text in printed, text


@pytest.mark.nightly
def test_steps_are_those_that_the_real_run_takes(tmp_path, monkeypatch):
    command = [*SMALL, "data.limit=66", "recipe.batch_size=32", "recipe.epochs=1", "trainer.accumulate=2"]
    command = ["--quick", "trainer.accelerator=cpu", "wandb.mode=disabled", *command]
    seen = []
    took = dry_run.Watch.on_train_batch_end

    def watched(self, trainer, *args):
        seen.append((trainer.global_step, trainer.accumulate_grad_batches))
        took(self, trainer, *args)

    monkeypatch.setattr(dry_run.Watch, "on_train_batch_end", watched)
    found = train.main([*command, "--dry-run"])
    assert seen == [
        (0, 2),
        (1, 2),
        (1, 2),
        (2, 2),
        (2, 2),
        (3, 2),
    ]  # two steps, all there are, and one after the resume
    assert not (tmp_path / "runs").exists()
    train.main(command)
    last = torch.load(tmp_path / "runs/a/t/checkpoints/last.ckpt", weights_only=False)
    assert last["global_step"] == found["steps"] == 2
    monkeypatch.setattr(dry_run, "try_training", lambda *_: {})
    assert "go on" in train.main([*command, "--dry-run"])["run"]
    assert {path.name for path in (tmp_path / "runs/a").iterdir()} == {"t"}


def test_a_search_is_rehearsed_alone():
    found = search.main(["--dry-run", "search=paper", "data=imagenet", "search.workers=1"])
    assert found["search_seconds"] == found["seconds"] == 45 * 60
    assert found["search_evaluations_per_second"] > 0 and "training_seconds" not in found


@pytest.mark.nightly
@pytest.mark.parametrize("wrong", ["last", "nothing"])
def test_a_checkpoint_that_cannot_be_had_again_ends_it(tmp_path, monkeypatch, wrong):
    if wrong == "last":  # as after a crash of the file system: another step's
        monkeypatch.setattr(dry_run.Watch, "on_train_start", _forgets(dry_run.Watch.on_train_start))
    else:
        monkeypatch.setattr(Checkpoints, "_save", lambda self, trainer: None)
    with pytest.raises((AssertionError, FileNotFoundError, ESFormerError)):
        train.main([*FAST, *SMALL, "--dry-run"])
    assert not list(tmp_path.iterdir())


def _forgets(begin):
    def on_train_start(self, trainer, pl_module):
        begin(self, trainer, pl_module)
        self.first_step = 0

    return on_train_start


def test_a_full_disk_is_seen_and_cleared(tmp_path, monkeypatch):
    written = []

    def fill(self, checkpoint, path, storage_options=None):
        written.append(path)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fill)
    (tmp_path / "runs").mkdir()
    with pytest.raises(OSError, match="No space left"):
        train.main([*FAST, *SMALL, "--dry-run"])
    assert [path.parts[:3] for path in written] == [("runs", "a", ".t.dry-run")]  # on the run's own disk
    assert list(tmp_path.iterdir()) == [tmp_path / "runs"] and not list((tmp_path / "runs").iterdir())


@pytest.mark.parametrize(
    ("pipeline", "wrong", "message"),
    [
        (full, "recipe.auto_augment=foo", "is no augmentation that timm knows"),
        (full, "budget.params=1e5", "no genotype of space S0 fits a budget"),
        (full, "trainer.accumulate=3", "does not divide into even batches"),
        (full, "genotype=mine.yaml", "genotype is a setting of pipelines.train"),
        (train, "run.dir=mine", "mine holds no run but other files (thesis.tex)"),
        (train, "run.dir=mine/thesis.tex", "thesis.tex is a file; run.dir must be a folder"),
        (train, "data.num_classes=5", "digits has 10 classes"),
        (search, "run.dir=other", "other holds another run: it is a run of python -m pipelines.full"),
    ],
)
def test_what_a_real_start_refuses_is_refused_in_the_same_words(tmp_path, pipeline, wrong, message):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    config = compose("S0", True, ["run.dir=other"])
    RunFolder.of("full", config, []).open(config).close()
    said = []
    for flags in (["--dry-run"], []):
        with pytest.raises(ESFormerError) as caught:
            pipeline.main([*FAST, wrong, *flags])
        said.append(str(caught.value))
    assert message in said[0] and said[0] == said[1]
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "other"}


def test_the_last_intervals_count_and_never_the_first_of_several():
    moments = [0.0, 10.0, 11.0, 13.0]
    assert dry_run._pace(moments, 5) == 1.5
    assert dry_run._pace(moments, 1) == 2
    assert dry_run._pace(moments[:2], 1) == 10


@pytest.mark.parametrize(
    ("setting", "processes", "seconds", "said"),
    [
        ("search.finalists_epochs=9", 1, (9 * 3 + 3 * 9) * 12, "9 networks x 3 epochs, then 3 networks x 9 epochs"),
        ("search.finalists_epochs=3", 2, (5 * 1 + 2 * 3) * 24, "9 networks x 1 epoch, then 3 networks x 3 epochs"),
        ("search.finalists_minutes=30", 1, 1800, "9 networks"),
    ],
)
def test_finalists_are_priced(setting, processes, seconds, said):
    training = {"processes": processes, "epochs": 5, "training_seconds": 50.0, "validation_seconds": 10.0}
    found = dry_run.price_finalists(compose("S0", True, ["search.finalists=9", setting]), training)
    assert found == {"finalists": said, "finalists_seconds": seconds}


def test_times_read_well():
    assert [dry_run.duration(s) for s in (45, 600, 100_000)] == ["45 s", "10 min", "27.8 h"]


def test_what_another_rehearsal_left_is_cleared(tmp_path):
    left = tmp_path / "runs" / ".t.dry-run" / "checkpoints"
    left.mkdir(parents=True)
    with dry_run.scratch(tmp_path / "runs" / "t") as folder:
        assert folder == left.parent and not list(folder.iterdir())
    assert not list((tmp_path / "runs").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(ESFormerError, match="cannot be written"), dry_run.scratch(tmp_path / "file" / "t"):
        pass
