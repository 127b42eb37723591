//! Native scripts in the replica's own process, where the operator trusts them with it: threads that call the library.
//!
//! A thread cannot be ended from outside. A call that is over its time limit is answered for; the thread, and the slot with it, is
//! taken until the library returns. When no other thread is left, the replica is not ready.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use outrigger_native::{self as native, Answer, Caller, Cancelled, Gone, Head, InProcess, Level, LoadError};
use outrigger_protocol::aml;
use outrigger_protocol::error::{CallError, ErrorCode};
use tokio::runtime::Handle;
use tokio::sync::{Notify, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::bell::Bell;
use super::call::{Body, Job, ScriptAnswer, ScriptCall, ScriptResult};
use super::frame::{self, LogLevel, LogLine, LogSource, Method, Reply, ReplyHead, Trouble};
use super::lane::interpret;
use super::log::{self, Origin};
use super::stream::{Producer, StreamError, flow};
use super::worker::{CallKind, Headers, Ready};
use super::{ScriptLimits, WorkerStatus};
use crate::busy::Busy;
use crate::config::ScriptConfig;

/// The stack of a thread that calls a library: as much as the one thread of a worker process usually has.
const STACK: usize = 8 << 20;
/// Calls that may be handed over before their slots are free, for each thread.
const AHEAD_PER_THREAD: usize = 8;

/// Why a library cannot be served from this process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NativeError {
    /// It does not load, or its `init` failed.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// It is still at it.
    #[error("`{path}` did not start within script.import_timeout and script.init_timeout ({limit:?})")]
    Slow {
        /// The library.
        path: PathBuf,
        /// Both limits together.
        limit: Duration,
    },
    /// The system has no more threads.
    #[error("cannot start a thread for the native script")]
    Thread(#[source] std::io::Error),
}

/// The threads that call a library.
pub(super) struct Threads {
    shared: Arc<Shared>,
    /// Until the last thread has ended, and the script with it.
    ended: TaskTracker,
    /// Looks after the time limits; ends when this is dropped.
    _watch: JoinSet<()>,
}

struct Shared {
    timeout: Duration,
    gap_timeout: Duration,
    stream_window: u64,
    limits: ScriptLimits,
    busy: Arc<Busy>,
    /// For waiting inside a thread.
    handle: Handle,
    seats: Vec<Seat>,
    queue: Mutex<Queue>,
    /// There is a job, or no more will come.
    work: Condvar,
    /// Threads whose call is over its time limit.
    stuck: Mutex<usize>,
    /// When the watch looks next, in microseconds since `begun`.
    due: AtomicU64,
    begun: Instant,
    /// It has to look earlier.
    sooner: Notify,
    /// Calls that are still running are not waited for any more.
    break_off: CancellationToken,
}

/// Jobs that no thread has taken. Slots bound their number.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Threads that wait for one.
    idle: usize,
    /// No more jobs are taken in; the threads end after the last one.
    stopped: bool,
}

/// A thread, and the call that it is at.
#[derive(Default)]
struct Seat {
    active: Mutex<Option<Active>>,
    /// Rung when a stream's client has taken something or has gone, and when the call is over.
    bell: Arc<Bell>,
}

/// A call that a thread is at.
struct Active {
    job: Job,
    /// When it is over; `None` while it waits for the client.
    deadline: Option<Instant>,
    /// Why its caller has been answered for.
    over: Option<Over>,
    stream: Option<Arc<Producer>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Its time is.
    Time,
    /// The service is.
    Service,
}

