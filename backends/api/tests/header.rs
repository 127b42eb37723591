//! The header, as compilers see it.

use std::path::Path;
use std::process::Command;

/// What a DLPack release's own header has of its structs, under its own guard.
const DLPACK: &str = "
#ifndef DLPACK_DLPACK_H_
#define DLPACK_DLPACK_H_
#include <stdint.h>
typedef enum { kDLCPU = 1, kDLExtDev = 12 } DLDeviceType;
typedef struct { DLDeviceType device_type; int32_t device_id; } DLDevice;
typedef struct { uint8_t code; uint8_t bits; uint16_t lanes; } DLDataType;
typedef struct {
  void *data; DLDevice device; int32_t ndim; DLDataType dtype; int64_t *shape; int64_t *strides; uint64_t byte_offset;
} DLTensor;
typedef struct DLManagedTensor {
  DLTensor dl_tensor; void *manager_ctx; void (*deleter)(struct DLManagedTensor *self);
} DLManagedTensor;
#endif
";

/// Twice, for the guard.
const SOURCE: &str = "
#include \"outrigger_backend.h\"
#include \"outrigger_backend.h\"
static OutriggerBackendTable table;
const OutriggerBackendTable *outrigger_backend_v1(void) { table.major = OUTRIGGER_BACKEND_MAJOR; return &table; }
";

fn compiles(compiler: &str, standard: &str, extension: &str) {
    let include = Path::new(env!("CARGO_MANIFEST_DIR")).join("include");
    for before in ["", DLPACK] {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join(extension);
        std::fs::write(&source, format!("{before}{SOURCE}")).unwrap();
        let mut command = Command::new(compiler);
        command.args([standard, "-pedantic", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden", "-c"]);
        command.arg("-I").arg(&include).arg("-o").arg(folder.path().join("out.o"));
        match command.arg(source).output() {
            Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return println!("skipped: no `{compiler}`");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn it_is_c99() {
    compiles("cc", "-std=c99", "a.c");
}

#[test]
fn it_is_cpp11() {
    compiles("c++", "-std=c++11", "a.cpp");
}

/// Structs have the sizes and members the offsets that Rust gives them.
#[test]
fn it_lays_out_what_rust_does() {
    use outrigger_backend::abi;
    use std::mem::offset_of;

    let checks = [
        ("sizeof(DLManagedTensor)", size_of::<abi::DLManagedTensor>()),
        ("sizeof(OutriggerBackendTable)", size_of::<abi::Table>()),
        ("sizeof(OutriggerBackendDescription)", size_of::<abi::Description>()),
        ("sizeof(OutriggerBackendDevice)", size_of::<abi::Device>()),
        ("sizeof(OutriggerBackendDeviceStatus)", size_of::<abi::DeviceStatus>()),
        ("sizeof(OutriggerBackendInstanceStatus)", size_of::<abi::InstanceStatus>()),
        ("sizeof(OutriggerBackendLoadRequest)", size_of::<abi::LoadRequest>()),
        ("sizeof(OutriggerBackendTensorType)", size_of::<abi::TensorType>()),
        ("sizeof(OutriggerBackendOutput)", size_of::<abi::Output>()),
        ("sizeof(OutriggerBackendRun)", size_of::<abi::Run>()),
        ("offsetof(OutriggerBackendTable, model_load)", offset_of!(abi::Table, model_load)),
        ("offsetof(OutriggerBackendTable, instance_cancel)", offset_of!(abi::Table, instance_cancel)),
        ("offsetof(OutriggerBackendOutput, memory)", offset_of!(abi::Output, memory)),
        ("offsetof(OutriggerBackendTensorType, symbols)", offset_of!(abi::TensorType, symbols)),
        ("offsetof(DLTensor, byte_offset)", offset_of!(abi::DLTensor, byte_offset)),
    ];
    let folder = tempfile::tempdir().unwrap();
    let lines = checks
        .iter()
        .enumerate()
        .map(|(number, (what, size))| format!("typedef char check_{number}[{what} == {size} ? 1 : -1];\n"));
    let source = folder.path().join("a.c");
    std::fs::write(&source, format!("{SOURCE}{}", lines.collect::<String>())).unwrap();
    let mut command = Command::new("cc");
    command.args(["-std=c99", "-c", "-I"]).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("include"));
    let output = command.arg("-o").arg(folder.path().join("out.o")).arg(source).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
