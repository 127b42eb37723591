use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeySize, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair,
};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use outrigger_protocol::Operation;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::ring::KeyPrint;
use crate::*;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "service";
const NOW: u64 = 1_800_000_000;
const SKEW: u64 = 60;

enum Pair {
    Rsa(RsaKeyPair),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

/// An issuer's key, with which anything can be signed.
struct Signer {
    kid: &'static str,
    pair: Pair,
}

impl Signer {
    fn rsa(kid: &'static str) -> Self {
        Self { kid, pair: Pair::Rsa(RsaKeyPair::generate(KeySize::Rsa2048).unwrap()) }
    }

    fn ec(kid: &'static str) -> Self {
        Self { kid, pair: Pair::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()) }
    }

    fn ed(kid: &'static str) -> Self {
        Self { kid, pair: Pair::Ed(Ed25519KeyPair::generate().unwrap()) }
    }

    fn algorithm(&self) -> &'static str {
        match self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::Ec(_) => "ES256",
            Pair::Ed(_) => "EdDSA",
        }
    }

    fn jwk(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        match &self.pair {
            Pair::Rsa(pair) => {
                let public = PublicKeyComponents::<Vec<u8>>::from(pair.public_key());
                json!({ "kty": "RSA", "kid": self.kid, "use": "sig", "n": encode(&public.n), "e": encode(&public.e) })
            }
            Pair::Ec(pair) => {
                let point = pair.public_key().as_ref();
                json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "alg": "ES256", "x": encode(&point[1..33]), "y": encode(&point[33..]) })
            }
            Pair::Ed(pair) => {
                json!({ "kty": "OKP", "crv": "Ed25519", "kid": self.kid, "key_ops": ["verify"], "x": encode(pair.public_key().as_ref()) })
            }
        }
    }

    fn sign(&self, text: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, text, &mut signature).unwrap();
                signature
            }
            Pair::Ec(pair) => pair.sign(&random, text).unwrap().as_ref().to_vec(),
            Pair::Ed(pair) => pair.sign(text).as_ref().to_vec(),
        }
    }

    /// A token of this header and these claims, as texts, so that they can be anything.
    fn raw(&self, header: &str, claims: &str) -> String {
        let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(self.sign(text.as_bytes())))
    }

    fn token(&self, change: impl FnOnce(&mut Value, &mut Value)) -> String {
        let mut header = json!({ "alg": self.algorithm(), "kid": self.kid, "typ": "JWT" });
        let mut claims =
            json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "bob", "exp": NOW + 600, "nbf": NOW, "iat": NOW });
        change(&mut header, &mut claims);
        self.raw(&header.to_string(), &claims.to_string())
    }

    fn good(&self) -> String {
        self.token(|_, _| ())
    }
}

struct Known;

impl House for Known {
    fn caller(&self, name: &str) -> Option<CallerId> {
        (name == "bob").then(|| CallerId::new(4)).flatten()
    }

    fn holds(&self, _: CallerId, _: u64, _: impl Fn(&KeyPrint) -> bool) -> bool {
        true
    }
}

/// One caller, by the keys of a ring.
struct Ring(KeyRing);

impl Ring {
    fn held(&self, key: &str) -> HeldKey {
        self.0.find(key.as_bytes(), NOW).unwrap()
    }
}

impl House for Ring {
    fn caller(&self, name: &str) -> Option<CallerId> {
        Known.caller(name)
    }

    fn holds(&self, caller: CallerId, now: u64, is_meant: impl Fn(&KeyPrint) -> bool) -> bool {
        self.0.holds(caller, now, is_meant)
    }
}

fn rules() -> IssuerRules {
    IssuerRules {
        name: "test".into(),
        issuer: ISSUER.into(),
        audiences: vec![AUDIENCE.into(), "other".into()],
        algorithms: Algorithm::ALL.to_vec(),
        scopes: Vec::new(),
        roles: Vec::new(),
        claim: "sub".into(),
        principals: Principals::default(),
    }
}

const LIMITS: TokenLimits = TokenLimits { bytes: 8192, skew: SKEW, remembered: 100 };

