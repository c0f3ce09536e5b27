"""The commands, one a file, each a flat story: `python -m pipelines.full --help`."""
