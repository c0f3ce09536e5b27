"""Vega, Vega-Lite and Vega-Embed as one script, to stand in a page."""

import logging
import os
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from esformer.files import FileError, read_text, write_text

log = logging.getLogger("esformer")

PACKAGE = "vl-convert-python"
BUNDLE = "import sys, vl_convert; sys.stdout.buffer.write(vl_convert.javascript_bundle().encode())"
LARGEST = 10_000_000
"""Bytes of the script; version 6 of Vega has 900,000."""


@cache
def javascript() -> str | None:
    """The script, which defines `vegaEmbed`; None where the package that brings it is not installed or fails.

    The package starts a JavaScript engine to make it. So a process of its own does that, once for every version: the
    result is kept in the user's cache.
    """
    try:
        name = f"vega-{version(PACKAGE)}.js"
    except PackageNotFoundError:
        return None
    kept = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "esformer", name)  # noqa: PTH111
    try:
        return read_text(kept, LARGEST)
    except FileError:
        pass  # not made yet, or not readable
    try:
        done = subprocess.run(
            [sys.executable, "-c", BUNDLE], capture_output=True, stdin=subprocess.DEVNULL, timeout=120
        )
        script = done.stdout.decode()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError) as error:
        log.debug("%s: %s", PACKAGE, error)
        return None
    if done.returncode or "vegaEmbed" not in script:
        return None
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_text(kept, script)
    except (OSError, FileError) as error:
        log.debug("%s is not kept: %s", kept, error)
    return script
