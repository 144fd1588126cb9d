# The training run, headless: papermill, fastai, torch, DVC. Build it from the top of the repository:
#   docker build -f dockerfiles/train.dockerfile -t trashsorting-train .
#   docker run --rm -v "$PWD/photos:/data:ro" -v "$PWD/runs:/runs" trashsorting-train --data /data --out /runs/first
#   docker run --rm trashsorting-train --data gs://BUCKET/photos.zip --out gs://BUCKET/runs/first -p epochs 12
# As the package index has it, torch brings CUDA. Another index has it without, or for another CUDA; name that one:
#   docker build --build-arg TORCH_INDEX=https://... -f dockerfiles/train.dockerfile -t trashsorting-train .
FROM python:3.11-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements/build.txt requirements/train.txt requirements/
RUN python3 -m venv --without-pip /opt/venv \
    && python3 -m venv /opt/build \
    && /opt/build/bin/pip install --require-hashes -r requirements/build.txt
# Another index holds other files, so torch's versions are the lock's and its hashes are not; CUDA's libraries are then
# that index's business. Everything else comes from the lock, by its hashes.
ARG TORCH_INDEX
RUN lock=requirements/train.txt && pip="/opt/build/bin/pip --python /opt/venv/bin/python" \
    && if [ -n "$TORCH_INDEX" ]; then \
        sed -n -E 's/^((torch|torchvision)==[^ ;]+).*/\1/p' "$lock" > torch.txt \
        && $pip install --index-url "$TORCH_INDEX" -r torch.txt \
        && awk '/^[^ ]/ { ours = !/^(torch|torchvision|triton|nvidia-[^=]+|cuda-[^=]+)==/ } ours' "$lock" > rest.txt \
        && lock=rest.txt; \
    fi \
    && $pip install --no-deps --require-hashes -r "$lock" \
    && $pip check
# The package comes last: a change in it leaves the layer of its requirements as it is.
COPY LICENSE NOTICE MANIFEST.in README.md pyproject.toml settings.ini setup.py ./
COPY nbs/train.ipynb nbs/
COPY trashsorting trashsorting
RUN /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && /opt/build/bin/pip --python /opt/venv/bin/python install --no-deps /dist/*.whl

FROM python:3.11-slim-bookworm
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
# Last, since they change with every commit: --build-arg VERSION=0.1.0 --build-arg COMMIT=$(git rev-parse HEAD)
ARG VERSION=unknown
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="trashsorting-train" \
      org.opencontainers.image.description="Trains and exports a trashsorting model from photographs in a folder or a bucket" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$COMMIT
