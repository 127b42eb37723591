//! The contract as data: each vector is asked of the real azureml-inference-server-http, which proves that it is true, and of a
//! replica, with `compat = true` and by default. Vectors and how they are written: `cli/tests/contract`.

mod check;
mod client;
mod data;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use outrigger_testkit::replica::KEY;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use client::Answer;
use data::{Service, Side, Vector, header, services};
use servers::Server;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_real_server_does_what_the_vectors_say() {
    let failures = ask(Side::Real).await;
    println!("{}", differences(&services()));
    report(&failures);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compat_does_what_the_vectors_say() {
    report(&ask(Side::Compat).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strict_does_what_the_vectors_say() {
    report(&ask(Side::Strict).await);
}

#[test]
fn every_row_of_the_contract_has_its_vector() {
    let rows = data::rows();
    let services = services();
    let vectors = services.iter().flat_map(|service| &service.vector).map(|vector| &vector.row);
    let failures = services.iter().filter_map(|service| service.fails.as_ref()).map(|failure| &failure.row);
    let covered: BTreeSet<&String> = vectors.chain(failures).collect();
    let unknown: Vec<_> = covered.iter().filter(|row| !rows.contains_key(**row)).collect();
    let missing: Vec<_> = rows.keys().filter(|row| !covered.contains(row)).collect();
    assert!(
        unknown.is_empty() && missing.is_empty(),
        "not in rows.toml: {unknown:?}; without vector: {missing:?}"
    );
}

#[test]
fn every_difference_has_a_reason_and_every_name_is_unique() {
    let mut names = BTreeSet::new();
    for service in services() {
        for vector in &service.vector {
            let name = format!("{} / {}", service.title(), vector.name);
            for side in [Side::Compat, Side::Strict] {
                assert!(
                    vector.differences(side).all(|difference| !difference.why.is_empty()),
                    "{name}: no reason"
                );
            }
            assert!(
                vector.expect.why.is_empty(),
                "{name}: what is expected of the real server needs no reason"
            );
            assert!(names.insert(name.clone()), "{name}: the name is taken");
        }
        assert_eq!(service.fails.is_some(), service.vector.is_empty(), "{}", service.title());
    }
}

/// Where a service is served.
struct Place {
    address: String,
    /// The script's working directory.
    directory: PathBuf,
    side: Side,
}

/// Runs all vectors against one side, as many services at once as there are cores; what went wrong, an entry for each.
async fn ask(side: Side) -> Vec<String> {
    // One service of a file, or one file, while vectors are being written.
    let chosen = std::env::var("OUTRIGGER_TEST_VECTORS").unwrap_or_default();
    let start = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (free, mut tasks, mut asked) = (Arc::new(Semaphore::new(cores)), JoinSet::new(), 0);
    for (index, service) in
        services().into_iter().filter(|service| service.title().contains(&chosen)).enumerate()
    {
        asked += service.vector.len() + usize::from(service.fails.is_some());
        let free = Arc::clone(&free);
        tasks.spawn(async move {
            let _core = free.acquire_owned().await;
            (index, ask_service(service, side).await)
        });
    }
    let failures: BTreeMap<usize, Vec<String>> = tasks.join_all().await.into_iter().collect();
    let failures: Vec<String> = failures.into_values().flatten().collect();
    println!(
        "{}: {asked} vectors, {} failed, {:.1} s",
        side.name(),
        failures.len(),
        start.elapsed().as_secs_f64()
    );
    failures
}

async fn ask_service(service: Service, side: Side) -> Vec<String> {
    let title = service.title();
    let started = tokio::task::spawn_blocking(move || {
        if service.fails.is_some() {
            let ended = servers::run(&service, side);
            return Err(compare_end(&service, &ended));
        }
        let server = Server::start(&service, side);
        Ok((service, server))
    });
    let (service, server) = match started.await {
        Ok(Ok(started)) => started,
        Ok(Err(failures)) => return failures,
        Err(panic) => return vec![format!("{title}: it does not start\n    {}", message(panic))],
    };
    let place = Place { address: server.address().to_owned(), directory: server.directory(), side };
    let mut failures = Vec::new();
    for vector in &service.vector {
        let wrong = ask_vector(vector, &place).await;
        if !wrong.is_empty() {
            failures.push(format!("{title} / {}\n    {}", vector.name, wrong.join("\n    ")));
        }
    }
    if std::env::var_os("OUTRIGGER_TEST_VECTORS").is_some() && !failures.is_empty() {
        failures.push(format!("{title}: the log\n{}", server.log()));
    }
    // Its end is waited for.
    let _ = tokio::task::spawn_blocking(move || drop(server)).await;
    failures
}

fn compare_end(service: &Service, ended: &servers::Ended) -> Vec<String> {
    let Some(expected) = &service.fails else { return Vec::new() };
    let mut wrong = Vec::new();
    if ended.code != Some(expected.exit) {
        wrong.push(format!("exit code {:?}, expected {}", ended.code, expected.exit));
    }
    for text in expected.log.iter().filter(|text| !ended.log.contains(*text)) {
        wrong.push(format!("the log does not hold `{text}`"));
    }
    if wrong.is_empty() {
        return Vec::new();
    }
    vec![format!("{}\n    {}\n{}", service.title(), wrong.join("\n    "), ended.log)]
}

/// What is wrong with the answer to one vector.
async fn ask_vector(vector: &Vector, place: &Place) -> Vec<String> {
    let expected = vector.expected(place.side);
    let answer = match &vector.during {
        None => send(vector, place).await,
        Some(other) => match send_during(vector, other, place).await {
            Ok((answer, overtook)) => {
                if Some(overtook) != expected.overtakes {
                    return vec![format!("overtook: {overtook}, expected {:?}", expected.overtakes)];
                }
                Ok(answer)
            }
            Err(error) => Err(error),
        },
    };
    let answer = match answer {
        Ok(answer) => answer,
        Err(error) => return vec![error],
    };
    let mut wrong = check::compare(&expected, answer.as_ref());
    if let (Some(answer), false) = (&answer, place.side == Side::Real) {
        wrong.extend(code(expected.code.as_deref(), answer));
    }
    wrong
}

/// An error of the server's own says its code and whether it is worth another try; nothing else does.
fn code(expected: Option<&str>, answer: &Answer) -> Option<String> {
    let got = (answer.values("outrigger-code"), answer.values("outrigger-retryable"));
    let right = match expected {
        Some(code) => got.0 == [code] && matches!(&got.1[..], [one] if one == "true" || one == "false"),
        None => got.0.is_empty() && got.1.is_empty(),
    };
    (!right).then(|| format!("outrigger-code, outrigger-retryable: {got:?}, expected {expected:?}"))
}

async fn send(vector: &Vector, place: &Place) -> Result<Option<Answer>, String> {
    let mut headers: Vec<(String, String)> = Vec::new();
    for line in &vector.headers {
        let (name, value) = header(line);
        // A value of a hundred characters is written as `a*100`.
        let value = match value.split_once('*').map(|(text, times)| (text, times.parse())) {
            Some((text, Ok(times))) => text.repeat(times),
            _ => value.to_owned(),
        };
        if place.side != Side::Strict || !name.eq_ignore_ascii_case("authorization") {
            headers.push((name.to_owned(), value));
        }
    }
    if place.side == Side::Strict {
        headers.push(("Authorization".into(), format!("Bearer {KEY}")));
    }
    client::send(&place.address, vector.request_line(), &headers, vector.bytes()).await
}

/// Sends the vector's request while another one is under way: its answer, and whether it came before the other's.
async fn send_during(vector: &Vector, other: &str, place: &Place) -> Result<(Option<Answer>, bool), String> {
    let address = place.address.clone();
    let mut headers = Vec::new();
    if place.side == Side::Strict {
        headers.push(("Authorization".to_owned(), format!("Bearer {KEY}")));
    }
    let body = other.as_bytes().to_vec();
    let first =
        tokio::spawn(async move { client::send(&address, ("POST", "/score"), &headers, Some(body)).await });
    // The script says with a file that it has begun; a file ends it.
    let (begun, release) = (place.directory.join("outputs/begun"), place.directory.join("release"));
    while !begun.exists() {
        if first.is_finished() {
            return Err("the other request ended early".into());
        }
        tokio::task::yield_now().await;
    }
    let second = send(vector, place);
    tokio::pin!(second);
    let free = vector.expected(place.side).overtakes == Some(true);
    let (answer, overtook) = if free {
        let answer = second.await?;
        let overtook = !first.is_finished();
        std::fs::write(&release, "").map_err(|error| error.to_string())?;
        first.await.map_err(|error| error.to_string())??;
        (answer, overtook)
    } else {
        std::fs::write(&release, "").map_err(|error| error.to_string())?;
        tokio::select! {
            biased;
            answer = &mut second => (answer?, true),
            other = first => {
                other.map_err(|error| error.to_string())??;
                (second.await?, false)
            }
        }
    };
    Ok((answer, overtook))
}

fn message(panic: tokio::task::JoinError) -> String {
    let Ok(payload) = panic.try_into_panic() else { return "cancelled".into() };
    match payload.downcast::<String>() {
        Ok(text) => *text,
        Err(payload) => payload.downcast_ref::<&str>().unwrap_or(&"?").to_string(),
    }
}

/// Where we differ on purpose: by the reason, what the real server does and what we do.
fn differences(services: &[Service]) -> String {
    let mut by_reason: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for service in services {
        for vector in &service.vector {
            let sides = [("ours", &vector.ours), ("compat", &vector.compat), ("strict", &vector.strict)];
            for (side, difference) in sides {
                let Some(difference) = difference else { continue };
                let line = format!(
                    "{} / {}\n      real    {}\n      {side:<7} {}",
                    service.title(),
                    vector.name,
                    vector.expect.summary(),
                    difference.summary()
                );
                by_reason.entry(&difference.why).or_default().push(line);
            }
        }
    }
    let coded = services
        .iter()
        .flat_map(|service| &service.vector)
        .filter(|vector| vector.expect.code.is_some())
        .count();
    let mut text = format!(
        "Where we differ on purpose:\n\n- errors of our own also carry outrigger-code and outrigger-retryable, \
         so that a program need not read texts: {coded} vectors\n"
    );
    for (reason, lines) in by_reason {
        let _ = writeln!(text, "\n- {reason}\n    {}", lines.join("\n    "));
    }
    text
}

/// Fails with everything that went wrong.
fn report(failures: &[String]) {
    assert!(failures.is_empty(), "{} vectors do not hold:\n\n{}\n", failures.len(), failures.join("\n\n"));
}
