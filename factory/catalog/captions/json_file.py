"""Captions in a JSON file beside each sample."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from factory.catalog.captions.sources import LIST_SEPARATOR, RawTextCaptions, decode_text, listed
from factory.errors import MediaError
from factory.limits import FileSuffix, Names


@dataclass(frozen=True)
class JsonFileCaptions(RawTextCaptions):
    """Fields of a JSON file of the same stem beside each sample, also of members of tar shards.

    A field is a text, or a list of texts that are captions each. "a.b" reaches field b of
    object a, or of each object of list a; a number picks an entry of a list. An absent field
    and null are empty.

    Attributes:
        fields: Fields that hold a caption or a list of them; "a.b" reaches into objects.
        fallback_fields: Fields used where all of the above are empty.
        suffix: Suffix of the JSON files.
    """

    quick: ClassVar[bool] = True

    fields: Annotated[tuple[str, ...], Names(1)] = ("caption",)
    fallback_fields: Annotated[tuple[str, ...], Names()] = ()
    suffix: Annotated[str, FileSuffix()] = ".json"

    def __post_init__(self) -> None:
        """Name each field once, and say which files are read."""
        object.__setattr__(self, "fields", tuple(dict.fromkeys(self.fields)))
        object.__setattr__(self, "fallback_fields", tuple(self.fallback_fields))
        object.__setattr__(self, "sidecar", self.suffix)
        super().__post_init__()

    @property
    def source(self) -> str:
        """What the raw texts hold: these fields, in this order."""
        return f"sidecar:{self.suffix}:{'|'.join(self._names)}"

    def parse(self, data: bytes) -> tuple[str, ...]:
        """Return one text a field, those of a list with `LIST_SEPARATOR` between them.

        Raises:
            MediaError: The bytes are not UTF-8 or not JSON, or a field holds no texts.
        """
        text = decode_text(data)
        try:
            content = json.loads(text, parse_constant=_refuse)
            return tuple(LIST_SEPARATOR.join(_leaves(content, name)) for name in self._names)
        except (ValueError, RecursionError) as error:
            raise MediaError("caption not JSON", str(error)) from error

    @property
    def _names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.fields, *self.fallback_fields)))

    @property
    def _entries(self) -> int:
        return len(self._names)

    def _texts(self, key: str, raw: Sequence[str]) -> Iterable[str]:
        del key
        return listed(self._names, raw, self.fallback_fields)


def _refuse(constant: str) -> None:
    """Refuse NaN and Infinity, which are no JSON though Python reads them."""
    raise ValueError(f"{constant} is no JSON value")


def _leaves(content: Any, name: str) -> Iterator[str]:
    """Yield the texts of one field."""
    for value in _at(content, name):
        if isinstance(value, dict):
            inner = ", ".join(f"{name}.{key}" for key in list(value)[:5])
            raise MediaError(
                "caption not text",
                f"field {name!r} holds an object; name one of its fields: {inner}",
            )
        if value is not None:
            text = value if isinstance(value, str) else json.dumps(value)
            text.encode()  # JSON can escape half of a surrogate pair, which no file can hold
            yield text


def _at(content: Any, path: str) -> Iterator[Any]:
    """Yield what a dotted path reaches, lists taken apart."""
    if isinstance(content, list) and not path.partition(".")[0].isdecimal():
        for entry in content:
            yield from _at(entry, path)
    elif not path:
        yield content
    elif isinstance(content, list):
        first, _, rest = path.partition(".")
        yield from _at(content[int(first)], rest) if int(first) < len(content) else ()
    elif isinstance(content, dict):
        # A name that holds dots itself comes first.
        first, rest = (path, "") if path in content else path.partition(".")[::2]
        yield from _at(content[first], rest) if first in content else ()
