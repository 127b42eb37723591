//! The same as `mean.c`, in Rust. With `?running` the answer is the mean up to each value, as float32 values
//! that are built where they are sent from; `GET` with `?count=N` streams the numbers up to N, a line each.

use std::io::Write;

use outrigger_script::{Error, Host, Level, Method, Request, Response, Script};

struct Mean;

impl Script for Mean {
    fn init(host: &Host<'_>) -> Result<Self, Error> {
        host.log(Level::Info, "ready for float32 values");
        Ok(Self)
    }

    fn run(&self, request: &Request<'_>) -> Result<Response, Error> {
        match request.method() {
            Method::Get => count(request),
            _ if request.query() == b"running" => running(request),
            _ => mean(request.body()),
        }
    }
}

fn mean(body: &[u8]) -> Result<Response, Error> {
    let (values, rest) = body.as_chunks::<4>();
    if values.is_empty() || !rest.is_empty() {
        return Err(Error::input("the body must be one or more float32 values"));
    }
    let sum: f64 = values.iter().map(|value| f64::from(f32::from_ne_bytes(*value))).sum();
    let mean = sum / values.len() as f64;
    if !mean.is_finite() {
        return Err(Error::input("the mean is not a finite number, which JSON cannot write"));
    }
    Ok(Response::json(format!("{{\"mean\": {mean}}}")))
}

fn running(request: &Request<'_>) -> Result<Response, Error> {
    let (values, _) = request.body().as_chunks::<4>();
    let mut answer =
        request.buffer(values.len() * 4).ok_or_else(|| Error::failed("no memory for the answer"))?;
    let (means, _) = answer.as_chunks_mut::<4>();
    let mut sum = 0.0;
    for (number, (value, mean)) in values.iter().zip(means).enumerate() {
        sum += f64::from(f32::from_ne_bytes(*value));
        *mean = ((sum / (number + 1) as f64) as f32).to_ne_bytes();
    }
    Ok(Response::in_place("application/octet-stream", answer).header("x-values", values.len().to_string()))
}

fn count(request: &Request<'_>) -> Result<Response, Error> {
    let query = std::str::from_utf8(request.query())?;
    let last = query.strip_prefix("count=").ok_or_else(|| Error::input("say ?count=N"))?;
    let last: u64 = last.parse().map_err(|_| Error::input("say ?count=N"))?;
    let mut stream = request.stream(Response::new("text/plain", ""))?;
    for number in 1..=last {
        writeln!(stream, "{number}")?;
    }
    Ok(stream.end())
}

outrigger_script::export!(Mean);
