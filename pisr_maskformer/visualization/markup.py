"""Text and data from outside as parts of an HTML page: whatever they hold, they stay text and data."""

import json
from html import escape
from typing import Any


def script_json(value: Any) -> str:
    """JSON that may stand in a script element: ASCII, without a character that HTML takes for its own."""
    coded = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        coded = coded.replace(character, f"\\u{ord(character):04x}")
    return coded


def text(value: object) -> str:
    """Escaped for HTML, in attributes too; half characters, which no file can hold, become question marks."""
    return escape(str(value).encode("utf-8", "replace").decode(), quote=True)
