"""What the service speaks of: records inside, edge models outside, and the rules of text they share."""