impl Threads {
    /// Loads the library, starts its script and the threads.
    pub(super) async fn start(
        path: &Path,
        config: &ScriptConfig,
        model_dir: Option<&Path>,
        busy: Arc<Busy>,
        limits: ScriptLimits,
    ) -> Result<(Self, Ready), NativeError> {
        tracing::warn!(
            library = %path.display(),
            "script.trusted = true: this code runs in the replica's own process and is NOT SANDBOXED; it can read keys and \
             requests, its crash is the replica's, and a call that does not return cannot be ended"
        );
        let script = Arc::new(load(path, config, model_dir, &busy).await?);
        let (asked, safe) = (config.workers, script.thread_safe());
        let count = if safe { asked } else { 1 };
        if count < asked {
            tracing::warn!(
                "script.workers is {asked}, and the library has one thread: it is not thread-safe"
            );
        }
        tracing::info!(threads = count, thread_safe = safe, "native script ready");
        let shared = Arc::new(Shared {
            timeout: config.timeout,
            gap_timeout: config.gap_timeout,
            stream_window: config.stream_window as u64,
            limits,
            busy,
            handle: Handle::current(),
            seats: (0..count).map(|_| Seat::default()).collect(),
            queue: Mutex::default(),
            work: Condvar::new(),
            stuck: Mutex::new(0),
            due: AtomicU64::new(u64::MAX),
            begun: Instant::now(),
            sooner: Notify::new(),
            break_off: CancellationToken::new(),
        });
        let ready = ready(&script, path);
        let mut watch = JoinSet::new();
        watch.spawn(Arc::clone(&shared).watch());
        // If a thread does not start, dropping this ends the others.
        let threads = Self { shared, ended: TaskTracker::new(), _watch: watch };
        for number in 0..count {
            let (shared, script) = (Arc::clone(&threads.shared), Arc::clone(&script));
            let token = threads.ended.token();
            let work = move || {
                while let Some(job) = shared.take() {
                    shared.run(number, &script, job);
                }
                // The last one shuts the script down.
                drop(script);
                drop(token);
            };
            spawn(&format!("script-{number}"), work)?;
        }
        Ok((threads, ready))
    }

    /// As many calls as can be worked on at once.
    pub(super) fn count(&self) -> usize {
        self.shared.seats.len()
    }

    /// Calls that may be handed over before their slots are free.
    pub(super) fn ahead(&self) -> usize {
        self.count() * AHEAD_PER_THREAD
    }

    /// Why no call can be worked on.
    pub(super) fn trouble(&self) -> Option<String> {
        let stuck = *self.shared.stuck();
        (stuck == self.count()).then(|| {
            format!(
                "all {stuck} threads of the native script are in calls that are over their time limit; they cannot be ended, \
                 restart the replica"
            )
        })
    }

    /// What each thread is.
    pub(super) fn status(&self) -> Vec<WorkerStatus> {
        (0..self.count()).map(|worker| WorkerStatus { worker, pid: own_pid() }).collect()
    }

    /// Has a thread work on a call; see [`super::Scripts::call`].
    pub(super) async fn call(&self, call: ScriptCall, slot: crate::slots::Slot) -> ScriptResult {
        let (reply, answer) = oneshot::channel();
        let job = Job { call, slot, reply: Some(reply), since: Instant::now() };
        if let Some(trouble) = self.trouble() {
            job.refuse(&CallError::new(ErrorCode::NotReady, trouble));
        } else {
            self.shared.put(job);
        }
        let mut caller = Waiting { shared: &self.shared, waits: true };
        let answer = answer.await;
        caller.waits = false;
        answer.unwrap_or_else(|_| Err(aml::internal_error(ErrorCode::Internal)))
    }

    /// Answers for the calls that are still running.
    pub(super) fn break_off(&self) {
        self.shared.break_off.cancel();
        let jobs = std::mem::take(&mut self.shared.queue().jobs);
        for job in jobs {
            job.refuse(&crate::slots::draining());
        }
        self.shared.sooner.notify_one();
    }

