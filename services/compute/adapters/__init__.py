"""What compute reaches outside itself: its metrics."""
