//! Tokens that prove nothing: each is refused with the same words, and the log has the reason.

use std::collections::HashMap;

use aws_lc_rs::hmac;
use serde_json::{Value, json};

use super::{
    AUDIENCE, ISSUER, Taken, changed, good,
    issuer::{Issuer, Signs, encoded, now},
};

fn without(name: &str) -> Value {
    let mut claims = good();
    claims.as_object_mut().unwrap().remove(name);
    claims
}

/// Claims that a good key has signed, each with the reason of its refusal.
fn claims() -> Vec<(Value, &'static str)> {
    let at =
        |name: &str, seconds: i64| changed(name, json!(i64::try_from(now()).unwrap() + seconds));
    vec![
        (without("exp"), "JWT_EXPIRY_MISSING"),
        (
            changed("exp", json!((now() + 300).to_string())),
            "JWT_EXPIRY_INVALID",
        ),
        (changed("exp", json!(null)), "JWT_EXPIRY_INVALID"),
        (changed("exp", json!([now() + 300])), "JWT_EXPIRY_INVALID"),
        (changed("exp", json!(-1)), "JWT_EXPIRY_INVALID"),
        (changed("exp", json!(1e300)), "JWT_EXPIRY_INVALID"),
        (
            changed("exp", json!((now() + 300) * 1000)),
            "JWT_EXPIRY_INVALID",
        ),
        (at("exp", -61), "JWT_EXPIRED"),
        (at("exp", 25 * 3600), "JWT_LIFE_WRONG"),
        (without("iat"), "JWT_ISSUED_AT_MISSING"),
        (
            changed("iat", json!(now().to_string())),
            "JWT_ISSUED_AT_INVALID",
        ),
        (at("iat", 120), "JWT_NOT_VALID_YET"),
        (
            changed("nbf", json!(now().to_string())),
            "JWT_NOT_BEFORE_INVALID",
        ),
        (at("nbf", 120), "JWT_NOT_VALID_YET"),
        (without("aud"), "JWT_AUDIENCE_MISSING"),
        (
            changed("aud", json!("https://other.example")),
            "JWT_AUDIENCE_WRONG",
        ),
        (
            changed("aud", json!(format!("{AUDIENCE}/"))),
            "JWT_AUDIENCE_WRONG",
        ),
        (changed("aud", json!([])), "JWT_AUDIENCE_WRONG"),
        (
            changed("aud", json!({"0": AUDIENCE})),
            "JWT_AUDIENCE_INVALID",
        ),
        (changed("aud", json!([AUDIENCE, 7])), "JWT_AUDIENCE_INVALID"),
        (without("sub"), "JWT_SUBJECT_MISSING"),
        (changed("sub", json!("")), "JWT_SUBJECT_INVALID"),
        (changed("sub", json!(7)), "JWT_SUBJECT_INVALID"),
        (
            changed("sub", json!("x".repeat(1025))),
            "JWT_SUBJECT_INVALID",
        ),
        (
            changed("sub", json!("repo:acme/pay-evil:ref:x")),
            "IDENTITY_UNBOUND",
        ),
        (
            changed("sub", json!("xrepo:acme/pay:ref:x")),
            "IDENTITY_UNBOUND",
        ),
        (changed("repository_id", json!("421")), "IDENTITY_UNBOUND"),
        (without("repository_id"), "IDENTITY_UNBOUND"),
        (without("iss"), "JWT_ISSUER_UNKNOWN"),
        (
            changed("iss", json!(format!("{ISSUER}/"))),
            "JWT_ISSUER_UNKNOWN",
        ),
        (
            changed("iss", json!("https://evil.example")),
            "JWT_ISSUER_UNKNOWN",
        ),
        (changed("iss", json!([ISSUER])), "JWT_ISSUER_UNKNOWN"),
        (changed("Exp", json!(now() + 300)), "JWT_MALFORMED"),
        (changed("AUD", json!(AUDIENCE)), "JWT_MALFORMED"),
    ]
}

