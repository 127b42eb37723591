//! What operations are grouped by, each with a sentence.

use serde::Serialize;

/// A group of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tag {
    Models,
    Scoring,
    Inference,
    Metadata,
    Repository,
    SharedMemory,
    SageMaker,
    Vertex,
    Health,
    Load,
    Management,
    Tokens,
    Grpc,
    Description,
}

impl Tag {
    /// All, in the order in which they are shown.
    const ALL: [Self; 14] = [
        Self::Models,
        Self::Scoring,
        Self::Inference,
        Self::Metadata,
        Self::Repository,
        Self::SharedMemory,
        Self::SageMaker,
        Self::Vertex,
        Self::Health,
        Self::Load,
        Self::Management,
        Self::Tokens,
        Self::Grpc,
        Self::Description,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Models => "Models of this service",
            Self::Scoring => "Scoring",
            Self::Inference => "Inference",
            Self::Metadata => "Metadata",
            Self::Repository => "Repository",
            Self::SharedMemory => "Shared memory",
            Self::SageMaker => "SageMaker",
            Self::Vertex => "Vertex AI",
            Self::Health => "Health",
            Self::Load => "Load",
            Self::Management => "Management",
            Self::Tokens => "Tokens",
            Self::Grpc => "gRPC",
            Self::Description => "Description",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::Models => {
                "The models that are here now, each with its own inputs, outputs and a request that it takes."
            }
            Self::Scoring => "The entry script, or the server behind this one, by AzureML's contract.",
            Self::Inference => {
                "Models on tensors, by the Open Inference Protocol: in JSON, or as bytes behind it."
            }
            Self::Metadata => "What the server and its models are, and how their calls went.",
            Self::Repository => "Which models there are, and loading and unloading them.",
            Self::SharedMemory => "Memory of the same machine, for inputs and outputs that are not copied.",
            Self::SageMaker => "What SageMaker asks of a container that serves one model or many.",
            Self::Vertex => "What Vertex AI asks of a container: instances in, predictions out.",
            Self::Health => "Whether the service is up and takes calls; nobody needs a key.",
            Self::Load => "How busy the replica is, for load balancers, scalers and dashboards.",
            Self::Management => {
                "What the replica is doing, its models (loading, unloading, pinning and naming their versions), and what it has collected."
            }
            Self::Tokens => "Tokens that this service gives for keys.",
            Self::Grpc => {
                "Services over gRPC (HTTP/2), which tools find by reflection; a browser cannot call them."
            }
            Self::Description => "This description.",
        }
    }

    /// Those that are used, as a description lists them.
    pub(super) fn described(used: &[Self]) -> Vec<ShownTag> {
        let one = |tag: Self| ShownTag { name: tag.name(), description: tag.text() };
        Self::ALL.into_iter().filter(|tag| used.contains(tag)).map(one).collect()
    }
}

/// A group as it is shown.
#[derive(Serialize)]
pub(super) struct ShownTag {
    name: &'static str,
    description: &'static str,
}
