"""What carries a run: its processes, and how they come to an end."""
