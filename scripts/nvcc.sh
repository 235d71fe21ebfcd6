#!/usr/bin/env bash
# Prints the CUDA compiler to build with, for the environment variable CUDACXX: that of this machine, or else NVIDIA's own
# packages for Python, put into build-nvcc. Debian's is too old.
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v nvcc || ls /usr/local/cuda/bin/nvcc 2>/dev/null; then
    exit 0
fi
if [[ ! -e build-nvcc/done ]]; then
    python3 -m venv --clear build-nvcc
    build-nvcc/bin/pip install --quiet --disable-pip-version-check nvidia-cuda-{nvcc,crt,runtime,cccl}==13.0.* nvidia-nvvm==13.0.*
    # Two names that CMake looks for and the packages lack.
    libraries=$(echo build-nvcc/lib/python3*/site-packages/nvidia/cu13/lib)
    ln -s lib "${libraries}64"
    ln -s libcudart.so.13 "$libraries/libcudart.so"
    touch build-nvcc/done
fi
echo "$PWD"/build-nvcc/lib/python3*/site-packages/nvidia/cu13/bin/nvcc
