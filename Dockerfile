# fastmpl with its CUDA packages and native kernels. Build and use:
#   docker build --tag fastmpl .
#   docker run --gpus all --shm-size 8g --volume "$PWD:/work" fastmpl train pictures.toml
# --shm-size: ranks of one machine exchange messages through shared memory. torch and DALI bring their CUDA libraries; the
# machine needs NVIDIA's driver and container toolkit alone.
FROM python:3.11-slim-bookworm AS build
RUN apt-get update && apt-get install --no-install-recommends --yes g++ && rm -rf /var/lib/apt/lists/*
COPY . /source
RUN pip wheel --no-deps --wheel-dir /wheels /source

FROM python:3.11-slim-bookworm
# Triton compiles its launchers with a C compiler when a kernel is first used
RUN apt-get update && apt-get install --no-install-recommends --yes gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY requirements.lock /tmp/requirements.lock
COPY --from=build /wheels /wheels
RUN pip install --no-cache-dir --requirement /tmp/requirements.lock && \
    pip install --no-cache-dir --no-deps /wheels/fastmpl-*.whl && rm -rf /wheels /tmp/requirements.lock
WORKDIR /work
ENTRYPOINT ["fastmpl"]
CMD ["--help"]