    /// Waits for the threads to end after their calls, and for the script's shutdown.
    pub(super) async fn stop(&self, limit: Duration) {
        self.shared.close();
        self.ended.close();
        if tokio::time::timeout(limit, self.ended.wait()).await.is_err() {
            tracing::warn!("the native script did not end in time; it ends with the process");
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.close();
    }
}

/// A caller who waits for an answer. When one goes away, its job need not wait for a thread.
struct Waiting<'a> {
    shared: &'a Shared,
    waits: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.waits {
            self.shared.queue().jobs.retain(|job| !job.is_abandoned());
        }
    }
}

/// Opens the library and runs its `init`, on a thread that is left alone if that takes too long.
async fn load(
    path: &Path,
    config: &ScriptConfig,
    model_dir: Option<&Path>,
    busy: &Arc<Busy>,
) -> Result<InProcess, NativeError> {
    let _loading = busy.loading();
    let limit = config.import_timeout.saturating_add(config.init_timeout);
    let settings = native::Settings {
        app_root: config.app_root.clone(),
        model_dir: model_dir.map(Path::to_owned),
        args: config.args.clone(),
    };
    let (done, started) = oneshot::channel();
    let library = path.to_owned();
    let start = move || {
        let logger = |level: Level, line: &str| {
            emit(level, line, &Origin { worker: 0, pid: own_pid(), request: None })
        };
        let _ = done.send(InProcess::start(&library, settings, logger));
    };
    spawn("script-init", start)?;
    match tokio::time::timeout(limit, started).await {
        Ok(Ok(started)) => Ok(started?),
        Ok(Err(_)) => {
            Err(LoadError::Broken { path: path.to_owned(), what: "its start panicked".into() }.into())
        }
        Err(_) => Err(NativeError::Slow { path: path.to_owned(), limit }),
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), NativeError> {
    let thread = std::thread::Builder::new().name(name.into()).stack_size(STACK);
    thread.spawn(body).map(drop).map_err(NativeError::Thread)
}

fn ready(script: &InProcess, path: &Path) -> Ready {
    Ready {
        mode: "native".into(),
        kind: CallKind::Sync,
        headers: Headers::All,
        methods: script.methods().map(|method| method.as_str().to_owned()).collect(),
        script: path.to_string_lossy().into_owned(),
        ..Ready::default()
    }
}

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stuck(&self) -> MutexGuard<'_, usize> {
        self.stuck.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes no more jobs in.
    fn close(&self) {
        self.queue().stopped = true;
        self.work.notify_all();
    }

    /// Leaves a job for whichever thread comes to it first.
    fn put(&self, job: Job) {
        let mut queue = self.queue();
        if queue.stopped || self.break_off.is_cancelled() {
            drop(queue);
            return job.refuse(&crate::slots::draining());
        }
        let expires = job.since + self.limits.queue_wait;
        queue.jobs.push_back(job);
        let idle = queue.idle > 0;
        drop(queue);
        if idle {
            self.work.notify_one();
        } else {
            self.look_at(expires);
        }
    }

    /// Waits for a job; `None` when no more will come.
    fn take(&self) -> Option<Job> {
        let mut queue = self.queue();
        loop {
            match queue.jobs.pop_front() {
                // Dropping it counts it as cancelled and frees its slot.
                Some(job) if job.is_abandoned() => drop(job),
                Some(job) => return Some(job),
                None if queue.stopped => return None,
                None => {
                    queue.idle += 1;
                    queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    queue.idle -= 1;
                }
            }
        }
    }

    /// Works on a job.
    fn run(&self, number: usize, script: &InProcess, mut job: Job) {
        let Some(seat) = self.seats.get(number) else { return };
        job.slot.begin();
        let call = &mut job.call;
        let id = call.request_id.clone();
        let (asked, query, headers) = (call.method, std::mem::take(&mut call.query), call.headers.take());
        let body = std::mem::replace(&mut call.body, Body::Bytes(Bytes::new()));
        let begun = Instant::now();
        let deadline = begun + self.timeout;
        seat.sit(job, deadline);
        self.look_at(deadline);
        let headers = borrowed(headers.as_ref());
        let request = native::Request {
            method: method(asked),
            id: id.as_bytes(),
            query: query.as_bytes(),
            headers: &headers,
            body: body.as_ref(),
            deadline: Some(deadline.into_std()),
        };
        let running = Running { shared: self, seat, number, request: &id, begun };
        // A panic that comes up to here is a bug of ours; it costs the call, not the thread.
        let answer = catch_unwind(AssertUnwindSafe(|| script.call(&request, &running)));
        let run = begun.elapsed();
        let reply = match answer {
            Ok(answer) => self.reply(answer),
            Err(_) => raised("the call panicked".into()),
        };
        if let Some(active) = seat.rise() {
            self.finish(number, active, reply, run);
        }
    }

    /// What the library answers, in the terms of a worker's REPLY.
    fn reply(&self, answer: Result<Answer<Vec<u8>>, native::CallError>) -> Reply {
        match answer {
            Ok(Answer::Whole(head, body)) => {
                let (size, most) = (body.as_ref().len(), self.limits.answer);
                match reply_head(&head) {
                    _ if size > most => {
                        raised(format!("its answer has {size} bytes, limits.answer is {most}"))
                    }
                    Some(head) => Reply::Answer(head, Bytes::from_owner(body)),
                    None => raised("its answer has headers that HTTP does not have".into()),
                }
            }
            Ok(Answer::Streamed) => Reply::Cancelled,
            Err(native::CallError::Input { message }) => {
                Reply::Refused { status: 400, message, log: String::new() }
            }
            Err(native::CallError::Failed { message }) => raised(message),
            Err(error) => raised(error.to_string()),
        }
    }

    /// The thread has returned from a call.
    fn finish(&self, number: usize, active: Active, reply: Reply, run: Duration) {
        let Active { job, over, stream, .. } = active;
        let request = &job.call.request_id;
        if over == Some(Over::Time) {
            self.note_free();
            tracing::warn!(
                worker = number,
                ?request,
                ?run,
                "a call that was over its time limit has returned"
            );
        }
        if let Some(over) = over {
            return job.answer(Err(self.error(over)));
        }
        let Some(stream) = stream else {
            let result = interpret(reply, run, request, None);
            return job.answer(result.unwrap_or_else(|_| Err(aml::internal_error(ErrorCode::Internal))));
        };
        let ended = match reply {
            Reply::Cancelled => Ok(()),
            reply => match interpret(reply, run, request, None) {
                Ok(Err(error)) => Err(error),
                Ok(Ok(_)) | Err(_) => Err(aml::internal_error(ErrorCode::Internal)),
            },
        };
        stream.finish(ended.as_ref().copied().map_err(|_| StreamError::Raised));
        job.answer(ended.map(|()| ScriptAnswer::Json { text: Bytes::new(), run }));
    }

    fn error(&self, over: Over) -> CallError {
        match over {
            Over::Time => aml::scoring_timeout(self.timeout),
            Over::Service => crate::slots::draining(),
        }
    }

    /// Sees to it that the watch looks at `at`, or before. Costs nothing when it does anyhow.
    fn look_at(&self, at: Instant) {
        if self.due_by(at) {
            self.sooner.notify_one();
        }
    }

    /// Sets the time of the next look, if that is earlier than it was.
    fn due_by(&self, at: Instant) -> bool {
        let micros = at.saturating_duration_since(self.begun).as_micros();
        // Rounded up, so that what is due then is due.
        let micros = u64::try_from(micros).unwrap_or(u64::MAX).saturating_add(1);
        micros < self.due.fetch_min(micros, Ordering::AcqRel)
    }

    /// Looks after time limits, and after what is left when the service does not wait any more.
    async fn watch(self: Arc<Self>) {
        loop {
            self.tend();
            let due = match self.due.load(Ordering::Acquire) {
                u64::MAX => None,
                micros => Some(self.begun + Duration::from_micros(micros)),
            };
            let alarm = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = alarm => {}
                () = self.sooner.notified() => {}
            }
        }
    }

    fn tend(&self) {
        // Before looking: a limit that is set meanwhile is seen by the look, or makes this small again.
        self.due.store(u64::MAX, Ordering::Release);
        let now = Instant::now();
        for (number, seat) in self.seats.iter().enumerate() {
            let mut seated = seat.lock();
            let Some(active) = seated.as_mut().filter(|active| active.over.is_none()) else { continue };
            let request = &active.job.call.request_id;
            if self.break_off.is_cancelled() {
                tracing::warn!(
                    worker = number,
                    ?request,
                    "a call was broken off by the end of shutdown.drain"
                );
                active.end(Over::Service, self.error(Over::Service), &seat.bell);
            } else if active.deadline.is_some_and(|deadline| deadline <= now) {
                let millis = self.timeout.as_millis();
                tracing::error!(
                    worker = number,
                    ?request,
                    millis,
                    "run() is over its time limit; its thread cannot be ended and is taken until the library returns"
                );
                active.end(Over::Time, self.error(Over::Time), &seat.bell);
                self.note_stuck();
            } else if let Some(deadline) = active.deadline {
                self.due_by(deadline);
            }
        }
        self.expire(now);
    }

    fn note_stuck(&self) {
        let mut stuck = self.stuck();
        *stuck += 1;
        if *stuck == self.seats.len() {
            tracing::error!("no thread of the native script is left that could take calls");
            self.busy.set_able(false);
        }
    }

    fn note_free(&self) {
        let mut stuck = self.stuck();
        *stuck = stuck.saturating_sub(1);
        self.busy.set_able(true);
    }

    /// Refuses those that have waited for a thread for too long, and all of them where none is left.
    fn expire(&self, now: Instant) {
        let none_left = *self.stuck() == self.seats.len();
        let mut expired = Vec::new();
        {
            let mut queue = self.queue();
            while let Some(job) = queue.jobs.front() {
                let expires = job.since + self.limits.queue_wait;
                if expires > now && !none_left {
                    self.due_by(expires);
                    break;
                }
                expired.extend(queue.jobs.pop_front());
            }
        }
        for job in expired {
            let text = "no thread of the native script became free in time";
            job.refuse(&CallError::new(ErrorCode::Overloaded, text).with_retry_after(Duration::from_secs(1)));
        }
    }
}

