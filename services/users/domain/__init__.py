"""The rules of the service: users, log-in, sessions and the events that tell of them."""
