//! `[tokens]`: whose tokens are taken, and which the replica gives itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_auth::{
    Algorithm, AuthMode, CallerRules, IssuerRules, LocalRules, PolicyConfig, Principals, Surroundings,
    TokenLimits, is_caller_name,
};
use url::{Host, Url};

use super::getter::Getter;
use super::key::{
    self, ISSUER_ALGORITHMS, ISSUER_AUDIENCES, ISSUER_CALLER, ISSUER_CALLERS, ISSUER_CLAIM, ISSUER_ISSUER,
    ISSUER_JWKS, ISSUER_ROLES, ISSUER_SCOPES, Key,
};
use super::layers::NamedSection;
use super::value::Value;
use super::{Mistake, Origin, Settings, Sources, container, suggestion};

/// The most issuers: each is asked for its keys again and again.
const MAX_ISSUERS: usize = 16;
/// Beyond this it is no difference of clocks any more.
const MAX_SKEW: Duration = Duration::from_secs(600);
/// Callers that no token is of.
const NOBODYS: [&str; 2] = ["anonymous", "local"];

/// `[tokens]`.
#[derive(Clone, Debug)]
pub struct TokensConfig {
    /// The issuer that the replica is itself.
    pub local: Option<LocalConfig>,
    /// The others.
    pub issuers: Vec<IssuerConfig>,
    /// Limits on what is sent.
    pub limits: TokenLimits,
    /// How often issuers are asked.
    pub refresh: Duration,
    /// How long keys hold that an issuer has not stood by since.
    pub max_age: Duration,
    /// Shortest time between two questions.
    pub retry: Duration,
    /// Time limit of one.
    pub timeout: Duration,
    /// Largest answer, bytes.
    pub document: usize,
    /// Most keys of one issuer.
    pub keys: usize,
    /// Where the keys of issuers are kept, for a start while one is down.
    pub folder: PathBuf,
}

/// The issuer that the replica is itself.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// What its tokens say.
    pub rules: LocalRules,
    /// The file with its key.
    pub signing_key: PathBuf,
    /// Where that file is.
    pub surroundings: Surroundings,
}

/// An issuer.
#[derive(Clone, Debug)]
pub struct IssuerConfig {
    /// What is asked of its tokens.
    pub rules: IssuerRules,
    /// Its discovery document, or its keys.
    pub place: Place,
}

/// Where an issuer's keys are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where this document says.
    Discovered(Url),
    /// Here.
    Keys(Url),
}

/// Checks the name of an issuer: that of a caller could be the same, and it stands in labels and names of files.
pub(super) fn check_issuer_name(name: &str) -> Result<(), String> {
    if is_caller_name(name) && name != "local" {
        return Ok(());
    }
    Err(format!(
        "`{name}` is no issuer's name: a lower-case letter, then lower-case letters, digits or `-`, 63 at most, and not `local`, which is the replica itself"
    ))
}

/// Whether an address is one that keys may be fetched from: encrypted, or on this machine.
pub(crate) fn check_url(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|_| format!("`{text}` is no URL"))?;
    let here = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => return Err(format!("`{text}` names no host")),
    };
    if !url.username().is_empty() || url.password().is_some() || url.fragment().is_some() {
        return Err("it has a user or a fragment, and may have neither".into());
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if here => Ok(url),
        _ => Err(format!("`{text}` begins neither with https:// nor, on this machine, with http://")),
    }
}

/// Reads the section; nothing where no tokens are taken.
pub(super) fn tokens(
    settings: &Settings,
    sources: &Sources,
    state_dir: &Path,
) -> (AuthMode, Option<TokensConfig>, Vec<Mistake>) {
    let mut builder = Builder { settings, get: Getter { settings }, mistakes: Vec::new() };
    let mode = asked_for(settings);
    let config = builder.tokens(state_dir, container::surroundings(settings, sources));
    builder.contradictions(mode, &config);
    let mode = self::mode(settings);
    (mode, (mode != AuthMode::Key).then_some(config), builder.mistakes)
}