impl Seat {
    fn lock(&self) -> MutexGuard<'_, Option<Active>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sit(&self, job: Job, deadline: Instant) {
        let deadline = Some(deadline);
        *self.lock() = Some(Active { job, deadline, over: None, stream: None });
    }

    fn rise(&self) -> Option<Active> {
        self.lock().take()
    }
}

impl Active {
    /// Answers for the call, whose thread goes on.
    fn end(&mut self, over: Over, error: CallError, bell: &Bell) {
        self.over = Some(over);
        self.job.tell(Err(error));
        if let Some(stream) = &self.stream {
            stream.finish(Err(StreamError::Lost));
        }
        bell.ring();
    }

    fn cancelled(&self) -> Cancelled {
        let left = self.job.is_abandoned() || self.stream.as_ref().is_some_and(|stream| stream.is_left());
        match self.over {
            Some(Over::Time) => Cancelled::OutOfTime,
            Some(Over::Service) => Cancelled::ClientGone,
            None if left => Cancelled::ClientGone,
            None => Cancelled::No,
        }
    }
}

/// What the library can ask of us during a call.
struct Running<'a> {
    shared: &'a Shared,
    seat: &'a Seat,
    number: usize,
    request: &'a HeaderValue,
    begun: Instant,
}

impl Running<'_> {
    /// Does something with the call if it goes on.
    fn with<R>(&self, then: impl FnOnce(&mut Active) -> R) -> Result<R, Gone> {
        let mut seated = self.seat.lock();
        seated.as_mut().filter(|active| active.cancelled() == Cancelled::No).map(then).ok_or(Gone)
    }

    /// The next piece has to come within the limit.
    fn expect_piece(&self) -> Result<(), Gone> {
        let deadline = Instant::now() + self.shared.gap_timeout;
        self.with(|active| active.deadline = Some(deadline))?;
        self.shared.look_at(deadline);
        Ok(())
    }
}

