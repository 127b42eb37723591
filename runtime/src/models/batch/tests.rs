//! Batches on real threads, of a model that says what it was asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use outrigger_backend::{BackendError, DataType, Run, Tensor};
use outrigger_protocol::error::CallError;
use proptest::prelude::*;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::config::BatchDelay;
use crate::models::ModelInstance;
use crate::models::job::{self, Answer, Failure, Job};
use crate::models::tests::{Fake, GATE, POISON, WIDE, batching, inputs, stepped, until};
use crate::models::threads::Threads;

const AT_ONCE: BatchDelay = BatchDelay::AtMost(Duration::ZERO);
const LIMIT: usize = 1 << 20;

struct Rig {
    model: Arc<ModelInstance>,
    fake: Arc<Fake>,
    threads: Arc<Threads>,
}

impl Rig {
    fn new(threads: usize, max_batch: usize, delay: BatchDelay) -> Self {
        let (model, fake) = batching(max_batch, delay);
        Self { model, fake, threads: Arc::new(Threads::start("fake", threads, 64, LIMIT).unwrap()) }
    }

    fn call(
        &self,
        inputs: Vec<Tensor>,
        outputs: Vec<usize>,
        deadline: Option<Instant>,
    ) -> JoinHandle<Result<Answer, CallError>> {
        let (done, answer) = oneshot::channel();
        let job = Job {
            model: Arc::clone(&self.model),
            inputs,
            outputs,
            stay: Vec::new(),
            slot: None,
            deadline,
            run: Run::default(),
            done,
            held: None,
        };
        let threads = Arc::clone(&self.threads);
        tokio::spawn(async move { threads.run(job, answer).await })
    }

