"""The base of all errors."""


class PcmError(Exception):
    """Base of every error that schemas, broker and agents raise; the text says what is wrong.

    Those that are about a value that was given are ValueErrors as well.
    """
