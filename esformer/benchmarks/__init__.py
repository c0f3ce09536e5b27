"""Benchmarks: search spaces whose architectures have all been trained, to see which proxy would have found the best."""

from esformer.benchmarks.base import Benchmark, BenchmarkError
from esformer.benchmarks.channel_bench import ChannelBenchResNet
from esformer.benchmarks.darts import Darts
from esformer.benchmarks.esformers import ESFormers
from esformer.benchmarks.nasbench101 import NASBench101
from esformer.benchmarks.nats_bench import SizeSpace, TopologySpace

_BENCHMARKS: dict[str, type[Benchmark]] = {
    kind.name: kind for kind in (NASBench101, TopologySpace, SizeSpace, ChannelBenchResNet, Darts, ESFormers)
}


def names() -> list[str]:
    """What `get` knows."""
    return list(_BENCHMARKS)


def get(name: str) -> Benchmark:
    """The benchmark of a name.

    Raises:
        BenchmarkError: there is none.
    """
    if name not in _BENCHMARKS:
        raise BenchmarkError(f"there is no benchmark {name!r}; there are {', '.join(_BENCHMARKS)}")
    return _BENCHMARKS[name]()
