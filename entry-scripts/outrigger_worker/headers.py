"""Headers and other fields by name: the small part of Werkzeug's containers that entry scripts use."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Headers:
    """Header fields in their order; names are compared without regard to case, and may repeat.

    Iterating gives pairs, as it does in Flask; `dict(headers)` works.
    """

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs = list(pairs)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(list(self._pairs))

    def __len__(self) -> int:
        return len(self._pairs)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and any(True for _ in self._values(name))

    def __getitem__(self, name: str) -> str:
        for value in self._values(name):
            return value
        raise KeyError(name)

    def __setitem__(self, name: str, value: Any) -> None:
        self.remove(name)
        self.add(name, value)

    def __delitem__(self, name: str) -> None:
        self.remove(name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Headers) and self._folded() == other._folded()

    def __repr__(self) -> str:
        return f"Headers({self._pairs!r})"

    def get(self, name: str, default: Any = None, type: Callable[[str], Any] | None = None) -> Any:
        """The first value, converted by `type`; `default` when there is none or it cannot be converted."""
        return _first(self._values(name), default, type)

    def getlist(self, name: str, type: Callable[[str], Any] | None = None) -> list[Any]:
        """All values, without those that `type` does not take."""
        return _all(self._values(name), type)

    get_all = getlist

    def keys(self) -> Iterator[str]:
        return iter([name for name, _ in self._pairs])

    def values(self) -> Iterator[str]:
        return iter([value for _, value in self._pairs])

    def items(self) -> Iterator[tuple[str, str]]:
        return iter(self)

    def add(self, name: str, value: Any) -> None:
        """Adds a field; others of its name stay."""
        self._pairs.append((str(name), str(value)))

    add_header = add

    def set(self, name: str, value: Any) -> None:
        """Takes the place of all fields of that name."""
        self[name] = value

    def setdefault(self, name: str, default: Any = "") -> str:
        if name not in self:
            self.add(name, default)
        return self[name]

    def update(self, other: Any = (), /, **more: Any) -> None:
        """Sets the fields of a mapping or of pairs."""
        for name, value in [*(other.items() if hasattr(other, "items") else other), *more.items()]:
            self[name] = value

    def extend(self, other: Any = (), /, **more: Any) -> None:
        """Adds the fields of a mapping or of pairs."""
        for name, value in [*(other.items() if hasattr(other, "items") else other), *more.items()]:
            self.add(name, value)

    def remove(self, name: str) -> None:
        """Removes all fields of that name, if there are any."""
        folded = name.lower()
        self._pairs = [pair for pair in self._pairs if pair[0].lower() != folded]

    def pop(self, name: str, default: Any = None) -> Any:
        """Removes all fields of that name; gives the first value."""
        value = self.get(name, default)
        self.remove(name)
        return value

    def _values(self, name: str) -> Iterator[str]:
        folded = name.lower()
        return (value for known, value in self._pairs if known.lower() == folded)

    def _folded(self) -> list[tuple[str, str]]:
        return [(name.lower(), value) for name, value in self._pairs]


class Typed:
    """What has headers that say of which media type it is."""

    headers: Headers

    @property
    def content_type(self) -> str | None:
        value: str | None = self.headers.get("Content-Type")
        return value

    @property
    def mimetype(self) -> str:
        """The media type in lower case, without parameters."""
        return (self.content_type or "").partition(";")[0].strip().lower()


class MultiDict(dict[str, Any]):
    """Fields by name, as of a form: as a dict it has the first value of each name."""

    def __init__(self, pairs: Iterable[tuple[str, Any]] = ()) -> None:
        super().__init__()
        self._lists: dict[str, list[Any]] = {}
        for name, value in pairs:
            self._lists.setdefault(name, []).append(value)
            self.setdefault(name, value)

    def get(self, name: str, default: Any = None, type: Callable[[Any], Any] | None = None) -> Any:
        """The first value, converted by `type`; `default` when there is none or it cannot be converted."""
        return _first(iter(self._lists.get(name, ())), default, type)

    def getlist(self, name: str, type: Callable[[Any], Any] | None = None) -> list[Any]:
        """All values, without those that `type` does not take."""
        return _all(iter(self._lists.get(name, ())), type)

    def lists(self) -> Iterator[tuple[str, list[Any]]]:
        """Each name with all its values."""
        return iter([(name, list(values)) for name, values in self._lists.items()])

    def items(self, multi: bool = False) -> Any:
        """Names with their first value; with `multi`, with each of their values."""
        if not multi:
            return super().items()
        return [(name, value) for name, values in self._lists.items() for value in values]

    def to_dict(self, flat: bool = True) -> dict[str, Any]:
        """A plain dict of the first values, or of the lists of all."""
        return dict(self) if flat else dict(self.lists())


def _first(values: Iterator[Any], default: Any, convert: Callable[[Any], Any] | None) -> Any:
    for value in values:
        try:
            return value if convert is None else convert(value)
        except (ValueError, TypeError):
            return default
    return default


def _all(values: Iterator[Any], convert: Callable[[Any], Any] | None) -> list[Any]:
    found = []
    for value in values:
        try:
            found.append(value if convert is None else convert(value))
        except (ValueError, TypeError):
            continue
    return found
