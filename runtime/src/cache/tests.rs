//! What is taken for the same question, who waits for whom, and how much is kept.

use std::sync::atomic::Ordering;
use std::time::Duration;

use outrigger_backend::{DataType, Shape};
use outrigger_protocol::call::{Form, Wanted};
use outrigger_protocol::error::{CallError, ErrorCode};
use outrigger_protocol::urgency::Urgency;
use proptest::prelude::*;
use tokio::time::Instant;

use super::asking::ROUNDS;
use super::*;

const SECRET: [u8; 32] = [7; 32];

fn cache(bytes: u64, answer: usize) -> ResponseCache {
    let config = CacheConfig { models: true, bytes, answer, waiting: 4, per_caller: true };
    ResponseCache::new(&config, &Registry::new()).unwrap()
}

fn tensor(data_type: DataType, extents: &[i64], data: &[u8]) -> Tensor {
    Tensor::new(data_type, Shape::new(extents.to_vec()).unwrap(), data.to_vec().into()).unwrap()
}

fn bytes(data: &[u8]) -> Tensor {
    tensor(DataType::Uint8, &[data.len() as i64], data)
}

fn call(inputs: Vec<Tensor>, outputs: &[usize]) -> InferCall {
    let outputs = outputs.iter().map(|index| Wanted { index: *index, form: Form::Values }).collect();
    InferCall { id: None, inputs, outputs, urgency: Urgency::default() }
}

fn identity(number: u8) -> Identity {
    Identity::of_files("m", &[number; 32])
}

fn asking(cache: &ResponseCache, question: u64) -> Asking<'_> {
    let call = call(vec![bytes(&question.to_le_bytes())], &[0]);
    let key = Key::of(&cache.secret, &identity(1), None, &call);
    Asking::new(cache, key, Reuse::Both)
}

async fn known(mut asking: Asking<'_>) -> Option<(Vec<u8>, Lookup)> {
    let (answer, lookup) = asking.known(None).await.unwrap()?;
    Some((answer.tensors[0].data().to_vec(), lookup))
}

#[test]
fn every_part_of_a_question_tells_it_from_others() {
    let zero = [0; 4];
    let base = call(vec![tensor(DataType::Int32, &[1], &zero)], &[0]);
    let others = [
        call(vec![tensor(DataType::Fp32, &[1], &zero)], &[0]),
        call(vec![tensor(DataType::Int32, &[1, 1], &zero)], &[0]),
        call(vec![tensor(DataType::Int32, &[1], &[0, 0, 0, 1])], &[0]),
        call(vec![tensor(DataType::Int32, &[1], &zero)], &[1]),
        call(vec![tensor(DataType::Int32, &[1], &zero)], &[0, 0]),
        call(vec![tensor(DataType::Int32, &[1], &zero), tensor(DataType::Int32, &[0], &[])], &[0]),
        call(vec![], &[0]),
    ];
    let key = |call: &InferCall| Key::of(&SECRET, &identity(1), Some(0), call);
    let mut keys: Vec<_> = others.iter().map(key).collect();
    keys.push(key(&base));
    keys.push(Key::of(&SECRET, &identity(2), Some(0), &base));
    keys.push(Key::of(&SECRET, &Identity::of_files("n", &[1; 32]), Some(0), &base));
    keys.push(Key::of(&SECRET, &identity(1), Some(1), &base));
    keys.push(Key::of(&SECRET, &identity(1), None, &base));
    keys.push(Key::of(&[8; 32], &identity(1), Some(0), &base));
    for (at, key) in keys.iter().enumerate() {
        assert!(!keys[..at].contains(key), "question {at}");
    }
    // What is no part of it.
    let mut named = base.clone();
    named.id = Some("a".into());
    named.outputs[0].form = Form::Raw;
    assert_eq!(key(&named), key(&base));
}

#[test]
fn a_load_of_files_that_nobody_vouches_for_is_like_no_other() {
    assert_eq!(identity(1), identity(1));
    assert_ne!(Identity::of_this_load(), Identity::of_this_load());
    let (one, two) = (identity(1), identity(2));
    let with = |others: &[Identity]| one.with(others.iter().copied());
    assert_ne!(with(&[one, two]), with(&[two, one]));
    assert_ne!(with(&[]), one);
    assert_eq!(one.after(0), one);
    assert!(one.after(1) != one && one.after(1) != one.after(2));
}

proptest! {
    /// Wherever two inputs meet, they are told apart.
    #[test]
    fn inputs_are_not_run_together(left: Vec<u8>, right: Vec<u8>, cut: prop::sample::Index) {
        let all = [left.clone(), right.clone()].concat();
        let at = cut.index(all.len() + 1);
        let key = |left: &[u8], right: &[u8]| {
            Key::of(&SECRET, &identity(1), None, &call(vec![bytes(left), bytes(right)], &[0]))
        };
        prop_assert_eq!(key(&left, &right) == key(&all[..at], &all[at..]), at == left.len());
    }
}

