"""What went wrong in a way that the user can mend."""


class ESFormerError(ValueError):
    """A sentence that says what is wrong, where, and what would be right; pipelines print it without a traceback."""
