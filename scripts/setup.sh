#!/usr/bin/env bash
# Makes the environment $VENV with the versions in constraints.txt. A torch that is installed there already, such as
# a CUDA build of your choice, is kept, and torchvision is then chosen by pip to match it.
set -euo pipefail
cd "$(dirname "$0")/.."
python="$VENV/bin/python"
if [ ! -x "$python" ]; then
    echo "Making $VENV"
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "RegBench needs Python 3.11 or later; set PYTHON=<interpreter>." >&2; exit 2; }
    "$PYTHON" -m venv "$VENV"
fi
constraints="$VENV/constraints.txt"
if installed=$("$python" -c 'from importlib.metadata import version; print(version("torch"))' 2>/dev/null); then
    echo "Keeping the installed torch $installed"
    grep -vE '^(torch|torchvision|triton|nvidia-.*)==' constraints.txt >"$constraints"
    echo "torch==$installed" >>"$constraints"
    if vision=$("$python" -c 'from importlib.metadata import version; print(version("torchvision"))' 2>/dev/null); then
        echo "torchvision==$vision" >>"$constraints"
    fi
else
    cp constraints.txt "$constraints"
    # torch first and alone: where pip has a CPU build at hand, nothing else then asks for another one
    "$python" -m pip install --quiet --disable-pip-version-check -c "$constraints" torch
fi
echo "Installing RegBench and what it needs"
"$python" -m pip install --quiet --disable-pip-version-check -c "$constraints" -e ".[dev]"
echo "Done: $VENV"
