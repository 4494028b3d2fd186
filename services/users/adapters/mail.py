"""Where mails go, by the scheme of a URL: a mail server, a folder, or the memory of a test."""

import asyncio
import os
from collections import deque
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import unquote, urlsplit

from services.users.domain.ports import MailUnavailable, Post

FILES_MAX = 1000
"""One more removes the oldest: nothing empties the folder."""

MESSAGES_MAX = 1000


def open_post(url: str) -> Post:
    """Return what sends to a URL that `check_mail_url` takes."""
    parts = urlsplit(url)
    if parts.scheme == "file":
        return FilePost(Path(unquote(parts.path)))
    if parts.scheme == "memory":
        return MemoryPost()
    # Here, so that a process without a mail server does not pay for the library.
    from services.users.adapters.smtp import SmtpPost

    return SmtpPost(url)


class MemoryPost:
    """Keeps the last messages; for tests."""

    def __init__(self) -> None:
        self.messages: deque[EmailMessage] = deque(maxlen=MESSAGES_MAX)

    async def send(self, message: EmailMessage) -> None:
        self.messages.append(message)


class FilePost:
    """Writes each mail to a file of its own, named by its id, which nobody else may read."""

    def __init__(self, folder: Path, *, files_max: int = FILES_MAX) -> None:
        self._folder = folder
        self._files_max = files_max

    async def send(self, message: EmailMessage) -> None:
        try:
            await asyncio.to_thread(self._write, message)
        except OSError as error:
            raise MailUnavailable(f"the folder of mails cannot be written: {error.strerror}") from error

    def _write(self, message: EmailMessage) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = str(message["Message-ID"]).strip("<>").partition("@")[0]
        # Two processes may write the same mail, so each has a file of its own until it is whole.
        path, part = self._folder / f"{name}.eml", self._folder / f".{name}.{os.getpid()}"
        part.unlink(missing_ok=True)
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(message.as_bytes())
        part.replace(path)
        # Ids begin with the time, so names are in the order of writing.
        for old in sorted(self._folder.glob("*.eml"))[: -self._files_max]:
            old.unlink(missing_ok=True)
