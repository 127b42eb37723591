//! Models: a word that says what to do, and what it needs to know.

use std::time::Duration;

use outrigger_backend::{BackendError, DataType, LoadOptions, ModelInfo, TensorInfo};

/// What `identity` takes.
pub const TYPES: [DataType; 4] = [DataType::Fp32, DataType::Fp64, DataType::Uint8, DataType::Int64];

/// Bytes that a model takes on the device, unless it or its setting `weights` says so.
const WEIGHTS: u64 = 42;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    Add,
    Identity,
    NonZero,
    /// x `[n, 1]` plus y `[1, m]`.
    Outer,
    /// Takes that long, unless it is cancelled.
    Slow(Duration),
    /// Takes that long, also if it is cancelled.
    Stubborn(Duration),
    Panic,
    Fail,
    Keep,
    /// Adds, and holds as much again from its first run on.
    Hoard,
}

pub(crate) struct Text {
    pub(crate) task: Task,
    pub(crate) info: ModelInfo,
    /// Bytes that it takes on the device.
    pub(crate) weights: u64,
}

impl Text {
    pub(crate) fn read(options: &LoadOptions) -> Result<Self, BackendError> {
        let broken = |why: String| BackendError::Load(format!("{}: {why}", options.path.display()));
        let mut weights = None;
        for (key, value) in &options.settings {
            match key.as_str() {
                "weights" => weights = value.parse().ok(),
                _ => return Err(broken(format!("unknown setting `{key}`"))),
            }
        }
        if let Some(format) = options.format.as_deref().filter(|format| *format != "text") {
            return Err(broken(format!("format `{format}` is not known")));
        }
        let text = std::fs::read_to_string(&options.path).map_err(|error| broken(error.to_string()))?;
        // A format that says nothing of inputs and outputs.
        let said = || Self { task: Task::Add, info: options.signature.clone(), weights: WEIGHTS };
        let model = if text.starts_with("said ") { Some(said()) } else { Self::parse(&text) };
        let model = model.ok_or_else(|| broken("no model".into()))?;
        Ok(Self { weights: weights.unwrap_or(model.weights), ..model })
    }

    /// Adds rows of three.
    pub(crate) fn sum() -> Self {
        let info = ModelInfo {
            inputs: vec![row("x", DataType::Fp32, 3), row("y", DataType::Fp32, 3)],
            outputs: vec![row("z", DataType::Fp32, 3)],
        };
        Self { task: Task::Add, info, weights: WEIGHTS }
    }

    fn parse(text: &str) -> Option<Self> {
        use DataType::{Fp32, Int64};
        let (word, rest) = text.split_once(' ')?;
        let add = || {
            let ModelInfo { inputs, outputs } = Self::sum().info;
            [inputs, outputs]
        };
        let mut weights = WEIGHTS;
        let (task, [inputs, outputs]) = match word {
            "add" => (Task::Add, add()),
            "panic" => (Task::Panic, add()),
            "fail" => (Task::Fail, add()),
            "keep" => (Task::Keep, add()),
            "hoard" => (Task::Hoard, add()),
            "slow" => (Task::Slow(Duration::from_millis(rest.parse().ok()?)), add()),
            "stubborn" => (Task::Stubborn(Duration::from_millis(rest.parse().ok()?)), add()),
            "weights" => {
                weights = rest.parse().ok()?;
                (Task::Add, add())
            }
            "identity" => {
                let types = TYPES.into_iter().chain([DataType::Bytes]);
                let data_type = types.into_iter().find(|data_type| data_type.name() == rest)?;
                (Task::Identity, [vec![row("x", data_type, 2)], vec![row("y", data_type, 2)]])
            }
            "nonzero" => {
                let x = TensorInfo::new("x", Fp32, &[(-1, "")]);
                (Task::NonZero, [vec![x], vec![TensorInfo::new("y", Int64, &[(1, ""), (-1, "")])]])
            }
            "outer" => {
                let (x, y) = (
                    TensorInfo::new("x", Fp32, &[(-1, "n"), (1, "")]),
                    TensorInfo::new("y", Fp32, &[(1, ""), (-1, "m")]),
                );
                (Task::Outer, [vec![x, y], vec![TensorInfo::new("z", Fp32, &[(-1, "n"), (-1, "m")])]])
            }
            _ => return None,
        };
        Some(Self { task, info: ModelInfo { inputs, outputs }, weights })
    }
}

fn row(name: &str, data_type: DataType, width: i64) -> TensorInfo {
    TensorInfo::new(name, data_type, &[(-1, "batch"), (width, "")])
}
