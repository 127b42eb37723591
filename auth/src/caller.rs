//! Who calls, and what the configuration allows them.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_protocol::{Operation, Priority};

use crate::limiter::{Limiter, Rate};
use crate::{CertificateName, Refusal, Secret};

/// The most callers that a configuration may name, beside those that are always there.
pub const MAX_CALLERS: usize = 100;

/// A caller, as a small number: callers are numbered from 0 without gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CallerId(u16);

impl CallerId {
    /// The holder of the primary key.
    pub const PRIMARY: Self = Self(0);
    /// The holder of the secondary key.
    pub const SECONDARY: Self = Self(1);
    /// Anybody.
    pub const ANONYMOUS: Self = Self(2);
    /// Who reaches the admin socket, which the system has seen to.
    pub const LOCAL: Self = Self(3);
    /// How many callers there can be: an index is below this.
    pub const COUNT: usize = BUILT_IN.len() + MAX_CALLERS;

    /// The caller with this number, if there can be one.
    pub(crate) fn new(index: usize) -> Option<Self> {
        u16::try_from(index).ok().filter(|_| index < Self::COUNT).map(Self)
    }

    /// The number.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names of the callers that are always there, by number.
pub const BUILT_IN: [&str; 4] = ["primary", "secondary", "anonymous", "local"];

/// Which models a caller may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ModelRules {
    /// All of them.
    #[default]
    All,
    /// Those with one of these names; a `*` at the end stands for any rest.
    Only(Vec<String>),
}

impl ModelRules {
    fn allow(&self, model: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|name| match name.strip_suffix('*') {
                Some(begin) => model.starts_with(begin),
                None => model == name,
            }),
        }
    }
}

/// Of which model something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OfModel<'a> {
    /// Of that.
    Named(&'a str),
    /// Of none, or of one whose name is no text.
    Nameless,
    /// Of some, each of which [`Grant::allow_model`](crate::Grant::allow_model) is asked about.
    AskedLater,
}

impl<'a> From<Option<&'a str>> for OfModel<'a> {
    fn from(model: Option<&'a str>) -> Self {
        model.map_or(Self::Nameless, Self::Named)
    }
}

/// What a caller may do.
#[derive(Clone, Debug, PartialEq)]
pub struct CallerRules {
    /// The operations, beside those that anybody may do.
    pub operations: Vec<Operation>,
    /// The models, for operations that are asked of one.
    pub models: ModelRules,
    /// How often it may have work done.
    pub rate: Option<Rate>,
    /// How many calls that are work it may have in the house at once.
    pub concurrency: Option<NonZeroU32>,
    /// The priority of its calls, and the most urgent that it may ask for.
    pub priority: Priority,
}

impl Default for CallerRules {
    /// Everything but management.
    fn default() -> Self {
        let operations = Operation::ALL.iter().copied();
        Self {
            operations: operations.filter(|op| !op.public() && !op.administrative()).collect(),
            models: ModelRules::All,
            rate: None,
            concurrency: None,
            priority: Priority::Normal,
        }
    }
}

impl CallerRules {
    /// Everything, as for the holder of a service key.
    pub fn administrator() -> Self {
        let operations = Operation::ALL.iter().copied().filter(|op| !op.public()).collect();
        Self { operations, ..Self::default() }
    }

    fn allow(&self, operation: Operation, model: OfModel<'_>) -> bool {
        let models = match model {
            OfModel::Named(model) => self.models.allow(model),
            // A model that has no name is none of those that are listed.
            OfModel::Nameless => !operation.of_a_model() || self.models == ModelRules::All,
            OfModel::AskedLater => true,
        };
        operation.public() || (models && self.operations.contains(&operation))
    }
}

/// A caller that the configuration names.
#[derive(Clone, Debug)]
pub struct NamedCaller {
    /// Its name, for labels and logs.
    pub name: String,
    /// Its key, unless all that it has are in the store, or it comes with a certificate.
    pub key: Option<Secret>,
    /// A name that its certificate has, where it may come with one.
    pub certificate: Option<CertificateName>,
    /// What it may do.
    pub rules: CallerRules,
}

/// What was answered to a caller that is known, so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallerCounts {
    /// It was allowed.
    pub granted: u64,
    /// It may not do that.
    pub forbidden: u64,
    /// It came too often.
    pub rate_limited: u64,
    /// It had too many calls in the house.
    pub too_many_calls: u64,
    /// Calls in the house now, where they are limited.
    pub calls: Option<u32>,
}

/// A caller at run time.
pub(crate) struct Caller {
    pub(crate) id: CallerId,
    pub(crate) name: String,
    pub(crate) rules: CallerRules,
    limiter: Option<Limiter>,
    granted: AtomicU64,
    forbidden: AtomicU64,
    rate_limited: AtomicU64,
    too_many_calls: AtomicU64,
}

impl Caller {
    pub(crate) fn new(id: CallerId, name: &str, rules: CallerRules) -> Self {
        let limited = rules.rate.is_some() || rules.concurrency.is_some();
        Self {
            id,
            name: name.to_owned(),
            limiter: limited.then(|| Limiter::new(rules.rate, rules.concurrency.map(NonZeroU32::get))),
            rules,
            granted: AtomicU64::new(0),
            forbidden: AtomicU64::new(0),
            rate_limited: AtomicU64::new(0),
            too_many_calls: AtomicU64::new(0),
        }
    }

    /// Asks in this order: may it, does it come too often, has it too many. What is refused costs no token. Returns whether a
    /// place was taken, which is to be given back.
    pub(crate) fn ask(&self, operation: Operation, model: OfModel<'_>, now: u64) -> Result<bool, Refusal> {
        self.counted(self.decide(operation, model, now))
    }

    /// Whether it may at all; takes nothing. Only what is refused is counted, for the rest is asked for again.
    pub(crate) fn check(&self, operation: Operation) -> Result<(), Refusal> {
        if self.rules.allow(operation, OfModel::AskedLater) {
            return Ok(());
        }
        self.counted(Err(Refusal::Forbidden))
    }

    fn counted<T>(&self, answer: Result<T, Refusal>) -> Result<T, Refusal> {
        let count = match &answer {
            Ok(_) => &self.granted,
            Err(Refusal::RateLimited(_)) => &self.rate_limited,
            Err(Refusal::TooManyCalls) => &self.too_many_calls,
            Err(_) => &self.forbidden,
        };
        count.fetch_add(1, Ordering::Relaxed);
        answer
    }

    fn decide(&self, operation: Operation, model: OfModel<'_>, now: u64) -> Result<bool, Refusal> {
        if !self.rules.allow(operation, model) {
            return Err(Refusal::Forbidden);
        }
        match self.limiter.as_ref().filter(|_| operation.work()) {
            Some(limiter) => limiter.take(now).map(|()| true).map_err(Refusal::from),
            None => Ok(false),
        }
    }

    pub(crate) fn allows_model(&self, model: &str) -> bool {
        self.rules.models.allow(model)
    }

    pub(crate) fn give_back(&self) {
        if let Some(limiter) = &self.limiter {
            limiter.give_back();
        }
    }

    pub(crate) fn counts(&self) -> CallerCounts {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        CallerCounts {
            granted: read(&self.granted),
            forbidden: read(&self.forbidden),
            rate_limited: read(&self.rate_limited),
            too_many_calls: read(&self.too_many_calls),
            calls: self.limiter.as_ref().map(Limiter::calls),
        }
    }
}
