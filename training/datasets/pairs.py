"""Photos and masks of two folders, paired by their names without ending."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# What the server decodes.
PHOTO_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
NAMED_FILES = 5

Pair = tuple[Path, Path]


def pair_files(photos: Path, masks: Path) -> tuple[Pair, ...]:
    """(photo, mask) of every name in two folders, in alphabetical order; other files are left.

    Raises:
        FileNotFoundError: nothing there, or files without a partner, or with two; they are named.
    """
    found = _by_stem(photos, PHOTO_SUFFIXES)
    drawn = _by_stem(masks, (".png",))
    unpaired = sorted(set(found) ^ set(drawn))
    if unpaired or not found:
        raise FileNotFoundError(
            f"{photos} and {masks} do not pair up: {len(found)} images, {len(drawn)} labels"
            + (f", without a partner: {name_some(unpaired)}" if unpaired else "")
        )
    return tuple((found[stem], drawn[stem]) for stem in sorted(found))


def list_files(folder: Path, suffixes: tuple[str, ...]) -> Iterator[Path]:
    """Files of a folder that end so, in any case; hidden ones are left."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and path.is_file():
            yield path


def _by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in list_files(folder, suffixes):
        if path.stem in found:
            raise FileNotFoundError(
                f"{found[path.stem]} and {path.name} would share one partner; rename one of them"
            )
        found[path.stem] = path
    return found


def name_some(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = len(names) - NAMED_FILES
    return ", ".join(names[:NAMED_FILES]) + (f" and {more} more" if more > 0 else "")
