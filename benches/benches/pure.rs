//! Criterion benchmarks of the pure parts: JSON tensors, request identifiers, the policy, the scheduler, frames of the worker protocol, the busy
//! signal.

use std::collections::VecDeque;
use std::future::Future;
use std::hint::black_box;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderMap, HeaderValue};
use outrigger_auth::{
    CallerId, CallerRules, KeyOrigin, KeyRing, KeyStore, NamedCaller, Policy, PolicyConfig, Rate,
    ResolvedKeys, Secret,
};
use outrigger_backend::{Buffer, DataType, ModelInfo, Shape, Tensor, TensorInfo};
use outrigger_protocol::Operation;
use outrigger_protocol::call::{self, InferReply};
use outrigger_protocol::ids::RequestIds;
use outrigger_protocol::oip;
use outrigger_protocol::priority::Priority;
use outrigger_runtime::busy::{Busy, Outcome};
use outrigger_runtime::scripts::frame::{self, CallBody, CallHead, Method};
use outrigger_runtime::scripts::tensors;
use outrigger_runtime::{Admission, Limits, Scheduler, Terms};

fn model() -> ModelInfo {
    let tensor = |name: &str, width: i64| TensorInfo {
        name: name.into(),
        data_type: DataType::Fp32,
        shape: vec![-1, width],
        symbols: vec!["batch".into(), String::new()],
    };
    ModelInfo { inputs: vec![tensor("x", 64)], outputs: vec![tensor("y", 10)] }
}

fn request(rows: usize) -> String {
    let row: Vec<String> = (0..64).map(|pixel| format!("{}.5", pixel % 16)).collect();
    let data = vec![row.join(","); rows].join(",");
    format!(
        "{{\"inputs\":[{{\"name\":\"x\",\"shape\":[{rows},64],\"datatype\":\"FP32\",\"data\":[{data}]}}]}}"
    )
}

fn tensor(rows: i64, width: i64) -> Tensor {
    let shape = Shape::new([rows, width]).expect("a shape");
    let values = (0..rows * width).flat_map(|at| (at as f32 * 0.37).to_le_bytes()).collect::<Vec<_>>();
    Tensor::new(DataType::Fp32, shape, values.into()).expect("a tensor")
}

fn json(criterion: &mut Criterion) {
    let (model, limits) = (model(), call::Limits::default());
    let mut group = criterion.benchmark_group("json_tensors");
    for rows in [1, 32, 1024] {
        let body = Bytes::from(request(rows));
        group.throughput(Throughput::Bytes(body.len() as u64));
        group.bench_function(format!("parse {rows}x64"), |bencher| {
            let request = oip::Request::json(&body);
            bencher.iter(|| oip::parse_infer(black_box(request), &model, &limits, &call::NoRegions));
        });
        let tensors = [tensor(rows as i64, 10)];
        let reply = InferReply {
            model_name: "m",
            model_version: Some("1"),
            id: None,
            model: &model,
            outputs: &[call::Wanted { index: 0, form: call::Form::Values }],
            tensors: &tensors,
        };
        group.throughput(Throughput::Elements(rows as u64 * 10));
        group.bench_function(format!("write {rows}x10"), |bencher| {
            bencher.iter(|| oip::encode_infer(black_box(&reply)))
        });
    }
    group.finish();
}

fn ids(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request_ids");
    let none = HeaderMap::new();
    group.bench_function("generated", |bencher| {
        bencher.iter(|| {
            let mut answer = HeaderMap::with_capacity(8);
            RequestIds::from_headers(black_box(&none)).expect("ids").write(&mut answer);
            answer
        });
    });
    let mut sent = HeaderMap::new();
    sent.insert("x-request-id", HeaderValue::from_static("2f0c6c1e-7d3a-4b57-9c3f-0c9b8f1f6a55"));
    group.bench_function("echoed", |bencher| {
        bencher.iter(|| {
            let mut answer = HeaderMap::with_capacity(8);
            RequestIds::from_headers(black_box(&sent)).expect("ids").write(&mut answer);
            answer
        });
    });
    group.finish();
}

/// What it costs to know who calls where a hundred callers have two keys each.
fn of_200_keys(criterion: &mut Criterion) {
    let mut store = KeyStore::empty().unwrap();
    let key = |at: usize| Secret::new(format!("the-key-{at:03}-0123456789-abcdef-0123456789"));
    for at in 0..200 {
        store.add(&format!("c{}", at / 2), None, &key(at), 0, Some(u64::MAX / 2)).unwrap();
    }
    let ring = KeyRing::of(None, Some(&store), [], |_| Some(CallerId::PRIMARY)).unwrap();
    let value = HeaderValue::from_str(&format!("Bearer {}", key(99).expose())).unwrap();
    criterion.bench_function("keys/of-200", |bencher| {
        bencher.iter(|| black_box(ring.authenticate(Some(black_box(&value)), 1)));
    });
}

/// What the policy costs a call: as the holder of the primary key, and as one whose rate and places are counted.
fn policy(criterion: &mut Criterion) {
    let key = |name: &str| Secret::new(format!("the-key-of-{name}-0123456789-abcdef"));
    let rules = CallerRules {
        rate: Rate::new(1e6, Some(1_000_000)),
        concurrency: std::num::NonZeroU32::new(100),
        ..CallerRules::default()
    };
    let named = (0..10).map(|at| NamedCaller {
        name: format!("c{at}"),
        key: Some(key(&format!("c{at}"))),
        certificate: None,
        rules: rules.clone(),
    });
    let config = PolicyConfig { named: named.collect(), ..PolicyConfig::default() };
    let keys = ResolvedKeys { primary: key("primary"), secondary: None, origin: KeyOrigin::Configured };
    let policy = Policy::new(Some(&keys), &config, Instant::now()).unwrap();
    of_200_keys(criterion);
    for (name, key) in [("policy/primary", key("primary")), ("policy/limited", key("c9"))] {
        let value = HeaderValue::from_str(&format!("Bearer {}", key.expose())).unwrap();
        let headers = HeaderMap::from_iter([(http::header::AUTHORIZATION, value)]);
        criterion.bench_function(name, |bencher| {
            bencher.iter(|| {
                let grant = policy.ask(&headers, Operation::Infer, Some("digits"), Instant::now());
                black_box(grant.map(|grant| grant.permit()))
            });
        });
    }
}

