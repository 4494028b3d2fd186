"""The package that one finds first: fastapi-proxy-lib as its manual shows it. Runs in the peers' environment."""

import os

import httpx
from fastapi_proxy_lib.fastapi.app import reverse_http_app

POOL = int(os.environ["POOL"])
limits = httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL)

app = reverse_http_app(client=httpx.AsyncClient(limits=limits, trust_env=False), base_url=f"{os.environ['UPSTREAM']}/")
