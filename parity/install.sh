#!/bin/sh
# Installs the reference implementation in an environment of its own: install.sh FOLDER [PYTHON]
set -eu
venv=$1
python=${2:-python3}
constraints=$(dirname "$0")/constraints.txt

test -x "$venv/bin/python" || "$python" -m venv "$venv"
install() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c "$constraints" "$@"; }

install torch
install numpy librosa einops omegaconf diffusers conformer safetensors scipy onnx tqdm transformers
# Without their dependencies: chatterbox-tts asks for much that S3Gen does not use, torchaudio for another torch.
install --no-deps torchaudio chatterbox-tts s3tokenizer
# torchaudio's compiled extension belongs to another build of torch; without it, the Python parts import.
rm -f "$venv"/lib/python3.*/site-packages/torchaudio/lib/_torchaudio*.so
