//! The one thread from the rings to the logs.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::lane::Lane;
use crate::ring::Wake;
use crate::spool::Spool;

/// How often lanes look after what is not a record.
const TICK: Duration = Duration::from_millis(250);
/// How long records gather when nobody waits for them: a wake-up for each would cost those who offer them more than all the rest.
const GATHER: Duration = Duration::from_millis(2);

/// What others ask of the writer.
pub(crate) enum Command {
    /// Write what has been offered until now, and say whether that could be done.
    Drain(oneshot::Sender<bool>),
    /// The same, and nothing more comes to the objects that there are.
    Close(oneshot::Sender<()>),
    /// Write what has been offered to one lane until now, and nothing more to the segments that there are: the first that is not one of them.
    Seal { lane: usize, told: oneshot::Sender<io::Result<u64>> },
    /// End.
    End,
}

/// The thread's state.
pub(crate) struct Writer {
    pub(crate) lanes: Vec<Lane>,
    pub(crate) spool: Spool,
    pub(crate) wake: Arc<Wake>,
    pub(crate) commands: Receiver<Command>,
}

/// Whatever ends the thread, nobody goes on offering to a ring that nobody empties.
impl Drop for Writer {
    fn drop(&mut self) {
        self.lanes.iter().for_each(|lane| lane.collection.close());
    }
}

impl Writer {
    /// Runs until it is told to end.
    pub(crate) fn run(mut self) {
        self.wake.is_me();
        let mut ticked = Instant::now();
        loop {
            loop {
                match self.commands.try_recv() {
                    Ok(Command::End) | Err(TryRecvError::Disconnected) => {
                        self.drain();
                        self.lanes.iter_mut().for_each(Lane::end);
                        return;
                    }
                    Ok(command) => self.obey(command),
                    Err(TryRecvError::Empty) => break,
                }
            }
            let mut busy = false;
            for lane in &mut self.lanes {
                busy |= lane.drain(&mut self.spool) > 0;
            }
            if ticked.elapsed() >= TICK {
                self.lanes.iter_mut().for_each(Lane::tick);
                ticked = Instant::now();
            }
            if busy {
                // More has come meanwhile, or will in a moment.
                let waits = |lane: &Lane| {
                    lane.is_ready()
                        && (lane.collection.waits().is_some() || lane.collection.ring.is_half_full())
                };
                self.wake.sleep(GATHER, true, || self.lanes.iter().any(waits));
            } else {
                self.wake.sleep(TICK.saturating_sub(ticked.elapsed()), false, || {
                    self.lanes.iter().any(Lane::is_ready)
                });
            }
        }
    }

    /// Writes what is in the rings now; whether that could be done.
    fn drain(&mut self) -> bool {
        let mut all = true;
        for lane in &mut self.lanes {
            let mut left = lane.collection.ring.items();
            while left > 0 {
                let written = lane.drain(&mut self.spool);
                if written == 0 {
                    break;
                }
                left = left.saturating_sub(written);
            }
            all &= left == 0 && lane.is_settled();
        }
        all
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Drain(told) => {
                let _ = told.send(self.drain());
            }
            Command::Close(told) => {
                self.drain();
                self.lanes.iter_mut().for_each(Lane::close_all);
                let _ = told.send(());
            }
            Command::Seal { lane, told } => {
                self.drain();
                let sealed = match self.lanes.get_mut(lane) {
                    Some(lane) => lane.seal(),
                    None => Err(io::ErrorKind::NotFound.into()),
                };
                let _ = told.send(sealed);
            }
            Command::End => {}
        }
    }
}
