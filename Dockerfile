# stepmend on a machine with an NVIDIA GPU; the driver and the NVIDIA container toolkit are the host's.
#   docker build --tag stepmend .
#   docker run --rm --gpus all --volume "$PWD":/work stepmend run --model ./my-model --scheme gptq-w4a16-g128 --out runs/mine
FROM python:3.12-slim

# A C compiler: Triton compiles kernels with it.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/stepmend
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
# torch of the default index brings CUDA's libraries on Linux.
RUN pip install --no-cache-dir --constraint constraints.txt '.[run,pandas]'

WORKDIR /work
ENTRYPOINT ["stepmend"]
CMD ["--help"]
