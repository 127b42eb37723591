//! The lines of the log on their way out. A thread of its own writes them, so that one who reads slowly, or not at all, holds up no
//! call; what waits is bounded in bytes, and what finds no room is counted and told of.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

/// How long the end of the process waits for somebody who reads the log.
const LAST_LINES: Duration = Duration::from_secs(1);
/// How often it is said that lines are lost while there are always others waiting.
const NOTICE_PAUSE: Duration = Duration::from_secs(1);
/// What a line holds beside its text, bytes.
const OVERHEAD: usize = 64;

/// Writes out that so many lines are lost. Called in the log's own thread.
pub(super) type Notice = Box<dyn Fn(u64) + Send>;

/// The log as it is being written. Dropping this writes out what is waiting, as far as somebody reads it within [`LAST_LINES`].
pub(crate) struct Log(Arc<Waiting>);

/// Lines that wait to be written.
pub(super) struct Waiting {
    messages: Sender<Message>,
    bytes: AtomicUsize,
    limit: usize,
    /// Lines that have found no room and have not been told of.
    lost: AtomicU64,
}

enum Message {
    Line(Vec<u8>),
    /// The last one; whoever waits sees the sender dropped.
    End(Sender<()>),
}

impl Log {
    /// Starts the thread. At most `limit` bytes wait, or one line.
    ///
    /// # Errors
    /// There is no thread for it.
    pub(super) fn start(
        out: Box<dyn Write + Send>,
        limit: usize,
        notice: Notice,
    ) -> io::Result<(Self, Arc<Waiting>)> {
        let (messages, received) = channel();
        let waiting =
            Arc::new(Waiting { messages, bytes: AtomicUsize::new(0), limit, lost: AtomicU64::new(0) });
        let here = Arc::clone(&waiting);
        let work = move || here.write_out(&received, out, &notice);
        std::thread::Builder::new().name("log".into()).spawn(work)?;
        Ok((Self(Arc::clone(&waiting)), waiting))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let (end, ended) = channel();
        if self.0.messages.send(Message::End(end)).is_ok() {
            let _ = ended.recv_timeout(LAST_LINES);
        }
    }
}

impl Waiting {
    fn write_out(&self, messages: &Receiver<Message>, mut out: Box<dyn Write + Send>, notice: &Notice) {
        let mut told: Option<Instant> = None;
        while let Ok(message) = messages.recv() {
            let end = match message {
                Message::Line(line) => {
                    // Nobody is left who could be told of an error.
                    let _ = out.write_all(&line).and_then(|()| out.flush());
                    self.bytes.fetch_sub(line.len() + OVERHEAD, Ordering::Relaxed);
                    None
                }
                Message::End(end) => Some(end),
            };
            let due = end.is_some()
                || self.bytes.load(Ordering::Relaxed) == 0
                || told.is_none_or(|told| told.elapsed() >= NOTICE_PAUSE);
            if due {
                let lost = self.lost.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    told = Some(Instant::now());
                    notice(lost);
                }
            }
            if end.is_some() {
                return;
            }
        }
    }
}

/// Takes a line at a time and never waits.
impl Write for &Waiting {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let size = line.len() + OVERHEAD;
        let room = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            (held == 0 || held.saturating_add(size) <= self.limit).then(|| held.saturating_add(size))
        });
        if room.is_err() || self.messages.send(Message::Line(line.to_vec())).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Writes each line when it is told to.
    struct Slow {
        turns: Receiver<()>,
        written: Arc<Mutex<Vec<String>>>,
    }

    impl Write for Slow {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.turns.recv();
            self.written.lock().unwrap().push(String::from_utf8(line.to_vec()).unwrap());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn bytes_are_bounded_and_losses_are_told_in_their_place() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let (turn, turns) = channel();
        let slow = Slow { turns, written: Arc::clone(&written) };
        let told = Arc::clone(&written);
        let notice = Box::new(move |lines| told.lock().unwrap().push(format!("{lines} lost")));
        let (log, waiting) = Log::start(Box::new(slow), 3 * (10 + OVERHEAD), notice).unwrap();
        let write = |text: &str| (&*waiting).write_all(text.as_bytes()).unwrap();
        write(&"a".repeat(1000));
        for text in ["too many", "and more"] {
            write(text);
        }
        turn.send(()).unwrap();
        while written.lock().unwrap().len() < 2 {
            std::thread::yield_now();
        }
        for letter in ["b", "c", "d", "e", "f"] {
            write(&letter.repeat(10));
        }
        drop(turn);
        drop(log);
        let written = written.lock().unwrap();
        let short: Vec<_> = written.iter().map(|line| line.get(..2).unwrap()).collect();
        assert_eq!(short, ["aa", "2 ", "bb", "cc", "dd", "2 "], "the first line has room however long it is");
    }

    #[test]
    fn losses_are_told_of_though_others_always_wait() {
        let written = Arc::new(Mutex::new(Vec::new()));
        let (turn, turns) = channel();
        let slow = Slow { turns, written: Arc::clone(&written) };
        let told = Arc::clone(&written);
        let notice = Box::new(move |_| told.lock().unwrap().push("lost".into()));
        let (_log, waiting) = Log::start(Box::new(slow), 2 * (1 + OVERHEAD), notice).unwrap();
        let fill = || (0..3).for_each(|_| (&*waiting).write_all(b"x").unwrap());
        fill();
        while !written.lock().unwrap().contains(&"lost".to_owned()) {
            turn.send(()).unwrap();
            fill();
        }
        drop(turn);
    }
}