fn set(signers: &[&Signer]) -> KeySet {
    let keys: Vec<_> = signers.iter().map(|signer| signer.jwk()).collect();
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), 100).unwrap()
}

fn tokens(rules: IssuerRules, signers: &[&Signer]) -> Tokens {
    let mut tokens = Tokens::new(LIMITS).unwrap();
    let issuer = tokens.trust(rules, || {});
    tokens.set_keys(issuer, set(signers));
    tokens
}

fn check(tokens: &Tokens, token: &str) -> Result<CallerId, TokenFault> {
    tokens.check(token.as_bytes(), NOW, &Known)
}

#[test]
fn good_tokens_of_each_kind_say_who_calls() {
    let signers = [Signer::rsa("r"), Signer::ec("e"), Signer::ed("d")];
    let all: Vec<_> = signers.iter().collect();
    let tokens = tokens(rules(), &all);
    for signer in &signers {
        for _ in 0..2 {
            assert_eq!(check(&tokens, &signer.good()).map(CallerId::index), Ok(4), "{}", signer.algorithm());
        }
        let unnamed = signer.token(|header, _| drop(header.as_object_mut().unwrap().remove("kid")));
        assert!(check(&tokens, &unnamed).is_ok(), "the only key of its kind need not be named");
        let of_other_type = signer.token(|header, _| header["typ"] = "application/at+JWT".into());
        assert!(check(&tokens, &of_other_type).is_ok());
        let for_several = signer.token(|_, claims| claims["aud"] = json!(["x", "other"]));
        assert!(check(&tokens, &for_several).is_ok());
        let with_fractions = signer.token(|_, claims| claims["exp"] = json!(NOW as f64 + 0.5));
        assert!(check(&tokens, &with_fractions).is_ok());
    }
}

