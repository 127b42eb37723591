//! Tests on devices that Vulkan reaches, in software where there is no other.

use std::fmt::Display;

/// What a test runs on; where that is not to be had, the test is skipped and says why. `.ci/run` does not allow that skip where a driver is installed.
pub fn found<T>(device: Result<T, impl Display>) -> Option<T> {
    device.map_err(|reason| println!("skipped: no Vulkan device: {reason}")).ok()
}

/// A chain of steps as a model, `logits` of this datatype and of shape `[batch, 4]`: the best two of four, `scores` with the chance of each and
/// `classes`.
pub fn classes(datatype: &str) -> String {
    format!(
        r#"
outputs = ["scores", "classes"]
[[inputs]]
name = "logits"
datatype = "{datatype}"
shape = ["batch", 4]
[[steps]]
step = "softmax"
[[steps]]
step = "top_k"
k = 2
to = "scores"
indices = "classes"
"#
    )
}
