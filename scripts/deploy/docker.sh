#!/bin/sh
# Classify a folder with docker or podman: docker.sh SCANS RESULTS BUNDLE [options of ssclf predict]
#
#   ENGINE=podman docker.sh ~/scans ~/results ~/exported/my-model
#   GPU=yes IMAGE=localhost/ssclf:0.1.0-gpu docker.sh ...
set -eu
scans=$(realpath "$1") results=$(realpath "$2") bundle=$(realpath "$3")
shift 3
engine=${ENGINE:-docker}
image=${IMAGE:-localhost/ssclf:0.1.0-cpu}
if [ "${GPU:-no}" = yes ]; then
  set -- "$@" --device cuda
  # podman names GPUs through CDI: nvidia-ctk cdi generate, once per driver
  if [ "$engine" = podman ]; then gpu='--device=nvidia.com/gpu=all'; else gpu='--gpus=all'; fi
fi
# podman without root: keep-id makes the files yours. SELinux (Fedora, RHEL): add --security-opt label=disable.
keep=''
if [ "$engine" = podman ] && [ "$(id -u)" != 0 ]; then keep=--userns=keep-id; fi
# shellcheck disable=SC2086  # empty ones shall vanish
exec "$engine" run --rm --network none --read-only --cap-drop ALL --security-opt no-new-privileges \
  --user "$(id -u):$(id -g)" $keep ${gpu:-} \
  -v "$scans:/scans:ro" -v "$bundle:/model:ro" -v "$results:/out" \
  "$image" predict /scans --out /out/results.csv "$@"
