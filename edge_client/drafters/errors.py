"""What loading or using a drafter raises."""


class DrafterError(Exception):
    """A drafter that cannot be loaded or used. The message says what was wrong, what was expected and what to do."""
