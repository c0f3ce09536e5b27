"""The version of this code, as weights files name it, and of what it stands on."""

import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@cache
def code_version() -> str:
    """The package's version; in a checkout with the commit, such as `0.1.0+f4d58cb`, and `-dirty` if it was changed."""
    try:
        found = version("esformer")
    except PackageNotFoundError:  # run from a folder that was never installed
        found = "0"
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return found
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return found
    return f"{found}+{commit}"


def versions() -> str:
    """Of this code and of the libraries on which its numbers depend."""
    libraries = (f"{name} {version(name)}" for name in ("torch", "timm", "lightning"))
    return ", ".join([f"esformer {code_version()}", *libraries])
