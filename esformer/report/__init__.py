"""A report that a person can send: one HTML file with interactive charts, which needs no network."""
