# One image per service, from one file: docker build --build-arg SERVICE=users .
# Settings come by the environment, at least RH_<SERVICE>_HOST and RH_<SERVICE>_PORT. The image holds Python and the service: no shell.

FROM python:3.13-slim AS base
# The bytecode is trusted as it is, whatever times a copy gives to the files.
ENV PYC_INVALIDATION_MODE=UNCHECKED_HASH UV_LINK_MODE=copy UV_PYTHON_DOWNLOADS=never \
    PIP_CACHE_DIR=/var/cache/pip UV_CACHE_DIR=/var/cache/uv
WORKDIR /build
COPY deploy/image/rootfs.py ./
RUN python rootfs.py /rootfs
COPY dev/requirements-uv.txt ./
# The cache is a mount, so it is not in the image.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --disable-pip-version-check --root-user-action=ignore --require-hashes -r requirements-uv.txt \
    && uv venv --python /usr/local/bin/python3 /venv

FROM base AS build
ARG SERVICE
RUN test -n "${SERVICE}" || { echo "say which service: --build-arg SERVICE=users" >&2; exit 1; }
# Dependencies before code: a changed line of code installs nothing again.
COPY requirements.lock services/${SERVICE}/pyproject.toml ./
RUN --mount=type=cache,target=/var/cache/uv \
    uv pip install --python /venv --compile-bytecode --require-hashes -r pyproject.toml -c requirements.lock
WORKDIR /app
COPY deploy/image/probe.py ./
COPY shared shared
RUN python -m compileall -q --invalidation-mode unchecked-hash .
COPY services/__init__.py services/
COPY services/${SERVICE} services/${SERVICE}
RUN python -m compileall -q --invalidation-mode unchecked-hash services

FROM scratch
ARG SERVICE
ENV PATH=/venv/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    ROUNDHOUSE_SERVICE=${SERVICE}
WORKDIR /app
COPY --from=base /rootfs /
COPY --from=build /venv /venv
COPY --from=build /app /app
# A number, since a cluster cannot tell from a name that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s --retries=3 CMD ["python", "-S", "/app/probe.py"]
CMD ["python", "-S", "-c", "import os; os.execlp('python', 'python', '-m', 'services.' + os.environ['ROUNDHOUSE_SERVICE'])"]
