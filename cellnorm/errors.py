"""The one exception that a user's data or arguments can cause."""

__all__ = ["DataError"]


class DataError(ValueError):
    """Something in the data or the arguments makes the request impossible.

    The message says what was asked, what was found and what to do. The command line prints it in one line and exits 1.

    Examples
    --------
    >>> from cellnorm import DataError
    >>> issubclass(DataError, ValueError)
    True
    """