#[test]
fn forged_and_other_tokens_are_refused_each_for_its_reason() {
    use TokenFault::*;
    let (rsa, ec, ed, stranger) = (Signer::rsa("r"), Signer::ec("e"), Signer::ed("d"), Signer::rsa("r"));
    let tokens = tokens(rules(), &[&rsa, &ec, &ed]);
    let header = |name: &'static str, value: Value| rsa.token(move |header, _| header[name] = value);
    let claim = |name: &'static str, value: Value| rsa.token(move |_, claims| claims[name] = value);
    let lacks =
        |name: &'static str| rsa.token(move |_, claims| drop(claims.as_object_mut().unwrap().remove(name)));
    let good = rsa.good();
    let (signed, signature) = good.rsplit_once('.').unwrap();
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let claims = json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": "bob", "exp": NOW + 600 }).to_string();
    let none = |alg: &str| format!("{}.{}.", part(&json!({ "alg": alg }).to_string()), part(&claims));
    // Signed with the public key as if that were a secret, which fools who takes the algorithm from the token.
    let confused = {
        let text = format!("{}.{}", part(&json!({ "alg": "HS256", "kid": "r" }).to_string()), part(&claims));
        let secret = rsa.jwk()["n"].as_str().unwrap().to_owned();
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, secret.as_bytes());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(aws_lc_rs::hmac::sign(&key, text.as_bytes())))
    };
    let twice = claims.replacen('{', "{\"sub\":\"eve\",", 1);
    let table = [
        (String::new(), Form),
        ("a.b".into(), Form),
        ("a.b.c.d".into(), Form),
        ("..".into(), Form),
        (format!("{good} "), Form),
        (format!("{good}="), Form),
        (good.replace('.', "+."), Form),
        (rsa.raw("[]", &claims), Form),
        (rsa.raw("{\"alg\":\"RS256\",\"alg\":\"none\"}", &claims), Form),
        (rsa.raw("{\"alg\":\"RS256\",\"kid\":\"r\"}", &twice), Form),
        (rsa.raw("{\"alg\":\"RS256\",\"kid\":\"r\"}", "17"), Form),
        (
            rsa.raw(
                "{\"alg\":\"RS256\",\"kid\":\"r\"}",
                &format!("{}1{}", "[".repeat(2000), "]".repeat(2000)),
            ),
            Form,
        ),
        ("x".repeat(8193), TooLong),
        (none("none"), Algorithm),
        (none("None"), Algorithm),
        (none("RS256"), Signature),
        (confused, Algorithm),
        (rsa.raw("{}", &claims), Algorithm),
        (header("alg", "HS256".into()), Algorithm),
        (header("alg", "RS512".into()), Algorithm),
        (header("alg", "PS256".into()), Algorithm),
        (header("alg", 1.into()), Algorithm),
        (header("alg", "ES256".into()), Key),
        (ec.token(|header, _| header["kid"] = "r".into()), Key),
        (header("jku", "https://evil.example/jwks".into()), Header),
        (header("x5u", "https://evil.example/cert".into()), Header),
        (header("x5c", json!(["MII"])), Header),
        (stranger.token(|header, _| header["jwk"] = stranger.jwk()), Header),
        (header("crit", json!(["exp"])), Header),
        (header("b64", false.into()), Header),
        (header("typ", "dpop+jwt".into()), Header),
        (header("kid", 7.into()), Header),
        (header("kid", "k".repeat(257).into()), Header),
        (header("kid", "../../../../dev/null".into()), Key),
        (header("kid", "r\0".into()), Key),
        (header("kid", "' OR 1=1 --".into()), Key),
        (stranger.good(), Signature),
        (format!("{signed}.{}", part("short")), Signature),
        (format!("{signed}."), Signature),
        (format!("{}.{signature}", signed.replacen(&part("{\"aud\""), &part("{\"AUD\""), 1)), Signature),
        (claim("iss", format!("{ISSUER}/").into()), Issuer),
        (claim("iss", "https://evil.example".into()), Issuer),
        (claim("iss", json!([ISSUER])), Claims),
        (lacks("iss"), Issuer),
        (claim("aud", "servic".into()), Audience),
        (claim("aud", format!("x {AUDIENCE}").into()), Audience),
        (claim("aud", json!([])), Audience),
        (claim("aud", json!([1])), Claims),
        (lacks("aud"), Audience),
        (claim("exp", (NOW - SKEW).into()), Expired),
        (claim("exp", 0.into()), Expired),
        (claim("exp", "1900000000".into()), Claims),
        (claim("exp", json!(-1)), Claims),
        (claim("exp", json!(1e300)), Claims),
        (lacks("exp"), Claims),
        (claim("nbf", (NOW + SKEW + 1).into()), NotYet),
        (claim("iat", (NOW + SKEW + 1).into()), NotYet),
        (claim("sub", "eve".into()), Principal),
        (claim("sub", "anonymous".into()), Principal),
        (claim("sub", json!({})), Claims),
        (lacks("sub"), Claims),
    ];
    for (token, fault) in table {
        assert_eq!(check(&tokens, &token), Err(fault), "{token}");
    }
    // The edges that still hold.
    assert!(check(&tokens, &claim("exp", (NOW - SKEW + 1).into())).is_ok());
    assert!(check(&tokens, &claim("nbf", (NOW + SKEW).into())).is_ok());
    let reasons: std::collections::HashSet<_> = TokenFault::ALL.iter().map(|fault| fault.reason()).collect();
    assert_eq!(reasons.len(), TokenFault::ALL.len());
}

