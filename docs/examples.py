"""What the reference shows besides what docstrings say: examples as code, and what short names of types stand for."""

import re
from typing import Any

from griffe import Attribute, Docstring, Extension, Object

_TYPES = ("Float[", "Int[", "Bool[", "UInt8[", "Shaped[", "Literal[", "Callable[", "Mapping[", "dict[", "tuple[")


class Examples(Extension):
    """Reads `Example:` as `Examples:`, which the parser knows, and lets names of types appear that say nothing more."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Rename the section in an object's docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)

    def on_attribute(self, *, attr: Attribute, **_: Any) -> None:
        """Say of a name for a type that it is one."""
        of_module = attr.parent is not None and attr.parent.is_module
        if of_module and not attr.docstring and str(attr.value).startswith(_TYPES):
            attr.docstring = Docstring("Stands for this type in signatures.", parent=attr)
