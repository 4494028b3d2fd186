"""Watches the source and says which services a change touches."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from pathlib import Path, PurePath

from dev.fleet import Fleet

DEBOUNCE_MS = 200
IGNORED_FOLDERS = frozenset({"tests", "__pycache__", ".git"})
IGNORED_SUFFIXES = frozenset({".md", ".pyc", ".swp", ".swx", ".tmp", ".new"})


def touched(fleet: Fleet, root: Path, paths: Iterable[str]) -> list[str]:
    """Return the services whose source is among the changed paths; a change in `shared` touches all."""
    found = set()
    for path in paths:
        if not is_source(Path(path), root):
            continue
        parts = Path(path).relative_to(root).parts
        if parts[0] == "shared":
            return [service.name for service in fleet.services]
        found |= {service.name for service in fleet.services if tuple(service.module.split(".")) == parts[:2]}
    return [service.name for service in fleet.services if service.name in found]


def is_source(path: PurePath, root: Path) -> bool:
    """Tell whether a change of this file can change a service."""
    if not path.is_relative_to(root):
        return False
    parts = path.relative_to(root).parts
    if len(parts) < 2 or parts[0] not in ("services", "shared"):
        return False
    is_hidden = any(part.startswith((".", "#")) for part in parts)
    return not (is_hidden or IGNORED_FOLDERS & set(parts) or path.suffix in IGNORED_SUFFIXES or path.name.endswith("~"))


async def changes(fleet: Fleet, root: Path, stop: asyncio.Event) -> AsyncIterator[list[str]]:
    """Yield the touched services after each burst of changes, until `stop` is set."""
    import watchfiles

    folders = [folder for folder in (root / "services", root / "shared") if folder.is_dir()]
    if not folders:
        return
    async for burst in watchfiles.awatch(
        *folders,
        watch_filter=lambda _change, path: is_source(Path(path), root),
        debounce=DEBOUNCE_MS,
        step=50,
        stop_event=stop,
        rust_timeout=500,
        yield_on_timeout=False,
    ):
        if names := touched(fleet, root, [path for _, path in burst]):
            yield names