#[test]
fn an_issuer_may_ask_for_algorithms_scopes_roles_and_say_who_is_whom() {
    let (rsa, ed) = (Signer::rsa("r"), Signer::ed("d"));
    let narrow = IssuerRules {
        algorithms: vec![Algorithm::EdDsa],
        scopes: vec!["score".into(), "infer".into()],
        roles: vec!["caller".into()],
        claim: "client_id".into(),
        principals: Principals {
            by_value: [("app-1".to_owned(), "bob".to_owned()), ("app-2".to_owned(), "gone".to_owned())]
                .into(),
            ..Principals::default()
        },
        ..rules()
    };
    let strict = tokens(narrow.clone(), &[&rsa, &ed]);
    let token = |client: &str, scope: Value, roles: Value| {
        ed.token(|_, claims| {
            claims["client_id"] = client.into();
            claims["scp"] = scope;
            claims["roles"] = roles;
        })
    };
    let all = || json!(["infer", "score", "more"]);
    assert!(check(&strict, &token("app-1", all(), json!(["caller"]))).is_ok());
    assert!(check(&strict, &token("app-1", "score infer".into(), json!(["caller"]))).is_ok());
    assert_eq!(check(&strict, &token("app-1", "score".into(), json!(["caller"]))), Err(TokenFault::Scope));
    assert_eq!(check(&strict, &token("app-1", all(), json!([]))), Err(TokenFault::Scope));
    assert_eq!(check(&strict, &token("app-2", all(), json!(["caller"]))), Err(TokenFault::Principal));
    assert_eq!(check(&strict, &token("bob", all(), json!(["caller"]))), Err(TokenFault::Principal));
    assert_eq!(check(&strict, &rsa.good()), Err(TokenFault::Algorithm));
    // Who is called so elsewhere is no administrator here.
    struct Everybody;
    impl House for Everybody {
        fn caller(&self, _: &str) -> Option<CallerId> {
            Some(CallerId::PRIMARY)
        }
        fn holds(&self, _: CallerId, _: u64, _: impl Fn(&KeyPrint) -> bool) -> bool {
            true
        }
    }
    let plain = tokens(rules(), &[&ed]);
    for name in BUILT_IN {
        let token = ed.token(|_, claims| claims["sub"] = name.into());
        assert_eq!(plain.check(token.as_bytes(), NOW, &Everybody), Err(TokenFault::Principal), "{name}");
    }
    let open = Principals { others: Some("bob".into()), ..Principals::default() };
    let anybody = tokens(IssuerRules { principals: open, ..rules() }, &[&rsa]);
    let token = rsa.token(|_, claims| claims["sub"] = "whoever".into());
    assert!(check(&anybody, &token).is_ok());
}

#[test]
fn keys_rotate_and_what_was_remembered_goes_with_its_key() {
    let (one, two) = (Signer::rsa("one"), Signer::rsa("two"));
    let rung = Arc::new(AtomicUsize::new(0));
    let bell = Arc::clone(&rung);
    let mut tokens = Tokens::new(LIMITS).unwrap();
    let issuer = tokens.trust(rules(), move || {
        bell.fetch_add(1, Ordering::Relaxed);
    });
    let (first, second) = (one.good(), two.good());
    assert_eq!(check(&tokens, &first), Err(TokenFault::NoKeys));
    assert_eq!((rung.load(Ordering::Relaxed), tokens.take_wish(issuer)), (1, true));
    assert!(tokens.set_keys(issuer, set(&[&one])));
    assert!(!tokens.set_keys(issuer, set(&[&one])), "the same keys change nothing");
    assert!(check(&tokens, &first).is_ok());
    for _ in 0..10 {
        assert_eq!(check(&tokens, &second), Err(TokenFault::Key));
    }
    assert_eq!(rung.load(Ordering::Relaxed), 2, "it is rung once, however many come");
    assert!(tokens.take_wish(issuer) && !tokens.take_wish(issuer));
    tokens.set_keys(issuer, set(&[&one, &two]));
    assert!(check(&tokens, &first).is_ok() && check(&tokens, &second).is_ok());
    tokens.set_keys(issuer, set(&[&two]));
    assert_eq!(check(&tokens, &first), Err(TokenFault::Key), "though it was remembered");
    assert!(check(&tokens, &second).is_ok());
    // One that has no keys any more, and one of which nobody knows what it has.
    assert!(tokens.set_keys(issuer, set(&[])));
    assert_eq!((check(&tokens, &second), tokens.keys_of(issuer)), (Err(TokenFault::Key), 0));
    tokens.set_keys(issuer, set(&[&two]));
    assert!(check(&tokens, &second).is_ok());
    assert!(tokens.forget_keys(issuer) && !tokens.forget_keys(issuer));
    assert_eq!((check(&tokens, &second), tokens.keys_of(issuer)), (Err(TokenFault::NoKeys), 0));
}

#[test]
fn what_is_remembered_ends_with_the_token_and_is_bounded() {
    let ed = Signer::ed("d");
    let tokens = tokens(rules(), &[&ed]);
    let token = ed.good();
    let at = |now: u64| tokens.check(token.as_bytes(), now, &Known);
    assert!(at(NOW).is_ok() && at(NOW + 600 + SKEW - 1).is_ok());
    assert_eq!(at(NOW + 600 + SKEW), Err(TokenFault::Expired));
    for at in 0..1000 {
        let token = ed.token(|_, claims| claims["jti"] = at.into());
        assert!(check(&tokens, &token).is_ok());
    }
    // The first one was pushed out, and is verified again.
    assert!(at(NOW).is_ok());
}

