import time
from itertools import chain, cycle, repeat

import pytest
import torch
from torch import nn

from esformer.model import latency
from esformer.model.esformer import ESFormer
from esformer.model.latency import (
    FEWEST,
    MOST,
    WARM_UP,
    Latency,
    measure_latency,
    measure_parts,
    summarise,
    time_network,
)
from esformer.model.parts import parts
from esformer.space import SearchSpace


def extreme(choose):
    space = SearchSpace.for_size("S0")
    return space.build(
        {place: "ibn" if place[1] == "ffn" else choose(options) for place, options in space.options.items()}
    )


@pytest.fixture
def ticks(monkeypatch):
    """Make the clocks advance by the given milliseconds a run; gives the clock that was read."""

    def install(*times_ms):
        read = []

        def clock(name):
            def tell():
                read.append(name)
                tell.now += next(steps) if len(read) % 2 == 0 else 0
                return tell.now

            tell.now = 0
            return tell

        steps = cycle(int(ms * 1e6) for ms in times_ms)
        for name in ("thread_time_ns", "perf_counter_ns"):
            monkeypatch.setattr(time, name, clock(name))
        monkeypatch.setattr(ESFormer, "forward", lambda self, x: x)
        return read

    return install


def test_median_and_error():
    # median 21.5; deviations from it 11.5, 1.5, 0.5, 0.5, 1.5, 78.5: median 1.5
    assert summarise([10, 20, 21, 22, 23, 100]) == Latency(21.5, 1.4826 * 1.5, 6)
    noise = torch.distributions.Normal(50, 2).sample((4000,)).split(MOST)
    errors = [summarise(times.tolist()).error_ms for times in noise]
    assert sum(errors) / len(errors) == pytest.approx(2, rel=0.1)  # the standard deviation of normal noise


def test_it_takes_no_more_runs_than_it_needs():
    times = [19, 20, 21]  # error 1.5
    assert summarise(cycle(times)).runs == MOST
    for limit, runs in [(20, MOST), (25, MOST), (27, FEWEST), (13, FEWEST)]:
        assert summarise(cycle(times), limit).runs == runs, limit
    calm_later = chain([1, 5, 20, 35, 39] * 2, repeat(20))
    assert FEWEST < summarise(calm_later, limit_ms=21).runs < MOST


def test_a_single_thread_is_timed_by_itself_and_several_by_the_wall(draw, ticks):
    for threads, name in [(1, "thread_time_ns"), (2, "perf_counter_ns")]:
        read = ticks(9, 10, 12)
        assert measure_latency(draw(), 32, threads=threads) == Latency(10, 1.4826 * 1, MOST)
        assert read == [name] * 2 * MOST


def test_what_runs_is_the_network_that_would_be_used(draw, monkeypatch):
    seen = []

    def forward(self, x):
        seen.append(self)
        assert (x.shape, x.dtype, self.num_classes) == ((1, 3, 64, 96), torch.float32, 7)
        assert (self.training, torch.is_inference_mode_enabled(), torch.get_num_threads()) == (False, True, 2)
        assert {p.dtype for p in self.parameters()} == {torch.float32}
        return x

    monkeypatch.setattr(ESFormer, "forward", forward)
    torch.set_default_dtype(torch.float64)
    try:
        measure_latency(draw(), (64, 96), 7, threads=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(seen) == WARM_UP + MOST
    assert seen[0].genotype == draw()


def test_wider_is_slower_and_the_time_is_plausible():
    narrow, wide = (measure_latency(extreme(choose), 64, limit_ms=1e6) for choose in (min, max))
    assert narrow.runs == wide.runs == FEWEST
    assert wide.ms > 1.5 * narrow.ms  # four times the work or more; other load slows both
    network, image = ESFormer(extreme(max), img_size=64).eval(), torch.rand(1, 3, 64, 64)
    times = []
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            network(image)
            times.append(1e3 * (time.perf_counter() - start))
    assert min(times) / 10 < wide.ms < 3 * max(times)  # by the wall clock, on a machine that may be busy


@pytest.mark.parametrize("broken", [False, True])
def test_global_state_is_left_as_it_was(draw, ticks, monkeypatch, broken):
    ticks(10)
    if broken:
        monkeypatch.setattr(latency, "summarise", lambda *_: 1 / 0)
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        measure_latency(draw(), 32, threads=threads + 1)
    except ZeroDivisionError:
        assert broken
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.is_inference_mode_enabled()


def test_a_batch_is_timed_for_so_long_and_once_at_least(ticks):
    for seconds, runs in [(0, 1), (0.1, 4), (10, MOST)]:  # 30 ms a run
        ticks(30)
        assert time_network(torch.nn.Identity(), torch.zeros(8, 3, 32, 32), seconds=seconds) == Latency(30, 0, runs)


def test_what_cannot_be_measured_is_refused(draw, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: None)
    with pytest.raises(ValueError, match=r"^latency cannot be measured on cuda: this machine has no such device$"):
        measure_latency(draw(), 32, device="cuda")
    with pytest.raises(ValueError, match=r"^latency cannot be measured on 0 threads; it needs at least 1$"):
        measure_latency(draw(), 32, threads=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu(draw):
    measured = measure_latency(draw(), 224, device="cuda")
    assert measured.runs == MOST
    assert 0.1 < measured.ms < 1000


def test_a_device_without_memory_is_refused(draw, monkeypatch):
    def fails(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("esformer.model.latency.time_network", fails)
    with pytest.raises(ValueError, match="cpu has no memory left for one image of 32 pixels"):
        measure_latency(draw(), img_size=32)


def test_it_says_what_it_is():
    assert str(Latency(12.34, 0.26, 30)) == "12.3 ± 0.3 ms"


def test_each_part_has_its_own_time(draw, monkeypatch):
    genotype = draw(seed=1)
    clock = [0]

    def tick(module, *_):  # each convolution takes a millisecond
        clock[0] += 1_000_000 * isinstance(module, nn.Conv2d)

    def convolutions(module):
        return sum(isinstance(one, nn.Conv2d) for one in module.modules())

    hook = nn.modules.module.register_module_forward_hook(tick)
    with monkeypatch.context() as patched:
        patched.setattr("esformer.model.latency.time.thread_time_ns", lambda: clock[0])
        found = dict(zip((part.name for part in parts(genotype, 64, 10)), measure_parts(genotype, 64, 10), strict=True))
    hook.remove()
    network = ESFormer(genotype, 10, img_size=64)
    assert (found["stem"], found["classifier"]) == (convolutions(network.stem), 0)
    for number, stage in enumerate(network.stages, 1):
        assert number == 1 or found[f"downsampling {number - 1}"] == convolutions(stage.downsample)
        for place, block in enumerate(stage.blocks, 1):
            assert found[f"stage {number}, block {place}"] == convolutions(block)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    times = measure_parts(genotype, 64, 10)
    assert min(times) > 0 and sum(times) < 1000
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), state)
