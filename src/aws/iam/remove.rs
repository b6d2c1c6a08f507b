//! Removal of a user: access first, then all that prevents the deletion, the user last.
//! <https://docs.aws.amazon.com/IAM/latest/APIReference/API_DeleteUser.html> lists what must be
//! deleted before the user.

use super::{REVOKED_POLICY, deactivate_key, delete_key, every, exists, keys, put_policy};
use crate::{
    aws::{
        client::IamCalls,
        error::{not_yet, on},
    },
    broker::ports::{AwsFailure, DeleteOutcome, FailureClass},
    domain::policy,
};

/// Denies everything (which also ends sessions made from the user's keys), deletes the keys, then
/// other ways of access, then permissions with the denial last, then the user. Returns once AWS
/// does not know the user.
pub(in crate::aws) async fn remove(
    iam: &IamCalls,
    user: &str,
) -> Result<DeleteOutcome, AwsFailure> {
    let there = exists(iam, user).await;
    if there == Ok(false) {
        return Ok(DeleteOutcome::NotFound);
    }
    end_access(iam, user).await?;
    there?;
    remove_login(iam, user).await?;
    remove_other_credentials(iam, user).await?;
    remove_permissions(iam, user).await?;
    let call = iam.client.delete_user().user_name(user).send();
    let Some(_) = iam
        .call_if_exists(&on("iam:DeleteUser", user), call)
        .await?
    else {
        return Ok(DeleteOutcome::NotFound);
    };
    if exists(iam, user).await? {
        let message = format!("AWS still shows user {user} after its deletion");
        return Err(not_yet("AWS_INCONSISTENT", message));
    }
    Ok(DeleteOutcome::Removed)
}

/// Ends the user's access. A failed step does not prevent the others.
async fn end_access(iam: &IamCalls, user: &str) -> Result<(), AwsFailure> {
    let denied = put_policy(iam, user, REVOKED_POLICY, &policy::deny_all().to_json()).await;
    let denied = match denied {
        Err(failure) if failure.class == FailureClass::Refused => {
            tracing::warn!(user, %failure, "AWS did not take the denial; the user is removed without");
            Ok(())
        }
        denied => denied,
    };
    let mut ended = vec![denied];
    for key in keys(iam, user).await? {
        let off = deactivate_key(iam, user, &key).await;
        ended.push(delete_key(iam, user, &key).await.and(off));
    }
    ended.into_iter().collect()
}

/// Deletes the password and deactivates the second factors. The broker creates none; an
/// administrator of the account may have.
async fn remove_login(iam: &IamCalls, user: &str) -> Result<(), AwsFailure> {
    let call = iam.client.delete_login_profile().user_name(user).send();
    iam.call_if_exists(&on("iam:DeleteLoginProfile", user), call)
        .await?;
    let devices = every!(iam, on("iam:ListMFADevices", user),
        iam.client.list_mfa_devices().user_name(user),
        page => page.mfa_devices);
    for device in devices {
        let call = iam
            .client
            .deactivate_mfa_device()
            .user_name(user)
            .serial_number(device.serial_number);
        iam.call_if_exists(&on("iam:DeactivateMFADevice", user), call.send())
            .await?;
    }
    Ok(())
}

/// Deletes certificates, SSH keys and passwords of single services, which the broker does not
/// create either.
async fn remove_other_credentials(iam: &IamCalls, user: &str) -> Result<(), AwsFailure> {
    let certificates = every!(iam, on("iam:ListSigningCertificates", user),
        iam.client.list_signing_certificates().user_name(user),
        page => page.certificates);
    for certificate in certificates {
        let call = iam
            .client
            .delete_signing_certificate()
            .user_name(user)
            .certificate_id(certificate.certificate_id);
        iam.call_if_exists(&on("iam:DeleteSigningCertificate", user), call.send())
            .await?;
    }
    let ssh_keys = every!(iam, on("iam:ListSSHPublicKeys", user),
        iam.client.list_ssh_public_keys().user_name(user),
        page => page.ssh_public_keys.unwrap_or_default());
    for key in ssh_keys {
        let call = iam
            .client
            .delete_ssh_public_key()
            .user_name(user)
            .ssh_public_key_id(key.ssh_public_key_id);
        iam.call_if_exists(&on("iam:DeleteSSHPublicKey", user), call.send())
            .await?;
    }
    let passwords = every!(iam, on("iam:ListServiceSpecificCredentials", user),
        iam.client.list_service_specific_credentials().user_name(user),
        page => page.service_specific_credentials.unwrap_or_default());
    for password in passwords {
        let call = iam
            .client
            .delete_service_specific_credential()
            .user_name(user)
            .service_specific_credential_id(password.service_specific_credential_id);
        iam.call_if_exists(
            &on("iam:DeleteServiceSpecificCredential", user),
            call.send(),
        )
        .await?;
    }
    Ok(())
}

async fn remove_permissions(iam: &IamCalls, user: &str) -> Result<(), AwsFailure> {
    let attached = every!(iam, on("iam:ListAttachedUserPolicies", user),
        iam.client.list_attached_user_policies().user_name(user),
        page => page.attached_policies.unwrap_or_default());
    for policy in attached {
        let call = iam
            .client
            .detach_user_policy()
            .user_name(user)
            .set_policy_arn(policy.policy_arn);
        iam.call_if_exists(&on("iam:DetachUserPolicy", user), call.send())
            .await?;
    }
    let groups = every!(iam, on("iam:ListGroupsForUser", user),
        iam.client.list_groups_for_user().user_name(user),
        page => page.groups);
    for group in groups {
        let call = iam
            .client
            .remove_user_from_group()
            .user_name(user)
            .group_name(group.group_name);
        iam.call_if_exists(&on("iam:RemoveUserFromGroup", user), call.send())
            .await?;
    }
    let mut policies = every!(iam, on("iam:ListUserPolicies", user),
        iam.client.list_user_policies().user_name(user),
        page => page.policy_names);
    // The denial is deleted last.
    policies.sort_by_key(|name| name == REVOKED_POLICY);
    for name in policies {
        let call = iam
            .client
            .delete_user_policy()
            .user_name(user)
            .policy_name(name);
        iam.call_if_exists(&on("iam:DeleteUserPolicy", user), call.send())
            .await?;
    }
    Ok(())
}