#[test]
fn sets_of_keys_are_bounded_and_hold_what_can_be_used() {
    let (rsa, ec) = (Signer::rsa("r"), Signer::ec("e"));
    let parse = |keys: Value| KeySet::parse(json!({ "keys": keys }).to_string().as_bytes(), 3);
    assert_eq!(parse(json!([rsa.jwk(), ec.jwk()])).unwrap().len(), 2);
    let with = |signer: &Signer, name: &str, value: Value| {
        let mut jwk = signer.jwk();
        jwk[name] = value;
        jwk
    };
    for useless in [
        with(&rsa, "use", "enc".into()),
        with(&rsa, "alg", "RS512".into()),
        with(&rsa, "alg", "ES256".into()),
        with(&rsa, "key_ops", json!(["encrypt"])),
        with(&rsa, "d", "AQAB".into()),
        with(&rsa, "n", URL_SAFE_NO_PAD.encode([1; 128]).into()),
        with(&rsa, "n", URL_SAFE_NO_PAD.encode([1; 1025]).into()),
        with(&rsa, "e", "".into()),
        with(&rsa, "e", URL_SAFE_NO_PAD.encode([1]).into()),
        with(&rsa, "e", URL_SAFE_NO_PAD.encode([1, 0]).into()),
        with(&rsa, "e", URL_SAFE_NO_PAD.encode([3, 0, 0, 0, 1]).into()),
        with(&rsa, "n", URL_SAFE_NO_PAD.encode([2; 256]).into()),
        // It is on no curve.
        with(&ec, "x", URL_SAFE_NO_PAD.encode([1; 32]).into()),
        with(&rsa, "kid", "k".repeat(257).into()),
        with(&ec, "crv", "P-384".into()),
        with(&ec, "x", "AAAA".into()),
        json!({ "kty": "oct", "k": "c2VjcmV0" }),
        json!("text"),
    ] {
        assert!(parse(json!([useless])).unwrap().is_empty(), "{useless}");
        assert_eq!(parse(json!([useless, ec.jwk()])).unwrap().len(), 1);
    }
    assert_eq!(parse(json!(vec![ec.jwk(); 4])).unwrap_err(), JwksError::TooMany { actual: 4, most: 3 });
    for text in ["", "[]", "{}", "{\"keys\": {}}", "no JSON"] {
        assert_eq!(KeySet::parse(text.as_bytes(), 3).unwrap_err(), JwksError::Form, "{text}");
    }
    assert!(parse(json!([])).unwrap().is_empty(), "an issuer may have withdrawn all");
    // Zeros before a number change nothing.
    let long = |signer: &Signer, name: &str| {
        let number = URL_SAFE_NO_PAD.decode(signer.jwk()[name].as_str().unwrap()).unwrap();
        with(signer, name, URL_SAFE_NO_PAD.encode([&[0, 0], &number[..]].concat()).into())
    };
    for name in ["n", "e"] {
        let same = parse(json!([long(&rsa, name)])).unwrap();
        assert!(same.same_as(&parse(json!([rsa.jwk()])).unwrap()), "{name}");
    }
    // Neither does the order; a name that is empty is one.
    let unnamed = |kid: Option<&str>| {
        let mut jwk = ec.jwk();
        match kid {
            Some(kid) => jwk["kid"] = kid.into(),
            None => drop(jwk.as_object_mut().unwrap().remove("kid")),
        }
        parse(json!([jwk])).unwrap()
    };
    let turned = parse(json!([ec.jwk(), rsa.jwk()])).unwrap();
    assert!(turned.same_as(&parse(json!([rsa.jwk(), ec.jwk()])).unwrap()));
    assert!(!unnamed(None).same_as(&unnamed(Some(""))) && unnamed(None).same_as(&unnamed(None)));
    // Two of one name: which is meant is not said.
    let other = Signer::ec("e");
    let both = tokens(rules(), &[&ec, &other]);
    assert_eq!(check(&both, &ec.good()), Err(TokenFault::Key));
}

