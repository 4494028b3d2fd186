"""The gateway's command line: `check` reads a configuration and serves nothing, `explain` says what becomes of a request."""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from typing import TextIO
from urllib.parse import urlsplit

from services.gateway.domain.config import ConfigError, check
from services.gateway.domain.explain import Asker, Explanation, LimitView, explain
from services.gateway.model import GatewayConfig
from services.gateway.settings import GatewaySettings
from shared.settings import SettingsError, load, read_value_file

EXIT_OK, EXIT_REFUSED, EXIT_USAGE = 0, 1, 2

_EPILOG = """\
Without a command the gateway serves until it is told to stop. All its settings are RH_GATEWAY_ variables; `check` and `explain`
read them as well, so that they judge by what would be served: set ENVIRONMENT=production to see production's rules.

  RH_GATEWAY_CONFIG_FILE=gateway.toml python -m services.gateway
  python -m services.gateway check gateway.toml
  python -m services.gateway explain POST /users
  python -m services.gateway explain GET '/users/42?x=1' --config gateway.toml --token-role admin
"""


def run(arguments: Sequence[str], out: TextIO, err: TextIO) -> int:
    """Do what a command line says; return the exit code: 0 good, 1 a fault or a refused request, 2 not understood."""
    options = _parser().parse_args(arguments)
    file = options.config or ""
    try:
        settings = load(GatewaySettings, serves=False)
        text = read_value_file(file, name=file) if file else settings.config
        config = settings.read_config(text, file or settings.config_file)
    except (ConfigError, SettingsError) as error:
        print(error, file=err)
        return EXIT_REFUSED
    if options.command == "check":
        lines, code = _served(file, config), EXIT_OK
    else:
        found = _explain(options, settings, config)
        lines, code = _explained(found), EXIT_OK if found.refusal is None else EXIT_REFUSED
    for line in lines:
        print(line, file=out)
    return code


def main(arguments: Sequence[str]) -> int:
    """Run for the process's own streams."""
    if any(argument == "check" or argument.startswith("--config") for argument in arguments):
        # What is checked may well be what is to take the place of a file that is bad.
        os.environ.pop("RH_GATEWAY_CONFIG_FILE", None)
    return run(arguments, sys.stdout, sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m services.gateway",
        description="The one address that clients speak to.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True
    one = commands.add_parser(
        "check", help="read a configuration file and say what it would serve, or every fault in it", allow_abbrev=False
    )
    one.add_argument("config", metavar="FILE", help="a TOML file (docs/gateway-configuration.md)")
    other = commands.add_parser(
        "explain",
        help="say which route takes a request and what its policies do, or why it is refused",
        allow_abbrev=False,
    )
    other.add_argument(
        "method", metavar="METHOD", type=str.upper, help="GET, POST, ...; WS for a WebSocket's handshake"
    )
    other.add_argument(
        "path", metavar="PATH", type=_target, help="/users/42, with its query or without; or a whole URL"
    )
    other.add_argument("--config", metavar="FILE", help="instead of RH_GATEWAY_CONFIG_FILE")
    other.add_argument("--token-role", metavar="ROLE", help="user, admin, ...; without it nobody is signed in")
    other.add_argument("--tier", default="", metavar="TIER", help="the token's `tier` claim")
    return parser


def _target(text: str) -> str:
    if not text.startswith(("/", "http://", "https://", "ws://", "wss://")):
        raise argparse.ArgumentTypeError(f"'{text[:80]}' is neither a path that begins with / nor a URL")
    return text


def _explain(options: argparse.Namespace, settings: GatewaySettings, config: GatewayConfig) -> Explanation:
    parts = urlsplit(options.path) if "://" in options.path.partition("?")[0] else None
    target = (parts.path or "/") if parts else options.path
    asker = Asker(role=options.token_role, tier=options.tier, host=parts.netloc if parts else "")
    return explain(config, check(config), options.method, target, asker, authorities=settings.authority_names)


def _served(file: str, config: GatewayConfig) -> Iterator[str]:
    """Say what a configuration serves."""
    yield f"{file}: good"
    yield ""
    rows = [
        (", ".join(route.methods), route.path, f"-> {route.service}", route.kind, route.auth, ", ".join(route.limits))
        for route in config.routes
    ]
    yield from _table([("methods", "path", "service", "kind", "auth", "limits"), *rows])
    yield ""
    limits = [
        (
            limit.name,
            f"{limit.quota} per {limit.window_s:g} s",
            f"by {limit.by}",
            limit.applies_to.replace("_", " "),
            limit.counts,
            f"store down: {limit.store_down}",
        )
        for limit in config.limits
    ]
    yield from _table([("limit", "quota", "by", "for", "counts", ""), *limits])
    yield ""
    for name, policy in config.services.items():
        changed = policy.model_dump(exclude_defaults=True)
        yield f"service {name}: {_settings_text(changed) or 'as by default'}"
    for title, values in (
        ("only these addresses are served", config.addresses.allow),
        ("addresses without limits", config.addresses.exempt),
        ("trusted proxies", config.addresses.trusted_proxies),
        ("origins let in", config.cors.origins),
    ):
        if values:
            yield f"{title}: {', '.join(values)}"


def _settings_text(values: dict[str, object]) -> str:
    parts = []
    for name, value in values.items():
        text = "{" + _settings_text(value) + "}" if isinstance(value, dict) else str(value)
        parts.append(f"{name} = {text}")
    return ", ".join(parts)


def _explained(found: Explanation) -> Iterator[str]:
    yield f"{found.method} {found.path}"
    if found.route is not None:
        yield f"  route    {found.route.path} [{', '.join(found.route.methods)}] -> {found.route.service}"
    if found.refusal is not None:
        refusal = found.refusal
        yield f"  refused  {refusal.status} {refusal.code}: {refusal.reason}"
        if refusal.allow:
            yield f"  allowed  {', '.join(refusal.allow)}"
    else:
        yield f"  answered by {found.answered_by}"
    if found.chain:
        yield ""
        yield from _table([("policy, outermost first", "what it does"), *((s.name, s.does) for s in found.chain)])
    if found.limits:
        yield ""
        yield from _table([("limit", "counted by", "quota", "this request"), *map(_limit_row, found.limits)])


def _limit_row(limit: LimitView) -> tuple[str, ...]:
    if not limit.applies:
        what = "does not meet it"
    elif limit.counts == "unauthorized":
        what = f"takes {limit.cost} if it is answered 401"
    else:
        what = f"takes {limit.cost}"
    return limit.name, limit.key, f"{limit.quota} per {limit.window_s:g} s", what


def _table(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Lay rows out in columns as wide as they need."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
