//! What Azure's storage is reached with, beyond what its client reads by itself: connection strings, and the signature in a URL.

use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use url::Url;

use super::{Environment, bare};

/// What the portal gives to copy: account, key and endpoint in one text.
const CONNECTION_STRING: &str = "AZURE_STORAGE_CONNECTION_STRING";
/// Where managed identities are asked for, as its services set it.
const IDENTITY_ENDPOINT: &str = "IDENTITY_ENDPOINT";

/// Gives a builder what the environment and the URL have. What is said in more than one place is taken from the URL, else from the variable that is about
/// it alone.
pub(super) fn configure(
    mut builder: MicrosoftAzureBuilder,
    url: &Url,
    environment: &Environment,
    variables: impl Iterator<Item = (String, String)>,
) -> MicrosoftAzureBuilder {
    let connection = environment.get(CONNECTION_STRING).unwrap_or_default();
    let field = |wanted: &str| fields(connection).find(|(name, _)| *name == wanted).map(|(_, value)| value);
    // Of clouds that are not everybody's.
    if let (Some(account), Some(suffix), None) =
        (field("AccountName"), field("EndpointSuffix"), field("BlobEndpoint"))
    {
        builder = builder.with_config(AzureConfigKey::Endpoint, format!("https://{account}.blob.{suffix}"));
    }
    for (name, value) in environment.get(CONNECTION_STRING).into_iter().flat_map(fields) {
        let key = match name {
            "AccountName" => AzureConfigKey::AccountName,
            "AccountKey" => AzureConfigKey::AccessKey,
            "SharedAccessSignature" => AzureConfigKey::SasKey,
            "BlobEndpoint" => AzureConfigKey::Endpoint,
            "UseDevelopmentStorage" => AzureConfigKey::UseEmulator,
            _ => continue,
        };
        // The emulator's endpoint has no TLS.
        if key == AzureConfigKey::Endpoint && value.starts_with("http://") {
            builder = builder.with_allow_http(true);
        }
        builder = builder.with_config(key, value);
    }
    if let Some(endpoint) = environment.get(IDENTITY_ENDPOINT) {
        builder = builder.with_config(AzureConfigKey::MsiEndpoint, endpoint);
    }
    for (name, value) in variables {
        if let Ok(key) = name.parse() {
            builder = builder.with_config(key, value);
        }
    }
    if let Some(signature) = url.query().filter(|query| query.contains("sig=")) {
        builder = builder.with_config(AzureConfigKey::SasKey, signature);
        // Else a key, or an identity, of the environment's would go before it.
        builder = builder.with_config(AzureConfigKey::CredentialType, "sas_token");
    }
    builder.with_url(bare(url))
}

/// `name=value` between semicolons; values may have `=` in them.
pub(super) fn fields(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split(';').filter_map(|field| field.trim().split_once('='))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured(url: &str, environment: &[(&str, &str)]) -> MicrosoftAzureBuilder {
        let url = Url::parse(url).expect("a URL");
        let environment: Environment = environment.iter().copied().collect();
        let variables = super::super::variables(&environment, "AZURE_");
        configure(MicrosoftAzureBuilder::new(), &url, &environment, variables)
    }

    #[test]
    fn a_connection_string_has_all_there_is() {
        let text = "DefaultEndpointsProtocol=https;AccountName=acc;AccountKey=a2V5PT0=;EndpointSuffix=core.windows.net;BlobEndpoint=http://127.0.0.1:1/acc;";
        let builder = configured("az://models/a", &[(CONNECTION_STRING, text)]);
        let value = |key| builder.get_config_value(&key);
        assert_eq!(value(AzureConfigKey::AccountName).as_deref(), Some("acc"));
        assert_eq!(value(AzureConfigKey::AccessKey).as_deref(), Some("a2V5PT0="));
        assert_eq!(value(AzureConfigKey::Endpoint).as_deref(), Some("http://127.0.0.1:1/acc"));
        builder.build().expect("a client");
    }

    #[test]
    fn what_is_nearer_counts() {
        let builder = configured(
            "https://other.blob.core.windows.net/models?sv=1&sig=abc",
            &[
                (CONNECTION_STRING, "AccountName=acc;AccountKey=a2V5"),
                ("AZURE_STORAGE_ACCOUNT_KEY", "bmVhcmVy"),
                (IDENTITY_ENDPOINT, "http://127.0.0.1:2/msi"),
            ],
        );
        let value = |key| builder.get_config_value(&key);
        assert_eq!(value(AzureConfigKey::AccessKey).as_deref(), Some("bmVhcmVy"));
        assert_eq!(value(AzureConfigKey::MsiEndpoint).as_deref(), Some("http://127.0.0.1:2/msi"));
        assert!(value(AzureConfigKey::SasKey).is_some_and(|signature| signature.contains("sig=abc")));
        assert_eq!(value(AzureConfigKey::CredentialType).as_deref(), Some("sas_token"));
    }

    #[test]
    fn clouds_of_their_own_are_found_by_their_suffix() {
        let text = "AccountName=acc;AccountKey=a2V5;EndpointSuffix=core.chinacloudapi.cn";
        let builder = configured("az://models/a", &[(CONNECTION_STRING, text)]);
        let endpoint = builder.get_config_value(&AzureConfigKey::Endpoint);
        assert_eq!(endpoint.as_deref(), Some("https://acc.blob.core.chinacloudapi.cn"));
    }
}
