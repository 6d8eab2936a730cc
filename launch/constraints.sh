#!/usr/bin/env bash
# Writes constraints.txt anew: the newest versions that requirements.txt and the tests' extras allow,
# as an environment of its own gets them. PYTHON chooses the interpreter, best the oldest supported,
# for which all later ones have wheels as well.
source "$(dirname "${BASH_SOURCE[0]}")/options.sh"
[ $# -eq 0 ] || refuse "got $*, wanted no option"
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder"
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check \
  -r requirements.txt -e '.[gcs,test]'
{
  echo "# The versions the tests run with, by launch/constraints.sh; lower bounds and the reason for"
  echo "# each package are in requirements.txt."
  "$folder/bin/python" -m pip freeze --disable-pip-version-check --exclude-editable
} > constraints.txt
