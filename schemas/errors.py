"""The base of all errors."""


class PcmError(Exception):
    """Base of every error that schemas, broker and agents raise; the text says what is wrong.

    Errors about a given value are ValueErrors as well.
    """
