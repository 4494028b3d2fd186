"""What the gateway asks outside of its data path."""