    async fn all(&self, calls: Vec<JoinHandle<Result<Answer, CallError>>>) -> Vec<Answer> {
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.unwrap().unwrap());
        }
        answers
    }

    /// What the call would get alone.
    fn expected(&self, inputs: &[Tensor], outputs: &[usize]) -> Answer {
        job::run(&self.model, job::Asked { inputs, outputs, stay: &[] }, Run::default(), LIMIT)
    }

    fn waiting(&self) -> usize {
        self.model.former.as_ref().unwrap().lock().waiting.len()
    }

    /// Takes the only thread.
    async fn occupy(&self) -> JoinHandle<Result<Answer, CallError>> {
        let blocker = self.call(inputs(1, 1, 0.0, GATE), vec![0], None);
        until(|| self.fake.runs().len() == 1).await;
        blocker
    }

    fn let_go(&self) {
        self.fake.open.store(true, Ordering::Release);
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.let_go();
        self.threads.stop();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_wait_for_a_thread_are_run_together() {
    let rig = Rig::new(1, 8, AT_ONCE);
    let blocker = rig.occupy().await;
    let calls: Vec<_> = (0..20).map(|at| inputs(1 + at % 2, 3, at as f32, at as i64 % 5)).collect();
    let mut answers = Vec::new();
    for (at, call) in calls.iter().enumerate() {
        answers.push(rig.call(call.clone(), vec![0, 1], None));
        until(|| rig.waiting() == at + 1).await;
    }
    rig.let_go();
    let answers = rig.all(answers).await;
    assert!(blocker.await.unwrap().unwrap().is_ok());
    // 30 rows, of calls with 1 and 2, in runs of at most 8, in order.
    assert_eq!(rig.fake.runs(), [1, 7, 8, 7, 8]);
    for (call, got) in calls.iter().zip(answers) {
        assert_eq!(got.unwrap(), rig.expected(call, &[0, 1]).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poisoned_call_fails_alone() {
    let rig = Rig::new(1, 32, AT_ONCE);
    let _blocker = rig.occupy().await;
    let calls: Vec<_> =
        (0..32).map(|at| inputs(1, 2, at as f32, if at == 21 { POISON } else { 1 })).collect();
    let answers: Vec<_> = calls.iter().map(|call| rig.call(call.clone(), vec![0], None)).collect();
    until(|| rig.waiting() == 32).await;
    rig.let_go();
    let answers = rig.all(answers).await;
    let mut runs = rig.fake.runs();
    runs.sort_unstable();
    // The one before, the batch, and two halves on each of five levels.
    assert_eq!(runs, [1, 1, 1, 2, 2, 4, 4, 8, 8, 16, 16, 32]);
    for (at, (call, got)) in calls.iter().zip(answers).enumerate() {
        match got {
            Ok(tensors) => assert_eq!(tensors, rig.expected(call, &[0]).unwrap(), "call {at}"),
            Err(Failure::Backend(BackendError::Run(_))) => assert_eq!(at, 21),
            Err(other) => panic!("call {at}: {other}"),
        }
    }
}

/// With steps around the model a batch is as wide as they may take, and none is run in halves for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_batch_is_wider_than_its_steps_may_take() {
    // Each row of five becomes FP32: 20 bytes, so that five rows go together.
    let (model, fake) = stepped(32, 5 * 20 + 19);
    let rig = Rig { model, fake, threads: Arc::new(Threads::start("fake", 1, 64, LIMIT).unwrap()) };
    let call = |at: usize, k| {
        let mut call = inputs(1, 5, 0.0, k);
        let shape = call[0].shape().clone();
        call[0] = Tensor::new(DataType::Uint8, shape, vec![at as u8; 5].into()).unwrap();
        call
    };
    let blocker = rig.call(call(0, GATE), vec![0], None);
    until(|| rig.fake.runs().len() == 1).await;
    let calls: Vec<_> = (0..12).map(|at| call(at, 1)).collect();
    let answers: Vec<_> = calls.iter().map(|call| rig.call(call.clone(), vec![0], None)).collect();
    until(|| rig.waiting() == 12).await;
    rig.let_go();
    assert!(blocker.await.unwrap().unwrap().is_ok());
    for (call, got) in calls.iter().zip(rig.all(answers).await) {
        assert_eq!(got.unwrap(), rig.expected(call, &[0]).unwrap());
    }
    assert_eq!(rig.fake.runs()[..4], [1, 5, 5, 2]);
    assert_eq!(rig.model.former.as_ref().unwrap().metrics.bisections.get(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn outputs_that_are_no_rows_are_asked_for_one_by_one() {
    let rig = Rig::new(1, 4, AT_ONCE);
    let _blocker = rig.occupy().await;
    let calls: Vec<_> = (0..4).map(|at| inputs(1, 2, at as f32, if at == 1 { WIDE } else { 1 })).collect();
    let answers: Vec<_> = calls.iter().map(|call| rig.call(call.clone(), vec![0], None)).collect();
    until(|| rig.waiting() == 4).await;
    rig.let_go();
    let answers = rig.all(answers).await;
    assert_eq!(rig.fake.runs(), [1, 4, 1, 1, 1, 1]);
    for (call, got) in calls.iter().zip(answers) {
        assert_eq!(got.unwrap(), rig.expected(call, &[0]).unwrap());
    }
    let metrics = &rig.model.former.as_ref().unwrap().metrics;
    assert_eq!((metrics.unsplit.get(), metrics.bisections.get()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_left_or_comes_too_late_is_not_run() {
    let rig = Rig::new(1, 8, AT_ONCE);
    let _blocker = rig.occupy().await;
    let deadline = Instant::now() + Duration::from_millis(20);
    let late = rig.call(inputs(1, 2, 0.0, 1), vec![0], Some(deadline));
    let left = rig.call(inputs(1, 2, 1.0, 1), vec![0], None);
    let stays = rig.call(inputs(1, 2, 2.0, 1), vec![0], Some(deadline + Duration::from_secs(600)));
    until(|| rig.waiting() == 3).await;
    left.abort();
    assert!(left.await.unwrap_err().is_cancelled());
    until(|| Instant::now() > deadline).await;
    rig.let_go();
    assert!(stays.await.unwrap().unwrap().is_ok());
    assert!(matches!(late.await.unwrap().unwrap(), Err(Failure::Late)));
    assert_eq!(rig.fake.runs(), [1, 1]);
    let metrics = &rig.model.former.as_ref().unwrap().metrics;
    assert_eq!((metrics.left.get(), metrics.late.get()), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_is_held_back_until_it_is_full_or_its_time_is_over() {
    let rig = Rig::new(2, 3, BatchDelay::AtMost(Duration::from_secs(3600)));
    let two: Vec<_> = (0..2).map(|at| rig.call(inputs(1, 2, at as f32, 1), vec![0], None)).collect();
    until(|| rig.waiting() == 2).await;
    // Another bucket does not fill it.
    let other = rig.call(inputs(1, 5, 0.0, 1), vec![0], None);
    until(|| rig.waiting() == 3).await;
    assert_eq!(rig.fake.runs(), [] as [usize; 0]);
    let third = rig.call(inputs(1, 2, 3.0, 1), vec![0], None);
    for answer in two.into_iter().chain([third]) {
        assert!(answer.await.unwrap().unwrap().is_ok());
    }
    assert_eq!((rig.fake.runs(), rig.waiting()), (vec![3], 1));
    // At the end nothing is held back.
    let threads = Arc::clone(&rig.threads);
    tokio::task::spawn_blocking(move || threads.stop()).await.unwrap();
    assert!(other.await.unwrap().unwrap().is_ok());

    let rig = Rig::new(2, 3, BatchDelay::AtMost(Duration::from_millis(5)));
    let since = Instant::now();
    assert!(rig.call(inputs(1, 2, 0.0, 1), vec![0], None).await.unwrap().unwrap().is_ok());
    assert!(since.elapsed() >= Duration::from_millis(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_fit_never_gets_among_others() {
    let rig = Rig::new(1, 8, AT_ONCE);
    let _blocker = rig.occupy().await;
    let mut wrong = inputs(1, 2, 0.0, 1);
    wrong.pop();
    let answer = rig.call(wrong, vec![0], None).await.unwrap().unwrap();
    assert!(matches!(answer, Err(Failure::Backend(BackendError::Input(_)))), "{answer:?}");
    assert_eq!(rig.waiting(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_may_wait() {
    let rig = Rig::new(1, 8, AT_ONCE);
    let former = rig.model.former.as_ref().unwrap();
    let _blocker = rig.occupy().await;
    let first = rig.call(inputs(1, 1, 0.0, 1), vec![0], None);
    until(|| rig.waiting() == 1).await;
    let mut answers = Vec::new();
    for _ in 1..former.most {
        let (done, answer) = oneshot::channel();
        let (model, inputs) = (Arc::clone(&rig.model), inputs(1, 1, 0.0, 1));
        let job = Job {
            model,
            inputs,
            outputs: vec![0],
            stay: Vec::new(),
            slot: None,
            deadline: None,
            run: Run::default(),
            done,
            held: None,
        };
        assert!(former.put(job).is_ok());
        answers.push(answer);
    }
    let error = rig.call(inputs(1, 1, 0.0, 1), vec![0], None).await.unwrap().unwrap_err();
    assert_eq!(error.code, outrigger_protocol::error::ErrorCode::Overloaded);
    // Those that have left make room.
    drop(answers);
    let answer = rig.call(inputs(1, 1, 0.0, 1), vec![0], None);
    until(|| rig.waiting() == 2).await;
    rig.let_go();
    assert!(first.await.unwrap().unwrap().is_ok());
    assert!(answer.await.unwrap().unwrap().is_ok());
}

#[derive(Clone, Debug)]
struct Random {
    rows: usize,
    length: usize,
    k: i64,
    outputs: Vec<usize>,
    seed: f32,
}

fn random() -> impl Strategy<Value = Random> {
    let k = prop_oneof![20 => 0..5i64, 1 => Just(POISON), 1 => Just(WIDE)];
    let outputs = prop_oneof![Just(vec![0]), Just(vec![1]), Just(vec![0, 1]), Just(vec![1, 0])];
    (0..6usize, 0..4usize, k, outputs, -10f32..10.0).prop_map(|(rows, length, k, outputs, seed)| Random {
        rows,
        length,
        k,
        outputs,
        seed,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever goes together, each caller gets exactly what it would get alone.
    #[test]
    fn each_caller_gets_its_own_rows(
        calls in prop::collection::vec(random(), 1..80),
        threads in 1..4usize,
        max_batch in 2..12usize,
        delay in prop_oneof![Just(AT_ONCE), Just(BatchDelay::Auto), Just(BatchDelay::AtMost(Duration::from_micros(300)))],
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new(threads, max_batch, delay);
            let asked: Vec<_> = calls.iter().map(|call| {
                let inputs = inputs(call.rows, call.length, call.seed, call.k);
                let answer = rig.call(inputs.clone(), call.outputs.clone(), None);
                (inputs, answer)
            }).collect();
            for (call, (inputs, answer)) in calls.iter().zip(asked) {
                let got = answer.await.unwrap().unwrap().map_err(|failure| failure.to_string());
                let expected = rig.expected(&inputs, &call.outputs).map_err(|error| error.to_string());
                assert_eq!(got, expected, "{call:?}");
            }
        });
    }
}
