# The training run, headless: papermill, fastai, torch, DVC. Build it from the top of the repository:
#   docker build -f dockerfiles/train.dockerfile -t trashsorting-train .
#   docker run --rm -v "$PWD/photos:/data:ro" -v "$PWD/runs:/runs" trashsorting-train --data /data --out /runs/first
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements/build.txt requirements/train.txt requirements/
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements/build.txt \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --require-hashes -r requirements/train.txt
COPY LICENSE MANIFEST.in README.md pyproject.toml settings.ini setup.py ./
COPY nbs/train.ipynb nbs/
COPY trashsorting trashsorting
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /dist/*.whl

FROM python:3.11-slim-bookworm
LABEL org.opencontainers.image.title="trashsorting-train" \
      org.opencontainers.image.description="Trains and exports a trashsorting model from a folder of photographs" \
      org.opencontainers.image.licenses="Apache-2.0"
# Jupyter, matplotlib and the trackers keep files in the home folder; /runs is where a model may be written.
RUN useradd --system --uid 10001 --user-group --create-home --shell /usr/sbin/nologin trashsorting \
    && install --directory --owner=10001 --group=10001 /runs
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    MPLBACKEND=agg \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
WORKDIR /runs
ENTRYPOINT ["trashsorting", "train"]
CMD ["--help"]
