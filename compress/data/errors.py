"""What can be wrong with a data set."""


class DataError(ValueError):
    """A data set cannot be had or used; the message says what to do."""
