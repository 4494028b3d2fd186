"""How to configure, start, probe and stop each embedded server: NATS, Valkey, PostgreSQL."""

import asyncio
import json
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from dev.errors import CannotRun
from dev.infra import identity, locate, probes
from dev.infra.credentials import secret, write_private
from dev.infra.pgwire import PgError, Target
from dev.infra.site import Site
from dev.process import Child, Command, Identity, spawn
from dev.tail import last_lines

USER = "roundhouse"
INITDB_TIMEOUT_S = 60.0
StopSteps = tuple[tuple[signal.Signals, float], ...]


class NatsServer:
    """NATS with JetStream that syncs every write, as in every form of the fleet."""

    name = "nats"
    stop_steps: StopSteps = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))

    def __init__(self, site: Site) -> None:
        self._site = site
        self._password = secret(site.secrets, "nats-password")
        self.port = 0
        self.note = ""

    @property
    def url(self) -> str:
        return f"nats://{USER}:{self._password}@127.0.0.1:{self.port}"

    async def spawn(self) -> Child:
        binary = locate.find_nats()
        self.note = f"{binary.source} + JetStream"
        self.port = self._site.ports.take(self.name)
        config = self._site.secrets / "nats.conf"
        write_private(config, self._config())
        return await spawn(_command(self._site, self.name, [str(binary.path), "-c", str(config)]))

    async def probe(self) -> None:
        await probes.probe_nats(self.port, USER, self._password)

    def _config(self) -> str:
        store = json.dumps(str(self._site.data / "nats"))
        return "\n".join(
            (
                'server_name: "roundhouse"',
                f"listen: 127.0.0.1:{self.port}",
                f"authorization {{ user: {USER}, password: {json.dumps(self._password)} }}",
                # Without sync_interval a power cut may lose two minutes of acknowledged messages.
                f"jetstream {{ store_dir: {store}, sync_interval: always, max_mem: 256MB, max_file: 8GB }}",
                "max_payload: 1MB",
                "",
            )
        )


class ValkeyServer:
    """Valkey as a bounded cache: no persistence, least recently used keys go first."""

    name = "valkey"
    stop_steps: StopSteps = ((signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))

    def __init__(self, site: Site) -> None:
        self._site = site
        self._password = secret(site.secrets, "valkey-password")
        self.port = 0
        self.note = ""

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    async def spawn(self) -> Child:
        binary = locate.find_valkey()
        self.note = f"{binary.source}, cache only"
        self.port = self._site.ports.take(self.name)
        config = self._site.secrets / "valkey.conf"
        write_private(config, self._config())
        return await spawn(_command(self._site, self.name, [str(binary.path), str(config)]))

    async def probe(self) -> None:
        await probes.probe_valkey(self.port, self._password)

    def _config(self) -> str:
        lines = (
            "bind 127.0.0.1",
            f"port {self.port}",
            f"requirepass {self._password}",
            'save ""',
            "appendonly no",
            "maxmemory 256mb",
            "maxmemory-policy allkeys-lru",
            "daemonize no",
            f"dir {json.dumps(str(self._site.run))}",
            "",
        )
        return "\n".join(lines)


