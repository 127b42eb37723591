//! The thread that watches over a device's child: starts it, loads what clients hold, ends it, and starts the next.

use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, BackendInfo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::SendFlags;

use super::again::{self, Again};
use super::course::{Course, Next};
use super::ending::Verdict;
use super::host::Host;
use super::link::Link;
use super::loaded::{Loaded, ModelEntry};
use super::options::Options;
use super::process::Process;
use super::trouble::Trouble;
use crate::frame::{self, Kind};
use crate::message::{self, Hello, HostLimits};
use crate::patience::{Limit, Until};
use crate::socket::{self, Inbox};
use crate::wire::Reader;

/// How long a child that has closed a connection has to end by itself, so that it is known how.
const CLOSING: Duration = Duration::from_secs(1);

/// A child that serves.
struct Running {
    process: Process,
    link: Arc<Link>,
}

/// Starts a child, tells `first` what became of that, and goes on until the host is stopped.
pub(super) fn supervise(host: &Arc<Host>, first: &SyncSender<Result<BackendInfo, BackendError>>) {
    let mut running = match start(host) {
        Ok((running, info)) => {
            let _ = first.send(Ok(info));
            running
        }
        Err(error) => {
            let _ = first.send(Err(error));
            return;
        }
    };
    let mut course = Course::new(&host.options.timing);
    loop {
        let Some(why) = watch(host, running) else { return };
        running = match restart(host, &mut course, why) {
            Some(running) => running,
            None => return,
        };
    }
}

/// Why a child is gone, how long it served, and whether a call succeeded on it.
struct Death {
    why: String,
    served: Duration,
    good: bool,
}

/// Watches over a child until it has died; `None` if it was ended because nobody needs it any more.
fn watch(host: &Arc<Host>, running: Running) -> Option<Death> {
    let Running { process, link } = running;
    let (mut trimmed, mut again) = (Instant::now(), Again::new(host, &link));
    // How often connections are looked through that nobody uses.
    let trim = (host.options.timing.idle / 2).max(Duration::from_millis(10));
    let why = loop {
        if host.stopped() {
            link.hang_up();
            let status = process.end_within(host.options.timing.end_grace);
            link.ended(format!("the device host of `{}` {status}: nobody holds it", host.options.name));
            return None;
        }
        if process.has_ended(Duration::ZERO) {
            break None;
        }
        let now = Instant::now();
        let deadline = link.tend(now);
        match link.verdict() {
            Some(Verdict::Closed) if process.has_ended(CLOSING) => break None,
            Some(Verdict::Closed) => break Some("it closed a connection".to_owned()),
            Some(Verdict::Guilty(why)) => break Some(why),
            None => {}
        }
        if now.duration_since(trimmed) >= trim {
            link.trim(now);
            trimmed = now;
        }
        again.tend(host, &link, now);
        let pause = trim.min(Again::pause(host));
        let until = deadline.map_or(pause, |deadline| deadline.saturating_duration_since(now).min(pause));
        let timeout = Timespec::try_from(until + Duration::from_millis(1)).ok();
        let mut polled =
            [PollFd::new(process.ended(), PollFlags::IN), PollFd::new(&*host.bell, PollFlags::IN)];
        // An interruption is a reason to look, too.
        let _ = poll(&mut polled, timeout.as_ref());
        host.bell.answer();
    };
    let (name, pid) = (&host.options.name, process.pid());
    let status = process.end();
    let why = match why {
        Some(why) => format!("the device host of `{name}` was ended: {why}"),
        None => format!("the device host of `{name}` {status}"),
    };
    let (served, good) = link.record();
    tracing::error!(backend = %name, pid, ?served, "{why}");
    // Before anybody hears of it, so that whoever does finds the host as it is.
    host.restarting(why.clone());
    link.ended(why.clone());
    Some(Death { why, served, good })
}

/// Starts the next child, however often that takes; `None` if nobody needs it any more.
fn restart(host: &Arc<Host>, course: &mut Course, death: Death) -> Option<Running> {
    let Death { mut why, served, good } = death;
    let mut next = course.died(Instant::now(), served, good);
    loop {
        let pause = match next {
            Next::Restart(pause) => {
                host.restarting(why.clone());
                pause
            }
            Next::Quarantine(pause) => {
                let deaths = host.options.timing.deaths;
                let text = format!("{why}; it died {deaths} times in a row and is quarantined");
                tracing::error!(backend = %host.options.name, again_in = ?pause, "{text}");
                host.quarantined(text);
                pause
            }
        };
        if host.sleep(pause) {
            return None;
        }
        let began = Instant::now();
        match start(host) {
            Ok((running, _)) => {
                tracing::info!(backend = %host.options.name, pid = running.process.pid(), took = ?began.elapsed(), "the device host was restarted");
                return Some(running);
            }
            Err(error) => {
                why = format!("the device host of `{}` did not start again: {error}", host.options.name);
                tracing::error!(backend = %host.options.name, "{why}");
            }
        }
        next = course.died(Instant::now(), Duration::ZERO, false);
    }
}

