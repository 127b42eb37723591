//! `[callers.NAME]`: who may do what, how often, and how many calls at once.

use std::num::NonZeroU32;

use outrigger_auth::{
    BUILT_IN, CallerRules, CertificateName, MAX_CALLERS, ModelRules, NamedCaller, PolicyConfig, Rate,
    SERVICE, Secret, check_key, is_caller_name,
};
use outrigger_protocol::{Operation, Priority};

use super::auth::secret_of;
use super::key::{
    self, AUTH_ENABLED, AUTH_PRIMARY_KEY, AUTH_SECONDARY_KEY, CALLER_BURST, CALLER_CERTIFICATE,
    CALLER_CONCURRENCY, CALLER_KEY, CALLER_KEYS, CALLER_MODELS, CALLER_OPERATIONS, CALLER_PRIORITY,
    CALLER_RATE, Key,
};
use super::layers::{NamedSection, check_model_name};
use super::tls;
use super::value::Value;
use super::{Mistake, Origin, Section, Settings, suggestion};

/// Those of the built-in callers that may have a table.
const WITH_TABLE: [&str; 3] = ["primary", "secondary", "anonymous"];

/// Checks a caller's name: a lower-case letter, then also digits and `-`, 63 at most. So it stands in labels, logs and variables as it is.
pub(super) fn check_caller_name(name: &str) -> Result<(), String> {
    if !is_caller_name(name) {
        return Err(format!(
            "`{name}` is no caller's name: a lower-case letter, then lower-case letters, digits or `-`, 63 at most"
        ));
    }
    if BUILT_IN.contains(&name) && !WITH_TABLE.contains(&name) {
        return Err(format!(
            "`{name}` is who comes through the Unix socket of `admin.listen`, and has no rules"
        ));
    }
    if name == SERVICE {
        return Err(format!(
            "`{name}` is what `outrigger keys` calls the service itself, whose callers are [callers.primary] and [callers.secondary]"
        ));
    }
    Ok(())
}

/// Whether a table is one of a built-in caller.
pub(super) fn has_built_in_table(name: &str) -> bool {
    WITH_TABLE.contains(&name)
}

/// Whether a built-in caller does not have this key in its table.
pub(super) fn is_foreign(caller: &str, key: &Key) -> bool {
    [CALLER_KEY.name, CALLER_CERTIFICATE.name].contains(&key.name) && WITH_TABLE.contains(&caller)
}

/// The keys that variables can set: those of callers that have a table, and of the built-in ones.
pub(super) fn variables(settings: &Settings) -> Vec<(String, &'static Key)> {
    let mut names: Vec<_> = settings.callers.keys().cloned().chain(WITH_TABLE.map(str::to_owned)).collect();
    names.sort();
    names.dedup();
    let keys = |name: String| CALLER_KEYS.iter().map(move |key| (name.clone(), *key));
    names.into_iter().flat_map(keys).filter(|(name, key)| !is_foreign(name, key)).collect()
}

/// `callers.batch-jobs.key` is `OUTRIGGER_CALLERS_BATCH_JOBS_KEY`.
pub(super) fn variable(caller: &str, key: &Key) -> String {
    let name = format!("OUTRIGGER_CALLERS_{caller}_{}", key.name);
    name.replace('-', "_").to_uppercase()
}

/// Turns the tables into rules.
pub(super) fn policy(settings: &Settings) -> Result<PolicyConfig, Vec<Mistake>> {
    let mut builder = Builder { settings, mistakes: Vec::new() };
    let config = builder.policy();
    if builder.mistakes.is_empty() { Ok(config) } else { Err(builder.mistakes) }
}

struct Builder<'a> {
    settings: &'a Settings,
    mistakes: Vec<Mistake>,
}

