#!/bin/sh
# Prepares an AWS account for credbroker. Run it once, as a person with IAM
# administrator rights. Run it again at any time: it changes only what differs.
set -eu

usage() {
    cat <<'END'
usage: bootstrap.sh [options]

Makes in the AWS account of the current credentials:
  policy /credbroker/credbroker-boundary        the most any issued IAM user and any
                                                role the broker assumes may do
  policy /credbroker/credbroker-admin           what the broker itself may do
  policy /credbroker/credbroker-admin-boundary  the most it may ever do
  user   /credbroker-admin                      the broker, with these two
  role   /credbroker/credbroker-example         a role the broker may assume

  --key-file FILE        make an access key for credbroker-admin and write it to
                         FILE (shared credentials format, mode 0600); FILE must
                         not exist yet. The secret is never printed.
  --example-bucket NAME  let the example role read this S3 bucket
  --no-example-role      make no example role
  --member-of ARN        prepare an account whose roles a broker of another account
                         hands out; ARN is that broker's user. Makes nothing but the
                         boundary, and with it
                           policy /credbroker/credbroker-revoker   what it takes to
                                                                   deny sessions
                           role   /credbroker/credbroker-revoker   the role that the
                                                                   broker does it in
  --help                 show this text

Needs the AWS CLI, version 1 or 2. It uses the CLI's own settings: AWS_PROFILE,
AWS_REGION, AWS_ENDPOINT_URL and so on.
END
}

say() { printf '%s\n' "$*"; }
fail() { printf 'bootstrap: %s\n' "$*" >&2; exit 1; }
misuse() { printf 'bootstrap: %s (see --help)\n' "$*" >&2; exit 2; }

path=/credbroker/
admin_user=credbroker-admin
example_role=credbroker-example
example_policy=read-one-bucket
revoker=credbroker-revoker

key_file=
bucket=
with_example_role=yes
broker_user=
while [ $# -gt 0 ]; do
    case $1 in
        --key-file) key_file=${2:-}; [ -n "$key_file" ] || misuse "--key-file needs a file name"; shift ;;
        --example-bucket) bucket=${2:-}; [ -n "$bucket" ] || misuse "--example-bucket needs a name"; shift ;;
        --no-example-role) with_example_role=no ;;
        --member-of) broker_user=${2:-}; [ -n "$broker_user" ] || misuse "--member-of needs the ARN of the broker's user"; shift ;;
        --help | -h) usage; exit 0 ;;
        *) misuse "unknown option: $1" ;;
    esac
    shift
done
case $bucket in
    *[!a-z0-9.-]*) misuse "not a bucket name: $bucket" ;;
esac
[ -z "$bucket" ] || [ "$with_example_role" = yes ] || misuse "--example-bucket makes no sense with --no-example-role"
if [ -n "$broker_user" ]; then
    [ -z "$key_file$bucket" ] && [ "$with_example_role" = yes ] || misuse "--member-of goes with no other option"
    printf '%s\n' "$broker_user" | grep -Eqx 'arn:aws[a-z-]*:iam::[0-9]{12}:user/[A-Za-z0-9+=,.@_/-]+' ||
        misuse "not the ARN of an IAM user: $broker_user"
fi

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
for file in boundary-policy.json admin-policy.json admin-boundary-policy.json trust-policy.json \
    revoker-policy.json revoker-trust-policy.json; do
    [ -r "$here/$file" ] || fail "cannot read $here/$file"
done
command -v aws >/dev/null 2>&1 || fail "the AWS CLI is not installed (no command named aws)"
AWS_PAGER=''
export AWS_PAGER
# Version 1 of the CLI does not read AWS_REGION.
if [ -n "${AWS_REGION:-}" ]; then
    AWS_DEFAULT_REGION=$AWS_REGION
    export AWS_DEFAULT_REGION
fi