/// Headers in front of good claims.
fn headers(issuer: &Issuer) -> Vec<(String, &'static str)> {
    let kid = issuer.kid(Signs::Es256);
    let with = |more: Value| {
        let mut header = json!({"alg": "ES256", "kid": kid});
        header
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        header.to_string()
    };
    let mut headers: Vec<(String, &str)> = [
        "none", "None", "NONE", "nOnE", "", "HS256", "HS512", "es256", "RS1",
    ]
    .map(|alg| (with(json!({"alg": alg})), "JWT_ALGORITHM_REFUSED"))
    .to_vec();
    headers.extend([
        (json!({"kid": kid}).to_string(), "JWT_ALGORITHM_REFUSED"),
        (with(json!({"alg": ["ES256"]})), "JWT_ALGORITHM_REFUSED"),
        (with(json!({"alg": "RS256"})), "JWT_KEY_UNKNOWN"),
        (with(json!({"alg": "ES384"})), "JWT_KEY_UNKNOWN"),
        (
            with(json!({"kid": "../../../etc/passwd"})),
            "JWT_KEY_UNKNOWN",
        ),
        (with(json!({"kid": "' OR 1=1 --"})), "JWT_KEY_UNKNOWN"),
        (with(json!({"kid": "shared"})), "JWT_KEY_UNKNOWN"),
        (with(json!({"kid": "encrypts"})), "JWT_KEY_UNKNOWN"),
        (with(json!({"kid": "k".repeat(257)})), "JWT_KEY_ID_INVALID"),
        (with(json!({"kid": 7})), "JWT_KEY_ID_INVALID"),
        (
            with(json!({"kid": Issuer::new().kid(Signs::Es256)})),
            "JWT_KEY_UNKNOWN",
        ),
        (with(json!({"crit": ["exp"]})), "JWT_CRITICAL_EXTENSION"),
        (with(json!({"typ": "secevent+jwt"})), "JWT_TYPE_WRONG"),
        (with(json!({"Alg": "none"})), "JWT_MALFORMED"),
        (
            format!(r#"{{"alg":"ES256","kid":"{kid}","alg":"none"}}"#),
            "JWT_MALFORMED",
        ),
        ("[]".to_owned(), "JWT_MALFORMED"),
        ("\"ES256\"".to_owned(), "JWT_MALFORMED"),
        ("{".to_owned(), "JWT_MALFORMED"),
    ]);
    headers
}

/// Texts that are no token of the issuer.
fn texts(issuer: &Issuer) -> Vec<(String, &'static str)> {
    let token = issuer.sign(Signs::Es256, &good());
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    let admin = encoded(changed("sub", json!("repo:acme/pay:admin")).to_string());
    let hmac_header = json!({"alg": "HS256", "kid": issuer.kid(Signs::Rs256)}).to_string();
    let hmac_signed = format!("{}.{payload}", encoded(hmac_header));
    let key = hmac::Key::new(hmac::HMAC_SHA256, &issuer.public_key());
    let tag = hmac::sign(&key, hmac_signed.as_bytes());
    // The header offers a key itself.
    let other = Issuer::new();
    let offered = json!({
        "alg": "ES256", "jwk": other.keys()["keys"][1], "jku": "https://127.0.0.1:1/keys", "kid": issuer.kid(Signs::Es256),
    });
    let last = signature.chars().next_back().unwrap();
    // The last character of 64 bytes has two bits that count.
    let loose = if last == 'A' {
        'B'
    } else {
        char::from(last as u8 + 1)
    };
    let twice = good()
        .to_string()
        .replacen('{', r#"{"sub":"repo:acme/pay:x","#, 1);
    vec![
        (
            format!("{header}.{admin}.{signature}"),
            "JWT_SIGNATURE_WRONG",
        ),
        (format!("{signed}."), "JWT_SIGNATURE_WRONG"),
        (
            format!("{signed}.{}", encoded([0; 64])),
            "JWT_SIGNATURE_WRONG",
        ),
        (
            format!("{signed}.{}", encoded([0x30, 6, 2, 1, 1, 2, 1, 1])),
            "JWT_SIGNATURE_WRONG",
        ),
        (
            format!("{hmac_signed}.{}", encoded(tag)),
            "JWT_ALGORITHM_REFUSED",
        ),
        (
            other.sign_text(Signs::Es256, &offered.to_string(), &good().to_string()),
            "JWT_SIGNATURE_WRONG",
        ),
        (
            format!("{signed}.{}{loose}", &signature[..signature.len() - 1]),
            "JWT_MALFORMED",
        ),
        (format!("{token}="), "JWT_MALFORMED"),
        (format!("{token}."), "JWT_MALFORMED"),
        (format!("{token}.{payload}.{signature}"), "JWT_MALFORMED"),
        (format!("{header}.{payload}"), "JWT_MALFORMED"),
        ("..".to_owned(), "JWT_MALFORMED"),
        (format!("{header}..{signature}"), "JWT_MALFORMED"),
        (
            format!("{}.{payload}.{signature}", encoded(&token)),
            "JWT_MALFORMED",
        ),
        (
            issuer.sign_text(Signs::Es256, &json!({"alg": "ES256"}).to_string(), &twice),
            "JWT_MALFORMED",
        ),
        (
            format!("{header}.{}.{signature}", "e".repeat(7 * 1024)),
            "JWT_TOO_LONG",
        ),
    ]
}

/// Number of forged tokens with one reason that the log has one by one; it counts the others of a
/// minute.
const RECORDED: usize = 10;

/// Forged tokens, each with the reason of its refusal and the number of earlier ones with that
/// reason.
fn forged(issuer: &Issuer) -> Vec<(String, &'static str, usize)> {
    let signed = claims()
        .into_iter()
        .map(|(claims, reason)| (issuer.sign(Signs::Es256, &claims), reason));
    let headed = headers(issuer).into_iter().map(|(header, reason)| {
        let text = issuer.sign_text(Signs::Es256, &header, &good().to_string());
        (text, reason)
    });
    let mut before = HashMap::new();
    let forged = signed.chain(headed).chain(texts(issuer));
    let forged = forged.map(|(token, reason)| {
        let count: &mut usize = before.entry(reason).or_default();
        *count += 1;
        (token, reason, *count - 1)
    });
    forged.collect()
}

#[tokio::test]
async fn a_forged_token_is_refused_with_the_same_words_and_a_precise_record() {
    let (mut told, mut turn) = (Vec::new(), 0);
    let world = loop {
        let world = Taken::bound().await;
        let forged = forged(&world.issuer);
        assert!(forged.len() > 70, "{}", forged.len());
        let of_turn = forged
            .iter()
            .filter(|(_, _, before)| before / RECORDED == turn);
        let of_turn: Vec<_> = of_turn.collect();
        for (token, reason, _) in &of_turn {
            let run = world.site.run_as(token, &["issue", "user"]).await;
            assert_eq!(run.code, 3, "{reason} {token}: {run:#?}");
            let record = world.refused().await.pop().unwrap();
            assert_eq!(record["reason"], *reason, "{token} {record:#}");
            assert_eq!(record["actor"], "unknown");
            let signature = token.rsplit('.').next().unwrap();
            assert!(signature.len() < 20 || !record.to_string().contains(signature));
            told.push(run.stderr);
        }
        assert_eq!(world.refused().await.len(), of_turn.len());
        if told.len() == forged.len() {
            break world;
        }
        turn += 1;
    };
    assert!(told.iter().all(|words| *words == told[0]), "{told:#?}");
    let issuer = &world.issuer;
    let good = issuer.sign(Signs::Es256, &good());
    world.site.run_as(&good, &["issue", "user"]).await.ok();
    // The keys name no algorithm, and of several that fit none is used.
    let none_named = issuer.sign_text(
        Signs::EdDsa,
        r#"{"alg":"EdDSA"}"#,
        &super::good().to_string(),
    );
    world.site.run_as(&none_named, &["whoami"]).await.ok();
}
