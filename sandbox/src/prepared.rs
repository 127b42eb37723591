//! From a policy to what a child process does to itself, and to a report of what that is worth here.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::process::Command;
use std::sync::Arc;

use crate::cgroup::{Cgroup, Controller, Groups};
use crate::sys::{self, Step, Steps};
use crate::{Network, Part, Policy, Report, State, calls, files, setting};

/// Capabilities over files, and locking memory: what root in a container has them for. Where it may go is Landlock's
/// business. `CAP_CHOWN`, `CAP_DAC_OVERRIDE`, `CAP_FOWNER`, `CAP_FSETID`, `CAP_IPC_LOCK`.
const KEPT_CAPABILITIES: u64 = 1 << 0 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 14;
/// How much likelier than the replica a worker is to be killed when the machine's memory runs out; the scale ends at 1000.
const OOM_SCORE_ABOVE: i32 = 300;
const OOM_SCORE_MAX: i32 = 1000;

/// A policy made ready: what workers are confined by. Copies share everything.
#[derive(Clone, Debug)]
pub struct Prepared {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    steps: Arc<Steps>,
    groups: Option<Arc<Groups>>,
    report: Report,
}

impl Policy {
    /// Opens, compiles and tries out all that confining a worker takes. Never fails: what this machine lacks is in the report.
    ///
    /// It opens files and makes a process that ends at once, so it is for the start of a replica and not for its data path.
    pub fn prepare(&self) -> Prepared {
        let (groups, lacking_groups) = Groups::open(self);
        let mut machine = Machine { groups, lacking_groups, refused: BTreeMap::new() };
        let (steps, report) = loop {
            let (steps, report) = plan(self, &machine);
            match steps.try_out() {
                Ok(()) => break (steps, report),
                // What the kernel does not let us do is taken out, and the rest tried again.
                Err((Some(step), error)) if !machine.refused.contains_key(&step) => {
                    machine.refused.insert(step, error.to_string());
                }
                Err((_, error)) => {
                    machine.refused = Step::ALL.into_iter().map(|step| (step, error.to_string())).collect();
                    break plan(self, &machine);
                }
            }
        };
        Prepared {
            inner: Arc::new(Inner { steps: Arc::new(steps), groups: machine.groups.map(Arc::new), report }),
        }
    }
}

impl Prepared {
    /// What holds, what is switched off and what this machine lacks.
    pub fn report(&self) -> &Report {
        &self.inner.report
    }

    /// Makes a control group for a worker; `None` where no limit is held by one.
    ///
    /// # Errors
    /// The operating system's.
    pub fn cgroup(&self) -> io::Result<Option<Cgroup>> {
        self.inner.groups.as_ref().map(Groups::create).transpose()
    }

    /// Confines what `command` will start, from before its first instruction; `group` is the one it is to live in. For
    /// tokio's `Command`, give `as_std_mut()`.
    ///
    /// Put other closures of `pre_exec` that need more than the policy allows before this.
    ///
    /// # Errors
    /// A descriptor could not be copied. That confining fails is an error of the command's `spawn`: nothing is started then.
    pub fn confine(&self, command: &mut Command, group: Option<&Cgroup>) -> io::Result<()> {
        let groups: Vec<File> = group.map(Cgroup::joiners).transpose()?.unwrap_or_default();
        sys::before_exec(command, Arc::clone(&self.inner.steps), groups);
        Ok(())
    }

    /// Confines the calling thread, and what it starts, for good: for a process that confines itself, or between fork and
    /// exec. Only system calls are made.
    ///
    /// # Errors
    /// The operating system's. Some of the confinement may be in place then: the process should end.
    pub fn enter(&self) -> io::Result<()> {
        self.inner.steps.enter(&[]).map_err(|(_, error)| error)
    }
}

/// What is known of the machine.
struct Machine {
    groups: Option<Groups>,
    lacking_groups: Vec<(Controller, String)>,
    /// Steps that were tried and refused.
    refused: BTreeMap<Step, String>,
}

