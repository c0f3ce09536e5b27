"""A guide: what drives a phase of a search, one proxy or a weighted sum of several."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from esformer.errors import ESFormerError

if TYPE_CHECKING:
    import numpy as np

NAME = "[a-z][a-z0-9_]*"
TERM = re.compile(rf"\s*([+-]?)\s*(?:(\d+(?:\.\d*)?|\.\d+)\s*\*\s*)?(?:log\(\s*({NAME})\s*\)|({NAME}))\s*")
"""A sign, a weight and the name of a proxy, or of one in `log()`."""
SUMS = ("largest", "ranks")


class Term(NamedTuple):
    """A proxy in a guide."""

    proxy: str
    weight: float = 1.0
    """Negative where less is better."""
    log: bool = False
    """The logarithm of the rank: what is among the last in one proxy then is never among the first."""

    def __str__(self) -> str:
        factor = "" if abs(self.weight) == 1 else f"{abs(self.weight):g}*"
        return f"{'-' if self.weight < 0 else '+'} {factor}{f'log({self.proxy})' if self.log else self.proxy}"


@dataclass(frozen=True)
class Guide:
    """A sum of proxies, each brought to a scale without units first, and with its weight.

    Only the order that a guide gives has a meaning, not its values.

    Args:
        terms: the proxies.
        sum: `ranks` sums their ranks among the same architectures, from 1/N to 1. AZ-NAS's guide (CVPR 2024, section
            3.3) is `log(az_expressivity) + log(az_progressivity) + log(az_trainability) + log(macs)`. `largest` divides
            each by its largest absolute value among them (FreeREA, section 3.3).

    Raises:
        ESFormerError: there is no such sum, or it has no logarithms.

    Examples:
        >>> guide = Guide.parse("naswot - 0.5*meco")
        >>> guide.worth({"naswot": [3, 1, 2], "meco": [0.2, 0.1, 0.4]}).round(2)
        array([0.67, 0.17, 0.17])
    """

    terms: tuple[Term, ...]
    sum: str = "ranks"

    def __post_init__(self) -> None:
        if self.sum not in SUMS:
            raise ESFormerError(f"sum is {self.sum!r}; it must be {' or '.join(SUMS)}")
        if self.sum == "largest" and (logs := [term.proxy for term in self.terms if term.log]):
            raise ESFormerError(f"log({logs[0]}) is the logarithm of a rank, so sum must be ranks, not largest")

    @classmethod
    def parse(cls, text: str, sum: str = "ranks") -> "Guide":
        """The guide that `str` wrote, such as `naswot + 0.5*zico - meco`.

        Args:
            text: proxies with weights, joined by + and -.
            sum: how they are summed: `ranks`, or `largest`, each divided by its largest in the population (FreeREA).

        Raises:
            ESFormerError: it is no sum of proxies, or one of them is there twice.
        """
        terms: dict[str, Term] = {}
        place = 0
        while place < len(text) or not terms:
            found = TERM.match(text, place)
            name = found and (found[3] or found[4])
            if found is None or name is None or (terms and not found[1]) or name in terms:
                raise ESFormerError(f"{text!r} must be a sum of different proxies, such as 'naswot + 0.5*zico - meco'")
            terms[name] = Term(name, float(f"{found[1]}{found[2] or 1}"), log=found[3] is not None)
            place = found.end()
        return cls(tuple(terms.values()), sum)

    def __str__(self) -> str:
        return " ".join(map(str, self.terms)).removeprefix("+ ")

    @property
    def proxies(self) -> tuple[str, ...]:
        """The names of its proxies."""
        return tuple(term.proxy for term in self.terms)

    def worth(self, scores: "Mapping[str, Sequence[float] | np.ndarray]") -> "np.ndarray":
        """What each of N architectures is worth among them: (N).

        Args:
            scores: for each proxy N values, of the same architectures in the same order.
        """
        import numpy as np  # not above: every command line reads guides, and --help is to be light
        from scipy import stats

        if len(self.terms) == 1:
            return self.terms[0].weight * np.asarray(scores[self.terms[0].proxy], dtype=float)
        total = np.zeros(len(scores[self.proxies[0]]))
        for proxy, weight, log in self.terms:
            values = np.asarray(scores[proxy], dtype=float)
            if self.sum == "largest":
                scaled = values / (np.abs(values).max() or 1.0)
            else:
                scaled = stats.rankdata(values) / len(values)
            total += weight * (np.log(scaled) if log else scaled)
        return total
