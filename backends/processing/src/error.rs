//! What can be wrong with steps.

use outrigger_backend::{DataType, ShapeError};

/// Why a chain cannot be, or did not run.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum StepError {
    /// A step does not fit what it is given.
    #[error("step {number} (`{step}`): {problem}")]
    Step {
        /// Counted from 1.
        number: usize,
        /// Its name.
        step: &'static str,
        /// What is wrong.
        problem: Problem,
    },
    /// More steps than a chain may have.
    #[error("{0} steps are over the limit of {limit}", limit = crate::MAX_STEPS)]
    TooMany(usize),
    /// A tensor that was asked for is not there in the end.
    #[error("no tensor `{name}` is there after the steps, only {there}")]
    NoOutput {
        /// The name asked for.
        name: String,
        /// The names that there are.
        there: String,
    },
    /// Two inputs have one name.
    #[error("two inputs have the name `{0}`")]
    Twice(String),
    /// A run was given other tensors than were planned.
    #[error("input `{name}` is {actual}, planned was {expected}")]
    Input {
        /// Its name.
        name: String,
        /// What came.
        actual: String,
        /// What was planned.
        expected: String,
    },
    /// A run was given more or fewer tensors than were planned.
    #[error("{actual} inputs given, planned were {expected}")]
    Inputs {
        /// How many came.
        actual: usize,
        /// How many were planned.
        expected: usize,
    },
    /// A plan with free extents was to run.
    #[error("extents of tensor `{0}` are free; plan with those of the call")]
    Free(String),
    /// There is no memory for a result.
    #[error("there is no memory for {0} bytes")]
    Memory(usize),
    /// It was to end before it was through.
    #[error("the run was cancelled")]
    Cancelled,
}

/// What is wrong with a step.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum Problem {
    /// Nothing says which tensor is meant.
    #[error("`from` must say which tensor it takes, there are {there}")]
    Which {
        /// The names that there are.
        there: String,
    },
    /// A tensor that is not there.
    #[error("no tensor `{name}` is there, only {there}")]
    NoTensor {
        /// The name.
        name: String,
        /// The names that there are.
        there: String,
    },
    /// Both results would have one name.
    #[error("both of its results have the name `{0}`")]
    SameName(String),
    /// A type that it does not take.
    #[error("tensor `{tensor}` is {actual}, it takes {expected}")]
    Type {
        /// The tensor.
        tensor: String,
        /// Its type.
        actual: DataType,
        /// The types that it takes.
        expected: &'static str,
    },
    /// A type that it does not give.
    #[error("it gives {expected}, not {actual}")]
    Target {
        /// The type asked for.
        actual: DataType,
        /// The types that it gives.
        expected: &'static str,
    },
    /// Too few or too many axes.
    #[error("tensor `{tensor}` has {actual} axes, it takes {expected}")]
    Rank {
        /// The tensor.
        tensor: String,
        /// Its rank.
        actual: usize,
        /// What it takes: `3 or more`.
        expected: &'static str,
    },
    /// An axis that is none.
    #[error("there is no axis {axis}, tensor `{tensor}` has {rank}")]
    Axis {
        /// The axis.
        axis: i64,
        /// The tensor.
        tensor: String,
        /// Its rank.
        rank: usize,
    },
    /// A parameter with a value that it cannot have.
    #[error("`{name}` is {value}, it must be {expected}")]
    Parameter {
        /// The key.
        name: &'static str,
        /// Its value.
        value: String,
        /// What it may be.
        expected: &'static str,
    },
    /// Another number of values than of channels.
    #[error("`{name}` has {given} values, axis {axis} of tensor `{tensor}` has {channels}")]
    Channels {
        /// The key.
        name: &'static str,
        /// Its values.
        given: usize,
        /// The axis.
        axis: i64,
        /// The tensor.
        tensor: String,
        /// Channels.
        channels: i64,
    },
    /// More than there are.
    #[error("`k` is {k}, axis {axis} of tensor `{tensor}` has {extent}")]
    TooFew {
        /// How many are wanted.
        k: u32,
        /// The axis.
        axis: i64,
        /// The tensor.
        tensor: String,
        /// How many there are.
        extent: i64,
    },
    /// An image without pixels.
    #[error("tensor `{tensor}` has images of {height} x {width} pixels, out of which none can be made")]
    NoPixels {
        /// The tensor.
        tensor: String,
        /// Its height.
        height: i64,
        /// Its width.
        width: i64,
    },
    /// As many indices as rows are needed.
    #[error("tensor `{tensor}` has {rows} rows, `{indices}` has {given} indices")]
    Rows {
        /// The tensor.
        tensor: String,
        /// Its rows.
        rows: i64,
        /// The tensor of indices.
        indices: String,
        /// How many there are.
        given: i64,
    },
    /// An index outside: found at the run.
    #[error("index {index} in tensor `{tensor}` is outside 0 to {last}", last = *rows - 1)]
    Index {
        /// The index.
        index: i64,
        /// The tensor that has it.
        tensor: String,
        /// Rows that there are.
        rows: i64,
    },
    /// The result is no tensor.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}