scratch=$(mktemp -d)
unfinished_key_file=
clean_up() {
    rm -rf "$scratch"
    [ -z "$unfinished_key_file" ] || rm -f "$unfinished_key_file"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

changes=0
changed() {
    changes=$((changes + 1))
    say "$*"
}

# look WHAT AWS-ARGUMENTS...: puts the answer into $answer; status 1 when there is no such thing.
look() {
    what=$1
    shift
    if answer=$(aws "$@" 2>"$scratch/error"); then
        return 0
    fi
    if grep -q NoSuchEntity "$scratch/error"; then
        return 1
    fi
    cat "$scratch/error" >&2
    fail "could not read $what"
}

render() {
    sed -e "s|\${PARTITION}|$partition|g" -e "s|\${ACCOUNT}|$account|g" -e "s|\${ADMIN_USER}|$admin_user|g" \
        -e "s|\${BROKER_USER}|$broker_user|g" "$here/$1"
}

# Policies here hold no blanks inside strings, so this is all that formatting can change.
same() { [ "$(printf '%s' "$1" | tr -d ' \t\r\n')" = "$(printf '%s' "$2" | tr -d ' \t\r\n')" ]; }

# ensure_policy NAME DOCUMENT DESCRIPTION
ensure_policy() {
    arn=arn:$partition:iam::$account:policy$path$1
    if ! look "policy $1" iam get-policy --policy-arn "$arn" --query Policy.DefaultVersionId --output text; then
        aws iam create-policy --path "$path" --policy-name "$1" --description "$3" --policy-document "$2" >/dev/null
        changed "made policy $arn"
        return
    fi
    version=$answer
    look "policy $1" iam get-policy-version --policy-arn "$arn" --version-id "$version" \
        --query PolicyVersion.Document --output json || fail "policy $arn has no version $version"
    if same "$answer" "$2"; then
        say "policy $arn is as it should be"
        return
    fi
    look "policy $1" iam list-policy-versions --policy-arn "$arn" --query 'length(Versions)' --output text ||
        fail "policy $arn has gone"
    if [ "$answer" -ge 5 ]; then
        look "policy $1" iam list-policy-versions --policy-arn "$arn" \
            --query 'sort_by(Versions[?!IsDefaultVersion], &CreateDate)[0].VersionId' --output text ||
            fail "policy $arn has gone"
        oldest=$answer
        aws iam delete-policy-version --policy-arn "$arn" --version-id "$oldest"
        changed "deleted the oldest version, $oldest, of policy $arn: five are the most AWS keeps"
    fi
    new=$(aws iam create-policy-version --policy-arn "$arn" --policy-document "$2" --set-as-default \
        --query PolicyVersion.VersionId --output text)
    changed "policy $arn differed from the file: $new is now its default version, $version was"
}

# ensure_attached KIND NAME POLICY-ARN: KIND is user or role.
ensure_attached() {
    look "$1 $2" iam "list-attached-$1-policies" "--$1-name" "$2" \
        --query 'AttachedPolicies[].PolicyArn' --output text || fail "$1 $2 has gone"
    for attached in $answer; do
        if [ "$attached" = "$3" ]; then
            say "it has policy $3"
            return
        fi
    done
    aws iam "attach-$1-policy" "--$1-name" "$2" --policy-arn "$3"
    changed "attached policy $3 to it"
}

# ensure_bounded KIND NAME FIELD BOUNDARY-ARN: FIELD is what AWS calls it in its answer.
ensure_bounded() {
    look "$1 $2" iam "get-$1" "--$1-name" "$2" \
        --query "$3.PermissionsBoundary.PermissionsBoundaryArn" --output text || fail "$1 $2 has gone"
    if [ "$answer" = "$4" ]; then
        say "its boundary is $4"
        return
    fi
    aws iam "put-$1-permissions-boundary" "--$1-name" "$2" --permissions-boundary "$4"
    case $answer in
        None) changed "put boundary $4 on it: it had none" ;;
        *) changed "put boundary $4 on it, in place of $answer" ;;
    esac
}

ensure_user() {
    if look "user $admin_user" iam get-user --user-name "$admin_user" --query User.Arn --output text; then
        [ "$answer" = "$admin_arn" ] ||
            fail "user $admin_user exists, but as $answer: the broker's user must not live under a path"
        say "user $admin_arn is there"
        ensure_bounded user "$admin_user" User "$admin_boundary_arn"
    else
        aws iam create-user --user-name "$admin_user" --permissions-boundary "$admin_boundary_arn" >/dev/null
        changed "made user $admin_arn"
    fi
    ensure_attached user "$admin_user" "$admin_policy_arn"
}

# create_role NAME TRUST-POLICY OPTIONS...
# A user made a moment ago may not yet be known as a principal: try for a while.
create_role() {
    name=$1
    trust=$2
    shift 2
    tries=0
    until aws iam create-role --path "$path" --role-name "$name" \
        --assume-role-policy-document "$trust" "$@" >/dev/null 2>"$scratch/error"; do
        tries=$((tries + 1))
        if [ "$tries" -ge 10 ] || ! grep -q 'Invalid principal' "$scratch/error"; then
            cat "$scratch/error" >&2
            fail "could not make role $name"
        fi
        sleep 3
    done
}

# ensure_role NAME TRUST-POLICY DESCRIPTION [BOUNDARY-ARN]
ensure_role() {
    role_arn=arn:$partition:iam::$account:role$path$1
    if look "role $1" iam get-role --role-name "$1" --query Role.Arn --output text; then
        [ "$answer" = "$role_arn" ] || fail "role $1 exists, but as $answer"
        look "role $1" iam get-role --role-name "$1" \
            --query Role.AssumeRolePolicyDocument --output json || fail "role $1 has gone"
        if same "$answer" "$2"; then
            say "role $role_arn is as it should be"
        else
            aws iam update-assume-role-policy --role-name "$1" --policy-document "$2"
            changed "the trust policy of role $role_arn differed from the file: replaced"
        fi
        [ -z "${4:-}" ] || ensure_bounded role "$1" Role "$4"
    else
        create_role "$1" "$2" --description "$3" ${4:+--permissions-boundary "$4"}
        changed "made role $role_arn"
    fi
}

