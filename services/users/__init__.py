"""The users service: records, passwords and tokens."""
