"""Texts that are stored and shown: what no database takes, and how an error names a text of any length."""

from __future__ import annotations

from typing import Final

from topology.errors import OptionInvalid

_SHOWN: Final = 80


def flaw_of(text: str) -> str | None:
    """Why ``text`` can be in no table: PostgreSQL takes no NUL, and UTF-8 has no half characters. None if it can."""
    if "\0" in text:
        return "it holds a NUL"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it is no UTF-8"
    return None


def expect_storable(**texts: str | None) -> None:
    """Raises OptionInvalid that names the first of ``texts`` which no database takes."""
    for name, text in texts.items():
        flaw = None if text is None else flaw_of(text)
        if flaw is not None:
            raise OptionInvalid(f"{name} is {shown(text)}: {flaw}")


def shown(value: object) -> str:
    """``value`` as an error names it: in quotes, on one line, and not at any length."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"
