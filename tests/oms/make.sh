#!/bin/sh
# Makes the signed folders of this directory anew, with the reference command:
#   pip install model-signing==1.1.1 pyOpenSSL; sh make.sh
# The private keys are not kept: every run makes other keys, certificates and signatures.
set -eu
keys=$(mktemp -d)
trap 'rm -rf "$keys"' EXIT
days=36500

model() {
    rm -rf "$1" && mkdir -p "$1/sub/folder"
    printf '{"model_type": "%s"}\n' "$1" > "$1/config.json"
    printf '\100\0\0\0\0\0\0\0%-64s%.16s' '{"w":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}' "$1 0123456789" > "$1/model.safetensors"
    printf 'in a folder\n' > "$1/sub/folder/note.txt"
    printf 'before it in one order, after it in another\n' > "$1/sub-note.txt"
}

rm -f ./*.pem ./*.sig
model by-key
for curve in prime256v1 secp384r1 secp521r1; do
    openssl ecparam -name $curve -genkey -noout -out "$keys/$curve.key"
    openssl ec -in "$keys/$curve.key" -pubout -out "$curve.pem" 2>/dev/null
    model_signing sign key by-key --private_key "$keys/$curve.key" --signature "$curve.sig"
done
# serialisations that its command line does not offer; before a signature lies in the folder itself
python - "$keys/prime256v1.key" <<'PY'
import sys
from model_signing import hashing, signing

for name, config in {
    "shards": hashing.Config().use_shard_serialization(shard_size=10),
    "blake2": hashing.Config().use_file_serialization(hashing_algorithm="blake2"),
    "blake3": hashing.Config().use_file_serialization(hashing_algorithm="blake3"),
}.items():
    signer = signing.Config().use_elliptic_key_signer(private_key=sys.argv[1])
    signer.set_hashing_config(config.set_ignored_paths(paths=[], ignore_git_paths=True)).sign("by-key", f"{name}.sig")
PY

model_signing sign key by-key --private_key "$keys/prime256v1.key" --signature by-key/model.sig

model by-certificate
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-384 -noenc -days $days -subj "/CN=Test Root" \
    -keyout "$keys/root.key" -out root.pem -addext "keyUsage=critical,keyCertSign,cRLSign" 2>/dev/null
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj "/CN=Test Intermediate" \
    -keyout "$keys/between.key" -out "$keys/between.csr" 2>/dev/null
printf 'basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign\n' > "$keys/between.ext"
openssl x509 -req -in "$keys/between.csr" -CA root.pem -CAkey "$keys/root.key" -days $days -extfile "$keys/between.ext" \
    -out "$keys/between.pem" 2>/dev/null
openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -noenc -subj "/O=Test Lab/CN=Model Signer" \
    -keyout "$keys/leaf.key" -out "$keys/leaf.csr" 2>/dev/null
printf 'basicConstraints=CA:FALSE\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=codeSigning\n' > "$keys/leaf.ext"
openssl x509 -req -in "$keys/leaf.csr" -CA "$keys/between.pem" -CAkey "$keys/between.key" -days $days \
    -extfile "$keys/leaf.ext" -out "$keys/leaf.pem" 2>/dev/null
model_signing sign certificate by-certificate --private_key "$keys/leaf.key" --signing_certificate "$keys/leaf.pem" \
    --certificate_chain "$keys/between.pem" --signature by-certificate/model.sig
