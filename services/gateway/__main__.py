"""Runs one gateway process until it is told to stop."""

from services.gateway.app import create, public_sockets
from services.gateway.settings import GatewaySettings
from shared.serve import main

main(GatewaySettings, create, public_sockets)