#[test]
fn a_discovery_document_is_of_the_issuer_itself() {
    let uri = |text: &str| jwks_uri(text.as_bytes(), ISSUER);
    let document = json!({ "issuer": ISSUER, "jwks_uri": "https://issuer.example/jwks" }).to_string();
    assert_eq!(uri(&document).unwrap(), "https://issuer.example/jwks");
    assert!(uri(&document.replace(ISSUER, "https://evil.example")).unwrap_err().contains("another issuer"));
    assert!(uri(&json!({ "issuer": ISSUER }).to_string()).unwrap_err().contains("jwks_uri"));
    assert!(uri("no JSON").is_err());
    assert!(uri(&document.replacen('{', "{\"issuer\": \"https://evil.example\",", 1)).is_err());
}

#[test]
fn tokens_of_this_machine_hold_as_long_as_the_key_that_they_were_given_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token-key.pem");
    let rules = LocalRules { issuer: "outrigger".into(), audience: "me".into(), lifetime: 1000 };
    let local = LocalIssuer::open(&path, Surroundings::Machine, rules.clone()).unwrap();
    let again = LocalIssuer::open(&path, Surroundings::Machine, rules.clone()).unwrap();
    assert_eq!(local.jwks(), again.jwks());
    assert!(!format!("{local:?}").contains("PRIVATE"));
    let mut tokens = Tokens::new(LIMITS).unwrap();
    let issuer = tokens.trust_local(&local);
    tokens.set_keys(issuer, local.key_set().unwrap());
    let (long, short, gone) =
        ("bob-s-long-key-0123456789", "bob-s-short-key-0123456789", "bob-s-gone-key-0123456789");
    let mut store = KeyStore::empty().unwrap();
    store.add("bob", None, &Secret::new(gone), 0, None).unwrap();
    store.add("bob", None, &Secret::new(short), 0, Some(NOW + 10)).unwrap();
    let before = Ring(KeyRing::of(None, Some(&store), [], |_| CallerId::new(4)).unwrap());
    store.regen("bob", Which::Primary, &Secret::new(long), 0, Lifetime::AsBefore).unwrap();
    let house = Ring(KeyRing::of(None, Some(&store), [], |_| CallerId::new(4)).unwrap());
    let issued = again.issue("bob", &house.held(long), NOW).unwrap();
    assert_eq!((issued.refresh_after, issued.expires), (NOW + 800, NOW + 1000));
    let at = |token: &Issued, now| tokens.check(token.token.expose().as_bytes(), now, &house);
    assert!(at(&issued, NOW).is_ok() && at(&issued, NOW + 999).is_ok());
    assert_eq!(at(&issued, NOW + 1000), Err(TokenFault::Expired));
    let of_short = again.issue("bob", &house.held(short), NOW).unwrap();
    assert_eq!((of_short.refresh_after, of_short.expires), (NOW + 8, NOW + 10));
    let revoked = again.issue("bob", &before.held(gone), NOW).unwrap();
    assert_eq!(at(&revoked, NOW), Err(TokenFault::Revoked));
    let stranger = again.issue("eve", &house.held(long), NOW).unwrap();
    assert_eq!(at(&stranger, NOW), Err(TokenFault::Principal));
    // What it names the key by is nothing that could be made of the key alone.
    let claims = issued.token.expose().split('.').nth(1).unwrap();
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    assert_eq!(claims["key"].as_str().unwrap().len(), 22);
    std::fs::remove_file(&path).unwrap();
    let other = LocalIssuer::open(&path, Surroundings::Machine, rules.clone())
        .unwrap()
        .issue("bob", &house.held(long), NOW)
        .unwrap();
    let other: Value = serde_json::from_slice(
        &URL_SAFE_NO_PAD.decode(other.token.expose().split('.').nth(1).unwrap()).unwrap(),
    )
    .unwrap();
    assert_ne!(other["key"], claims["key"]);

    // A key that is a group's, too, as a mounted secret is.
    let set = |mode| {
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    set(0o440);
    assert!(LocalIssuer::open(&path, Surroundings::Machine, rules.clone()).is_ok());
    set(0o444);
    assert!(LocalIssuer::open(&path, Surroundings::Machine, rules.clone()).is_err());
    assert!(LocalIssuer::open(&path, Surroundings::Container, rules.clone()).is_ok());
    set(0o600);
    std::fs::write(&path, "no key").unwrap();
    let error = LocalIssuer::open(&path, Surroundings::Machine, rules).unwrap_err().to_string();
    assert!(error.contains("holds no Ed25519 key"), "{error}");
}

