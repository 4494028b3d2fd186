"""Runs health: `python -m services.health`."""

from services.health.app import create
from services.health.settings import HealthSettings
from shared import serve

if __name__ == "__main__":
    serve.main(HealthSettings, create)
