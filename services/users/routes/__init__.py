"""The HTTP edge: paths, headers and status codes; what they mean is decided in the domain."""