fn plan(policy: &Policy, machine: &Machine) -> (Steps, Report) {
    let refused = |step| machine.refused.get(&step);
    let mut report = Report::default();
    for part in Part::ALL {
        report.set(part, State::Off { setting: setting::OFF });
    }

    let version = if refused(Step::Landlock).is_some() { 0 } else { sys::landlock_version() };
    let mut wanted = files::Wanted::by(policy, version);
    let built = if wanted.anything() { wanted.build(policy).map(Some) } else { Ok(None) };
    let why_no_landlock = match (&built, refused(Step::Landlock)) {
        (Err(why), _) | (_, Some(why)) => why.clone(),
        _ if version == 0 => {
            "this kernel has no Landlock, or it is not switched on (lsm=landlock)".to_owned()
        }
        _ => format!("this kernel has Landlock version {version}"),
    };
    let rules = built.unwrap_or_default();
    if rules.is_none() {
        wanted = files::Wanted::default();
    }

    let compiled = match refused(Step::Filters) {
        Some(why) => Err(why.clone()),
        None => calls::Wanted::by(policy, wanted.ports).compile(),
    };
    let lacking_filters =
        compiled.as_ref().err().map(|why| format!("this machine refuses seccomp filters: {why}"));
    let filters = compiled.unwrap_or_default();

    let mut steps = Steps { landlock: None, filters, ..Steps::default() };
    if let Some(rules) = rules {
        report.missing_paths = rules.missing;
        steps.landlock = Some(rules.fd);
    }
    privileges(policy, machine, &mut steps, &mut report);
    let filters = lacking_filters.as_deref().map_or(Ok(()), Err);
    if policy.wants(Part::Files) {
        report.set(Part::Files, files_state(wanted.files, version, &why_no_landlock));
    }
    if policy.wants(Part::Signals) {
        report.set(
            Part::Signals,
            match wanted.signals {
                true => State::Active("Landlock: to the worker's own processes alone".into()),
                false => State::Unavailable(format!(
                    "it takes Landlock version {} (Linux 6.12); {why_no_landlock}",
                    files::SCOPES_SINCE
                )),
            },
        );
    }
    if policy.wants(Part::SystemCalls) {
        report.set(
            Part::SystemCalls,
            match filters {
                Ok(()) => State::Active("seccomp: those that Python and its libraries need".into()),
                Err(why) => State::Unavailable(why.into()),
            },
        );
    }
    if policy.wants(Part::Network) {
        report.set(Part::Network, network_state(&policy.network, filters, wanted.ports, &why_no_landlock));
    }
    if policy.wants(Part::UnixSockets) {
        report.set(Part::UnixSockets, unix_state(policy, filters, wanted.abstract_sockets, &why_no_landlock));
    }
    limits(policy, machine, &mut steps, &mut report);
    if policy.wants(Part::Environment) {
        report.set(
            Part::Environment,
            State::Active("credentials and the replica's settings are taken out".into()),
        );
    }
    (steps, report)
}

fn privileges(policy: &Policy, machine: &Machine, steps: &mut Steps, report: &mut Report) {
    let rested_on = steps.landlock.is_some() || !steps.filters.is_empty();
    if policy.wants(Part::NoNewPrivileges) || rested_on {
        match machine.refused.get(&Step::NoNewPrivileges) {
            Some(why) => report.set(Part::NoNewPrivileges, State::Unavailable(why.clone())),
            None => {
                steps.no_new_privileges = true;
                let means = match policy.wants(Part::NoNewPrivileges) {
                    true => "no program gains rights by being started",
                    false => "other parts need it",
                };
                report.set(Part::NoNewPrivileges, State::Active(means.into()));
            }
        }
    }
    if policy.wants(Part::Capabilities) {
        let state = match (machine.refused.get(&Step::Capabilities), sys::capabilities()) {
            (Some(why), _) => State::Unavailable(why.clone()),
            (None, Err(error)) => State::Unavailable(error.to_string()),
            (None, Ok(held)) => {
                steps.capabilities = Some(KEPT_CAPABILITIES);
                match (held & !KEPT_CAPABILITIES).count_ones() {
                    0 => State::Active("the replica has none but those over files".into()),
                    dropped => State::Active(format!("{dropped} of the replica's are dropped")),
                }
            }
        };
        report.set(Part::Capabilities, state);
    }
}

fn files_state(held: bool, version: i32, why_not: &str) -> State {
    let means = format!("Landlock version {version}");
    match (held, version) {
        (false, _) => State::Unavailable(why_not.into()),
        (true, 3..) => State::Active(means),
        (true, _) => State::Partly {
            means,
            lacking: "files that may only be read can be cut short (it takes Linux 6.2)".into(),
        },
    }
}

