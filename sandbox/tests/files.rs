//! Which files a confined process can use.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub)]

mod common;

use common::{Place, holds, script};
use outrigger_sandbox::{Execute, Part};

#[test]
fn the_model_is_read_only_and_what_lies_outside_is_out_of_reach() {
    let place = Place::new();
    if !holds(&place.policy(), &[Part::Files]) {
        return;
    }
    place.passes(
        &place.policy(),
        &script(
            r"
assert open(root + '/model/weights').read() == 'weights'
assert os.listdir(root + '/model') == ['weights']
refused(lambda: open(root + '/model/weights', 'w'), errno.EACCES)
refused(lambda: os.truncate(root + '/model/weights', 0), errno.EACCES)
refused(lambda: open(root + '/model/new', 'w'), errno.EACCES)
refused(lambda: os.remove(root + '/model/weights'), errno.EACCES)
refused(lambda: open(root + '/outside/secret'), errno.EACCES)
refused(lambda: os.listdir(root + '/outside'), errno.EACCES)
refused(lambda: open(root + '/outside/new', 'w'), errno.EACCES)
if os.path.exists('/etc/shadow'):
    refused(lambda: open('/etc/shadow'), errno.EACCES)
refused(lambda: open('/tmp/new', 'w'), errno.EACCES)
refused(lambda: os.listdir(root), errno.EACCES)
# Nor by a link, nor by moving it to where it may be read.
os.symlink(root + '/outside/secret', root + '/scratch/link')
refused(lambda: open(root + '/scratch/link').read(), errno.EACCES)
refused(lambda: os.link(root + '/outside/secret', root + '/scratch/hard'), errno.EACCES, errno.EXDEV)
refused(lambda: os.rename(root + '/outside/secret', root + '/scratch/moved'), errno.EACCES, errno.EXDEV)
refused(lambda: os.link(root + '/model/weights', root + '/scratch/hard'), errno.EACCES, errno.EXDEV)
",
        ),
    );
    assert_eq!(std::fs::read_to_string(place.path("model/weights")).unwrap(), "weights");
    assert_eq!(std::fs::read_to_string(place.path("outside/secret")).unwrap(), "secret");
}

#[test]
fn scratch_outputs_caches_and_shared_memory_are_writable() {
    let place = Place::new();
    place.passes(
        &place.policy(),
        &script(
            r"
import tempfile
with tempfile.TemporaryDirectory() as folder:
    assert folder.startswith(root + '/scratch')
    open(folder + '/a', 'w').write('a')
    os.mkdir(folder + '/sub')
    os.rename(folder + '/a', folder + '/sub/b')
    os.mkfifo(folder + '/pipe')
os.makedirs(os.path.expanduser('~/.cache/library'))
open(os.path.expanduser('~/.cache/library/file'), 'w').write('x')
os.makedirs(os.path.expanduser('~/.nv/ComputeCache'))
open(root + '/outputs/result.txt', 'w').write('result')
from multiprocessing import shared_memory
memory = shared_memory.SharedMemory(create=True, size=4096)
memory.buf[:4] = b'test'
memory.close(); memory.unlink()
for device in ['/dev/null', '/dev/zero', '/dev/urandom']:
    open(device, 'rb').read(1)
open('/dev/null', 'w').write('x')
",
        ),
    );
    assert_eq!(std::fs::read_to_string(place.path("outputs/result.txt")).unwrap(), "result");
}

#[test]
fn secrets_of_the_user_in_home_stay_his() {
    let place = Place::new();
    if !holds(&place.policy(), &[Part::Files]) {
        return;
    }
    for folder in [".ssh", ".aws", ".kube"] {
        std::fs::create_dir(place.path("home").join(folder)).unwrap();
        std::fs::write(place.path("home").join(folder).join("key"), "secret").unwrap();
    }
    place.passes(
        &place.policy(),
        &script("for f in ['.ssh', '.aws', '.kube']: refused(lambda: open(root + '/home/' + f + '/key'), errno.EACCES)"),
    );
}

#[test]
fn programs_run_unless_the_policy_says_which_ones() {
    let place = Place::new();
    if !holds(&place.policy(), &[Part::Files]) {
        return;
    }
    let run =
        "import subprocess\nrun = lambda *a: subprocess.run(a, check=True, capture_output=True).stdout\n";
    place.passes(&place.policy(), &script(&format!("{run}assert run('/bin/echo', 'hello') == b'hello\\n'")));

    let mut strict = place.policy();
    let interpreter = std::fs::canonicalize(common::python()).unwrap();
    strict.execute = Execute::Only(vec![interpreter]);
    place.passes(
        &strict,
        &script(&format!(
            "{run}refused(lambda: run('/bin/echo', 'hello'), errno.EACCES)\nassert run(sys.executable, '-c', 'print(1)') == b'1\\n'"
        )),
    );
}

#[test]
fn a_path_that_is_missing_is_told() {
    let place = Place::new();
    let mut policy = place.policy();
    policy.read.push(place.path("nowhere"));
    if !holds(&policy, &[Part::Files]) {
        return;
    }
    assert_eq!(policy.prepare().report().missing_paths(), [place.path("nowhere")]);
}

#[test]
fn a_part_that_is_off_confines_nothing() {
    let place = Place::new();
    let mut policy = place.policy();
    policy.off.extend(Part::ALL);
    place.passes(
        &policy,
        &script(
            r"
assert open(root + '/outside/secret').read() == 'secret'
held = lambda process: [line for line in open(f'/proc/{process}/status') if line.startswith(('NoNewPrivs', 'Seccomp', 'Cap'))]
assert held('self') == held(os.getppid())
",
        ),
    );
}
