"""What measures: scoring, and training beside timm's own loop."""
