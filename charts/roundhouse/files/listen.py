"""Opens the port for clients, hands it down, and becomes the service: `python listen.py HOST PORT DESCRIPTOR_VARIABLE MODULE`.

The gateway serves two sockets: one for clients, which it inherits, and its own for probes, scrapers and the fleet.
"""

import os
import socket
import sys

BACKLOG = 2048

host, port, variable, module = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
listener = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
listener.set_inheritable(True)
os.environ[variable] = str(listener.fileno())
os.execv(sys.executable, [sys.executable, "-m", module])  # noqa: S606 - a shell is what is not wanted
