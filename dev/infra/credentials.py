"""Makes and keeps generated secrets: one file each, readable by the owner only, never in argv or logs."""

import os
import secrets
from pathlib import Path


def make_private_dir(path: Path) -> Path:
    """Create the folder (and parents) with mode 0700 and return it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_private(path: Path, text: str) -> None:
    """Replace the file's content atomically; mode 0600 from its first byte."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)


def secret(folder: Path, name: str, *, secret_bytes: int = 24) -> str:
    """Return the secret of that name, made at the first call (URL-safe text)."""
    path = folder / name
    try:
        found = path.read_text().strip()
    except FileNotFoundError:
        found = ""
    if not found:
        found = secrets.token_urlsafe(secret_bytes)
        write_private(path, found)
    return found
