"""The compute service: CPU work in a process pool."""
