"""The command line that all pipelines share: `--size S2 --quick key=value ...`, `--help`, `--print-config`."""

import argparse
import errno
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from configs.compose import compose, default_values, to_yaml
from configs.explain import SECTIONS_WITH_FILES, choices, settings
from configs.schema import Config
from configs.values import ValueTypeError, path_text
from esformer.choices import SIZES, size_of
from esformer.errors import STOPPED, USER_ERROR, ESFormerError, ProcessLostError
from pipelines.runtime import signals
from pipelines.runtime.completion import complete
from pipelines.runtime.errors import explain
from pipelines.runtime.watchdog import INTERRUPTED, connected, leave_at_once, watchdog

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
"""A disk that is full or not to be written to."""
DRY_RUN: dict[str, dict[str, Any]] = {
    "--dry-run": dict(
        action="store_true",
        help="try each stage in small on the real machine and images, say what the run needs, leave nothing behind",
    )
}
"""The flag of pipelines.runtime.dry_run, for `parse_with`."""


def path_or_name(text: str) -> str:
    """The type of arguments that may be paths: `~` in front is the home, and the rest stays as it was typed.

    Raises:
        ArgumentTypeError: no file can have such a name.
    """
    try:
        return path_text(text)
    except ValueTypeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def path(text: str) -> Path:
    """The type of arguments that are paths."""
    return Path(path_or_name(text))


SPACE: dict[str, dict[str, Any]] = {
    "--space": dict(
        metavar="NAME",
        help="search another space: darts, or, where a table of trained networks shows what a search is worth,"
        " nats-tss, nats-sss, channel-bench-resnet, nasbench101 or esformer (its table comes along); accuracy is then a"
        " guide too",
    ),
    "--table": dict(metavar="FILE", type=path_or_name, help="the table, as pipelines.correlate reads it"),
    "--dataset": dict(metavar="NAME", help="of the table: cifar10, cifar100 or imagenet16-120 (default cifar10)"),
}
"""The flags that name another space, for `parse_with` together with `of_space`."""


def of_space(flags: argparse.Namespace) -> list[str]:
    """The settings for which `--space`, `--table` and `--dataset` stand."""
    named = {"space.name": flags.space, "space.table": flags.table, "space.dataset": flags.dataset}
    return [f"{key}={value}" for key, value in named.items() if value is not None]


def parse(story: str, argv: Sequence[str] | None = None) -> Config:
    """The configuration that a command line asks for. Prints and exits on `--help` and `--print-config`.

    Args:
        story: the pipeline's docstring; heads the help.
        argv: the arguments, by default the process's own.
    """
    return parse_with(story, argv, {})[0]


def parse_with(
    story: str,
    argv: Sequence[str] | None,
    flags: Mapping[str, Mapping[str, Any]],
    defaults: Callable[[argparse.Namespace], Sequence[str]] = lambda arguments: (),
) -> tuple[Config, argparse.Namespace]:
    """The same for a pipeline with flags of its own.

    Args:
        story: the pipeline's docstring; heads the help.
        argv: the arguments, by default the process's own.
        flags: what argparse is to know of each; one without dashes is a word before the settings.
        defaults: the settings that arguments bring with them; those that a person writes come after and win.
    """
    parser = argparse.ArgumentParser(
        description=story, epilog=_explain(), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sizes = f"at most so many parameters, and MACs at 224 pixels: {_sizes()}"
    parser.add_argument("--size", help=sizes).completer = lambda **_: SIZES  # type: ignore[attr-defined]
    parser.add_argument("--quick", action="store_true", help="the whole job in minutes, on images that come with it")
    for name, flag in flags.items():
        parser.add_argument(name, **flag)
    parser.add_argument("--print-config", action="store_true", help="print the configuration that would run, and stop")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="any setting listed below")
    complete(parser)
    arguments = parser.parse_intermixed_args(argv)
    config = compose(arguments.size, arguments.quick, [*defaults(arguments), *arguments.settings])
    if arguments.print_config:
        print(to_yaml(config), end="")
        sys.exit()
    return config, arguments


def _sizes() -> str:
    """Each size and what it may cost."""
    costs = {name: (size_of(name).params / 1e6, size_of(name).macs / 1e9) for name in SIZES}
    said = [f"{name} {params:g} M and {macs:.1f} G" for name, (params, macs) in costs.items()]
    return f"{', '.join(said)} (default {SIZES[0]})"


def run(main: Callable[[], object], goes_on: bool = True) -> NoReturn:
    """Run a pipeline; what a user can mend ends it with one sentence and exit code 2, without a traceback.

    SIGUSR1 and SIGTERM stop it in good order, with exit code 75; under SLURM the job is then put into the queue again.

    Args:
        main: the pipeline.
        goes_on: whether the same command goes on from where this one stops; else it begins again.
    """
    signals.stop.goes_on = goes_on
    signals.stop.install()
    watchdog.start()
    try:
        main()
    except KeyboardInterrupt:
        _end(INTERRUPTED, signals.stop.exit_message)
    except SystemExit as end:
        if end.code == STOPPED:
            _stop()
        if not connected():
            raise
        _end(end.code if isinstance(end.code, int) else INTERRUPTED)
    except Exception as raw:
        signals.stop.disarm()
        error = explain(raw)
        ours = isinstance(error, ESFormerError) or (isinstance(error, OSError) and error.errno in DISK_ERRORS)
        stopped = signals.is_shutdown_error(error)
        if ours and not (stopped and isinstance(error, ProcessLostError)):
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        if stopped:
            _stop()
        if not ours:
            sys.excepthook(type(raw), raw, raw.__traceback__)
        _end(USER_ERROR if ours else 1)
    _end(0)


def _stop() -> NoReturn:
    signals.stop.disarm()
    _end(*signals.requeue_and_exit_code(), at_once=signals.under_slurm())  # which ends the processes of libraries too


def _end(code: int, words: str = "", at_once: bool = False) -> NoReturn:
    """The end of this process, and of those that it has started.

    Where a process group or a process that cannot be killed is left, nobody takes leave of it: that may take for ever.
    """
    signals.stop.disarm()
    watchdog.rest()
    failed = code not in (0, STOPPED)
    if words:
        print(words, file=sys.stderr, flush=True)
    watchdog.announce_end("failed" if failed else "done")
    if failed:
        watchdog.end_launched()
    left = False
    if "multiprocessing" in sys.modules:
        from esformer.children import kill_children  # takes as long to import as all of --help

        left = not kill_children()
    if at_once or connected() or left:
        leave_at_once(code)
    sys.exit(code)


def _explain() -> str:
    """Every setting with its type, default and explanation."""
    width = min(120, shutil.get_terminal_size().columns)
    named = ", ".join(f"{section}={'|'.join(choices(section))}" for section in SECTIONS_WITH_FILES)
    heading = f"settings (key=value). A whole section takes a named choice: {named}."
    heading += " The size and --quick choose for you. Below are the values of a command without settings, of size S0;"
    lines = textwrap.wrap(f"{heading} --print-config shows those of yours.", width, break_on_hyphens=False)
    known = default_values()
    for setting in settings():
        value = known[setting.key]
        lines.append(f"\n  {setting.key}: {setting.type} = {'null' if value is None else value}")
        lines += textwrap.wrap(setting.explanation, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)
