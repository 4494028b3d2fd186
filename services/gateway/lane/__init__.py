"""The data path: proxied requests, from the client's head to the upstream's last byte."""
