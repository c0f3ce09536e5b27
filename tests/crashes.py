"""When one of pytest-xdist's processes dies: what it died of, and its test once more."""

from xdist.scheduler import LoadFileScheduling


class Scheduling(LoadFileScheduling):
    """A file's tests to one process, and what a process that died has left to another.

    pytest-xdist 3.8 gives the other the files that are done as well, and it waits for tests of theirs for ever.
    """

    def remove_node(self, node):
        files = self.assigned_work[node]
        self.assigned_work[node] = {file: tests for file, tests in files.items() if not all(tests.values())}
        return super().remove_node(node)


def pytest_xdist_make_scheduler(config, log):
    return Scheduling(config, log) if config.getoption("dist") == "loadfile" else None


CRASHES = []
"""Of pytest-xdist's processes: what each ended with, and in which test."""


def pytest_testnodedown(node, error):
    if error:
        CRASHES.append(f"{node.gateway.id} ended with {node.gateway._io.popen.wait(10)}")


def pytest_handlecrashitem(crashitem, report):
    """Another process has the test again, and if it dies too, the test has failed.

    Now and then the kernel of a virtual machine kills a process as its child ends (SIGSEGV, without an address).
    """
    first = not any(crashitem in crash for crash in CRASHES)
    CRASHES[-1] += f" in {crashitem}"
    if first:
        report.outcome, report.longrepr = "skipped", (crashitem.partition("::")[0], None, CRASHES[-1])


def pytest_terminal_summary(terminalreporter):
    for crash in CRASHES:
        terminalreporter.line(crash)
