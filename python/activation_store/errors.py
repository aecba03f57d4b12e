"""What can be wrong with a store. Each message says what, where, and what to do.

Wrong arguments are `ValueError`, `TypeError` or `IndexError`; errors of the system are `OSError`.
"""


class StoreError(Exception):
    """Anything that is wrong with a store."""


class StoreNotFoundError(StoreError, FileNotFoundError):
    """There is no store in the folder."""

    # FileNotFoundError prints a number and a path; the message has what there is to say.
    __str__ = Exception.__str__


class IncompleteStoreError(StoreError):
    """The dump that writes the store has not ended. The dump's command, run again, continues it."""


class DamagedStoreError(StoreError):
    """A file is not what the store recorded of it. `activation_store.verify` lists all that are."""
