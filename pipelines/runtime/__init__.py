"""What carries a run."""
