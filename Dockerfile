# docker build -t banana-service .
# docker run -d --name banana -p 127.0.0.1:8000:8000 --env-file .env -v banana-data:/data banana-service
#
# .env must set BROKER_API_KEYS: a request from outside the container never counts as one from the same machine, so without a
# key every order gets 401. docs/deploying.md describes the rest. .dockerignore admits only the code, so no layer contains a
# secret.

FROM python:3.13-slim AS builder
WORKDIR /src
RUN python -m venv /opt/broker
# dependencies first, because they change rarely; the lock includes asyncpg, obstore, and setuptools for the next step
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

# The image is based on Debian 13 with SQLite 3.46. Versions before 3.51.3 have a rare defect when two processes write at the
# same moment: run one container per SQLite volume, or use Postgres (the profile `full` of deploy/compose.yml).
FROM python:3.13-slim
RUN groupadd --gid 10001 broker \
 && useradd --uid 10001 --gid broker --home-dir /data --no-create-home --shell /usr/sbin/nologin broker \
 && install --directory --owner broker --group broker --mode 0700 /data
COPY --from=builder /opt/broker /opt/broker

# TMPDIR: large uploads are spooled to the volume, so that the root can be read-only and /tmp small.
ENV PATH=/opt/broker/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    BROKER_HOST=0.0.0.0 \
    BROKER_DATA_DIR=/data \
    TMPDIR=/data
USER 10001:10001
VOLUME /data
# relative paths in .env (sqlite:///data/broker.db, file:data/blobs) are on the volume, too
WORKDIR /data
EXPOSE 8000
STOPSIGNAL SIGTERM

# For `serve`. A `worker` has no HTTP server: start it with --no-healthcheck (compose: healthcheck: disable: true). Not
# urllib, which would use a proxy from the environment.
HEALTHCHECK --interval=15s --timeout=5s --start-period=30s --retries=3 CMD ["python", "-c", "\
import http.client, os, sys; \
c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('BROKER_PORT') or 8000), timeout=4); \
c.request('GET', '/health'); \
sys.exit(c.getresponse().status != 200)"]

ENTRYPOINT ["broker"]
CMD ["serve"]