fn frames(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frames");
    let mut out = Vec::with_capacity(1024);
    group.bench_function("call", |bencher| {
        bencher.iter(|| {
            let head = CallHead {
                id: 1,
                method: Method::Post,
                more: false,
                request_id: b"2f0c6c1e-7d3a-4b57-9c3f-0c9b8f1f6a55",
                trace: b"",
                query: b"",
                headers: None,
                limit: Duration::from_secs(60),
                body: CallBody::Follows(300),
            };
            out.clear();
            frame::encode_call(black_box(&head), &mut out);
        });
    });
    let mut payload = vec![0u8; 16];
    payload.extend_from_slice(&[b'1'; 300]);
    let payload = Bytes::from(payload);
    group.bench_function("reply", |bencher| {
        bencher.iter(|| frame::decode_reply(black_box(payload.clone()), None))
    });

    let image = tensor(1, 64);
    group.bench_function("tensors", |bencher| {
        bencher.iter(|| tensors::encode_tensors(1, black_box(&[("image", &image)])));
    });
    let block = tensors::encode_tensors(1, &[("image", &image)]).concat();
    let mut infer = vec![6, 0, 0, 0, 0, 0, 0, 0];
    infer.extend_from_slice(b"digits");
    infer.resize(64, 0);
    infer.extend_from_slice(&block[frame::HEADER..]);
    group.bench_function("infer", |bencher| {
        bencher.iter(|| {
            let mut payload = Buffer::zeroed(infer.len()).expect("memory");
            payload.copy_from_slice(&infer);
            tensors::decode_infer(black_box(&payload.freeze()), None)
        });
    });
    group.finish();
}

/// What counting costs a call: arrival, start, end.
fn busy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("busy");
    let call = |busy: &std::sync::Arc<Busy>| {
        if let Some(mut ticket) = busy.arrive() {
            ticket.start();
            ticket.finish(Outcome::Answered);
        }
    };
    let busy = Busy::new(4);
    group.bench_function("call, idle before and after", |bencher| bencher.iter(|| call(black_box(&busy))));
    let other = busy.arrive();
    group.bench_function("call beside another", |bencher| bencher.iter(|| call(black_box(&busy))));
    drop(other);
    group.finish();
}

/// What the scheduler costs a call: admission, begin, end.
fn scheduler(criterion: &mut Criterion) {
    const LIMITS: Limits =
        Limits { items: 512, bytes: 1 << 30, wait: Duration::from_secs(600), ageing: Duration::from_secs(1) };
    let terms = |deadline: Option<Duration>, caller: u16| Terms {
        caller,
        priority: Priority::Normal,
        kind: 0,
        bytes: 64,
        admission: Admission::Now,
        deadline: deadline.map(|deadline: Duration| tokio::time::Instant::now() + deadline),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let mut group = criterion.benchmark_group("scheduler");
    group.bench_function("call, a slot is free", |bencher| {
        let scheduler = Scheduler::new(Busy::new(4), 4, LIMITS, None);
        bencher.iter(|| {
            if let Ok(mut slot) = runtime.block_on(scheduler.admit(terms(None, 0))) {
                slot.begin();
                slot.finish(Outcome::Answered);
            }
        });
    });
    // A call comes, one ends, and the one that has waited longest has its slot; so many wait throughout.
    for (name, deadline) in [
        ("call, 256 others wait", None),
        ("call, 256 others wait with deadlines", Some(Duration::from_secs(600))),
    ] {
        group.bench_function(name, |bencher| {
            let _entered = runtime.enter();
            let scheduler = Scheduler::new(Busy::new(1), 1, LIMITS, None);
            let mut context = Context::from_waker(Waker::noop());
            let mut waiting = VecDeque::new();
            let enter = |waiting: &mut VecDeque<_>, context: &mut Context<'_>| {
                let (scheduler, terms) = (Arc::clone(&scheduler), terms(deadline, 0));
                let mut call = Box::pin(async move { scheduler.admit(terms).await });
                match call.as_mut().poll(context) {
                    Poll::Pending => {
                        waiting.push_back(call);
                        None
                    }
                    Poll::Ready(slot) => slot.ok(),
                }
            };
            let mut held = enter(&mut waiting, &mut context);
            for _ in 0..256 {
                enter(&mut waiting, &mut context);
            }
            bencher.iter(|| {
                enter(&mut waiting, &mut context);
                if let Some(mut slot) = held.take() {
                    slot.begin();
                    slot.finish(Outcome::Answered);
                }
                let next = waiting.pop_front().map(|mut call| call.as_mut().poll(&mut context));
                match next {
                    Some(Poll::Ready(Ok(slot))) => held = Some(slot),
                    _ => panic!("the one that has waited longest is next"),
                }
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = pure;
    config = Criterion::default().measurement_time(Duration::from_secs(3)).warm_up_time(Duration::from_secs(1));
    targets = json, ids, policy, frames, busy, scheduler
}
criterion_main!(pure);
