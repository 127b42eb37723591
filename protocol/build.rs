//! Compiles the `.proto` files: to structs, and to the description that a replica gives of itself.

use std::error::Error;
use std::path::PathBuf;

/// What reflection tells, by the name of the file that has it.
const DESCRIBED: [(&str, &[&str]); 2] = [
    ("described.bin", &["open_inference.proto", "health.proto"]),
    ("described_tensorflow.bin", &["tensorflow_serving.proto"]),
];

/// Messages that are the body of an answer in JSON as well.
const JSON: [&str; 11] = [
    "InferStatistics",
    "ModelConfig",
    "ModelInput",
    "ModelMetadataResponse",
    "ModelOutput",
    "ModelStatistics",
    "ModelStatisticsResponse",
    "RepositoryIndexResponse.ModelIndex",
    "ServerMetadataResponse",
    "StatisticDuration",
    "SystemSharedMemoryStatusResponse.RegionStatus",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let mut all = protox::Compiler::new(["proto"])?;
    for (name, files) in DESCRIBED {
        let mut compiler = protox::Compiler::new(["proto"])?;
        for compiler in [&mut compiler, &mut all] {
            compiler.include_source_info(true).include_imports(true).open_files(files)?;
        }
        std::fs::write(out.join(name), compiler.encode_file_descriptor_set())?;
    }
    let mut config = prost_build::Config::new();
    config.btree_map(["."]);
    for message in JSON {
        config.type_attribute(
            format!(".inference.{message}"),
            "#[derive(serde::Serialize, schemars::JsonSchema)]",
        );
    }
    for tensor in ["ModelInput", "ModelOutput"] {
        let as_name = "#[serde(serialize_with = \"super::data_type_name\")]";
        config.field_attribute(format!(".inference.{tensor}.data_type"), as_name);
        config.field_attribute(format!(".inference.{tensor}.data_type"), "#[schemars(with = \"String\")]");
    }
    config.compile_fds(all.file_descriptor_set())?;
    Ok(())
}
