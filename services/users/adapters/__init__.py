"""Stores, password hashing, signing keys and metrics: everything that touches a driver or a library of craft."""