fn network_state(network: &Network, filters: Result<(), &str>, landlock: bool, why_not: &str) -> State {
    let listed = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    match (network, filters) {
        (Network::On, _) => State::Off { setting: setting::NETWORK },
        (Network::Off, Ok(())) => State::Active("seccomp: no internet sockets".into()),
        (Network::Ports(ports), Ok(())) if ports.is_empty() => {
            State::Active("seccomp: no internet sockets".into())
        }
        (Network::Ports(ports), Ok(())) if landlock => State::Active(format!(
            "seccomp and Landlock: TCP by IPv4 to port {} alone, of any host",
            listed(ports)
        )),
        (Network::Ports(ports), Ok(())) => State::Partly {
            means: "seccomp: no internet sockets".into(),
            lacking: format!(
                "port {} cannot be allowed by itself and is refused too; it takes Landlock version {} (Linux 6.7); {why_not}; {} = \
                 \"on\" allows everything",
                listed(ports),
                files::PORTS_SINCE,
                setting::NETWORK,
            ),
        },
        (_, Err(why)) if landlock => State::Partly {
            means: "Landlock: TCP".into(),
            lacking: format!("UDP and other protocols; {why}"),
        },
        (_, Err(why)) => State::Unavailable(why.into()),
    }
}

fn unix_state(policy: &Policy, filters: Result<(), &str>, scoped: bool, why_not: &str) -> State {
    let chosen = if policy.network == Network::On || !policy.wants(Part::Network) {
        Some(setting::NETWORK)
    } else {
        policy.unix_sockets.then_some(setting::UNIX_SOCKETS)
    };
    match (chosen, filters) {
        (Some(setting), _) if scoped => State::Active(format!(
            "Landlock: abstract addresses of others; sockets in files are open ({setting})"
        )),
        (Some(setting), _) => State::Off { setting },
        (None, Ok(())) => State::Active("seccomp: pairs alone can be made".into()),
        (None, Err(why)) if scoped => State::Partly {
            means: "Landlock: abstract addresses of others".into(),
            lacking: format!("sockets in files; {why}"),
        },
        (None, Err(why)) => State::Unavailable(format!("{why}; {why_not}")),
    }
}

fn limits(policy: &Policy, machine: &Machine, steps: &mut Steps, report: &mut Report) {
    let sizes = [
        (Controller::Memory, policy.memory, setting::MEMORY, "bytes"),
        (Controller::Pids, policy.processes, setting::PROCESSES, "processes and threads"),
        (Controller::Cpu, policy.cpu_millicores, setting::CPU, "thousandths of a core"),
    ];
    for (controller, limit, setting, unit) in sizes {
        if !policy.wants(controller.part()) {
            continue;
        }
        let Some(limit) = limit else {
            report.set(controller.part(), State::Off { setting });
            continue;
        };
        let groups = machine.groups.as_ref().filter(|groups| groups.holds(controller));
        if let Some(groups) = groups {
            report.set(
                controller.part(),
                State::Active(format!(
                    "control group version {}: {limit} {unit} for each worker",
                    groups.version()
                )),
            );
            continue;
        }
        let found = machine.lacking_groups.iter().find(|(other, _)| *other == controller);
        let why = found.map_or("no control group", |(_, why)| why);
        let state = match controller {
            Controller::Memory if !machine.refused.contains_key(&Step::Limits) => {
                steps.data_limit = Some(limit);
                State::Partly {
                    means: format!("RLIMIT_DATA: {limit} {unit} for each process"),
                    lacking: format!(
                        "what several processes of a worker take together, and shared memory; {why}"
                    ),
                }
            }
            // RLIMIT_NPROC counts all processes of the user, in other containers too: it would refuse the innocent.
            Controller::Memory | Controller::Pids | Controller::Cpu => State::Unavailable(why.into()),
        };
        report.set(controller.part(), state);
    }
    if policy.wants(Part::OutOfMemoryFirst) {
        let state = match (machine.refused.get(&Step::OomScore), oom_score()) {
            (Some(why), _) => State::Unavailable(why.clone()),
            (None, Err(error)) => State::Unavailable(format!("/proc/self/oom_score_adj: {error}")),
            (None, Ok(score)) => {
                steps.oom_score = Some(score.to_string());
                State::Active(format!("oom_score_adj {score}"))
            }
        };
        report.set(Part::OutOfMemoryFirst, state);
    }
}

fn oom_score() -> io::Result<i32> {
    let own = std::fs::read_to_string("/proc/self/oom_score_adj")?;
    let own: i32 = own.trim().parse().map_err(|_| io::ErrorKind::InvalidData)?;
    Ok((own + OOM_SCORE_ABOVE).min(OOM_SCORE_MAX))
}