#[test]
fn a_token_does_not_outlive_a_key_of_ones_own_that_was_changed() {
    let folder = tempfile::tempdir().unwrap();
    let local = LocalRules { issuer: "outrigger".into(), audience: "me".into(), lifetime: 1000 };
    let local =
        LocalIssuer::open(&folder.path().join("token-key.pem"), Surroundings::Machine, local).unwrap();
    let (leaked, fresh) = ("a-key-that-has-leaked-0123456789", "another-one-in-its-place-0123456789");
    let service = |key: &str| ResolvedKeys {
        primary: Secret::new(key),
        secondary: None,
        origin: KeyOrigin::FromFile("keys.toml".into()),
    };
    let keys = |key: &str| Keys { service: Some(service(key)), store: None };
    let bobs = |key: &str| {
        let bob = NamedCaller {
            name: "bob".into(),
            key: Some(Secret::new(key)),
            certificate: None,
            rules: CallerRules::default(),
        };
        PolicyConfig { mode: AuthMode::Both, named: vec![bob], ..PolicyConfig::default() }
    };
    let started = |service: &str, bob: &str| {
        let mut tokens = Tokens::new(LIMITS).unwrap();
        let issuer = tokens.trust_local(&local);
        tokens.set_keys(issuer, local.key_set().unwrap());
        let policy = Policy::with_keys(&keys(service), &bobs(bob), Instant::now()).unwrap();
        policy.with_tokens(Some(Arc::new(tokens)))
    };
    let bearer = |text: &str| {
        let value = HeaderValue::from_str(&format!("Bearer {text}")).unwrap();
        HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
    };
    let ask = |policy: &Policy, sent: &str| {
        let grant = policy.ask(&bearer(sent), Operation::Score, None, Instant::now());
        grant.map(|grant| grant.name().to_owned())
    };
    let revoked = Err(Refusal::Unauthenticated(AuthError::Token(TokenFault::Revoked)));
    let (service_s, bob_s) = ("the-service-s-own-0123456789", "bob-s-own-key-0123456789-abcd");

    // A file of keys that changes while the replica runs.
    let policy = started(leaked, bob_s);
    let held = policy.held(&bearer(leaked)).unwrap();
    let token = local.issue("primary", &held, wall_clock()).unwrap().token;
    assert_eq!(ask(&policy, token.expose()), Ok("primary".into()));
    policy.renew(&keys(leaked), &bobs(bob_s)).unwrap();
    assert_eq!(ask(&policy, token.expose()), Ok("primary".into()), "nothing has changed");
    assert!(policy.keys().iter().any(|key| key.used.is_some()));
    policy.renew(&keys(fresh), &bobs(bob_s)).unwrap();
    assert_eq!(ask(&policy, token.expose()), revoked);
    assert!(policy.keys().iter().all(|key| key.used.is_none()), "nobody has used the new one");

    // A key of the configuration that is another one after a new start; the same one is the same.
    let held = policy.held(&bearer(bob_s)).unwrap();
    let token = local.issue("bob", &held, wall_clock()).unwrap().token;
    assert_eq!(ask(&started(service_s, bob_s), token.expose()), Ok("bob".into()));
    assert_eq!(ask(&started(service_s, fresh), token.expose()), revoked);
}

