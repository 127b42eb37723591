//! What `forward` takes and gives, read from the module's code.

use crate::limits::ARGUMENTS;

/// The method that runs a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forward {
    /// The names of its arguments, all of them tensors.
    pub(crate) inputs: Vec<String>,
    /// The type of its result, as it stands in the code: `Tensor`, `Tuple[Tensor, Tensor]`, `Dict[str, Tensor]`.
    pub(crate) result: String,
}

/// Why `forward` cannot be called.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ForwardError {
    #[error("its module has no method `forward`")]
    Missing,
    #[error("the head of its `forward` is not understood")]
    Syntax,
    #[error("argument `{name}` of its `forward` is of type {argument}, only tensors are carried")]
    Argument { name: String, argument: String },
    #[error("its `forward` has more than {ARGUMENTS} arguments")]
    Many,
}

impl Forward {
    /// Finds it in the source of a class: classes begin at the left, methods two spaces in.
    pub(crate) fn find(code: &str, class: &str) -> Result<Self, ForwardError> {
        let head = format!("class {class}(");
        let start = match code.strip_prefix(&head) {
            Some(rest) => rest,
            None => code.split_once(&format!("\n{head}")).ok_or(ForwardError::Missing)?.1,
        };
        let class = start.split_once("\nclass ").map_or(start, |(class, _)| class);
        let (_, method) = class.split_once("\n  def forward(").ok_or(ForwardError::Missing)?;
        let (arguments, rest) = closed(method).ok_or(ForwardError::Syntax)?;
        let result = rest.trim_start().strip_prefix("->").ok_or(ForwardError::Syntax)?;
        let (result, _) = result.split_once(":\n").ok_or(ForwardError::Syntax)?;
        // The first is the module itself.
        let inputs = parts(arguments).into_iter().skip(1).filter_map(|text| argument(text).transpose());
        let inputs = inputs.collect::<Result<Vec<_>, _>>()?;
        if inputs.len() > ARGUMENTS {
            return Err(ForwardError::Many);
        }
        Ok(Self { inputs, result: result.split_whitespace().collect::<Vec<_>>().join(" ") })
    }
}

/// Its name; `None` for one that can be left out.
fn argument(text: &str) -> Result<Option<String>, ForwardError> {
    let (name, rest) = text.split_once(':').ok_or(ForwardError::Syntax)?;
    let (kind, default) = rest.split_once('=').map_or((rest, None), |(kind, default)| (kind, Some(default)));
    let (name, kind) = (name.trim(), kind.trim());
    match (kind, default) {
        ("Tensor", None) => Ok(Some(name.into())),
        (_, Some(_)) => Ok(None),
        _ => Err(ForwardError::Argument { name: name.into(), argument: kind.into() }),
    }
}

/// Splits at the bracket that closes the one before the text.
fn closed(text: &str) -> Option<(&str, &str)> {
    let mut depth = 0usize;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' if depth == 0 => return Some((text.get(..at)?, text.get(at + 1..)?)),
            b')' | b']' => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Splits at commas that are in no bracket.
fn parts(text: &str) -> Vec<&str> {
    let mut depth = 0usize;
    let parts = text.split(|c: char| {
        match c {
            '(' | '[' => depth += 1,
            ')' | ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(head: &str) -> Result<(Vec<String>, String), String> {
        let code = format!(
            "class Other(Module):\n  def forward(self: __torch__.Other) -> int:\n    return 1\n\
             class Net(Module):\n  __parameters__ = []\n  def forward(self: __torch__.Net{head}\n    return x\n\
             class Last(Module):\n  def forward(self: __torch__.Last,\n    z: Tensor) -> Tensor:\n    return z\n"
        );
        let found = Forward::find(&code, "Net");
        found.map(|forward| (forward.inputs, forward.result)).map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_and_result_of_forward() {
        let check = |head: &str, inputs: &[&str], result: &str| {
            let inputs = inputs.iter().map(|name| (*name).to_owned()).collect();
            assert_eq!(find(head), Ok((inputs, result.into())), "{head}");
        };
        check(",\n    x: Tensor) -> Tensor:", &["x"], "Tensor");
        check(
            ",\n    ids: Tensor,\n    mask: Tensor) -> Tuple[Tensor, Tensor]:",
            &["ids", "mask"],
            "Tuple[Tensor, Tensor]",
        );
        check(
            ",\n    x: Tensor,\n    mask: Optional[Tensor]=None,\n    scale: float=1.) -> Dict[str, Tensor]:",
            &["x"],
            "Dict[str, Tensor]",
        );
        check(") -> Tensor:", &[], "Tensor");
    }

    #[test]
    fn what_cannot_be_called_is_named() {
        let check = |head: &str, expected: &str| assert_eq!(find(head), Err(expected.into()), "{head}");
        check(
            ",\n    x: Tensor,\n    n: int) -> Tensor:",
            "argument `n` of its `forward` is of type int, only tensors are carried",
        );
        check(
            ",\n    xs: List[Tensor]) -> Tensor:",
            "argument `xs` of its `forward` is of type List[Tensor], only tensors are carried",
        );
        check(",\n    x: Tensor", "the head of its `forward` is not understood");
        assert_eq!(
            Forward::find("class Net(Module):\n  def run(self) -> int:\n", "Net"),
            Err(ForwardError::Missing)
        );
        assert_eq!(Forward::find("", "Net"), Err(ForwardError::Missing));
    }
}
