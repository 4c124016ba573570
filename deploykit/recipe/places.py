"""Where each key of a recipe was written, and what is wrong with it so far."""

from __future__ import annotations

__all__ = ["KeyPath", "Place", "Sheet"]

from dataclasses import dataclass, field

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, order=True)
class Place:
    """A line of the recipe file, or an override; `order` sorts problems by line, those of overrides last."""

    order: int
    text: str


@dataclass
class Sheet:
    """The places of all keys, and the problems found."""

    places: dict[KeyPath, Place] = field(default_factory=dict)
    problems: list[tuple[Place, str]] = field(default_factory=list)

    def refuse(self, path: KeyPath, reason: str, place: Place | None = None) -> None:
        """Adds a problem with a key, at the place where it was written."""
        dotted = ".".join(map(str, path))
        self.problems.append((place or self.place(path), f"{dotted}: {reason}" if dotted else reason))

    def place(self, path: KeyPath) -> Place:
        """The place of a key, or of the nearest one above it that was written."""
        return next(self.places[path[:end]] for end in range(len(path), -1, -1) if path[:end] in self.places)

    def overwrite(self, path: KeyPath, place: Place) -> None:
        """Gives a key, and all below it, another place."""
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        self.places[path] = place

    def listing(self) -> str:
        """All problems, one a line, in the order of the file."""
        return "\n".join(f"{place.text}: {text}" for place, text in sorted(self.problems, key=lambda item: item[0]))
