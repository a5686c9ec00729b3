# Sourced by the other scripts: makes .venv with the tested versions where it is missing, and enters it.
# PYTHON chooses the interpreter, SSCLF_VENV the place.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${SSCLF_VENV:-.venv}
stamp=$venv/.ssclf-$(cat pyproject.toml constraints.txt | sha256sum | cut -c1-16)
if [ ! -e "$stamp" ]; then
  ${PYTHON:-python3} -m venv "$venv"
  echo "installing ssclf with what training and testing need into $venv (once; a few minutes)"
  # torch first and by its pinned version: torchvision's own requirement could bring another build of it
  "$venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt torch
  extras=cpu,train,ray,dicom,dev
  "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && extras=$extras,docs
  "$venv/bin/pip" install --quiet --disable-pip-version-check -c constraints.txt -e ".[$extras]"
  touch "$stamp"
fi
PATH=$PWD/$venv/bin:$PATH
[ "${venv#/}" = "$venv" ] || PATH=$venv/bin:$PATH
export PATH
