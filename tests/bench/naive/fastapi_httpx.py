"""The gateway that one writes first: a FastAPI route that passes each request on with httpx. Runs in the peers' environment."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import FastAPI, Request, Response

POOL = int(os.environ["POOL"])
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host"}


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    limits = httpx.Limits(max_connections=POOL, max_keepalive_connections=POOL)
    async with httpx.AsyncClient(base_url=os.environ["UPSTREAM"], limits=limits, trust_env=False) as client:
        app.state.client = client
        yield


app = FastAPI(lifespan=lifespan)


@app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"])
async def forward(path: str, request: Request) -> Response:
    headers = [(name, value) for name, value in request.headers.items() if name not in HOP_BY_HOP]
    answer = await request.app.state.client.request(
        request.method, f"/{path}", params=request.query_params, content=await request.body(), headers=headers
    )
    kept = {name: value for name, value in answer.headers.items() if name not in HOP_BY_HOP}
    return Response(answer.content, answer.status_code, kept)