#[test]
fn requests_say_what_they_want_of_it() {
    for (said, expected) in [
        (&[][..], Reuse::Both),
        (&["max-age=0"], Reuse::Both),
        (&["no-cache"], Reuse::KeepOnly),
        (&["max-age=0, No-Cache"], Reuse::KeepOnly),
        (&["no-cache", "no-store"], Reuse::Neither),
        (&["no-store,no-cache"], Reuse::Neither),
        (&["no-cachet"], Reuse::Both),
        (&["\u{e9}, no-store"], Reuse::Neither),
    ] {
        let mut headers = http::HeaderMap::new();
        said.iter().for_each(|value| {
            headers.append("cache-control", HeaderValue::from_bytes(value.as_bytes()).unwrap());
        });
        assert_eq!(Reuse::of(&headers), expected, "{said:?}");
    }
}

/// One that runs its question.
fn leading(cache: &ResponseCache, question: u64) -> Asking<'_> {
    let mut asking = asking(cache, question);
    assert!(asking.leads());
    asking
}

fn answer(data: &[u8], lookup: Lookup) -> Option<(Vec<u8>, Lookup)> {
    Some((data.to_vec(), lookup))
}

#[tokio::test(start_paused = true)]
async fn one_runs_and_all_others_have_its_answer() {
    let cache = cache(1 << 20, 1024);
    let first = leading(&cache, 1);
    assert_eq!(known(asking(&cache, 2)).await, None, "another question waits for nobody");
    assert!(!asking(&cache, 1).leads(), "one with a slot gives it back");
    let land = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        first.ran(&[bytes(b"answer")], None);
    };
    let ((), second, third) = tokio::join!(land, known(asking(&cache, 1)), known(asking(&cache, 1)));
    assert_eq!([second, third], [answer(b"answer", Lookup::Joined), answer(b"answer", Lookup::Joined)]);
    assert_eq!(known(asking(&cache, 1)).await, answer(b"answer", Lookup::Hit));
    assert!(!asking(&cache, 1).leads(), "what is there is not run");
}

#[tokio::test(start_paused = true)]
async fn what_is_not_kept_is_given_to_who_waits_all_the_same() {
    let cache = cache(1 << 20, 4);
    let first = leading(&cache, 1);
    let land = async { first.ran(&[bytes(b"large")], None) };
    let (second, ()) = tokio::join!(known(asking(&cache, 1)), land);
    assert_eq!(second, answer(b"large", Lookup::Joined));
    assert_eq!(known(asking(&cache, 1)).await, None);
}

