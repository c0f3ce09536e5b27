"""What a guide is: a weighted sum of proxies on a common scale."""

import numpy as np
import pytest
from scipy import stats

from esformer.errors import ESFormerError
from esformer.guide import Guide


@pytest.mark.parametrize(
    "text", ["naswot", "naswot + 0.5*zico - meco", "-0.25*a + b_2", "a-1.5 * b", "log(a) - 2*log( b ) + c"]
)
def test_written_and_read(text):
    guide = Guide.parse(text)
    assert Guide.parse(str(guide)) == guide
    assert str(guide).replace(" ", "") == text.replace(" ", "")


@pytest.mark.parametrize(
    "text",
    ["", "+", "a b", "a + a", "a ++ b", "2 a", "a + 0.5*", "a * 2", "A", "a + é", "log(a", "log()", "a + log(a)"],
)
def test_what_is_no_guide_is_refused(text):
    with pytest.raises(ESFormerError, match="must be a sum of different proxies, such as 'naswot"):
        Guide.parse(text)


def test_worth_is_of_ranks():
    scores = {"a": np.array([1.0, 100.0, 3.0, 3.0]), "b": np.array([4.0, 3.0, 2.0, 1.0])}
    worth = Guide.parse("a - 0.5*b").worth(scores)
    expected = stats.rankdata(scores["a"]) / 4 - 0.5 * stats.rankdata(scores["b"]) / 4
    assert worth == pytest.approx(expected) and worth.argmax() == 1
    logs = Guide.parse("log(a) + log(b)").worth(scores)
    assert logs == pytest.approx(np.log(stats.rankdata(scores["a"]) / 4) + np.log(stats.rankdata(scores["b"]) / 4))
    assert worth == pytest.approx(Guide.parse("a - 0.5*b").worth({"a": np.exp(scores["a"]), "b": scores["b"] * 7}))


def test_a_sum_may_divide_by_the_largest_instead():
    scores = {"a": np.array([1.0, -4.0, 2.0]), "b": np.array([10.0, 0.0, 5.0])}
    assert Guide.parse("a + 2*b", sum="largest").worth(scores) == pytest.approx([2.25, -1.0, 1.5])
    assert Guide.parse("a + b", sum="largest").worth({"a": np.zeros(2), "b": np.ones(2)}) == pytest.approx([1, 1])


@pytest.mark.parametrize("sum", ["largest", "ranks"])
def test_one_proxy_alone_needs_no_scale(sum):
    assert Guide.parse("a", sum).worth({"a": [3, 1]}).tolist() == [3, 1]
    assert Guide.parse("-0.5*a", sum).worth({"a": [3, 1]}).tolist() == [-1.5, -0.5]


def test_sums_that_there_are_not():
    with pytest.raises(ESFormerError, match="sum is 'mean'; it must be largest or ranks"):
        Guide.parse("a + b", sum="mean")
    with pytest.raises(ESFormerError, match=r"log\(b\) is the logarithm of a rank, so sum must be ranks, not largest"):
        Guide.parse("a + log(b)", sum="largest")
