"""The one-machine runner: starts, watches and stops the whole fleet on this machine; nothing imports it."""
