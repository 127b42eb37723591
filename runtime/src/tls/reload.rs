//! New files while the replica runs, and what is said as certificates grow old.
//!
//! Files are looked at by their content, so that it does not matter how they are replaced: written over, renamed, or by a link that leads elsewhere, as
//! Kubernetes does.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::Tls;
use super::files::Files;
use super::server::Ready;
use crate::with_causes;

/// The least that is waited for an authority to expire.
const SECOND: Duration = Duration::from_secs(1);
/// How often what does not change is looked at, and how often it is said.
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What has been seen of the files.
pub(crate) struct Seen {
    /// What is in force, or was said not to be usable.
    settled: Look,
    /// What could not be used when it was seen first: certificate and key may not be replaced at one moment.
    doubtful: Option<Look>,
}

/// What a look at the files showed: their fingerprint, or why there is none.
#[derive(Clone, PartialEq, Eq)]
enum Look {
    Files(blake3::Hash),
    Trouble(String),
}

impl Seen {
    pub(super) fn of(files: &Files) -> Self {
        Self { settled: Look::Files(files.fingerprint()), doubtful: None }
    }

    /// Whether this is something new of which something is to be made.
    fn is_new(&mut self, look: &Look) -> bool {
        if *look == self.settled {
            self.doubtful = None;
        }
        *look != self.settled
    }

    /// Whether this, which cannot be used, was there already when last seen.
    fn stays(&mut self, look: Look) -> bool {
        let stays = self.doubtful.as_ref() == Some(&look);
        if stays {
            self.settled = look;
            self.doubtful = None;
        } else {
            self.doubtful = Some(look);
        }
        stays
    }
}

/// Looks after the files until told to stop.
pub(super) async fn keep(tls: &Arc<Tls>, mut seen: Seen, stop: &CancellationToken) {
    let mut ticks = tokio::time::interval(tls.config.reload.unwrap_or(HOUR));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first is at once, and the start has said what there is to say.
    ticks.tick().await;
    let mut warned = Instant::now();
    loop {
        // No longer than an hour, as the clock may be set meanwhile.
        let trusted =
            tls.current().trusts_for(SystemTime::now()).map_or(HOUR, |left| left.clamp(SECOND, HOUR));
        tokio::select! {
            _ = ticks.tick() => {}
            () = tokio::time::sleep(trusted) => {}
            () = stop.cancelled() => return,
        }
        drop_expired(tls);
        if tls.config.reload.is_some() && look(tls, &mut seen).await {
            warned = Instant::now();
        }
        if warned.elapsed() >= DAY {
            warned = Instant::now();
            warn(tls);
        }
    }
}

fn warn(tls: &Tls) {
    for warning in tls.current().warnings(&tls.config, SystemTime::now()) {
        tracing::warn!("{warning}");
    }
}

/// Trusts no authority any more that has expired.
fn drop_expired(tls: &Tls) {
    match tls.current().without_expired(&tls.config, SystemTime::now()) {
        Ok(Some(ready)) => {
            tls.replace(ready);
            warn(tls);
        }
        Ok(None) => {}
        Err(error) => {
            tracing::error!(
                "an authority of clients' certificates that has expired stays: {}",
                with_causes(&error)
            );
        }
    }
}

/// Whether new files have been taken.
async fn look(tls: &Arc<Tls>, seen: &mut Seen) -> bool {
    let reader = Arc::clone(tls);
    // Files are read where that keeps nobody waiting, however slow the disk.
    let read = tokio::task::spawn_blocking(move || Files::read(&reader.config, reader.container)).await;
    let Ok(read) = read else { return false };
    let look = match &read {
        Ok(files) => Look::Files(files.fingerprint()),
        Err(error) => Look::Trouble(with_causes(error)),
    };
    if !seen.is_new(&look) {
        return false;
    }
    let ready =
        read.and_then(|files| Ok((Ready::load(&tls.config, &files, SystemTime::now())?, files.warnings)));
    match ready {
        Ok((ready, warnings)) => {
            *seen = Seen { settled: look, doubtful: None };
            tracing::info!(certificate = %ready.subject, until = %ready.expiry.server, "new TLS files hold for new connections");
            tls.replace(ready);
            tls.metrics.taken.inc();
            for warning in warnings {
                tracing::warn!("{warning}");
            }
            warn(tls);
            true
        }
        Err(error) => {
            if seen.stays(look) {
                tls.metrics.failed.inc();
                tracing::error!(
                    "new TLS files cannot be used, and those before them stay: {}",
                    with_causes(&error)
                );
            }
            false
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_half_replaced_is_no_trouble_and_what_stays_broken_is_said_once() {
        let look = |number: u8| Look::Files(blake3::hash(&[number]));
        let mut seen = Seen { settled: look(0), doubtful: None };
        assert!(!seen.is_new(&look(0)));
        assert!(seen.is_new(&look(1)) && !seen.stays(look(1)), "seen first");
        assert!(seen.is_new(&look(2)) && !seen.stays(look(2)), "something else");
        assert!(seen.is_new(&look(2)) && seen.stays(look(2)), "it stays");
        assert!(!seen.is_new(&look(2)), "that has been said");
        let gone = Look::Trouble("gone".into());
        assert!(seen.is_new(&gone) && !seen.stays(gone.clone()));
        assert!(!seen.is_new(&look(2)), "as before");
        assert!(seen.is_new(&gone) && !seen.stays(gone), "it had been well in between");
    }
}