impl Caller for Running<'_> {
    type Buffer = Vec<u8>;

    fn cancelled(&self) -> Cancelled {
        self.seat.lock().as_ref().map_or(Cancelled::No, Active::cancelled)
    }

    fn log(&self, level: Level, line: &str) {
        emit(level, line, &Origin { worker: self.number, pid: own_pid(), request: Some(self.request) });
    }

    fn allocate(&self, len: usize) -> Option<Vec<u8>> {
        let mut memory = Vec::new();
        if len > self.shared.limits.answer {
            return None;
        }
        memory.try_reserve_exact(len).ok()?;
        memory.resize(len, 0);
        Some(memory)
    }

    fn begin(&self, head: Head) -> Result<(), Gone> {
        let head = reply_head(&head).ok_or(Gone)?;
        let run = self.begun.elapsed();
        let (producer, body) = flow(self.shared.stream_window, Arc::clone(&self.seat.bell));
        self.with(|active| {
            active.stream = Some(Arc::new(producer));
            active.job.tell(Ok(ScriptAnswer::Stream { head, body, run }));
        })?;
        self.expect_piece()
    }

    fn write(&self, mut piece: &[u8]) -> Result<(), Gone> {
        let stream = self.with(|active| active.stream.clone())?.ok_or(Gone)?;
        while !piece.is_empty() {
            let room = usize::try_from(stream.room()).unwrap_or(usize::MAX);
            if room == 0 {
                // That is the client's time, not the script's.
                self.with(|active| active.deadline = None)?;
                self.shared
                    .handle
                    .block_on(std::future::poll_fn(|context| self.seat.bell.poll_rung(context)));
                self.with(|_| ())?;
                continue;
            }
            let (now, later) = piece.split_at(room.min(piece.len()));
            stream.push(Bytes::copy_from_slice(now)).map_err(|_| Gone)?;
            piece = later;
        }
        self.expect_piece()
    }
}

