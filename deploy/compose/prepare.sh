#!/bin/sh
# Makes what the three brokers and their database need, in ./secrets: a CA and certificates,
# the sealing key, the database's password. Put the broker's AWS key there as
# aws-credentials. What is there already stays.
set -eu
cd "$(dirname -- "$0")"
umask 077
mkdir -p secrets && cd secrets

certificate() { # NAME HOST...
    name=$1 && shift
    [ -e "$name.pem" ] && return
    names=$(printf ',DNS:%s' "$@")
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" \
        -keyout "$name.key" -out "$name.csr" 2>/dev/null
    printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\n' "${names#,}" > "$name.ext"
    openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -days 365 -extfile "$name.ext" \
        -out "$name.pem" 2>/dev/null
    rm "$name.csr" "$name.ext"
}

[ -e ca.pem ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
    -subj "/CN=credbroker CA" -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem 2>/dev/null
certificate broker broker localhost
certificate postgres postgres
[ -e seal.key ] || head -c 32 /dev/urandom | base64 > seal.key
if [ ! -e database-password ]; then
    head -c 24 /dev/urandom | base64 | tr '+/' '-_' > database-password
    printf 'PGPASSWORD=%s\n' "$(cat database-password)" > database.env
fi
[ -e aws-credentials ] || echo "put the broker's AWS key into deploy/compose/secrets/aws-credentials" >&2

# In the containers the brokers are user 65532, and read by its group; the CA's key stays here.
chgrp 65532 . ./* 2>/dev/null || echo "run this as root: the brokers' user must read what it has made" >&2
chmod 0750 . && chmod 0640 ./* && chmod 0600 ca.key
