# An image for clusters: this package, in the versions that its tests run with.
#   docker build -t registry.example.com/s3gen:0.1.0 . && docker push registry.example.com/s3gen:0.1.0
FROM python:3.11-slim-bookworm

# gcc and libc6-dev: engine.compile builds the launchers of its kernels. rsync: `ray up` copies files into containers.
# wget: KubeRay asks Ray's health with it. 1000 is also the user of most machine images, whose files `ray up` hands on.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev rsync wget \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 s3gen

WORKDIR /opt/s3gen
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY s3gen s3gen
COPY jobs jobs
# boto3: Ray starts machines on AWS with it. cosyvoice: reads CosyVoice2's folder.
RUN python -m pip install --no-cache-dir -c constraints.txt ".[cosyvoice]" boto3

USER 1000
WORKDIR /home/s3gen
ENV RAY_USAGE_STATS_ENABLED=0
# As NVIDIA's own images have it: its container runtime, with which `ray up` starts the image, gives GPUs only to containers
# that ask for them so, and GKE puts the driver into that folder.
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility LD_LIBRARY_PATH=/usr/local/nvidia/lib64
CMD ["s3gen", "--help"]
