"""Script: a script of timm's, to which our names are known.

`python -m pipelines.script validate.py --model esformer_s0 ...` is `python validate.py --model esformer_s0 ...`; timm
looks for models at no entry points, so somebody has to import ours before its script asks for one. Under torchrun it is
`torchrun ... -m pipelines.script train.py ...`.
"""

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from esformer.errors import USER_ERROR


def main(argv: Sequence[str] | None = None) -> None:
    """Run the script as Python would, but for one import before it."""
    script, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if script in ("-h", "--help"):
        print(__doc__)
        return
    if not Path(script).is_file():
        print(f"error: there is no script {script}; give the path of one of timm's, such as train.py", file=sys.stderr)
        sys.exit(USER_ERROR)
    sys.argv = [script, *arguments]
    sys.path[0] = str(Path(script).resolve().parent)
    import esformer.model.registry  # noqa: F401

    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    main()
