//! How an issuer is asked for its keys: bounded in time and bytes, encrypted unless it is on this machine, and no answer sends us elsewhere.

use bytes::Bytes;
use outrigger_auth::jwks_uri;
use reqwest::header::ACCEPT;
use reqwest::redirect::Policy;
use url::Url;

use crate::config::{IssuerConfig, TokenPlace, TokensConfig, check_token_url};

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
            TokenPlace::Discovered(document) => {
                let document = self.get(document).await?;
                let uri = jwks_uri(&document, &issuer.rules.issuer).map_err(str::to_owned)?;
                check_token_url(&uri).map_err(|problem| format!("jwks_uri: {problem}"))?
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

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(&format!(": {error}"));
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_system_without_authorities_still_asks_on_this_machine() {
        let bare = reqwest::Client::builder().no_proxy().tls_certs_only([]).build();
        assert!(bare.is_ok(), "{bare:?}");
    }
}
