//! What holds a worker, what was switched off, what the kernel here lacks; and what to tell the user of a refusal.

use std::fmt;
use std::path::PathBuf;

use crate::setting;

/// A part of the sandbox. Each can be switched off by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Part {
    /// No program gains rights by being started (set-user-id bits, file capabilities).
    NoNewPrivileges,
    /// Of root's capabilities only those over files are kept.
    Capabilities,
    /// Files outside the policy can neither be read nor written.
    Files,
    /// Signals reach only the worker's own processes.
    Signals,
    /// System calls outside a list are refused.
    SystemCalls,
    /// No connections, or only to declared ports.
    Network,
    /// No Unix sockets but those that the worker was given.
    UnixSockets,
    /// Memory is bounded.
    Memory,
    /// Processes and threads are bounded.
    Processes,
    /// Processor time is bounded.
    Cpu,
    /// Workers are the first to be killed when the machine's memory runs out.
    OutOfMemoryFirst,
    /// Credentials are taken out of the environment.
    Environment,
}

impl Part {
    /// All parts, in the order in which they are reported.
    pub const ALL: [Self; 12] = [
        Self::NoNewPrivileges,
        Self::Capabilities,
        Self::Files,
        Self::Signals,
        Self::SystemCalls,
        Self::Network,
        Self::UnixSockets,
        Self::Memory,
        Self::Processes,
        Self::Cpu,
        Self::OutOfMemoryFirst,
        Self::Environment,
    ];

    /// The part's name in the configuration and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::NoNewPrivileges => "no_new_privs",
            Self::Capabilities => "capabilities",
            Self::Files => "files",
            Self::Signals => "signals",
            Self::SystemCalls => "system_calls",
            Self::Network => "network",
            Self::UnixSockets => "unix_sockets",
            Self::Memory => "memory",
            Self::Processes => "processes",
            Self::Cpu => "cpu",
            Self::OutOfMemoryFirst => "oom_first",
            Self::Environment => "environment",
        }
    }

    /// The part of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|part| part.name() == name)
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether a part holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It holds; the text says by which means, and how far.
    Active(String),
    /// It holds in part.
    Partly {
        /// By which means, and how far.
        means: String,
        /// What it does not hold, and why.
        lacking: String,
    },
    /// The operator's choice.
    Off {
        /// The setting that switches it.
        setting: &'static str,
    },
    /// It was asked for and does not hold here.
    Unavailable(String),
}

/// What a [`Policy`](crate::Policy) comes to on this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub(crate) entries: Vec<(Part, State)>,
    pub(crate) missing_paths: Vec<PathBuf>,
}

impl Report {
    /// Each part once, in the order of [`Part::ALL`].
    pub fn entries(&self) -> impl Iterator<Item = (Part, &State)> {
        self.entries.iter().map(|(part, state)| (*part, state))
    }

    /// How it stands with one part.
    pub fn state(&self, part: Part) -> Option<&State> {
        self.entries.iter().find(|(other, _)| *other == part).map(|(_, state)| state)
    }

    /// Whether the part holds, at least partly.
    pub fn is_active(&self, part: Part) -> bool {
        matches!(self.state(part), Some(State::Active(_) | State::Partly { .. }))
    }

    /// What was asked for and does not hold, or not fully, with the reason: to be said once, loudly.
    pub fn unavailable(&self) -> impl Iterator<Item = (Part, &str)> {
        self.entries.iter().filter_map(|(part, state)| match state {
            State::Unavailable(reason) | State::Partly { lacking: reason, .. } => {
                Some((*part, reason.as_str()))
            }
            _ => None,
        })
    }

    /// Paths that the operator has named and that could not be opened: the worker cannot use them either.
    pub fn missing_paths(&self) -> &[PathBuf] {
        &self.missing_paths
    }

    pub(crate) fn set(&mut self, part: Part, state: State) {
        match self.entries.iter_mut().find(|(other, _)| *other == part) {
            Some(entry) => entry.1 = state,
            None => self.entries.push((part, state)),
        }
    }
}

impl fmt::Display for Report {
    /// One line for each part.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (part, state)) in self.entries.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            match state {
                State::Active(means) => write!(f, "{part}: on ({means})")?,
                State::Partly { means, lacking } => write!(f, "{part}: on ({means}), NOT FULLY: {lacking}")?,
                State::Off { setting } => write!(f, "{part}: off ({setting})")?,
                State::Unavailable(reason) => write!(f, "{part}: NOT ENFORCED: {reason}")?,
            }
        }
        Ok(())
    }
}

/// What kind of thing the sandbox has refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Opening, making or removing a file: EACCES, with a file name.
    File,
    /// Making a socket, connecting or binding it: EACCES, without a file name.
    Network,
    /// Looking up a host's name.
    Name,
    /// A system call that is not on the list, or a signal to a foreign process: EPERM.
    SystemCall,
    /// Memory: ENOMEM, Python's MemoryError.
    Memory,
    /// Another process or thread: EAGAIN from fork or thread creation.
    Process,
}

