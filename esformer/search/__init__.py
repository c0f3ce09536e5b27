"""Decoupled evolutionary search: operators, schedule, journal and the stage that runs them."""
