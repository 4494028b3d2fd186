"""The gateway's rules, one module each; none knows a framework or a driver."""
