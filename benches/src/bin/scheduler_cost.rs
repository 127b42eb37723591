//! What the scheduler costs a call, in instructions: run it under callgrind with two numbers of calls, and divide the difference.
//!
//!     valgrind --tool=callgrind --callgrind-out-file=/dev/null target/release/scheduler_cost CALLS

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use outrigger_protocol::priority::Priority;
use outrigger_runtime::busy::{Busy, Outcome};
use outrigger_runtime::{Admission, Limits, Scheduler, Terms};

fn main() -> anyhow::Result<()> {
    let calls: u64 = std::env::args().nth(1).context("how many calls?")?.parse()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    let limits =
        Limits { items: 512, bytes: 1 << 30, wait: Duration::from_secs(30), ageing: Duration::from_secs(1) };
    let scheduler: Arc<Scheduler> = Scheduler::new(Busy::new(4), 4, limits, None);
    let terms = Terms {
        caller: 0,
        priority: Priority::Normal,
        kind: 0,
        bytes: 64,
        admission: Admission::Now,
        deadline: None,
    };
    runtime.block_on(async {
        for _ in 0..calls {
            let mut slot = scheduler.admit(terms).await?;
            slot.begin();
            slot.finish(Outcome::Answered);
        }
        anyhow::Ok(())
    })
}
