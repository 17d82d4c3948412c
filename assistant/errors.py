"""The one error that a user's input raises."""


class BadInput(ValueError):
    """What was given cannot be used; the message is one line that says what to do about it."""
