"""What opening a model's file raises."""


class ModelFileError(Exception):
    """A model's file that cannot be found, read or used. The message says what was wrong and what to do."""
