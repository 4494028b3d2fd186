"""What the mails say: plain text, and in it nothing that a user can choose, or registering would be a way to write to strangers."""

from collections.abc import Mapping
from email.message import EmailMessage
from email.policy import SMTPUTF8
from email.utils import format_datetime, parseaddr
from types import MappingProxyType

from services.users.model.records import Mail, Purpose

TOKEN_MARK = "{token}"  # noqa: S105 - a placeholder
"""In the template of a link: where the token goes."""

_SUBJECTS = MappingProxyType({"verify": "Verify your e-mail address", "reset": "Set a new password"})
_REASONS = MappingProxyType(
    {
        "verify": "This address was given for an account at {site}.\nVerify that it is yours within 24 hours.",
        "reset": "Somebody asked to set a new password for the account with this address at {site}.\nDo it within one hour.",
    }
)
_BY_LINK = "Open this page:\n\n    {link}\n\nor use"
_BY_API = MappingProxyType(
    {
        "verify": 'Send POST {site}/auth/email/verify with {{"token": "..."}}',
        "reset": 'Send POST {site}/auth/password/reset with {{"token": "...", "password": "..."}}',
    }
)
_TEXT = """{reason}

{how} this token, which is good once:

    {token}

If it was not you who asked, do nothing: without this mail nobody can use it.
"""


class MailText:
    """`links` holds templates with `{token}` by purpose, empty where there is no page: then the mail names the API.

    The addresses in it come from the settings alone. A Host header is whatever the client says, and would lead to its site.
    """

    def __init__(self, *, sender: str, public_url: str, links: Mapping[Purpose, str]) -> None:
        self._sender = sender
        self._domain = parseaddr(sender)[1].rpartition("@")[2]
        self._public_url = public_url
        self._links = links

    def compose(self, mail: Mail, token: str) -> EmailMessage:
        """Return the mail; a second one of the same has the same Message-ID, so that mailboxes can tell."""
        message = EmailMessage(policy=SMTPUTF8)
        message["From"] = self._sender
        message["To"] = mail.recipient
        message["Subject"] = _SUBJECTS[mail.kind]
        message["Date"] = format_datetime(mail.created_at)
        message["Message-ID"] = f"<{mail.id}@{self._domain}>"
        # RFC 3834: nobody's absence note should answer.
        message["Auto-Submitted"] = "auto-generated"
        message.set_content(
            _TEXT.format(
                reason=_REASONS[mail.kind].format(site=self._public_url), how=self._how(mail.kind, token), token=token
            ),
            # As it is, so that a link can be read in the file too; the settings see to it that it is ASCII and short enough.
            cte="7bit",
        )
        return message

    def _how(self, purpose: Purpose, token: str) -> str:
        template = self._links.get(purpose, "")
        if template:
            return _BY_LINK.format(link=template.replace(TOKEN_MARK, token))
        # No link to the API: it would have to act on GET, and what scans mails opens every link.
        return f"{_BY_API[purpose].format(site=self._public_url)} and"
