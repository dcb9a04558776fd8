"""How much each hyperparameter matters."""

from typing import Any


def importance(table: Any, score: str | None, repeats: int, key: int) -> dict:
    """See `Table.importance`."""
    raise NotImplementedError
