//! Tokens that nobody who is trusted has signed, or not like that.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::hmac;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{AUDIENCE, launch, until_known};
use crate::support::{client, metric, outcome, raw};

const ISSUER: &str = "https://issuer.example";

/// An issuer of our own, that signs whatever it is told to. Its keys are to be had over HTTP.
pub(super) struct Forger {
    pair: Ed25519KeyPair,
    keys: SocketAddr,
    /// What it says its keys are; nothing where it answers 500.
    answer: Arc<Mutex<Option<String>>>,
}

impl Forger {
    pub(super) fn start() -> Self {
        let pair = Ed25519KeyPair::generate().unwrap();
        let answer = Arc::new(Mutex::new(None));
        let said = Arc::clone(&answer);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let keys = listener.local_addr().unwrap();
        // It ends with the test's process, which waits for no thread.
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let _ = stream.read(&mut [0; 4096]);
                let jwks: Option<String> = said.lock().unwrap().clone();
                let status = if jwks.is_some() { "200 OK" } else { "500 Internal Server Error" };
                let head =
                    format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nConnection: close\r\n");
                let jwks = jwks.unwrap_or_default();
                let _ = write!(stream, "{head}Content-Length: {}\r\n\r\n{jwks}", jwks.len());
            }
        });
        let forger = Self { pair, keys, answer };
        forger.say_own();
        forger
    }

    /// Has it publish its key.
    pub(super) fn say_own(&self) {
        self.say(Some(json!([jwk(&self.pair)])));
    }

    /// Has it publish these keys; nothing: it fails.
    pub(super) fn say(&self, keys: Option<Value>) {
        *self.answer.lock().unwrap() = keys.map(|keys| json!({ "keys": keys }).to_string());
    }

    pub(super) fn table(&self) -> String {
        format!(
            "[tokens.issuers.forger]\nissuer = '{ISSUER}'\njwks_uri = 'http://{}/jwks'\naudiences = ['{AUDIENCE}']\n",
            self.keys
        )
    }

    fn raw(&self, header: &str, claims: &str) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(self.pair.sign(text.as_bytes())))
    }

    pub(super) fn good(&self) -> String {
        self.token(|_, _| ())
    }

    fn token(&self, change: impl FnOnce(&mut Value, &mut Value)) -> String {
        let (mut header, mut claims) = (json!({ "alg": "EdDSA", "kid": "k" }), claims());
        change(&mut header, &mut claims);
        self.raw(&header.to_string(), &claims.to_string())
    }
}

fn jwk(pair: &Ed25519KeyPair) -> Value {
    let point = URL_SAFE_NO_PAD.encode(pair.public_key().as_ref());
    json!({ "kty": "OKP", "crv": "Ed25519", "kid": "k", "x": point })
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims() -> Value {
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "bob", "exp": now() + 3600, "nbf": now() - 10 })
}

