"""What is done now and then."""

from types import SimpleNamespace

import pytest

from esformer import throttle
from esformer.throttle import Throttle


@pytest.mark.parametrize(("at_once", "due"), [(True, [0, 3, 6, 9]), (False, [3, 6, 9])])
def test_it_is_time_every_so_many_seconds(at_once, due, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(throttle, "time", SimpleNamespace(monotonic=lambda: clock.now))
    now_and_then, found = Throttle(2.5, at_once), []
    for clock.now in range(10):
        if now_and_then.due():
            found.append(clock.now)
    assert found == due
    now_and_then.wait(0)
    assert now_and_then.due() and not now_and_then.due()
    now_and_then.wait()
    clock.now += 2
    assert not now_and_then.due()