/// A line of the library's own.
fn emit(level: Level, line: &str, origin: &Origin<'_>) {
    let level = match level {
        Level::Debug => LogLevel::Debug,
        Level::Info => LogLevel::Info,
        Level::Warning => LogLevel::Warning,
        Level::Error => LogLevel::Error,
        Level::Critical => LogLevel::Critical,
    };
    let line = LogLine { level, source: LogSource::Logger, logger: String::new(), text: line.to_owned() };
    log::emit(&line, origin);
}

fn raised(message: String) -> Reply {
    Reply::Raised(Trouble { message, traceback: String::new() })
}

/// `None` if it is none that HTTP has, which the host of native scripts has seen to.
fn reply_head(head: &Head) -> Option<ReplyHead> {
    let status = StatusCode::from_u16(head.status).ok()?;
    Some(ReplyHead { status, headers: frame::decode_headers(&head.block).ok()?, failed: false })
}

fn borrowed(headers: Option<&HeaderMap>) -> Vec<(&[u8], &[u8])> {
    let headers = headers.into_iter().flatten();
    headers.map(|(name, value)| (name.as_str().as_bytes(), value.as_bytes())).collect()
}

fn method(method: Method) -> native::Method {
    match method {
        Method::Get => native::Method::Get,
        Method::Post => native::Method::Post,
        Method::Options => native::Method::Options,
        Method::Head => native::Method::Head,
    }
}

fn own_pid() -> i32 {
    i32::try_from(std::process::id()).unwrap_or(0)
}