#[tokio::test]
async fn forged_tokens_are_refused_with_the_reason_in_the_log_and_none_outside() {
    let forger = Forger::start();
    let mut replica = launch("token", &forger.table()).args(["--log-rate", "1000"]).start();
    until_known(&replica, "forger", 1.0).await;
    let url = format!("{}/score", replica.score);
    let send = |token: &str| client().post(&url).bearer_auth(token).body("1").send();
    assert_eq!(send(&forger.token(|_, _| ())).await.unwrap().status(), 200, "{}", replica.log_text());

    let stranger = Ed25519KeyPair::generate().unwrap();
    let stranger = Forger { pair: stranger, keys: forger.keys, answer: Arc::clone(&forger.answer) };
    let header = |name: &'static str, value: Value| forger.token(move |header, _| header[name] = value);
    let claim = |name: &'static str, value: Value| forger.token(move |_, claims| claims[name] = value);
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let none = format!("{}.{}.", part(&json!({ "alg": "none" })), part(&claims()));
    let confused = {
        let text = format!("{}.{}", part(&json!({ "alg": "HS256", "kid": "k" })), part(&claims()));
        let key = hmac::Key::new(hmac::HMAC_SHA256, forger.pair.public_key().as_ref());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(hmac::sign(&key, text.as_bytes())))
    };
    let table = [
        ("alg none", none, "token_algorithm"),
        ("HS256 with the public key", confused, "token_algorithm"),
        ("another algorithm than the key's", header("alg", "RS256".into()), "token_key"),
        ("another audience", claim("aud", "somebody-else".into()), "token_audience"),
        ("another issuer", claim("iss", "https://evil.example".into()), "token_issuer"),
        ("an issuer with a slash more", claim("iss", format!("{ISSUER}/").into()), "token_issuer"),
        ("not yet", claim("nbf", (now() + 3600).into()), "token_not_yet"),
        ("issued later", claim("iat", (now() + 3600).into()), "token_not_yet"),
        ("expired", claim("exp", (now() - 3600).into()), "token_expired"),
        (
            "without an end",
            forger.token(|_, claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
            "token_claims",
        ),
        ("a path as the key's name", header("kid", "../../../../dev/null".into()), "token_key"),
        ("a long name of a key", header("kid", "k".repeat(300).into()), "token_header"),
        ("jku", header("jku", format!("http://{}/jwks", forger.keys).into()), "token_header"),
        ("x5u", header("x5u", "https://evil.example/".into()), "token_header"),
        ("its own key", stranger.token(|header, _| header["jwk"] = jwk(&stranger.pair)), "token_header"),
        ("crit", header("crit", json!(["exp"])), "token_header"),
        ("signed by somebody else", stranger.token(|_, _| ()), "token_signature"),
        (
            "a name twice",
            forger.raw("{\"alg\":\"EdDSA\",\"kid\":\"k\",\"kid\":\"k\"}", &claims().to_string()),
            "token_form",
        ),
        ("huge", forger.token(|_, claims| claims["more"] = "x".repeat(20_000).into()), "token_too_long"),
        ("no token", "nonsense".into(), "token_form"),
    ];
    for (what, token, reason) in &table {
        let response = client().post(&url).bearer_auth(token).header("x-request-id", *what).body("1").send();
        let response = response.await.unwrap();
        assert_eq!(response.headers()["www-authenticate"], "Bearer", "{what}");
        let (status, code, body) = outcome(response).await;
        assert_eq!((status, code.as_str()), (401, "unauthenticated"), "{what}");
        assert_eq!(body["message"], "the token in the header `Authorization` is not valid", "{what}");
        let wanted = |line: &Value| line["fields"]["request"] == *what && line["fields"]["reason"] == *reason;
        replica.wait_for(wanted);
        let log = replica.log_text();
        assert!(!log.contains(token.as_str()) || token.len() < 20, "{what} is in the log");
    }
    let refused: f64 = {
        let mut sum = 0.0;
        for reason in table.iter().map(|(_, _, reason)| *reason).collect::<std::collections::BTreeSet<_>>() {
            let name = format!("outrigger_auth_refusals_total{{reason=\"{reason}\"}}");
            sum += metric(&replica, &name).await.unwrap();
        }
        sum
    };
    assert_eq!(refused, table.len() as f64);

    // Two headers are none, whatever is in them.
    let good = forger.token(|_, _| ());
    let twice = format!(
        "POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {good}\r\nAuthorization: Bearer {good}\r\nContent-Length: 1\r\nConnection: close\r\n\r\n1"
    );
    assert!(raw(&replica, twice.as_bytes()).starts_with("HTTP/1.1 401"));
    // Beyond what a header may have it is not even looked at.
    let huge = format!(
        "POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        "x".repeat(100_000)
    );
    assert!(raw(&replica, huge.as_bytes()).starts_with("HTTP/1.1 431"));
    assert_eq!(send(&good).await.unwrap().status(), 200);
}
