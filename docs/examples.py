"""Lets the reference show a docstring's `Example:` as code; the parser knows the plural only."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Reads `Example:` as `Examples:`."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section in an object's docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE
            )
