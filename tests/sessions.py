"""Settings in force for a `with` block, as the plugin puts them around a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pytest_triguard.settings import Session, Settings, use_session


@contextmanager
def with_settings(**settings: Any) -> Iterator[Session]:
    """Put settings in force; what is not named has its default."""
    with use_session(Session(settings=Settings(**settings))) as session:
        yield session
