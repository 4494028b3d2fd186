"""The verb `token`: signs in at the running gateway as the first admin, or as a development user it makes sure exists."""

import json
import secrets
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from dev.errors import CannotRun
from dev.infra.credentials import write_private

TIMEOUT_S = 10.0
DEV_USER = "dev"
DEV_EMAIL = "dev@example.com"


def token(gateway: str, secrets_dir: Path, *, admin: bool) -> str:
    """Return an access token of the first admin, or of the development user (registered at the first call)."""
    if admin:
        status, body = _sign_in(gateway, "admin", _read(secrets_dir / "admin-password"))
        if status == 401:
            raise CannotRun("The admin's password was changed: sign in with the new one at POST /auth/token.")
        return _access_token(status, body)
    password_file = secrets_dir / "dev-user-password"
    if not password_file.exists():
        # Holds every class of character, so that no rule of strength refuses it.
        write_private(password_file, f"Dev-{secrets.token_urlsafe(18)}-7z!")
    password = _read(password_file)
    status, body = _sign_in(gateway, DEV_USER, password)
    if status in (400, 401):
        _register(gateway, password)
        status, body = _sign_in(gateway, DEV_USER, password)
    return _access_token(status, body)


def _register(gateway: str, password: str) -> None:
    account = {"username": DEV_USER, "email": DEV_EMAIL, "password": password}
    status, body = _post(f"{gateway}/users", json.dumps(account).encode(), "application/json")
    if status == 409:
        raise CannotRun(f"A user {DEV_USER!r} with another password exists: sign in with that one at POST /auth/token.")
    if status != 201:
        raise CannotRun(f"The development user could not be made: {_said(status, body)}")


def _sign_in(gateway: str, username: str, password: str) -> tuple[int, bytes]:
    form = urllib.parse.urlencode({"grant_type": "password", "username": username, "password": password})
    return _post(f"{gateway}/auth/token", form.encode(), "application/x-www-form-urlencoded")


def _access_token(status: int, body: bytes) -> str:
    if status != 200:
        raise CannotRun(f"Signing in failed: {_said(status, body)}")
    try:
        return str(json.loads(body)["access_token"])
    except (ValueError, KeyError, TypeError) as error:
        raise CannotRun("Signing in was answered without an access token.") from error


def _post(url: str, body: bytes, content_type: str) -> tuple[int, bytes]:
    request = urllib.request.Request(url, data=body, headers={"content-type": content_type})  # noqa: S310 - our own URL
    # No proxy of the caller's: the gateway is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise CannotRun(
            "The gateway does not answer: see `python3 dev status` and `python3 dev logs gateway`."
        ) from error


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError as error:
        raise CannotRun(
            f"The secret {path} cannot be read ({error.strerror}): run this as the fleet's user."
        ) from error


def _said(status: int, body: bytes) -> str:
    try:
        problem = json.loads(body)
        return f"{status} {problem.get('detail') or problem.get('title')}"
    except (ValueError, AttributeError):
        return f"the gateway answered {status}"
