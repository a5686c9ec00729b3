# The image of ssclf for prediction; docs/container.md tells how to build and use it.
#
#   VARIANT     cpu, gpu (CUDA 12, drivers from 525 on) or gpu-cuda13 (drivers from 580 on)
#   MODEL       name of a bundle under exported/ to put into the image; without, mount one at /model
#   REFERENCE   yes: the reference model, where reference/ has one, for `predict --model reference`; no: without
#   BASE_IMAGE  a Debian or Ubuntu with Python >= 3.11 and its venv module, the same for both stages
#
# No "syntax" line: with it, Docker would fetch a front end from a registry before it begins.
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
# A site behind a proxy that opens TLS passes its certificates: --secret id=ca,src=/etc/ssl/certs/ca-certificates.crt
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /build
# pip and what builds stay in an environment of their own; /opt/venv gets neither
COPY container/tools.txt container/
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -m venv /opt/tools \
 && /opt/tools/bin/pip install --quiet -r container/tools.txt \
 && python3 -m venv --without-pip /opt/venv
ARG VARIANT=cpu
COPY container/engine-${VARIANT}.txt container/
COPY constraints.txt pyproject.toml ./
# The slow layer depends on the versions only, not on ssclf's sources. cuDNN's part for recurrent networks and
# attention and NVRTC's second build are left out (400 MB): no network of ssclf comes near them. So are the
# packages' own tests.
RUN --mount=type=secret,id=ca,target=/etc/ssl/certs/ca-certificates.crt \
    python3 -c 'import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
      print(*project["dependencies"], *project["optional-dependencies"]["dicom"], sep="\n")' > requirements.txt \
 && /opt/tools/bin/pip --python /opt/venv/bin/python install --quiet \
      -c constraints.txt -r requirements.txt -r container/engine-${VARIANT}.txt \
 && find /opt/venv \( -name 'libcudnn_adv.so.*' -o -name 'libnvrtc*.alt.so.*' \) -delete \
 && find /opt/venv/lib -type d -name tests -prune -exec rm -r {} +
COPY README.md LICENSE THIRD_PARTY_NOTICES ./
COPY ssclf ssclf
RUN /opt/tools/bin/pip wheel --quiet --no-build-isolation --no-deps -w dist . \
 && /opt/tools/bin/pip --python /opt/venv/bin/python install --quiet --no-deps dist/*.whl

# A package of its own, in the environment and never at /model: who mounts no model is told so, and given no other.
COPY reference reference
ARG REFERENCE=yes
# Weights to start a training from are of no use without torch.
RUN if [ "$REFERENCE" = yes ] && [ -f reference/ssclf_reference/model/spec.json ]; then \
      rm -rf reference/ssclf_reference/weights \
   && /opt/tools/bin/pip wheel --quiet --no-build-isolation --no-deps -w reference-dist ./reference \
   && /opt/tools/bin/pip --python /opt/venv/bin/python install --quiet --no-deps reference-dist/*.whl \
   && /opt/venv/bin/ssclf doctor --model reference; fi \
 && /opt/tools/bin/cyclonedx-py environment --output-reproducible --output-format JSON \
      -o sbom.cdx.json /opt/venv/bin/python

FROM build AS model
ARG MODEL=
COPY exported /exported
# a bundle that ssclf would refuse fails here, not at the hospital
RUN mkdir /model \
 && if [ -n "$MODEL" ]; then cp "/exported/$MODEL"/* /model/ && /opt/venv/bin/ssclf doctor --model /model; fi

FROM ${BASE_IMAGE}
# the base image may bring a pip of its own
RUN cd /usr/local/lib && rm -rf ../bin/pip* python3*/site-packages/pip* python3*/site-packages/setuptools* \
      python3*/site-packages/wheel* python3*/ensurepip /usr/lib/python3*/ensurepip /usr/share/python-wheels
COPY --from=build /opt/venv /opt/venv
COPY --from=build /build/sbom.cdx.json /sbom.cdx.json
COPY --from=model /model /model
ARG VARIANT=cpu
# TMPDIR: a place in memory that may be written under --read-only without further options.
# NVIDIA_*: what the NVIDIA container runtime is to bring in.
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONDONTWRITEBYTECODE=1 \
    ORT_DISABLE_TELEMETRY=1 \
    TMPDIR=/dev/shm \
    SSCLF_IMAGE=${VARIANT} \
    SSCLF_MODEL=/model \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ARG VERSION=unknown
ARG REVISION=unknown
ARG CREATED=unknown
ARG BUNDLE_FORMAT=unknown
ARG LICENSES=Apache-2.0
LABEL org.opencontainers.image.title="ssclf" \
      org.opencontainers.image.description="Spatiospatial classifier of brain MR volumes. Research use only." \
      org.opencontainers.image.licenses="${LICENSES}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      ssclf.variant="${VARIANT}" \
      ssclf.bundle-format="${BUNDLE_FORMAT}" \
      ssclf.sbom="/sbom.cdx.json"
# No HEALTHCHECK: a run ends by itself and its exit code tells; `docker run IMAGE doctor` examines the install.
USER 10001:10001
WORKDIR /
ENTRYPOINT ["ssclf"]
