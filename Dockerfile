# CPU:  docker build -t segserve .
# GPU:  docker build -t segserve:gpu --build-arg GPU=1 .        (docker run --gpus all ...)
# Run:  docker run --rm --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#           -p 8000:8000 -p 8001:8001 -p 8002:8002 \
#           segserve                     (other models: -v "$PWD/models:/models:ro")
ARG GPU=0

FROM python:3.11-slim AS base-0

# The CUDA and cuDNN that the onnxruntime-gpu below is built for.
FROM nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 AS base-1
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/*

FROM base-${GPU}
ARG GPU
# opencv-python links the first two; decoder processes confine themselves by the third.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 libseccomp2 \
    && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/segserve/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NUMBA_CACHE_DIR=/var/cache/segserve \
    ORT_DISABLE_TELEMETRY=1 \
    SEGSERVE_CACHE_DIR=/var/cache/segserve \
    SEGSERVE_REPOSITORY=/models

WORKDIR /src
COPY . .
# Exact versions where they are known for this Python, as in the Makefile.
RUN --mount=type=cache,target=/root/.cache/pip \
    python3 -m venv /opt/segserve \
    && known="constraints/$(python3 -c 'import sys; print("python%d.%d" % sys.version_info[:2])').txt" \
    && pip install $(test -f "$known" && echo "-c $known") . \
    && if [ "$GPU" = 1 ]; then \
           pip uninstall --yes onnxruntime && pip install onnxruntime-gpu==1.31.1; \
       fi

# Machine code of the numeric loops. Another kind of CPU compiles its own at the start, into the
# same folder, which therefore belongs to the user.
COPY model_repository /models
WORKDIR /models
RUN useradd --system --uid 10001 --no-create-home segserve \
    && install -d -o segserve /var/cache/segserve
USER segserve
RUN python -c "from serving.server import warm_stages; warm_stages()"
# Numba uses no cache that it cannot write to. Docker starts a volume as a copy of the image's folder,
# so this one is filled and writable under a read-only root, too.
VOLUME /var/cache/segserve

EXPOSE 8000 8001 8002
# Not urllib: it would go through the proxy of the environment.
# The metrics port is plain and open whatever TLS and keys the others ask for.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 8002, timeout=4); c.request('GET', '/metrics'); exit(b'\\nsegserve_ready 1.0\\n' not in c.getresponse().read())"]
ENTRYPOINT ["segserve"]
CMD ["serve", "--host", "0.0.0.0"]
