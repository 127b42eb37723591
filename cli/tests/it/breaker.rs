//! The crash-loop breaker: says why, everywhere where somebody looks, and recovers.

use crate::support::{client, outcome, outrigger, score};

/// `init()` ends as the file `how` says, if it is there; the call that makes the file does not come back.
const SCRIPT: &str = r#"
import ctypes, os, sys
from pathlib import Path

def init():
    how = Path("how")
    how = how.read_text() if how.exists() else ""
    if how:
        os.write(2, b"native last words\n")
        print("last words of Python", file=sys.stderr)
        print("and half a", "line", end="", file=sys.stderr)
    if how == "exit":
        os._exit(5)
    if how == "crash":
        ctypes.string_at(0)
    if how == "memory":
        kept = []
        while True:
            kept.append(bytearray(os.urandom(1)) * (4 << 20))
    if how == "raise":
        raise RuntimeError("the weights are gone")

def run(data):
    if data != "x":
        os._exit(1)
    return data
"#;

async fn breaks(how: &str, why: &str, args: &[&str]) {
    let mut replica = outrigger().script(SCRIPT).args(args.iter().copied()).start();
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    let file = replica.directory().join("app/how");
    std::fs::write(&file, how).unwrap();
    assert_eq!(outcome(score(&replica, "die").send().await.unwrap()).await.1, "worker_lost");
    replica.wait_for(|line| {
        line["fields"]["message"].as_str().is_some_and(|text| text.contains("keeps failing"))
    });
    let ready = client().get(format!("{}/ready", replica.observe)).send().await.unwrap();
    let (status, code, body) = outcome(ready).await;
    assert_eq!((status, code.as_str()), (503, "not_ready"), "{how}: {body}");
    let refused = score(&replica, "x").send().await.unwrap();
    assert_eq!(crate::support::header(&refused, "retry-after"), "1");
    let (status, code, refusal) = outcome(refused).await;
    assert_eq!((status, code.as_str()), (503, "not_ready"), "{how}: {refusal}");
    let log = replica.log_text();
    let warned = log.lines().find(|line| line.contains("keeps failing")).unwrap();
    assert!(warned.contains(why), "{how}: {log}");
    // Whoever asks there may have no key: the kind of the end is told, what the script said is not.
    let raised = how == "raise" || log.contains("memory (RLIMIT_DATA");
    let brief = if raised { "the script failed in init" } else { why };
    for text in [body["message"].as_str().unwrap(), refusal["message"].as_str().unwrap()] {
        assert!(text.contains(brief), "{how}: {text}");
        assert!(!text.contains("last words") && !text.contains("weights"), "{how}: {text}");
    }
    if !raised {
        assert!(warned.contains("last words of Python"), "{how}: {log}");
    }
    std::fs::remove_file(&file).unwrap();
    replica.wait_for(|line| line["fields"]["message"] == "worker ready");
    assert_eq!(score(&replica, "x").send().await.unwrap().status(), 200);
    let ready = client().get(format!("{}/ready", replica.observe)).send().await.unwrap();
    assert_eq!(ready.status(), 200);
}

#[tokio::test]
async fn it_says_the_exit_code_and_the_last_words() {
    breaks("exit", "exit code 5", &[]).await;
}

#[tokio::test]
async fn it_says_the_signal() {
    breaks("crash", "signal 11 (SIGSEGV)", &[]).await;
}

#[tokio::test]
async fn it_says_that_memory_ran_out() {
    // As a resource limit it is an exception, as a control group a signal; both name the setting.
    for groups in ["--script-cgroups=true", "--script-cgroups=false"] {
        breaks("memory", "script.memory", &["--script-memory", "200MiB", groups]).await;
    }
}

#[tokio::test]
async fn it_says_what_init_raised() {
    breaks("raise", "the weights are gone", &[]).await;
}
