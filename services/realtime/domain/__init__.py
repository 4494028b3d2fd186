"""What realtime is about, free of sockets and drivers: channels, positions, publications, conduct and events."""
