//! One file.

use std::convert::Infallible;
use std::iter::Peekable;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::{GetOptions, GetRange, GetResult, GetResultPayload};
use tokio::sync::{mpsc, oneshot};

use super::hashed::{Hashed, Spent};
use super::{FetchError, Fetcher, Watch};
use crate::cache::{Begun, Partial};
use crate::digest::Digest;
use crate::location::Location;
use crate::manifest::ManifestFile;

/// What is gathered before it is written: a write for each packet would cost more than the packet.
const GATHER: usize = 1 << 20;
/// Most pieces that come by one request, where others keep all connections busy. Few: connections that become free find something to do.
const RUN: usize = 4;
/// How often a file is fetched from its beginning whose bytes are not those of its digest, or which was changed meanwhile.
const WHOLE_ATTEMPTS: usize = 3;
/// The first pause before looking again whether somebody else has finished a file...
const LOOK: Duration = Duration::from_millis(20);
/// ...and the longest.
const MAX_LOOK: Duration = Duration::from_millis(500);
/// The longest pause between two attempts.
const MAX_PAUSE: Duration = Duration::from_secs(20);

/// A file that is being fetched.
struct Fetch<'a> {
    fetcher: &'a Fetcher,
    from: Location,
    file: &'a ManifestFile,
    partial: &'a Partial,
    watch: &'a dyn Watch,
    writer: Arc<Shared>,
    /// What has come, with what was there before.
    here: AtomicU64,
    /// What the storage calls this state of the object; the first answer says it, and all must be of the same.
    tag: OnceLock<Option<String>>,
    /// Hears of pieces that are complete.
    finished: mpsc::UnboundedSender<usize>,
}

/// What threads write to on which nobody may be waiting any more. That the last of them is done is heard by who has the other end.
struct Shared {
    hashed: Hashed,
    _done: oneshot::Sender<Infallible>,
}

/// What is asked for: bytes from `at`, which moves along, to `end`.
#[derive(Clone)]
struct Span {
    at: u64,
    end: u64,
    /// Pieces that are noted once they are complete; those that are leave it.
    pieces: Range<usize>,
}

/// How it went to have all pieces of a file here.
struct Attempt {
    /// The digest of what there is then, or why they cannot be had.
    ended: Result<Digest, FetchError>,
    /// Bytes that have come, with those that were there before.
    here: u64,
    spent: Spent,
}

/// One of the files that are being fetched. It counts as long as this is held.
struct Counted<'a>(&'a AtomicUsize);

