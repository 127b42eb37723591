//! Which environment variables a worker keeps.
//!
//! Taken out: the replica's own settings, and what is a credential by its name or its value. Everything else stays, because
//! scripts are configured by their environment. `LD_PRELOAD` and `LD_LIBRARY_PATH` stay too: they come from the operator,
//! images use them (for jemalloc, tcmalloc, CUDA), and they give a worker nothing that it could not load by itself.

use std::ffi::{OsStr, OsString};

/// What [`scrub`] has decided.
#[derive(Clone, Debug, Default)]
pub struct Scrubbed {
    /// What the worker gets.
    pub kept: Vec<(OsString, OsString)>,
    /// Names of what it does not get, sorted. Values are never shown.
    pub dropped: Vec<String>,
}

/// How strictly the environment is cleaned.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules<'a> {
    /// Names that the operator wants kept whatever they look like. The replica's own (`OUTRIGGER_…`) are not among what can
    /// be kept.
    pub keep: &'a [String],
    /// AzureML's documented variables stay (`AML_APP_INSIGHTS_KEY`, `AML_MODEL_DC_STORAGE` and so on): scripts that were
    /// written for AzureML read them.
    pub compat: bool,
}

/// Words that make a name a credential's, as a part of it between underscores.
const SECRET_WORDS: &[&str] = &[
    "TOKEN",
    "TOKENS",
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "PASS",
    "PWD",
    "SECRET",
    "SECRETS",
    "APIKEY",
    "CREDENTIAL",
    "CREDENTIALS",
    "SAS",
    "PAT",
    "DSN",
];

/// Endings that make a name a credential's.
const SECRET_ENDINGS: &[&str] = &[
    "_API_KEY",
    "_ACCESS_KEY",
    "_ACCESS_KEY_ID",
    "_ACCOUNT_KEY",
    "_AUTH_KEY",
    "_CLIENT_KEY",
    "_ENCRYPTION_KEY",
    "_INSTRUMENTATION_KEY",
    "_INSTRUMENTATIONKEY",
    "_MASTER_KEY",
    "_PRIVATE_KEY",
    "_PRIMARY_KEY",
    "_SECONDARY_KEY",
    "_SERVICE_KEY",
    "_SHARED_KEY",
    "_SIGNING_KEY",
    "_STORAGE_KEY",
    "_SUBSCRIPTION_KEY",
    "_CONNECTION_STRING",
    "_CONNECTIONSTRING",
    "_CONN_STR",
    "_DATABASE_URL",
    "_AUTH",
];

/// Whole names.
const SECRET_NAMES: &[&str] = &[
    "API_KEY",
    "CONNECTION_STRING",
    "DATABASE_URL",
    "REDIS_URL",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "AML_APP_INSIGHTS_KEY",
    "AML_MODEL_DC_STORAGE",
    "AML_MODEL_DC_EVENT_HUB",
    "IDENTITY_HEADER",
    "MSI_SECRET",
    "KUBECONFIG",
    "NETRC",
    "SSH_AUTH_SOCK",
    "SSH_AGENT_PID",
    "GPG_AGENT_INFO",
    "DBUS_SESSION_BUS_ADDRESS",
    "DOCKER_AUTH_CONFIG",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CONFIG_FILE",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "APPLICATIONINSIGHTS_CONNECTION_STRING",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_LOGS_HEADERS",
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "PGPASSFILE",
    "PGPASSWORD",
    "MYSQL_PWD",
];

/// Beginnings.
const SECRET_BEGINNINGS: &[&str] = &["AZURE_STORAGE_"];

/// Names that look like credentials and are none.
const HARMLESS: &[&str] = &["PWD", "OLDPWD", "TOKENIZERS_PARALLELISM"];

/// What a value looks like that carries a credential, whatever its name.
const SECRET_VALUES: &[&str] = &[
    "AccountKey=",
    "SharedAccessKey=",
    "SharedAccessSignature=",
    "InstrumentationKey=",
    "-----BEGIN ",
    "&sig=",
    "?sig=",
];

/// Divides an environment into what a worker keeps and what is kept from it.
///
/// Names that are not Unicode are dropped. Names are compared without regard to case.
pub fn scrub(environment: impl IntoIterator<Item = (OsString, OsString)>, rules: Rules<'_>) -> Scrubbed {
    let mut scrubbed = Scrubbed::default();
    for (name, value) in environment {
        if keeps(&name, &value, rules) {
            scrubbed.kept.push((name, value));
        } else {
            scrubbed.dropped.push(name.to_string_lossy().into_owned());
        }
    }
    scrubbed.dropped.sort();
    scrubbed
}

fn keeps(name: &OsStr, value: &OsStr, rules: Rules<'_>) -> bool {
    let Some(name) = name.to_str() else { return false };
    let upper = name.to_ascii_uppercase();
    if upper.starts_with("OUTRIGGER_") {
        return false;
    }
    if rules.keep.iter().any(|kept| kept == name) || (rules.compat && documented_by_azureml(&upper)) {
        return true;
    }
    !is_secret_name(&upper) && !is_secret_value(&value.to_string_lossy())
}

fn documented_by_azureml(name: &str) -> bool {
    name.starts_with("AML_") || name.starts_with("AZUREML_")
}

fn is_secret_name(name: &str) -> bool {
    if HARMLESS.contains(&name) {
        return false;
    }
    SECRET_NAMES.contains(&name)
        || SECRET_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning))
        || SECRET_ENDINGS.iter().any(|ending| name.ends_with(ending))
        || name.split('_').any(|word| SECRET_WORDS.contains(&word))
        || (name.starts_with("AZURE_") && name.ends_with("KEY"))
}

