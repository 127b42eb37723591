//! What a model's code does beside computing: writing in place, and keeping what it was given from one run to the next.
//!
//! Inputs are the caller's memory, which is lent for one call and only to be read; and a module's attributes have no lock. Neither does libtorch
//! say of a module, so its code is looked at. Each answer errs towards yes, at the cost of a copy or a wait.

use std::collections::BTreeSet;

/// Seen in the code of a module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Habits {
    /// An operator writes to what it is given.
    writes: bool,
    /// One may write to an attribute.
    writes_state: bool,
    /// An attribute is assigned.
    assigns: bool,
    /// A list or dictionary is changed.
    collects: bool,
    /// There is an attribute that is one.
    has_collections: bool,
    /// A task is begun that runs on a thread of libtorch's.
    forks: bool,
}

/// What changes a list or dictionary.
const COLLECT: &[&str] = &[
    "append(",
    "insert(",
    "extend(",
    "_set_item(",
    "pop(",
    "popitem(",
    "clear(",
    "remove(",
    "reverse(",
    "update(",
    "setdefault(",
    "Delete(",
];

impl Habits {
    /// Adds what a source file shows.
    pub(crate) fn add(&mut self, source: &str) {
        let attributes: BTreeSet<&str> = source.lines().filter_map(attribute).collect();
        for line in source.lines() {
            self.writes |= writes(line);
            self.writes_state |= writes_state(line, &attributes);
            self.assigns |= line.split_once(" = ").is_some_and(|(left, _)| left.contains('.'));
            self.collects |= COLLECT.iter().any(|call| line.contains(call));
            self.has_collections |= is_collection(line);
            self.forks |= forks(line);
        }
    }

    /// Whether parts of a run might be on other threads than its own.
    pub(crate) fn forks(self) -> bool {
        self.forks
    }

    /// Whether inputs might be written to, or kept after the call.
    pub(crate) fn touches_inputs(self) -> bool {
        self.writes || self.assigns || self.collects
    }

    /// Whether two runs at once might get in each other's way.
    pub(crate) fn is_stateful(self) -> bool {
        self.writes_state || self.assigns || self.collects && self.has_collections
    }
}

/// What writes without PyTorch's mark for it, and what begins a task that may go on reading when the call is over.
const WRITE: &[&str] = &[
    "out=",
    "__iand__(",
    "__ior__(",
    "__ixor__(",
    "__ilshift__(",
    "__irshift__(",
    "rrelu_with_noise(",
    "fused_moving_avg",
    "fork(",
];

/// Whether a line calls `fork`, and no other name that ends so.
fn forks(line: &str) -> bool {
    line.match_indices("fork(").any(|(at, _)| {
        let before = line.split_at(at).0.chars().next_back();
        before.is_none_or(|c| !(c.is_alphanumeric() || c == '_' || c == '.'))
    })
}

/// Whether a line calls an operator whose name ends in one `_`, PyTorch's mark for those that write to what they are given, or another that
/// does.
fn writes(line: &str) -> bool {
    let calls = line.as_bytes().windows(3).any(|three| {
        let [before, mark, after] = three else { return false };
        *after == b'(' && *mark == b'_' && before.is_ascii_alphanumeric()
    });
    calls || WRITE.iter().any(|call| line.contains(call))
}

/// What networks write in place all the time, to what the operator before gave.
const ACTIVATIONS: &[&str] = &[
    "relu_",
    "relu6_",
    "leaky_relu_",
    "elu_",
    "celu_",
    "selu_",
    "silu_",
    "hardtanh_",
    "hardswish_",
    "hardsigmoid_",
    "sigmoid_",
    "tanh_",
    "dropout_",
];

/// Whether a line may write to an attribute: unless all that it does in place is to apply an activation to a name that is none's.
fn writes_state(line: &str, attributes: &BTreeSet<&str>) -> bool {
    if WRITE.iter().any(|call| line.contains(call)) {
        return true;
    }
    line.match_indices("_(").any(|(at, _)| {
        let (before, after) = line.split_at(at + 1);
        let start = before.rfind(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).map_or(0, |at| at + 1);
        let operator = before.get(start..).unwrap_or_default();
        let operand = after.get(1..).unwrap_or_default();
        let operand = operand.split([',', ')']).next().unwrap_or_default().trim();
        let is_name = operand.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let is_activation = ACTIVATIONS.contains(&operator) && is_name && !attributes.contains(operand);
        // Names such as `__annotate__` are no operators'.
        !(operator.ends_with("__") || is_activation)
    })
}

/// The name that a line gives an attribute: `  buf = self.buf`.
fn attribute(line: &str) -> Option<&str> {
    let (name, value) = line.split_once(" = ")?;
    (value.contains('.') && !value.contains("torch.") && !name.contains('.')).then(|| name.trim())
}

/// Whether it declares an attribute that is a list or a dictionary: `  cache : List[Tensor]`.
fn is_collection(line: &str) -> bool {
    let kind = line.strip_prefix("  ").and_then(|line| line.split_once(" : "));
    kind.is_some_and(|(name, kind)| {
        !name.contains([' ', '.']) && ["List[", "Dict["].iter().any(|start| kind.contains(start))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_touches_more_than_it_makes_is_seen() {
        let check = |source: &str, touches_inputs, is_stateful| {
            let mut habits = Habits::default();
            habits.add(source);
            assert_eq!(
                (habits.touches_inputs(), habits.is_stateful()),
                (touches_inputs, is_stateful),
                "{source}"
            );
        };
        check("    return torch.relu(torch.matmul(x, self.w0))", false, false);
        check("    _0 = (self.a).__annotate__(x, alpha=1.5)", false, false);
        check("    return torch.relu_(x)", true, false);
        check("    buf = self.buf\n    return torch.relu_(buf)", true, true);
        check("    return torch.relu_(self.buf)", true, true);
        check("    n = self.n\n    _0 = torch.add_(n, 1)", true, true);
        check("    _0 = torch.add_(_1, 1)", true, true);
        check("    _0 = torch.add(x, x, alpha=1, out=x)", true, true);
        check("    _0 = torch.copy_(torch.select(self.cache, 0, 0), x)", true, true);
        check("    _0 = torch.__iand__(x, y)", true, true);
        check("    _0 = fork(branch, x)", true, true);
        check("    self.last = x", true, true);
        let forks = |source: &str| {
            let mut habits = Habits::default();
            habits.add(source);
            habits.forks()
        };
        assert!(forks("    _0 = fork(branch, x)") && forks("    return (fork(branch, x), x)"));
        assert!(!forks("    _0 = (self.a).pitchfork(x)") && !forks("    _0 = (self.a).fork(x)"));
        check("    (self.inner).last = x", true, true);
        check("    _1 = torch.append(rows, x)", true, false);
        check("  cache : List[Tensor]\n    _1 = torch.append(_0, x)", true, true);
        check("  cache : Dict[str, Tensor]\n    torch._set_item(_0, \"x\", x)", true, true);
        check("  cache : List[Tensor]\n    _1 = torch.pop(_0)", true, true);
        check("  cache : List[Tensor]\n    return (self.cache)[0]", false, false);
    }
}
