#!/bin/sh
# Classify a folder with Apptainer: apptainer.sh IMAGE.sif SCANS RESULTS BUNDLE [options of ssclf predict]
#
# The .sif is made once, where the image is: docker save localhost/ssclf:0.1.0-cpu -o ssclf.tar
# and then, anywhere: apptainer build ssclf.sif docker-archive:ssclf.tar
# GPU=yes takes the host's NVIDIA driver in; the image must be a gpu one.
set -eu
sif=$1 scans=$(realpath "$2") results=$(realpath "$3") bundle=$(realpath "$4")
shift 4
if [ "${GPU:-no}" = yes ]; then nv=--nv; set -- "$@" --device cuda; fi
# --containall: neither your home nor your environment leak in. Apptainer runs as you, so files become yours.
# shellcheck disable=SC2086  # empty ones shall vanish
exec apptainer run --containall ${nv:-} \
  --bind "$scans:/scans:ro" --bind "$bundle:/model:ro" --bind "$results:/out" \
  "$sif" predict /scans --out /out/results.csv "$@"
