r"""JSON's ``\uXXXX`` as the characters that it stands for: what runs is decoded, so that must be what is judged."""

from __future__ import annotations

import re

__all__ = ["Unescaping", "unescaped"]

_OPEN = re.compile(r"\\(?:u[0-9a-fA-F]{0,4})?")
_LENGTH = len(r"\u0000")


class Unescaping:
    r"""Decodes one growing JSON text. All else stays as it is, ``\n`` and ``\\u0041`` too.

    A character outside the basic plane comes as it is escaped, in two halves.
    """

    def __init__(self) -> None:
        self._open = ""

    def push(self, text: str) -> str:
        """The text, without an escape at its end that may go on."""
        if not self._open and "\\" not in text:
            return text
        out: list[str] = []
        for character in text:
            if not self._open and character != "\\":
                out.append(character)
            elif _OPEN.fullmatch(self._open + character):
                self._open += character
                if len(self._open) == _LENGTH:
                    _, _, digits = self._open.partition("u")
                    out.append(chr(int(digits, 16)))
                    self._open = ""
            elif character == "\\" and len(self._open) > 1:  # no JSON, and the beginning of the next one
                out.append(self._open)
                self._open = character
            else:
                out.append(self.flush() + character)
        return "".join(out)

    def flush(self) -> str:
        """An escape that has not ended, once no more will come."""
        held, self._open = self._open, ""
        return held


def unescaped(text: str) -> str:
    """A whole JSON text, decoded."""
    reading = Unescaping()
    whole = reading.push(text) + reading.flush()
    return whole.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if whole != text else text
