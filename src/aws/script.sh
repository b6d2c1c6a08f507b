AWS_PAGER=''
export AWS_PAGER
# Version 1 of the CLI does not read AWS_REGION.
if [ -n "${AWS_REGION:-}" ]; then
    AWS_DEFAULT_REGION=$AWS_REGION
    export AWS_DEFAULT_REGION
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

failed=0
fail() {
    failed=1
    printf '%s\n' "$*" >&2
}

# attempt ARGUMENTS...: asks AWS. What is not there any more is no failure; what fails is
# told, and keeps nothing else from being tried.
attempt() {
    if ! aws "$@" >/dev/null 2>"$scratch/error" && ! grep -q NoSuchEntity "$scratch/error"; then
        fail "aws $1 $2: $(cat "$scratch/error")"
    fi
}

# look ARGUMENTS...: the same, and puts what AWS shows into $answer. An endpoint that does
# not know a call has nothing of the kind.
look() {
    if ! answer=$(aws "$@" --output text 2>"$scratch/error"); then
        answer=
        grep -Eq 'NoSuchEntity|InvalidAction' "$scratch/error" ||
            fail "aws $1 $2: $(cat "$scratch/error")"
    fi
    [ "$answer" != None ] || answer=
}

# in_account ID: whether the credentials are of that account.
look sts get-caller-identity --query Account
account=$answer
in_account() {
    [ "$account" != "$1" ] || return 0
    fail "left out: what is in account $1. Run this again with credentials of that account."
    return 1
}

# deny_sessions KIND NAME DOCUMENT: KIND is role or user.
deny_sessions() {
    printf 'denying sessions at %s %s\n' "$1" "$2"
    attempt iam "put-$1-policy" "--$1-name" "$2" --policy-name "$emergency" --policy-document "$3"
}

# each USER LIST QUERY REMOVE OPTION: removes what a list of the user's shows.
each() {
    look iam "$2" --user-name "$1" --query "$3"
    for entry in $answer; do
        attempt iam "$4" --user-name "$1" "$5" "$entry"
    done
}

# end_access USER: denies everything, also to sessions made from its keys, then removes the
# keys.
end_access() {
    printf 'ending the access of user %s\n' "$1"
    attempt iam put-user-policy --user-name "$1" --policy-name "$revoked" --policy-document "$deny_all"
    look iam list-access-keys --user-name "$1" --query 'AccessKeyMetadata[].AccessKeyId'
    for key in $answer; do
        attempt iam update-access-key --user-name "$1" --access-key-id "$key" --status Inactive
        attempt iam delete-access-key --user-name "$1" --access-key-id "$key"
    done
}

# remove_user USER: removes all that AWS wants gone before the user, the denial last.
remove_user() {
    look iam get-user --user-name "$1" --query User.UserName
    [ -n "$answer" ] || return 0
    printf 'removing user %s\n' "$1"
    attempt iam delete-login-profile --user-name "$1"
    each "$1" list-mfa-devices 'MFADevices[].SerialNumber' deactivate-mfa-device --serial-number
    each "$1" list-signing-certificates 'Certificates[].CertificateId' \
        delete-signing-certificate --certificate-id
    each "$1" list-ssh-public-keys 'SSHPublicKeys[].SSHPublicKeyId' \
        delete-ssh-public-key --ssh-public-key-id
    each "$1" list-service-specific-credentials \
        'ServiceSpecificCredentials[].ServiceSpecificCredentialId' \
        delete-service-specific-credential --service-specific-credential-id
    each "$1" list-attached-user-policies 'AttachedPolicies[].PolicyArn' \
        detach-user-policy --policy-arn
    each "$1" list-groups-for-user 'Groups[].GroupName' remove-user-from-group --group-name
    each "$1" list-user-policies "PolicyNames[?@ != '$revoked']" delete-user-policy --policy-name
    attempt iam delete-user-policy --user-name "$1" --policy-name "$revoked"
    attempt iam delete-user --user-name "$1"
}
