//! A thread that makes all runs of one model.
//!
//! ONNX Runtime's provider for CUDA has a context for each thread that runs a session: handles of cuBLAS and cuDNN, and what was recorded there. Of a
//! session that records it gives none back before the session ends. So the runs of such a one come from one thread, which ends with the model.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;

type Job = Box<dyn FnOnce() + Send>;

pub(crate) struct OwnThread {
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl OwnThread {
    /// Begins a thread, which ends, and is waited for, when this is dropped.
    pub(crate) fn start() -> std::io::Result<Self> {
        let (jobs, given) = sync_channel::<Job>(0);
        let run = move || {
            while let Ok(job) = given.recv() {
                job();
            }
        };
        let thread = std::thread::Builder::new().name("outrigger-graphs".into()).spawn(run)?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Makes a call there and waits for it; `None` where it panicked.
    pub(crate) fn call<'a, T: Send + 'a>(&self, call: impl FnOnce() -> T + Send + 'a) -> Option<T> {
        let (done, is_done) = sync_channel(1);
        let job: Box<dyn FnOnce() + Send + 'a> = Box::new(move || {
            // What the call has borrowed is let go of in it, before anything is said.
            let _ = done.send(catch_unwind(AssertUnwindSafe(call)).ok());
        });
        // SAFETY: the lifetime alone changes. The job is gone, with all that it has borrowed, when this returns: it is run, and says so as its last
        // step, or dropped, and with it the channel's other end; both are waited for below.
        let job: Job = unsafe { std::mem::transmute(job) };
        self.jobs.as_ref()?.send(job).ok()?;
        is_done.recv().ok().flatten()
    }
}

impl Drop for OwnThread {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_one_thread_s_and_what_they_borrow_comes_back() {
        let own = OwnThread::start().unwrap();
        let mut text = String::from("a");
        let first = own.call(|| {
            text.push('b');
            std::thread::current().id()
        });
        assert_eq!(text, "ab");
        let threads: Vec<_> = std::thread::scope(|scope| {
            let other = [(); 3].map(|()| scope.spawn(|| own.call(|| std::thread::current().id())));
            other.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(first.is_some() && threads.iter().all(|id| *id == first));
        assert_ne!(first, Some(std::thread::current().id()));
        assert_eq!(own.call(|| panic!("expected by this test")), None::<()>);
        assert_eq!(own.call(|| 7), Some(7), "it goes on");
    }

    #[test]
    fn it_ends_with_its_owner() {
        struct Last(std::sync::mpsc::Sender<()>);
        impl Drop for Last {
            fn drop(&mut self) {
                let _ = self.0.send(());
            }
        }
        thread_local! {
            static LAST: std::cell::RefCell<Option<Last>> = const { std::cell::RefCell::new(None) };
        }
        let (sender, ended) = std::sync::mpsc::channel();
        let own = OwnThread::start().unwrap();
        own.call(move || LAST.set(Some(Last(sender)))).unwrap();
        assert!(ended.try_recv().is_err());
        drop(own);
        ended.try_recv().unwrap();
    }
}
