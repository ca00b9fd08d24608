#!/usr/bin/env bash
# smoke.sh PYTHON: builds the sdist and from it the wheel, installs that where nothing else is, and does the main job with it.
set -euo pipefail
repo=$(cd "$(dirname "$0")/.." && pwd)
home=$(mktemp -d)
trap 'rm -rf "$home"' EXIT
"$1" -m venv "$home/build" && "$home/build/bin/pip" install --quiet build
"$home/build/bin/python" -m build --outdir "$home/dist" "$repo" > "$home/build.log" 2>&1 || { tail -20 "$home/build.log"; exit 1; }

# Every file of the package is in the wheel.
(cd "$repo/src" && find ghmdet -type f -not -name '*.pyc' | sort) > "$home/wanted"
"$1" -m zipfile --list "$home"/dist/*.whl | awk '/^ghmdet\//{print $1}' | sort > "$home/packed"
diff "$home/wanted" "$home/packed"

"$1" -m venv "$home/env" && "$home/env/bin/pip" install --quiet "$(ls "$home"/dist/*.whl)[pretrained]"
cd "$home"
ghmdet() { "$home/env/bin/ghmdet" "$@"; }
ghmdet --version
ghmdet data synth scenes --images 12
ghmdet train scenes --out run --epochs 2 --size 96 --no-report
ghmdet report run || [ $? = 1 ] # after so little training it says that nothing was learnt
ghmdet val run/best.pt scenes
ghmdet predict run/best.pt scenes/images --out predictions
test -s run/report.html
test -s predictions/predictions.json
echo "the wheel works with $("$1" --version)"
