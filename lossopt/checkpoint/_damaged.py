"""What damage is, and which errors of a file are none."""

from errno import EACCES, EMFILE, ENFILE, ENOMEM, EPERM, ESTALE

NOT_OF_THE_DISK = {EMFILE, ENFILE, ENOMEM, EACCES, EPERM, ESTALE}


class Damaged(Exception):
    """A step on disk is not what was saved."""


def unreadable(name: str, error: OSError) -> Exception:
    """What to say of a file that cannot be read, unless the file is not to blame."""
    return error if error.errno in NOT_OF_THE_DISK else Damaged(f"{name} cannot be read: {error}")
