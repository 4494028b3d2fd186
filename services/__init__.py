"""The services of the fleet, one folder each; they never import each other."""
