"""A genotype made a network, and what it costs."""
