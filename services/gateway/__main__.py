"""Runs the gateway until it is told to stop: one process, or as many as RH_GATEWAY_WORKERS says. With a command: see `--help`."""

import sys

if len(sys.argv) > 1:
    from services.gateway.cli import main as command

    sys.exit(command(sys.argv[1:]))

from services.gateway.app import main

main()
