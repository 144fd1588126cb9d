# The service: FastAPI and ONNX Runtime, no torch. Build it from the top of the repository:
#   make runtime   # ONNX Runtime Web, with which the page classifies on a phone; without it the service works alone
#   docker build -f dockerfiles/api.dockerfile -t trashsorting-api .
#   docker run --rm -p 8080:8080 --read-only --tmpfs /tmp trashsorting-api
# What reads HEIC brings an encoder under the GPL along (nbs/tutorials/serve says more). An image without it:
#   docker build --build-arg HEIC=0 -f dockerfiles/api.dockerfile -t trashsorting-api .
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
# Two environments: the one that travels on has no pip, the one that builds stays here. Without HEIC its package comes by
# its hash like the others, and is gone again before there is a layer that holds it.
ARG HEIC=1
COPY requirements/build.txt requirements/serve.txt requirements/
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements/build.txt \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --require-hashes -r requirements/serve.txt \
    && { [ "$HEIC" = 1 ] || /opt/build/bin/pip --python /opt/venv/bin/python uninstall --yes pillow-heif; }
# The package comes last: a change in it leaves the layer of its requirements as it is.
COPY LICENSE NOTICE MANIFEST.in README.md pyproject.toml settings.ini setup.py ./
COPY nbs/train.ipynb nbs/
COPY trashsorting trashsorting
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /dist/*.whl

FROM python:3.11-slim-bookworm
RUN useradd --system --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin trashsorting
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
# pip has compiled the packages, but the base brings its standard library uncompiled, and nobody can write it later:
# one prediction compiles what serving imports of it. It is also the proof that the model is inside and answers.
RUN python -c "import trashsorting.serving.app, trashsorting.serving.server; \
    from trashsorting.core.settings import SHIPPED_MODEL; \
    from trashsorting.inference.predictor import Predictor; \
    Predictor(SHIPPED_MODEL).warm_up()"
# PORT is read by `trashsorting serve`; platforms that choose the port set it.
ENV PORT=8080 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
EXPOSE 8080
# Ready, not merely alive: Docker asks one question, and those who wait for `healthy` want to send a photograph.
# A service that drains says no, but it is gone before three such answers; the model's queue does not delay the answer.
# Docker may put a proxy into the environment; it is not asked about ourselves.
HEALTHCHECK --interval=10s --timeout=5s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(f\"http://127.0.0.1:{os.environ['PORT']}/api/ready\", timeout=4)"]
CMD ["trashsorting", "serve", "--host", "0.0.0.0"]
# Last, since they change with every commit: --build-arg VERSION=0.1.0 --build-arg COMMIT=$(git rev-parse HEAD)
# The licence is this package's; what else is in the image has its own.
ARG VERSION=unknown
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="trashsorting-api" \
      org.opencontainers.image.description="Photograph a piece of trash and learn which bin it belongs in" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT
