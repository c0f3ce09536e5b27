"""What every executor does, and the one of this process."""

from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import islice
from typing import Any, Generic, Protocol, TypeVar

from esformer.errors import ESFormerError, ProcessLostError

Task = TypeVar("Task", contravariant=True)
Result = TypeVar("Result", covariant=True)


class EngineError(ESFormerError):
    """Work that cannot go on; what was done so far is kept by whoever asked for it."""


class RankLostError(EngineError, ProcessLostError):
    """Another rank is gone."""


class Executor(Protocol[Task, Result]):
    """Computes a function of tasks, and gives the results in whatever order they are asked for."""

    def submit(self, task: Task) -> "Future[Result]":
        """Have a task computed."""

    def wait(self, futures: "Sequence[Future[Any]]") -> "list[Future[Any]]":
        """Wait until some are done, and give these.

        Raises:
            EngineError: workers died of a task again and again, or a rank is gone.
            ESFormerError: what the function raised.
        """

    def shutdown(self, done: bool) -> None:
        """Release the workers, whether or not all tasks are done."""


class Future(Generic[Result]):
    """The result of a task, which may not be there yet.

    Args:
        executor: what computes it.
    """

    def __init__(self, executor: Executor[Any, Result]) -> None:
        self.executor = executor
        self._outcome: tuple[Any] | None = None

    @property
    def done(self) -> bool:
        """Whether the result is there."""
        return self._outcome is not None

    def set_result(self, outcome: Any) -> None:
        """Say what was computed; for the executor."""
        self._outcome = (outcome,)

    def result(self) -> Result:
        """Wait for the result.

        Raises:
            as `Executor.wait`.
        """
        while self._outcome is None:
            self.executor.wait([self])
        (outcome,) = self._outcome
        return outcome  # type: ignore[no-any-return]


class SerialExecutor(Executor[Task, Result]):
    """Computes in this process, when a result is asked for.

    Args:
        function: of a task.
    """

    def __init__(self, function: Callable[[Task], Result]) -> None:
        self.function = function
        self._tasks: dict[Future[Any], Task] = {}

    def submit(self, task: Task) -> Future[Result]:
        future: Future[Result] = Future(self)
        self._tasks[future] = task
        return future

    def wait(self, futures: Sequence[Future[Any]]) -> list[Future[Any]]:
        done = [future for future in futures if future.done]
        if not done and futures:
            done = [futures[0]]
            futures[0].set_result(self.function(self._tasks.pop(futures[0])))
        return done

    def shutdown(self, done: bool) -> None:
        self._tasks.clear()


def compute(executor: Executor[Task, Result], tasks: Iterable[Task], ahead: int) -> Generator[Result, None, None]:
    """The results of tasks, each as soon as it is there; closed early or not, the executor is shut down.

    Args:
        executor: computes.
        tasks: taken as they are needed, so that there may be any number of them.
        ahead: how many are submitted before a result is taken.

    Raises:
        as `Executor.wait`.
    """
    coming, submitted, done = iter(tasks), list[Future[Any]](), False
    try:
        while submitted := submitted + [executor.submit(task) for task in islice(coming, ahead - len(submitted))]:
            for future in executor.wait(submitted):
                submitted.remove(future)
                yield future.result()
        done = True
    finally:
        executor.shutdown(done)
