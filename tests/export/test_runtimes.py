"""The runtimes of apps, as far as no network is needed."""

from importlib.util import find_spec

import pytest


@pytest.mark.nightly
@pytest.mark.skipif(find_spec("openvino") is None, reason="needs openvino")
def test_openvino_reports_to_nobody(fresh_process, tmp_path):
    from_ours = "from esformer.export.runtimes import _openvino; print(_openvino().__name__)"
    assert fresh_process("-c", from_ours, HOME=str(tmp_path), CI="").strip() == "openvino"
    assert not (tmp_path / "intel").exists()
