//! What the tensor case cannot do without: the NumPy call, in a Python process with nothing around it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context as _;
use tempfile::NamedTempFile;

use crate::entries;

/// Calls that one figure is the mean of.
const CALLS: u32 = 2000;

/// A Python process that makes the call when asked. It ends when dropped, since that closes its stdin.
pub(crate) struct NumpyCall {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
}

impl NumpyCall {
    /// Starts it, and makes the first calls.
    ///
    /// # Errors
    /// If it does not come up.
    pub(crate) fn start(body: &[u8]) -> anyhow::Result<Self> {
        let mut file = NamedTempFile::new()?;
        file.write_all(body)?;
        let mut child = Command::new(outrigger_testkit::python())
            .arg(entries::folder().join("numpy_call.py"))
            .arg(file.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut call = Self { child, stdin, stdout };
        call.cpu_per_call()?;
        Ok(call)
    }

    /// CPU time of one call in microseconds, the mean of many.
    ///
    /// # Errors
    /// If the process has ended.
    pub(crate) fn cpu_per_call(&mut self) -> anyhow::Result<f64> {
        writeln!(self.stdin.as_mut().context("stdin")?, "{CALLS}")?;
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        let nanoseconds: f64 = line.trim().parse().with_context(|| format!("numpy_call.py said {line:?}"))?;
        Ok(nanoseconds / 1e3 / f64::from(CALLS))
    }
}

impl Drop for NumpyCall {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}