#[tokio::test(start_paused = true)]
async fn who_goes_without_a_result_leaves_the_run_to_others() {
    let cache = cache(1 << 20, 1024);
    let first = leading(&cache, 1);
    let (second, ()) = tokio::join!(known(asking(&cache, 1)), async { drop(first) });
    assert_eq!(second, None);
    for code in [ErrorCode::Overloaded, ErrorCode::ModelUnavailable, ErrorCode::DeadlineExceeded] {
        let second = leading(&cache, 1);
        let error = CallError::new(code, "bad luck");
        let (third, ()) = tokio::join!(known(asking(&cache, 1)), async { second.failed(&error) });
        assert_eq!(third, None, "{code} was the other's own");
    }
    leading(&cache, 1).ran(&[bytes(b"at last")], None);
    assert_eq!(known(asking(&cache, 1)).await, answer(b"at last", Lookup::Hit));
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_the_model_is_everybodys_and_is_not_kept() {
    let cache = cache(1 << 20, 1024);
    let first = leading(&cache, 1);
    let mut second = asking(&cache, 1);
    let error = CallError::new(ErrorCode::ModelFailed, "it rains");
    let (second, ()) = tokio::join!(second.known(None), async { first.failed(&error) });
    assert_eq!(second.unwrap_err(), error);
    assert_eq!(known(asking(&cache, 1)).await, None);
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_another_does_so_until_its_own_deadline() {
    let cache = cache(1 << 20, 1024);
    let _first = leading(&cache, 1);
    let deadline = Instant::now() + Duration::from_secs(1);
    let error = asking(&cache, 1).known(Some(deadline)).await.unwrap_err();
    assert_eq!((error.code, Instant::now()), (ErrorCode::DeadlineExceeded, deadline));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_nothing_twice_runs_beside_the_third() {
    let cache = cache(1 << 20, 1024);
    let mut unlucky = asking(&cache, 1);
    for _ in 0..ROUNDS {
        let other = leading(&cache, 1);
        let (nothing, ()) = tokio::join!(unlucky.known(None), async { drop(other) });
        assert!(nothing.unwrap().is_none());
    }
    let third = leading(&cache, 1);
    assert!(!unlucky.leads() && unlucky.leads(), "the last time that it stands back");
    assert!(unlucky.known(None).await.unwrap().is_none());
    unlucky.ran(&[bytes(b"beside")], None);
    assert_eq!(known(asking(&cache, 2)).await, None);
    third.ran(&[bytes(b"third")], None);
    assert_eq!(
        known(asking(&cache, 1)).await,
        answer(b"third", Lookup::Hit),
        "which is the one that is kept"
    );
}

#[tokio::test(start_paused = true)]
async fn so_many_wait_and_further_ones_run_themselves() {
    let cache = cache(1 << 20, 1024);
    let first = leading(&cache, 1);
    let four = async {
        tokio::join!(
            known(asking(&cache, 1)),
            known(asking(&cache, 1)),
            known(asking(&cache, 1)),
            known(asking(&cache, 1))
        )
    };
    let fifth = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let mut fifth = asking(&cache, 1);
        assert!(fifth.known(None).await.unwrap().is_none());
        assert!(fifth.leads(), "by itself");
        first.ran(&[bytes(b"one")], None);
    };
    let (four, ()) = tokio::join!(four, fifth);
    assert_eq!([four.0, four.1, four.2, four.3], [(); 4].map(|()| answer(b"one", Lookup::Joined)));
    assert_eq!(cache.waiting.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn one_that_wants_a_fresh_answer_neither_looks_nor_waits_and_what_is_older_is_not_kept() {
    let cache = cache(1 << 20, 1024);
    leading(&cache, 1).ran(&[bytes(b"oldest")], None);
    cache.answers.remove(&asking(&cache, 1).key);
    let old = leading(&cache, 1);
    let fresh = || Asking::new(&cache, asking(&cache, 1).key, Reuse::KeepOnly);
    let mut new = fresh();
    assert!(new.known(None).await.unwrap().is_none() && new.leads());
    new.ran(&[bytes(b"new")], None);
    assert_eq!(known(asking(&cache, 1)).await, answer(b"new", Lookup::Hit));
    old.ran(&[bytes(b"old")], None);
    assert_eq!(known(asking(&cache, 1)).await, answer(b"new", Lookup::Hit));
    // One that is too large to be kept takes away what was.
    let mut large = fresh();
    assert!(large.leads());
    large.ran(&[bytes(&[1; 2000])], None);
    assert_eq!(known(asking(&cache, 1)).await, None);
}

/// All memory of answers and of the table in which they are found, by the allocator's count of the latter.
fn memory(cache: &ResponseCache) -> u64 {
    let table = cache.answers.memory_used();
    cache.answers.weight() + (table.map + table.entries) as u64
}

#[tokio::test]
async fn bytes_are_bounded_whatever_comes() {
    for (total, largest) in [(64 << 10, 8 << 10), (4 << 20, 8 << 10), (1 << 20, 16 << 10)] {
        let cache = cache(total, largest);
        // Small ones fill the table, then others come.
        for question in 0..20_000_u64 {
            let size = if question < 10_000 {
                0
            } else {
                usize::try_from(question * 997 % (largest as u64 + 512)).unwrap()
            };
            leading(&cache, question).ran(&[bytes(&vec![1; size])], None);
            assert!(memory(&cache) <= total, "{} of {total} after {question}", memory(&cache));
        }
        assert!(cache.answers.len() > 4, "{}", cache.answers.len());
        assert!(cache.answers.weight() > total / 3, "{} of {total}", cache.answers.weight());
        assert!(cache.flights.landing(&asking(&cache, 1).key).is_none(), "nobody is under way");
    }
}

#[tokio::test]
async fn an_answer_of_the_largest_size_is_kept() {
    for (total, largest) in [(16 << 10, 4 << 10), (256 << 20, 1 << 20)] {
        let cache = cache(total, largest);
        leading(&cache, 1).ran(&[bytes(&vec![1; largest])], None);
        assert!(known(asking(&cache, 1)).await.is_some(), "{largest} of {total}");
    }
}

#[tokio::test]
async fn a_copy_is_kept_not_the_memory_of_the_run() {
    let cache = cache(1 << 20, 1024);
    let batch = ::bytes::Bytes::from(vec![1; 4096]);
    let part = Tensor::new(DataType::Uint8, Shape::new(vec![4]).unwrap(), batch.slice(8..12)).unwrap();
    leading(&cache, 1).ran(&[part], None);
    let (answer, _) = asking(&cache, 1).known(None).await.unwrap().unwrap();
    assert!(!batch.as_ptr_range().contains(&answer.tensors[0].data().as_ptr()));
    assert_eq!(answer.tensors[0].data()[..], [1; 4]);
}
