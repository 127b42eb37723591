//! The `parameters` objects of a request, as far as they mean something here. What is not known is checked to be JSON and skipped.

use std::borrow::Cow;
use std::time::Duration;

use crate::call::{Form, Slice};
use crate::json::scan::{Fault, Scanner};
use crate::priority::Priority;
use crate::urgency::Urgency;

/// Those of the request.
#[derive(Default)]
pub(super) struct CallParameters {
    pub(super) urgency: Urgency,
    /// Whether outputs of which nothing is said are sent as bytes.
    pub(super) binary_output: bool,
}

/// Those of an input or an output.
#[derive(Default)]
pub(super) struct TensorParameters<'a> {
    /// How many of the bytes behind the JSON are this input's.
    pub(super) binary_size: Option<u64>,
    /// Whether this output is sent as bytes.
    pub(super) binary: Option<bool>,
    /// How many of the highest values are asked for in place of the output itself.
    pub(super) classification: u64,
    region: Option<Cow<'a, str>>,
    region_bytes: Option<u64>,
    region_offset: u64,
}

impl TensorParameters<'_> {
    /// The shared memory that is meant; `Err` if it is only half said.
    pub(super) fn slice(&self) -> Result<Option<Slice>, &'static str> {
        match (&self.region, self.region_bytes) {
            (None, None) => Ok(None),
            (Some(region), Some(bytes)) => {
                Ok(Some(Slice { region: region.to_string(), offset: self.region_offset, bytes }))
            }
            (Some(_), None) => Err("`shared_memory_region` without `shared_memory_byte_size`"),
            (None, Some(_)) => Err("`shared_memory_byte_size` without `shared_memory_region`"),
        }
    }

    /// The form of an output, where it says one.
    pub(super) fn form(&self) -> Result<Option<Form>, &'static str> {
        let shared = self.slice()?.map(Form::Shared);
        let said = self.binary.map(|binary| if binary { Form::Raw } else { Form::Values });
        Ok(shared.or(said))
    }
}

/// How urgent a number is: 1 is the most urgent, 0 says nothing.
pub(super) fn priority(number: u64) -> Option<Priority> {
    match number {
        0 => None,
        1 => Some(Priority::High),
        2 => Some(Priority::Normal),
        _ => Some(Priority::Low),
    }
}

/// A time limit in microseconds; 0 says nothing. What is longer than a day has a day.
pub(super) fn timeout(micros: u64) -> Option<Duration> {
    (micros > 0).then(|| Duration::from_micros(micros).min(Urgency::LONGEST))
}

/// Reads those of the request.
pub(super) fn of_call(scanner: &mut Scanner<'_>) -> Result<CallParameters, Fault> {
    let mut parameters = CallParameters::default();
    each(scanner, 1, |scanner, name| {
        match name {
            "timeout" => parameters.urgency.deadline = timeout(count(scanner)?),
            "priority" => parameters.urgency.priority = priority_value(scanner)?,
            "binary_data_output" => parameters.binary_output = scanner.boolean()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(parameters)
}

/// Reads those of an input or an output.
pub(super) fn of_tensor<'a>(scanner: &mut Scanner<'a>) -> Result<TensorParameters<'a>, Fault> {
    let mut parameters = TensorParameters::default();
    each(scanner, 3, |scanner, name| {
        match name {
            "binary_data_size" => parameters.binary_size = Some(count(scanner)?),
            "binary_data" => parameters.binary = Some(scanner.boolean()?),
            "classification" => parameters.classification = count(scanner)?,
            "shared_memory_region" => parameters.region = Some(scanner.string()?),
            "shared_memory_byte_size" => parameters.region_bytes = Some(count(scanner)?),
            "shared_memory_offset" => parameters.region_offset = count(scanner)?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(parameters)
}

/// Goes through the members of an object; `take` reads a value, or says that it does not know the name.
fn each<'a>(
    scanner: &mut Scanner<'a>,
    depth: usize,
    mut take: impl FnMut(&mut Scanner<'a>, &str) -> Result<bool, Fault>,
) -> Result<(), Fault> {
    scanner.open_object()?;
    let mut first = true;
    while let Some(name) = scanner.member(first)? {
        first = false;
        if !take(scanner, &name)? {
            scanner.skip_value(depth + 1)?;
        }
    }
    Ok(())
}

fn count(scanner: &mut Scanner<'_>) -> Result<u64, Fault> {
    scanner.number()?.integer(0, u64::MAX)
}

/// A number, or one of this server's own names.
fn priority_value(scanner: &mut Scanner<'_>) -> Result<Option<Priority>, Fault> {
    if scanner.peek() != Some(b'"') {
        return count(scanner).map(priority);
    }
    let name = scanner.string()?;
    Priority::from_name(&name).map(Some).ok_or(Fault::Kind("a number, high, normal or low"))
}
