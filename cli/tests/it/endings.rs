//! Phases of a worker's life, and that nothing is left when a replica ends, however it ends.

use std::path::PathBuf;

use outrigger_testkit::Launch;
use outrigger_testkit::replica::message;
use rustix::process::Signal;

use crate::proof::{descendants, fork_server, groups, signal, state};
use crate::support::{ECHO, outrigger, score};

#[test]
fn a_phase_that_takes_too_long_names_its_key_and_shows_its_stack() {
    let forever = "    import time\n    time.sleep(3600)\n";
    let cases = [
        (
            "import",
            "script.import_timeout",
            format!("if True:\n{forever}def init(): pass\ndef run(data): pass\n"),
        ),
        ("init()", "script.init_timeout", format!("def init():\n{forever}def run(data): pass\n")),
        (
            "warmup()",
            "script.init_timeout",
            format!("def init(): pass\ndef warmup():\n{forever}def run(data): pass\n"),
        ),
        (
            "init()",
            "script.init_timeout",
            "def init():\n    sum(range(10 ** 18))\ndef run(data): pass\n".into(),
        ),
    ];
    let check = |(phase, key, script): (&str, &str, String)| {
        // As long as Python may take to come to the phase on a machine that does other things; the other phase has longer.
        let flag = format!("--{}", key.replace(['.', '_'], "-"));
        // The fork-server takes some time of its own to come up, which is not the script's.
        let args = [flag.as_str(), "4s", "--script-fork-server=false"];
        let ended = outrigger().script(&script).args(args).run();
        assert_eq!(ended.status.code(), Some(3), "{}", ended.text());
        let text = ended.text();
        assert!(text.contains(&format!("{phase} took longer than {key}")), "{phase}: {text}");
        assert!(text.contains("score.py\", line"), "{phase}: {text}");
    };
    let check = &check;
    std::thread::scope(|scope| cases.into_iter().for_each(|case| drop(scope.spawn(move || check(case)))));
}

fn left(temporary: &std::path::Path) -> Vec<PathBuf> {
    std::fs::read_dir(temporary).unwrap().flatten().map(|entry| entry.path()).collect()
}

fn in_directory(temporary: &std::path::Path) -> Launch {
    outrigger().env("TMPDIR", temporary)
}

/// In order: `shutdown()` and exit handlers run.
const TIDY: &str = r#"
import atexit, tempfile
def init():
    atexit.register(print, "exit handler ran", flush=True)
    tempfile.NamedTemporaryFile(delete=False).write(b"left behind")
def run(data):
    return data
def shutdown():
    print("shutdown ran")
"#;

#[tokio::test]
async fn sigterm_ends_workers_in_order_and_leaves_nothing() {
    for (name, extra) in [
        ("TERM", &[][..]),
        ("INT", &[]),
        ("TERM", &["--process-init=true"]),
        ("TERM", &["--script-fork-server=false"]),
    ] {
        let temporary = tempfile::tempdir().unwrap();
        let args = ["--script-workers", "2"];
        let launch = in_directory(temporary.path()).script(TIDY).args(args).args(extra.iter().copied());
        let replica = launch.start();
        assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
        assert_eq!(left(temporary.path()).len(), 1, "one directory, and all is in it");
        let below = descendants(replica.pid());
        assert!(below.len() >= 2, "{below:?}");
        let numbers: Vec<u32> = below.iter().copied().chain([replica.pid()]).collect();
        replica.signal(name);
        let ended = replica.wait();
        assert_eq!(ended.status.code(), Some(0), "{}", ended.text());
        let text = ended.text();
        assert_eq!(text.matches("shutdown ran").count(), 2, "{extra:?}: {text}");
        assert_eq!(text.matches("exit handler ran").count(), 2, "{extra:?}: {text}");
        for pid in below {
            assert_eq!(state(pid), None, "process {pid} is left: {text}");
        }
        assert!(left(temporary.path()).is_empty(), "{extra:?}: {:?}", left(temporary.path()));
        for pid in numbers {
            assert!(groups(pid).is_empty(), "control groups are left: {:?}", groups(pid));
        }
    }
}

#[tokio::test]
async fn what_a_killed_replica_left_the_next_one_removes() {
    let temporary = tempfile::tempdir().unwrap();
    let killed = in_directory(temporary.path()).script(TIDY).start();
    let (pid, below) = (killed.pid(), descendants(killed.pid()));
    signal(pid, Signal::KILL);
    killed.wait();
    for pid in below {
        while state(pid).is_some_and(|state| state != 'Z') {
            std::thread::yield_now();
        }
    }
    assert_eq!(left(temporary.path()).len(), 1, "nobody was there to remove it");
    // One that lives keeps its own, and so does whoever else has a directory there.
    std::fs::create_dir(temporary.path().join("outrigger-workers-somebody-else-s")).unwrap();
    let lives = in_directory(temporary.path()).script(TIDY).start();
    let other = in_directory(temporary.path()).script(ECHO).start();
    assert_eq!(left(temporary.path()).len(), 3, "{:?}", left(temporary.path()));
    assert_eq!(score(&lives, "x").send().await.unwrap().status(), 200);
    drop(other.stop());
    drop(lives.stop());
    let names: Vec<_> = left(temporary.path());
    assert_eq!(names, [temporary.path().join("outrigger-workers-somebody-else-s")]);
    assert!(groups(pid).is_empty(), "its control groups are gone as well");
}

#[tokio::test]
async fn a_fork_server_that_is_killed_comes_back() {
    let script = "import os\ndef init():\n    pass\ndef run(data):\n    return [data, os.getpid()]\n";
    let mut replica = outrigger().script(script).args(["--script-workers", "2"]).start();
    let server = fork_server(&replica).expect("a fork-server");
    let below = descendants(replica.pid());
    signal(server, Signal::KILL);
    for _ in 0..2 {
        replica.wait_for(|line| message(line) == "worker ready");
    }
    for number in 0..20 {
        let answer = score(&replica, number.to_string()).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", replica.log_text());
    }
    let new = fork_server(&replica).expect("a new one");
    assert_ne!(new, server);
    for pid in below {
        // Whoever takes orphans in has to reap them.
        while state(pid).is_some_and(|state| state != 'Z') {
            std::thread::yield_now();
        }
    }
    assert_eq!(replica.stop().status.code(), Some(0));
}
