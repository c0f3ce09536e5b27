"""What only a GPU can show: `pytest tests/gpu`. Where there is none, or only one, each test says what it lacks."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _device(request):
    """Skip where there are fewer GPUs than the mark `gpus(n)` asks for, by default one."""
    mark = request.node.get_closest_marker("gpus")
    needed, found = mark.args[0] if mark else 1, torch.cuda.device_count()
    if found < needed:
        pytest.skip(f"needs {needed} CUDA device{'s' * (needed > 1)}, and there {'is 1' if found == 1 else 'is none'}")
    yield
    torch.cuda.empty_cache()
