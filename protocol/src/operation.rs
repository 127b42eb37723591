//! What a request asks for, apart from the URL it came by.

/// The operations of a replica. Authorisation is asked of these and of the model, never of a URL, so that no
/// contract can go round it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// Whether the service is alive or ready.
    Health,
    /// A page for people that is the same in every replica and holds nothing of the service.
    Page,
    /// How busy the replica is, in numbers.
    Observe,
    /// Running the user's script.
    Score,
    /// The description of the scoring route.
    Swagger,
    /// Running a model on tensors.
    Infer,
    /// Naming memory of the same machine, for inputs and outputs.
    SharedMemory,
    /// Inputs and outputs of a model, and whether it is ready.
    ModelMetadata,
    /// Name and version of the server.
    ServerMetadata,
    /// Having a token in place of a key, for some time.
    Token,
    /// The public keys by which such tokens are verified, which are for everybody.
    TokenKeys,
    /// What the replica is doing; for administrators.
    Status,
    /// Loading, unloading and pinning models; for administrators.
    ModelControl,
    /// Deleting what was collected; for administrators.
    CollectControl,
    /// Something that is not there. Nobody learns from that what there is, so no key is asked for.
    Nowhere,
}

impl Operation {
    /// Every operation.
    pub const ALL: &'static [Self] = &[
        Self::Health,
        Self::Page,
        Self::Observe,
        Self::Score,
        Self::Swagger,
        Self::Infer,
        Self::SharedMemory,
        Self::ModelMetadata,
        Self::ServerMetadata,
        Self::Token,
        Self::TokenKeys,
        Self::Status,
        Self::ModelControl,
        Self::CollectControl,
        Self::Nowhere,
    ];

    /// Whether anybody may ask, without a key.
    pub const fn public(self) -> bool {
        matches!(self, Self::Health | Self::Page | Self::Observe | Self::TokenKeys | Self::Nowhere)
    }

    /// Whether it manages the replica rather than uses it: nobody may who is not told so, with a key also where other operations
    /// need none.
    pub const fn administrative(self) -> bool {
        matches!(self, Self::Status | Self::ModelControl | Self::CollectControl)
    }

    /// Whether it is work for a lane. That is what rates and concurrency of callers count; what only describes is cheap and free.
    pub const fn work(self) -> bool {
        matches!(self, Self::Score | Self::Infer)
    }

    /// Whether it is asked of one model.
    pub const fn of_a_model(self) -> bool {
        matches!(self, Self::Infer | Self::ModelMetadata)
    }

    /// The operation of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|operation| operation.as_str() == name)
    }

    /// The name, for labels, logs and configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Page => "page",
            Self::Observe => "observe",
            Self::Score => "score",
            Self::Swagger => "swagger",
            Self::Infer => "infer",
            Self::SharedMemory => "shared_memory",
            Self::ModelMetadata => "model_metadata",
            Self::ServerMetadata => "server_metadata",
            Self::Token => "token",
            Self::TokenKeys => "token_keys",
            Self::Status => "status",
            Self::ModelControl => "model_control",
            Self::CollectControl => "collect_control",
            Self::Nowhere => "nowhere",
        }
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_says_nothing_of_the_service_is_public() {
        let public: Vec<_> = Operation::ALL.iter().filter(|operation| operation.public()).collect();
        let expected = [
            Operation::Health,
            Operation::Page,
            Operation::Observe,
            Operation::TokenKeys,
            Operation::Nowhere,
        ];
        assert_eq!(public, expected.iter().collect::<Vec<_>>());
    }

    #[test]
    fn names_stand_for_one_operation_each() {
        for operation in Operation::ALL {
            assert_eq!(Operation::from_name(operation.as_str()), Some(*operation));
            assert!(!operation.public() || !(operation.work() || operation.administrative()));
        }
        assert_eq!(Operation::from_name("everything"), None);
    }
}