/// What is taken that says who calls.
pub(super) fn mode(settings: &Settings) -> AuthMode {
    // A command that asks for no key takes the configuration of a service that does.
    let is_asked = (Getter { settings }).flag(key::AUTH_ENABLED);
    if is_asked { asked_for(settings) } else { AuthMode::Key }
}

fn asked_for(settings: &Settings) -> AuthMode {
    match (Getter { settings }).text(key::AUTH_MODE).as_str() {
        "token" => AuthMode::Token,
        "both" => AuthMode::Both,
        _ => AuthMode::Key,
    }
}

/// Which keys of the configuration are good for nothing, to be said.
pub(super) fn dead_keys(
    settings: &Settings,
    callers: &PolicyConfig,
    tokens: Option<&TokensConfig>,
) -> Vec<String> {
    if callers.mode != AuthMode::Token || tokens.is_some_and(|tokens| tokens.local.is_some()) {
        return Vec::new();
    }
    let service = [key::AUTH_PRIMARY_KEY, key::AUTH_SECONDARY_KEY];
    let service = service.into_iter().filter(|key| settings.keys.contains_key(key.name));
    let named = callers.named.iter().filter(|caller| caller.key.is_some());
    let names = service.map(|key| key.name.to_owned());
    let names = names.chain(named.map(|caller| format!("callers.{}.key", caller.name)));
    let say = |name| {
        format!(
            "`{name}` is good for nothing: `auth.mode = \"token\"` takes no keys, and `tokens.local`, which would give tokens for them, is off"
        )
    };
    names.map(say).collect()
}

/// Whether anybody could manage the replica over TCP.
pub(super) fn can_manage(callers: &PolicyConfig, tokens: Option<&TokensConfig>) -> bool {
    let Some(tokens) = tokens.filter(|tokens| callers.mode == AuthMode::Token && tokens.local.is_none())
    else {
        return true;
    };
    let manages = |rules: &CallerRules| rules.operations.iter().any(|operation| operation.administrative());
    let has_token = |name: &str| tokens.issuers.iter().any(|issuer| issuer.rules.principals.may_be(name));
    let named = callers.named.iter().filter(|caller| caller.certificate.is_some() || has_token(&caller.name));
    let built_in = [("primary", &callers.primary), ("secondary", &callers.secondary)];
    let built_in = built_in.into_iter().filter(|(name, _)| has_token(name)).map(|(_, rules)| rules);
    named.map(|caller| &caller.rules).chain(built_in).any(manages)
}

struct Builder<'a> {
    settings: &'a Settings,
    get: Getter<'a>,
    mistakes: Vec<Mistake>,
}

