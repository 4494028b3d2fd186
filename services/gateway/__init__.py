"""The gateway: the one address clients speak to."""
