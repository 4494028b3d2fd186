"""Runs the gateway until it is told to stop: one process, or as many as RH_GATEWAY_WORKERS says."""

from services.gateway.app import main

main()