fn is_secret_value(value: &str) -> bool {
    SECRET_VALUES.iter().any(|mark| value.contains(mark)) || url_with_password(value)
}

/// `scheme://user:password@host`.
fn url_with_password(value: &str) -> bool {
    let Some((scheme, rest)) = value.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.');
    let user = authority.rsplit_once('@').map(|(user, _)| user);
    scheme.chars().all(plain)
        && user.is_some_and(|user| user.split_once(':').is_some_and(|(_, pass)| !pass.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(name: &str, value: &str, rules: Rules<'_>) -> bool {
        let scrubbed = scrub([(name.into(), value.into())], rules);
        assert_eq!(scrubbed.kept.len() + scrubbed.dropped.len(), 1, "{name}");
        scrubbed.kept.len() == 1
    }

    #[test]
    fn what_stays() {
        let cases = [
            ("PATH", "/usr/bin"),
            ("HOME", "/home/user"),
            ("PWD", "/work"),
            ("OLDPWD", "/"),
            ("LANG", "C.UTF-8"),
            ("LD_PRELOAD", "/usr/lib/libjemalloc.so"),
            ("LD_LIBRARY_PATH", "/opt/lib"),
            ("PYTHONPATH", "/a:/b"),
            ("CUDA_VISIBLE_DEVICES", "0,1"),
            ("OMP_NUM_THREADS", "4"),
            ("AZUREML_MODEL_DIR", "/var/azureml-app/azureml-models"),
            ("AML_APP_ROOT", "/var/azureml-app"),
            ("AZURE_CLIENT_ID", "1234"),
            ("AZURE_TENANT_ID", "1234"),
            ("TOKENIZERS_PARALLELISM", "false"),
            ("MAX_TOKENIZER_LENGTH", "12"),
            ("KEYBOARD", "us"),
            ("AUTHOR", "someone"),
            ("MODEL_KEY_COLUMN", "id"),
            ("MONKEY", "yes"),
            ("COMPASS", "north"),
            ("HTTP_PROXY", "http://proxy:3128"),
            ("SERVICE_URL", "https://host/path?x=a:b@c"),
            ("EMAIL", "user@example.org"),
        ];
        for (name, value) in cases {
            assert!(kept(name, value, Rules::default()), "{name}");
        }
    }

    #[test]
    fn what_goes() {
        let cases = [
            ("OUTRIGGER_AUTH_KEYS", "x"),
            ("outrigger_anything", "x"),
            ("AWS_SECRET_ACCESS_KEY", "x"),
            ("AWS_ACCESS_KEY_ID", "x"),
            ("AWS_SESSION_TOKEN", "x"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "/x"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/x"),
            ("AZURE_CLIENT_SECRET", "x"),
            ("AZURE_PASSWORD", "x"),
            ("AZURE_STORAGE_KEY", "x"),
            ("AZURE_STORAGE_ACCOUNT", "x"),
            ("AZURE_STORAGE_CONNECTION_STRING", "x"),
            ("AZURE_STORAGE_SAS_TOKEN", "x"),
            ("AZURE_COSMOSKEY", "x"),
            ("GOOGLE_APPLICATION_CREDENTIALS", "/x.json"),
            ("IDENTITY_HEADER", "x"),
            ("MSI_SECRET", "x"),
            ("HF_TOKEN", "x"),
            ("GITHUB_TOKEN", "x"),
            ("github_token", "x"),
            ("DB_PASSWORD", "x"),
            ("PGPASSWORD", "x"),
            ("POSTGRES_PASS", "x"),
            ("OPENAI_API_KEY", "x"),
            ("TLS_PRIVATE_KEY", "x"),
            ("APPLICATIONINSIGHTS_CONNECTION_STRING", "x"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x"),
            ("AML_APP_INSIGHTS_KEY", "x"),
            ("SSH_AUTH_SOCK", "/run/agent"),
            ("STORAGE", "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=abc=="),
            ("INPUT_URL", "https://a.example/b?sv=1&sig=abc"),
            ("BROKER", "amqp://user:secret@host:5672/"),
            ("CERTIFICATE", "-----BEGIN PRIVATE KEY-----\nabc"),
        ];
        for (name, value) in cases {
            assert!(!kept(name, value, Rules::default()), "{name}");
        }
    }

    #[test]
    fn the_operator_keeps_what_he_names_but_not_the_replicas_own() {
        let keep = ["HF_TOKEN".to_owned(), "OUTRIGGER_AUTH_KEYS".to_owned()];
        let rules = Rules { keep: &keep, compat: false };
        assert!(kept("HF_TOKEN", "x", rules));
        assert!(!kept("GITHUB_TOKEN", "x", rules));
        assert!(!kept("OUTRIGGER_AUTH_KEYS", "x", rules));
    }

    #[test]
    fn azuremls_own_stay_under_compat_alone() {
        let compat = Rules { keep: &[], compat: true };
        for name in ["AML_APP_INSIGHTS_KEY", "AML_MODEL_DC_STORAGE"] {
            assert!(
                kept(name, "AccountKey=x", compat) && !kept(name, "AccountKey=x", Rules::default()),
                "{name}"
            );
        }
        assert!(!kept("AZURE_CLIENT_SECRET", "x", compat));
    }

    #[test]
    fn names_alone_are_told_sorted() {
        let environment = [("Z_TOKEN", "1"), ("A_TOKEN", "2"), ("PATH", "/bin")];
        let scrubbed = scrub(environment.map(|(name, value)| (name.into(), value.into())), Rules::default());
        assert_eq!(scrubbed.dropped, ["A_TOKEN", "Z_TOKEN"]);
    }
}
