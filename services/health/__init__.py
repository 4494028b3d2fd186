"""The health service: the state of the whole fleet."""
