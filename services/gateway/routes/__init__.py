"""The gateway's own side, by FastAPI: a file for each of its subjects; proxied requests never come here."""
