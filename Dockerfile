# docker build -t banana-service .
# docker run -d --name banana -p 127.0.0.1:8000:8000 --env-file .env -v banana-data:/data banana-service
#
# .env must set BROKER_API_KEYS: from outside its container nobody is "this machine", so without a key every order gets
# 401. docs/deploying.md has the rest. Nothing secret is in a layer: .dockerignore lets in the code and nothing else.

FROM python:3.13-slim AS builder
WORKDIR /src
RUN python -m venv /opt/broker
# first what changes rarely; the lock holds every package, also asyncpg, obstore, and setuptools for the next step
COPY requirements.lock ./
RUN /opt/broker/bin/pip install --no-cache-dir --disable-pip-version-check \
      --require-hashes --no-deps -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY broker broker
COPY webhooks webhooks
COPY storage storage
COPY uploads uploads
RUN /opt/broker/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
 && /opt/broker/bin/pip uninstall --yes --quiet setuptools pip

# Debian 13 beneath has SQLite 3.46. Versions before 3.51.3 have a rare flaw when two processes write at the same
# moment: one container per SQLite volume, or Postgres (the profile `full` of deploy/compose.yml).
FROM python:3.13-slim
RUN groupadd --gid 10001 broker \
 && useradd --uid 10001 --gid broker --home-dir /data --no-create-home --shell /usr/sbin/nologin broker \
 && install --directory --owner broker --group broker --mode 0700 /data
COPY --from=builder /opt/broker /opt/broker

# TMPDIR: large uploads are put down beside the data while they arrive; so the root may be read-only, and /tmp small.
ENV PATH=/opt/broker/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BROKER_HOST=0.0.0.0 \
    BROKER_DATA_DIR=/data \
    TMPDIR=/data
USER 10001:10001
VOLUME /data
# relative paths in an .env (sqlite:///data/broker.db, file:data/blobs) end up on the volume, too
WORKDIR /data
EXPOSE 8000
STOPSIGNAL SIGTERM

# For `serve`. A `worker` listens nowhere: start it with --no-healthcheck (compose: healthcheck: disable: true). Not
# with urllib, which would ask a proxy named in the environment.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('BROKER_PORT') or 8000), timeout=4); \
c.request('GET', '/health'); \
sys.exit(c.getresponse().status != 200)"]

ENTRYPOINT ["broker"]
CMD ["serve"]
