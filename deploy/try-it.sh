#!/bin/sh
# The main job as a story you can watch: a service gets its own narrow AWS credentials,
# uses them, and loses them, while its neighbour goes on. Everything runs on this
# machine against a local AWS emulator; nothing stays behind.
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)
work=$(mktemp -d)
broker=

# Words as one would type them.
typed() { for word; do case $word in *' '*) printf ' "%s"' "$word" ;; *) printf ' %s' "$word" ;; esac; done; }
say() { printf '\n%s# %s%s\n' "$bold" "$*" "$plain"; }
show() { printf '%s$%s%s\n' "$dim" "$(typed "$@")" "$plain"; "$@"; }
if [ -t 1 ]; then bold=$(printf '\033[1m') dim=$(printf '\033[2m') plain=$(printf '\033[0m'); else bold='' dim='' plain=''; fi

clean_up() {
    status=$?
    [ -z "$broker" ] || { kill -TERM "$broker" 2>/dev/null && wait "$broker" || status=1; }
    exec 9>&- || :
    wait
    rm -rf "$work"
    exit "$status"
}
trap clean_up EXIT
trap 'exit 130' INT TERM

# refused COMMAND: it must be told no.
refused() {
    printf '%s$%s%s\n' "$dim" "$(typed "$@")" "$plain"
    if "$@" 2>"$work/refusal" >/dev/null; then
        echo "this should have been refused" >&2
        exit 1
    fi
    grep . "$work/refusal" | sed 's/ because .*//' | cut -c1-240
}

# as GRANT TOKEN COMMAND: with the credentials of a grant, as a service would run it.
as() {
    credentials=$1
    shift
    ( . "$credentials"; "$@" )
}

echo "starting the AWS emulator (the first time fetches it) and building (the first time takes some minutes)"
mkfifo "$work/hold"
python3 "$here/tests/emulator.py" run <"$work/hold" >"$work/emulator.json" &
emulator=$!
exec 9>"$work/hold"
# Cargo says where the binary is: its user may have set another target directory.
cargo build --locked --manifest-path "$here/Cargo.toml" --message-format json-render-diagnostics >"$work/built"
built='
import json, os, sys
for line in open(sys.argv[1]):
    executable = json.loads(line).get("executable")
    if executable:
        print(os.path.dirname(executable))
'
PATH=$(python3 -c "$built" "$work/built"):$PATH
until [ -s "$work/emulator.json" ]; do
    kill -0 "$emulator" 2>/dev/null || { echo "the emulator did not start" >&2; exit 1; }
    sleep 0.1
done
field() { python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$1" "$2"; }
endpoint=$(field "$work/emulator.json" endpoint)
PATH=$(field "$work/emulator.json" bin):$PATH

unset AWS_PROFILE AWS_SESSION_TOKEN AWS_SHARED_CREDENTIALS_FILE AWS_CONFIG_FILE
export AWS_ENDPOINT_URL="$endpoint" AWS_DEFAULT_REGION=us-east-1 AWS_REGION=us-east-1 AWS_EC2_METADATA_DISABLED=true
# The account as it so often is: two buckets, a role that several share, and one key that
# may do everything.
AWS_ACCESS_KEY_ID=111122223333 AWS_SECRET_ACCESS_KEY=root python - >"$work/admin" <<'END'
import boto3, json
s3, iam = boto3.client("s3"), boto3.client("iam")
for bucket in "invoices", "salaries":
    s3.create_bucket(Bucket=bucket)
    s3.put_object(Bucket=bucket, Key="2026.txt", Body=b"what is in " + bucket.encode() + b"\n")
iam.create_user(UserName="credbroker-admin")
iam.put_user_policy(
    UserName="credbroker-admin", PolicyName="admin",
    PolicyDocument='{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"*","Resource":"*"}}')
allow = lambda **more: json.dumps({"Version": "2012-10-17", "Statement": {"Effect": "Allow", **more}})
iam.create_role(
    Path="/credbroker/", RoleName="shared",
    AssumeRolePolicyDocument=allow(
        Principal={"AWS": "arn:aws:iam::111122223333:user/credbroker-admin"},
        Action=["sts:AssumeRole", "sts:TagSession"]))
iam.put_role_policy(
    RoleName="shared", PolicyName="reads", PolicyDocument=allow(Action="s3:*", Resource="*"))
key = iam.create_access_key(UserName="credbroker-admin")["AccessKey"]
print(f'export AWS_ACCESS_KEY_ID={key["AccessKeyId"]} AWS_SECRET_ACCESS_KEY={key["SecretAccessKey"]}')
END

say "The broker alone holds the admin key"
printf '%s$ %s%s\n' "$dim" "credbroker dev --state-dir STATE --aws-endpoint $endpoint &" "$plain"
( . "$work/admin"; exec credbroker dev --state-dir "$work/state" --aws-endpoint "$endpoint" ) \
    >"$work/ready" 2>"$work/log" &
broker=$!
until grep -q ready "$work/ready"; do
    kill -0 "$broker" 2>/dev/null || { cat "$work/log" >&2; exit 1; }
    sleep 0.05
done
echo ready
. "$work/state/env"

say "A service is registered and granted something narrow: read one bucket"
show credbroker service create payments-api
show credbroker grant put payments-api/invoices --kind iam_user --policy s3-read-only --param bucket=invoices --ttl 15m >"$work/put"
head -n 1 "$work/put"
role=arn:aws:iam::111122223333:role/credbroker/shared
show credbroker grant put payments-api/archive --role-arn $role --policy s3-read-only --param bucket=invoices >"$work/put"
head -n 1 "$work/put"
credbroker service create billing >/dev/null
credbroker grant put billing/archive --role-arn $role --policy s3-read-only --param bucket=invoices >/dev/null
echo "so is its neighbour, billing, on the same role"

say "It proves itself with its token and gets credentials of its own"
token() { credbroker service token create "$1" -o json 2>/dev/null >"$work/token"; field "$work/token" token; }
printf '%s$ %s%s\n' "$dim" "credbroker issue invoices" "$plain"
payments_token=$(token payments-api)
CREDBROKER_TOKEN=$payments_token credbroker issue invoices -o env >"$work/payments"
CREDBROKER_TOKEN=$payments_token credbroker issue archive -o env >"$work/session"
CREDBROKER_TOKEN=$(token billing) credbroker issue archive -o env >"$work/billing"
show credbroker grant list
show credbroker lease list

say "Inside its scope AWS says yes, outside it no"
as "$work/payments" show aws s3 cp s3://invoices/2026.txt -
as "$work/payments" refused aws s3api get-object --bucket salaries --key 2026.txt -

say "The key leaks: one command shuts the service out, its live session too, and AWS refuses"
show credbroker revoke payments-api --reason "key found in a public repository"

say "The same credentials are dead, and its token is too; the neighbour notices nothing"
as "$work/payments" refused aws s3api get-object --bucket invoices --key 2026.txt -
as "$work/session" refused aws s3api get-object --bucket invoices --key 2026.txt -
CREDBROKER_TOKEN=$payments_token refused credbroker issue invoices
as "$work/billing" show aws s3 cp s3://invoices/2026.txt -

say "All of it is in the audit log"
show credbroker audit tail -n 30

say "Done; the broker and the emulator end now"