impl Builder<'_> {
    fn mistake(&mut self, origin: &Origin, problem: String) {
        self.mistakes.push(Mistake { origin: origin.to_string(), problem });
    }

    fn policy(&mut self) -> PolicyConfig {
        let settings = self.settings;
        let enabled = settings.keys.get(AUTH_ENABLED.name);
        let open = enabled.is_some_and(|setting| setting.value == Value::Flag(false));
        let mut config = PolicyConfig { open, ..PolicyConfig::default() };
        // A command that asks for no key takes the rules as they are, so that it can be tried with a service's configuration.
        if enabled.is_none_or(|setting| setting.origin != Origin::Preset) {
            self.contradictions(open);
        }
        for (name, caller) in &settings.callers {
            match name.as_str() {
                "primary" => config.primary = self.rules(name, caller, CallerRules::administrator()),
                "secondary" => config.secondary = self.rules(name, caller, CallerRules::administrator()),
                "anonymous" => config.anonymous = self.rules(name, caller, CallerRules::default()),
                _ => {
                    let rules = self.rules(name, caller, CallerRules::default());
                    let certificate = self.certificate(name, caller);
                    let key = self.key(name, caller);
                    config.named.push(NamedCaller { name: name.clone(), key, certificate, rules });
                }
            }
        }
        let named = settings.callers.iter().filter(|(name, _)| !WITH_TABLE.contains(&name.as_str()));
        if let Some((_, caller)) = named.clone().nth(MAX_CALLERS) {
            let problem = format!("{} callers are named, {MAX_CALLERS} are the most", named.count());
            self.mistake(&caller.origin, problem);
        }
        self.doubles();
        self.double_certificates(&config.named);
        config
    }

    /// Tables of callers that cannot come.
    fn contradictions(&mut self, open: bool) {
        for (name, caller) in &self.settings.callers {
            let problem = match (open, name == "anonymous") {
                (true, false) => format!(
                    "`auth.enabled = false`, so no key is looked at and [callers.{name}] would not hold; what everybody may is in \
                     [callers.anonymous]"
                ),
                (false, true) => {
                    "[callers.anonymous] is for `auth.enabled = false`: else callers without a key may do nothing".into()
                }
                _ => continue,
            };
            self.mistake(&caller.origin, problem);
        }
    }

    fn key(&mut self, name: &str, caller: &NamedSection) -> Option<Secret> {
        // One that has none here may have some in the store, now or later.
        let setting = caller.section.get(CALLER_KEY.name)?;
        let key = secret_of(setting)?;
        if let Err(fault) = check_key(&key) {
            self.mistake(&setting.origin, format!("`callers.{name}.key`: {fault}"));
        }
        Some(key)
    }

    /// A name that its certificate has.
    fn certificate(&mut self, name: &str, caller: &NamedSection) -> Option<CertificateName> {
        let setting = caller.section.get(CALLER_CERTIFICATE.name)?;
        let Value::Text(text) = &setting.value else { return None };
        if !tls::asks_clients(self.settings) {
            let problem = format!(
                "`callers.{name}.certificate` is set, and nobody is asked for one: set `tls.client_certificates` to optional or required"
            );
            self.mistake(&setting.origin, problem);
        }
        let parsed = CertificateName::parse(text);
        if let Err(fault) = &parsed {
            self.mistake(&setting.origin, format!("`callers.{name}.certificate` is `{text}`: {fault}"));
        }
        parsed.ok()
    }

    fn double_certificates(&mut self, named: &[NamedCaller]) {
        for (index, other) in named.iter().enumerate() {
            let Some(certificate) = &other.certificate else { continue };
            let mut before = named.iter().take(index);
            let Some(first) = before.find(|first| first.certificate.as_ref() == Some(certificate)) else {
                continue;
            };
            if let Some(caller) = self.settings.callers.get(&other.name) {
                let problem = format!(
                    "`callers.{}.certificate` is the same as `callers.{}.certificate`, so nobody could tell who calls",
                    other.name, first.name
                );
                self.mistake(&caller.origin, problem);
            }
        }
    }

    /// Nobody could tell who calls.
    fn doubles(&mut self) {
        let settings = self.settings;
        let service = [AUTH_PRIMARY_KEY, AUTH_SECONDARY_KEY]
            .into_iter()
            .filter_map(|key| Some((key.name.to_owned(), settings.keys.get(key.name)?)));
        let callers = settings.callers.iter().filter_map(|(name, caller)| {
            Some((format!("callers.{name}.key"), caller.section.get(CALLER_KEY.name)?))
        });
        let keys: Vec<_> = service
            .chain(callers)
            .filter_map(|(name, setting)| Some((name, secret_of(setting)?, &setting.origin)))
            .collect();
        for (first, other) in outrigger_auth::doubles(keys.iter().map(|(_, key, _)| key)) {
            if let (Some((first, ..)), Some((other, _, origin))) = (keys.get(first), keys.get(other)) {
                self.mistake(
                    origin,
                    format!("`{other}` is the same key as `{first}`, so nobody could tell who calls"),
                );
            }
        }
    }

    fn rules(&mut self, name: &str, caller: &NamedSection, default: CallerRules) -> CallerRules {
        let section = &caller.section;
        if let Some(setting) = section.get(CALLER_KEY.name).filter(|_| is_foreign(name, CALLER_KEY)) {
            let place = match name {
                "anonymous" => "callers without a key have none".to_owned(),
                name => format!("its key is `auth.{name}_key`"),
            };
            self.mistake(&setting.origin, format!("`callers.{name}.key`: {place}"));
        }
        if let Some(setting) =
            section.get(CALLER_CERTIFICATE.name).filter(|_| is_foreign(name, CALLER_CERTIFICATE))
        {
            let problem =
                format!("`callers.{name}.certificate`: a certificate is for callers of other names");
            self.mistake(&setting.origin, problem);
        }
        let mut rules = default;
        let mistakes = self.mistakes.len();
        if let Some((items, origin)) = list(section, CALLER_OPERATIONS) {
            rules.operations = self.operations(name, items, origin);
        }
        // What follows from a slip of the pen is not said beside it.
        let sound = self.mistakes.len() == mistakes;
        if let Some((items, origin)) = list(section, CALLER_MODELS) {
            rules.models = self.models(name, items, origin);
            if sound && !rules.operations.iter().any(|operation| operation.of_a_model()) {
                let problem =
                    format!("`callers.{name}.models` is set, but it may neither infer nor model_metadata");
                self.mistake(origin, problem);
            }
        }
        rules.rate = self.rate(name, section);
        rules.concurrency = count(section, CALLER_CONCURRENCY).and_then(|(count, _)| NonZeroU32::new(count));
        for key in [CALLER_RATE, CALLER_CONCURRENCY, CALLER_PRIORITY] {
            if let Some(setting) = section.get(key.name)
                && sound
                && !rules.operations.iter().any(|operation| operation.work())
            {
                let problem =
                    format!("`callers.{name}.{}` is set, but it may neither score nor infer", key.name);
                self.mistake(&setting.origin, problem);
            }
        }
        if let Some(Value::Text(priority)) = section.get(CALLER_PRIORITY.name).map(|setting| &setting.value) {
            rules.priority = Priority::from_name(priority).unwrap_or_default();
        }
        rules
    }

    fn operations(&mut self, caller: &str, names: &[String], origin: &Origin) -> Vec<Operation> {
        let known = Operation::ALL.iter().filter(|operation| !operation.public());
        let mut operations = Vec::new();
        for name in names {
            match Operation::from_name(name) {
                Some(operation) if operation.public() => {
                    let problem =
                        format!("`callers.{caller}.operations` names `{name}`, which is open to everybody");
                    self.mistake(origin, problem);
                }
                Some(operation) if caller == "anonymous" && operation.administrative() => {
                    let problem =
                        format!("`callers.anonymous.operations` names `{name}`, which always needs a key");
                    self.mistake(origin, problem);
                }
                Some(operation) => operations.push(operation),
                None => {
                    let words: Vec<_> = known.clone().map(|operation| operation.as_str()).collect();
                    let near = suggestion(name, words.iter().copied());
                    let known = words.join(", ");
                    let problem = format!(
                        "`callers.{caller}.operations` names `{name}`{near}; the operations are {known}"
                    );
                    self.mistake(origin, problem);
                }
            }
        }
        operations
    }

    fn models(&mut self, caller: &str, names: &[String], origin: &Origin) -> ModelRules {
        let settings = self.settings;
        // Only a model directory that is served whole says at start what there is.
        let has = |key: &Key| settings.keys.contains_key(key.name);
        let others = [key::SCRIPT_ENTRY, key::SCRIPT_NATIVE, key::UPSTREAM_URL].into_iter().any(has);
        let listed = !settings.models.is_empty() || others;
        for name in names {
            let (stem, open) = name.strip_suffix('*').map_or((name.as_str(), false), |stem| (stem, true));
            let stem_fits = (open && stem.is_empty()) || check_model_name(stem).is_ok();
            if !stem_fits {
                let problem = format!(
                    "`callers.{caller}.models` names `{name}`, which is neither a model's name nor the beginning of one with a `*`"
                );
                self.mistake(origin, problem);
            } else if listed && !open && !settings.models.contains_key(stem) {
                let near = suggestion(stem, settings.models.keys().map(String::as_str));
                self.mistake(
                    origin,
                    format!("`callers.{caller}.models` names `{name}`, which is not served here{near}"),
                );
            }
        }
        ModelRules::Only(names.to_vec())
    }

    fn rate(&mut self, caller: &str, section: &Section) -> Option<Rate> {
        let burst = count(section, CALLER_BURST);
        match section.get(CALLER_RATE.name).map(|setting| &setting.value) {
            Some(Value::Number(rate)) => Rate::new(*rate, burst.map(|(burst, _)| burst)),
            _ => {
                if let Some((_, origin)) = burst {
                    self.mistake(
                        origin,
                        format!("`callers.{caller}.burst` is set, `callers.{caller}.rate` is not"),
                    );
                }
                None
            }
        }
    }
}

fn list<'a>(section: &'a Section, key: &Key) -> Option<(&'a [String], &'a Origin)> {
    match section.get(key.name) {
        Some(setting) => match &setting.value {
            Value::List(items) => Some((items, &setting.origin)),
            _ => None,
        },
        None => None,
    }
}

fn count<'a>(section: &'a Section, key: &Key) -> Option<(u32, &'a Origin)> {
    let setting = section.get(key.name)?;
    match setting.value {
        Value::Count(count) => Some((u32::try_from(count).ok()?, &setting.origin)),
        _ => None,
    }
}