class PostgresServer:
    """PostgreSQL on loopback TCP with SCRAM passwords and fsync on."""

    name = "postgres"
    # SIGINT is a fast shutdown (SIGTERM would wait for every client), SIGQUIT an immediate one.
    stop_steps: StopSteps = ((signal.SIGINT, 5.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))

    def __init__(self, site: Site, *, forced: Identity | None = None) -> None:
        self._site = site
        self._forced = forced
        self._password = secret(site.secrets, "postgres-password")
        self._has_database = False
        self.port = 0
        self.note = ""
        self.seat: identity.Seat | None = None

    @property
    def url(self) -> str:
        return f"postgresql://{USER}:{quote(self._password, safe='')}@127.0.0.1:{self.port}/{USER}"

    async def spawn(self) -> Child:
        binary = locate.find_postgres()
        home = self._site.data / "postgres"
        seat = await asyncio.to_thread(identity.choose_seat, binary.path, home, forced=self._forced)
        if seat.home != home:
            self._site.outside.append(seat.home.parent)
        self.seat = seat
        self.note = ", ".join(part for part in (binary.source, seat.note) if part)
        if not (seat.home / "PG_VERSION").exists():
            await self._initialise(seat)
        major = (seat.home / "PG_VERSION").read_text().strip()
        running = await asyncio.to_thread(locate.postgres_major, seat.binary)
        if int(major) != running:
            raise CannotRun(
                f"The data in {seat.home} was made by PostgreSQL {major}, but the server here is {running}: "
                "use --data-dir with a new folder, or the old server."
            )
        self.port = self._site.ports.take(self.name)
        argv = [str(seat.binary), "-D", str(seat.home), *_postgres_options(self.port, running)]
        # An immediate shutdown when the runner dies: a killed postmaster leaves backends that block the next start.
        command = _command(self._site, self.name, argv)
        return await spawn(replace(command, identity=seat.identity, death_signal=signal.SIGQUIT, cwd=Path("/")))

    async def probe(self) -> None:
        if not self._has_database:
            try:
                await asyncio.to_thread(probes.ensure_database, self._target("postgres"), USER)
            except PgError as error:
                if "password authentication failed" in str(error):
                    raise CannotRun(
                        f"The password in {self._site.secrets} is not the one that the data in {self._site.data} was "
                        "made with: bring the old secrets folder back, or start on an empty --data-dir."
                    ) from error
                raise probes.NotReady(str(error)) from error
            self._has_database = True
        await probes.probe_postgres(self._target(USER))

    def _target(self, database: str) -> Target:
        return Target("127.0.0.1", self.port, USER, self._password, database)

    async def _initialise(self, seat: identity.Seat) -> None:
        """Make a new cluster beside its final place and move it there only when complete."""
        draft = seat.home.with_name(f"{seat.home.name}.new")
        await asyncio.to_thread(shutil.rmtree, draft, ignore_errors=True)
        seat.home.parent.mkdir(parents=True, exist_ok=True)
        draft.mkdir(mode=0o700)
        # The password reaches initdb in a file inside the folder's parent that its user can read; removed at once.
        pwfile = draft.with_name(f"{draft.name}.pw")
        write_private(pwfile, self._password)
        if seat.identity == "nobody":
            for path in (draft, pwfile):
                shutil.chown(path, identity.NOBODY, identity.NOBODY)
        argv = [str(seat.binary.with_name("initdb")), "-D", str(draft), "-U", USER, f"--pwfile={pwfile}"]
        argv += ["--auth=scram-sha-256", "--encoding=UTF8", "--locale=C", "--no-instructions"]
        command = replace(_command(self._site, self.name, argv), identity=seat.identity, cwd=Path("/"))
        try:
            child = await spawn(command)
            try:
                async with asyncio.timeout(INITDB_TIMEOUT_S):
                    code = await child.wait()
            finally:
                if child.exit_code is None:
                    child.send(signal.SIGKILL)
                    child.sweep()
                    await child.wait()
        finally:
            pwfile.unlink(missing_ok=True)
        if code != 0:
            lines = " / ".join(last_lines(command.log, 3))
            raise CannotRun(f"PostgreSQL could not create its data folder {seat.home}: {lines}")
        draft.rename(seat.home)


ServerRecipe = NatsServer | ValkeyServer | PostgresServer
RECIPES: dict[str, Callable[[Site], ServerRecipe]] = {
    "nats": NatsServer,
    "valkey": ValkeyServer,
    "postgres": PostgresServer,
}


def _command(site: Site, name: str, argv: list[str]) -> Command:
    return Command(argv, env=site.clean_env(), log=site.logs / f"{name}.log", cwd=site.run, keep_fds=site.keep_fds)


def _postgres_options(port: int, major: int) -> list[str]:
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        # A socket path may have 107 bytes at most, and the folder's path may be longer: TCP only.
        "unix_socket_directories": "",
        "shared_buffers": "32MB",
        "max_connections": "100",
        "fsync": "on",
        "logging_collector": "off",
        "log_checkpoints": "off",
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_logical_replication_workers": "0",
        "max_wal_size": "256MB",
        "jit": "off",
        "timezone": "UTC",
        "log_timezone": "UTC",
    }
    if major >= 18:
        options["io_method"] = "sync"  # no extra I/O worker processes for a small data set
    return [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
