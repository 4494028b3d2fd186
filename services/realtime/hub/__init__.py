"""The hub: who listens to what on this replica, and the synchronous fan-out of everything the bus brings."""
