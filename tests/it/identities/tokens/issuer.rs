//! An issuer of tokens with keys of every kind.

use std::{
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::{
    rand::SystemRandom,
    rsa::{KeyPair as RsaKeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING,
        ECDSA_P521_SHA512_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384,
        RSA_PSS_SHA512,
    },
};
use credbroker::http::tls;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    task::JoinHandle,
};
use tokio_rustls::{TlsAcceptor, rustls::ServerConfig};

/// Signature algorithm of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Signs {
    Rs256,
    Rs384,
    Rs512,
    Ps256,
    Ps384,
    Ps512,
    Es256,
    Es384,
    Es512,
    EdDsa,
}

impl Signs {
    pub(super) const ALL: [Self; 10] = [
        Self::Rs256,
        Self::Rs384,
        Self::Rs512,
        Self::Ps256,
        Self::Ps384,
        Self::Ps512,
        Self::Es256,
        Self::Es384,
        Self::Es512,
        Self::EdDsa,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Rs384 => "RS384",
            Self::Rs512 => "RS512",
            Self::Ps256 => "PS256",
            Self::Ps384 => "PS384",
            Self::Ps512 => "PS512",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
            Self::Es512 => "ES512",
            Self::EdDsa => "EdDSA",
        }
    }
}

pub(super) struct Issuer {
    /// Prefix that distinguishes this issuer's keys from those of another.
    id: String,
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    p521: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
    listening: Option<(TcpListener, Arc<ServerConfig>)>,
}

/// Server of the keys; runs until it is dropped.
pub(super) struct Served {
    asked: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Served {
    pub(super) fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(super) fn now() -> u64 {
    let epoch = std::time::UNIX_EPOCH.elapsed();
    epoch.unwrap().as_secs()
}

pub(super) fn encoded(bytes: impl AsRef<[u8]>) -> String {
    BASE64URL_NOPAD.encode(bytes.as_ref())
}

impl Issuer {
    pub(super) fn new() -> Self {
        let id = encoded(fastrand::u64(..).to_be_bytes());
        Self {
            id,
            rsa: RsaKeyPair::generate(KeySize::Rsa2048).unwrap(),
            p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap(),
            p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap(),
            p521: EcdsaKeyPair::generate(&ECDSA_P521_SHA512_FIXED_SIGNING).unwrap(),
            ed25519: Ed25519KeyPair::generate().unwrap(),
            listening: None,
        }
    }

    pub(super) fn kid(&self, signs: Signs) -> String {
        let kind = match signs {
            Signs::Es256 => "p256",
            Signs::Es384 => "p384",
            Signs::Es512 => "p521",
            Signs::EdDsa => "ed25519",
            _ => "rsa",
        };
        format!("{}-{kind}", self.id)
    }

    /// The JWK set.
    pub(super) fn keys(&self) -> Value {
        let rsa = self.rsa.public_key();
        let n = encoded(rsa.modulus().big_endian_without_leading_zero());
        let e = encoded(rsa.exponent().big_endian_without_leading_zero());
        let ec = |signs: Signs, curve: &str, key: &EcdsaKeyPair| {
            let point = &key.public_key().as_ref()[1..];
            let (x, y) = point.split_at(point.len() / 2);
            json!({"kty": "EC", "crv": curve, "kid": self.kid(signs), "use": "sig", "x": encoded(x), "y": encoded(y)})
        };
        json!({"keys": [
            {"kty": "RSA", "kid": self.kid(Signs::Rs256), "n": n, "e": e, "key_ops": ["verify"]},
            ec(Signs::Es256, "P-256", &self.p256),
            ec(Signs::Es384, "P-384", &self.p384),
            ec(Signs::Es512, "P-521", &self.p521),
            {"kty": "OKP", "crv": "Ed25519", "kid": self.kid(Signs::EdDsa), "alg": "EdDSA",
             "x": encoded(self.ed25519.public_key())},
            {"kty": "oct", "kid": "shared", "k": encoded("shared secret")},
            {"kty": "EC", "crv": "P-256", "kid": "encrypts", "use": "enc", "x": "AA", "y": "AA"},
        ]})
    }

    /// Public RSA key in DER.
    pub(super) fn public_key(&self) -> Vec<u8> {
        self.rsa.public_key().as_ref().to_vec()
    }

    pub(super) fn sign(&self, signs: Signs, claims: &Value) -> String {
        let header = json!({"alg": signs.name(), "typ": "JWT", "kid": self.kid(signs)});
        self.sign_text(signs, &header.to_string(), &claims.to_string())
    }

    /// Signs any header and claims.
    pub(super) fn sign_text(&self, signs: Signs, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encoded(header), encoded(claims));
        let signature = self.signature(signs, signed.as_bytes());
        format!("{signed}.{}", encoded(signature))
    }

    fn signature(&self, signs: Signs, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        let ec = |key: &EcdsaKeyPair| key.sign(&random, message).unwrap().as_ref().to_vec();
        let algorithm = match signs {
            Signs::Es256 => return ec(&self.p256),
            Signs::Es384 => return ec(&self.p384),
            Signs::Es512 => return ec(&self.p521),
            Signs::EdDsa => return self.ed25519.sign(message).as_ref().to_vec(),
            Signs::Rs256 => &RSA_PKCS1_SHA256,
            Signs::Rs384 => &RSA_PKCS1_SHA384,
            Signs::Rs512 => &RSA_PKCS1_SHA512,
            Signs::Ps256 => &RSA_PSS_SHA256,
            Signs::Ps384 => &RSA_PSS_SHA384,
            Signs::Ps512 => &RSA_PSS_SHA512,
        };
        let mut signature = vec![0; self.rsa.public_modulus_len()];
        self.rsa
            .sign(algorithm, &random, message, &mut signature)
            .unwrap();
        signature
    }

    /// Listens with this certificate. Returns its address.
    pub(super) fn listen(&mut self, cert: &Path, key: &Path) -> String {
        let tls = tls::from_files(cert, key, tls::ClientCertificates::NotAsked).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        self.listening = Some((listener, tls));
        address
    }

    /// Serves the keys to every caller.
    pub(super) fn serve(&mut self) -> Served {
        let (listener, tls) = self.listening.take().unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let (acceptor, keys) = (TlsAcceptor::from(tls), self.keys().to_string());
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
                    line.clear();
                }
                counted.fetch_add(1, Ordering::SeqCst);
                let head = format!(
                    "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{keys}",
                    keys.len()
                );
                let _ = stream.write_all(head.as_bytes()).await;
                let _ = stream.flush().await;
            }
        });
        Served { asked, task }
    }
}
