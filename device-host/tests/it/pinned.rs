//! Pinned memory: filled here, read by the child where it lies.

use bytes::Bytes;
use outrigger_backend::conformance::values;
use outrigger_backend::{DataType, Shape, Tensor};

use crate::support::{Hosted, call, doubles, hosted, mapping_of, until};

const N: usize = 50_000;

/// A vector of `n` times `value`, in pinned memory of the device's.
fn pinned(hosted: &Hosted, value: f32, n: usize) -> Tensor {
    let mut buffer = hosted.device.pinned(n * 4).unwrap();
    buffer.as_chunks_mut().0.fill(value.to_ne_bytes());
    of(n, buffer.freeze())
}

fn of(n: usize, bytes: Bytes) -> Tensor {
    Tensor::new(DataType::Fp32, Shape::new([n as i64]).unwrap(), bytes).unwrap()
}

/// The number of the file that a line of a memory map says, which is one in all processes.
fn inode(line: &str) -> u64 {
    assert!(line.contains("memfd:outrigger"), "{line}");
    line.split_whitespace().nth(4).unwrap().parse().unwrap()
}

/// Whether a process has that file mapped.
fn has(pid: u32, file: u64) -> bool {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().any(|line| line.contains("memfd:") && inode(line) == file)
}

#[test]
fn an_input_is_read_where_it_lies_and_its_memory_goes_back() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("where");
    let report = hosted.file("where").with_extension("begun");
    let tensor = pinned(&hosted, 3., N);
    let file = inode(&mapping_of(&tensor));
    // All of it, part of it, and by the next child, which does not know it yet.
    let part = of(N / 2, tensor.data().slice(N..N + N * 2));
    for (input, restart) in [(&tensor, false), (&part, false), (&tensor, true)] {
        if restart {
            hosted.kill();
            until("the next child", || {
                hosted.device.status().unwrap().memory_total > 0 && hosted.restarts() == 1
            });
        }
        let result = call(&*instance, input).unwrap();
        assert!(values(&result).iter().all(|got| *got == 6.));
        assert_eq!(result.shape(), input.shape());
        assert_eq!(inode(&std::fs::read_to_string(&report).unwrap()), file);
    }
    // An input of anybody else's goes another way.
    doubles(&*instance, 1., N).unwrap();
    assert_ne!(inode(&std::fs::read_to_string(&report).unwrap()), file);
    assert!(has(hosted.pid(), file));
    drop((tensor, part));
    assert!(!has(std::process::id(), file) && !has(hosted.pid(), file));
}

#[test]
fn what_a_backend_keeps_of_it_stays_what_it_was() {
    let hosted = hosted();
    let (_model, instance) = hosted.model("keep");
    // The backend itself looks at all that it has kept, in each call, and answers with the first.
    for number in 1..20 {
        let result = call(&*instance, &pinned(&hosted, number as f32, N)).unwrap();
        assert!(values(&result).iter().all(|got| *got == 1.), "call {number}");
    }
}

#[test]
fn it_outlives_its_device() {
    let hosted = hosted();
    let tensor = pinned(&hosted, 5., N);
    let pid = hosted.pid();
    drop(hosted);
    assert!(!crate::support::is_there(pid), "it keeps no child");
    assert!(values(&tensor).iter().all(|value| *value == 5.));
    // Which is any memory to the next.
    let hosted = crate::support::hosted();
    let (_model, instance) = hosted.model("double");
    assert!(values(&call(&*instance, &tensor).unwrap()).iter().all(|got| *got == 10.));
}
