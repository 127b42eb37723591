//! Landlock: files, ports, signals and abstract Unix sockets, as far as the kernel has rules for them.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope,
};

use crate::{Execute, Network, Part, Policy};

/// The version whose rights we ask for: the newest that was tried. What an older kernel lacks is left out.
const RIGHTS: ABI = ABI::V7;
/// The first with rules for TCP ports, and the first with scopes for signals and abstract sockets.
pub(crate) const PORTS_SINCE: i32 = 4;
pub(crate) const SCOPES_SINCE: i32 = 6;

/// Loaders of dynamic libraries: the kernel starts them with each program.
const LOADERS: &[&str] = &[
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
];

/// A ruleset that a process can put itself under.
pub(crate) struct Rules {
    pub(crate) fd: OwnedFd,
    pub(crate) missing: Vec<PathBuf>,
}

/// Which of the parts that Landlock holds a policy wants from a kernel of this version.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) files: bool,
    pub(crate) ports: bool,
    pub(crate) signals: bool,
    pub(crate) abstract_sockets: bool,
}

impl Wanted {
    pub(crate) fn by(policy: &Policy, abi: i32) -> Self {
        let confined = policy.network != Network::On && policy.wants(Part::Network);
        Self {
            files: policy.wants(Part::Files) && abi >= 1,
            ports: confined && abi >= PORTS_SINCE,
            signals: policy.wants(Part::Signals) && abi >= SCOPES_SINCE,
            // Also with the network on: what listens on an abstract address did not mean a worker.
            abstract_sockets: policy.wants(Part::UnixSockets) && abi >= SCOPES_SINCE,
        }
    }

    pub(crate) fn anything(self) -> bool {
        self.files || self.ports || self.signals || self.abstract_sockets
    }

    /// # Errors
    /// The kernel's, as text.
    pub(crate) fn build(self, policy: &Policy) -> Result<Rules, String> {
        let mut missing = Vec::new();
        let ruleset = self.fill(policy, &mut missing).map_err(|error| error.to_string())?;
        let fd: Option<OwnedFd> = ruleset.into();
        Ok(Rules { fd: fd.ok_or("the kernel made no ruleset")?, missing })
    }

    fn fill(
        self,
        policy: &Policy,
        missing: &mut Vec<PathBuf>,
    ) -> Result<RulesetCreated, landlock::RulesetError> {
        let mut ruleset = Ruleset::default();
        if self.files {
            ruleset = ruleset.handle_access(AccessFs::from_all(RIGHTS))?;
        }
        if self.ports {
            ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
        }
        if self.signals {
            ruleset = ruleset.scope(Scope::Signal)?;
        }
        if self.abstract_sockets {
            ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
        }
        let mut created = ruleset.create()?;
        if self.files {
            created = files(created, policy, missing)?;
        }
        if let (true, Network::Ports(ports)) = (self.ports, &policy.network) {
            for port in ports {
                created = created.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
            }
        }
        Ok(created)
    }
}

fn files(
    mut ruleset: RulesetCreated,
    policy: &Policy,
    missing: &mut Vec<PathBuf>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    let execute = match policy.execute {
        Execute::Readable => BitFlags::from(AccessFs::Execute),
        Execute::Only(_) => BitFlags::EMPTY,
    };
    let read = AccessFs::ReadFile | AccessFs::ReadDir | execute;
    // No device nodes: nobody who makes models makes those.
    let write = (AccessFs::from_all(RIGHTS) & !(AccessFs::Execute | AccessFs::MakeBlock | AccessFs::MakeChar | AccessFs::IoctlDev))
        // A program that a script has written may run where any readable program may.
        | execute;
    let device = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::IoctlDev;
    let mut add =
        |paths: &[PathBuf], access: BitFlags<AccessFs>, named: bool| -> Result<(), landlock::RulesetError> {
            for path in paths {
                match open(path) {
                    Some((fd, is_file)) => {
                        let access = if is_file { access & AccessFs::from_file(RIGHTS) } else { access };
                        add_rule(&mut ruleset, fd, access)?;
                    }
                    None if named => missing.push(path.clone()),
                    None => {}
                }
            }
            Ok(())
        };
    add(&policy.read, read, true)?;
    add(&policy.read_if_present, read, false)?;
    add(&policy.write, write, true)?;
    add(&policy.write_if_present, write, false)?;
    add(&policy.devices, device, false)?;
    if let Execute::Only(programs) = &policy.execute {
        let run = AccessFs::ReadFile | AccessFs::Execute;
        add(programs, run, true)?;
        add(&LOADERS.iter().map(PathBuf::from).collect::<Vec<_>>(), run, false)?;
    }
    Ok(ruleset)
}

fn open(path: &Path) -> Option<(PathFd, bool)> {
    let is_file = !std::fs::metadata(path).ok()?.is_dir();
    Some((PathFd::new(path).ok()?, is_file))
}

fn add_rule(
    ruleset: &mut RulesetCreated,
    fd: PathFd,
    access: BitFlags<AccessFs>,
) -> Result<(), landlock::RulesetError> {
    ruleset.add_rule(PathBeneath::new(fd, access)).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_asked_of_kernels_that_have_it() {
        let policy = Policy::default();
        let wanted = |abi| Wanted::by(&policy, abi);
        assert!(!wanted(0).anything());
        assert!(
            wanted(1).files && !wanted(3).ports && wanted(4).ports && !wanted(5).signals && wanted(6).signals
        );
    }

    #[test]
    fn a_part_that_is_off_is_not_asked_for() {
        let off = [Part::Files, Part::Signals, Part::UnixSockets].into();
        let policy = Policy { network: Network::On, off, ..Policy::default() };
        assert!(!Wanted::by(&policy, 7).anything());
    }
}
