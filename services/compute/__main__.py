"""Runs compute: `python -m services.compute`."""

from services.compute.app import create
from services.compute.settings import ComputeSettings
from shared import serve

if __name__ == "__main__":
    serve.main(ComputeSettings, create)
