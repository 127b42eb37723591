//! How an issuer is asked for its keys: bounded in time and bytes, encrypted unless it is on this machine, and no answer sends us elsewhere.

use bytes::Bytes;
use outrigger_auth::jwks_uri;
use reqwest::header::ACCEPT;
use reqwest::redirect::Policy;
use url::Url;

use crate::config::{IssuerConfig, TokenPlace, TokensConfig, check_token_url};
use crate::with_causes;

/// Asks issuers.
pub(super) struct Client {
    /// Encrypted, through the proxy that the environment names, where it names one; why not, on a system that trusts nobody.
    out: Result<reqwest::Client, String>,
    /// In clear text on this machine.
    here: reqwest::Client,
    most: usize,
}

impl Client {
    pub(super) fn new(config: &TokensConfig) -> Result<Self, reqwest::Error> {
        let client = || {
            reqwest::Client::builder()
                .timeout(config.timeout)
                .redirect(Policy::none())
                .pool_max_idle_per_host(1)
                .user_agent(concat!("outrigger/", env!("CARGO_PKG_VERSION")))
        };
        let out = client().build().map_err(|error| {
            format!("no certificates of authorities (SSL_CERT_FILE): {}", with_causes(&error))
        });
        // Needs no authority, so it is there on a system that has none.
        let here = client().no_proxy().tls_certs_only([]).build()?;
        Ok(Self { out, here, most: config.document })
    }

    /// The issuer's keys, as it publishes them.
    ///
    /// # Errors
    /// What went wrong, for the log.
    pub(super) async fn keys(&self, issuer: &IssuerConfig) -> Result<Bytes, String> {
        let url = match &issuer.place {
            TokenPlace::Keys(url) => url.clone(),
            TokenPlace::Discovered(document_at) => {
                let document = self.get(document_at).await?;
                let uri = jwks_uri(&document, &issuer.rules.issuer).map_err(str::to_owned)?;
                named(document_at, &uri)?
            }
        };
        self.get(&url).await
    }

    async fn get(&self, url: &Url) -> Result<Bytes, String> {
        let client = match url.scheme() {
            "http" => &self.here,
            _ => self.out.as_ref().map_err(Clone::clone)?,
        };
        let said = |error: reqwest::Error| format!("{url}: {}", with_causes(&error.without_url()));
        let mut response =
            client.get(url.clone()).header(ACCEPT, "application/json").send().await.map_err(said)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(format!("{url}: it answers {}", response.status()));
        }
        let too_large = || format!("{url}: the answer is larger than {} bytes (tokens.document)", self.most);
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(said)? {
            if body.len() + piece.len() > self.most {
                return Err(too_large());
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.into())
    }
}

/// Where the keys are that a discovery document names. What came encrypted sends nobody to where things do not.
fn named(document: &Url, uri: &str) -> Result<Url, String> {
    let url = check_token_url(uri).map_err(|problem| format!("jwks_uri: {problem}"))?;
    if url.scheme() != "https" && document.scheme() == "https" {
        return Err(format!("jwks_uri: `{uri}` begins with http://, and the issuer itself with https://"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issuer_elsewhere_sends_nobody_to_this_machine() {
        let check = |document: &str, uri: &str, expected: Option<&str>| {
            let named = named(&Url::parse(document).unwrap(), uri);
            assert_eq!(named.as_ref().ok().map(Url::as_str), expected, "{document} {uri}: {named:?}");
        };
        check("https://a.example/d", "https://b.example/jwks", Some("https://b.example/jwks"));
        check("http://127.0.0.1:1/d", "http://127.0.0.1:2/jwks", Some("http://127.0.0.1:2/jwks"));
        check("http://127.0.0.1:1/d", "https://b.example/jwks", Some("https://b.example/jwks"));
        check("https://a.example/d", "http://127.0.0.1:5001/jwks", None);
        check("https://a.example/d", "http://localhost/jwks", None);
        check("https://a.example/d", "http://b.example/jwks", None);
    }

    #[test]
    fn a_system_without_authorities_still_asks_on_this_machine() {
        let bare = reqwest::Client::builder().no_proxy().tls_certs_only([]).build();
        assert!(bare.is_ok(), "{bare:?}");
    }
}
