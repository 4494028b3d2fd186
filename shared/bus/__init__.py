"""The event bus: one Protocol (`base`), NATS for real (`nats`), a memory twin for tests and single replicas (`memory`)."""
