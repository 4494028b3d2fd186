"""Runs one replica of the realtime service."""

from services.realtime.app import create
from services.realtime.settings import RealtimeSettings
from shared.serve import main

if __name__ == "__main__":
    main(RealtimeSettings, create)