ensure_example_role() {
    ensure_role "$example_role" "$(render trust-policy.json)" "Example of a role that credbroker assumes" "$boundary_arn"
    if [ -z "$bucket" ]; then
        say "no --example-bucket given: the permissions of role $example_role are left as they are"
        return
    fi
    bucket_arn=arn:$partition:s3:::$bucket
    document='{"Version":"2012-10-17","Statement":[
        {"Effect":"Allow","Action":["s3:ListBucket","s3:GetBucketLocation"],"Resource":"'$bucket_arn'"},
        {"Effect":"Allow","Action":"s3:GetObject","Resource":"'$bucket_arn'/*"}]}'
    if look "role $example_role" iam get-role-policy --role-name "$example_role" --policy-name "$example_policy" \
        --query PolicyDocument --output json && same "$answer" "$document"; then
        say "it may read bucket $bucket"
    else
        aws iam put-role-policy --role-name "$example_role" --policy-name "$example_policy" --policy-document "$document"
        changed "let it read bucket $bucket"
    fi
}

check_key_can_be_made() {
    if [ -e "$key_file" ] || [ -L "$key_file" ]; then
        fail "$key_file exists already: nothing was changed"
    fi
    if look "user $admin_user" iam list-access-keys --user-name "$admin_user" \
        --query 'length(AccessKeyMetadata)' --output text && [ "$answer" -ge 2 ]; then
        fail "user $admin_user has two access keys already, the most AWS allows: delete one first; nothing was changed"
    fi
}

# The file is made first, for its owner alone: no key without a place to keep it.
make_key() {
    (umask 077 && set -C && : >"$key_file") || fail "cannot make $key_file"
    unfinished_key_file=$key_file
    key=$(aws iam create-access-key --user-name "$admin_user" \
        --query 'AccessKey.[AccessKeyId,SecretAccessKey]' --output text)
    id=$(printf '%s' "$key" | cut -f 1)
    secret=$(printf '%s' "$key" | cut -f 2)
    if ! printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$id" "$secret" >>"$key_file"; then
        aws iam delete-access-key --user-name "$admin_user" --access-key-id "$id"
        fail "cannot write $key_file: access key $id was deleted again"
    fi
    unfinished_key_file=
    changed "made access key $id for user $admin_user, in $key_file"
}

identity=$(aws sts get-caller-identity --query '[Account,Arn]' --output text) ||
    fail "AWS does not answer who you are: check your credentials and region"
account=$(printf '%s' "$identity" | cut -f 1)
partition=$(printf '%s' "$identity" | cut -f 2 | cut -d : -f 2)
say "AWS account $account, partition $partition, as $(printf '%s' "$identity" | cut -f 2)"

admin_arn=arn:$partition:iam::$account:user/$admin_user
boundary_arn=arn:$partition:iam::$account:policy${path}credbroker-boundary
admin_policy_arn=arn:$partition:iam::$account:policy${path}credbroker-admin
admin_boundary_arn=arn:$partition:iam::$account:policy${path}credbroker-admin-boundary

finish() {
    say ""
    if [ "$changes" -eq 0 ]; then
        say "Nothing was changed: everything is in place already."
    else
        say "Done, changes made: $changes."
    fi
    say "Next:"
}

if [ -n "$broker_user" ]; then
    case $broker_user in
        arn:"$partition":iam::"$account":*) fail "$broker_user is of this account, which needs no --member-of: nothing was changed" ;;
        arn:"$partition":*) ;;
        *) fail "$broker_user is of another partition, from which no role here can be assumed: nothing was changed" ;;
    esac
fi
[ -z "$key_file" ] || check_key_can_be_made
ensure_policy credbroker-boundary "$(render boundary-policy.json)" \
    "The most an IAM user issued by credbroker, or a role assumed by it, may do"
if [ -n "$broker_user" ]; then
    ensure_policy "$revoker" "$(render revoker-policy.json)" "What it takes to deny sessions that credbroker has issued"
    ensure_role "$revoker" "$(render revoker-trust-policy.json)" "In which credbroker denies sessions that it has issued"
    ensure_attached role "$revoker" "arn:$partition:iam::$account:policy$path$revoker"
    finish
    say "  1. Make the roles that the broker hands out, under $path, with boundary"
    say "     $boundary_arn"
    say "     and a trust policy that names $broker_user."
    exit 0
fi
ensure_policy credbroker-admin "$(render admin-policy.json)" "What credbroker itself may do"
ensure_policy credbroker-admin-boundary "$(render admin-boundary-policy.json)" "The most that credbroker itself may ever do"
ensure_user
[ "$with_example_role" = no ] || ensure_example_role
[ -z "$key_file" ] || make_key

finish
if [ -n "$key_file" ]; then
    say "  1. Move $key_file to the broker's host, readable by the broker alone."
else
    say "  1. If the broker has no key yet: run this again with --key-file FILE."
fi
say "  2. Point the broker at it and name its region (AWS_SHARED_CREDENTIALS_FILE, AWS_REGION)."
say "  3. Run: credbroker serve --config /etc/credbroker/credbroker.toml"
say "  4. Give boundary $boundary_arn to each"
say "     role that the broker assumes: on another it cannot end a service's sessions."
