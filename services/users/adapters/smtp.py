"""Mails to a mail server (RFC 5321), each over a connection of its own, within a time limit and behind a circuit breaker."""

import asyncio
import ssl
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

import aiosmtplib

from services.users.domain.ports import MailRefused, MailUnavailable
from shared.breaker import BreakerConfig, CircuitBreaker, CircuitBreakerOpenError

SEND_TIMEOUT_S = 30.0
PORT_STARTTLS, PORT_TLS = 587, 465


class SmtpPost:
    """Speaks to a mail server: `smtp://` with STARTTLS, or without by `?tls=off`, `smtps://` with TLS from the first byte."""

    def __init__(self, url: str, *, tls: ssl.SSLContext | None = None, timeout_s: float = SEND_TIMEOUT_S) -> None:
        parts = urlsplit(url)
        self._is_tls = parts.scheme == "smtps"
        self._starts_tls = not self._is_tls and parts.query != "tls=off"
        self._host = parts.hostname or ""
        self._port = parts.port or (PORT_TLS if self._is_tls else PORT_STARTTLS)
        self._username = unquote(parts.username) if parts.username else None
        self._password = unquote(parts.password) if parts.password else None
        self._tls = tls
        self._timeout_s = timeout_s
        # What a server says of one mail is no failure of the server.
        self._breaker = CircuitBreaker(
            "mail", BreakerConfig(open_s=5.0, probe_s=timeout_s), failures=(MailUnavailable,)
        )

    async def send(self, message: EmailMessage) -> None:
        try:
            async with self._breaker:
                await self._send(message)
        except CircuitBreakerOpenError as error:
            raise MailUnavailable("the mail server has failed too often") from error

    async def _send(self, message: EmailMessage) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                await aiosmtplib.send(
                    message,
                    hostname=self._host,
                    port=self._port,
                    username=self._username,
                    password=self._password,
                    use_tls=self._is_tls,
                    start_tls=self._starts_tls,
                    tls_context=self._tls,
                    timeout=self._timeout_s,
                )
        except aiosmtplib.SMTPNotSupported as error:
            # The only thing a server may lack that another mail does not need.
            raise MailRefused("the mail server takes no address with such letters") from error
        except (aiosmtplib.SMTPException, OSError) as error:
            code = _code_of(error)
            if code is not None:
                raise MailRefused(f"the mail server refuses it for good: {code}") from error
            raise MailUnavailable(f"the mail server fails: {_name(error)}") from error
        except ValueError as error:
            # After OSError: a certificate that nobody vouches for is both.
            raise MailRefused("the address cannot be written in SMTP") from error


def _code_of(error: Exception) -> int | None:
    """Return the code by which this one mail was refused for good (RFC 5321, section 4.2.1), None for any other failure.

    What a server says of our log-in or sender holds for every mail and is put right by who runs it, so that is none.
    """
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused) and error.recipients:
        error = error.recipients[0]
    if isinstance(error, aiosmtplib.SMTPRecipientRefused | aiosmtplib.SMTPDataError) and 500 <= error.code < 600:
        return error.code
    return None


def _name(error: Exception) -> str:
    if type(error) is aiosmtplib.SMTPException:
        # The library's own words: no STARTTLS, no way to log in.
        return error.message
    # Its text may name the server, or repeat an address.
    code = f" {error.code}" if isinstance(error, aiosmtplib.SMTPResponseException) else ""
    return f"{type(error).__name__}{code}"
