//! Whether this process is in a container: there loopback is reached by nobody else, and who may reach another address the container's
//! engine decides, or the cluster.

use std::path::Path;

use outrigger_auth::Surroundings;

use super::getter::Getter;
use super::key::PROCESS_CONTAINER;
use super::{Settings, Sources};

/// Variables that only exist where the process is in a container: of systemd's interface for containers (Podman, LXC and nspawn set it), of Kubernetes, and
/// of the platforms that start a container and say at which port they ask it.
const VARIABLES: &[&str] =
    &["container", "KUBERNETES_SERVICE_HOST", "AIP_HTTP_PORT", "SAGEMAKER_BIND_TO_PORT"];
/// Files that engines leave: Docker's, Podman's.
const FILES: &[&str] = &[".dockerenv", "run/.containerenv"];
/// How the control groups are called that engines put a container's processes into, where the process sees its own by their full names.
const GROUPS: &[&str] = &["/docker/", "/kubepods", "/lxc/", "/lxc.payload", "/ecs/"];
/// How those are that have the container's own name in theirs, which ends as [`is_a_containers`] says: services of the engines begin so, too.
const NAMED_GROUPS: &[&str] = &["docker-", "libpod-", "cri-containerd-", "crio-"];

/// Whether it is, by what the configuration says, and else by what was found.
pub(super) fn is_one(settings: &Settings, sources: &Sources) -> bool {
    match (Getter { settings }).text(PROCESS_CONTAINER).as_str() {
        "true" => true,
        "false" => false,
        _ => sources.container.is_some(),
    }
}

/// Who else is where this process is.
pub(super) fn surroundings(settings: &Settings, sources: &Sources) -> Surroundings {
    if is_one(settings, sources) { Surroundings::Container } else { Surroundings::Machine }
}

/// What says that it is, if anything does: the environment, and files below `root`, which is the file system's.
pub fn evidence(environment: &[(String, String)], root: &Path) -> Option<String> {
    let is_set = |name: &&&str| environment.iter().any(|(known, value)| known == **name && !value.is_empty());
    if let Some(name) = VARIABLES.iter().find(is_set) {
        return Some(format!("the variable {name}"));
    }
    if let Some(file) = FILES.iter().find(|file| root.join(file).exists()) {
        return Some(format!("/{file}"));
    }
    let groups = std::fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let names = groups.lines().filter_map(|line| line.splitn(3, ':').nth(2));
    let is_engines =
        |name: &str| GROUPS.iter().any(|group| name.contains(group)) || name.split('/').any(is_a_containers);
    names.into_iter().any(is_engines).then(|| "its control group".to_owned())
}

/// Whether a part of a control group's name is that of a container: an engine's word, and its identifier or the end `.scope`.
fn is_a_containers(part: &str) -> bool {
    NAMED_GROUPS.iter().filter_map(|engine| part.strip_prefix(engine)).any(|rest| {
        rest.ends_with(".scope") || (rest.len() >= 12 && rest.bytes().all(|byte| byte.is_ascii_hexdigit()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_told_by_what_engines_and_platforms_leave() {
        let check = |variable: &str, file: &str, text: &str, expected: Option<&str>| {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if !file.is_empty() {
                std::fs::write(&path, text).unwrap();
            }
            let (name, value) = variable.split_once('=').unwrap_or(("HOME", "/"));
            let environment = [(name.to_owned(), value.to_owned())];
            let found = evidence(&environment, root.path());
            assert_eq!(found.as_deref(), expected, "{variable} {file} {text}");
        };
        check("", "", "", None);
        check("KUBERNETES_SERVICE_HOST=10.0.0.1", "", "", Some("the variable KUBERNETES_SERVICE_HOST"));
        check("KUBERNETES_SERVICE_HOST=", "", "", None);
        check("container=podman", "", "", Some("the variable container"));
        check("AIP_HTTP_PORT=8080", "", "", Some("the variable AIP_HTTP_PORT"));
        check("", ".dockerenv", "", Some("/.dockerenv"));
        check("", "run/.containerenv", "", Some("/run/.containerenv"));
        let group = Some("its control group");
        let cgroup = "proc/self/cgroup";
        check("", cgroup, "12:memory:/docker/0123456789abcdef\n", group);
        check("", cgroup, "1:name=systemd:/kubepods/burstable/pod1/0123\n", group);
        check("", cgroup, "0::/system.slice/docker-0123456789.scope\n", group);
        check("", cgroup, "0::/kubepods.slice/cri-containerd-0123.scope\n", group);
        check("", cgroup, "0::/machine.slice/libpod-0123.scope\n", group);
        check("", cgroup, "0::/lxc.payload.web\n", group);
        // A service of the machine's, the engine's own among them, a person's session, and what is hidden.
        check("", cgroup, "0::/system.slice/docker.service\n", None);
        check("", cgroup, "0::/system.slice/docker-registry.service\n", None);
        check("", cgroup, "0::/system.slice/docker-0123456789ab.service\n", None);
        check("", cgroup, "0::/system.slice/crio-wipe.service\n", None);
        check("", cgroup, "0::/garden/docker-0123456789ab/init\n", group);
        check("", cgroup, "0::/user.slice/user-1000.slice/session-2.scope\n", None);
        check("", cgroup, "0::/\n", None);
    }
}