impl Refused {
    /// What an error number of a failed operating-system call means under the sandbox. `has_path`: the error names a file.
    /// `None` for numbers that the sandbox never gives.
    pub fn from_errno(errno: i32, has_path: bool) -> Option<Self> {
        match errno {
            EACCES if has_path => Some(Self::File),
            // Renames and links between directories with different rights.
            EXDEV if has_path => Some(Self::File),
            EACCES => Some(Self::Network),
            EPERM => Some(Self::SystemCall),
            ENOMEM => Some(Self::Memory),
            EAGAIN => Some(Self::Process),
            _ => None,
        }
    }
}

// The same numbers on every Linux this is built for; written out so that hints can be made anywhere.
const EPERM: i32 = 1;
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const EXDEV: i32 = 18;

/// One line that tells the user of a refusal which setting is behind it; `None` where the part that would have refused is not
/// active, so that the cause lies elsewhere.
///
/// Error numbers cannot carry a text, so the worker host appends this line to the traceback of an exception whose number
/// [`Refused::from_errno`] knows. It says "may be": the kernel itself uses the same numbers.
pub fn hint(refused: Refused, report: &Report) -> Option<String> {
    let any = |parts: &[Part]| parts.iter().any(|part| report.is_active(*part));
    let text = match refused {
        Refused::File if any(&[Part::Files]) => format!(
            "the sandbox may have refused this path: scripts read the model directory and their own code, and write the scratch \
             directory ($TMPDIR) and ./outputs; name further paths in {} or {}, programs to start need {}",
            setting::READ,
            setting::WRITE,
            setting::EXECUTE,
        ),
        Refused::Network if any(&[Part::Network, Part::UnixSockets]) => format!(
            "the sandbox may have refused this connection: set {} = \"on\", or list the loopback ports that scripts may use; \
             Unix sockets need {}",
            setting::NETWORK,
            setting::UNIX_SOCKETS,
        ),
        Refused::Name if any(&[Part::Network]) => {
            format!("the sandbox lets scripts look up no host names while {} is not \"on\"", setting::NETWORK)
        }
        Refused::SystemCall if any(&[Part::SystemCalls, Part::Signals, Part::Capabilities]) => format!(
            "the sandbox may have refused this operation, which scripts do not usually need: {} = [\"{}\"] allows all system calls, \
             [\"{}\"] signals to foreign processes, [\"{}\"] what root may do",
            setting::OFF,
            Part::SystemCalls,
            Part::Signals,
            Part::Capabilities,
        ),
        Refused::Memory if any(&[Part::Memory]) => {
            format!("the worker may have reached its memory limit, {}", setting::MEMORY)
        }
        Refused::Process if any(&[Part::Processes]) => {
            format!("the worker may have reached its limit of processes and threads, {}", setting::PROCESSES)
        }
        _ => return None,
    };
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn active(part: Part) -> Report {
        let mut report = Report::default();
        report.set(part, State::Active("test".into()));
        report
    }

    #[test]
    fn names_of_parts_are_unique_and_found_again() {
        for part in Part::ALL {
            assert_eq!(Part::from_name(part.name()), Some(part));
        }
        assert_eq!(Part::from_name("landlock"), None);
    }

    #[test]
    fn a_hint_names_its_setting_and_only_where_its_part_holds() {
        let cases = [
            (Refused::File, Part::Files, setting::WRITE),
            (Refused::Network, Part::Network, setting::NETWORK),
            (Refused::Network, Part::UnixSockets, setting::UNIX_SOCKETS),
            (Refused::Name, Part::Network, setting::NETWORK),
            (Refused::SystemCall, Part::SystemCalls, setting::OFF),
            (Refused::Memory, Part::Memory, setting::MEMORY),
            (Refused::Process, Part::Processes, setting::PROCESSES),
        ];
        for (refused, part, setting) in cases {
            let text = hint(refused, &active(part)).expect("the part is active");
            assert!(text.contains(setting), "{refused:?}: {text}");
            assert_eq!(hint(refused, &Report::default()), None, "{refused:?}");
        }
    }

    #[test]
    fn error_numbers_are_told_apart_by_whether_a_file_is_named() {
        let cases = [
            ((EACCES, true), Some(Refused::File)),
            ((EACCES, false), Some(Refused::Network)),
            ((EPERM, false), Some(Refused::SystemCall)),
            ((EAGAIN, false), Some(Refused::Process)),
            ((ENOMEM, false), Some(Refused::Memory)),
            ((2, true), None),
        ];
        for ((errno, has_path), expected) in cases {
            assert_eq!(Refused::from_errno(errno, has_path), expected, "{errno}");
        }
    }

    #[test]
    fn the_report_shows_each_state() {
        let mut report = active(Part::Files);
        report.set(Part::Network, State::Off { setting: setting::NETWORK });
        report.set(Part::Cpu, State::Unavailable("no cgroup".into()));
        assert_eq!(
            report.to_string(),
            "files: on (test)\nnetwork: off (script.network)\ncpu: NOT ENFORCED: no cgroup"
        );
        assert_eq!(report.unavailable().collect::<Vec<_>>(), [(Part::Cpu, "no cgroup")]);
    }
}
