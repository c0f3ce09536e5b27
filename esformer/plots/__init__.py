"""Pictures, as functions of data; matplotlib is imported where one is drawn."""
