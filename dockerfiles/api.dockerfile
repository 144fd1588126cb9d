# The service: FastAPI and ONNX Runtime, no torch. Build it from the top of the repository:
#   docker build -f dockerfiles/api.dockerfile -t trashsorting-api .
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
# Two environments: the one that travels on has no pip, the one that builds stays here.
COPY requirements/build.txt requirements/serve.txt requirements/
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements/build.txt \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --require-hashes -r requirements/serve.txt
# The package comes last: a change in it leaves the layer of its requirements as it is.
COPY LICENSE MANIFEST.in README.md pyproject.toml settings.ini setup.py ./
COPY nbs/train.ipynb nbs/
COPY trashsorting trashsorting
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /dist/*.whl

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="trashsorting-api" \
      org.opencontainers.image.description="Photograph a piece of trash and learn which bin it belongs in" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin trashsorting
COPY --from=build /opt/venv /opt/venv
# PORT is read by `trashsorting serve`; platforms that choose the port set it.
ENV PATH=/opt/venv/bin:$PATH \
    PORT=8080 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8080
# Healthy means that it can predict: a service without its model answers, and says so.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import json, os, sys, urllib.request as u; sys.exit(not json.load(u.urlopen(f\"http://127.0.0.1:{os.environ['PORT']}/api/health\", timeout=4))['model_loaded'])"]
CMD ["trashsorting", "serve", "--host", "0.0.0.0"]
