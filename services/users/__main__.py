"""Run the users service: `python -m services.users`."""

from services.users.app import create
from services.users.settings import UsersSettings
from shared.serve import main

if __name__ == "__main__":
    main(UsersSettings, create)
