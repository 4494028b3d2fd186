"""A mail server for tests: enough of RFC 5321, 3207 and 4954 to be spoken to by a real client, on a free port of loopback."""

import asyncio
import base64
import datetime
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import SMTPUTF8
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

WAIT_S = 10.0


@dataclass
class SmtpServer:
    """`answers` replaces the answer to a command by its first word; an empty one hangs, `close` breaks the connection off."""

    port: int = 0
    account: tuple[str, str] | None = None
    extensions: tuple[str, ...] = ("8BITMIME", "SMTPUTF8")
    answers: dict[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | None = None
    messages: list[EmailMessage] = field(default_factory=list)
    envelopes: list[tuple[str, str]] = field(default_factory=list)
    was_encrypted: list[bool] = field(default_factory=list)
    connections: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            async with asyncio.timeout(WAIT_S):
                await _Dialogue(self, reader, writer).run()
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError):
            pass  # the client went away, or was left hanging on purpose
        finally:
            writer.close()


class _Dialogue:
    def __init__(self, server: SmtpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server, self._reader, self._writer = server, reader, writer
        self._is_encrypted = writer.get_extra_info("ssl_object") is not None
        self._is_known = server.account is None
        self._sender = self._recipient = ""

    async def _say(self, *lines: str) -> None:
        *first, last = lines
        text = "".join(f"{line[:3]}-{line[4:]}\r\n" for line in first) + f"{last}\r\n"
        self._writer.write(text.encode())
        await self._writer.drain()

    async def run(self) -> None:
        await self._say("220 mail.example.com ESMTP")
        while True:
            line = (await self._reader.readuntil(b"\r\n")).decode().strip()
            word = line.partition(" ")[0].upper()
            answer = self._server.answers.get(word)
            if answer == "close":
                return
            if answer == "":
                await asyncio.sleep(WAIT_S)
            elif answer is not None:
                await self._say(answer)
            elif word == "QUIT":
                await self._say("221 bye")
                return
            else:
                await self._obey(word, line)

    async def _obey(self, word: str, line: str) -> None:
        if word == "EHLO":
            await self._say(*[f"250 {name}" for name in ("mail.example.com", *self._offered())])
        elif word == "STARTTLS" and self._server.tls is not None:
            await self._say("220 go on")
            await self._writer.start_tls(self._server.tls)
            self._is_encrypted = True
        elif word == "AUTH":
            given = tuple(base64.b64decode(line.split()[2]).decode().split("\0")[1:])
            self._is_known = given == self._server.account
            await self._say("235 welcome" if self._is_known else "535 who are you")
        elif word in ("MAIL", "RCPT") and self._is_known:
            address = line.partition("<")[2].partition(">")[0]
            if word == "MAIL":
                self._sender = address
            else:
                self._recipient = address
            await self._say("250 fine")
        elif word == "DATA":
            await self._say("354 go on")
            data = await self._reader.readuntil(b"\r\n.\r\n")
            message = message_from_bytes(data[:-5].replace(b"\r\n..", b"\r\n."), policy=SMTPUTF8)
            self._server.messages.append(cast(EmailMessage, message))
            self._server.envelopes.append((self._sender, self._recipient))
            self._server.was_encrypted.append(self._is_encrypted)
            await self._say("250 taken")
        else:
            await self._say("530 not like this")

    def _offered(self) -> list[str]:
        offered = list(self._server.extensions)
        if self._server.tls is not None and not self._is_encrypted:
            offered.append("STARTTLS")
        if self._server.account is not None:
            offered.append("AUTH PLAIN")
        return offered


@asynccontextmanager
async def smtp_server(server: SmtpServer, *, is_tls: bool = False) -> AsyncIterator[SmtpServer]:
    """Run a server; with `is_tls` it encrypts from the first byte."""
    listening = await asyncio.start_server(
        server.serve, "127.0.0.1", server.port, ssl=server.tls if is_tls else None, limit=1024 * 1024
    )
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


def make_tls(folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Return the contexts of a server on 127.0.0.1 with a certificate of its own, and of a client that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mail.example.com")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(private + pem)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem")
    client = ssl.create_default_context(cadata=pem.decode())
    return server, client
