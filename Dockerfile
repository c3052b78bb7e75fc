# The quick start as an image, and the base of one's own runs: guidance/workflow.md.
#   docker build -t flow-factory .                  with CUDA; `--target cpu -t flow-factory:cpu` without
#   docker run --gpus all flow-factory              the quick start
#   docker run --gpus all -v "$PWD:/work" -w /work flow-factory ff-train CONFIG
FROM ubuntu:24.04 AS cpu
ENV PATH=/opt/venv/bin:$PATH
COPY tools/install_image.sh pyproject.toml setup.py constraints.txt README.md LICENSE /src/
COPY flow_factory /src/flow_factory
COPY assets /src/assets
COPY dataset /src/dataset
COPY examples /src/examples
COPY notebooks /src/notebooks
RUN /src/install_image.sh https://download.pytorch.org/whl/cpu
WORKDIR /home/flow/flow-factory
COPY --chown=1001 assets assets
COPY --chown=1001 dataset dataset
COPY --chown=1001 examples examples
USER 1001
CMD ["ff-train", "examples/quickstart.yaml"]

# torch's own packages bring CUDA's libraries; the base brings what the driver's container runtime looks for
FROM nvidia/cuda:13.0.1-base-ubuntu24.04 AS cuda
ENV PATH=/opt/venv/bin:$PATH
COPY tools/install_image.sh pyproject.toml setup.py constraints.txt README.md LICENSE /src/
COPY flow_factory /src/flow_factory
COPY assets /src/assets
COPY dataset /src/dataset
COPY examples /src/examples
COPY notebooks /src/notebooks
RUN /src/install_image.sh https://pypi.org/simple
WORKDIR /home/flow/flow-factory
COPY --chown=1001 assets assets
COPY --chown=1001 dataset dataset
COPY --chown=1001 examples examples
USER 1001
CMD ["ff-train", "examples/quickstart.yaml"]