/// Starts a child that has loaded everything and serves.
fn start(host: &Arc<Host>) -> Result<(Running, BackendInfo), BackendError> {
    let options = &host.options;
    let (process, control) =
        Process::start(options, &host.device).map_err(|error| BackendError::Unavailable {
            backend: options.library.display().to_string(),
            reason: format!(
                "its device host `{}` could not be started: {error}",
                options.executable.display()
            ),
        })?;
    let stopped = || host.stopped();
    let until = |limit: Limit| Until::new(limit, &stopped);
    let info = match greet(&control, options, &until(options.timing.to_start())) {
        Ok(info) => info,
        Err(trouble) => return Err(failed_start(options, process, trouble)),
    };
    let loaded = host.loaded();
    let index = loaded.device.as_ref().map_or(0, |(index, _)| *index);
    if let Err(reason) = same_device(host.first(&info), &info, index) {
        return Err(failed_start(options, process, unavailable(options, reason).into()));
    }
    let link = Arc::new(Link::new(options, control, &host.bell, options.calls(&info)));
    let running = Running { process, link };
    if let Err(trouble) = load(options, &running.link, &loaded, &|| until(options.timing.to_load())) {
        let error = failed_start(options, running.process, trouble);
        running.link.ended(error.to_string());
        return Err(error);
    }
    if loaded.device.is_some() {
        host.restarted();
    }
    // Released while it is watched over already, for that may take its time, or never end.
    let unwanted = host.up(&running.link, running.process.pid(), &loaded);
    unwanted.into_iter().for_each(|number| running.link.owe(number));
    Ok((running, info))
}

fn unavailable(options: &Options, reason: String) -> BackendError {
    BackendError::Unavailable { backend: options.library.display().to_string(), reason }
}

/// Whether a child has the device that was there before, so that what clients know of it still holds.
pub(super) fn same_device(before: &BackendInfo, now: &BackendInfo, index: usize) -> Result<(), String> {
    let (had, has) = (before.devices.len(), now.devices.len());
    if had != has {
        return Err(format!("a device host found {has} devices where there were {had}"));
    }
    let known = |info: &BackendInfo| {
        info.devices.get(index).map(|device| (device.name.clone(), device.kind, device.memory_total))
    };
    let (was, is) = (known(before), known(now));
    if was == is {
        return Ok(());
    }
    let text = |device: Option<(String, _, u64)>| {
        device.map_or_else(String::new, |(name, _, bytes)| format!("`{name}` with {bytes} bytes of memory"))
    };
    Err(format!("a device host found another device number {index}: {}, which was {}", text(is), text(was)))
}

/// Why a child that was started does not serve.
fn failed_start(options: &Options, process: Process, trouble: Trouble) -> BackendError {
    let unavailable = |reason| unavailable(options, reason);
    match trouble {
        Trouble::Backend(error) | Trouble::Ours(error) => error,
        Trouble::Late(Limit { time, key }) => {
            unavailable(format!("its device host did not get ready in time: {key} is {time:?}"))
        }
        Trouble::Protocol(why) => unavailable(format!("its device host broke the protocol: {why}")),
        Trouble::Gone | Trouble::Untaken => {
            process.has_ended(CLOSING);
            unavailable(format!("its device host {} before it was ready", process.end()))
        }
    }
}

/// Has the child open the library.
fn greet(control: &impl AsFd, options: &Options, until: &Until<'_>) -> Result<BackendInfo, Trouble> {
    let limits = &options.limits;
    let hello = Hello {
        library: options.library.as_os_str().as_bytes().to_vec(),
        settings: options.settings.clone(),
        limits: HostLimits {
            call_bytes: limits.call_bytes,
            inline_bytes: limits.inline_bytes as u64,
            kept_bytes: limits.kept_bytes,
            kept_regions: limits.kept_regions.max(1) as u64,
            spin: options.timing.spin,
            end_grace: options.timing.end_grace,
        },
    };
    let mut out = Vec::new();
    frame::begin(&mut out, Kind::Hello, 0);
    hello.put(&mut out);
    frame::finish(&mut out, 0)?;
    socket::send(control, &out, &[], SendFlags::empty()).map_err(|error| Trouble::of_socket(&error))?;
    let mut inbox = Inbox::default();
    let (kind, _) = inbox.receive(control, until)?;
    let mut reader = Reader(inbox.payload());
    let answer = match kind {
        Kind::Done => Ok(message::info(&mut reader)?),
        Kind::Failed => Err(Trouble::Backend(message::error(&mut reader)?)),
        kind => Err(Trouble::Protocol(format!("a greeting of kind {kind:?}"))),
    };
    reader.end()?;
    answer
}

/// Loads what clients hold. What its file or the backend refuses, or the device has no memory for, says so to whoever uses it. Where the
/// device has memory for nothing of it, or does not run it, the child is of no use; so it is with trouble with the child itself.
fn load<'a>(
    options: &Options,
    link: &Link,
    loaded: &Loaded,
    until: &dyn Fn() -> Until<'a>,
) -> Result<(), Trouble> {
    let Some((index, _)) = &loaded.device else { return Ok(()) };
    let mut short = None;
    let mut why = |model: &ModelEntry, done: Result<Option<String>, Trouble>| match done {
        Err(Trouble::Backend(error @ (BackendError::Run(_) | BackendError::Unavailable { .. }))) => {
            Err(Trouble::from(unavailable(options, model.not_again(&error))))
        }
        Err(Trouble::Backend(error @ BackendError::OutOfMemory(_))) => {
            short = Some(model.not_again(&error));
            Ok(short.clone())
        }
        done => again::heard(model, done),
    };
    let mut lent = link.for_housekeeping()?;
    lent.with(|connection| {
        connection.ask(Kind::OpenDevice, *index as u64, |_| {}, &until())?;
        for (number, model) in &loaded.models {
            let done = again::model(connection, *number, model, &until());
            model.fault.set(why(model, done)?);
        }
        for (number, instance) in &loaded.instances {
            let Some(model) = loaded.models.get(&instance.model) else { continue };
            let fault = match model.fault.why() {
                Some(fault) => Some(fault),
                None => {
                    let done = again::instance(connection, *number, instance, &until());
                    why(model, done.map(|()| None))?
                }
            };
            instance.known.fault.set(fault);
        }
        Ok(())
    })?;
    match short {
        Some(short) if !loaded.serves() => Err(unavailable(options, short).into()),
        _ => Ok(()),
    }
}
