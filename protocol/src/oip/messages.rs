//! The protocol's messages that are not on the data path, as they are in gRPC; some are bodies of REST's answers as well.

use outrigger_backend::{DataType, ModelInfo, TensorInfo};

#[expect(missing_docs, clippy::all, reason = "generated; the .proto has the words")]
pub mod inference {
    include!(concat!(env!("OUT_DIR"), "/inference.rs"));
}

pub use inference::repository_index_response::ModelIndex;
pub use inference::system_shared_memory_status_response::RegionStatus;
pub use inference::{
    InferStatistics, ModelConfig, ModelConfigRequest, ModelConfigResponse, ModelInferRequest,
    ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStatistics, ModelStatisticsRequest, ModelStatisticsResponse, ModelStreamInferResponse,
    RepositoryIndexRequest, RepositoryIndexResponse, RepositoryModelLoadRequest, RepositoryModelLoadResponse,
    RepositoryModelUnloadRequest, RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse,
    ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
    StatisticDuration, SystemSharedMemoryRegisterRequest, SystemSharedMemoryRegisterResponse,
    SystemSharedMemoryStatusRequest, SystemSharedMemoryStatusResponse, SystemSharedMemoryUnregisterRequest,
    SystemSharedMemoryUnregisterResponse,
};

use inference::model_metadata_response::TensorMetadata;
use inference::{ModelInput, ModelOutput};

/// The descriptions of this protocol's service and of health, as a serialised `FileDescriptorSet`: what reflection tells.
pub const DESCRIBED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/described.bin"));

/// Extensions that are always there.
const EXTENSIONS: [&str; 5] =
    ["binary_tensor_data", "model_configuration", "model_repository", "parameters", "statistics"];
/// That which has to be switched on.
const SHARED_MEMORY: &str = "system_shared_memory";

/// What the server says of itself.
pub fn server_metadata(shared_memory: bool) -> ServerMetadataResponse {
    let extensions = EXTENSIONS.into_iter().chain(shared_memory.then_some(SHARED_MEMORY));
    ServerMetadataResponse {
        name: "outrigger".into(),
        version: env!("CARGO_PKG_VERSION").into(),
        extensions: extensions.map(str::to_owned).collect(),
    }
}

/// What a model takes and gives. `platform` is such as `onnx_cpu`; a free extent is −1.
pub fn model_metadata(
    name: &str,
    versions: &[&str],
    platform: &str,
    model: &ModelInfo,
) -> ModelMetadataResponse {
    let tensor = |info: &TensorInfo| TensorMetadata {
        name: info.name.clone(),
        datatype: info.data_type.name().into(),
        shape: info.shape.clone(),
    };
    ModelMetadataResponse {
        name: name.into(),
        versions: versions.iter().copied().map(str::to_owned).collect(),
        platform: platform.into(),
        inputs: model.inputs.iter().map(tensor).collect(),
        outputs: model.outputs.iter().map(tensor).collect(),
    }
}

/// The same as a configuration, for clients that ask for one.
pub fn model_config(name: &str, platform: &str, model: &ModelInfo) -> ModelConfig {
    let input = |info: &TensorInfo| ModelInput {
        name: info.name.clone(),
        data_type: data_type(info.data_type).into(),
        dims: info.shape.clone(),
    };
    let output = |info: &TensorInfo| ModelOutput {
        name: info.name.clone(),
        data_type: data_type(info.data_type).into(),
        dims: info.shape.clone(),
    };
    ModelConfig {
        name: name.into(),
        platform: platform.into(),
        max_batch_size: 0,
        input: model.inputs.iter().map(input).collect(),
        output: model.outputs.iter().map(output).collect(),
        backend: platform.split_once('_').map_or(platform, |(_, library)| library).into(),
    }
}

fn data_type(data_type: DataType) -> inference::DataType {
    use inference::DataType as Named;
    match data_type {
        DataType::Bool => Named::TypeBool,
        DataType::Uint8 => Named::TypeUint8,
        DataType::Uint16 => Named::TypeUint16,
        DataType::Uint32 => Named::TypeUint32,
        DataType::Uint64 => Named::TypeUint64,
        DataType::Int8 => Named::TypeInt8,
        DataType::Int16 => Named::TypeInt16,
        DataType::Int32 => Named::TypeInt32,
        DataType::Int64 => Named::TypeInt64,
        DataType::Fp16 => Named::TypeFp16,
        DataType::Bf16 => Named::TypeBf16,
        DataType::Fp32 => Named::TypeFp32,
        DataType::Fp64 => Named::TypeFp64,
        DataType::Bytes => Named::TypeString,
        _ => Named::TypeInvalid,
    }
}

/// In JSON a type is its name.
fn data_type_name<S: serde::Serializer>(number: &i32, serializer: S) -> Result<S::Ok, S::Error> {
    let named = inference::DataType::try_from(*number).unwrap_or_default();
    serializer.serialize_str(named.as_str_name())
}
