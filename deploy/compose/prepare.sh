#!/bin/sh
# Makes what the three brokers and their database need, in ./secrets: a CA and certificates,
# the sealing key, the database's password. As root, since the brokers' user (65532) must read
# what is theirs. What is there already stays. Needs OpenSSL 3.
set -eu
cd "$(dirname -- "$0")"
umask 077
mkdir -p secrets/broker secrets/postgres
cd secrets

certificate() { # FILE HOST...
    file=$1 && shift
    [ -e "$file.pem" ] && return
    names=$(printf ',DNS:%s' "$@")
    printf 'subjectAltName=%s\nbasicConstraints=CA:FALSE\n' "${names#,}" > extensions
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$file.key" -out request
    openssl x509 -req -in request -CA broker/ca.pem -CAkey ca.key -CAcreateserial -days 365 \
        -extfile extensions -out "$file.pem"
    rm request extensions
}

[ -e ca.key ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 \
    -subj "/CN=credbroker CA" -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out broker/ca.pem
certificate broker/broker broker localhost
certificate postgres/server postgres
[ -e broker/seal.key ] || head -c 32 /dev/urandom | base64 > broker/seal.key
if [ ! -e database.env ]; then
    head -c 24 /dev/urandom | base64 | tr '+/' '-_' > postgres/password
    printf 'PGPASSWORD=%s\n' "$(cat postgres/password)" > database.env
fi

chgrp -R 65532 broker
chmod 0750 broker
chmod 0640 broker/*
