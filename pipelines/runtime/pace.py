"""Pace: how long an epoch of a training takes here, measured as a dry run does it, in a process of its own.

`python -m pipelines.runtime.pace` takes the arguments of pipelines.train; `pace.json` in run.dir comes out.
"""

import json
from pathlib import Path

from esformer.files import write_text
from pipelines.runtime import cli
from pipelines.runtime.dry_run import scratch, try_training
from pipelines.runtime.preflight import preflight
from pipelines.runtime.start import given_genotype


def main() -> None:
    """Measure a few steps and batches of the validation."""
    config = cli.parse(__doc__ or "")
    plan = preflight("train", config)
    folder = Path(config.run.dir or "pace")
    with scratch(folder) as place:
        found = try_training(plan, given_genotype(config), place)
    epoch = (found["training_seconds"] + found["validation_seconds"]) / found["epochs"]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "pace.json", json.dumps({"epoch_seconds": epoch}) + "\n")


if __name__ == "__main__":
    cli.run(main)
