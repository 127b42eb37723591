//! Which contracts are spoken, and what of them has to be switched on.

use std::path::PathBuf;

use super::getter::Getter;
use super::{key, suggestion};

/// A wire format of scoring requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// AzureML's `/score` and `/swagger.json`.
    Aml,
    /// The Open Inference Protocol over REST, `/v2`.
    Oip,
    /// The same over gRPC.
    Grpc,
    /// TensorFlow Serving's `Predict` over gRPC.
    Tensorflow,
    /// SageMaker's `/ping`, `/invocations` and `/models`.
    Sagemaker,
    /// Vertex AI's health and predict routes.
    Vertex,
}

impl Contract {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Aml, Self::Oip, Self::Grpc, Self::Tensorflow, Self::Sagemaker, Self::Vertex];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aml => "aml",
            Self::Oip => "oip",
            Self::Grpc => "grpc",
            Self::Tensorflow => "tensorflow",
            Self::Sagemaker => "sagemaker",
            Self::Vertex => "vertex",
        }
    }
}

/// Where Vertex AI's routes are, beside `/vertex/health` and `/vertex/predict`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VertexConfig {
    /// Health.
    pub health_route: Option<String>,
    /// Predictions.
    pub predict_route: Option<String>,
}

/// What `[score]` says of contracts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContractsConfig {
    /// Those that are spoken.
    pub spoken: Vec<Contract>,
    /// Vertex AI's routes.
    pub vertex: VertexConfig,
    /// The model that is meant where a request names none.
    pub model: Option<String>,
    /// Whether who may manage models can do so on the scoring listener.
    pub model_control: bool,
    /// The directory in which shared memory of callers is looked for; none is where this is nothing.
    pub shared_memory: Option<PathBuf>,
    /// Regions of it that may be registered at once.
    pub regions: usize,
    /// Requests of one gRPC stream that are worked on at once.
    pub stream_calls: usize,
}

/// Reads it; or which key is wrong, and what with it.
pub(super) fn contracts(get: &Getter<'_>) -> Result<ContractsConfig, (&'static str, String)> {
    let named = |name: &String| {
        Contract::ALL.into_iter().find(|contract| contract.name() == name).ok_or_else(|| {
            let near = suggestion(name, Contract::ALL.into_iter().map(Contract::name));
            let all = Contract::ALL.map(Contract::name).join(", ");
            let problem = format!("`score.contracts` has `{name}`, which is none of {all}{near}");
            (key::SCORE_CONTRACTS.name, problem)
        })
    };
    let route = |key: &key::Key| match get.text(key) {
        route if route.is_empty() => Ok(None),
        route if route.starts_with('/') && route.parse::<http::uri::PathAndQuery>().is_ok() => {
            Ok(Some(route))
        }
        route => Err((key.name, format!("`{}` is \"{route}\", which is no path", key.name))),
    };
    Ok(ContractsConfig {
        vertex: VertexConfig {
            health_route: route(key::SCORE_VERTEX_HEALTH_ROUTE)?,
            predict_route: route(key::SCORE_VERTEX_PREDICT_ROUTE)?,
        },
        spoken: get.list(key::SCORE_CONTRACTS).iter().map(named).collect::<Result<_, _>>()?,
        model: Some(get.text(key::SCORE_MODEL)).filter(|name| !name.is_empty()),
        model_control: get.flag(key::SCORE_MODEL_CONTROL),
        shared_memory: get.path(key::SCORE_SHARED_MEMORY),
        regions: get.count(key::SCORE_SHARED_MEMORY_REGIONS),
        stream_calls: get.count(key::SCORE_STREAM_CALLS),
    })
}
