//! The worker process: its main loop over the two sockets.

mod call;
mod channel;
mod frame;
#[cfg(fuzzing)]
pub(crate) mod fuzzing;
mod pool;
#[expect(unsafe_code, reason = "inherited descriptors, and what happens on signals")]
mod process;
mod reader;
mod start;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::{Answer, CallError, Library, LoadError, Request, Script, Settings};
use call::CallContext;
use channel::{Channel, End};
use frame::{Kind, Outcome, ReplyHead};
use start::{Failed, Ready, Start};

/// The runtime has ended the conversation, and the worker in order.
const EXIT_OK: u8 = 0;
/// The runtime broke the protocol.
const EXIT_PROTOCOL: u8 = 1;
/// Nobody handed over sockets.
const EXIT_NO_SOCKETS: u8 = 2;
/// The script did not start; FAILED was sent.
const EXIT_FAILED: u8 = 3;

/// Runs a worker process from its first to its last line: takes the sockets that the environment names, loads
/// the library that START names, and answers calls until the runtime closes. Returns the exit code. To be
/// called first thing in `main`, while there is one thread.
pub fn serve_worker() -> u8 {
    let sockets = match process::sockets() {
        Ok(sockets) => sockets,
        Err(error) => {
            eprintln!("a native worker is started by the runtime, with two sockets: {error}");
            return EXIT_NO_SOCKETS;
        }
    };
    process::prepare();
    let channel = Arc::new(Channel::new(sockets));
    match serve(&channel) {
        Ok(code) => code,
        Err(End::Closed) => EXIT_OK,
        Err(End::Forked) => process::exit_child(),
        Err(End::Protocol(what)) => {
            eprintln!("the worker ends: the runtime broke the protocol: {what}");
            EXIT_PROTOCOL
        }
    }
}

fn serve(channel: &Arc<Channel>) -> Result<u8, End> {
    let start = channel.start()?;
    let script = match load(channel, &start)? {
        Ok(script) => Arc::new(script),
        Err((phase, error)) => {
            let failed = Failed { phase, message: error.to_string(), traceback: "" };
            channel.send(Kind::Failed, 0, &[&start::json(&failed)])?;
            return Ok(EXIT_FAILED);
        }
    };
    let methods = script.methods().map(|method| method.as_str()).collect();
    channel.send(Kind::Ready, 0, &[&start::json(&Ready::new(&start, methods))])?;
    loop {
        let call = channel.next_call().inspect_err(|_| channel.hang_up())?;
        if call.cancelled() {
            let head = ReplyHead::bare(Outcome::Cancelled, Duration::ZERO);
            channel.send(Kind::Reply, call.id, &[&head.encode()])?;
        } else {
            answer(channel, &script, &call)?;
        }
        if let Some(region) = call.region() {
            drop(call);
            channel.release(region)?;
        }
    }
}

/// Loads the script; on failure says in which phase.
fn load(channel: &Arc<Channel>, start: &Start) -> Result<Result<Script, (&'static str, LoadError)>, End> {
    let library = match Library::open(&start.app_root.join(&start.native)) {
        Ok(library) => library,
        Err(error) => return Ok(Err(("import", error))),
    };
    channel.send(Kind::Phase, 0, &[b"init"])?;
    let settings = Settings {
        app_root: start.app_root.clone(),
        model_dir: std::env::var_os("AZUREML_MODEL_DIR").map(Into::into),
        args: start.args.clone(),
    };
    let log = Arc::clone(channel);
    Ok(Script::start(library, settings, move |level, line| log.log(0, level, line))
        .map_err(|error| ("init", error)))
}

#[expect(unsafe_code, reason = "keeps the conditions of a call")]
fn answer(channel: &Channel, script: &Arc<Script>, call: &frame::Call) -> Result<(), End> {
    let begun = Instant::now();
    let headers = call.headers();
    let request = Request {
        method: call.method,
        id: call.request_id(),
        query: call.query(),
        headers: &headers,
        body: call.body(),
        deadline: call.limit.and_then(|limit| begun.checked_add(limit)),
    };
    process::enter_call(call.id);
    let context = CallContext::new(channel, call.id);
    // SAFETY: this is the only thread that calls the script, and the answer is gone when this function
    // returns.
    let answer = unsafe { script.call(&request, &context) };
    let run = begun.elapsed();
    process::leave_call();
    let (streaming, cancelled) = (context.streaming(), channel.end_call());
    channel.notice_fork()?;
    if let (true, result) = (streaming, &answer) {
        let (outcome, message) = match result {
            // Whatever the script makes of not being able to write any more.
            _ if cancelled => (Outcome::Raised, "cancelled".into()),
            Ok(_) => (Outcome::Returned, String::new()),
            Err(error) => (Outcome::Raised, message_of(error)),
        };
        let head = ReplyHead::new(outcome, 0, message.len(), run);
        return channel.send(Kind::End, call.id, &[&head.encode(), message.as_bytes()]);
    }
    if cancelled {
        let head = ReplyHead::bare(Outcome::Cancelled, run);
        return channel.send(Kind::Reply, call.id, &[&head.encode()]);
    }
    match answer {
        Ok(Answer::Whole(head, mut body)) => channel.reply(call.id, &head, &mut body, run),
        // The stream was asked for and did not begin; what for does not matter, nobody is there.
        Ok(Answer::Streamed) => {
            let head = ReplyHead::bare(Outcome::Cancelled, run);
            channel.send(Kind::Reply, call.id, &[&head.encode()])
        }
        Err(error) => {
            let (outcome, status) = match error {
                CallError::Input { .. } => (Outcome::Input, 400),
                _ => (Outcome::Raised, 0),
            };
            let message = message_of(&error);
            let head = ReplyHead::new(outcome, status, message.len(), run);
            channel.send(Kind::Reply, call.id, &[&head.encode(), message.as_bytes()])
        }
    }
}

/// As the protocol has it: what the caller or the log is told.
fn message_of(error: &CallError) -> String {
    match error {
        CallError::Failed { message } | CallError::Input { message } => message.clone(),
        broken @ CallError::Broken { .. } => broken.to_string(),
    }
}
