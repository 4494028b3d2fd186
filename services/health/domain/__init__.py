"""What is known about the fleet, how it is kept fresh, and what it amounts to."""