impl Builder<'_> {
    fn mistake(&mut self, key: &Key, problem: String) {
        let origin =
            self.settings.keys.get(key.name).map_or(Origin::Default, |setting| setting.origin.clone());
        self.mistakes.push(Mistake { origin: origin.to_string(), problem });
    }

    fn contradictions(&mut self, mode: AuthMode, config: &TokensConfig) {
        let none = config.local.is_none() && self.settings.issuers.is_empty();
        match (mode, none) {
            (AuthMode::Key, false) => {
                let (key, what) = match config.local {
                    Some(_) => (key::TOKENS_LOCAL, "`tokens.local` is set"),
                    None => (key::AUTH_MODE, "[tokens.issuers.NAME] is there"),
                };
                let problem = format!(
                    "{what}, and `auth.mode = \"key\"` takes no tokens: set `auth.mode` to `token`, or to `both`"
                );
                self.mistake(key, problem);
            }
            (AuthMode::Token | AuthMode::Both, true) => {
                let problem = "`auth.mode` takes tokens, and nobody gives any: set `tokens.local = true`, or [tokens.issuers.NAME]";
                self.mistake(key::AUTH_MODE, problem.into());
            }
            _ => {}
        }
        let enabled = self.settings.keys.get(key::AUTH_ENABLED.name);
        let off = enabled
            .is_some_and(|setting| setting.value == Value::Flag(false) && setting.origin != Origin::Preset);
        if mode != AuthMode::Key && off {
            let problem = "`auth.mode` says that tokens are taken, and `auth.enabled = false` that nobody is asked for one";
            self.mistake(key::AUTH_MODE, problem.into());
        }
    }

    fn tokens(&mut self, state_dir: &Path, surroundings: Surroundings) -> TokensConfig {
        let settings = self.settings;
        let issuers: Vec<_> =
            settings.issuers.iter().filter_map(|(name, section)| self.issuer(name, section)).collect();
        for (at, issuer) in issuers.iter().enumerate() {
            let same = |other: &&IssuerConfig| other.rules.issuer == issuer.rules.issuer;
            if let Some(first) = issuers.iter().take(at).find(same) {
                let (first, other) = (&first.rules.name, &issuer.rules.name);
                let problem = format!("[tokens.issuers.{first}] and [tokens.issuers.{other}] are one issuer");
                self.mistakes.push(Mistake { origin: Origin::Default.to_string(), problem });
            }
        }
        if settings.issuers.len() > MAX_ISSUERS {
            let problem = format!("{} issuers are named, {MAX_ISSUERS} are the most", settings.issuers.len());
            self.mistake(key::AUTH_MODE, problem);
        }
        if self.get.duration(key::TOKENS_SKEW) > MAX_SKEW {
            let problem =
                "`tokens.skew` is more than 10m: set the clocks, or tokens hold on long after their end";
            self.mistake(key::TOKENS_SKEW, problem.into());
        }
        if self.get.duration(key::TOKENS_MAX_AGE) < self.get.duration(key::TOKENS_REFRESH) {
            let problem = "`tokens.max_age` is shorter than `tokens.refresh`, so keys could end before anybody asks for them again";
            self.mistake(key::TOKENS_MAX_AGE, problem.into());
        }
        let local = self.get.flag(key::TOKENS_LOCAL).then(|| self.local(state_dir, surroundings));
        if let Some(local) = &local
            && let Some(same) = issuers.iter().find(|issuer| issuer.rules.issuer == local.rules.issuer)
        {
            let problem =
                format!("`tokens.issuer` is what [tokens.issuers.{}] calls itself", same.rules.name);
            self.mistake(key::TOKENS_ISSUER, problem);
        }
        TokensConfig {
            local,
            issuers,
            limits: TokenLimits {
                bytes: self.get.size(key::TOKENS_BYTES),
                skew: self.get.duration(key::TOKENS_SKEW).as_secs(),
                remembered: self.get.count(key::TOKENS_REMEMBERED),
            },
            refresh: self.get.duration(key::TOKENS_REFRESH),
            max_age: self.get.duration(key::TOKENS_MAX_AGE),
            retry: self.get.duration(key::TOKENS_RETRY),
            timeout: self.get.duration(key::TOKENS_TIMEOUT),
            document: self.get.size(key::TOKENS_DOCUMENT),
            keys: self.get.count(key::TOKENS_KEYS),
            folder: state_dir.join("issuers"),
        }
    }

    fn local(&mut self, state_dir: &Path, surroundings: Surroundings) -> LocalConfig {
        let text = |key: &Key| self.get.text(key);
        let audience = Some(text(key::TOKENS_AUDIENCE)).filter(|text| !text.is_empty());
        let rules = LocalRules {
            issuer: text(key::TOKENS_ISSUER),
            audience: audience.unwrap_or_else(|| text(key::SERVICE_NAME)),
            lifetime: self.get.duration(key::TOKENS_LIFETIME).as_secs(),
        };
        let path = self.get.path(key::TOKENS_SIGNING_KEY);
        if rules.lifetime == 0 {
            self.mistake(key::TOKENS_LIFETIME, "`tokens.lifetime` is less than a second".into());
        }
        if rules.issuer.is_empty() {
            self.mistake(key::TOKENS_ISSUER, "`tokens.issuer` is empty".into());
        }
        let signing_key = path.unwrap_or_else(|| state_dir.join("token-key.pem"));
        LocalConfig { rules, signing_key, surroundings }
    }

    fn issuer(&mut self, name: &str, table: &NamedSection) -> Option<IssuerConfig> {
        let text = |key: &Key| match table.section.get(key.name).map(|setting| &setting.value) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        };
        let list = |key: &Key| match table.section.get(key.name).map(|setting| &setting.value) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        };
        let before = self.mistakes.len();
        let mut wrong = |key: &Key, problem: String| {
            let origin = table.section.get(key.name).map_or(&table.origin, |setting| &setting.origin);
            let problem = format!("`tokens.issuers.{name}.{}`: {problem}", key.name);
            self.mistakes.push(Mistake { origin: origin.to_string(), problem });
        };
        let issuer = text(ISSUER_ISSUER).unwrap_or_default();
        let mut url = |key: &Key, text: &str| check_url(text).map_err(|problem| wrong(key, problem)).ok();
        let place = match text(ISSUER_JWKS) {
            Some(uri) => url(ISSUER_JWKS, &uri).map(Place::Keys),
            None => {
                let document = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
                url(ISSUER_ISSUER, &issuer).and_then(|_| Url::parse(&document).ok()).map(Place::Discovered)
            }
        };
        let audiences = list(ISSUER_AUDIENCES);
        if issuer.is_empty() {
            wrong(ISSUER_ISSUER, "it is missing".into());
        }
        if audiences.is_empty() {
            wrong(ISSUER_AUDIENCES, "it is missing: tokens for anybody would be taken".into());
        }
        let mut algorithms = Vec::new();
        for name in list(ISSUER_ALGORITHMS) {
            match Algorithm::from_name(&name) {
                Some(algorithm) => algorithms.push(algorithm),
                None => {
                    let known = Algorithm::ALL.map(Algorithm::as_str);
                    let near = suggestion(&name, known.into_iter());
                    wrong(
                        ISSUER_ALGORITHMS,
                        format!("there is no `{name}`{near}; there are {}", known.join(", ")),
                    );
                }
            }
        }
        if algorithms.is_empty() {
            algorithms = Algorithm::ALL.to_vec();
        }
        let settings = self.settings;
        let known = |caller: &str| {
            let built_in = ["primary", "secondary"].contains(&caller);
            (built_in || settings.callers.contains_key(caller)) && !NOBODYS.contains(&caller)
        };
        let mut principals = Principals { others: text(ISSUER_CALLER), ..Principals::default() };
        if let Some(caller) = principals.others.as_deref().filter(|caller| !known(caller)) {
            wrong(ISSUER_CALLER, format!("there is no [callers.{caller}]"));
        }
        for item in list(ISSUER_CALLERS) {
            match item.rsplit_once('=') {
                Some((value, caller)) if known(caller) => {
                    if principals.by_value.insert(value.to_owned(), caller.to_owned()).is_some() {
                        wrong(ISSUER_CALLERS, format!("`{value}` is there twice"));
                    }
                }
                Some((_, caller)) => wrong(ISSUER_CALLERS, format!("there is no [callers.{caller}]")),
                None => wrong(ISSUER_CALLERS, format!("`{item}` is not CLAIM=NAME")),
            }
        }
        if self.mistakes.len() > before {
            return None;
        }
        let rules = IssuerRules {
            name: name.to_owned(),
            issuer,
            audiences,
            algorithms,
            scopes: list(ISSUER_SCOPES),
            roles: list(ISSUER_ROLES),
            claim: text(ISSUER_CLAIM).unwrap_or_else(|| ISSUER_CLAIM.default.into()),
            principals,
        };
        Some(IssuerConfig { rules, place: place? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_encrypted_or_from_this_machine() {
        for good in [
            "https://a.example",
            "https://a.example/x/",
            "http://127.0.0.1:9",
            "http://localhost:9/x",
            "http://[::1]/",
        ] {
            assert!(check_url(good).is_ok(), "{good}");
        }
        for bad in [
            "http://a.example",
            "http://127.0.0.1.a.example",
            "http://localhost.a.example",
            "file:///etc/passwd",
            "a.example",
            "",
            "https://user:hush@a.example",
            "https://a.example/#x",
            "unix:/run/x",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }
}
