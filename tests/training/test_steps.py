"""What a training step asks of a device, and that nothing waits for it between two log points."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback
from operators import Operators
from timm.utils import ModelEmaV3
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from callbacks.ema import EMA
from configs.compose import compose
from esformer.data.datamodule import Batch
from esformer.genotype import Genotype
from esformer.recipe import Recipe
from esformer.training.module import ESFormerModule
from pipelines.runtime.build import trainer as pipelines_trainer
from pipelines.runtime.plan import Plan
from pipelines.runtime.processes import Processes
from pipelines.runtime.run_folder import RunFolder

BATCH, EVERY, SIZE = 4, 4, 32
RECIPE = Recipe(epochs=1, warmup_epochs=0, batch_size=BATCH, lr=1e-3, mixup=0.0, cutmix=0.0, drop_path=0.0)


def batches(count, device="cpu"):
    order = np.arange(BATCH)
    return [
        Batch(
            torch.randn(BATCH, 3, SIZE, SIZE, device=device),
            torch.rand(BATCH, 10, device=device),
            np.stack([np.zeros_like(order), order + number * BATCH, order], axis=1),
        )
        for number in range(count)
    ]


class Loader:
    """What Lightning takes for one loader; a list would be several."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


class Enough(Exception):
    pass


class Watch(Callback):
    """Counts step by step; ends the training before the epoch's end."""

    def __init__(self, operators, steps):
        self.operators, self.steps = operators, steps
        self.counts, self.waits, self.losses = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.counts.append(self.operators.total)
        self.waits.append(self.operators.waits.total())
        self.losses.append(outputs["loss"])
        if trainer.global_step == self.steps:
            raise Enough


def trained(folder, steps, precision="32-true"):
    """A training by the pipelines' Trainer with all its callbacks, counted."""
    torch.manual_seed(0)
    config = compose("S0")
    config.recipe, config.trainer.accumulate = RECIPE, 1
    config.trainer.accelerator, config.trainer.log_every, config.trainer.precision = "cpu", EVERY, precision
    folder.mkdir()
    operators = Operators()
    watch = Watch(operators, steps)
    trainer = pipelines_trainer(Plan("train", config, Processes(1, 1), RunFolder(folder, "")), [], 1)
    trainer.callbacks.append(watch)
    trainer.limit_val_batches = 0
    module = ESFormerModule(Genotype.shipped("efficientformerv2_s0"), RECIPE, 10, SIZE)
    logged = []
    original, module.log_dict = module.log_dict, lambda values, **how: logged.append(values) or original(values, **how)
    with pytest.raises(Enough), operators:
        trainer.fit(module, Loader(batches(steps + 1)))
    return watch, logged, folder


def test_between_log_points_a_step_waits_for_nothing_and_logs_nothing(tmp_path):
    watch, logged, folder = trained(tmp_path / "run", 2 * EVERY)
    between = [number for number in range(1, 2 * EVERY) if (number + 1) % EVERY]
    assert [watch.waits[number] - watch.waits[number - 1] for number in between] == [0] * len(between)
    costs = {watch.counts[number] - watch.counts[number - 1] for number in between[1:]}
    assert len(costs) == 1
    assert len(logged) == 2
    rows = [line.split(",") for line in (folder / "steps.csv").read_text().splitlines()]
    assert [int(row[0]) for row in rows[1:]] == [EVERY, 2 * EVERY]
    for row, values, loss in zip(rows[1:], logged, watch.losses[EVERY - 1 :: EVERY], strict=True):
        assert float(row[rows[0].index("loss")]) == values["train/loss"].item() == loss.item()
        assert float(row[rows[0].index("grad_norm")]) == values["train/grad_norm"].item()


def test_in_bfloat16_the_loss_is_close(tmp_path):
    exact, _, _ = trained(tmp_path / "exact", 2)
    mixed, _, _ = trained(tmp_path / "mixed", 2, "bf16-mixed")
    for a, b in zip(exact.losses, mixed.losses, strict=True):
        assert b.isfinite()
        assert b.item() == pytest.approx(a.item(), rel=0.02)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("clip", "precision"), [(("norm", 2.0), "float32"), (("agc", 0.01), "bfloat16")], ids=["norm", "agc"]
)
def test_a_whole_step_on_a_gpu_stays_there(clip, precision):
    """With fake tensors, which know a device and no values: an operator of two devices, or a look, is an error."""
    recipe = Recipe(**RECIPE.to_dict() | dict(clip_mode=clip[0], clip_grad=clip[1]))
    module = ESFormerModule(Genotype.shipped("efficientformerv2_s0"), recipe, 10, SIZE)
    ema = EMA()
    ema.ema = ModelEmaV3(module.model, use_warmup=True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        ema.ema.module.to_empty(device="cuda")
        module.model.to_empty(device="cuda")
        module.trainer = SimpleNamespace(  # what a step asks of it
            precision="32-true",
            global_step=0,
            current_epoch=0,
            estimated_stepping_batches=10,
            fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_idx=0)),
        )
        module._fabric = None
        configured = module.configure_optimizers()
        optimizer = configured["optimizer"]
        module.on_train_start()
        ema.on_train_start(module.trainer, module)
        totals = []
        for number, batch in enumerate(batches(2, "cuda")):
            with Operators() as operators:
                with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"):
                    loss = module.training_step(batch, number)
                for parameter in module.model.parameters():  # autograd itself asks for a real device
                    parameter.grad = torch.empty_like(parameter)
                module.configure_gradient_clipping(optimizer)
                optimizer.step()
                optimizer.zero_grad()
                configured["lr_scheduler"]["scheduler"].step()
                ema.update(number + 1)
            assert not operators.waits
            totals.append(operators.total)
        assert totals[1] <= totals[0]
        assert loss.dtype == torch.float32
        state = [value for values in optimizer.state.values() for value in values.values()]
        kept = [optimizer.found_inf, module._good, *state, *module.model.state_dict().values()]
        kept += ema.ema.module.state_dict().values()
        for value in kept:
            assert isinstance(value, FakeTensor) and value.fake_mode is mode and value.device.type == "cuda"
            assert value.dtype in (torch.float32, torch.int64)


def prepared(fused):
    """A module before a step whose gradient is not finite, and an optimiser that has made one."""
    module = ESFormerModule(Genotype.shipped("efficientformerv2_s0"), RECIPE, 10, SIZE)
    module.trainer = SimpleNamespace(
        global_step=1, current_epoch=0, fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_idx=1))
    )
    optimizer = torch.optim.AdamW(module.parameters(), 0.1, weight_decay=0.1, fused=fused)
    module.on_train_start()
    for bad in (False, True):
        before = [value.clone() for value in everything(module, optimizer)]
        optimizer.zero_grad()
        batch = batches(1)[0]
        if bad:
            batch.images[0].fill_(float("nan"))
        module.training_step(batch, 0).backward()
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
    return module, optimizer, before


def everything(module, optimizer):
    state = [value for values in optimizer.state.values() for value in values.values()]
    statistics = [value for value in module.model.buffers() if value.is_floating_point()]
    return [*module.model.parameters(), *statistics, *state]


@pytest.mark.parametrize("fused", [True, None])  # None: as with float16, whose scaler unscales no other kind
def test_a_step_that_is_not_finite_leaves_weights_statistics_moments_and_step_counts(fused):
    module, optimizer, before = prepared(fused)
    after = everything(module, optimizer)
    assert len(after) == len(before) > 3 * len(list(module.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert {int(state["step"]) for state in optimizer.state.values()} == {1}