impl<'a> Counted<'a> {
    fn new(files: &'a AtomicUsize) -> Self {
        files.fetch_add(1, Ordering::Relaxed);
        Self(files)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Fetcher {
    /// Has a file in the cache: fetches what is missing of it, or waits for somebody else on this machine who does. `from` is the file's own place.
    ///
    /// # Errors
    /// Says why it cannot be had. What has come stays for the next attempt.
    pub async fn file(
        &self,
        from: &Location,
        file: &ManifestFile,
        watch: &dyn Watch,
    ) -> Result<(), FetchError> {
        let (mut attempt, mut spent) = (1, Spent::default());
        let Some(mut partial) = self.begin(file, watch).await? else { return Ok(()) };
        loop {
            let whole = self.whole(from, file, &partial, watch).await?;
            spent += whole.spent;
            let failure = match whole.ended {
                Ok(found) if found == file.sha256 => {
                    self.blocking(move |_| partial.complete()).await?;
                    watch.verified(file, spent.bytes, spent.took);
                    watch.ended(file);
                    return Ok(());
                }
                Ok(found) => FetchError::Digest { at: from.to_string(), found, wanted: file.sha256 },
                // Who gives no parts may give all of it.
                Err(other @ (FetchError::Changed { .. } | FetchError::NoRanges { .. })) => other,
                Err(error) => return Err(error),
            };
            partial = self.blocking(move |_| partial.restart().map(|()| partial)).await?;
            if attempt == WHOLE_ATTEMPTS {
                return Err(failure);
            }
            watch.anew(file, whole.here, &failure.to_string());
            attempt += 1;
        }
    }

    /// Nothing if the file is here; it may have been somebody else who has fetched it.
    async fn begin(&self, file: &ManifestFile, watch: &dyn Watch) -> Result<Option<Partial>, FetchError> {
        let (digest, size, piece) = (file.sha256, file.size, self.options().piece);
        let mut pause = LOOK;
        loop {
            match self.blocking(move |cache| cache.begin(&digest, size, piece)).await? {
                Begun::Here => {
                    watch.begun(file, size);
                    watch.ended(file);
                    return Ok(None);
                }
                Begun::Ours(partial) => {
                    watch.begun(file, here(&partial));
                    return Ok(Some(partial));
                }
                Begun::Taken => {
                    if pause == LOOK {
                        watch.waiting(file);
                    }
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(MAX_LOOK);
                }
            }
        }
    }

    /// Has all pieces here, if they can be had. Nobody writes any more once it has.
    async fn whole(
        &self,
        from: &Location,
        file: &ManifestFile,
        partial: &Partial,
        watch: &dyn Watch,
    ) -> Result<Attempt, FetchError> {
        let (_done, done) = oneshot::channel();
        let writer = Arc::new(Shared { hashed: Hashed::new(partial.writer()), _done });
        let (finished, hear) = mpsc::unbounded_channel();
        let fetch = Fetch {
            fetcher: self,
            from: from.clone(),
            file,
            partial,
            watch,
            writer: Arc::clone(&writer),
            here: AtomicU64::new(here(partial)),
            tag: OnceLock::new(),
            finished,
        };
        let _counted = Counted::new(&self.inner.files);
        let hashed = follow(self, writer, partial, hear);
        // Where one fails the other is of no use.
        let ended = futures_util::future::try_join(fetch.all(), hashed).await;
        let (here, spent) = (fetch.here.load(Ordering::Relaxed), fetch.writer.hashed.spent());
        drop(fetch);
        // Pieces that were let go of may still be being written: into the next attempt, if that were not waited for.
        let Err(_) = done.await;
        Ok(Attempt { ended: ended.map(|((), digest)| digest), here, spent })
    }
}

/// What is here of a file, bytes.
fn here(partial: &Partial) -> u64 {
    let done = partial.done().iter().enumerate().filter(|(_, done)| **done);
    done.map(|(piece, _)| partial.range(piece)).map(|range| range.end - range.start).sum()
}

/// Sees to it that pieces are hashed in their order, each once it has come, so that little is left to do when the last one has.
async fn follow(
    fetcher: &Fetcher,
    writer: Arc<Shared>,
    partial: &Partial,
    mut hear: mpsc::UnboundedReceiver<usize>,
) -> Result<Digest, FetchError> {
    let mut done = partial.done().to_vec();
    let mut next = 0;
    while next < done.len() {
        if done[next] {
            let (end, writer) = (partial.range(next).end, Arc::clone(&writer));
            if !writer.hashed.has_reached(end) {
                fetcher.blocking(move |_| writer.hashed.catch_up(end)).await?;
            }
            next += 1;
        } else if let Some(piece) = hear.recv().await {
            done[piece] = true;
        } else {
            break;
        }
    }
    let io = |source| FetchError::Cache { root: fetcher.cache().root().to_owned(), source };
    writer.hashed.digest().map_err(io)
}

impl Fetch<'_> {
    /// All pieces that are missing.
    async fn all(&self) -> Result<(), FetchError> {
        let done = self.partial.done();
        let mut missing = (0..done.len()).filter(|piece| !done[*piece]).peekable();
        let nothing = done.iter().all(|done| !done);
        let Some(first) = self.next(&mut missing) else {
            return if nothing { self.nothing().await } else { Ok(()) };
        };
        // The first answer tells whether there is more than one way to have the rest.
        match self.run(first).await {
            Err(error @ FetchError::NoRanges { .. }) if nothing => {
                self.lost(&error);
                return self.in_one().await;
            }
            first => first?,
        }
        stream::iter(std::iter::from_fn(|| self.next(&mut missing)).map(Ok))
            .try_for_each_concurrent(self.fetcher.options().connections, |run| self.run(run))
            .await
    }

    /// What is asked for next: one piece; or some that follow each other, where there are more files than connections: then it is only that each
    /// request costs. What comes in order need not be read again to be hashed, either.
    fn next(&self, missing: &mut Peekable<impl Iterator<Item = usize>>) -> Option<Range<usize>> {
        let first = missing.next()?;
        let busy = self.fetcher.inner.files.load(Ordering::Relaxed) > self.fetcher.options().connections;
        let most = if busy { RUN } else { 1 };
        let mut run = first..first + 1;
        while run.len() < most && missing.next_if_eq(&run.end).is_some() {
            run.end += 1;
        }
        Some(run)
    }

    /// A file without bytes, of which it is looked at only whether it is there.
    async fn nothing(&self) -> Result<(), FetchError> {
        let mut pauses = self.pauses();
        while let Err(error) = self.look().await {
            let Some(pause) = pauses.next().filter(|_| error.may_pass()) else { return Err(error) };
            self.watch.again(self.file, &error.to_string(), pause);
            tokio::time::sleep(pause).await;
        }
        Ok(())
    }

    async fn look(&self) -> Result<(), FetchError> {
        // Closed only with the fetcher, and somebody has that.
        let _connection = self.fetcher.inner.connections.acquire().await;
        let options = GetOptions { head: true, ..GetOptions::default() };
        let answer = self.in_time(self.from.store().get_opts(self.from.at(), options)).await?;
        self.check(&answer.map_err(|error| self.error(&error))?.meta)
    }

    /// Says that what has come counts for nothing, if anything has.
    fn lost(&self, why: &FetchError) {
        let lost = self.here.swap(0, Ordering::Relaxed);
        if lost > 0 {
            self.watch.anew(self.file, lost, &why.to_string());
        }
    }

    /// Pieces that follow each other, in as many attempts as it takes and may take.
    async fn run(&self, pieces: Range<usize>) -> Result<(), FetchError> {
        let whole = pieces.len() == self.partial.pieces();
        let start = self.partial.range(pieces.start).start;
        let mut span = Span { at: start, end: self.partial.range(pieces.end - 1).end, pieces };
        let mut pauses = self.pauses();
        loop {
            let ranged = !whole || span.at > start;
            let Err(error) = self.read(&mut span, ranged).await else { return Ok(()) };
            let Some(pause) = pauses.next().filter(|_| error.may_pass()) else { return Err(error) };
            self.watch.again(self.file, &error.to_string(), pause);
            tokio::time::sleep(pause).await;
        }
    }

    /// The whole file by one request, from a server that knows no ranges: each attempt from the beginning.
    async fn in_one(&self) -> Result<(), FetchError> {
        let mut pauses = self.pauses();
        let span = Span { at: 0, end: self.file.size, pieces: 0..0 };
        while let Err(error) = self.read(&mut span.clone(), false).await {
            let Some(pause) = pauses.next().filter(|_| error.may_pass()) else { return Err(error) };
            self.lost(&error);
            self.watch.again(self.file, &error.to_string(), pause);
            tokio::time::sleep(pause).await;
        }
        (0..self.partial.pieces()).try_for_each(|piece| self.finished.send(piece)).ok();
        Ok(())
    }

    fn pauses(&self) -> impl Iterator<Item = Duration> {
        let options = self.fetcher.options();
        ExponentialBuilder::default()
            .with_min_delay(options.pause)
            .with_max_delay(MAX_PAUSE)
            .with_max_times(options.attempts.saturating_sub(1))
            .with_jitter()
            .build()
    }

    /// Reads a span and writes it.
    async fn read(&self, span: &mut Span, ranged: bool) -> Result<(), FetchError> {
        let inner = &self.fetcher.inner;
        // Closed only with the fetcher, and somebody has that.
        let _connection = inner.connections.acquire().await;
        let mut options = GetOptions {
            range: ranged.then_some(GetRange::Bounded(span.at..span.end)),
            if_match: self.tag.get().cloned().flatten(),
            ..GetOptions::default()
        };
        // What the storage calls it is not always what it can be asked for by: weak tags match nothing.
        options.if_match = options.if_match.filter(|tag| !tag.starts_with("W/"));
        let store = self.from.store();
        let answer = self.in_time(store.get_opts(self.from.at(), options)).await?;
        let answer = answer.map_err(|error| self.error(&error))?;
        self.check(&answer.meta)?;
        // A file of this machine is read without a stream of small pieces in between.
        let answer = match answer {
            GetResult { payload: GetResultPayload::File(file, _), .. } => {
                return self.copy(span, file).await;
            }
            answer => answer,
        };
        let mut stream = answer.into_stream();
        let (mut gathered, mut bytes) = (Vec::new(), 0);
        while span.at + (bytes as u64) < span.end {
            let came = self.in_time(stream.next()).await?;
            let came = match came {
                Some(came) => came.map_err(|error| self.error(&error)),
                None => Err(FetchError::Storage {
                    at: self.from.to_string(),
                    said: "the answer ended too soon".into(),
                }),
            };
            let failed = match came {
                Ok(came) => {
                    inner.throttle.take(came.len()).await;
                    bytes += came.len();
                    gathered.push(came);
                    None
                }
                Err(error) => Some(error),
            };
            let complete = span.at + bytes as u64 >= span.end;
            if bytes >= GATHER || complete || failed.is_some() {
                self.write(span, std::mem::take(&mut gathered)).await?;
                bytes = 0;
            }
            if let Some(error) = failed {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Reads from a file, and writes it.
    async fn copy(&self, span: &mut Span, from: std::fs::File) -> Result<(), FetchError> {
        let from = Arc::new(from);
        while span.at < span.end {
            let length = usize::try_from(span.end - span.at).map_or(GATHER, |left| left.min(GATHER));
            let (start, from, shown) = (span.at, Arc::clone(&from), self.from.to_string());
            let read = move |_: &_| {
                let mut bytes = vec![0; length];
                let read = from.read_exact_at(&mut bytes, start);
                read.map(|()| bytes)
                    .map_err(|error| FetchError::Storage { at: shown, said: error.to_string() })
            };
            let bytes = self.fetcher.blocking(read).await?;
            self.fetcher.inner.throttle.take(length).await;
            self.write(span, vec![bytes.into()]).await?;
        }
        Ok(())
    }

    /// Writes what was gathered, none of it beyond the end of what was asked for.
    async fn write(&self, span: &mut Span, gathered: Vec<Bytes>) -> Result<(), FetchError> {
        let (writer, at, end) = (Arc::clone(&self.writer), span.at, span.end);
        let bytes = gathered.iter().fold(0, |sum, bytes| sum + bytes.len() as u64);
        let to = at.saturating_add(bytes).min(end);
        let complete = span.pieces.clone().take_while(|piece| self.partial.range(*piece).end <= to).count();
        let complete = span.pieces.start..span.pieces.start + complete;
        let marked = complete.clone();
        let written = self.fetcher.blocking(move |_| {
            let written = writer.hashed.write(at..end, &gathered)?;
            marked.into_iter().try_for_each(|piece| writer.hashed.mark(piece))?;
            Ok::<_, std::io::Error>(written)
        });
        span.at = written.await?;
        span.pieces.start = complete.end;
        self.here.fetch_add(span.at - at, Ordering::Relaxed);
        self.watch.came(self.file, span.at - at);
        // Nobody hears it only if hashing has failed, which is an error by itself.
        complete.into_iter().try_for_each(|piece| self.finished.send(piece)).ok();
        Ok(())
    }

    /// Whether the object is still the one that the first answer was of, and as large as it should be.
    fn check(&self, meta: &object_store::ObjectMeta) -> Result<(), FetchError> {
        let at = || self.from.to_string();
        if self.tag.get_or_init(|| meta.e_tag.clone()) != &meta.e_tag {
            return Err(FetchError::Changed { at: at() });
        }
        if meta.size != self.file.size {
            return Err(FetchError::Size { at: at(), found: meta.size, wanted: self.file.size });
        }
        Ok(())
    }

    async fn in_time<T>(&self, coming: impl Future<Output = T>) -> Result<T, FetchError> {
        let stall = self.fetcher.options().stall;
        let stalled = |_| FetchError::Stalled { at: self.from.to_string(), seconds: stall.as_secs() };
        tokio::time::timeout(stall, coming).await.map_err(stalled)
    }

    fn error(&self, error: &object_store::Error) -> FetchError {
        FetchError::of(&self.from, error)
    }
}