#[test]
fn keys_and_tokens_exclude_each_other_unless_both_are_asked_for() {
    const KEY: &str = "bob-s.own.key-0123456789-abcd";
    let (ed, now) = (Signer::ed("d"), Instant::now());
    let bearer = |text: &str| {
        let value = HeaderValue::from_str(&format!("Bearer {text}")).unwrap();
        HeaderMap::from_iter([(http::header::AUTHORIZATION, value)])
    };
    let ask = |mode, operation, sent: &str| {
        let bob = NamedCaller {
            name: "bob".into(),
            key: Some(Secret::new(KEY)),
            certificate: None,
            rules: CallerRules::default(),
        };
        let config = PolicyConfig { mode, named: vec![bob], ..PolicyConfig::default() };
        let taken = Arc::new(tokens(IssuerRules { issuer: ISSUER.into(), ..rules() }, &[&ed]));
        let keys = Keys { service: None, store: Some(KeyStore::empty().unwrap()) };
        let policy = Policy::with_keys(&keys, &config, now).unwrap().with_tokens(Some(taken));
        policy.ask(&bearer(sent), operation, None, now).map(|grant| grant.name().to_owned())
    };
    // The clock of these is the real one, by which the tokens of the other tests begin in the future.
    let token = ed.token(|_, claims| {
        claims["exp"] = 4_000_000_000u64.into();
        claims["nbf"] = 0.into();
        claims["iat"] = 0.into();
    });
    let wrong = |fault| Err(Refusal::Unauthenticated(fault));
    let bob = || Ok("bob".to_owned());
    use AuthMode::{Both, Key, Token};
    assert_eq!(ask(Key, Operation::Score, KEY), bob());
    assert_eq!(ask(Key, Operation::Score, &token), wrong(AuthError::WrongKey));
    assert_eq!(ask(Token, Operation::Score, KEY), wrong(AuthError::Token(TokenFault::Form)));
    assert_eq!(ask(Token, Operation::Score, &token), bob());
    assert_eq!(ask(Both, Operation::Score, KEY), bob());
    assert_eq!(ask(Both, Operation::Score, &token), bob());
    assert_eq!(ask(Both, Operation::Score, "neither-of-both"), wrong(AuthError::WrongKey));
    for mode in [Key, Token, Both] {
        assert_eq!(ask(mode, Operation::Token, KEY), bob());
        assert_eq!(ask(mode, Operation::Token, &token), wrong(AuthError::WrongKey), "no token for a token");
    }
    let stranger = ed.token(|_, claims| {
        claims["sub"] = "eve".into();
        claims["nbf"] = 0.into();
        claims["iat"] = 0.into();
        claims["exp"] = 4_000_000_000u64.into();
    });
    let refused = ask(Both, Operation::Score, &stranger).unwrap_err();
    assert_eq!(outrigger_protocol::CallError::from(refused).code.status().as_u16(), 403);
    assert_eq!(refused.unknown(), Some(AuthError::Token(TokenFault::Principal)));
    for error in
        [AuthError::WrongKey, AuthError::Token(TokenFault::Audience), AuthError::Token(TokenFault::Signature)]
    {
        assert!(
            error.to_string().ends_with("in the header `Authorization` is not valid"),
            "no reason is told"
        );
    }
}

fn shared() -> &'static (Signer, Tokens) {
    static SHARED: std::sync::LazyLock<(Signer, Tokens)> = std::sync::LazyLock::new(|| {
        let signer = Signer::ed("d");
        let tokens = tokens(rules(), &[&signer]);
        (signer, tokens)
    });
    &SHARED
}

proptest! {
    /// Whatever comes is refused, and nothing panics.
    #[test]
    fn nothing_but_a_signed_token_gets_in(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(shared().1.check(&bytes, NOW, &Known).is_err());
    }

    /// A good token of which any one byte is another is refused.
    #[test]
    fn a_token_that_was_changed_is_refused(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (signer, tokens) = shared();
        let good = signer.good().into_bytes();
        let mut changed = good.clone();
        let place = place.index(changed.len());
        changed[place] = byte;
        prop_assume!(changed != good);
        prop_assert!(tokens.check(&changed, NOW, &Known).is_err());
    }

    /// What is in a token that is not signed by the issuer makes no difference.
    #[test]
    fn headers_and_claims_of_others_are_refused(header in "\\PC{0,60}", claims in "\\PC{0,60}") {
        let (signer, tokens) = shared();
        prop_assert!(tokens.check(signer.raw(&header, &claims).as_bytes(), NOW, &Known).is_err());
    }
}
